"""Intervals and tests for figures that come from people's verdicts: pure functions of numbers.

Answers to one prompt resemble each other, and so do verdicts on one comparison, so every bootstrap here draws whole
clusters. Tests that are looked at while verdicts still come in are anytime-valid: peeking cannot break them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from math import inf
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from manners.errors import MannersError
from manners.types import Choice, Interval, Verdict, latest_verdicts

PRIOR = 3.0
"""The bets are spread over win rates by Beta(3, 3): among symmetric ones near the best from 30 to 400 comparisons."""
FEWEST = 5
"""Openings or prompts below which an interval is not trusted (docs/coverage.md), and the sentence says: too few."""
CELLS = 4_000_000
"""Most entries of a matrix of resampling counts held at once; bounds memory to about 64 MB."""

Floats = NDArray[np.float64]


class Decision(StrEnum):
    """What the evidence says about the newer of two versions."""

    BETTER = "better"
    WORSE = "worse"
    CANNOT_TELL = "cannot_tell"

    @classmethod
    def of(cls, rate: Interval) -> Decision:
        """Return where a win rate's interval lies: wholly above 1/2, wholly below, or neither."""
        if not rate.excludes(0.5):
            return cls.CANNOT_TELL
        return cls.BETTER if rate.low > 0.5 else cls.WORSE


# ---- fixed samples ----


