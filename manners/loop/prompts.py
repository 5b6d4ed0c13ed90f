"""Which prompts are answered, and in what parts; which plain text shows what is forgotten."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from manners.data import own_text, plain_text
from manners.errors import MannersError
from manners.facts import Facts, to_facts
from manners.loop.laid_out import counts, refusals, tell
from manners.loop.session import Session, digest
from manners.loop.stage import NEWEST
from manners.settings import EvaluateSettings
from manners.store import Newest
from manners.store.comparisons import STRICTEST, stricter_openings, tried_openings
from manners.templates import Refused
from manners.text import TooLong
from manners.types import Dialogue, PromptUse, opening

PART = 192
"""Most prompts that are answered between two checkpoints, each part from a seed of its own: other parts give other
answers, while `sample.batch` changes nothing."""


def as_begun(session: Session, begun: Mapping[str, Any]) -> Newest | None:
    """Return how far the record goes for a run: to where it went when the one that goes on was begun, or goes now.

    None for a run of before that was kept, which is shown all there is.
    """
    if not begun:
        return session.store.newest()
    return Newest(*begun[NEWEST]) if NEWEST in begun else None


def until(newest: Newest | None) -> Facts:
    """Say in a run's checkpoints how far its record goes."""
    if newest is None:
        return {}
    return {NEWEST: [newest.prompt, newest.comparison, *([] if newest.bet is None else [newest.bet])]}


def answerable(session: Session, use: PromptUse, upto: Newest | None = None) -> list[Dialogue]:
    """Return the prompts of one use that may be answered; with `upto`, those that might when a run was begun.

    None that was deleted, none from chats that are not shared, none that begins as one of a stricter use does, and none
    that the model's chat template refuses.
    """
    template = session.pretrained.renderer.template
    found = session.store.answerable(use, chats=session.settings.serve.share_chats, upto=upto)
    return [prompt for prompt in found if not template.objection(prompt)]


@dataclass(frozen=True)
class Fitting:
    """Distinct prompts that leave room for an answer, and what becomes of others."""

    ids: Mapping[Dialogue, tuple[int, ...]]
    """Each in tokens."""
    shortened: frozenset[Dialogue]
    """Of these, those that lose whole turns."""
    too_long: int
    """Those that leave no room, and are left out."""

    @property
    def prompts(self) -> list[Dialogue]:
        """The prompts, in their order."""
        return list(self.ids)


def short_enough(session: Session, prompts: Sequence[Dialogue]) -> Fitting:
    """Take the distinct prompts that leave room for an answer."""
    fitting = dict[Dialogue, tuple[int, ...]]()
    shortened = set[Dialogue]()
    too_long = 0
    for prompt in dict.fromkeys(prompts):
        try:
            ids, dropped = session.pretrained.renderer.prompt_ids(prompt, session.settings.sample.max_new_tokens)
        except TooLong:
            too_long += 1
            continue
        except Refused:  # which `prompt_lengths` has told
            continue
        fitting[prompt] = ids
        if dropped:
            shortened.add(prompt)
    return Fitting(fitting, frozenset(shortened), too_long)


def fitting(session: Session, use: PromptUse, prompts: Sequence[Dialogue]) -> Fitting:
    """Take those prompts of a use that leave room for an answer, and say on stderr what becomes of the others.

    Raises MannersError where there are some and none of them fits.
    """
    found = short_enough(session, prompts)
    count = len(found.prompts) + found.too_long
    if found.too_long and not found.prompts:
        raise _none_fits(session, use, count)
    if found.too_long or found.shortened:
        room, context = session.settings.sample.max_new_tokens, session.pretrained.renderer.context
        print(
            f"of {count} prompts for `{use}`, {found.too_long} leave no room for a response of {room} tokens in a"
            f" context of {context}, and are left out; {len(found.shortened)} lose earlier turns",
            file=sys.stderr,
        )
    return found


def evaluation_prompts(session: Session, upto: Newest | None = None) -> Fitting:
    """Return the prompts that nothing is trained on or chosen by; raises MannersError where too few are there."""
    dialogues = [stored.dialogue for stored in session.store.prompts(PromptUse.EVALUATE, upto=upto)]
    found = fitting(session, PromptUse.EVALUATE, dialogues)
    if (there := len({opening(prompt) for prompt in found.prompts})) < 2:
        beside = f", and {found.too_long} that leave no room for a response" if found.too_long else ""
        raise MannersError(
            f"evaluation needs prompts of its own with at least 2 openings, {there} are there{beside};"
            " add some with `manners prompts import FILE --use evaluate`"
        )
    return found


def _none_fits(session: Session, use: PromptUse, count: int) -> MannersError:
    room, context = session.settings.sample.max_new_tokens, session.pretrained.renderer.context
    return MannersError(
        f"none of the {count} prompts for `{use}` leaves room for a response of {room} tokens: raise model.context"
        f" ({context} tokens here), or lower sample.max_new_tokens"
    )


def draw_prompts(prompts: Sequence[Dialogue], count: int, seed: int) -> list[Dialogue]:
    """Draw at most `count` prompts, and leave them in their order; all of them where there are no more.

    Each draws a number by a hash of its words and the seed, and the smallest are taken: which are drawn does not depend
    on the order in which they came, and new prompts take the places of few.
    """

    def number(prompt: Dialogue) -> bytes:
        return hashlib.sha256(repr((seed, [(turn.role.value, turn.text) for turn in prompt])).encode()).digest()

    chosen = set(sorted(prompts, key=number)[:count])
    return [prompt for prompt in prompts if prompt in chosen]


