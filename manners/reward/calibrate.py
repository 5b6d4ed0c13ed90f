"""Whether the reward model's probabilities can be believed: temperature, tie parameter, calibration error.

Everything here is measured on verdicts that were set aside, each counted once. Arrays: margins (pairs,) are
score_left - score_right; counts (pairs, 3) are verdicts left, right, tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from manners.errors import MannersError
from manners.feedback.statistics import effective_number, wilson
from manners.results import ReliabilityBin
from manners.reward.labelled import Floats
from manners.types import Interval

TEMPERATURES = (0.01, 100.0)
LOG_TIES = (-10.0, 5.0)
"""Bounds of the fit. Without a single tie the likelihood has no maximum in log nu; -10 is a tie in 44,000 verdicts."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns margins into probabilities: divide them by `temperature`, and let ties have exp(`log_tie`)."""

    temperature: float = 1.0
    log_tie: float = 0.0


def verdict_probabilities(margins: Floats, calibration: Calibration) -> Floats:
    """Return (pairs, 3) probabilities of left, right, tie: Davidson's model of `loss.py` at margin / temperature."""
    half = margins / calibration.temperature / 2
    return np.asarray(softmax(np.stack([half, -half, np.full_like(half, calibration.log_tie)], axis=-1), axis=-1))


