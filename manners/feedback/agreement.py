"""How far annotators agree: with each other, with themselves, and how reliable each of them is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manners.feedback.statistics import (
    bootstrapped,
    cluster_bootstrap_share,
    crossed_share,
    first_two,
    resampled,
    unvaried,
    wilson,
)
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    DrawnHow,
    Interval,
    Verdict,
    latest_verdicts,
)

RESAMPLES = 1000
CHOICES = (Choice.LEFT, Choice.RIGHT, Choice.TIE)
"""What is agreed about: `both_bad` prefers neither, as a tie; skips say nothing."""
SMOOTHING = 1.0
"""Verdicts of each kind that an annotator is given beforehand: nobody is perfect after three of them."""
STEPS = 200
READ_A_SECOND = 100
"""Characters that nobody reads more of in a second: a thousand words a minute."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Habits:
    """How one annotator works."""

    annotator: Annotator
    verdicts: int
    left: Interval
    """Share of the left side as shown among verdicts that chose a side; by chance 1/2."""
    seconds: float | None
    """Median."""
    reliability: float | None
    """Chance of naming the better side where there is one, by Dawid and Skene; None where nobody else has judged."""
    itself: Interval | None
    """Share of repeats answered as before, skips left out."""
    gold: Interval | None
    """Share of known verdicts met."""
    unread: int = 0
    """Verdicts on two answers that nobody can have read in the time that they were visible, skips left out."""


def counted(comparison: Comparison, kind: AnnotatorKind) -> dict[Annotator, Choice]:
    """Return the latest choice of each annotator of a kind, skips left out."""
    return {
        v.annotator: _agreed_about(v)
        for v in latest_verdicts(comparison.verdicts)
        if v.annotator.kind is kind and v.choice is not Choice.SKIP
    }


def _agreed_about(verdict: Verdict) -> Choice:
    return Choice.TIE if verdict.choice is Choice.BOTH_BAD else verdict.choice


def alpha(comparisons: Sequence[Comparison], kind: AnnotatorKind, seed: int) -> Interval | None:
    """Return Krippendorff's alpha for nominal values, by bootstrap over comparisons; None where nothing overlaps.

    1 - D_o / D_e, with D_o the disagreement of pairs of verdicts within comparisons, each comparison of m verdicts
    weighing m pairs / (m - 1), and D_e that of pairs drawn from all verdicts. 1 is agreement, 0 what chance gives. As
    in `pairwise`, a comparison counts where its first two verdicts were drawn fairly. Where all comparisons are agreed
    about alike, as where nobody differs, no resample does: D_o then reaches as far as `unvaried` says.
    Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section D.
    """
    fair = (comparison for comparison in comparisons if len(_first_two(comparison, kind)) == 2)
    rows = [Counter(counted(comparison, kind).values()) for comparison in fair]
    counts = np.array([[row[choice] for choice in CHOICES] for row in rows], dtype=np.float64)
    if len(counts) < 2:
        return None
    size = counts.sum(axis=1)
    apart = (size**2 - (counts**2).sum(axis=1)) / (size - 1)
    sums = np.column_stack([apart, counts])
    whole = float(_alpha(sums.sum(axis=0, keepdims=True))[0])
    if np.isnan(whole):
        return None
    found = bootstrapped(whole, _alpha(resampled(sums, RESAMPLES, seed)), len(sums), -1.0, 1.0)
    if np.ptp(apart / size) > 0:
        return found
    differ = unvaried(float(apart[0] / size[0]), len(sums), 0.0, 1.0)
    n, total = float(size.sum()), counts.sum(axis=0)
    low, high = (float(end) for end in _alpha(np.array([[n * end, *total] for end in (differ.high, differ.low)])))
    return Interval(whole, max(-1.0, min(found.low, low)), min(1.0, max(found.high, high)))


