"""A judge's figures, corrected by what people said of a part: never printed raw.

The part that people checked must be a uniform random sample of what the judge judged. Values of one study are taken as
independent: where several stand on one prompt, hand in their mean by prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from manners.errors import MannersError
from manners.feedback.statistics import Floats, mean_estimate, wilson
from manners.types import Interval

Z = NormalDist().inv_cdf(0.975)
FEWEST_CHECKED = 5
"""Checked values below which nothing is corrected."""


@dataclass(frozen=True, slots=True)
class Corrected:
    """What a judge and a part checked by people say together, beside what each says alone."""

    corrected: Interval
    human: Interval
    """By the checked part alone."""
    raw: float
    """What the judge says of everything: not a figure to go by."""
    checked: int
    judged: int
    """What the judge alone has judged, beside the checked part."""

    @property
    def saved(self) -> int:
        """How many more human verdicts would give as narrow an interval as the judge does; 0 where it does not help."""
        ratio = (self.human.high - self.human.low) / max(self.corrected.high - self.corrected.low, 1e-12)
        return max(0, round(self.checked * (min(ratio, 1e3) ** 2 - 1)))

    @property
    def sentence(self) -> str:
        """All of it in words."""
        ends = f"{self.corrected.low:.3f} to {self.corrected.high:.3f}"
        alone = f"{self.human.estimate:.3f} ({self.human.low:.3f} to {self.human.high:.3f})"
        helps = f"the judge saved {self.saved} human verdicts" if self.saved else "the judge saved no human verdict"
        return (
            f"{self.corrected.estimate:.3f} ({ends}) after correction; {alone} by the {self.checked} that people"
            f" checked alone; the judge's own figure for all {self.checked + self.judged} is {self.raw:.3f}, and"
            f" {helps}."
        )


def prediction_powered(judged: ArrayLike, checked: ArrayLike, human: ArrayLike) -> Corrected:
    """Return the mean of what people would say of everything, by what a judge said of it and people of a part.

    judged: (N,) the judge's values where nobody checked; checked: (n,) its values on the checked part; human: (n,)
    people's there. With f the judge and Y people,

        theta = mean_n(Y) + lambda (mean_N(f) - mean_n(f)),
        V = lambda^2 var_N+n(f) / N + sum_n (Y - theta_n - lambda (f - mean_n f))^2 / ((n - 2) n),

    lambda = cov(Y, f) / ((1 + n / N) var(f)) within 0 and 1: a judge that says nothing of people is not listened to.
    The interval is Student's with n - 2 degrees of freedom. The same as double sampling with regression.
    Sources: Angelopoulos et al. 2023, "PPI++: Efficient prediction-powered inference", section 6; Cochran 1977,
    "Sampling techniques", section 12.6. Unlike PPI++ residuals are divided by n - 2, since lambda is fitted: with 30
    checked values its own interval holds the truth too seldom.
    Raises MannersError below `FEWEST_CHECKED` checked values, and ValueError for lists of different length.
    """
    f, g, y = _values(judged, checked, human)
    n, more = len(y), len(f)
    alone = mean_estimate(y).interval
    everything = np.concatenate([f, g])
    spread = float(np.var(everything, ddof=1))
    tuned = float(np.cov(y, g)[0, 1]) / ((1 + n / more) * spread) if more and spread > 1e-12 else 0.0
    tuned = min(max(tuned, 0.0), 1.0)
    if not tuned:
        return Corrected(alone, alone, float(everything.mean()), n, more)
    theta = float(y.mean()) + tuned * float(f.mean() - g.mean())
    residuals = (y - y.mean()) - tuned * (g - g.mean())
    variance = tuned**2 * spread / more + float(residuals @ residuals) / ((n - 2) * n)
    half = float(stdtrit(n - 2, 0.975)) * math.sqrt(variance)
    return Corrected(Interval(theta, theta - half, theta + half), alone, float(everything.mean()), n, more)


def rogan_gladen(judged: ArrayLike, checked: ArrayLike, human: ArrayLike) -> Corrected:
    """Return the share of everything that people would say yes to, from a judge that errs in both directions.

    judged: (N,) the judge's yes (1) or no (0) where nobody checked; checked: (n,) its answers on the checked part;
    human: (n,) people's there. With q the judge's share of yes, se = P(judge yes | people yes) on m1 checked values and
    sp = P(judge no | people no) on m0,

        p = (q + sp - 1) / (se + sp - 1), within 0 and 1,
        V = (q (1 - q) / N + p^2 se (1 - se) / m1 + (1 - p)^2 sp (1 - sp) / m0) / (se + sp - 1)^2.

    The interval is Lang and Reiczigel's: with z the normal quantile it takes q as (N q + z^2 / 2) / (N + z^2), se and
    sp as (m s + 1) / (m + 2), and moves its centre by 2 z^2 (p se (1 - se) / m1 - (1 - p) sp (1 - sp) / m0). Where
    se + sp - 1 is not shown to be above 0 at that level, or people said only yes or only no, the judge says nothing:
    the interval is 0 to 1. q is of the unchecked values, which are independent of se and sp. People's own share is not
    used: unlike `prediction_powered` it may be wider than that. With about one error of each kind among those
    checked it is wider than it need be (99 % of studies instead of 95). Ours: where all of it lies above 1 or below 0,
    the judge errs otherwise here than where it was checked; the rate of that error then counts as unknown, down to 0.
    Sources: Rogan & Gladen 1978, "Estimating prevalence from the results of a screening test"; Lang & Reiczigel 2014,
    "Confidence limits for prevalence of disease adjusted for estimated sensitivity and specificity", section 2.
    Raises MannersError below `FEWEST_CHECKED` checked values or with none beside them, ValueError for anything else
    than 0 and 1.
    """
    f, g, y = _values(judged, checked, human)
    if not all(np.isin(values, (0.0, 1.0)).all() for values in (f, g, y)):
        raise ValueError("a rate is corrected from answers of 0 and 1")
    if not len(f):
        raise MannersError("There is nothing to correct: the judge has judged nothing that people did not.")
    n, more = len(y), len(f)
    raw = float(np.concatenate([f, g]).mean())
    alone = wilson(float(y.sum()), n)
    yes, no = float(y.sum()), float(n - y.sum())
    hits, rejected = float(g @ y), float((1 - g) @ (1 - y))
    unknown = Corrected(Interval(alone.estimate, 0.0, 1.0), alone, raw, n, more)
    if not yes or not no:
        return unknown
    se, sp = (hits + 1) / (yes + 2), (rejected + 1) / (no + 2)
    of_se, of_sp = se * (1 - se) / (yes + 2), sp * (1 - sp) / (no + 2)
    skill = se + sp - 1
    if skill <= Z * math.sqrt(of_se + of_sp):
        return unknown
    q = (float(f.sum()) + Z * Z / 2) / (more + Z * Z)
    p = (q + sp - 1) / skill
    half = Z * math.sqrt(q * (1 - q) / (more + Z * Z) + p * p * of_se + (1 - p) ** 2 * of_sp) / skill
    centre = p + 2 * Z * Z * (p * of_se - (1 - p) * of_sp)
    plain = (float(f.mean()) + rejected / no - 1) / (hits / yes + rejected / no - 1)
    estimate = min(max(plain, 0.0), 1.0)
    low, high = _within(centre - half, centre + half, wilson(float(f.sum()), more), se, sp)
    return Corrected(Interval(estimate, min(low, estimate), max(high, estimate)), alone, raw, n, more)


def _within(low: float, high: float, said: Interval, se: float, sp: float) -> tuple[float, float]:
    """Return an interval within 0 and 1; `said` is the judge's own share of yes, with its interval."""
    if low > 1.0:  # more than it would say yes to if everything were one: it misses fewer here, none at most
        return max(0.0, (said.low + sp - 1) / sp), 1.0
    if high < 0.0:  # fewer than it would by mistake alone: it makes fewer here, none at the least
        return 0.0, min(1.0, said.high / se)
    return max(low, 0.0), min(high, 1.0)


def _values(judged: ArrayLike, checked: ArrayLike, human: ArrayLike) -> tuple[Floats, Floats, Floats]:
    f, g, y = (np.asarray(values, np.float64).reshape(-1) for values in (judged, checked, human))
    if len(g) != len(y):
        raise ValueError(f"the judge's {len(g)} checked values and people's {len(y)} must be of the same things")
    if not all(np.isfinite(values).all() for values in (f, g, y)):
        raise ValueError("values must be finite")
    if len(y) < FEWEST_CHECKED:
        raise MannersError(
            f"A judge's figures are corrected by at least {FEWEST_CHECKED} that people checked, and there are {len(y)}:"
            " let people judge some of the same comparisons."
        )
    return f, g, y
