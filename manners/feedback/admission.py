"""Whether a judge's verdicts may train: what it says against what people say, and what it lets itself be moved by.

A judge is an annotator of kind `ai` that this tool asks itself (`judge:...`). It has no verdict where its answers in
the two orders disagree. Everything here is a function of records; nobody is asked.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from manners.feedback.statistics import Floats, clustered_mean, clustered_share, first_two, wilson
from manners.results.audit import CANNOT_TELL, FAIL, PASS, Check
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Interval,
    latest_of,
    latest_verdicts,
    opening,
)

ORDERS, UNREADABLE = "the two orders disagree", "an answer could not be read"
"""Why a judge has no verdict: a reason of its skip."""
USUAL_AGREEMENT = 0.75
"""What people's agreement is taken for where it is not known."""
USUAL_LENGTHS = 0.5
"""By how many doublings one answer is taken to be longer than the other, root mean square, where nothing was asked."""
LENGTHS = 2.0
"""Doublings beyond which a longer answer counts as no longer: one outlier must not be the slope."""
POWER = 0.8
"""How often what is `needed` is enough."""
MOST = 10_000_000
"""Comparisons beyond which no number of them is called enough."""
Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a judge must keep to, each by its whole 95 % interval."""

    margin: float = 0.05
    """By how much its agreement with people may lie below people's among themselves."""
    flips: float = 0.15
    """Share of comparisons on which it has no verdict."""
    length: float = 0.1
    """By how much more than people it may prefer an answer of twice the length."""
    own: float = 0.1
    """By how much more than people it may prefer answers of its own model."""
    turned: float = 0.1
    """Share of its verdicts that a sentence in the worse answer turns: an order to it, or flattery."""
    fewest: int = 50
    """Comparisons with several people's verdicts below which agreement is not told."""
    newest: int = 100
    """Comparisons with several people's verdicts, the newest, that may not contradict what all of them say together."""

    @property
    def probes(self) -> int:
        """The fewest tries of a probe, none of which turns a verdict, that keep to `turned`: z^2 / (n + z^2) does."""
        return math.ceil(Z**2 * (1 / self.turned - 1))


@dataclass(frozen=True, slots=True)
class Case:
    """A comparison that a judge was asked about."""

    group: str
    """Its opening: comparisons of one are not independent."""
    left: float | None
    """1 where the judge chose the left answer, 0 the right one, None where it has no verdict."""
    people: tuple[float, ...] = ()
    """The same of the first two people who chose a side (`fair`)."""
    longer: float = 0.0
    """How many times the left answer is twice as long as the right one."""
    own: int = 0
    """1 where the left answer alone is of the judge's own model, -1 where the right one alone is."""
    both_own: bool = False
    """Whether both answers are."""

    @property
    def several(self) -> bool:
        """Whether it says how far people agree, and the judge with them."""
        return self.left is not None and len(self.people) > 1

    @property
    def agreement(self) -> float:
        """The share of both that the judge agrees with."""
        return sum(self.left == one for one in self.people) / len(self.people)

    @property
    def among_people(self) -> float:
        """1 where both people agree, 0 where they differ."""
        return float(self.people[0] == self.people[1])

    @property
    def apart(self) -> float:
        """By how much more than people the judge prefers the left answer."""
        return (self.left or 0.0) - sum(self.people) / len(self.people)


@dataclass(frozen=True, slots=True)
class Beside:
    """A judge beside people, on the same comparisons."""

    agreement: Interval
    """Chance that the judge and a person choose the same side, where both and another person chose one."""
    among_people: Interval
    """Chance that two people do."""
    apart: Interval
    """The first less the second."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What was found out about a judge."""

    checks: tuple[Check, ...]
    agreement: Interval | None
    """Chance that the judge and a person choose the same side, where both and another person chose one."""
    human_agreement: Interval | None
    """Chance that two people do, on the same comparisons."""
    checked: int
    """Comparisons with several people's verdicts and one of the judge."""
    needed: int | None
    """Human verdicts after which a judge that agrees with people as they do is admitted in 8 of 10 tries; None where no
    number is enough."""

    @property
    def admitted(self) -> bool:
        """Whether it keeps to every limit."""
        return all(check.verdict == PASS for check in self.checks)

    @property
    def failed(self) -> tuple[str, ...]:
        """The checks that it is shown to fail."""
        return tuple(check.name for check in self.checks if check.verdict == FAIL)

    @property
    def cannot_tell(self) -> tuple[str, ...]:
        """The checks that too little is known for."""
        return tuple(check.name for check in self.checks if check.verdict == CANNOT_TELL)

    def value(self, name: str) -> Interval | None:
        """Return a check's figure."""
        return next((check.interval for check in self.checks if check.name == name), None)