def fit_temperature(margins: Floats, counts: Floats) -> Calibration:
    """Fit temperature and tie parameter jointly by maximum likelihood of the verdicts.

    In 1/T and log nu this is a logistic regression with two coefficients: concave, so there is one maximum. Fitting T
    alone would be wrong, as the tie probability depends on both. Margins that point the wrong way end at the largest
    temperature: the model then knows nothing. Raises `MannersError` when there are no verdicts.
    """
    if not counts.sum():
        raise MannersError("there are no verdicts to calibrate on; set more comparisons aside")
    total = counts.sum()
    n = counts.sum(axis=1, keepdims=True)
    half = margins / 2

    def negative_log_likelihood(parameters: Floats) -> tuple[float, Floats]:
        inverse_temperature, log_tie = float(parameters[0]), float(parameters[1])
        p = verdict_probabilities(margins, Calibration(1 / inverse_temperature, log_tie))
        excess = (n * p - counts) / total
        slope = np.array([((excess[:, 0] - excess[:, 1]) * half).sum(), excess[:, 2].sum()])
        return float(-(counts * np.log(np.maximum(p, 1e-300))).sum() / total), slope

    low, high = TEMPERATURES
    fit = minimize(
        negative_log_likelihood,
        np.array([1.0, 0.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(1 / high, 1 / low), LOG_TIES],
        options={"ftol": 1e-12, "gtol": 1e-8},
    )
    return Calibration(temperature=float(1 / fit.x[0]), log_tie=float(fit.x[1]))


def cross_calibrated(margins: Floats, counts: Floats, groups: Sequence[str], folds: int = 5, seed: int = 0) -> Floats:
    """Return (pairs, 3) probabilities of each pair by a calibration fitted without its group.

    To fit and to measure on the same verdicts flatters; here the groups are dealt into `folds` parts at random, and
    each part is calibrated by the others. Raises `MannersError` when there are fewer than two groups.
    """
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    folds = min(folds, len(names))
    if folds < 2:
        raise MannersError("calibration needs set-aside comparisons of at least two prompts; set more aside")
    fold = np.random.default_rng(seed).permutation(len(names))[group] % folds
    probabilities = np.empty_like(counts)
    for part in range(folds):
        inside = fold == part
        calibration = fit_temperature(margins[~inside], counts[~inside])
        probabilities[inside] = verdict_probabilities(margins[inside], calibration)
    return probabilities


def confidence(probabilities: Floats, counts: Floats) -> tuple[Floats, Floats, Floats]:
    """Return (confidence, agreement, verdicts) per pair, for verdicts that chose a side.

    Confidence is p / (p_left + p_right) of the response that the model prefers, 0.5 to 1 (which side it was shown on
    is arbitrary); agreement is the share of the deciding verdicts that prefer it too (half at equal scores). Pairs on
    which no verdict decided have weight 0.
    """
    left, right = counts[:, 0], counts[:, 1]
    p_left = probabilities[:, 0] / (probabilities[:, 0] + probabilities[:, 1])
    decided = left + right
    agrees = (1 + np.sign(p_left - 0.5)) / 2
    agreeing = left * agrees + right * (1 - agrees)
    return np.maximum(p_left, 1 - p_left), agreeing / np.maximum(decided, 1), decided


def reliability(probabilities: Floats, outcomes: Floats, weights: Floats, bins: int = 10) -> list[ReliabilityBin]:
    """Sort predictions (pairs,) into `bins` of equal mass and compare them with outcomes (pairs,), shares in [0, 1].

    Equal predictions share a bin, so there may be fewer. The interval takes the verdicts on one pair for copies of each
    other (Kish's effective number, (sum w)^2 / sum w^2): rather too wide than too narrow.
    """
    result = []
    index = _bins(probabilities, weights, bins)
    for each in np.unique(index[weights > 0]):
        inside = index == each
        w = weights[inside]
        predicted = np.average(probabilities[inside], weights=w)
        observed = np.average(outcomes[inside], weights=w)
        n = effective_number(w)
        share = wilson(float(observed) * n, n)
        found = ReliabilityBin(
            predicted=float(predicted),
            observed=share.estimate,
            low=share.low,
            high=share.high,
            n=float(w.sum()),
        )
        result.append(found)
    return result


def expected_calibration_error(probabilities: Floats, outcomes: Floats, weights: Floats, bins: int = 10) -> float:
    """Return the mean over verdicts of their bin's |predicted - observed|, in probability; bins as in `reliability`."""
    table = reliability(probabilities, outcomes, weights, bins)
    if not table:
        raise MannersError("no set-aside verdict chooses a side, so calibration cannot be measured; set more aside")
    return sum(row.n * abs(row.predicted - row.observed) for row in table) / sum(row.n for row in table)


def chance_calibration_error(
    probabilities: Floats,
    outcomes: Floats,
    weights: Floats,
    groups: Sequence[str],
    bins: int = 10,
    seed: int = 0,
    resamples: int = 200,
) -> Interval:
    """Return the calibration error that a perfectly calibrated model would show on such verdicts.

    It is never 0, since every bin has its share of luck: the mean and the central 95 % of the error where each group's
    differences, w (outcome - prediction), are turned round together by a coin. Verdicts on one pair are alike, and so
    are those on one opening: drawn one by one from the model's probabilities they have less luck than they really do.
    An error inside this interval is no evidence of miscalibration. Source: Cameron, Gelbach & Miller 2008,
    "Bootstrap-based improvements for inference with clustered errors" (the wild cluster bootstrap, with signs).
    """
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    _, place = np.unique(_bins(probabilities, weights, bins), return_inverse=True)
    apart = np.zeros((len(names), int(place.max()) + 1))
    np.add.at(apart, (group, place), weights * (outcomes - probabilities))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (resamples, len(names)))
    errors = np.abs(signs @ apart).sum(axis=1) / max(float(weights.sum()), 1e-12)
    low, high = np.quantile(errors, [0.025, 0.975])
    return Interval(float(np.mean(errors)), float(low), float(high))


def _bins(probabilities: Floats, weights: Floats, bins: int) -> Floats:
    """Return the bin of each prediction: where its mid-rank among the verdicts falls, in `bins` equal parts."""
    values, value = np.unique(probabilities, return_inverse=True)
    mass = np.bincount(value, weights, minlength=len(values))
    middle = (np.cumsum(mass) - mass / 2) / max(mass.sum(), 1e-12)
    return np.asarray(np.floor(middle * bins)[value])
