"""The anytime-valid rule where a comparison has several verdicts: each bets once, as much as its annotators agree.

A stake is the mean of a comparison's verdicts, from -1 (all for the older version) to 1 (all for the newer), 0 where
they cancel out. Where all are unanimous this is the rule of `statistics.decide`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from scipy.special import roots_jacobi

from manners.feedback.statistics import PRIOR, Decision, Floats, interval_at_every_look
from manners.types import Interval

Stakes = Mapping[float, int]
"""How many comparisons staked what."""


def log_wealth(stakes: Stakes, rate: float = 0.5) -> float:
    """Return the logarithm of what a bettor against "the win rate is `rate`" owns, who started with 1.

    A comparison of stake s multiplies what is bet on a win rate p by 1 - |s| + |s| p / rate if s > 0, and by
    1 - |s| + |s| (1 - p) / (1 - rate) if s < 0; the wealth is the mean over p from Beta(`PRIOR`, `PRIOR`). The win rate
    is the share of the stakes that are won: sum of max(s, 0) / sum of |s|. Where it is `rate`, in expectation at each
    comparison whatever came before, the mean of this factor is 1, however the verdicts on one comparison depend on each
    other; so the wealth ever reaches 1/x with chance at most x (Ville 1939). Infinite where the result is impossible.
    Source: Waudby-Smith & Ramdas 2023, "Estimating means of bounded random variables by betting".
    """
    if not 0 <= rate <= 1 or any(abs(stake) > 1 for stake in stakes):
        raise ValueError(f"need stakes from -1 to 1 and a rate from 0 to 1, got rate={rate}")
    placed = {stake: count for stake, count in stakes.items() if stake and count}
    if (rate == 0 and max(placed, default=0) > 0) or (rate == 1 and min(placed, default=0) < 0):
        return math.inf
    bets = sum(placed.values())
    p, log_weights = _nodes(-(-min(bets // 2 + 3, 64 + 8 * math.isqrt(bets)) // 16) * 16)
    total = log_weights
    for stake, count in placed.items():
        won = p / rate if stake > 0 else (1 - p) / (1 - rate)
        total = total + count * np.log1p(abs(stake) * (won - 1))
    most = total.max()
    return float(most + np.log(np.exp(total - most).sum()))


def e_value(stakes: Stakes, rate: float = 0.5) -> float:
    """Return the wealth itself (`log_wealth`)."""
    found = log_wealth(stakes, rate)
    return math.exp(found) if found < 700 else math.inf


def decide(stakes: Stakes, level: float = 0.95) -> Decision:
    """Return what these bets say so far; stopping at the first answer other than CANNOT_TELL is allowed."""
    if log_wealth(stakes) < -math.log1p(-level):
        return Decision.CANNOT_TELL
    won, lost = _sides(stakes)
    return Decision.BETTER if won > lost else Decision.WORSE


def interval(stakes: Stakes, level: float = 0.95) -> Interval:
    """Return the share of the stakes that were won, with an interval that holds at every look at once.

    It holds every rate against which the wealth is below 1 / (1 - level). The wealth is convex in the rate and at most
    1 at the share itself, so these rates lie together around it. 0.5 within [0, 1] before any stake.
    """
    won, lost = _sides(stakes)
    if not won + lost:
        return Interval(0.5, 0.0, 1.0)
    return interval_at_every_look(won / (won + lost), lambda rate: log_wealth(stakes, rate), level)


def _sides(stakes: Stakes) -> tuple[float, float]:
    """Return the sum of the stakes that were won, and of those that were lost."""
    won = sum(count * stake for stake, count in stakes.items() if stake > 0)
    return won, -sum(count * stake for stake, count in stakes.items() if stake < 0)


@lru_cache(maxsize=64)
def _nodes(count: int) -> tuple[Floats, Floats]:
    """Return win rates and their log weights with which the mean over the prior is taken.

    Gauss-Jacobi quadrature: exact for the polynomial that up to 2 count - 6 bets make. Beyond 450 bets the nodes lie
    closer than a third of the spread that so many leave of the win rate.
    """
    at, weight = roots_jacobi(count, PRIOR - 1, PRIOR - 1)
    return (1 + at) / 2, np.log(weight / weight.sum())
