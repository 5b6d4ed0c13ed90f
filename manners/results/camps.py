"""What came of looking for camps among annotators: numbers of camps, and of nobody."""

from __future__ import annotations

from dataclasses import dataclass, field

from manners.facts import NULL
from manners.types import Interval


@dataclass(frozen=True, kw_only=True)
class Camp:
    """Annotators who want the same."""

    share: float
    """Of all annotators."""
    people: int
    verdicts: int
    """Of theirs on what was set aside, that choose a side."""
    accuracy_shared: float | None = None
    """Of these, how many the reward model foretells."""
    accuracy_own: float | None = None
    """How many it foretells with what the camp wants beside it."""


@dataclass(frozen=True, kw_only=True)
class Parted:
    """A pair of answers about which camps differ."""

    prompt: str
    left: str
    right: str
    chances: tuple[float, ...]
    """Of each camp, the largest first, to choose the left one."""


@dataclass(frozen=True, kw_only=True)
class CampsResult:
    """Whether annotators want different things, and who foretells them better for it."""

    people: int
    """Who gave enough verdicts to be told apart."""
    gain: Interval | None = field(default=None, metadata=NULL)
    """Of camps over one model, in nats a verdict, on what was set aside; null where nothing was tried."""
    sentence: str
    camps: tuple[Camp, ...] | None = None
    """The largest first; absent where annotators are not told apart."""
    accuracy_gain: Interval | None = None
    """Of camps over one model, in the share of verdicts set aside that are foretold; by people."""
    examples: tuple[Parted, ...] | None = None
    """Where they differ most; nothing of anybody's chats."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a policy's answers to the validation prompts are worth to a camp, in units of the reward."""

    share: float
    before: float
    after: float