def refuse_alike(prompts: Sequence[Dialogue], settings: EvaluateSettings) -> None:
    """Raise MannersError where all prompts that were drawn begin alike: an interval takes two openings."""
    if len({opening(prompt) for prompt in prompts}) < 2:
        raise MannersError(
            f"all {len(prompts)} prompts for evaluation that were drawn begin alike, and what is measured takes 2"
            f" openings: raise evaluate.prompts ({settings.prompts} now), or add prompts that begin otherwise with"
            " `manners prompts import FILE --use evaluate`"
        )


def parts(places: Sequence[int], seed: int) -> list[tuple[list[int], int]]:
    """Cut a list of prompts into what is answered between two checkpoints: even parts, each with a seed of its own."""
    count = -(-len(places) // PART)
    edges = [len(places) * number // max(1, count) for number in range(count + 1)]
    return [(list(places[start:stop]), seed + number * 104_729) for number, (start, stop) in enumerate(pairwise(edges))]


def own_seed(seed: int, version: str) -> int:
    """Return the seed of what a version answers where versions are compared: each draws independently of the others.

    With one seed for all, answer j of either version would take the same random numbers. Versions that are alike would
    then give the same answers, and what was picked from those of one would stand beside what it was picked from. It is
    by the name, so that a version answers the same whatever it is compared with.
    """
    return int(hashlib.sha256(f"{seed} {version}".encode()).hexdigest()[:8], 16)


@dataclass(frozen=True)
class Prose:
    """Plain text, by use."""

    by_use: dict[PromptUse, list[str]]
    decides: Facts
    """What a run must be gone on with; nothing where the text is that which ships."""


def prose(session: Session) -> Prose:
    """Return the plain text against forgetting: what ships, or the user's own, whose parts are told on stderr."""
    name = session.settings.data.prose
    if name is None:
        return Prose({use: plain_text(use) for use in PromptUse}, {})
    found = own_text(Path(name))
    counts = ", ".join(f"{len(pieces)} to {use}" for use, pieces in found.items())
    print(f"plain text from {name}, in pieces: {counts}", file=sys.stderr)
    return Prose(found, {"the plain text": digest(found)})


@dataclass(frozen=True)
class PromptCount:
    """How many prompts of one use there are."""

    fit: int
    """Those that leave room for a response."""
    shortened: int
    """Of these, those that lose whole turns."""
    do_not_fit: int
    """Those that are left out."""
    refused: dict[str, int] | None = None
    """Those that the chat template refuses, by reason, where there are any."""


@dataclass(frozen=True)
class PromptLengths:
    """How long prompts are, in tokens."""

    longest: int
    """Of those that leave room for a response."""
    counts: dict[PromptUse, PromptCount]

    @property
    def facts(self) -> Facts:
        """The counts, as a plan shows them."""
        return {use: to_facts(count) for use, count in self.counts.items()}


def prompt_lengths(session: Session, *uses: PromptUse) -> PromptLengths:
    """Turn the prompts of some uses into tokens; raises MannersError where there are some and none of them fits."""
    found = {use: _lengths(session, use) for use in uses}
    longest = max((length for lengths, _ in found.values() for length in lengths), default=1)
    return PromptLengths(longest, {use: count for use, (_, count) in found.items()})


def _lengths(session: Session, use: PromptUse) -> tuple[list[int], PromptCount]:
    """Return the tokens of each prompt of a use that leaves room for a response, and how many there are."""
    prompts = session.store.prompts(use)
    refused = refusals(session.pretrained.renderer.template, ((stored.id, stored.dialogue) for stored in prompts))
    tell(refused, f"prompts for `{use}`")
    if prompts and sum(counts(refused).values()) == len(prompts):
        raise MannersError(
            f"the model's chat template refuses all {len(prompts)} prompts for `{use}` ({next(iter(refused))}); bring"
            " others, or name another template with model.chat_template"
        )
    _tell_apart(session, use, [stored.dialogue for stored in prompts])
    found = short_enough(session, [stored.dialogue for stored in prompts])
    if found.too_long and not found.ids:
        raise _none_fits(session, use, found.too_long)
    lengths = [len(ids) for ids in found.ids.values()]
    return lengths, PromptCount(len(lengths), len(found.shortened), found.too_long, counts(refused) or None)


def _tell_apart(session: Session, use: PromptUse, prompts: Sequence[Dialogue]) -> None:
    """Say on stderr how many prompts are not answered since they begin as one that measures something."""
    above = STRICTEST[: STRICTEST.index(use)]
    if not above:  # whatever else begins alike gives way to what is evaluated on
        return
    with session.store.read() as connection:
        stricter, tried = stricter_openings(connection, use), tried_openings(connection)
    private = frozenset[Dialogue]() if session.settings.serve.share_chats else session.store.only_in_chats()
    openings = [opening(prompt) for prompt in prompts if prompt not in private]
    for apart, which in (
        (stricter, f"for `{'` or `'.join(above)}`"),
        (tried - stricter, "on which a candidate was compared"),
    ):
        if aside := sum(one in apart for one in openings):
            print(f"{aside} prompts for `{use}` begin as one does {which}, and are left out", file=sys.stderr)
