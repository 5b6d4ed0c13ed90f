"""What annotators' disagreement leaves possible: the accuracy that nobody can exceed, as far as verdicts can tell.

A pair has a probability p of a verdict for its left response; whoever knew p would be right with max(p, 1 - p). Which
side is left is arbitrary, so a pair is described by d = |2 p - 1|, 0 for a coin and 1 where all agree, and the ceiling
is E[(1 + d) / 2], each pair weighing what it weighs in the accuracy. Of the distribution of d, K verdicts a pair show
floor(K / 2) moments and no more: two verdicts say how often two annotators agree, A = (1 + E[d^2]) / 2. All
distributions with the same moments fit the verdicts alike, so what is reported are bounds that hold for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import betainc, betaln, digamma

from manners.feedback.statistics import bootstrapped, effective_number, resampled
from manners.results.ceiling import Ceiling
from manners.reward.labelled import Floats, LabelledPair, counts_array, sums_by_group

RESAMPLES = 200
"""Few, as each is a fit."""
PAIRS = 20
"""Pairs with two decided verdicts or more below which no ceiling is given."""
NEARLY_ALL = 0.95
"""Share of the weight that must be on pairs with four verdicts for their second moment to be taken for that of all."""
TRIPLES = 8
"""Pairs with three verdicts from which it shows that asking stopped at the second that agreed (`_stopped`)."""


def ceiling(pairs: Sequence[LabelledPair], seed: int, resamples: int = RESAMPLES) -> Ceiling | None:
    """Return bounds on the accuracy that the best possible predictor of decided single verdicts would have.

    The moments of 4 p (1 - p) are estimated without bias (`_moments`), and `bounds` are the least and the largest
    ceiling that agree with them. Beside them stands what one family says, p ~ Beta(a, b) by maximum likelihood: it is
    as good as that assumption. Intervals are bootstraps by group; of a single one they hold everything. None with fewer
    than `PAIRS` pairs that have two decided verdicts. Pairs with one verdict are taken to be like the others, and
    whether somebody judges a pair must not depend on what others said of it, but for one rule that is seen and allowed
    for (`_stopped`).
    """
    several = [pair for pair in pairs if pair.counts.decided >= 2 and pair.measured.decided > 0]
    if len(several) < PAIRS:
        return None
    counts = counts_array(several)[:, :2]
    sizes = counts.sum(axis=1)
    stopped = _stopped(counts)
    weights = np.array([pair.measured.decided for pair in several]) / (sizes if stopped else 1.0)
    cells, cell = np.unique(counts, axis=0, return_inverse=True)
    table = sums_by_group([pair.group for pair in several], *(np.eye(len(cells))[cell.ravel()].T * weights))
    known: int = 2 if not stopped and weights[sizes >= 4].sum() >= NEARLY_ALL * weights.sum() else 1
    start = _fit_beta(cells, table.sum(axis=0), np.zeros(2))

    def found(weights: Floats) -> tuple[float, float, float]:
        low, high = bounds(_moments(cells, weights, known, stopped), stopped)
        return low, high, _best_accuracy(_fit_beta(cells, weights, start), stopped)

    whole = found(table.sum(axis=0))
    drawn = np.array([found(weights) for weights in resampled(table, resamples, seed)])
    groups = effective_number(table.sum(axis=1)) if len(table) > 1 else 0.0
    intervals = [bootstrapped(value, values, groups, 0.5, 1.0) for values, value in zip(drawn.T, whole, strict=True)]
    low, high, fit = ((one.low, one.high) if groups else (0.5, 1.0) for one in intervals)
    return Ceiling(
        low=whole[0],
        high=whole[1],
        fit=whole[2],
        low_interval=low,
        high_interval=high,
        fit_interval=fit,
        pairs=len(several),
        moments=known,
    )


def bounds(moments: Sequence[float], stopped: bool = False) -> tuple[float, float]:
    """Return the least and the largest ceiling of all distributions with these E[z], and perhaps E[z^2], z = 1 - d^2.

    Of one moment they are A = 1 - E[z] / 2, where pairs are either coins or certain, and (1 + sqrt(2 A - 1)) / 2,
    where all are alike. Of two, the least has coins and one other kind of pair, the largest certain pairs and one other
    kind. They solve the linear programme over the distribution of p; moments that no distribution has, as sampling
    gives now and then, are first moved to the nearest second one that some has. A third moment, which six verdicts a
    pair would show, is not used: the bounds hold without it. Source: Karlin & Studden 1966, "Tchebycheff systems",
    chapter III, theorem 1.1 (principal representations; sqrt(1 - z) is such a system with 1, z, z^2).
    """
    first = min(max(moments[0], 0.0), 1.0)
    if len(moments) == 1:
        return _worth([(first, 1.0), (1 - first, 0.0)], stopped), _worth([(1.0, first)], stopped)
    second = min(max(moments[1], first**2), first)
    return _worth(_one_beside(1.0, first, second), stopped), _worth(_one_beside(0.0, first, second), stopped)


def _one_beside(end: float, first: float, second: float) -> list[tuple[float, float]]:
    """Return two values of z, as (probability, value), with these moments, one of which is an end of [0, 1]."""
    away = abs(first - end)
    square = second - 2 * end * first + end**2
    if square <= 0:
        return [(1.0, end)]
    share = away**2 / square
    return [(1 - share, end), (share, abs(end - square / away))]


def _worth(values: Sequence[tuple[float, float]], stopped: bool) -> float:
    """Return the ceiling of a distribution of z = 4 p (1 - p), given as (probability, value)."""
    probability, z = np.array(values).T
    asked = probability * _asked(z, stopped)
    return float(asked @ (1 + np.sqrt(1 - z)) / 2 / asked.sum())


def _moments(cells: Floats, weights: Floats, known: int, stopped: bool) -> list[float]:
    """Return estimates of E[z^m], z = 4 p (1 - p), for m = 1 ... known, from cells (left, right) seen `weights` times.

    Of n verdicts, l of them left and r right, the share of choices of 2 m whose first m are left and the others right
    is l! r! (n - 2 m)! / ((l - m)! (r - m)! n!), of expectation (p (1 - p))^m. Where asking stopped at the second
    verdict that agreed, a third was given just where the first two differed.
    """
    left, right = cells.T
    if stopped:
        return [2 * float(weights @ (np.minimum(left, right) > 0)) / float(weights.sum())]
    estimates = []
    term, n = np.ones(len(cells)), left + right
    for m in range(known):
        enough = n >= 2 * m + 2
        pairs = np.where(enough, (n - 2 * m) * (n - 2 * m - 1), 1.0)
        term = term * 4 * (left - m) * (right - m) / pairs
        if weights[enough].any():
            estimates.append(float(np.average(term[enough], weights=weights[enough])))
    return estimates


def _stopped(counts: Floats) -> bool:
    """Return whether asking ended at the second verdict that agreed (`serve.agree` = 2 below `serve.overlap`).

    Then no pair has more than three decided verdicts, and none has three that agree.
    """
    sizes = counts.sum(axis=1)
    triples = counts[sizes == 3]
    return bool(sizes.max() == 3 and len(triples) >= TRIPLES and triples.max() < 3)


def _asked(z: Floats, stopped: bool) -> Floats:
    """Return how many verdicts a pair gets: 2, and another where the first two differ if agreement ends the asking."""
    return 2 + z / 2 if stopped else np.ones_like(z)


def _fit_beta(cells: Floats, weights: Floats, start: Floats) -> Floats:
    """Return (log a, log b) of the beta-binomial that best explains `cells` (left, right) seen `weights` times."""

    share = weights / weights.sum()

    def negative_log_likelihood(log_ab: Floats) -> tuple[float, Floats]:
        ab = np.exp(log_ab)
        gained = share @ (betaln(*(cells + ab).T) - betaln(*ab))
        both = digamma(ab.sum()) - share @ digamma((cells + ab).sum(axis=1))
        slope = share @ digamma(cells + ab) - digamma(ab) + both
        return -float(gained), -slope * ab

    # Beyond these bounds every pair is unanimous (p is 0 or 1), or all pairs have the same p.
    fit = minimize(negative_log_likelihood, start, jac=True, method="L-BFGS-B", bounds=[(-6.0, 8.0)] * 2)
    return np.asarray(fit.x, dtype=np.float64)


def _best_accuracy(log_ab: Floats, stopped: bool) -> float:
    """Return the ceiling of p ~ Beta(a, b): an integral over 400 steps of d, the probability of each being exact."""
    a, b = (float(value) for value in np.exp(log_ab))
    edges = np.linspace(0.0, 1.0, 401)
    middle = (edges[1:] + edges[:-1]) / 2
    middle[0], middle[-1] = 0.0, 1.0  # where all the probability is, if pairs are coins or certain
    mass = np.diff(betainc(a, b, (1 + edges) / 2) - betainc(a, b, (1 - edges) / 2))
    asked = mass * _asked(1 - middle**2, stopped)
    return float(asked @ (1 + middle) / 2 / asked.sum())
