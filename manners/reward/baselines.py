"""What the reward model is measured against: chance, length, finishing, more data.

Every interval is a 95 % cluster bootstrap by group (the conversation's opening turn), as verdicts on one opening are
not independent; one group alone says nothing of others, and its intervals hold everything. Arrays: margins (pairs,) are
score_left - score_right; lengths (pairs, 2) are those of the left and right response, in tokens or characters. A
verdict is decided when it chose a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, gammaln, softmax

from manners.errors import MannersError
from manners.feedback.statistics import bootstrapped, effective_number, resampled, unvaried
from manners.reward.labelled import Floats, LabelledPair, counts_array, sums_by_group
from manners.types import FinishReason, Interval

RESAMPLES = 2000
RIDGE = 1e-3
"""Penalty per verdict on the squared coefficients of `length_and_finish`: keeps them finite where classes separate."""

ALIKE = 1e-12
"""Figures of groups that differ by less are the same."""


class Agreement(StrEnum):
    """How far the decided verdicts on a pair agree: the majority's share of them."""

    UNANIMOUS = "unanimous"
    MOST = "two thirds or more"
    SPLIT = "split"
    SINGLE = "one verdict"


@dataclass(frozen=True, slots=True)
class AgreementLevel:
    """Accuracy on the pairs of one level of agreement."""

    level: Agreement
    n: int
    """Pairs."""
    accuracy: Interval


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Accuracy on the same held-out pairs after training on so many verdicts."""

    verdicts: int
    accuracy: Interval


def openings(pairs: Sequence[LabelledPair]) -> int:
    """Return on how many openings there are verdicts that measure: on fewer than `FEWEST` they are too few to tell."""
    return len({pair.group for pair in pairs if pair.measured.decided})


def accuracy(margins: Floats, pairs: Sequence[LabelledPair], seed: int, resamples: int = RESAMPLES) -> Interval:
    """Return the share of decided single verdicts that agree with the sign of the margin; a margin of 0 counts half.

    Where it is the same in every group, as where all are right or all margins are 0, resampling shows no spread: the
    ends are then those of `unvaried`. Raises `MannersError` when no verdict decided.
    """
    return _known(_accuracy(_agreeing(margins, pairs), pairs, seed, resamples), pairs, 0.0)


def _accuracy(agreeing: Floats, pairs: Sequence[LabelledPair], seed: int, resamples: int) -> Interval:
    return _by_group(_decided_sums(pairs, agreeing), 0.0, seed, resamples)


def _by_group(sums: Floats, low: float, seed: int, resamples: int) -> Interval:
    """Return the share of (groups, 2) sums, of a figure from `low` to 1 and of weight, resampled by group."""
    estimate, worth = _share(sums), effective_number(sums[:, 1])
    if np.ptp(sums[:, 0] / sums[:, 1]) < ALIKE:
        return unvaried(estimate, worth, low, 1.0)
    drawn = resampled(sums, resamples, seed)
    return bootstrapped(estimate, drawn[:, 0] / drawn[:, 1], worth, low, 1.0)


def accuracy_gain(
    margins: Floats, baseline: Floats, pairs: Sequence[LabelledPair], seed: int, resamples: int = RESAMPLES
) -> Interval:
    """Return by how much the accuracy of `margins` exceeds that of the margins of a `baseline`, paired by group."""
    return _gain(_agreeing(margins, pairs) - _agreeing(baseline, pairs), pairs, seed, resamples)


def _gain(gained: Floats, pairs: Sequence[LabelledPair], seed: int, resamples: int) -> Interval:
    return _known(_by_group(_decided_sums(pairs, gained), -1.0, seed, resamples), pairs, -1.0)


def characters(pairs: Sequence[LabelledPair]) -> Floats:
    """Return (pairs, 2) lengths of the left and right response, in characters."""
    return np.array([(len(pair.left.text), len(pair.right.text)) for pair in pairs], dtype=np.float64).reshape(-1, 2)


def longer_wins(lengths: Floats, pairs: Sequence[LabelledPair], seed: int, resamples: int = RESAMPLES) -> Interval:
    """Return the accuracy of preferring the longer response."""
    return accuracy(lengths[:, 0] - lengths[:, 1], pairs, seed, resamples)


def shorter_wins(lengths: Floats, pairs: Sequence[LabelledPair], seed: int, resamples: int = RESAMPLES) -> Interval:
    """Return the accuracy of preferring the shorter response."""
    return accuracy(lengths[:, 1] - lengths[:, 0], pairs, seed, resamples)


def always_left(pairs: Sequence[LabelledPair], seed: int, resamples: int = RESAMPLES) -> Interval:
    """Return the accuracy of preferring whatever was shown on the left."""
    return _known(_accuracy(_shown_left(pairs), pairs, seed, resamples), pairs, 0.0)


def gain_over_always_left(
    margins: Floats, pairs: Sequence[LabelledPair], seed: int, resamples: int = RESAMPLES
) -> Interval:
    """Return by how much the accuracy of `margins` exceeds that of `always_left`, paired by group."""
    return _gain(_agreeing(margins, pairs) - _shown_left(pairs), pairs, seed, resamples)


def length_and_finish(
    train: Sequence[LabelledPair], train_lengths: Floats, held_out: Sequence[LabelledPair], held_out_lengths: Floats
) -> Floats:
    """Return the margins (held-out pairs,) of a logistic regression on length and finish flag, fitted on `train`.

    p_left = sigmoid(a * (log length_left - log length_right) + b * (finished_left - finished_right)), by maximum
    likelihood of the decided verdicts with a small ridge; no intercept, as sides are arbitrary. Measure it with
    `accuracy`: a reward model that does no better has learnt nothing that a ruler does not know.
    """
    x = _length_and_finish_features(train, train_lengths)
    counts = counts_array(train)
    total = max(counts[:, :2].sum(), 1.0)

    def penalised(coefficients: Floats) -> tuple[float, Floats]:
        margin = x @ coefficients
        loss = (counts[:, 0] * np.logaddexp(0, -margin) + counts[:, 1] * np.logaddexp(0, margin)).sum() / total
        slope = x.T @ (counts[:, 1] * expit(margin) - counts[:, 0] * expit(-margin)) / total
        return float(loss + RIDGE * (coefficients**2).sum()), slope + 2 * RIDGE * coefficients

    fit = minimize(penalised, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B")
    return _length_and_finish_features(held_out, held_out_lengths) @ np.asarray(fit.x, dtype=np.float64)


def by_agreement(
    margins: Floats, pairs: Sequence[LabelledPair], seed: int, resamples: int = RESAMPLES
) -> list[AgreementLevel]:
    """Return accuracy apart for pairs on which annotators agree more or less; levels of no weight are left out."""
    levels = [agreement_of(pair) for pair in pairs]
    result = []
    for level in Agreement:
        inside = [i for i, found in enumerate(levels) if found is level]
        if inside:
            chosen = [pairs[i] for i in inside]
            if not any(pair.measured.decided for pair in chosen):
                continue
            measured = _accuracy(_agreeing(margins[inside], chosen), chosen, seed, resamples)
            result.append(AgreementLevel(level, len(inside), _known(measured, chosen, 0.0)))
    return result


def _ranks(values: Floats) -> Floats:
    """Return ranks from 1 on, equal values sharing the mean of theirs; every command would wait for scipy.stats."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (count.cumsum() - (count - 1) / 2)[place]
    return ranks


