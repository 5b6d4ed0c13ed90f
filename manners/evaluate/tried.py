"""A candidate beside the promoted policy in the chat: what people's choices say of the two, and for whom.

Each comparison was put before one person, on a turn of their own conversation. The first choice that is no skip counts,
and a later one changes nothing, so that the rule which may be looked at any time holds as it stands.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from manners.evaluate.ask import SIDE
from manners.feedback import bets
from manners.feedback.statistics import FEWEST, Decision, clustered_share, percent
from manners.results.audit import Tried
from manners.types import AnnotatorKind, AskedHow, Choice, Comparison, Verdict


@dataclass
class _Said:
    """What was said of two versions."""

    asked: int = 0
    stakes: Counter[float] = field(default_factory=Counter)
    """1 for a choice of the newer version, -1 for one of the older, 0 for neither."""
    wins: list[float] = field(default_factory=list)
    """The same as a share of a win."""
    people: list[str] = field(default_factory=list)
    """Whose each is."""


def outcomes(comparisons: Iterable[Comparison], order: Sequence[str]) -> list[Tried]:
    """Return what people's choices say of each two versions of which one was a candidate, those asked last first.

    `order` has the versions, oldest first: of two the newer stands before the other, whichever of them was promoted.
    """
    found = defaultdict[tuple[str, str], _Said](_Said)
    for one in comparisons:
        if one.asked_how is not AskedHow.CANDIDATE:
            continue
        newer, older = _by_age(one.left.author, one.right.author, order)
        said = found.pop((newer, older), _Said())
        found[newer, older] = said  # whichever was asked last comes last
        said.asked += 1
        if (choice := _choice(one)) is not None:
            stake = SIDE[choice.choice] if one.left.author == newer else -SIDE[choice.choice]
            said.stakes[float(stake)] += 1
            said.wins.append((1 + stake) / 2)
            said.people.append(_person(choice))
    return [_outcome(*names, said) for names, said in reversed(found.items())]


def _by_age(one: str, other: str, order: Sequence[str]) -> tuple[str, str]:
    """Return two versions, the newer first; what is not known is older than what is, and goes by its name."""
    ages = {name: place for place, name in enumerate(order, 1)}
    older, newer = sorted((one, other), key=lambda name: (ages.get(name, 0), name))
    return newer, older


def _choice(comparison: Comparison) -> Verdict | None:
    """Return the first choice of a person; None where nobody has made one."""
    people = (one for one in comparison.verdicts if one.annotator.kind is AnnotatorKind.HUMAN)
    return next((one for one in people if one.choice is not Choice.SKIP), None)


def _person(verdict: Verdict) -> str:
    """Return who gave a verdict: the account, whatever name it has, or the name of somebody without one."""
    who = verdict.annotator
    return f"name {who.name}" if who.account is None else f"account {who.account}"


def _outcome(version: str, against: str, said: _Said) -> Tried:
    people = len(set(said.people))
    rate = clustered_share(said.wins, said.people) if people > 1 else None
    outcome = Tried(
        version=version,
        against=against,
        comparisons=said.asked,
        unanswered=said.asked - said.stakes.total(),
        people=people,
        wins=said.stakes[1.0],
        losses=said.stakes[-1.0],
        ties=said.stakes[0.0],
        win_rate=rate,
        decision=str(bets.decide(said.stakes)),
        decided_share=bets.interval(said.stakes),
    )
    return outcome.saying(_sentence(outcome))


def _sentence(found: Tried) -> str:
    """The outcome in words a person can quote."""
    whom = "one person" if found.people == 1 else f"{found.people} people"
    counts = (
        f"Put beside {found.against} in the chat {found.comparisons} times, {found.version} won {found.wins} and lost"
        f" {found.losses} by the choices of {whom}, with {found.ties} ties and {found.unanswered} unanswered."
    )
    if not found.people:
        return f"Put beside {found.against} in the chat {found.comparisons} times, {found.version} has no choice yet."
    decided = {
        Decision.BETTER: "It is decided, whenever one looks: for those who were asked it is better.",
        Decision.WORSE: "It is decided, whenever one looks: for those who were asked it is worse.",
        Decision.CANNOT_TELL: "It is not decided yet; you may look at any time.",
    }[Decision(found.decision)]
    if found.win_rate is None:
        return f"{counts} {decided} One person speaks for themselves, not for others."
    few = f", from fewer than {FEWEST} people and so not to be trusted" if found.people < FEWEST else ""
    rate = f"With ties as halves and each person as a whole that is {percent(found.win_rate)}{few}."
    return f"{counts} {rate} {decided}"