def without_judges(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Return comparisons as they are without what this tool's judges said."""
    return [
        replace(one, verdicts=tuple(v for v in one.verdicts if not v.annotator.is_judge))
        if any(v.annotator.is_judge for v in one.verdicts)
        else one
        for one in comparisons
    ]


def judged_by_others(comparison: Comparison) -> bool:
    """Return whether anybody who is no AI has said something of a comparison, and not only skipped it."""
    return any(v.annotator.kind is not AnnotatorKind.AI and v.choice is not Choice.SKIP for v in comparison.verdicts)


def judge_verdicts(comparisons: Iterable[Comparison]) -> int:
    """Return how many verdicts judges have given that choose a side."""
    sided = (v for c in comparisons for v in latest_verdicts(c.verdicts) if v.choice in (Choice.LEFT, Choice.RIGHT))
    return sum(v.annotator.is_judge for v in sided)


def fair(comparison: Comparison) -> tuple[float, ...]:
    """Return 1 (left) or 0 of the first two people who chose a side, as far as that measures fairly (`first_two`).

    Comparisons that people came to by themselves do not.
    """
    if comparison.asked_how not in (AskedHow.RANDOM, AskedHow.IMPORTED, AskedHow.EVALUATION):
        return ()
    people = (v for v in comparison.verdicts if v.annotator.kind is AnnotatorKind.HUMAN)
    return tuple(float(v.choice is Choice.LEFT) for v in first_two(people))


def cases(comparisons: Iterable[Comparison], judge: Annotator, own: AbstractSet[str] = frozenset()) -> list[Case]:
    """Return the comparisons that a judge was asked about, in their order; `own` are names of versions of its model."""
    found = []
    for one in comparisons:
        said = latest_of(one, judge)
        if said is None:
            continue
        left = float(said.choice is Choice.LEFT) if said.choice in (Choice.LEFT, Choice.RIGHT) else None
        lengths = (len(one.left.text) + 1) / (len(one.right.text) + 1)
        longer = min(max(math.log2(lengths), -LENGTHS), LENGTHS)
        its = [side.author in own for side in (one.left, one.right)]
        found.append(Case(opening(one.prompt), left, fair(one), longer, its[0] - its[1], all(its)))
    return found


def admission(asked: Sequence[Case], turned: Mapping[str, tuple[int, int]], limits: Limits = Limits()) -> Admission:
    """Hold a judge against its limits, by what it was asked (oldest first) and how often each probe turned a verdict.

    `agreement`: with a the share of two people that it agrees with on a comparison, and h 1 where these agree, the mean
    of a - h lies above -margin (non-inferiority). `newest`: on the newest comparisons alone it is not shown to lie
    below. `drift`: it is not shown to be less on the newer half than on the older one. `length_slope`: with x doublings
    of length and d the judge's preference for the left answer less people's, sum(x d) / sum(x^2) lies within the limit;
    `own_model`: the mean of d towards its own model's answers does. `flip_rate`, and a check for each probe: shares.
    Intervals count whole openings. A figure without an interval, or with one on both sides, cannot be told, and the
    judge is not admitted.
    """
    both = [case for case in asked if case.several]
    told = beside(both) if len(both) >= limits.fewest else None
    needed = needed_verdicts(told.among_people.estimate if told else USUAL_AGREEMENT, *_circumstances(asked), limits)
    apart = "agreement with people less that among people"
    checks = [
        _at_least("agreement", told.apart if told else None, -limits.margin, len(both), apart),
        _newest(both, limits) if told else _unknown("newest", len(both)),
        _not_falling(both) if told else _unknown("drift", len(both)),
        _within(
            "length_slope",
            _slope(asked, limits),
            limits.length,
            len(both),
            "more than people for twice the length",
        ),
        _own(asked, limits),
        _at_most("flip_rate", flip_rate(asked), limits.flips, len(asked), "comparisons without a verdict"),
        *(
            _at_most(name, wilson(bad, n) if n else None, limits.turned, n, "verdicts that it turned")
            for name, (bad, n) in turned.items()
        ),
    ]
    agreement, among_people = (told.agreement, told.among_people) if told else (None, None)
    return Admission(tuple(checks), agreement, among_people, len(both), needed)


def beside(asked: Iterable[Case]) -> Beside | None:
    """Return how a judge stands beside people where several have judged; None below two openings."""
    both = [case for case in asked if case.several]
    if len({case.group for case in both}) < 2:
        return None
    return Beside(
        _share([case.agreement for case in both], both),
        _share([case.among_people for case in both], both),
        _mean([case.agreement - case.among_people for case in both], both),
    )


def flip_rate(asked: Sequence[Case]) -> Interval | None:
    """Return the share of comparisons on which a judge has no verdict; None below two openings."""
    if len({case.group for case in asked}) < 2:
        return None
    return _share([float(case.left is None) for case in asked], asked)


def needed_verdicts(
    agreement: float, lengths: float, own: float = 0.0, flips: float = 0.0, limits: Limits = Limits()
) -> int | None:
    """Return the human verdicts, two a comparison, by which a judge that agrees as people do passes in 8 of 10 tries.

    `lengths`: doublings of length between two answers, root mean square; `own`: the share of comparisons with an answer
    of the judge's own model; `flips`: the share without a verdict, of which half of what is allowed is taken at most.
    Of a judge and two people who are each right with the same chance, a - h and d have mean 0 and variance v = 3 (1 -
    agreement) / 4. So with n comparisons and z = 1.96 it passes `agreement` with Phi(margin / error - z), error^2 = v /
    n, and so `flip_rate`; `length_slope` with 2 Phi(limit lengths / error - z) - 1, and so `own_model`, by `own` n of
    them; `drift` with Phi(z). The product is what it passes all with, none of these hanging on another. None where no n
    is enough, since answers are equally long.
    """
    flips = min(flips, limits.flips / 2)
    variance = 0.75 * (1 - min(max(agreement, 0.5), 1.0))

    def admits(n: int) -> float:
        error, flipping = math.sqrt(variance / n), math.sqrt(flips * (1 - flips) ** 2 / n)
        at_one_end = _shown(limits.margin, error) * _shown(limits.flips - flips, flipping) * NormalDist().cdf(Z)
        at_both = [limits.length * lengths, *([limits.own * math.sqrt(own)] if own else [])]
        return at_one_end * math.prod(max(0.0, 2 * _shown(limit, error) - 1) for limit in at_both)

    most = limits.fewest
    while admits(most) < POWER:
        if most > MOST:
            return None
        most *= 2
    comparisons = bisect_left(range(most + 1), POWER, lo=limits.fewest, key=admits)
    return 2 * math.ceil(comparisons / (1 - flips))


def _shown(distance: float, error: float) -> float:
    """Return how often the whole 95 % interval lies on the right side of a border that is so far away."""
    return NormalDist().cdf(distance / error - Z) if error else 1.0


def _circumstances(asked: Sequence[Case]) -> tuple[float, float, float]:
    """Return of what was asked the lengths, the share of its own and that of flips, as `needed_verdicts` takes them."""
    if not asked:
        return USUAL_LENGTHS, 0.0, 0.0
    longer, own, flips = np.array([(case.longer**2, bool(case.own), case.left is None) for case in asked], float).T
    return math.sqrt(longer.mean()), float(own.mean()), float(flips.mean())


def _mean(values: ArrayLike, at: Sequence[Case], weights: ArrayLike | None = None) -> Interval:
    return clustered_mean(values, [case.group for case in at], weights)


def _share(values: ArrayLike, at: Sequence[Case]) -> Interval:
    return clustered_share(values, [case.group for case in at])


def _several_groups(at: Sequence[Case], limits: Limits) -> bool:
    return len(at) >= limits.fewest and len({case.group for case in at}) > 1


def _slope(asked: Sequence[Case], limits: Limits) -> Interval | None:
    at = [case for case in asked if case.left is not None and case.people and case.longer]
    if not _several_groups(at, limits):
        return None
    longer: Floats = np.array([case.longer for case in at])
    return _mean(np.array([case.apart for case in at]) / longer, at, longer**2)


def _own(asked: Sequence[Case], limits: Limits) -> Check:
    at = [case for case in asked if case.left is not None and case.people and case.own]
    name = "own_model"
    if not any(case.own for case in asked):
        alone = any(case.both_own for case in asked)
        none = "no answer is known to be of its own model"
        why = "all that is of its own model stands beside an answer that is too" if alone else none
        return Check(name=name, verdict=PASS, required=True, n=0, sentence=f"{name}: {why}.")
    towards = _mean([case.own * case.apart for case in at], at) if _several_groups(at, limits) else None
    return _within(name, towards, limits.own, len(at), "more than people for answers of its own model")


def _newest(both: Sequence[Case], limits: Limits) -> Check:
    """Compare the newest with the margin: a judge that drifts does so there first, whatever it was before."""
    newest = both[-limits.newest :]
    found = beside(newest)
    if found is None:
        return _unknown("newest", len(newest))
    verdict = FAIL if found.apart.high < -limits.margin else PASS
    what = f"the same on the newest, not shown to be below {-limits.margin:+.2f}"
    return _check("newest", found.apart, 0.0, limits.margin, verdict, len(newest), what)


def _not_falling(both: Sequence[Case]) -> Check:
    """Compare the newer half with the older one: (d - mean) / share of its half, signed, has the difference as mean."""
    apart: Floats = np.array([case.agreement - case.among_people for case in both])
    newer = np.arange(len(both)) >= len(both) // 2
    signs = np.where(newer, 1 / newer.mean(), -1 / (1 - newer.mean()))
    change = _mean((apart - apart.mean()) * signs, both)
    verdict = FAIL if change.high < 0 else PASS
    return _check("drift", change, 0.0, 0.0, verdict, len(both), "change of agreement from the older half to the newer")


def _at_least(name: str, found: Interval | None, limit: float, n: int, what: str) -> Check:
    if found is None:
        return _unknown(name, n)
    verdict = PASS if found.low >= limit else FAIL if found.high < limit else CANNOT_TELL
    return _check(name, found, 0.0, -limit, verdict, n, f"{what}, at least {limit:+.2f}")


def _at_most(name: str, found: Interval | None, limit: float, n: int, what: str) -> Check:
    if found is None:
        return _unknown(name, n)
    verdict = PASS if found.high <= limit else FAIL if found.low > limit else CANNOT_TELL
    return _check(name, found, 0.0, limit, verdict, n, f"{what}, at most {limit:.2f}")


def _within(name: str, found: Interval | None, limit: float, n: int, what: str) -> Check:
    if found is None:
        return _unknown(name, n)
    inside, outside = -limit <= found.low and found.high <= limit, found.low > limit or found.high < -limit
    verdict = PASS if inside else FAIL if outside else CANNOT_TELL
    return _check(name, found, 0.0, limit, verdict, n, f"{what}, within {limit:.2f}")


def _unknown(name: str, n: int) -> Check:
    return Check(name=name, required=True, n=n, sentence=f"{name}: too little to tell it by ({n}).")


def _check(name: str, found: Interval, threshold: float, margin: float, verdict: str, n: int, what: str) -> Check:
    words = {PASS: "kept", FAIL: "broken", CANNOT_TELL: "cannot be told"}[verdict]
    return Check(
        name=name,
        value=found.estimate,
        low=found.low,
        high=found.high,
        threshold=threshold,
        margin=margin,
        verdict=verdict,
        required=True,
        n=n,
        sentence=f"{name}: {found.estimate:+.3f} ({found.low:+.3f} to {found.high:+.3f}) {what}: {words} (of {n}).",
    )
