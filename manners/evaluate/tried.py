"""A candidate beside the promoted policy in the chat: what people's choices say of the two, and for whom.

Each comparison was put before one person, on a turn of their own conversation. The first choice that is no skip counts,
and a later one changes nothing. Of each person one choice is a bet, the first that prefers a version, for what one
person says again and again is no news of others: so the rule which may be looked at any time holds as it stands.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import mean

from manners.evaluate.ask import SIDE
from manners.feedback import bets
from manners.feedback.statistics import FEWEST, Decision, clustered_share, percent
from manners.results.audit import Tried
from manners.types import AnnotatorKind, AskedHow, Choice, Comparison, Verdict


@dataclass
class _Said:
    """What was said of two versions."""

    asked: int = 0
    reported: int = 0
    """Beside these, those about which a report was upheld."""
    choices: list[tuple[int, str, float]] = field(default_factory=list)
    """When it arrived, whose it is, and 1 for the newer version, -1 for the older, 0 for neither."""

    def by_person(self) -> dict[str, list[float]]:
        """Return each person's choices in order of arrival."""
        found = defaultdict[str, list[float]](list)
        for _, person, stake in sorted(self.choices, key=lambda one: one[0]):
            found[person].append(stake)
        return found


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
        if one.reported:
            said.reported += 1
            continue
        said.asked += 1
        if (choice := _choice(one)) is not None:
            stake = SIDE[choice.choice] if one.left.author == newer else -SIDE[choice.choice]
            said.choices.append((choice.arrived or 0, _person(choice), float(stake)))
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
    people = said.by_person()
    means = [mean(stakes) for stakes in people.values()]
    rate = clustered_share([(1 + one) / 2 for one in means], range(len(means))) if len(means) > 1 else None
    chosen = Counter(stake for _, _, stake in said.choices)
    bet = Counter(next((stake for stake in stakes if stake), 0.0) for stakes in people.values())
    outcome = Tried(
        version=version,
        against=against,
        comparisons=said.asked,
        unanswered=said.asked - len(said.choices),
        reported=said.reported,
        people=len(people),
        people_for=sum(one > 0 for one in means),
        people_against=sum(one < 0 for one in means),
        wins=chosen[1.0],
        losses=chosen[-1.0],
        ties=chosen[0.0],
        win_rate=rate,
        decision=str(bets.decide(bet)),
        decided_share=bets.interval(bet),
    )
    return outcome.saying(_sentence(outcome))


def _sentence(found: Tried) -> str:
    """The outcome in words a person can quote."""
    whom = "one person" if found.people == 1 else f"{found.people} people"
    reported = f", and {found.reported} left out that were reported" if found.reported else ""
    counts = (
        f"Put beside {found.against} in the chat {found.comparisons} times, {found.version} won {found.wins} and lost"
        f" {found.losses} by the choices of {whom}, with {found.ties} ties and {found.unanswered} unanswered{reported}."
    )
    neither = found.people - found.people_for - found.people_against
    preferred = f"{found.people_for} preferred it, {found.people_against} {found.against}, and {neither} neither."
    if not found.people:
        return f"Put beside {found.against} in the chat {found.comparisons} times, {found.version} has no choice yet."
    first = "by the first preference of each person"
    decided = {
        Decision.BETTER: f"It is decided, whenever one looks, {first}: for those who were asked it is better.",
        Decision.WORSE: f"It is decided, whenever one looks, {first}: for those who were asked it is worse.",
        Decision.CANNOT_TELL: "It is not decided yet; you may look at any time.",
    }[Decision(found.decision)]
    if found.win_rate is None:
        return f"{counts} {decided} One person speaks for themselves, not for others."
    few = f", from fewer than {FEWEST} people and so not to be trusted" if found.people < FEWEST else ""
    rate = f"With ties as halves and each person as a whole that is {percent(found.win_rate)}{few}."
    return f"{counts} Of these people {preferred} {rate} {decided}"
