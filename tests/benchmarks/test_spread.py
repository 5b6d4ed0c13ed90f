"""Whether spread tells errors, where it does and where it cannot."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from benchmarks.spread import Answers, between, gains, told, within


def test_the_share_is_that_of_mann_and_whitney() -> None:
    rng = np.random.default_rng(0)
    wrong, prompts = rng.random(200) < 0.3, np.repeat(np.arange(50), 4)
    sign = np.round(rng.normal(size=200) + wrong, 1)  # with ties
    found = told(sign, wrong, prompts)
    expected = mannwhitneyu(sign[wrong], sign[~wrong]).statistic / (wrong.sum() * (~wrong).sum())
    assert found.estimate == pytest.approx(expected) and 0.6 < found.low < found.estimate < found.high < 0.9
    nothing = told(rng.normal(size=200), wrong, prompts)
    assert nothing.low < 0.5 < nothing.high


def test_pairs_and_gains_by_hand() -> None:
    start = Answers(np.zeros((2, 1, 4)), np.zeros((1, 4)), np.array([[0.0, 2.0, 0.0, 2.0]]))
    better = Answers(np.array([[[1.0] * 4], [[2.0] * 4]]), np.full((1, 4), 3.0), start.taste + 2)
    pairs = between(better, start)
    assert pairs.margins.tolist() == [[1.0] * 4, [2.0] * 4] and pairs.truth.tolist() == [2.0] * 4
    assert not pairs.wrong.any()
    assert within(start).truth.tolist() == [-2.0, -2.0] and within(start).wrong.all()
    assert gains(start, better) == "| 1.73 | 1.50 | 1.00, 2.00 | 3.00 |"
