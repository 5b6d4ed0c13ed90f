"""The win rate at equal length by a regression: what all pairs of answers say of it, beside those of matched length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, stdtrit

from manners.evaluate.compare import FEWEST_PROMPTS, Answers, Preference, all_pairs, openings
from manners.feedback.statistics import Floats, effective_number, wilson
from manners.types import Interval


@dataclass(frozen=True, slots=True)
class AtEqualLength:
    """A win rate at equal length, by a logistic regression on the relative difference of the lengths."""

    interval: Interval
    slope: float
    """By how many logits a new answer gains that is half as long again as the old one."""
    shorter: int
    """Openings of prompts with a pair whose new answer is no longer than the old one."""
    longer: int
    """Openings of prompts with a pair whose new answer is no shorter."""

    @property
    def can_tell(self) -> bool:
        """Whether there are enough openings on either side of equal length; the interval is [0, 1] otherwise."""
        return min(self.shorter, self.longer) >= FEWEST_PROMPTS


def win_rate_at_equal_length(before: Answers, after: Answers, preference: Preference) -> AtEqualLength:
    """Return the win rate that a regression of all pairs' outcomes on their difference in length has at no difference.

    With lengths a of the new and b of the old answer, P(new preferred) = sigmoid(alpha + beta (a - b) / (a + b)), ties
    counting half; what is returned is sigmoid(alpha). Every prompt weighs the same, and those of one opening are left
    out together (`regression`). It assumes that the chance follows this curve, the same on all prompts; that the pairs
    away from equal length can speak for it; and that length is a cause of the preference, not a mark of it: where a
    version writes more because it has more to say, the regression takes that away with the length.
    `compare.matched_win_rate` assumes no curve, but speaks only of the prompts on which both versions happen to write
    equally long, which are not all alike. Where fewer than `FEWEST_PROMPTS` openings have a pair on one side of equal
    length, it would be guessed from the other side alone: the interval is then [0, 1].
    """
    won, gap, prompts = [], [], []
    for number, pairs in enumerate(all_pairs(before, after)):
        for a, b in pairs:
            won.append(preference(a.prompt, a.response, b.response))
            gap.append((a.length - b.length) / (a.length + b.length))
            prompts.append(number)
    difference, where = np.array(gap), np.array(prompts)
    groups = np.array(openings(after))[where]
    shorter, longer = (len(np.unique(groups[side])) for side in (difference <= 0, difference >= 0))
    interval, slope = regression(won, difference, where, groups)
    found = AtEqualLength(interval, slope / 5, shorter, longer)
    if found.can_tell:
        return found
    return AtEqualLength(Interval(interval.estimate, 0.0, 1.0), slope / 5, shorter, longer)


def regression(
    outcomes: ArrayLike, difference: ArrayLike, items: ArrayLike, clusters: ArrayLike | None = None
) -> tuple[Interval, float]:
    """Return sigmoid(alpha) with its 95 % interval, and beta, of P(outcome) = sigmoid(alpha + beta difference).

    outcomes: (N,) in [0, 1]; difference: (N,); items, clusters: (N,) ids, each item being a cluster of its own if these
    are not said. Every item has weight one, shared among its members. Fractional outcomes make it a quasi-likelihood
    (Papke & Wooldridge 1996, "Econometric methods for fractional response variables"). Firth's penalty (1993, "Bias
    reduction of maximum likelihood estimates") keeps it finite where length decides everything. The variance leaves out
    one cluster at a time, in one Newton step each, so that whatever the members of a cluster share is in it; the
    interval is symmetric in logits, with Student's t of one degree of freedom less than clusters. Where all outcomes
    are alike, it is Wilson's with the number of clusters.
    """
    y = np.asarray(outcomes, float)
    _, item, sizes = np.unique(np.asarray(items), return_inverse=True, return_counts=True)
    _, index = np.unique(np.asarray(items if clusters is None else clusters), return_inverse=True)
    count = int(index.max()) + 1
    weight = 1 / sizes[item]
    x = np.stack([np.ones(len(y)), np.asarray(difference, float)], axis=1)
    theta = np.zeros(2)
    for _ in range(100):
        p = expit(x @ theta)
        information = (x * (weight * p * (1 - p))[:, None]).T @ x
        inverse = np.linalg.pinv(information, hermitian=True)
        leverage = weight * p * (1 - p) * np.einsum("ni,ij,nj->n", x, inverse, x)
        step = inverse @ (x.T @ (weight * (y - p) + leverage * (0.5 - p)))
        theta = theta + step / max(1.0, float(np.abs(step).max()) / 10)
        if np.abs(step).max() < 1e-9:
            break
    estimate, slope = float(expit(theta[0])), float(theta[1])
    if y.min() == y.max() and y[0] in (0, 1):
        n = effective_number(np.bincount(index, weight))
        return wilson(float(y[0]) * n, n), slope
    half = float(stdtrit(max(count - 1, 1), 0.975)) * _standard_error(x, y, p, weight, index, count)
    low, high = (float(expit(theta[0] + sign * half)) for sign in (-1, 1))
    return Interval(estimate, low, high), slope


def _standard_error(x: Floats, y: Floats, p: Floats, weight: Floats, index: NDArray[np.intp], count: int) -> float:
    """Return that of alpha: root of (G - 1) / G times the sum over clusters of the squared change without each."""
    scores = np.zeros((count, 2))
    np.add.at(scores, index, (weight * (y - p))[:, None] * x)
    pieces = np.zeros((count, 2, 2))
    np.add.at(pieces, index, (weight * p * (1 - p))[:, None, None] * x[:, :, None] * x[:, None, :])
    without = np.linalg.pinv(pieces.sum(axis=0) - pieces, hermitian=True)
    changes = np.einsum("gij,gj->gi", without, scores)[:, 0]
    return float(np.sqrt((count - 1) / count * np.sum(changes**2)))
