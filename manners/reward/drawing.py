"""What a verdict weighs in measurements, for how its comparison was drawn: what measures must be like a random sample.

The queue puts what the reward model's members disagree about before people more often, so that those comparisons are
too many among the verdicts, and they are the hard ones. A verdict on a comparison that was drawn with probability p
out of N weighs 1 / (N p) instead of 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from manners.feedback.queue import has_enough
from manners.reward.labelled import LabelledPair
from manners.settings import ServeSettings
from manners.types import (
    DELETED,
    VOLUNTEERED,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Comparison,
    DrawnHow,
    Verdict,
    latest_verdicts,
)

BY_THEMSELVES = frozenset({AskedHow.GOLD, AskedHow.CANDIDATE, AskedHow.ADVERSARIAL})
"""What is in nobody's pool: known verdicts and what a reward model chose are drawn by themselves, candidates never."""


@dataclass(frozen=True, slots=True)
class Pool:
    """What the queue may still give out: each annotator has a pool of their own."""

    open: int = 0
    """Comparisons that somebody may be given."""
    met: Counter[Annotator] = field(default_factory=Counter)
    """How many of these an annotator has judged."""
    wrote: Counter[str] = field(default_factory=Counter)
    """How many of these have an answer by an author: nobody judges their own."""

    def left(self, annotator: Annotator) -> int:
        """Return how many comparisons an annotator may still be given: judged by others too, until they have enough."""
        return max(0, self.open - self.met[annotator] - self.wrote[annotator.name])


def pool_of(comparisons: Iterable[Comparison], settings: ServeSettings) -> Pool:
    """Return what the queue may still give out of some comparisons, by the record alone."""
    found = [comparison for comparison in comparisons if _is_open(comparison, settings)]
    met = Counter(annotator for one in found for annotator in {verdict.annotator for verdict in one.verdicts})
    wrote = Counter(author for one in found for author in {one.left.author, one.right.author})
    return Pool(len(found), met, wrote)


def _is_open(comparison: Comparison, settings: ServeSettings) -> bool:
    """Tell whether the queue draws a comparison from its pool: known and adversarial ones are drawn by themselves."""
    how = comparison.asked_how
    if how in BY_THEMSELVES or (how in VOLUNTEERED and not settings.share_chats):
        return False
    if comparison.reported or comparison.bets or DELETED in (comparison.left.text, comparison.right.text):
        return False
    people = (v.choice for v in latest_verdicts(comparison.verdicts) if v.annotator.kind is AnnotatorKind.HUMAN)
    return not has_enough(people, settings)


def draw_weight(given: Iterable[Verdict], left: int) -> float:
    """Return what an annotator's verdict on a comparison weighs, given all that they said of it in order of arrival.

    1 + f (1 / (N p) - 1), with N comparisons that they could have been given when they first were, p the probability
    with which it was this one, and f the share of the other N - 1 that they could still be given (`left`, `Pool`).
    While few are judged f is 1 and the weight is 1 / (N p); once they have no more to judge, none was chosen over
    another, and each weighs 1. What others have judged is in their pool until it has enough verdicts. What no queue
    drew weighs 1. Where N is not on record, a uniform one weighs 1, one by disagreement 0: of drawings before November
    2026, and of uniform ones beside what a reward model chose, whose p lacks 1 / N by draws that were of no pool.
    What was asked again counts as it was drawn first.
    Source: Farquhar, Gal & Rainforth 2021, "On statistical bias in active learning: how and when to fix it", equation
    for R_LURE, where N - m is the pool less the one drawn, and N - M what is left of it.
    """
    first = next((verdict for verdict in given if verdict.drawn is not DrawnHow.REPEAT), None)
    if first is None or first.drawn is None or first.draw_probability is None:
        return 1.0
    if first.draw_pool is None:
        return float(first.drawn is not DrawnHow.DISAGREEMENT)
    waiting = min(1.0, left / (first.draw_pool - 1)) if first.draw_pool > 1 else 0.0
    return 1 + waiting * (1 / (first.draw_pool * first.draw_probability) - 1)


def effective_verdicts(pairs: Sequence[LabelledPair]) -> float:
    """Return how many equally weighted decided verdicts those on some pairs are worth: (sum w)^2 / sum w^2 (Kish 1965).

    The verdicts on one pair share its mean weight.
    """
    number = np.array([pair.counts.decided for pair in pairs])
    weight = np.array([pair.measured.decided for pair in pairs])
    squares = float((weight[number > 0] ** 2 / number[number > 0]).sum())
    return float(weight.sum()) ** 2 / squares if squares else 0.0
