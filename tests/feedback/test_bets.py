"""Bets of comparisons with several verdicts, against integrals, enumeration, and the rule for one verdict each."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import inf, log, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from manners.feedback import statistics
from manners.feedback.bets import decide, e_value, interval, log_wealth
from manners.feedback.statistics import PRIOR, Decision
from manners.types import Interval

some_stakes = st.dictionaries(st.sampled_from([-1, -0.5, -1 / 3, 0, 0.25, 0.5, 1]), st.integers(0, 12))


@settings(max_examples=25)
@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.05, 0.95))
def test_whole_stakes_are_the_rule_for_one_verdict_each(wins: int, losses: int, rate: float) -> None:
    stakes = {1.0: wins, -1.0: losses, 0.0: 7}
    assert e_value(stakes, rate) == pytest.approx(statistics.e_value(wins, losses, rate), rel=1e-8)
    assert decide(stakes) is statistics.decide(wins, losses)
    here, there = interval(stakes), statistics.confidence_sequence(wins, losses)
    assert (here.estimate, here.low, here.high) == pytest.approx((there.estimate, there.low, there.high), abs=1e-8)


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
        assert log_wealth(stakes, 0.45) == pytest.approx(log(statistics.e_value(wins, losses, 0.45)), abs=1e-6)
    assert e_value({1.0: 20_000}) == inf
    assert log_wealth({0.5: 1}, 0.0) == log_wealth({-0.5: 1}, 1.0) == inf
    assert log_wealth({0.5: 1}, 1.0) < 0 > log_wealth({-0.5: 1}, 0.0)


@pytest.mark.parametrize(("stakes", "rate"), [({1.5: 1}, 0.5), ({1.0: 1}, 1.5)])
def test_what_is_no_stake_or_rate_is_refused(stakes: dict[float, int], rate: float) -> None:
    with pytest.raises(ValueError, match="stakes from -1 to 1"):
        log_wealth(stakes, rate)
