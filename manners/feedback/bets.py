"""The anytime-valid test: it may be looked at after every verdict, and stopped when it has an answer.

Each comparison bets once, as much as its annotators agree. A stake is the mean of its verdicts, from -1 (all for the
older version) to 1 (all for the newer), 0 where they cancel out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from scipy.special import roots_jacobi

from manners.errors import MannersError
from manners.feedback.statistics import Decision, Floats
from manners.types import Interval

PRIOR = 3.0
"""The bets are spread over win rates by Beta(3, 3): among symmetric ones near the best from 30 to 400 comparisons."""

Stakes = Mapping[float, int]
"""How many comparisons staked what."""


def log_wealth(stakes: Stakes, rate: float = 0.5) -> float:
    """Return the logarithm of what a bettor against "the win rate is `rate`" owns, who started with 1.

    A comparison of stake s multiplies what is bet on a win rate p by 1 - |s| + |s| p / rate if s > 0, and by
    1 - |s| + |s| (1 - p) / (1 - rate) if s < 0; the wealth is the mean over p from Beta(`PRIOR`, `PRIOR`). The win rate
    is the share of the stakes that are won: sum of max(s, 0) / sum of |s|. Where it is `rate`, in expectation at each
    comparison whatever came before, the mean of this factor is 1, however the verdicts on one comparison depend on each
    other; so the wealth ever reaches 1/x with chance at most x (Ville 1939). Infinite where the result is impossible.
    Where all stakes are whole it is the likelihood ratio B(a + wins, a + losses) / (B(a, a) rate^wins (1 -
    rate)^losses), with a = `PRIOR`. Source: Waudby-Smith & Ramdas 2023, "Estimating means of bounded random variables
    by betting"; Robbins 1970, "Statistical methods related to the law of the iterated logarithm".
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
    """Return what these bets say so far; stopping at the first answer other than CANNOT_TELL is allowed.

    With two equally good versions the chance of ever saying BETTER or WORSE is at most 1 - level.
    """
    if log_wealth(stakes) < -math.log1p(-level):
        return Decision.CANNOT_TELL
    won, lost = _sides(stakes)
    return Decision.BETTER if won > lost else Decision.WORSE


def interval(stakes: Stakes, level: float = 0.95) -> Interval:
    """Return the share of the stakes that were won, with an interval that holds at every look at once.

    It holds every rate against which the wealth is below 1 / (1 - level). The wealth is convex in the rate and at most
    1 at the share itself, so these rates lie together around it. 0.5 within [0, 1] before any stake.
    Source: Howard, Ramdas, McAuliffe & Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences".
    """
    won, lost = _sides(stakes)
    if not won + lost:
        return Interval(0.5, 0.0, 1.0)
    share, limit = won / (won + lost), -math.log1p(-level)

    def refuted(rate: float) -> bool:
        return log_wealth(stakes, rate) >= limit

    low = _crossing(refuted, 0.0, share) if refuted(0.0) else 0.0
    high = _crossing(refuted, 1.0, share) if refuted(1.0) else 1.0
    return Interval(share, low, high)


def _crossing(holds: Callable[[float], bool], outside: float, inside: float) -> float:
    """Return the point nearest `inside` at which `holds` is still true, given that it is at `outside`."""
    for _ in range(60):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if holds(middle) else (outside, middle)
    return outside


def _sides(stakes: Stakes) -> tuple[float, float]:
    """Return the sum of the stakes that were won, and of those that were lost."""
    won = sum(count * stake for stake, count in stakes.items() if stake > 0)
    return won, -sum(count * stake for stake, count in stakes.items() if stake < 0)


def detectable_win_rate(n: int, power: float = 0.8, level: float = 0.95) -> float:
    """Return the smallest win rate above 1/2 that `decide` finds within n whole stakes with chance `power`.

    Worked out exactly, by following the chances of all results through n steps and stopping where `decide` stops.
    Raises MannersError where n is too small for `decide` to ever say anything.
    """
    boundary = _wins_needed(n, level)
    if _power(1.0, boundary) < power:
        least = next(m for m in range(n + 1, 10_000) if decide({1.0: m}, level) is Decision.BETTER)
        raise MannersError(f"{n} comparisons cannot show any difference at level {level:g}: ask for at least {least}.")
    return _crossing(lambda rate: _power(rate, boundary) >= power, 1.0, 0.5)


def _wins_needed(n: int, level: float) -> list[int]:
    """Return for each m = 1..n the fewest wins of m that `decide` calls BETTER; m + 1 where none suffices."""
    needed = 1
    boundary = []
    for m in range(1, n + 1):
        # One more result raises the number needed by at most one: a win after enough wins is still enough.
        if needed <= m and decide({1.0: needed, -1.0: m - needed}, level) is not Decision.BETTER:
            needed += 1
        boundary.append(needed)
    return boundary


def _power(rate: float, boundary: list[int]) -> float:
    """Return the chance of being called BETTER at some point, with WORSE ending the test as well."""
    running = np.zeros(len(boundary) + 2)
    running[0] = 1.0
    found = 0.0
    for m, needed in enumerate(boundary, start=1):
        running[1:] = running[1:] * (1 - rate) + running[:-1] * rate
        running[0] *= 1 - rate
        found += float(running[needed:].sum())
        running[needed:] = 0.0
        running[: max(0, m - needed + 1)] = 0.0
    return found


@lru_cache(maxsize=64)
def _nodes(count: int) -> tuple[Floats, Floats]:
    """Return win rates and their log weights with which the mean over the prior is taken.

    Gauss-Jacobi quadrature: exact for the polynomial that up to 2 count - 6 bets make. Beyond 450 bets the nodes lie
    closer than a third of the spread that so many leave of the win rate.
    """
    at, weight = roots_jacobi(count, PRIOR - 1, PRIOR - 1)
    return (1 + at) / 2, np.log(weight / weight.sum())
