"""The win rate at equal length in worlds where it is known why the new version wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, xlogy

from manners.evaluate.compare import matched_win_rate
from manners.evaluate.length import regression, win_rate_at_equal_length
from manners.types import Answer, Dialogue, Interval, Response, Role, Turn

Make = Callable[..., Answer]
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
TRUTH = {0.0: 0.5, 0.7: 0.6597}
"""Win rate at equal length over prompts that differ with spread 0.5 in logits around a gain, by quadrature."""


def world(rng: np.random.Generator, prompts: int, gain: float, slope: float, of_prompt: float = 0.5) -> Rows:
    """Return outcomes, relative differences in length, and prompts, of four answers against four on each prompt.

    New answers are a third longer on average; prompts differ in how long answers are and in how often new ones win.
    """
    level = rng.normal(0, of_prompt, prompts)[:, None, None]
    new = np.exp(rng.normal(3.7, 0.35, (prompts, 4, 1)) + rng.normal(0, 0.3, (prompts, 1, 1))).round() + 1
    old = np.exp(rng.normal(3.4, 0.35, (prompts, 1, 4)) + rng.normal(0, 0.3, (prompts, 1, 1))).round() + 1
    gap = (new - old) / (new + old)
    won = rng.random(gap.shape) < expit(gain + slope * gap + level)
    return won.astype(float).ravel(), gap.ravel(), np.repeat(np.arange(prompts), 16)


def test_the_truth_is_worked_out_by_quadrature() -> None:
    at, weight = np.polynomial.hermite_e.hermegauss(40)
    for gain, truth in TRUTH.items():
        assert np.average(expit(gain + 0.5 * at), weights=weight) == pytest.approx(truth, abs=1e-4)


@pytest.mark.parametrize(("gain", "slope"), [(0.0, 4.0), (0.7, 0.0), (0.7, 4.0)])
def test_length_alone_comes_to_half_and_a_gain_stays(gain: float, slope: float) -> None:
    rng = np.random.default_rng(0)
    found, raw = [], []
    for _ in range(20):
        rows = world(rng, 130, gain, slope)
        found.append(regression(*rows)[0].estimate)
        raw.append(rows[0].mean())
    assert np.mean(found) == pytest.approx(TRUTH[gain], abs=0.012)
    # Length alone wins 60 % and more: the plain rate is off by what the regression takes away, and by nothing else.
    assert (abs(np.mean(raw) - TRUTH[gain]) > 0.05) == (slope > 0)


def test_it_is_the_penalised_likelihood_s_maximum() -> None:
    """Against a minimiser that knows the likelihood and Firth's penalty, and no derivative."""
    won, gap, prompts = world(np.random.default_rng(1), 20, 0.5, 3.0)
    keep = np.random.default_rng(2).random(len(won)) < 0.7  # so that prompts have different numbers of pairs
    won, gap, prompts = won[keep], gap[keep], prompts[keep]
    x = np.stack([np.ones_like(gap), gap], axis=1)
    weight = 1 / np.bincount(prompts)[prompts]

    def loss(theta: np.ndarray) -> float:
        p = expit(x @ theta)
        information = (x * (weight * p * (1 - p))[:, None]).T @ x
        likelihood = np.sum(weight * (xlogy(won, p) + xlogy(1 - won, 1 - p)))
        return float(-likelihood - np.linalg.slogdet(information)[1] / 2)

    best = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10})
    interval, slope = regression(won, gap, prompts)
    assert (interval.estimate, slope) == pytest.approx((expit(best.x[0]), best.x[1]), abs=1e-4)
    # And its spread is that of fits which leave out a prompt each.
    fits = [regression(*(of[prompts != one] for of in (won, gap, prompts)))[0].estimate for one in range(20)]
    error = np.sqrt(19 / 20 * np.sum((np.array(fits) - np.mean(fits)) ** 2))
    assert (interval.high - interval.low) / 2 == pytest.approx(2.093 * error, rel=0.1)


def coverage(studies: int, prompts: int, gain: float = 0.7, slope: float = 4.0) -> float:
    rng = np.random.default_rng(prompts)
    inside = [not regression(*world(rng, prompts, gain, slope))[0].excludes(TRUTH[gain]) for _ in range(studies)]
    return float(np.mean(inside))


def test_the_interval_covers() -> None:
    assert 0.91 <= coverage(150, 30) <= 1.0


