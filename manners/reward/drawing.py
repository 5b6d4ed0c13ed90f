"""What a verdict weighs in measurements, for how its comparison was drawn: what measures must be like a random sample.

The queue puts what the reward model's members disagree about before people more often, so that those comparisons are
too many among the verdicts, and they are the hard ones. A verdict on a comparison that was drawn with probability p
out of N weighs 1 / (N p) instead of 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from manners.reward.labelled import LabelledPair
from manners.types import DrawnHow, Verdict


def draw_weight(given: Iterable[Verdict], left: int) -> float:
    """Return what an annotator's verdict on a comparison weighs, given all that they said of it in order of arrival.

    1 + f (1 / (N p) - 1), with N comparisons that they could have been given when they first were, p the probability
    with which it was this one, and f the share of the other N - 1 that nobody has judged since (`left` are those that
    wait now). While few are judged f is 1 and the weight is 1 / (N p); when all are, none was chosen over another,
    and each weighs 1. What no queue drew weighs 1. Of a drawing before November 2026 N is not on record: a uniform one
    weighs 1, one by disagreement 0. What was asked again counts as it was drawn first.
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
