"""Bets survive peeking; integrals, enumeration, simulation and the closed form for whole stakes are the oracles."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import product
from math import inf, log, log1p, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from scipy.special import betaln

from manners.errors import MannersError
from manners.feedback.bets import PRIOR, decide, detectable_win_rate, e_value, interval, log_wealth
from manners.feedback.statistics import Decision
from manners.types import Interval


def likelihood_ratio(wins: int, losses: int, rate: float) -> float:
    """Its logarithm: win rates from Beta(PRIOR, PRIOR) over `rate`."""
    mixture = betaln(PRIOR + wins, PRIOR + losses) - betaln(PRIOR, PRIOR)
    return float(mixture - wins * log(rate) - losses * log1p(-rate))


some_stakes = st.dictionaries(st.sampled_from([-1, -0.5, -1 / 3, 0, 0.25, 0.5, 1]), st.integers(0, 12))


@settings(max_examples=25)
@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.05, 0.95))
def test_whole_stakes_come_to_the_likelihood_ratio_of_the_mixture(wins: int, losses: int, rate: float) -> None:
    stakes = {1.0: wins, -1.0: losses, 0.0: 7}
    assert log_wealth(stakes, rate) == pytest.approx(likelihood_ratio(wins, losses, rate), rel=1e-8, abs=1e-8)
    said = likelihood_ratio(wins, losses, 0.5) >= log(20)
    assert (decide(stakes) is not Decision.CANNOT_TELL) == said


@settings(max_examples=30)
@given(some_stakes, st.floats(0.1, 0.9))
def test_the_wealth_is_the_mean_over_the_prior(stakes: dict[float, int], rate: float) -> None:
    def bettor(p: float) -> float:
        won = {True: p / rate, False: (1 - p) / (1 - rate)}
        factors = ((1 - abs(s) + abs(s) * won[s > 0]) ** n for s, n in stakes.items())
        return float(prod(factors) * stats.beta.pdf(p, PRIOR, PRIOR))

    expected, _ = integrate.quad(bettor, 0, 1, limit=300, epsrel=1e-9)
    assert log_wealth(stakes, rate) == pytest.approx(log(expected), abs=1e-6)


@pytest.mark.parametrize("rate", [0.5, 0.7])
def test_a_bettor_against_the_truth_gains_nothing_on_average(rate: float) -> None:
    # A quarter is staked on average, and `rate` of it is won.
    won = {1.0: 0.15 * rate, 0.5: 0.2 * rate}
    lost = {-1.0: 0.1 * (1 - rate), -0.25: 0.6 * (1 - rate)}
    chances = won | lost
    assert sum(s * p for s, p in won.items()) / sum(abs(s) * p for s, p in chances.items()) == pytest.approx(rate)
    chances[0.0] = 1 - sum(chances.values())
    mean = sum(prod(chances[s] for s in drawn) * e_value(Counter(drawn), rate) for drawn in product(chances, repeat=4))
    assert mean == pytest.approx(1.0)


@settings(max_examples=25)
@given(some_stakes)
def test_interval_decision_and_symmetry_agree(stakes: dict[float, int]) -> None:
    here, there = interval(stakes), interval({-s: n for s, n in stakes.items()})
    assert (here.low, here.high) == pytest.approx((1 - there.high, 1 - there.low), abs=1e-9)
    assert 0 <= here.low <= here.estimate <= here.high <= 1
    assert decide(stakes) is Decision.of(here)
    if here.low > 0:
        assert e_value(stakes, here.low) == pytest.approx(20, rel=1e-6)


def test_who_disagrees_stakes_less() -> None:
    assert decide({1.0: 12}) is Decision.BETTER
    assert decide({-1.0: 12}) is Decision.WORSE
    assert decide({1 / 3: 12}) is Decision.CANNOT_TELL
    assert interval({1 / 3: 12}).estimate == 1.0
    assert decide({0.0: 1000}) is decide({}) is Decision.CANNOT_TELL
    assert interval({0.0: 1000}) == interval({}) == Interval(0.5, 0.0, 1.0)
    assert decide({1.0: 40, -1.0: 10}, level=1 - 1e-9) is Decision.CANNOT_TELL


def test_a_thousand_bets_are_counted_as_closely_as_one() -> None:
    for wins, losses in ((600, 500), (5000, 4800)):
        stakes = {1.0: wins, -1.0: losses}
        assert log_wealth(stakes, 0.45) == pytest.approx(likelihood_ratio(wins, losses, 0.45), abs=1e-6)
    assert e_value({1.0: 20_000}) == inf
    assert log_wealth({0.5: 1}, 0.0) == log_wealth({-0.5: 1}, 1.0) == inf
    assert log_wealth({0.5: 1}, 1.0) < 0 > log_wealth({-0.5: 1}, 0.0)


@pytest.mark.parametrize(("stakes", "rate"), [({1.5: 1}, 0.5), ({1.0: 1}, 1.5)])
def test_what_is_no_stake_or_rate_is_refused(stakes: dict[float, int], rate: float) -> None:
    with pytest.raises(ValueError, match="stakes from -1 to 1"):
        log_wealth(stakes, rate)


@cache
def whole(wins: int, losses: int) -> Decision:
    return decide({1.0: wins, -1.0: losses})


def test_peeking_after_every_verdict_keeps_the_false_alarm_rate() -> None:
    rng = np.random.default_rng(6)
    alarms = naive = missed = 0
    for _ in range(300):
        wins = np.cumsum(rng.random(300) < 0.5)
        looks = [(int(w), n - int(w)) for n, w in enumerate(wins, start=1)]
        alarms += any(whole(w, lost) is not Decision.CANNOT_TELL for w, lost in looks)
        naive += any(n > 10 and abs(2 * w - n) > 1.96 * n**0.5 for n, w in enumerate(wins, start=1))
        missed += any(interval({1.0: w, -1.0: lost}).excludes(0.5) for w, lost in looks[::100])
    assert alarms / 300 <= 0.05
    assert missed <= alarms
    assert naive / 300 > 0.15  # what the fixed-sample test does under the same peeking


def test_detectable_win_rate_is_what_simulation_detects() -> None:
    rate = detectable_win_rate(100, power=0.8)
    rng = np.random.default_rng(7)
    found = 0
    for _ in range(400):
        wins = np.cumsum(rng.random(100) < rate)
        said = (whole(int(w), n - int(w)) for n, w in enumerate(wins, start=1))
        found += next((d for d in said if d is not Decision.CANNOT_TELL), None) is Decision.BETTER
    assert found / 400 == pytest.approx(0.8, abs=0.06)
    assert detectable_win_rate(400) < rate < detectable_win_rate(100, power=0.95)


def test_too_few_comparisons_are_refused_with_the_number_needed() -> None:
    with pytest.raises(MannersError, match="at least 10"):
        detectable_win_rate(9)
    assert 0.5 < detectable_win_rate(10) <= 1
