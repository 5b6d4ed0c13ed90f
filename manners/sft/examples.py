"""From dialogues to token ids, with the tokens marked that an assistant wrote: nothing else is learned.

A template is never asked what it marks. An assistant's turn is rendered as everywhere here, behind its prompt and with
the token that ends an answer (`text.Renderer`); where that is how the whole dialogue begins, it is marked in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from manners.errors import MannersError
from manners.templates import Refused
from manners.text import Renderer
from manners.types import Dialogue, FinishReason, Response, Role, Sampling, opening


class LeftOut(StrEnum):
    """Why a dialogue, or a turn of one, is not learned from; the values are what people read."""

    NO_ANSWER = "no assistant turn"
    ORDER = "roles out of order: user and assistant take turns, the user first, a system turn before them"
    EMPTY = "an empty turn"
    REFUSED = "a shape that the chat template refuses"
    KEPT = "a prompt kept for evaluation or validation"
    TOO_LONG = "an assistant turn that ends past model.context"
    UNANSWERED = "a last turn without an answer (what comes before it is learned)"
    UNWRITABLE = "a text that the tokenizer cannot write"
    LIMIT = "a place past sft.limit"


@dataclass(frozen=True, slots=True)
class Example:
    """A dialogue that ends with an answer worth learning."""

    dialogue: Dialogue
    every: bool = True
    """Whether all of its assistant turns are, and not the last one only."""
    ignored: frozenset[int] = frozenset()
    """Places of assistant turns that are not, of those before the last one."""
    drawn: Sampling | None = None
    """How the model drew the last one, which is read in the tokens that were drawn then; None for other texts."""


@dataclass(frozen=True, slots=True)
class Learned:
    """Token ids of a dialogue, or of the part of one that ends with an assistant's turn."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    """First column of each assistant's turn that is learned, and the column after the token that ends it."""
    example: int
    """Which of the examples it is of."""

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return sum(stop - start for start, stop in self.spans)


@dataclass(frozen=True)
class LaidOut:
    """What can be learned from, and what became of the rest."""

    examples: tuple[Example, ...]
    sequences: tuple[Learned, ...]
    left_out: Counter[LeftOut]
    first: str
    """The first complaint, for a reader."""
    apart: int
    """Assistant turns that the template writes otherwise once something follows them: each has a row of its own."""


def lay_out(renderer: Renderer, examples: Sequence[Example], kept: frozenset[str] = frozenset()) -> LaidOut:
    """Turn examples into token ids; `kept` are the openings of prompts that nothing is trained on.

    Raises MannersError where nothing is left, with the reasons.
    """
    left_out = Counter[LeftOut]()
    first = ""
    usable = list[Example]()
    sequences = list[Learned]()
    apart = 0
    for number, example in enumerate(examples, 1):
        reason, detail = _objection(renderer, example.dialogue, kept)
        found, gone = ([], [reason]) if reason else _sequences(renderer, example, len(usable))
        left_out.update(gone)
        if gone:
            detail = f"{renderer.context} tokens" if gone[0] is LeftOut.TOO_LONG else detail
            first = first or f"dialogue {number} has {gone[0]}" + (f" ({detail})" if detail else "")
        if found:
            usable.append(example)
            sequences += found
            apart += len(found) - 1
    if not usable:
        raise _nothing(left_out, first)
    return LaidOut(tuple(usable), tuple(sequences), left_out, first, apart)


def _objection(renderer: Renderer, dialogue: Dialogue, kept: frozenset[str]) -> tuple[LeftOut | None, str]:
    """Return why a dialogue cannot be learned from, and a remark."""
    roles = [turn.role for turn in dialogue]
    turns = roles[roles[:1] == [Role.SYSTEM] :]
    if Role.ASSISTANT not in turns:
        return LeftOut.NO_ANSWER, ""
    if turns[0] is not Role.USER or Role.SYSTEM in turns or any(a is b for a, b in pairwise(turns)):
        return LeftOut.ORDER, ", ".join(roles)
    if not all(turn.text.strip() for turn in dialogue):
        return LeftOut.EMPTY, ""
    if opening(dialogue) in kept:
        return LeftOut.KEPT, ""
    why = renderer.template.objection(dialogue[: _last_answer(dialogue)])
    return (LeftOut.REFUSED, why) if why else (None, "")


def _sequences(renderer: Renderer, example: Example, number: int) -> tuple[list[Learned], list[LeftOut]]:
    """Return the token sequences of an example, and why some of its turns are in none.

    From the last assistant's turn to the first: prompt and turn either begin the sequence at hand, and the turn is
    marked there, or they are a sequence of their own.
    """
    dialogue = example.dialogue
    gone = [LeftOut.UNANSWERED] * (dialogue[-1].role is not Role.ASSISTANT)
    spoken = (place for place, turn in enumerate(dialogue) if turn.role is Role.ASSISTANT)
    places = [place for place in spoken if place not in example.ignored]
    rows = list[tuple[tuple[int, ...], list[tuple[int, int]]]]()
    for place in reversed(places if example.every else places[-1:]):
        drawn = example.drawn if place == places[-1] else None
        said = Response(dialogue[place].text, "", FinishReason.STOP, drawn)
        try:
            prompt, answer = renderer.whole(dialogue[:place], said)
        except Refused:
            gone.append(LeftOut.REFUSED)
            continue
        except MannersError:
            gone.append(LeftOut.UNWRITABLE)
            continue
        ids = prompt + answer
        if len(ids) > renderer.context:
            gone.append(LeftOut.TOO_LONG)
        elif rows and rows[-1][0][: len(ids)] == ids:
            rows[-1][1].append((len(prompt), len(ids)))
        else:
            rows.append((ids, [(len(prompt), len(ids))]))
    return [Learned(ids, tuple(reversed(spans)), number) for ids, spans in rows], gone


def prompt_of(example: Example) -> Dialogue:
    """Return what the last answer of an example answers."""
    return example.dialogue[: _last_answer(example.dialogue)]


def answer_of(example: Example) -> str:
    """Return the last answer of an example."""
    return example.dialogue[_last_answer(example.dialogue)].text


def _last_answer(dialogue: Dialogue) -> int:
    return max(place for place, turn in enumerate(dialogue) if turn.role is Role.ASSISTANT)


def _nothing(left_out: Counter[LeftOut], first: str) -> MannersError:
    reasons = "; ".join(f"{n} with {reason}" for reason, n in left_out.items()) or "there are none"
    return MannersError(f"there are no dialogues to learn from ({reasons}): {first or 'the examples are empty'}")
