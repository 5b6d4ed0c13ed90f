"""Calibration recovers planted parameters, and its errors agree with tables made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from manners.errors import MannersError
from manners.reward.calibrate import (
    Calibration,
    chance_calibration_error,
    confidence,
    cross_calibrated,
    expected_calibration_error,
    fit_temperature,
    reliability,
    verdict_probabilities,
)
from manners.reward.loss import davidson_log_probs

Floats = NDArray[np.float64]
PLANTED = Calibration(temperature=2.5, log_tie=-0.7)


def crowd(pairs: int, verdicts: int, temperature: float, log_tie: float, seed: int = 0) -> tuple[Floats, Floats]:
    """Margins and counts of a crowd that answers by Davidson's model at margin / temperature."""
    rng = np.random.default_rng(seed)
    margins = rng.normal(0, 4, pairs)
    worth = np.exp(margins / temperature)
    tie = math.exp(log_tie) * np.sqrt(worth)
    p = np.stack([worth, np.ones(pairs), tie], axis=1) / (worth + 1 + tie)[:, None]
    return margins, rng.multinomial(verdicts, p).astype(np.float64)


def test_the_same_probabilities_as_the_loss() -> None:
    margins = np.array([-3.0, 0.0, 0.5, 40.0])
    found = verdict_probabilities(margins, PLANTED)
    expected = davidson_log_probs(torch.from_numpy(margins / 2.5), torch.tensor(-0.7, dtype=torch.float64))
    assert found == pytest.approx(torch.stack(expected, dim=-1).exp().numpy())


@pytest.mark.parametrize(("temperature", "log_tie"), [(2.5, -0.7), (0.5, 0.5), (1.0, -2.0)])
def test_planted_temperature_and_tie_parameter_are_recovered(temperature: float, log_tie: float) -> None:
    fit = fit_temperature(*crowd(4000, 3, temperature, log_tie))
    assert fit.temperature == pytest.approx(temperature, rel=0.1)
    assert fit.log_tie == pytest.approx(log_tie, abs=0.15)


def test_two_equations_by_hand() -> None:
    # One margin of 2 with verdicts 8 : 2 : 4. The fit is exact: p_left / p_right = exp(2 / T) = 4, so T = 2 / log 4;
    # p_tie^2 / (p_left p_right) = nu^2 = 16 / 16.
    fit = fit_temperature(np.array([2.0]), np.array([[8.0, 2.0, 4.0]]))
    assert fit.temperature == pytest.approx(2 / math.log(4), rel=1e-3)
    assert fit.log_tie == pytest.approx(0.0, abs=1e-3)


def test_verdicts_that_have_no_best_tie_parameter_end_at_its_bounds() -> None:
    # Its lower bound is a tie in 44,000 verdicts at equal scores; its upper one a verdict for a side in 75.
    never, always = (fit_temperature(np.array([1.0]), np.array([counts])) for counts in ([3.0, 2.0, 0.0], [0, 0, 5.0]))
    ties = [verdict_probabilities(np.zeros(1), Calibration(log_tie=fit.log_tie))[0, 2] for fit in (never, always)]
    assert 1 / ties[0] == pytest.approx(44_000, rel=0.01) and 1 / (1 - ties[1]) == pytest.approx(75, rel=0.01)


def test_left_alone_margins_are_differences_of_log_odds_and_a_tie_is_as_likely_as_a_side_at_equal_scores() -> None:
    assert verdict_probabilities(np.zeros(1), Calibration()) == pytest.approx(np.full((1, 3), 1 / 3))
    [[left, right, _]] = verdict_probabilities(np.array([2.0]), Calibration())
    assert left / right == pytest.approx(math.exp(2))


def test_of_two_groups_each_is_calibrated_by_the_other() -> None:
    # A single margin is fitted exactly, as above: what one group is said to do is what the other one did.
    counts = np.array([[8.0, 2.0, 4.0], [5.0, 1.0, 2.0]])
    found = cross_calibrated(np.array([2.0, 2.0]), counts, ["a", "b"])
    assert found == pytest.approx((counts / counts.sum(axis=1, keepdims=True))[::-1], abs=1e-3)


