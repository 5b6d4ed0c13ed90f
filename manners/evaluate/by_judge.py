"""Which of two versions people would call better, by a judge that was asked everything and what they checked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from manners.feedback.corrected import Corrected, prediction_powered
from manners.feedback.judge import stated
from manners.feedback.judges import PREFERS_LEFT
from manners.results.judge import JudgedRate
from manners.types import (
    Annotator,
    AnnotatorKind,
    Choice,
    Comparison,
    DrawnHow,
    Interval,
    latest_of,
    latest_verdicts,
    opening,
)

FEWEST = 20
"""Openings that people checked below which no win rate is corrected: Student's t knows little of shares."""
BY_CHANCE = (DrawnHow.RANDOM, DrawnHow.REPEAT)
"""How a verdict was drawn, where what it is about does not hang on what a model makes of it."""


def win_rates(comparisons: Iterable[Comparison], version: str, judge: Annotator) -> tuple[JudgedRate, ...]:
    """Return the win rate of a version over each that it was compared with, as far as a judge was asked.

    A comparison is worth the probability that the judge states for the version's answer, 1/2 where its reply could not
    be read, and people's mean, a tie and a skip counting half: people may skip what they would call worse, and who
    looks away must not be taken for who was never asked. Unit is the opening: of one that people checked, what they
    checked of it. Comparisons that somebody was given because the reward model's members disagree are left out, and
    counted: the checked part must be a random one. Two checked openings more, one won and one lost, keep the interval
    from being a point where all say the same (Agresti & Coull 1998), and it ends at 0 and 1. It is for one look: who
    stops asking when they like what they see makes it too narrow.
    """
    found = defaultdict[str, list[Comparison]](list)
    for one in comparisons:
        if version in (one.left.author, one.right.author) and _said(one, judge) is not None:
            found[one.right.author if one.left.author == version else one.left.author].append(one)
    return tuple(_rate(some, version, against, judge) for against, some in sorted(found.items()))


def said(comparisons: Sequence[Comparison], version: str) -> list[str]:
    """Return the sentences of every judge of this tool that was asked about a version."""
    judges = {v.annotator for one in comparisons for v in one.verdicts if v.annotator.is_judge}
    rates = (win_rates(comparisons, version, judge) for judge in sorted(judges, key=lambda one: one.name))
    return [rate.sentence for of_judge in rates for rate in of_judge]


def _rate(some: Sequence[Comparison], version: str, against: str, judge: Annotator) -> JudgedRate:
    fair = [one for one in some if not _chosen(one)]
    checked, judged = defaultdict[str, list[tuple[float, float]]](list), defaultdict[str, list[float]](list)
    for one in fair:
        its, people = _said(one, judge), _people(one)
        assert its is not None, "it was asked about all of these"
        if one.right.author == version:
            its, people = 1 - its, None if people is None else 1 - people
        if people is None:
            judged[opening(one.prompt)].append(its)
        else:
            checked[opening(one.prompt)].append((its, people))
    alone = [fmean(values) for group, values in judged.items() if group not in checked]
    both = [tuple(map(fmean, zip(*values, strict=True))) for values in checked.values()]
    corrected = _corrected(alone, both) if len(both) >= FEWEST else None
    return JudgedRate(
        version=version,
        against=against,
        judge=judge.name,
        **({} if corrected is None else _figures(corrected)),
        checked=len(both),
        judged=len(alone),
        left_out=len(some) - len(fair),
        skipped=sum(_skipped(one) for one in fair),
        sentence=_sentence(version, against, judge, corrected, len(both)),
    )


def _corrected(alone: Sequence[float], both: Sequence[tuple[float, ...]]) -> Corrected:
    """Return the correction with an interval that is that of two openings more, within 0 and 1."""
    its, people = ([one[side] for one in both] for side in (0, 1))
    plain = prediction_powered(alone, its, people)
    wider = prediction_powered(alone, [*its, fmean(its), fmean(its)], [*people, 0.0, 1.0])

    def within(estimate: Interval, ends: Interval) -> Interval:
        middle = min(max(estimate.estimate, 0.0), 1.0)
        return Interval(middle, max(0.0, min(ends.low, middle)), min(1.0, max(ends.high, middle)))

    return replace(plain, corrected=within(plain.corrected, wider.corrected), human=within(plain.human, wider.human))


def _figures(found: Corrected) -> dict[str, Any]:
    return {"corrected": found.corrected, "human": found.human, "raw": found.raw, "saved": found.saved}


def _sentence(version: str, against: str, judge: Annotator, found: Corrected | None, checked: int) -> str:
    start = f"By {judge.name}, the win rate of {version} over {against}, at one look"
    if found is None:
        return (
            f"{start}, is not known: its figure is corrected by at least {FEWEST} openings that people have judged, and"
            f" there are {checked}."
        )
    return f"{start}: {found.sentence}"


def _said(one: Comparison, judge: Annotator) -> float | None:
    """Return the probability that a judge states for the left answer; None where it was not asked."""
    verdict = latest_of(one, judge)
    if verdict is None:
        return None
    said = stated(verdict)
    return PREFERS_LEFT.get(verdict.choice, 0.5) if said is None else said


def _people(one: Comparison) -> float | None:
    """Return what people say for the left answer, 1/2 where they have only skipped it; None where nobody was asked."""
    choices = _choices(one)
    said = [PREFERS_LEFT[choice] for choice in choices if choice is not Choice.SKIP]
    return fmean(said) if said else 0.5 if choices else None


def _skipped(one: Comparison) -> bool:
    return set(_choices(one)) == {Choice.SKIP}


def _choices(one: Comparison) -> list[Choice]:
    """Return what counts of what people chose."""
    return [v.choice for v in latest_verdicts(one.verdicts) if v.annotator.kind is AnnotatorKind.HUMAN]


def _chosen(one: Comparison) -> bool:
    """Return whether a person was given it for another reason than chance."""
    human = (v for v in one.verdicts if v.annotator.kind is AnnotatorKind.HUMAN)
    return any(v.drawn is not None and v.drawn not in BY_CHANCE for v in human)
