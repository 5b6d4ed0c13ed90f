"""What a policy is asked in an audit of its behaviour: what fits into its context, and a part of that, by the seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from manners.audit.policy import readings
from manners.audit.sets import Sets, place_of, read
from manners.data import Behaviour, Contested, GroupSwap, Question
from manners.feedback.statistics import FEWEST
from manners.loop.prompts import parts
from manners.loop.session import Session, digest
from manners.reward.groups import uniform
from manners.store.cases import Case
from manners.text import TooLong
from manners.types import Dialogue, Response, Role, Turn

AUTHOR = "audit"
Item = TypeVar("Item")


def counts(asked: Behaviour) -> dict[str, int]:
    """Return how many prompts and questions of each kind there are."""
    return {kind: len(some) for kind, some in vars(asked).items()}


def set_counts(sets: Sets) -> dict[str, int]:
    """Return how much there is of each set that is there."""
    kinds = {"xstest_safe": sets.safe, "xstest_unsafe": sets.unsafe, "winobias": sets.pronouns, "bbq": sets.bias}
    kinds |= {"truthfulqa": sets.truths, "ifeval": sets.instructed}
    return {kind: len(some) for kind, some in kinds.items() if some}


def sets_of(session: Session) -> Sets:
    """Read the published sets: those that the settings name, or the workspace's own."""
    named = session.settings.audit.sets
    folder = place_of(named, session.workspace.root)
    return read(folder if named or folder.is_dir() else None)


def sample(items: Sequence[Item], count: int, seed: int) -> tuple[Item, ...]:
    """Return at most so many, in their order: which ones is said by a hash of each and the seed."""
    chosen = set(sorted(range(len(items)), key=lambda i: uniform("behaviour", seed, digest(items[i])))[:count])
    return tuple(item for i, item in enumerate(items) if i in chosen)


def drawn_sets(sets: Sets, most: int, seed: int) -> Sets:
    """Return at most so many of each set; of BBQ's both kinds as many."""
    bias = [one for kind in (True, False) for one in sample([q for q in sets.bias if q.ambiguous == kind], most, seed)]
    safe, unsafe = (sample(some, most, seed) for some in (sets.safe, sets.unsafe))
    pronouns, truths = (sample(some, most, seed) for some in (sets.pronouns, sets.truths))
    instructed = sample(sets.instructed, most, seed)
    return Sets(safe, unsafe, pronouns, tuple(bias), truths, sets.skipped, instructed)


def drawn(pack: Behaviour, most: int, seed: int) -> Behaviour:
    """Return at most so many of each kind; of swaps as many of each axis, five at least, which tell something."""

    def some(items: Sequence[Item], count: int) -> tuple[Item, ...]:
        return sample(items, count, seed)

    axes = list(dict.fromkeys(swap.axis for swap in pack.swaps))
    by_axis = [
        some([swap for swap in pack.swaps if swap.axis == axis], max(FEWEST, most // max(1, len(axes))))
        for axis in axes
    ]
    return Behaviour(
        benign=some(pack.benign, most),
        unsafe=some(pack.unsafe, most),
        truths=some(pack.truths, most),
        contested=some(pack.contested, most),
        swaps=tuple(swap for of_axis in by_axis for swap in of_axis),
    )


def _fits(session: Session, text: str, tokens: int | None = None) -> bool:
    """Return whether the context has room for a prompt and an answer."""
    try:
        return not session.pretrained.renderer.prompt_ids(as_asked(text), tokens or session.settings.audit.tokens)[1]
    except TooLong:
        return False


def replays(session: Session, cases: Sequence[Case]) -> list[tuple[int, list[int]]]:
    """Return which cases are asked again together, and how many tokens the answers may have.

    It is as many as the reported one has, at least: cut shorter, the same answer would seem to be another.
    """
    found: dict[int, list[int]] = {}
    for place, case in enumerate(cases):
        found.setdefault(_tokens(session, case), []).append(place)
    return [(tokens, some) for tokens, places in sorted(found.items()) for some, _ in parts(places, 0)]


def _tokens(session: Session, case: Case) -> int:
    reported = session.pretrained.renderer.response_ids(Response(case.answer, AUTHOR, case.finish))
    return max(session.settings.sample.max_new_tokens, len(reported))


def room(session: Session, case: Case) -> bool:
    """Return whether the context has room for a reported answer, and for another one to its prompt."""
    try:
        dropped = session.pretrained.renderer.prompt_ids(case.prompt, _tokens(session, case))[1]
        return not dropped and _read_whole(session, [(case.prompt, Response(case.answer, AUTHOR))])
    except TooLong:
        return False


def _read_whole(session: Session, exchanges: Sequence[tuple[Dialogue, Response]]) -> bool:
    return all(session.pretrained.renderer.render(*one).dropped == 0 for one in exchanges)


def fitting(session: Session, pack: Behaviour) -> Behaviour:
    """Leave out what the context has no room for."""

    def swap(one: GroupSwap) -> bool:
        read_too = [f"{q.context} {way}" for q in one.sentences() for way in q.answers]
        return all(_fits(session, text) for text in (*one.prompts(), *read_too))

    return Behaviour(
        benign=tuple(text for text in pack.benign if _fits(session, text)),
        unsafe=tuple(text for text in pack.unsafe if _fits(session, text)),
        truths=tuple(one for one in pack.truths if _read_whole(session, of_truth(one))),
        contested=tuple(one for one in pack.contested if _read_whole(session, of_positions(one))),
        swaps=tuple(filter(swap, pack.swaps)),
    )


def fitting_sets(session: Session, sets: Sets) -> Sets:
    """Leave out what the context has no room for."""
    safe, unsafe = (tuple(text for text in some if _fits(session, text)) for some in (sets.safe, sets.unsafe))
    pronouns = tuple(q for q in sets.pronouns if all(_fits(session, f"{q.context} {end}") for end in q.answers))
    bias = tuple(one for one in sets.bias if _read_whole(session, of_truth(one.question)))
    truths = tuple(one for one in sets.truths if _read_whole(session, of_truth(one)))
    longest = session.settings.sample.max_new_tokens
    kept = (one for one in sets.instructed if one.words <= longest)  # nobody can keep to more
    instructed = tuple(one for one in kept if _fits(session, one.prompt, longest))
    return Sets(safe, unsafe, pronouns, bias, truths, sets.skipped, instructed)


def as_asked(text: str) -> Dialogue:
    """Return a text as a user's only turn."""
    return (Turn(Role.USER, text),)


def of_truth(question: Question) -> list[tuple[Dialogue, Response]]:
    """Return each answer to a question, as the policy would give it; the right one first."""
    return [(as_asked(question.context), Response(f"{text.rstrip('.')}.", AUTHOR)) for text in question.answers]


def of_positions(one: Contested) -> list[tuple[Dialogue, Response]]:
    """Return both positions as answers to each reading of a contested question."""
    return [(as_asked(text), Response(said, AUTHOR)) for text in readings(one) for said in one.positions]
