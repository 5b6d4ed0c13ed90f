"""Answers made to measure."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from manners.types import Answer, FinishReason, Response, Role, Turn


def make(
    prompt: str, text: str, author: str = "new", ids: tuple[int, ...] | None = None, ended: bool = False
) -> Answer:
    """Return an answer whose token ids are `ids`, or one per character of the text; `ended` says it stopped itself."""
    reason = FinishReason.STOP if ended else FinishReason.LENGTH
    tokens = tuple(map(ord, text)) if ids is None else ids
    return Answer((Turn(Role.USER, prompt),), Response(text, author, reason), (1,), tokens)


@pytest.fixture(scope="session")
def answer() -> Callable[..., Answer]:
    """The function that makes answers."""
    return make
