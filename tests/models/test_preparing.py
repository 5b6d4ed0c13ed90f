"""Requests are laid out beside the batch: nobody waits for another account's long dialogues, or for who has left."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from manners.models import preparing as preparing_module
from manners.models.batch import Prepared, prepare
from manners.models.preparing import Preparing, Ready
from manners.models.requests import GenerationRequest, Submit
from manners.types import Role, Turn
from tests.worlds import tiny_pretrained

PATIENCE = 60.0


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Semaphore, list[str]]]:
    """Preparations wait to be let through, one by one, and are noted; they ask whether to go on before and after."""
    through, begun = threading.Semaphore(0), list[str]()

    def waiting(renderer: Any, request: GenerationRequest, seats: int, check: Any) -> Prepared:
        begun.append(request.account)
        through.acquire()
        check()
        return prepare(renderer, request, seats, check)

    monkeypatch.setattr(preparing_module, "prepare", waiting)
    yield through, begun
    for _ in range(100):
        through.release()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def asked(account: str, text: str = "oven") -> GenerationRequest:
    return GenerationRequest((Turn(Role.USER, text),), 5, seed=0, account=account)


def test_accounts_take_turns_and_who_has_left_is_left_out(
    held: tuple[threading.Semaphore, list[str]],
) -> None:
    through, begun = held
    done = SimpleQueue[Ready]()
    preparing = Preparing(copy.deepcopy(tiny_pretrained("llama").renderer), 4, done)
    preparing.take(Submit(0, asked("one")))
    until(lambda: begun == ["one"])
    for key in range(1, 10):
        preparing.take(Submit(key, asked("one")))
    preparing.take(Submit(100, asked("two")))
    preparing.take(Submit(101, asked("three")))
    preparing.cancel(0)  # it is being laid out
    preparing.cancel(1)  # it waits
    for _ in range(4):
        through.release()
    ready = [done.get(timeout=PATIENCE) for _ in range(3)]
    assert [one.key for one in ready] == [100, 101, 2], "neither 0 nor 1, and nobody waits for all of one account"
    assert [preparing.is_wanted(one.key) for one in ready] == [True] * 3
    assert begun[:4] == ["one", "two", "three", "one"]


def test_what_is_prepared_is_what_the_batch_prepares_by_itself() -> None:
    renderer, done = tiny_pretrained("llama").renderer, SimpleQueue[Ready]()
    preparing = Preparing(copy.deepcopy(renderer), 4, done)
    requests = {1: asked("one", "how do I bake bread? <|end|> naïve 🥖"), 2: asked("one", "bread " * 500)}
    for key, request in requests.items():
        preparing.take(Submit(key, request))
    first, second = done.get(timeout=PATIENCE), done.get(timeout=PATIENCE)
    assert first.outcome == prepare(renderer, requests[1], 4)
    assert isinstance(second.outcome, Exception) and "model.context" in str(second.outcome)
    preparing.cancel(1)
    assert not preparing.is_wanted(1), "it was cancelled after it was ready"
