"""The shapes that the store adds to those of `manners.types`, and the JSON form of a dialogue."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from manners.types import AnnotatorKind, Dialogue, PromptUse, Role, Turn, VersionKind


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A model version as the store knows it: a folder on disk and where it came from."""

    name: str
    kind: VersionKind
    path: str
    parent: str | None = None
    """Name of the version it was trained from; None for the first."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    watermark: int = 0
    """Highest verdict id that it may have learned from."""
    created_at: datetime | None = None
    """UTC; None only before it is stored."""
    id: int | None = None


class Outcome(StrEnum):
    """How a round ended."""

    PROMOTED = "promoted"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of the loop: which policy was tried, against which reward model, and what became of it."""

    policy: str
    """Name of the version that was tried."""
    reward: str
    """Name of the reward model's version; of a policy trained without one where there is none, the policy itself."""
    outcome: Outcome
    metrics: Mapping[str, Any] = field(default_factory=dict)
    created_at: datetime | None = None
    """UTC; None only before it is stored."""
    id: int | None = None


@dataclass(frozen=True, slots=True)
class Holdings:
    """How much the store holds; every use and every annotator kind has an entry, zero included."""

    prompts: Mapping[PromptUse, int]
    responses: int
    comparisons: int
    verdicts: Mapping[AnnotatorKind, int]
    versions: int


@dataclass(frozen=True, slots=True)
class Mark:
    """What is another one once the record is: what has `come`, and what is `gone` and not to be shown any more."""

    come: tuple[int, ...]
    gone: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Newest:
    """How far the record goes: what is of a higher number came later."""

    prompt: int
    comparison: int
    bet: int | None = None
    """None where a run of before bets were kept goes by all there are."""


EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
"""No verdict was given before that."""
AHEAD = timedelta(days=1)
"""How far another's clock may be ahead of ours."""


def refuse_moment(moment: datetime) -> None:
    """Raise ValueError, with the reason, for a time of a verdict that nobody's clock can have shown."""
    if not EARLIEST <= moment <= datetime.now(UTC) + AHEAD:
        raise ValueError(f"is {moment.isoformat()}, which is before 1970 or more than a day ahead of the clock here")


def token_of(number: int, made: datetime) -> str:
    """Return what stands for a row on a page: its number, and the microsecond in which it was made.

    In a store that was put back from a copy the number alone may be given to another row, and what waits on a page
    would be about that one.
    """
    return f"{number}-{(made - EARLIEST) // timedelta(microseconds=1):x}"


def number_of(token: str) -> int:
    """Return the number in a token, -1 where there is none; whether it is that row's, its time says."""
    number = token.partition("-")[0]
    return int(number) if re.fullmatch(r"[0-9]{1,18}", number) else -1


def to_messages(dialogue: Dialogue) -> list[dict[str, str]]:
    """Return a dialogue as a list of `{"role", "content"}`, the form in which it is stored and exported."""
    return [{"role": turn.role.value, "content": turn.text} for turn in dialogue]


def from_messages(messages: Sequence[Mapping[str, str]]) -> Dialogue:
    """Return the dialogue that `to_messages` wrote."""
    return tuple(Turn(Role(message["role"]), message["content"]) for message in messages)


def digest(*parts: object) -> str:
    """Return the SHA-256, in hex, of the JSON text of the parts: equal parts, and only those, share it."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