def length_correlation(
    scores: Floats, lengths: Floats, groups: Sequence[str], seed: int, resamples: int = RESAMPLES
) -> Interval:
    """Return Spearman's correlation of score with length over responses (N,), their groups alongside.

    Scores are free up to a shift per prompt, which blurs this one; margins against differences of length, one per pair,
    give the correlation without it. Ranks are those of the whole sample in every resample. Constant scores or lengths
    have no correlation: the answer is then 0, anywhere between -1 and 1.
    """
    x, y = (_ranks(values) - (len(values) + 1) / 2 for values in (scores, lengths))
    sums = sums_by_group(groups, np.ones(len(x)), x, y, x * x, y * y, x * y)
    estimate = _correlation(sums.sum(axis=0)[None])
    if np.isnan(estimate[0]):
        return Interval(0.0, -1.0, 1.0)
    if len(sums) < 2:
        return Interval(float(estimate[0]), -1.0, 1.0)
    drawn = _correlation(resampled(sums, resamples, seed))
    return bootstrapped(float(estimate[0]), drawn, len(sums), -1.0, 1.0)


def doubling_gain(points: Sequence[CurvePoint]) -> Interval | None:
    """Return what twice the verdicts would add to the accuracy: the slope b of accuracy = a + b * log2(verdicts).

    Weighted least squares, each point with the standard error of its interval (width / 3.92), and the usual normal
    interval of b. The points share their held-out pairs, so their errors partly cancel in b: the interval is rather too
    wide. None with fewer than two different numbers of verdicts.
    """
    if len({point.verdicts for point in points}) < 2:
        return None
    x = np.log2([point.verdicts for point in points])
    y = np.array([point.accuracy.estimate for point in points])
    errors = np.array([max(point.accuracy.high - point.accuracy.low, 1e-3) / 3.92 for point in points])
    design = np.stack([np.ones_like(x), x], axis=1) / errors[:, None]
    covariance = np.linalg.inv(design.T @ design)
    slope = float((covariance @ design.T @ (y / errors))[1])
    half = 1.96 * float(covariance[1, 1]) ** 0.5
    return Interval(slope, slope - half, slope + half)