def test_where_the_likelihood_is_largest_as_many_verdicts_are_expected_as_there_are() -> None:
    # Its slopes are 0 there: in log nu, ties expected less ties seen; in 1/T, the same of the sides, by their margins.
    margins, counts = crowd(60, 3, 0.2, -1.0)
    fit = fit_temperature(margins, counts)
    worth = np.exp(margins / fit.temperature)
    tie = math.exp(fit.log_tie) * np.sqrt(worth)
    expected = counts.sum(axis=1)[:, None] * np.stack([worth, np.ones(60), tie], axis=1) / (worth + 1 + tie)[:, None]
    assert expected[:, 2].sum() == pytest.approx(counts[:, 2].sum(), rel=1e-6)
    lean, seen = ((of[:, 0] - of[:, 1]) @ margins for of in (expected, counts))
    assert lean == pytest.approx(seen, rel=1e-6)


def test_margins_that_are_always_right_end_at_the_other_bound() -> None:
    assert fit_temperature(np.array([0.01]), np.array([[8.0, 0.0, 0.0]])).temperature == pytest.approx(0.01)


def test_margins_that_point_the_wrong_way_end_at_the_bound() -> None:
    margins, counts = crowd(300, 3, 1.0, -1.0)
    assert fit_temperature(-margins, counts).temperature == pytest.approx(100.0)


def test_no_ties_at_all_is_no_difficulty() -> None:
    margins, counts = crowd(500, 3, 1.0, -1.0)
    counts[:, 2] = 0
    fit = fit_temperature(margins, counts)
    assert fit.log_tie < -8
    assert fit.temperature == pytest.approx(1.0, rel=0.3)


def test_nothing_to_calibrate_on() -> None:
    with pytest.raises(MannersError, match="no verdicts to calibrate on"):
        fit_temperature(np.zeros(2), np.zeros((2, 3)))
    with pytest.raises(MannersError, match="at least two prompts"):
        cross_calibrated(np.ones(2), np.ones((2, 3)), ["a", "a"])


def test_out_of_fold_probabilities_do_not_depend_on_the_verdicts_of_their_own_group() -> None:
    margins, counts = crowd(40, 3, 1.0, -1.0)
    groups = [f"prompt {i // 2}" for i in range(40)]
    before = cross_calibrated(margins, counts, groups, seed=1)
    counts[:2] = [[0.0, 0.0, 50.0]] * 2
    after = cross_calibrated(margins, counts, groups, seed=1)
    assert (before[:2] == after[:2]).all()
    assert not np.allclose(before[2:], after[2:])
    assert after.sum(axis=1) == pytest.approx(np.ones(40))


def test_temperature_mends_an_overconfident_model() -> None:
    margins, counts = crowd(2000, 3, PLANTED.temperature, PLANTED.log_tie)
    raw = confidence(verdict_probabilities(margins, Calibration()), counts)
    mended = confidence(cross_calibrated(margins, counts, [str(i) for i in range(2000)]), counts)
    assert expected_calibration_error(*raw) > 0.08
    assert expected_calibration_error(*mended) < 0.02
    chance = chance_calibration_error(*mended, [str(i) for i in range(2000)])
    assert 0 < chance.low < chance.estimate < chance.high < 0.03
    assert not chance.low <= expected_calibration_error(*raw) <= chance.high


def test_calibration_error_of_two_bins_by_hand() -> None:
    # Confidence 0.6 was right in 1 of 4 verdicts, confidence 0.9 in 4 of 4: (4 * 0.35 + 4 * 0.1) / 8.
    p = np.array([0.9, 0.6, 0.6])
    outcomes = np.array([1.0, 0.5, 0.0])
    weights = np.array([4.0, 2.0, 2.0])
    assert expected_calibration_error(p, outcomes, weights, bins=2) == pytest.approx((4 * 0.35 + 4 * 0.1) / 8)
    low, high = reliability(p, outcomes, weights, bins=2)
    assert (low.predicted, low.observed, low.n) == pytest.approx((0.6, 0.25, 4))
    assert (high.predicted, high.observed, high.n) == pytest.approx((0.9, 1.0, 4))
    assert 0 < low.low < 0.25 < low.high < 1
    # Wilson's lower bound of 1 out of an effective 1 is 1 / (1 + 1.96^2).
    assert high.low == pytest.approx(1 / (1 + 1.959964**2))
    assert high.high == pytest.approx(1.0)