def wilson(wins: float, n: float, level: float = 0.95) -> Interval:
    """Return the share wins / n with Wilson's score interval.

    With z the normal quantile and p = wins / n: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    `wins` may hold halves (a tie is half a win); the interval is then too wide rather than too narrow. With n = 0
    nothing is known: 0.5 within [0, 1]. Raises ValueError unless 0 <= wins <= n.
    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not 0 <= wins <= n:
        raise ValueError(f"wins must lie in 0..n, got {wins} of {n}")
    if n == 0:
        return Interval(0.5, 0.0, 1.0)
    return _wilson(wins / n, n, NormalDist().inv_cdf(0.5 + level / 2))


def _wilson(share: float, n: float, z: float) -> Interval:
    shrink = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / shrink
    # At 0 and n the bound equals the estimate exactly; rounding must not put the estimate outside.
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def cluster_bootstrap(
    values: ArrayLike, clusters: ArrayLike, resamples: int, seed: int, weights: ArrayLike | None = None
) -> Interval:
    """Return the (weighted) mean of `values` with a 95 % interval from resampling whole clusters (`bootstrapped`).

    values: (N,); clusters: (N,) ids, numbers or strings; weights: (N,), not negative. A resample draws as many
    clusters as there are, with replacement, and takes sum(w v) / sum(w) over all their members. Clusters of weight
    zero are left out. Raises MannersError below two clusters: one group shows no spread, so it bears no interval.
    Source: Davison & Hinkley 1997, "Bootstrap methods and their application", section 3.8 (clusters resampled,
    members kept). Where every value is alike the interval is a point; for shares use `cluster_bootstrap_share`.
    """
    sums, totals = _by_cluster(values, clusters, weights)
    if len(totals) < 2:
        raise _too_few(len(totals))
    drawn = resampled(np.stack([sums, totals], axis=1), resamples, seed)
    mean = float(sums.sum() / totals.sum())
    return bootstrapped(mean, drawn[:, 0] / drawn[:, 1], effective_number(totals))


def bootstrapped(estimate: float, drawn: ArrayLike, clusters: float, low: float = -inf, high: float = inf) -> Interval:
    """Return an estimate with a 95 % interval, within low and high, from what resampling so many clusters gave.

    With G clusters in effect a bootstrap varies by (G - 1) / G of what it should, and its 2.5 % and 97.5 % quantiles
    are normal ones where Student's t, with G - 1 degrees of freedom, should be. The ends are therefore the quantiles at
    Phi(-+ sqrt(G / (G - 1)) t), which is Hesterberg's expanded percentile interval, or, where that is wider, at t
    sqrt(G / (G - 1)) standard deviations, for a handful of clusters has no outer quantiles. nan in `drawn` is left out.
    Source: Hesterberg 2015, "What teachers should know about the bootstrap", section 5.3.
    """
    found = np.asarray(drawn, float)
    freedom = max(clusters - 1, 1.0)
    wider = math.sqrt((freedom + 1) / freedom) * float(stdtrit(freedom, 0.975))
    tail = NormalDist().cdf(-wider)
    below, above = (float(end) for end in np.nanquantile(found, [tail, 1 - tail]))
    half = wider * float(np.nanstd(found))
    return Interval(
        estimate, max(low, min(estimate, below, estimate - half)), min(high, max(estimate, above, estimate + half))
    )


def resampled(sums: Floats, resamples: int, seed: int) -> Floats:
    """Return (resamples, V): the sums over as many clusters as there are, drawn with replacement, of sums (C, V)."""
    rng = np.random.default_rng(seed)
    count = len(sums)
    block = max(1, CELLS // count)
    parts = [
        rng.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - done)) @ sums
        for done in range(0, resamples, block)
    ]
    return np.concatenate(parts)


def cluster_bootstrap_share(
    values: ArrayLike, clusters: ArrayLike, resamples: int, seed: int, weights: ArrayLike | None = None
) -> Interval:
    """Return `cluster_bootstrap` of values in [0, 1], with Wilson's interval where no resample differs from another.

    Ten wins out of ten bootstrap to [1, 1], which claims certainty. Then, and only then, the interval is Wilson's with
    the effective number of clusters as n: no variable in [0, 1] with that mean varies more, so it errs by being wide.
    """
    found = cluster_bootstrap(values, clusters, resamples, seed, weights)
    if found.high - found.low > 1e-12:
        return Interval(found.estimate, max(0.0, found.low), min(1.0, found.high))
    _, totals = _by_cluster(values, clusters, weights)
    n = effective_number(totals)
    return wilson(min(max(found.estimate, 0.0), 1.0) * n, n)


def clustered_share(values: ArrayLike, clusters: ArrayLike, weights: ArrayLike | None = None) -> Interval:
    """Return the (weighted) mean of values in [0, 1] with a 95 % interval that holds for few clusters too.

    values: (N,); clusters: (N,) ids; weights: (N,), not negative. With r_g the sum of w (v - mean) over cluster g of G,
    V = G / (G - 1) sum r_g^2 / (sum w)^2; the interval is Wilson's with mean (1 - mean) / V in place of n, and for z
    Student's t with one degree of freedom less than there are clusters in effect (`effective_number`). Where nothing
    varies, n is the number of clusters in effect. Raises MannersError below two clusters.
    Unlike the percentile bootstrap, which takes the spread of few clusters for the truth: of equal versions that
    answer 2 prompts it finds one in three different, and of those that answer 5 one in eight.
    """
    sums, totals = _by_cluster(values, clusters, weights)
    if len(totals) < 2:
        raise _too_few(len(totals))
    mean = min(max(float(sums.sum() / totals.sum()), 0.0), 1.0)
    residuals = sums - mean * totals
    n = effective_number(totals)
    variance = len(totals) / (len(totals) - 1) * float(residuals @ residuals) / float(totals.sum()) ** 2
    if variance < 1e-24:
        return wilson(mean * n, n)
    return _wilson(mean, mean * (1 - mean) / variance, float(stdtrit(max(n - 1, 1.0), 0.975)))


def _too_few(clusters: int) -> MannersError:
    return MannersError(
        f"An interval needs at least 2 independent groups of figures, and there are {clusters}: "
        "use more prompts or comparisons."
    )


def crossed_share(values: ArrayLike, people: ArrayLike, items: ArrayLike) -> Interval:
    """Return the mean of `values` in [0, 1] with a 95 % interval for values of which each is one person's on one item.

    values, people, items: (N,). With V_g = G / (G - 1) sum over the G clusters of (sum of v - mean)^2 / N^2, the
    variance is V = max(V_people + V_items - V_values, V_people, V_items): what people and items share is there twice.
    The interval is Wilson's with mean (1 - mean) / V in place of n, and for z Student's t with
    (people - 1) (V_people + V_items) / V_people degrees of freedom: few people say little of others. Of a single person
    the items alone are clusters. Where all values are alike, n is the number of clusters in effect, people's if there
    are several. Source: Cameron, Gelbach & Miller 2011, "Robust inference with multiway clustering", equation 2.12.
    """
    v = np.asarray(values, float)
    mean = float(v.mean())
    (person, size), (item, on_item) = (_sizes(names) for names in (people, items))
    by_people = _variance(v - mean, person)
    by_items = _variance(v - mean, item)
    by_values = _variance(v - mean, np.arange(len(v)))
    several = len(size) > 1
    if not by_values:
        n = effective_number(size if several else on_item)
        return wilson(min(max(mean, 0.0), 1.0) * n, n)
    variance = max(by_people + by_items - by_values, by_people, by_items) if several else by_items
    freedom = (len(size) - 1) * (1 + by_items / by_people) if several and by_people else len(on_item) - 1.0
    quantile = float(stdtrit(max(freedom, 1.0), 0.975))
    return _wilson(mean, mean * (1 - mean) / (variance or by_values), quantile)


def _sizes(names: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
    """Return the cluster (N,) of each value, and how many values each cluster (G,) has."""
    _, index, sizes = np.unique(np.asarray(names), return_inverse=True, return_counts=True)
    return index, sizes.astype(np.float64)


def _variance(residuals: Floats, cluster: NDArray[np.int64]) -> float:
    """Return the variance of a mean whose clusters are independent; 0 for a single one."""
    sums = np.bincount(cluster, residuals)
    return float(sums @ sums) * len(sums) / max(1, len(sums) - 1) / len(residuals) ** 2


def paired_bootstrap_difference(
    before: ArrayLike, after: ArrayLike, clusters: ArrayLike, resamples: int, seed: int
) -> Interval:
    """Return the mean of after - before, both (N,) measured on the same items, by `cluster_bootstrap`."""
    return cluster_bootstrap(np.subtract(after, before), clusters, resamples, seed)


def effective_number(weights: ArrayLike) -> float:
    """Return how many equally weighted items these are worth: (sum w)^2 / sum w^2 (Kish 1965); 0 for none."""
    w = np.asarray(weights, float)
    return float(w.sum() ** 2 / (w * w).sum()) if w.any() else 0.0


def _by_cluster(values: ArrayLike, clusters: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats]:
    """Return sum(w v) and sum(w) of each cluster with any weight, two arrays (C,)."""
    v = np.asarray(values, float)
    w = np.ones_like(v) if weights is None else np.asarray(weights, float)
    ids, index = np.unique(np.asarray(clusters), return_inverse=True)
    if not v.shape == w.shape == index.shape or v.ndim != 1:
        raise ValueError(f"values {v.shape}, clusters {index.shape} and weights {w.shape} must be equally long lists")
    if not np.isfinite(v).all() or not np.isfinite(w).all() or (w < 0).any():
        raise ValueError("values and weights must be finite, and weights not negative")
    sums: Floats = np.bincount(index, w * v, len(ids)).astype(np.float64)
    totals: Floats = np.bincount(index, w, len(ids)).astype(np.float64)
    return sums[totals > 0], totals[totals > 0]


def pair_agreement(verdicts: Sequence[Sequence[Verdict]], resamples: int, seed: int) -> Interval:
    """Return the probability that two different annotators of the same comparison choose the same side.

    One inner list per comparison. Only `left` and `right` count, the latest of each annotator; a comparison with two
    such verdicts or more counts once, as the share of its pairs of annotators that agree. Chance is 0.5. Bootstrap by
    comparison. This is the observed agreement of Krippendorff (2011, "Computing Krippendorff's alpha-reliability"),
    not his alpha, and each comparison weighs the same, however many annotators it had.
    Raises MannersError where kinds of annotators are mixed, or with fewer than two such comparisons.
    """
    kinds = sorted({v.annotator.kind for given in verdicts for v in given})
    if len(kinds) > 1:
        raise MannersError(f"Agreement is measured within one kind of annotator, not across {', '.join(kinds)}.")
    agreed = []
    for given in verdicts:
        choices = [v.choice for v in latest_verdicts(given)]
        left, right = choices.count(Choice.LEFT), choices.count(Choice.RIGHT)
        if left + right >= 2:
            agreed.append((math.comb(left, 2) + math.comb(right, 2)) / math.comb(left + right, 2))
    if len(agreed) < 2:
        raise MannersError(
            f"Agreement needs at least 2 comparisons decided by two annotators, and there are {len(agreed)}: "
            "let more annotators see the same comparisons."
        )
    return cluster_bootstrap_share(agreed, np.arange(len(agreed)), resamples, seed)


# ---- anytime-valid: may be looked at after every verdict ----


def e_value(wins: int, losses: int, rate: float = 0.5) -> float:
    """Return the wealth of a bettor against "the win rate is `rate`", who started with 1 and saw these results.

    e = B(a + wins, a + losses) / (B(a, a) rate^wins (1 - rate)^losses), with a = `PRIOR`: the likelihood ratio of a
    Beta mixture of win rates. If the win rate is `rate`, its mean is 1 at any stopping time and it ever reaches 1/x
    with probability at most x (Ville 1939). Ties contribute nothing: given that a comparison is decided it is a
    coin of the win rate among decided ones, so a tie multiplies the wealth by 1, whatever the rate of ties. Infinite
    where the result is impossible at `rate`. Source: Robbins 1970, "Statistical methods related to the law of the
    iterated logarithm"; Ramdas et al. 2023, "Game-theoretic statistics and safe anytime-valid inference".
    """
    log_e = _log_e_value(wins, losses, rate)
    return math.exp(log_e) if log_e < 700 else math.inf


def _log_e_value(wins: int, losses: int, rate: float) -> float:
    if min(wins, losses) < 0 or not 0 <= rate <= 1:
        raise ValueError(f"need counts and a rate, got wins={wins}, losses={losses}, rate={rate}")
    if (wins and rate == 0) or (losses and rate == 1):
        return math.inf
    mixture = _log_beta(PRIOR + wins, PRIOR + losses) - _log_beta(PRIOR, PRIOR)
    return mixture - (wins * math.log(rate) if wins else 0.0) - (losses * math.log1p(-rate) if losses else 0.0)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def confidence_sequence(wins: int, losses: int, level: float = 0.95) -> Interval:
    """Return the win rate among decided comparisons with an interval that holds at every look at once.

    It holds every rate whose `e_value` is below 1 / (1 - level); the chance that it ever misses the true rate, over
    all looks together, is at most 1 - level. Source: Howard, Ramdas, McAuliffe & Sekhon 2021, "Time-uniform,
    nonparametric, nonasymptotic confidence sequences", and Ville's inequality. 0.5 within [0, 1] before any result.
    """
    if wins + losses == 0:
        return Interval(0.5, 0.0, 1.0)
    return interval_at_every_look(wins / (wins + losses), lambda rate: _log_e_value(wins, losses, rate), level)


def interval_at_every_look(share: float, log_wealth: Callable[[float], float], level: float) -> Interval:
    """Return the observed `share` with all rates against which a bettor's wealth is below 1 / (1 - level)."""
    limit = -math.log1p(-level)

    def refuted(rate: float) -> bool:
        return log_wealth(rate) >= limit

    # The wealth falls towards the observed share from either side, so each bound is the one crossing on its side.
    low = _crossing(refuted, 0.0, share) if refuted(0.0) else 0.0
    high = _crossing(refuted, 1.0, share) if refuted(1.0) else 1.0
    return Interval(share, low, high)


