"""Intervals must cover; scipy, simulation and arithmetic are the oracles."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from manners.errors import MannersError
from manners.feedback.statistics import (
    Decision,
    bootstrapped,
    cluster_bootstrap,
    cluster_bootstrap_share,
    clustered_mean,
    clustered_share,
    effective_number,
    holm,
    mean_estimate,
    pair_agreement,
    paired_bootstrap_difference,
    percent,
    resampled,
    wilson,
)
from manners.types import Annotator, AnnotatorKind, Choice, DrawnHow, Interval, Verdict


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_scipys(n: int, share: float, level: float) -> None:
    wins = round(share * n)
    ours, theirs = wilson(wins, n, level), stats.binomtest(wins, n).proportion_ci(level, method="wilson")
    assert (ours.estimate, ours.low, ours.high) == pytest.approx((wins / n, theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= ours.estimate <= ours.high <= 1


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=40), st.floats(-1, 1))
def test_a_mean_is_read_by_students_t_as_scipy_does(values: list[float], limit: float) -> None:
    if np.std(values) < 1e-6:
        values = [*values, max(values) + 1]
    found = mean_estimate(values)
    theirs = stats.ttest_1samp(values, limit, alternative="greater")
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    ours = found.interval
    assert (ours.estimate, ours.low, ours.high) == pytest.approx((np.mean(values), low, high), rel=1e-6, abs=1e-9)
    assert found.p_above(limit) == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)


def test_a_weighted_mean_by_hand_and_one_without_spread() -> None:
    # Mean (1 + 2 * 4) / 3 = 3; residuals -2 and 2; error sqrt(2 * 8) / 3 = 4/3; 9/5 values in effect.
    found = mean_estimate([1, 4], [1, 2])
    assert (found.value, found.error, found.freedom) == pytest.approx((3, 4 / 3, 1.0))
    same = mean_estimate([2, 2, 2])
    assert (same.p_above(1.9), same.p_above(2.0)) == (0.0, 1.0)
    with pytest.raises(MannersError, match="there are 1"):
        mean_estimate([1])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9, 0.02]) == pytest.approx([1.0, 1.0, 0.06])
    assert holm([0.2]) == [0.2] and holm([]) == []
    assert holm([0.6, 0.9]) == [1.0, 1.0]  # twice 0.6 is no probability
    # 0.02 / 3 comes first, times 5; then 0.01, times what is left, 2; then 0.04.
    assert holm([0.01, 0.02, 0.04], [1, 3, 1]) == pytest.approx([1 / 30, 1 / 30, 0.04])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_its_steps_do(p_values: list[float], level: float) -> None:
    rejected = set[int]()
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] * (len(p_values) - step) > level:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 20)), min_size=1, max_size=10), st.floats(0.001, 0.5))
def test_what_weighs_more_is_given_more_of_the_level(told: list[tuple[float, int]], level: float) -> None:
    """By its steps: what is left shares the level by weight; and of equal weights it is the plain procedure."""
    left, rejected = dict(enumerate(told)), set[int]()
    while left:
        index, (p, weight) = min(left.items(), key=lambda item: item[1][0] / item[1][1])
        if p * sum(w for _, w in left.values()) / weight > level:
            break
        rejected.add(index)
        del left[index]
    ps, weights = [p for p, _ in told], [w for _, w in told]
    assert {i for i, p in enumerate(holm(ps, weights)) if p <= level} == rejected
    assert holm(ps, [weights[0]] * len(ps)) == pytest.approx(holm(ps))


def test_wilson_of_nothing_and_of_halves() -> None:
    assert wilson(0, 0) == Interval(0.5, 0.0, 1.0)
    assert wilson(2.5, 5).estimate == 0.5
    with pytest.raises(ValueError, match="0\\.\\.n"):
        wilson(3, 2)


def test_a_rate_is_better_or_worse_only_where_its_whole_interval_is() -> None:
    rates = Interval(0.7, 0.6, 0.8), Interval(0.3, 0.2, 0.4), Interval(0.6, 0.5, 0.7), Interval(0.4, 0.3, 0.5)
    unsure = Decision.CANNOT_TELL  # one half is within the interval that ends there
    assert [Decision.of(rate) for rate in rates] == [Decision.BETTER, Decision.WORSE, unsure, unsure]


def test_a_rate_is_written_in_percent() -> None:
    assert percent(Interval(0.5, 0.125, 0.75)) == "50.0 % (95 % interval 12.5 to 75.0)"


def test_cluster_bootstrap_by_hand() -> None:
    # Clusters a = (1, 3) and b = (8): resamples are aa (mean 2), ab (4), ba (4), bb (8).
    interval = cluster_bootstrap([1, 3, 8], ["a", "a", "b"], 4000, 0)
    # Their standard deviation is sqrt(19) / 2; with one degree of freedom Student's t is 12.7, and two clusters vary by
    # half of what they should. What an interval of two says is: nothing.
    half = 12.7062 * sqrt(2 * 19 / 4)
    assert interval.estimate == 4.0
    assert (interval.low, interval.high) == pytest.approx((4 - half, 4 + half), rel=0.02)
    weighted = cluster_bootstrap([1, 3, 8], ["a", "a", "b"], 100, 0, weights=[1, 1, 6])
    assert weighted.estimate == 6.5
    assert cluster_bootstrap([1, 3, 8, 99], [0, 0, 1, 2], 4000, 0, weights=[1, 1, 1, 0]) == interval


@pytest.mark.parametrize("clusters", [5, 10, 40])
def test_the_ends_are_students_where_clusters_are_normal(clusters: int) -> None:
    values = np.random.default_rng(clusters).normal(3.0, 2.0, clusters)
    found = cluster_bootstrap(values, np.arange(clusters), 20_000, 0)
    exact = stats.t(clusters - 1, values.mean(), values.std(ddof=1) / sqrt(clusters)).interval(0.95)
    assert (found.low, found.high) == pytest.approx(exact, rel=0.15)
    assert found.low <= exact[0] + 0.02 and found.high >= exact[1] - 0.02


def test_the_ends_are_quantiles_where_the_figures_are_skewed() -> None:
    # An exponential of mean and standard deviation 1 is above x with chance exp(-x). Twenty clusters: sqrt(20/19) times
    # Student's t of 19, 2.0930, is 2.1474, beyond which a normal lies with chance 0.01588: up to -log 0.01588 = 4.142,
    # which is further than 2.147 standard deviations above the mean, and on the other side less far.
    drawn = -np.log1p(-(np.arange(100_000) + 0.5) / 100_000)
    up, down = bootstrapped(1.0, drawn, 20), bootstrapped(-1.0, -drawn, 20)
    expected = 1 - 2.1474, -log(0.01588)
    assert (up.low, up.high) == pytest.approx(expected, abs=2e-3)
    assert (-down.high, -down.low) == pytest.approx(expected, abs=2e-3)


def test_cluster_bootstrap_covers_where_values_in_a_cluster_are_alike() -> None:
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(60), 4)
    by_cluster = by_value = 0
    for run in range(200):
        values = np.repeat(rng.normal(size=60), 4) + 0.1 * rng.normal(size=240)
        by_cluster += not cluster_bootstrap(values, clusters, 300, run).excludes(0.0)
        by_value += not cluster_bootstrap(values, np.arange(240), 300, run).excludes(0.0)
    assert 0.89 <= by_cluster / 200 <= 0.99
    assert by_value / 200 < 0.8  # what ignoring the clusters would do


def test_cluster_bootstrap_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(4).normal(3, 2, size=400)
    interval = cluster_bootstrap(values, np.arange(400), 8000, 1)
    half = 1.959964 * values.std() / 20
    ends = [interval.low - interval.estimate, interval.high - interval.estimate]
    assert ends == pytest.approx([-half, half], rel=0.06)


def test_resampling_in_blocks_changes_nothing_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=50)
    whole = cluster_bootstrap(values, np.arange(50), 500, 3)
    monkeypatch.setattr("manners.feedback.statistics.CELLS", 1000)
    assert cluster_bootstrap(values, np.arange(50), 500, 3) == whole


def test_no_more_counts_than_allowed_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # All at once 5000 times 100 counts of 8 bytes are 4 MB, and as much again as floats; 10 000 of them are 0.16 MB.
    monkeypatch.setattr("manners.feedback.statistics.CELLS", 10_000)
    tracemalloc.start()
    try:
        resampled(np.ones((100, 1)), 5000, 0)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1_000_000


def test_cluster_bootstrap_refuses_what_bears_no_interval() -> None:
    for clusters in ([], [7, 7]):
        with pytest.raises(MannersError, match="at least 2 independent"):
            cluster_bootstrap([1.0] * len(clusters), clusters, 100, 0)
    with pytest.raises(ValueError, match="finite"):
        cluster_bootstrap([1.0, np.nan], [0, 1], 100, 0)
    with pytest.raises(ValueError, match="equally long"):
        cluster_bootstrap([1.0, 2.0], [0, 1, 2], 100, 0)


def test_share_is_never_certain() -> None:
    ten = stats.binomtest(10, 10).proportion_ci(method="wilson")
    assert cluster_bootstrap_share([1.0] * 10, np.arange(10), 200, 0).low == pytest.approx(ten.low)
    none = stats.binomtest(0, 10).proportion_ci(method="wilson")
    assert cluster_bootstrap_share([0.0] * 10, np.arange(10), 200, 0).high == pytest.approx(none.high)
    above = float(np.nextafter(1.0, 2.0))  # what the rounding of a sum may make of one
    assert cluster_bootstrap_share([above] * 10, np.arange(10), 200, 0) == wilson(10, 10)
    mixed = [0.0, 1.0] * 10
    assert cluster_bootstrap_share(mixed, np.arange(20), 200, 0) == cluster_bootstrap(mixed, np.arange(20), 200, 0)


def test_the_ends_of_a_share_are_shares() -> None:
    # Of 5 clusters, 4 of them at 1: 0.8 +- 2.776 * sqrt(0.16 / 4) is 0.24 to 1.36, and 0.2 mirrors it.
    high, low = (cluster_bootstrap_share([other, *[one] * 4], np.arange(5), 4000, 0) for one, other in ((1, 0), (0, 1)))
    assert (high.high, low.low) == (1.0, 0.0)
    assert (high.low, low.high) == pytest.approx((0.24, 0.76), abs=0.06)


def test_paired_difference_has_the_sign_of_after_and_gains_from_pairing() -> None:
    rng = np.random.default_rng(4)
    before = rng.normal(size=100) * 10
    difference = paired_bootstrap_difference(before, before + 1 + 0.1 * rng.normal(size=100), np.arange(100), 500, 0)
    assert 0.95 < difference.low < difference.estimate < difference.high < 1.05


def test_effective_number() -> None:
    assert effective_number([2, 2, 2]) == 3
    assert effective_number([3, 1]) == pytest.approx(1.6)
    assert effective_number([]) == effective_number([0.0]) == 0


def verdicts(choices: str, kind: AnnotatorKind = AnnotatorKind.HUMAN) -> list[Verdict]:
    sides = {"L": Choice.LEFT, "R": Choice.RIGHT, "T": Choice.TIE, "B": Choice.BOTH_BAD, "S": Choice.SKIP}
    return [Verdict(sides[c], Annotator(f"a{i}", kind)) for i, c in enumerate(choices)]


def test_agreement_by_hand() -> None:
    # Of LLR and LRL the third was asked because the first two differ, or not; LT and R hold no pair.
    agreement = pair_agreement([verdicts(c) for c in ("LLR", "LRL", "TLSL", "LT", "R", "LR", "RR")], 500, 0)
    assert agreement.estimate == pytest.approx((1 + 0 + 1 + 0 + 1) / 5)
    corrected = [*verdicts("LR"), Verdict(Choice.LEFT, Annotator("a1", AnnotatorKind.HUMAN))]
    assert pair_agreement([corrected, verdicts("LL")], 100, 0).estimate == 1
    drawn = [replace(verdicts("RR")[0], drawn=DrawnHow.DISAGREEMENT), verdicts("RRR")[1], verdicts("RRR")[2]]
    assert pair_agreement([drawn, verdicts("LR"), verdicts("LR")], 100, 0).estimate == 0, "nobody stands in for it"


def test_agreement_of_coins_is_half() -> None:
    rng = np.random.default_rng(5)
    agreement = pair_agreement([verdicts("".join(rng.choice(["L", "R"], 3))) for _ in range(300)], 300, 0)
    assert not agreement.excludes(0.5)
    assert agreement.high - agreement.low < 0.15


def test_agreement_refuses_mixed_kinds_and_too_little() -> None:
    with pytest.raises(MannersError, match="human, simulated"):
        pair_agreement([verdicts("LL"), verdicts("LL", AnnotatorKind.SIMULATED)], 100, 0)
    with pytest.raises(MannersError, match="decided by two annotators, and there are 1: let more annotators"):
        pair_agreement([verdicts("LL"), verdicts("L")], 100, 0)


def test_a_clustered_share_by_hand() -> None:
    # Prompts at 1, 0.5 and 0.5: mean 2/3; residuals 1/3, -1/6, -1/6; V = 3/2 * (1/6) / 9 = 1/36; t of 2 = 4.3027.
    found = clustered_share([1, 1, 0.5, 0, 1], ["a", "a", "b", "c", "c"], [0.5, 0.5, 1, 0.5, 0.5])
    n, z = (2 / 9) * 36, 4.302653
    middle, half = 2 / 3 + z * z / (2 * n), z * (2 / 9 / n + z * z / (4 * n * n)) ** 0.5
    expected = 2 / 3, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    assert (found.estimate, found.low, found.high) == pytest.approx(expected, abs=1e-6)
    # Weights that are twice as large say the same; those of one cluster alone count it for less than three.
    doubled = clustered_share([1, 1, 0.5, 0, 1], ["a", "a", "b", "c", "c"], [1, 1, 2, 1, 1])
    assert (doubled.low, doubled.high) == pytest.approx((found.low, found.high))
    assert clustered_share([1.0] * 10, np.arange(10)) == wilson(10, 10)
    with pytest.raises(MannersError, match="there are 1"):
        clustered_share([1.0, 0.0], ["a", "a"])


def test_two_clusters_leave_a_degree_of_freedom_however_unequal() -> None:
    # A win of weight 1, a loss of weight 3: mean 1/4; residuals 3/4, -3/4; V = 2 * (9/8) / 16 = 9/64; n = 4/3; t of 1.
    found = clustered_share([1, 0], [0, 1], [1, 3])
    n, z2 = (3 / 16) / (9 / 64), 12.706205**2
    half = sqrt(z2 * (3 / 16 / n + z2 / (4 * n * n)))
    ends = [(1 / 4 + z2 / (2 * n) + side * half) / (1 + z2 / n) for side in (-1, 1)]
    assert [found.low, found.high] == pytest.approx(ends)


def test_a_share_that_rounding_carries_past_one_is_one() -> None:
    wins = sum([1 / 9] * 9)  # of nine answers to a prompt, each of which won
    assert wins > 1
    assert clustered_share([wins] * 10, np.arange(10)) == wilson(10, 10)


def test_a_clustered_mean_is_a_mean_of_clusters_where_they_are_alike() -> None:
    # Four clusters of two: the t interval of the four means, by scipy.
    values = [1.0, 3.0, 2.0, 2.0, 0.0, 4.0, 5.0, 7.0]
    found = clustered_mean(values, [0, 0, 1, 1, 2, 2, 3, 3])
    means = [2.0, 2.0, 2.0, 6.0]
    low, high = stats.t.interval(0.95, 3, np.mean(means), stats.sem(means))
    assert (found.estimate, found.low, found.high) == pytest.approx((3.0, low, high))
    with pytest.raises(MannersError, match="at least 2 independent groups"):
        clustered_mean([1.0, 2.0], [0, 0])