@pytest.mark.long
@pytest.mark.parametrize("prompts", [10, 30, 130])
@pytest.mark.parametrize("gain", [0.0, 0.7])
def test_the_interval_covers_in_many_studies(prompts: int, gain: float) -> None:
    assert 0.93 <= coverage(1000, prompts, gain) <= 0.99


def version(answer: Make, rng: np.random.Generator, author: str, low: int, high: int) -> list[list[Answer]]:
    texts = [["x" * int(n) for n in row] for row in rng.integers(low, high, (100, 4))]
    return [[answer(str(i), text, author) for text in row] for i, row in enumerate(texts)]


def longer(prompt: Dialogue, first: Response, second: Response) -> float:
    gap = len(first.text) - len(second.text)
    return 0.5 if gap == 0 else float(gap > 0)


def test_a_taste_that_length_decides_wholly_comes_to_half(answer: Make) -> None:
    """A step is no logistic curve, and the likelihood without a penalty has no maximum."""
    rng = np.random.default_rng(3)
    before, after = version(answer, rng, "old", 20, 60), version(answer, rng, "new", 35, 90)
    found = win_rate_at_equal_length(before, after, longer)
    assert found.can_tell and found.interval.estimate == pytest.approx(0.5, abs=0.02)
    assert not found.interval.excludes(0.5)
    assert found.slope > 1
    back = win_rate_at_equal_length(after, before, longer)
    assert back.interval.estimate == pytest.approx(1 - found.interval.estimate, abs=1e-6)
    assert (back.shorter, back.longer) == (found.longer, found.shorter)


def test_what_no_pair_speaks_for_cannot_be_told(answer: Make) -> None:
    rng = np.random.default_rng(4)
    before, after = version(answer, rng, "old", 20, 40), version(answer, rng, "new", 60, 90)
    found = win_rate_at_equal_length(before, after, longer)
    assert (found.shorter, found.longer, found.can_tell) == (0, 100, False)
    assert (found.interval.low, found.interval.high) == (0.0, 1.0)
    alike = win_rate_at_equal_length(before, before, lambda *_: 1.0)
    assert alike.interval.high == 1.0 and 0.9 < alike.interval.low < 1.0, "always winning is no proof of it"
    [[one], [other]] = [[[answer("p", text)]] for text in ("xx", "xy")]
    single = win_rate_at_equal_length([one], [other], lambda *_: 0.5)
    assert (single.can_tell, single.interval) == (False, Interval(0.5, 0.0, 1.0))


def test_two_conversations_are_too_few_to_tell_however_many_turns(answer: Make) -> None:
    rng = np.random.default_rng(3)
    before, after = version(answer, rng, "old", 20, 60), version(answer, rng, "new", 35, 90)

    def turns(answers: list[list[Answer]]) -> list[list[Answer]]:
        first = [Turn(Role.USER, text) for text in ("Bread?", "Salt?")]
        return [[replace(a, prompt=(first[n % 2], *a.prompt)) for a in some] for n, some in enumerate(answers)]

    found = win_rate_at_equal_length(turns(before), turns(after), longer)
    assert (found.shorter, found.longer, found.can_tell) == (2, 2, False)
    assert (found.interval.low, found.interval.high) == (0.0, 1.0)


def test_matching_speaks_of_other_prompts_than_the_regression(answer: Make) -> None:
    """Planted: on half of the prompts both write alike and new wins by luck; on the others it writes more, and wins.

    By matching nothing is left. The regression cannot tell what length does from what comes with it either, but here
    its curve is wrong, and it says so by another figure: two readings that disagree are a reason to look.
    """
    rng = np.random.default_rng(5)
    before = version(answer, rng, "old", 30, 34)
    after = version(answer, rng, "new", 30, 34)[:50] + version(answer, rng, "new", 45, 60)[50:]

    def preference(prompt: Dialogue, first: Response, second: Response) -> float:
        return float(rng.random() < (0.5 if int(prompt[0].text) < 50 else 0.9))

    matched = matched_win_rate(before, after, preference, 0.1)
    assert matched.prompts == 50 and matched.interval.estimate == pytest.approx(0.5, abs=0.05)
    found = win_rate_at_equal_length(before, after, preference)
    assert found.interval.estimate == pytest.approx(0.5, abs=0.05)
    assert found.slope > 0.5, "length takes the credit for what came with it"
