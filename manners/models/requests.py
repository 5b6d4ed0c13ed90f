"""What is asked of a running model, and what it says while it answers; imports no torch.

These records cross from the process that serves pages to the one that holds the model, and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from manners.errors import MannersError
from manners.types import Dialogue, FinishReason

MOST_STOPS = 4
"""Stop strings that a request may have, as in other servers of this interface."""

_LIMITS: dict[str, tuple[float, float]] = {
    "count": (1, 1024),
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "max_tokens": (1, 1_000_000),
    "logprobs": (0, 20),
}


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt to be answered; raises MannersError where a value is out of range."""

    prompt: Dialogue
    max_tokens: int
    """Length limit of each answer; as many are kept free in the context, for which a long prompt loses its beginning.
    """
    seed: int
    """The same request with the same seed gets the same answers, whoever else is answered; counts modulo 2^32.

    Up to rounding: logits differ by about 1e-5 with the size of the batch, and a draw that is closer than that to the
    border between two tokens may go either way: about once in 100,000 tokens.
    """
    count: int = 1
    """Answers to draw, each with a random stream of its own."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token, whatever the seed."""
    top_p: float = 1.0
    """Tokens come from the smallest set of the likeliest ones whose probabilities reach this sum."""
    stop: tuple[str, ...] = ()
    """An answer ends before the first of these that it would contain."""
    account: str = ""
    """Who asks: accounts take turns, whatever each of them asks for."""
    logprobs: int | None = None
    """Report each token's log-probability, with this many of the likeliest tokens in its place; None reports none."""
    begun: str = ""
    """What each answer begins with already: it is continued, and what is written says the continuation alone."""
    open_ended: bool = False
    """Whether `max_tokens` are kept free and no limit: an answer has all that its prompt leaves of the context."""
    candidate: int | None = None
    """Which of the answers the candidate writes, as long as there is one; None for none of them."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not self.prompt:
            raise MannersError("the prompt is empty; give at least one turn")
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise MannersError(f"{name} cannot be {value}: it takes {low:g} to {high:g}")
        if len(self.stop) > MOST_STOPS or not all(self.stop):
            raise MannersError(
                f"stop cannot be {list(self.stop)}: it takes up to {MOST_STOPS} texts, none of them empty"
            )


class TokenLogprob(NamedTuple):
    """A token, as what it writes, and its log-probability in nats.

    Among all that can be said, under softmax(logits): no temperature, no top-p. A tuple, since a step may send some
    hundred of them from one process to the other.
    """

    text: str
    logprob: float
    raw: bytes = b""
    """What it writes, also where that is a part of a character, which `text` has no way to say."""


class DrawnToken(NamedTuple):
    """A token that was drawn, and the likeliest ones in its place."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]
    """Likeliest first."""


@dataclass(frozen=True, slots=True)
class Token:
    """More of an answer: the texts of all its events, one after another, are the answer."""

    index: int
    """Which of the request's answers."""
    text: str
    logprobs: tuple[DrawnToken, ...] = ()
    """Of the tokens whose text begins in here, where asked for."""


@dataclass(frozen=True, slots=True)
class Done:
    """An answer is complete."""

    index: int
    finish_reason: FinishReason
    """STOP: an end token or a stop string; LENGTH: `max_tokens`."""
    prompt_tokens: int
    completion_tokens: int
    """Tokens drawn, the end token and those of a stop string included."""
    version: str
    """The policy that wrote it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request will get no more answers."""

    message: str
    refused: bool = False
    """Whether the request itself is at fault (a prompt that is too long), not the server."""


Event = Token | Done | Failed
JOINED = 64
"""Events that are joined at most, so that nothing takes long that is made of them."""


def joined(events: Sequence[Event]) -> list[Event]:
    """Return the same answers in fewer events: of each answer all tokens are one, before its end."""
    found = list[Event]()
    at = dict[int, int]()
    for event in events:
        if isinstance(event, Token) and event.index in at:
            before = found[at[event.index]]
            assert isinstance(before, Token)
            more = Token(event.index, before.text + event.text, before.logprobs + event.logprobs)
            found[at[event.index]] = more
        else:
            if isinstance(event, Token):
                at[event.index] = len(found)
            found.append(event)
    return found


@dataclass(frozen=True, slots=True)
class Submit:
    """To the model's process: answer this, and name `key` with every event."""

    key: int
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """To the model's process: nobody waits for this any more."""

    key: int


@dataclass(frozen=True, slots=True)
class Load:
    """To the model's process: answer with this policy from now on, and let the candidate go."""

    version: str


@dataclass(frozen=True, slots=True)
class Heard:
    """To the model's process: a report of events has come to those who wait for it."""


@dataclass(frozen=True, slots=True)
class Rest:
    """To the model's process: write no more for this until it goes on, for what was written is not read."""

    key: int


@dataclass(frozen=True, slots=True)
class GoOn:
    """To the model's process: write on for this."""

    key: int


MOST_UNREAD = 256
"""Events of a request that wait for whoever asked: where they do not read, no more is written for them, nor kept."""
MOST_AHEAD = 4
"""Reports of events that may be on their way: the model waits for whoever serves pages, and never drowns it."""

Message = Submit | Cancel | Load | Heard | Rest | GoOn


@dataclass(frozen=True, slots=True)
class Beside:
    """A policy that answers beside the promoted one where a request asks for it."""

    version: str
    seats: int
    """Answers of its own that are written side by side."""


class Phase(StrEnum):
    """Whether requests are being answered."""

    LOADING = "loading"
    """Requests wait for the model."""
    READY = "ready"
    FAILED = "failed"
    """Requests fail at once."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """How the model's process is; it reports this itself when it has loaded something or cannot."""

    phase: Phase
    version: str
    """The policy in use, or about to be."""
    reason: str = ""
    """Why it failed, or starts again, or why another policy could not be loaded."""
    candidate: str | None = None
    """The policy that can be asked beside the one in use; None for none, or none any more."""


Said = tuple[tuple[int, Event], ...]
"""Events, each with its request's key."""
Report = EngineState | Said
"""What comes from the model's process: its state, or what was said."""