def test_bins_hold_equal_masses_and_pairs_without_a_decision_count_for_nothing() -> None:
    p = np.linspace(0.5, 1, 100)
    table = reliability(p, p, np.ones(100), bins=5)
    assert [row.n for row in table] == [20] * 5
    assert [row.n for row in reliability(p, p, np.ones(100))] == [10] * 10
    weights = np.ones(100)
    weights[::2] = 0
    outcomes = np.where(weights > 0, p, 0.0)
    assert expected_calibration_error(p, outcomes, weights, bins=5) == pytest.approx(0.0)
    with pytest.raises(MannersError, match="chooses a side"):
        expected_calibration_error(p, p, np.zeros(100))


def test_what_stands_at_a_border_goes_where_most_of_it_lies() -> None:
    # 2, 4 and 1 of 7 verdicts: the 4 reach over the middle, 1.5 of them before it and 2.5 behind it.
    p, weights = np.array([0.6, 0.7, 0.9]), np.array([2.0, 4.0, 1.0])
    assert [row.n for row in reliability(p, p, weights, bins=2)] == [2, 5]
    assert [row.n for row in reliability(p, p, weights[::-1], bins=2)] == [5, 2]


def test_confidence_is_about_the_response_that_the_model_prefers() -> None:
    probabilities = np.array([[0.6, 0.2, 0.2], [0.1, 0.4, 0.5], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1]])
    counts = np.array([[3.0, 1.0, 5.0], [0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    confident, agreement, weights = confidence(probabilities, counts)
    assert confident == pytest.approx([0.75, 0.8, 0.5, 5 / 9])
    assert agreement == pytest.approx([0.75, 1.0, 0.5, 0.0])
    assert weights == pytest.approx([4, 2, 1, 0])


def test_what_chance_alone_does_by_hand() -> None:
    def chance(outcomes: list[float], groups: str) -> tuple[float, ...]:
        found = chance_calibration_error(np.full(2, 0.6), np.array(outcomes), np.ones(2), list(groups), resamples=4000)
        return found.low, found.estimate, found.high

    assert chance([0.6, 0.6], "ab") == (0, 0, 0), "what never misses has no luck"
    # Both in one bin, and each 0.4 too high or too low: together by 0.4, or not at all.
    low, mean, high = chance([1.0, 1.0], "ab")
    assert (low, high) == pytest.approx((0.0, 0.4)) and mean == pytest.approx(0.2, abs=0.02)
    assert chance([1.0, 1.0], "aa") == pytest.approx((0.4, 0.4, 0.4)), "those of one opening go together"


def test_a_calibrated_model_is_within_luck_where_verdicts_on_a_pair_are_alike() -> None:
    """Of four verdicts each, all alike: drawn one by one, half of such models stood outside."""
    outside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        p = rng.uniform(0.55, 0.95, 80)
        said = (rng.random(80) < p).astype(np.float64), np.full(80, 4.0)
        found = chance_calibration_error(p, *said, [str(n) for n in range(80)], seed=seed)
        outside += expected_calibration_error(p, *said) > found.high
    assert outside <= 6


def test_ten_bins_unless_it_is_said_otherwise() -> None:
    rng = np.random.default_rng(0)
    p, outcomes, weights = rng.uniform(0.5, 1, 99), rng.integers(0, 2, 99).astype(np.float64), np.ones(99)
    measures: list[Callable[..., object]] = [
        lambda *bins: expected_calibration_error(p, outcomes, weights, *bins),
        lambda *bins: chance_calibration_error(p, outcomes, weights, [str(n) for n in range(99)], *bins),
    ]
    for measured in measures:
        assert measured() == measured(10) and measured() not in (measured(9), measured(11))


def test_a_bin_without_a_decision_is_none() -> None:
    # The last prediction is beyond the mass of the others, and so in no bin of theirs.
    p, weights = np.array([0.6, 0.7, 0.9]), np.array([1.0, 1.0, 0.0])
    assert [(row.predicted, row.n) for row in reliability(p, p, weights)] == [(0.6, 1), (0.7, 1)]