def _alpha(sums: Floats) -> Floats:
    """Return alpha of rows (R, 1 + choices): observed disagreement, then each choice's count; nan if all are alike."""
    observed, counts = sums[:, 0], sums[:, 1:]
    n = counts.sum(axis=1)
    expected = (n**2 - (counts**2).sum(axis=1)) / (n - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(expected > 0, 1 - observed / expected, np.nan)
    return found


def pairwise(comparisons: Sequence[Comparison], kind: AnnotatorKind, seed: int) -> Interval | None:
    """Return how often the first two verdicts on a comparison are the same; None where nothing overlaps.

    Later ones are often asked for because the first two differ, and what was drawn for being hard is no fair sample
    (`statistics.first_two`).
    """
    pairs = [two for comparison in comparisons if len(two := _first_two(comparison, kind)) == 2]
    same = [float(_agreed_about(one) is _agreed_about(other)) for one, other in pairs]
    return cluster_bootstrap_share(same, range(len(same)), RESAMPLES, seed) if len(same) > 1 else None


def _first_two(comparison: Comparison, kind: AnnotatorKind) -> tuple[Verdict, ...]:
    """Return what the first two of a kind said of a comparison, a tie too, as far as both were drawn fairly."""
    return first_two((v for v in comparison.verdicts if v.annotator.kind is kind), (*CHOICES, Choice.BOTH_BAD))


def left_share(comparisons: Sequence[Comparison], kind: AnnotatorKind) -> Interval:
    """Return the share of the left side as shown among the latest verdicts that chose one, of one kind of annotator.

    Those of one person share that person's habit, those on one comparison its answers: the interval is
    `crossed_share`'s. Of a single annotator it holds for that person.
    """
    found = [
        (number, verdict.annotator.key, float(verdict.shown_choice is Choice.LEFT))
        for number, comparison in enumerate(comparisons)
        for verdict in latest_verdicts(comparison.verdicts)
        if verdict.annotator.kind is kind and verdict.choice in (Choice.LEFT, Choice.RIGHT)
    ]
    if not found:
        return wilson(0, 0)
    on, by, left = zip(*found, strict=True)
    return crossed_share(left, by, on)


def _sided(comparisons: Sequence[Comparison], kind: AnnotatorKind) -> Iterator[tuple[Annotator, bool]]:
    """Yield each verdict that chose a side: who gave it, and whether it was the left one as shown."""
    for comparison in comparisons:
        for verdict in comparison.verdicts:
            if verdict.annotator.kind is kind and verdict.choice in (Choice.LEFT, Choice.RIGHT):
                yield verdict.annotator, verdict.shown_choice is Choice.LEFT


def habits(
    comparisons: Sequence[Comparison], kind: AnnotatorKind, known: Mapping[int, Choice] | None = None
) -> list[Habits]:
    """Return how each annotator of a kind works, busiest first; `known` has the verdicts of gold comparisons.

    What a reward model chose tells how much each has done and how fast, and nothing of sides and reliability.
    """
    fair = [one for one in comparisons if not one.by_model]
    lefts = Counter(who for who, is_left in _sided(fair, kind) if is_left)
    sided, verdicts = Counter(who for who, _ in _sided(fair, kind)), Counter[Annotator]()
    seconds: defaultdict[Annotator, list[float]] = defaultdict(list)
    repeats: defaultdict[Annotator, list[bool]] = defaultdict(list)
    gold: defaultdict[Annotator, list[bool]] = defaultdict(list)
    unread = Counter[Annotator]()
    for comparison in comparisons:
        before: dict[Annotator, Choice] = {}
        for verdict in comparison.verdicts:
            who = verdict.annotator
            if who.kind is not kind:
                continue
            verdicts[who] += 1
            if verdict.seconds is not None:
                seconds[who].append(verdict.seconds)
                unread[who] += _cannot_be_read(comparison, verdict)
            if verdict.choice is Choice.SKIP:  # says nothing, and takes nothing back
                continue
            if verdict.drawn is DrawnHow.REPEAT and who in before:
                repeats[who].append(before[who] is verdict.choice)
            if right := (known or {}).get(comparison.id or 0):
                gold[who].append(right is verdict.choice)
            before[who] = verdict.choice
    reliable = reliability(counted(comparison, kind) for comparison in fair)
    return [
        Habits(
            who,
            count,
            wilson(lefts[who], sided[who]),
            float(np.median(seconds[who])) if seconds[who] else None,
            reliable.get(who),
            wilson(sum(repeats[who]), len(repeats[who])) if repeats[who] else None,
            wilson(sum(gold[who]), len(gold[who])) if gold[who] else None,
            unread[who],
        )
        for who, count in verdicts.most_common()
    ]


def _cannot_be_read(comparison: Comparison, verdict: Verdict) -> bool:
    """Return whether a verdict came sooner than anybody reads; in a chat the answers were there while they grew."""
    in_a_chat = comparison.asked_how in (AskedHow.CHAT, AskedHow.CANDIDATE)
    if verdict.seconds is None or verdict.choice is Choice.SKIP or in_a_chat:
        return False
    return verdict.seconds * READ_A_SECOND < len(comparison.left.text) + len(comparison.right.text)


def reliability(given: Iterable[Mapping[Annotator, Choice]]) -> dict[Annotator, float]:
    """Return for each annotator the chance of naming the better side where one side is better.

    `given` has the choices on each comparison, as `counted` returns them; only those with several count. Dawid and
    Skene's model: each comparison has a true class out of left, right and tie, each annotator a table of
    P(choice | class), fitted by expectation and maximisation from the majority, with `SMOOTHING` verdicts of each kind
    beforehand (twice as many where choice and class are the same). The figure is the mean of the left and the right
    diagonal entry. Source: Dawid & Skene 1979, "Maximum likelihood estimation of observer error-rates using the EM
    algorithm", equations 2.3 to 2.5.
    """
    rows = [row for row in given if len(row) > 1]
    people = {who: number for number, who in enumerate(sorted({w for row in rows for w in row}, key=lambda w: w.name))}
    if not rows:
        return {}
    at = [(i, people[who], CHOICES.index(choice)) for i, row in enumerate(rows) for who, choice in row.items()]
    item, person, choice = np.array(at).T
    votes = np.zeros((len(rows), len(CHOICES)))
    np.add.at(votes, (item, choice), 1.0)
    truth = votes / votes.sum(axis=1, keepdims=True)
    beforehand = SMOOTHING * (1 + np.eye(len(CHOICES)))
    for _ in range(STEPS):
        tables = np.tile(beforehand, (len(people), 1, 1))  # (annotators, class, choice)
        np.add.at(tables.transpose(0, 2, 1), (person, choice), truth[item])
        tables /= tables.sum(axis=2, keepdims=True)
        share = truth.sum(axis=0) + SMOOTHING
        logs = np.tile(np.log(share / share.sum()), (len(rows), 1))
        np.add.at(logs, item, np.log(tables[person, :, choice]))
        updated = np.exp(logs - logs.max(axis=1, keepdims=True))
        updated /= updated.sum(axis=1, keepdims=True)
        done = float(np.abs(updated - truth).max()) < 1e-6
        truth = updated
        if done:
            break
    return {who: float((tables[n, 0, 0] + tables[n, 1, 1]) / 2) for who, n in people.items()}