def _crossing(holds: Callable[[float], bool], outside: float, inside: float) -> float:
    """Return the point nearest `inside` at which `holds` is still true, given that it is at `outside`."""
    for _ in range(60):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if holds(middle) else (outside, middle)
    return outside


def decide(wins: int, losses: int, level: float = 0.95) -> Decision:
    """Return what these results say so far; stopping at the first answer other than CANNOT_TELL is allowed.

    With two equally good versions the chance of ever saying BETTER or WORSE is at most 1 - level.
    """
    if _log_e_value(wins, losses, 0.5) < -math.log1p(-level):
        return Decision.CANNOT_TELL
    return Decision.BETTER if wins > losses else Decision.WORSE


def detectable_win_rate(n: int, power: float = 0.8, level: float = 0.95) -> float:
    """Return the smallest win rate above 1/2 that `decide` finds within n decided comparisons with chance `power`.

    Worked out exactly, by following the chances of all results through n steps and stopping where `decide` stops.
    Raises MannersError where n is too small for `decide` to ever say anything.
    """
    boundary = _wins_needed(n, level)
    if _power(1.0, boundary) < power:
        least = next(m for m in range(n + 1, 10_000) if decide(m, 0, level) is Decision.BETTER)
        raise MannersError(f"{n} comparisons cannot show any difference at level {level:g}: ask for at least {least}.")
    return _crossing(lambda rate: _power(rate, boundary) >= power, 1.0, 0.5)


def _wins_needed(n: int, level: float) -> list[int]:
    """Return for each m = 1..n the fewest wins of m that `decide` calls BETTER; m + 1 where none suffices."""
    needed = 1
    boundary = []
    for m in range(1, n + 1):
        # One more result raises the number needed by at most one: a win after enough wins is still enough.
        if needed <= m and decide(needed, m - needed, level) is not Decision.BETTER:
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