def doubling_sentence(points: Sequence[CurvePoint]) -> str:
    """Say in one plain sentence what doubling the verdicts would buy, by `doubling_gain`."""
    gain = doubling_gain(points)
    if gain is None:
        return "Cannot tell what more verdicts would buy: the curve needs at least two different numbers of them."
    most = max(point.verdicts for point in points)
    low, high = f"{100 * gain.low:+z.1f}", f"{100 * gain.high:+z.1f}"
    change = f"{100 * gain.estimate:+z.1f} points of accuracy (95 % interval {low} to {high})"
    if not gain.excludes(0.0):
        return f"Cannot tell what doubling the {most:,} verdicts would buy: {change}, which contains 0."
    if gain.estimate < 0:
        return f"More verdicts like these would not help: doubling the {most:,} would change {change}."
    return f"Doubling the {most:,} verdicts would buy about {change}, if the curve goes on as it did."


def _agreeing(margins: Floats, pairs: Sequence[LabelledPair]) -> Floats:
    """Return what weight of each pair's decided verdicts agrees with the sign of its margin; half of it at 0."""
    counts = np.array([pair.measured for pair in pairs])
    agrees = (1 + np.sign(margins)) / 2
    return np.asarray(counts[:, 0] * agrees + counts[:, 1] * (1 - agrees))


def _shown_left(pairs: Sequence[LabelledPair]) -> Floats:
    """Return what weight of each pair's verdicts chose the side that was shown on the left."""
    return np.array([pair.measured_left for pair in pairs])


def _decided_sums(pairs: Sequence[LabelledPair], values: Floats) -> Floats:
    """Return (groups, 2): the sum of `values` and the weight of decided verdicts, of groups that have any."""
    sums = _group_sums(pairs, values, np.array([pair.measured.decided for pair in pairs]))
    sums = sums[sums[:, 1] > 0]
    if not len(sums):
        raise MannersError("no set-aside verdict chooses a side, so accuracy cannot be measured; set more aside")
    return sums


def _share(sums: Floats) -> float:
    return float(sums[:, 0].sum() / sums[:, 1].sum())


def agreement_of(pair: LabelledPair) -> Agreement | None:
    """Return how far the decided verdicts on a pair agree; None where there is none."""
    return _agreement(pair.counts.left, pair.counts.right)


def _agreement(left: float, right: float) -> Agreement | None:
    decided, majority = left + right, max(left, right)
    if decided < 2:
        return Agreement.SINGLE if decided else None
    if majority == decided:
        return Agreement.UNANIMOUS
    return Agreement.MOST if 3 * majority >= 2 * decided else Agreement.SPLIT


def share_at(level: Agreement, log_odds: float, verdicts: int) -> float:
    """Return what share of so many verdicts goes a way, given that they agree so far.

    Each goes that way by itself, with probability p = sigmoid(log_odds): sum k B(k; n, p) / (n sum B(k; n, p)), over
    the k of n verdicts that agree so far, with B the binomial distribution. That is p for one verdict, 1 / 2 for one
    against one, and p^n / (p^n + (1 - p)^n) for n that are unanimous: to look at a level is to look at the outcome.
    """
    k = np.array([k for k in range(verdicts + 1) if _agreement(k, verdicts - k) is level], dtype=np.float64)
    ways = gammaln(verdicts + 1) - gammaln(k + 1) - gammaln(verdicts - k + 1)
    return float(softmax(ways + k * log_odds) @ k) / verdicts


def _length_and_finish_features(pairs: Sequence[LabelledPair], lengths: Floats) -> Floats:
    log_length = np.log(np.maximum(lengths, 1))
    finished = np.array(
        [[response.finish_reason is not FinishReason.LENGTH for response in (pair.left, pair.right)] for pair in pairs],
        dtype=np.float64,
    ).reshape(-1, 2)
    return np.stack([log_length[:, 0] - log_length[:, 1], finished[:, 0] - finished[:, 1]], axis=1)


def _correlation(sums: Floats) -> Floats:
    """Return Pearson's correlation from rows of n and the sums of x, y, xx, yy, xy; nan where one is constant."""
    n, x, y, xx, yy, xy = sums.T
    variances = (n * xx - x * x) * (n * yy - y * y)
    flat = variances <= 1e-9
    return np.where(flat, np.nan, (n * xy - x * y) / np.sqrt(np.where(flat, 1.0, variances)))


def _group_sums(pairs: Sequence[LabelledPair], *values: Floats) -> Floats:
    return sums_by_group([pair.group for pair in pairs], *values)


def _known(found: Interval, pairs: Sequence[LabelledPair], low: float) -> Interval:
    """Return an interval, or everything from `low` to 1 where one group cannot show how far groups differ."""
    return found if len({pair.group for pair in pairs}) > 1 else Interval(found.estimate, low, 1.0)
