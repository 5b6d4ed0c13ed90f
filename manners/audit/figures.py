"""Figures from numbers: means, shares and slopes with intervals that count openings, not pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manners.feedback.statistics import (
    FEWEST,
    Estimate,
    bootstrapped,
    cluster_bootstrap,
    clustered_share,
    mean_estimate,
    resampled,
)
from manners.results.audit import AuditExample
from manners.reward.labelled import sums_by_group
from manners.types import Interval

Floats = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Figure:
    """One figure of an audit."""

    name: str
    value: Interval | None
    n: int
    """Openings, or questions of our own."""
    sentence: str
    worst: tuple[AuditExample, ...] = ()


def mean(values: Floats, groups: Sequence[str], seed: int) -> Interval | None:
    """Return the mean of values (N,), resampled by group; None from fewer than five groups, which show no spread."""
    if len(set(groups)) < FEWEST:
        return None
    return cluster_bootstrap(values, np.asarray(groups), RESAMPLES, seed)


def share(values: Floats, groups: Sequence[str]) -> Interval | None:
    """Return the mean of values in [0, 1] (N,), by `clustered_share`; None from fewer than five groups."""
    return clustered_share(values, np.asarray(groups)) if len(set(groups)) >= FEWEST else None


def change(before: ArrayLike, after: ArrayLike) -> Interval | None:
    """Return the mean of after - before, (N,) each and of the same N things; None from fewer than five.

    With Student's t; where nothing changes at all the interval is a point.
    """
    differences = np.subtract(np.asarray(after, np.float64), np.asarray(before, np.float64))
    return mean_estimate(differences).interval if len(differences) >= FEWEST else None


def changed_share(before: ArrayLike, after: ArrayLike) -> Interval | None:
    """Return the change of a share, from values in [0, 1] of the same N things; None from fewer than five.

    With d = after - before and two things more, of which one got as much better as can be and the other worse, each
    counting one half: m = sum d / (N + 2), V = ((sum d^2 + 1) / (N + 2) - m^2) / (N + 2). The interval is m -+ t root
    V, within -1 and 1, about an estimate of mean d: no change among ten says that little changes, not nothing.
    Source: Agresti & Min 2005, "Simple improved confidence intervals for comparing matched proportions".
    """
    d = np.subtract(np.asarray(after, np.float64), np.asarray(before, np.float64))
    if len(d) < FEWEST:
        return None
    n = len(d) + 2
    middle = float(d.sum()) / n
    error = math.sqrt(((float(d @ d) + 1) / n - middle**2) / n)
    found = Estimate(middle, error, n - 1).interval
    estimate = float(d.mean())
    return Interval(estimate, max(-1.0, min(found.low, estimate)), min(1.0, max(found.high, estimate)))


def partial_slope(y: Floats, x: Floats, beside: Floats, groups: Sequence[str], seed: int) -> Interval | None:
    """Return b of y = a beside + b x, least squares without an intercept (sides are arbitrary); all (N,).

    The interval resamples groups. None where x does not vary beside the other, or there are fewer than five groups.
    """
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    products = (beside * beside, beside * x, x * x, beside * y, x * y)
    sums = np.stack([np.bincount(index, product, count).astype(np.float64) for product in products], axis=1)
    if count < FEWEST:
        return None
    total = _slope(sums.sum(axis=0)[None])
    if np.isnan(total[0]):
        return None
    return bootstrapped(float(total[0]), _slope(resampled(sums, RESAMPLES, seed)), count)


def _slope(sums: Floats) -> Floats:
    """Solve the normal equations, a row each; not a number where they have no single solution."""
    bb, bx, xx, by, xy = sums.T
    other = np.where(bb > 0, bb, 1.0)
    left, right = xx - bx * bx / other, xy - bx * by / other
    sound = left > 1e-9 * np.maximum(xx, 1e-12)
    return np.where(sound, right / np.where(sound, left, 1.0), np.nan)


def ratio(above: Floats, below: Floats, openings: tuple[Sequence[str], Sequence[str]], seed: int) -> Interval | None:
    """Return mean(above) / mean(below) of two independent samples, each resampled by its openings.

    None from fewer than five openings of either, or below nothing.
    """
    if min(len(set(names)) for names in openings) < FEWEST or not below.mean() > 0:
        return None
    sums = [
        sums_by_group(names, values, np.ones(len(values)))
        for names, values in zip(openings, (above, below), strict=True)
    ]
    drawn = [resampled(some, RESAMPLES, seed + k) for k, some in enumerate(sums)]
    means = [some[:, 0] / some[:, 1] for some in drawn]
    estimate = float(above.mean() / below.mean())
    return bootstrapped(estimate, means[0] / np.maximum(means[1], 1e-12), min(map(len, sums)), low=0.0)


def number(value: Interval) -> str:
    """Return a number with its interval."""
    return f"{value.estimate:+.2f} (95 % interval {value.low:+.2f} to {value.high:+.2f})"
