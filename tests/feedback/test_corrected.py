"""A judge's figures after correction: by hand, and whether the intervals hold the truth of simulated studies."""

import math

import numpy as np
import pytest
from scipy import stats

from manners.errors import MannersError
from manners.feedback.corrected import Corrected, prediction_powered, rogan_gladen
from manners.types import Interval

STUDIES = 1000


def test_a_rate_is_corrected_as_by_hand() -> None:
    # 40 of 100 by the judge; of 20 that people affirm it finds 18, of 30 that they deny it rejects 24.
    checked = [1] * 18 + [0] * 2 + [0] * 24 + [1] * 6
    found = rogan_gladen([1] * 40 + [0] * 60, checked, [1] * 20 + [0] * 30)
    # (0.4 + 0.8 - 1) / (0.9 + 0.8 - 1)
    assert found.corrected.estimate == pytest.approx(0.2 / 0.7)
    assert found.human.estimate == pytest.approx(0.4)
    assert found.raw == pytest.approx((40 + 24) / 150)


def test_a_judge_that_errs_less_than_where_it_was_checked_makes_nothing_certain() -> None:
    """Of 60 it names 57, and of those it was checked on it found 60 % of the yes: 57 are more than it could."""
    checked = [1] * 60 + [0] * 40 + [0] * 98 + [1] * 2
    human = [1] * 100 + [0] * 100
    many = rogan_gladen([1] * 57 + [0] * 3, checked, human).corrected
    assert many.estimate == many.high == 1.0
    plainly = stats.binomtest(57, 60).proportion_ci(method="wilson").low
    assert plainly - 0.02 < many.low < plainly, "some of them may be the 2 % that it takes for one"
    few = rogan_gladen([0] * 60, [1] * 90 + [0] * 10 + [0] * 80 + [1] * 20, human).corrected
    plainly = stats.binomtest(0, 60).proportion_ci(method="wilson").high
    assert few.estimate == few.low == 0.0 and plainly < few.high < plainly / 0.85, "of ten it finds nine"


def test_the_interval_of_a_large_study_is_the_delta_methods() -> None:
    # p = 0.5, se = 0.9, sp = 0.8, q = 0.45 + 0.1 = 0.55.
    checked = [1] * 9000 + [0] * 1000 + [0] * 8000 + [1] * 2000
    found = rogan_gladen([1] * 55000 + [0] * 45000, checked, [1] * 10000 + [0] * 10000).corrected
    variance = (0.55 * 0.45 / 1e5 + 0.25 * 0.09 / 1e4 + 0.25 * 0.16 / 1e4) / 0.49
    assert found.estimate == pytest.approx(0.5)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * math.sqrt(variance), rel=1e-3)


@pytest.mark.parametrize(
    ("checked", "human"),
    [([1, 0] * 25, [1, 1, 0, 0] * 12 + [1, 0]), ([1] * 20, [1] * 20), ([0] * 30 + [1] * 3, [0] * 33)],
    ids=["a coin", "only yes", "only no"],
)
def test_a_judge_that_says_nothing_has_no_interval(checked: list[int], human: list[int]) -> None:
    found = rogan_gladen([1, 0, 1] * 50, checked, human)
    assert (found.corrected.low, found.corrected.high) == (0, 1) and found.saved == 0


def test_a_mean_is_corrected_as_by_hand() -> None:
    # var f = 0.25 * 12 / 11 over all twelve, cov(Y, f) = 1.5 / 5 = 0.3, lambda = 0.3 / (2 * 3 / 11) = 0.55.
    found = prediction_powered([1, 0, 1, 0, 1, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0])
    assert found.corrected.estimate == pytest.approx(0.5)
    residuals = 6 * (0.5 * 0.45) ** 2  # Y - 0.5 - 0.55 (f - 0.5) is 0.225 either way
    half = stats.t.ppf(0.975, 4) * math.sqrt(0.55**2 * (3 / 11) / 6 + residuals / (4 * 6))
    assert found.corrected.high - found.corrected.estimate == pytest.approx(half)


def test_a_shifted_judge_is_moved_back() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000)
    judge = truth + 3
    found = prediction_powered(judge[200:], judge[:200], truth[:200])
    assert found.raw > 2.9
    # With a perfect judge it is nearly the mean of all 4,000 truths: lambda is 1 / (1 + 200 / 3800).
    assert found.corrected.estimate == pytest.approx(truth.mean(), abs=0.01)
    assert found.saved > 2000


