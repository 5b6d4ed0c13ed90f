"""Intervals for figures that come from people's verdicts, from samples of a fixed size: pure functions of numbers.

Answers to one prompt resemble each other, and so do verdicts on one comparison, so every bootstrap here draws whole
clusters. What is looked at while verdicts still come in goes by `bets` instead.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from math import inf
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from manners.errors import MannersError
from manners.types import Choice, DrawnHow, Interval, Verdict, latest_verdicts

FEWEST = 5
"""Openings or prompts below which an interval is not trusted (docs/coverage.md), and the sentence says: too few."""
CELLS = 4_000_000
"""Most entries of a matrix of resampling counts held at once; bounds memory to about 64 MB."""
CHOSEN = frozenset({DrawnHow.DISAGREEMENT, DrawnHow.ADVERSARIAL, DrawnHow.GOLD})
"""How a queue draws what tells nothing fair of how far people agree: what models differ on or like, and what is
known."""
SIDES = (Choice.LEFT, Choice.RIGHT)

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


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its standard error, to be read by Student's t."""

    value: float
    error: float
    freedom: float
    """Degrees of freedom, 1 at least."""

    @property
    def interval(self) -> Interval:
        """The 95 % interval."""
        half = float(stdtrit(self.freedom, 0.975)) * self.error
        return Interval(self.value, self.value - half, self.value + half)

    def p_above(self, limit: float) -> float:
        """Return how likely a value as high as this is where the truth is at `limit` or below: a one-sided p-value."""
        if self.error == 0:
            return 0.0 if self.value > limit else 1.0
        return float(stdtr(self.freedom, (limit - self.value) / self.error))


def mean_estimate(values: ArrayLike, weights: ArrayLike | None = None) -> Estimate:
    """Return the (weighted) mean of independent values (N,), of at least two.

    With r = w (v - mean): variance N / (N - 1) sum r^2 / (sum w)^2, and one degree of freedom less than there are
    values in effect (`effective_number`).
    """
    v = np.asarray(values, float)
    w = np.ones_like(v) if weights is None else np.asarray(weights, float)
    if len(v) < 2:
        raise _too_few(len(v))
    mean = float(v @ w / w.sum())
    residuals = w * (v - mean)
    error = math.sqrt(len(v) / (len(v) - 1) * float(residuals @ residuals)) / float(w.sum())
    return Estimate(mean, error, max(effective_number(w) - 1, 1.0))


def holm(p_values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """Return p-values corrected for their number: below 5 % for any true null in at most 5 % of studies.

    With weights w above 0 (1 each if not said), in the order of p_i / w_i: the k-th becomes the largest of
    p_(j) / w_(j) times the weights from the j-th on, over j <= k, at most 1. Of like weights that is (m - j + 1) p_(j);
    a larger one is found sooner, at the cost of the others. Holds however they depend on each other. Source: Holm 1979,
    "A simple sequentially rejective multiple test procedure"; its weighted form as in Benjamini & Hochberg 1997,
    "Multiple hypotheses testing with weights".
    """
    w = [1.0] * len(p_values) if weights is None else weights
    order = sorted(range(len(p_values)), key=lambda i: p_values[i] / w[i])
    corrected, most = [1.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        left = math.fsum(w[i] for i in order[place:])
        most = max(most, min(1.0, left * p_values[index] / w[index]))
        corrected[index] = most
    return corrected


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


def percent(rate: Interval, level: float = 0.95) -> str:
    """Return a rate with its interval, which is at `level`, as it stands in a sentence."""
    return f"{100 * rate.estimate:.1f} % ({100 * level:.4g} % interval {100 * rate.low:.1f} to {100 * rate.high:.1f})"


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


def unvaried(value: float, groups: float, low: float, high: float) -> Interval:
    """Return a figure within low and high that so many groups all have alike, with a 95 % interval.

    Groups that have another may be a share of 1 - 0.025^(1 / groups) of all, and none have come (the bound of Clopper &
    Pearson 1934, "The use of confidence or fiducial limits", of none among so many); those are taken to have the worst,
    and the best. A bootstrap would give a point: no resample differs from another.
    """
    unseen = 1 - float(0.025 ** (1 / groups))
    return Interval(value, value - unseen * (value - low), value + unseen * (high - value))


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


def clustered_share(
    values: ArrayLike, clusters: ArrayLike, weights: ArrayLike | None = None, level: float = 0.95
) -> Interval:
    """Return the (weighted) mean of values in [0, 1] with an interval that holds for few clusters too.

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
        return wilson(mean * n, n, level)
    return _wilson(mean, mean * (1 - mean) / variance, float(stdtrit(max(n - 1, 1.0), 0.5 + level / 2)))


def clustered_mean(values: ArrayLike, clusters: ArrayLike, weights: ArrayLike | None = None) -> Interval:
    """Return the (weighted) mean of `values` with a 95 % interval from whole clusters, without resampling.

    values: (N,); clusters: (N,) ids; weights: (N,), not negative. It is `mean_estimate` of the clusters' means, each
    with its weight. Raises MannersError below two.
    """
    sums, totals = _by_cluster(values, clusters, weights)
    return mean_estimate(sums / totals, totals).interval


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


def numbered(names: Iterable[str]) -> list[int]:
    """Return a number for each name, the same for the same, counting from 0 in the order in which they first come."""
    places: dict[str, int] = {}
    return [places.setdefault(name, len(places)) for name in names]


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


def first_two(verdicts: Iterable[Verdict], choices: Collection[Choice] = SIDES) -> tuple[Verdict, ...]:
    """Return the first two verdicts on a comparison with one of these choices, by two people, as far as both are fair.

    These alone tell how far people agree. Where asking stops at agreement (`serve.agree` below `serve.overlap`) a third
    verdict is there just because the first two differ; whether there is a second one never hangs on what it says. They
    count in the order in which their people first answered, and with what each said last. What was drawn because the
    reward model's members disagree, or with a known verdict, is left out, and nothing that came later stands in for it.
    """
    given = list(verdicts)
    chosen = {v.annotator for v in given if v.drawn in CHOSEN}
    counting = (v for v in latest_verdicts(given) if v.choice in choices)
    return tuple(v for v in islice(counting, 2) if v.annotator not in chosen)


def pair_agreement(verdicts: Sequence[Sequence[Verdict]], resamples: int, seed: int) -> Interval:
    """Return the probability that two different annotators of the same comparison choose the same side.

    One inner list per comparison, in the order in which they came. A comparison counts by its `first_two`, or not at
    all. Chance is 0.5. Bootstrap by comparison. This is the observed agreement of Krippendorff (2011, "Computing
    Krippendorff's alpha-reliability"), not his alpha.
    Raises MannersError where kinds of annotators are mixed, or with fewer than two such comparisons.
    """
    kinds = sorted({v.annotator.kind for given in verdicts for v in given})
    if len(kinds) > 1:
        raise MannersError(f"Agreement is measured within one kind of annotator, not across {', '.join(kinds)}.")
    pairs = [two for given in verdicts if len(two := first_two(given)) == 2]
    if len(pairs) < 2:
        raise MannersError(
            f"Agreement needs at least 2 comparisons decided by two annotators, and there are {len(pairs)}: "
            "let more annotators see the same comparisons."
        )
    agreed = [float(one.choice is other.choice) for one, other in pairs]
    return cluster_bootstrap_share(agreed, np.arange(len(agreed)), resamples, seed)