@pytest.mark.parametrize("judge", ["nothing new", "the opposite"])
def test_a_judge_that_knows_nothing_of_people_is_not_listened_to(judge: str) -> None:
    human = [1.0, 0.0] * 20
    checked = [0.5] * 40 if judge == "nothing new" else [0.0, 1.0] * 20
    found = prediction_powered([0.9] * 100, checked, human)
    assert found.corrected == found.human and found.saved == 0


@pytest.mark.parametrize("correct", [prediction_powered, rogan_gladen])
def test_too_few_checked_are_refused_with_what_to_do(correct: object) -> None:
    with pytest.raises(MannersError, match="at least 5 that people checked, and there are 3: let people judge"):
        correct([1, 0], [1, 0, 1], [1, 0, 0])  # type: ignore[operator]


def test_lists_of_different_things_are_refused() -> None:
    with pytest.raises(ValueError, match="of the same things"):
        prediction_powered([1], [1, 0], [1, 0, 0, 1, 1])
    with pytest.raises(ValueError, match="0 and 1"):
        rogan_gladen([0.5], [1, 0, 1, 0, 1], [1, 0, 1, 0, 1])


def test_what_a_judge_saved_is_what_the_width_says() -> None:
    # Half as wide is worth four times as many: three times as many saved.
    found = Corrected(Interval(0.5, 0.45, 0.55), Interval(0.5, 0.4, 0.6), 0.7, 100, 900)
    assert found.saved == 300
    assert "saved 300 human verdicts" in found.sentence and "0.700" in found.sentence


def binary(rng: np.random.Generator, rate: float, se: float, sp: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """People's answers, and those of a judge with a stated sensitivity and specificity."""
    people = rng.random(size) < rate
    judge = np.where(people, rng.random(size) < se, rng.random(size) > sp)
    return people.astype(float), judge.astype(float)


@pytest.mark.long
@pytest.mark.parametrize("correct", [prediction_powered, rogan_gladen])
@pytest.mark.parametrize(
    ("rate", "se", "sp", "checked", "good"),
    [
        (0.6, 0.96, 0.96, 150, True),
        (0.3, 0.9, 0.9, 200, None),
        (0.5, 0.75, 0.7, 200, False),
        (0.55, 0.97, 0.97, 60, True),
    ],
)
def test_corrected_rates_hold_the_truth(
    correct: object, rate: float, se: float, sp: float, checked: int, good: bool | None
) -> None:
    rng = np.random.default_rng(5)
    held = narrower = raw_held = 0
    for _ in range(STUDIES):
        people, judge = binary(rng, rate, se, sp, checked + 1500)
        found = correct(judge[checked:], judge[:checked], people[:checked])  # type: ignore[operator]
        held += found.corrected.low <= rate <= found.corrected.high
        narrower += found.corrected.high - found.corrected.low < found.human.high - found.human.low
        raw_held += abs(found.raw - rate) < 1.96 * math.sqrt(found.raw * (1 - found.raw) / (1500 + checked))
    few = correct is rogan_gladen and checked < 100  # about one error of each kind is met: wide, rather than too sure
    assert 0.92 <= held / STUDIES <= (1 if few else 0.98)
    if good or (good is None and correct is prediction_powered):
        # Rogan and Gladen's rate makes no use of what people say on their own: it takes a better judge to be narrower.
        assert narrower / STUDIES > 0.95
    if good is False:
        assert raw_held / STUDIES < 0.6  # what the judge's own figure would be worth


@pytest.mark.long
def test_corrected_win_rates_with_ties_and_few_checked_hold_the_truth() -> None:
    rng = np.random.default_rng(6)
    held = narrower = 0
    for _ in range(STUDIES):
        # Wins, ties and losses of shares 0.5, 0.2 and 0.3; the judge sees them blurred, and likes everything.
        people = rng.choice([1.0, 0.5, 0.0], p=[0.5, 0.2, 0.3], size=630)
        judge = np.clip(people + rng.normal(0.1, 0.25, size=630), 0, 1)
        found = prediction_powered(judge[30:], judge[:30], people[:30])
        held += found.corrected.low <= 0.6 <= found.corrected.high
        narrower += found.corrected.high - found.corrected.low < found.human.high - found.human.low
    assert 0.92 <= held / STUDIES <= 0.98 and narrower / STUDIES > 0.95
