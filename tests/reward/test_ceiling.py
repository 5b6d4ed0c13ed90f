"""What disagreement leaves possible: bounds that hold for every crowd, tried on crowds whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.stats import binom

from manners.results.ceiling import Ceiling
from manners.reward.baselines import accuracy
from manners.reward.ceiling import PAIRS, bounds, ceiling
from manners.reward.labelled import Counts, LabelledPair
from manners.types import Response, Role, Turn
from tests.conftest import some

Floats = NDArray[np.float64]


def pair(group: str, left: float, right: float, weight: float = 1.0) -> LabelledPair:
    counts = Counts(float(left), float(right), 0.0)
    drawn = Counts(weight * left, weight * right, 0.0)
    sides = Response("a", "x"), Response("b", "x")
    return LabelledPair(None, (Turn(Role.USER, group),), *sides, counts, counts, 0, group, drawn=drawn)


def pairs(left: Sequence[int] | NDArray[np.int64], verdicts: int | NDArray[np.int64]) -> list[LabelledPair]:
    sizes = np.broadcast_to(verdicts, np.shape(left))
    return [pair(str(i), int(n), int(k - n)) for i, (n, k) in enumerate(zip(left, sizes, strict=True))]


def found(left: Sequence[int] | NDArray[np.int64], verdicts: int, resamples: int = 20) -> Ceiling:
    result = ceiling(pairs(left, verdicts), 0, resamples)
    assert result is not None
    return result


def half_coins(rng: np.random.Generator, n: int) -> Floats:
    """Coins, and pairs about which everybody agrees: the best possible is 75 %."""
    return np.where(np.arange(n) % 2 == 0, 0.5, rng.integers(0, 2, n))


def alike(rng: np.random.Generator, n: int) -> Floats:
    """Every pair is judged alike by 70 %: the best possible is 70 %."""
    return np.where(rng.random(n) < 0.5, 0.7, 0.3)


def beta(rng: np.random.Generator, n: int) -> Floats:
    """A crowd as the fit supposes it, whose best possible is 68.75 %."""
    return rng.beta(2.0, 2.0, n)


CROWDS = {half_coins: 0.75, alike: 0.70, beta: 0.6875}


@pytest.mark.parametrize("crowd", CROWDS)
@pytest.mark.parametrize("verdicts", some([3, 2, 5], 1))
def test_the_bounds_hold_the_truth_of_every_crowd_and_the_fit_does_not(crowd, verdicts: int) -> None:  # type: ignore[no-untyped-def]
    held = fitted = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        best = found(rng.binomial(verdicts, crowd(rng, 400)), verdicts)
        assert best.low_interval and best.high_interval and best.fit_interval
        held += best.low_interval[0] <= CROWDS[crowd] <= best.high_interval[1]
        fitted += best.fit_interval[0] <= CROWDS[crowd] <= best.fit_interval[1]
    assert held >= 11
    if crowd is half_coins:
        assert fitted <= 1, "what was reported until November 2026"


@pytest.mark.parametrize("share", [0.5, 0.58, 0.75, 1.0])
def test_two_verdicts_say_no_more_than_how_often_they_agree(share: float) -> None:
    agreeing = round(100 * share)
    best = found([2] * agreeing + [1] * (100 - agreeing), 2)
    assert best.low == pytest.approx(share)
    assert best.high == pytest.approx((1 + np.sqrt(2 * share - 1)) / 2)


GRID = np.linspace(0, 1, 401)


def programme(moments: Sequence[float], asked: Floats) -> tuple[float, float]:
    """The bounds by a linear programme over the distribution of d, on a grid."""
    z = 1 - GRID**2
    equal = [z ** (m + 1) for m in range(len(moments))] + [np.ones_like(z)]
    worth = asked * (1 + GRID) / 2
    low, high = (linprog(sign * worth, A_eq=equal, b_eq=[*moments, 1.0]) for sign in (1, -1))
    return float(low.fun / (low.x @ asked)), float(-high.fun / (high.x @ asked))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([float(d) for d in GRID[::20]]), min_size=1, max_size=5, unique=True),
    st.sampled_from([(1, False), (1, True), (2, False)]),
)
def test_the_bounds_are_those_of_the_linear_programme(values: list[float], kind: tuple[int, bool]) -> None:
    known, stopped = kind
    z = 1 - np.square(values)
    asked = 2 + (1 - GRID**2) / 2 if stopped else np.ones_like(GRID)
    moments = [float(np.mean(z**m)) for m in range(1, known + 1)]
    low, high = bounds(moments, stopped)
    expected = programme(moments, asked)
    assert (low, high) == pytest.approx(expected, abs=1.5e-3)
    assert low <= high + 1e-9


def test_more_verdicts_tell_more() -> None:
    """With four a pair, coins beside certainty are told from pairs that are all alike."""
    cells = np.arange(5)
    for chances, best in (((0.5, 1.0), 0.75), ((0.7, 0.7), 0.70)):
        seen = np.mean([binom.pmf(cells, 4, p) + binom.pmf(cells, 4, 1 - p) for p in chances], axis=0) / 2
        left = np.repeat(cells, np.round(seen * 20_000).astype(int))
        result = found(left, 4, resamples=2)
        assert result.moments == 2
        assert (result.low, result.high) == pytest.approx((best, best), abs=1e-2)


def test_the_ceiling_weighs_pairs_as_the_accuracy_does() -> None:
    """Coins with two verdicts, and certain pairs with six that weigh half: who knows everything is on the bound."""
    coins = [pair(f"coin {i}", *((2, 0), (1, 1), (1, 1), (0, 2))[i % 4]) for i in range(60)]
    made = coins + [pair(f"sure {i}", 6, 0, 0.5) for i in range(60)]
    best = ceiling(made, 0, 2)
    assert best is not None
    assert accuracy(np.ones(120), made, 0).estimate == pytest.approx((60 + 180) / (120 + 180))
    assert best.low == pytest.approx(0.8)


def test_where_asking_stops_at_agreement_a_third_verdict_is_no_sign_of_a_pairs_own() -> None:
    rng = np.random.default_rng(3)
    # Verdicts weigh alike: coins get 2.5 on average and certain pairs 2.
    for crowd, truth in ((np.full(4000, 0.5), 0.5), (half_coins(rng, 4000), (2.5 * 0.5 + 2.0) / 4.5)):
        first = rng.binomial(2, crowd)
        third = rng.binomial(1, crowd)
        left = np.where(first == 1, first + third, first)
        sizes = np.where(first == 1, 3, 2)
        best = ceiling(pairs(left, sizes), 0, 20)
        assert best is not None and best.low_interval and best.high_interval
        assert best.low_interval[0] <= truth <= best.high_interval[1]
        assert best.low == pytest.approx(truth, abs=0.02)


def test_it_needs_disagreement_to_look_at() -> None:
    assert ceiling([pair(str(i), 1, 0) for i in range(100)], 0) is None
    assert ceiling([pair(str(i), 2, 0) for i in range(PAIRS - 1)], 0) is None
    unanimous = ceiling([pair(str(i), *((3, 0) if i % 2 else (0, 3))) for i in range(40)], 0, resamples=10)
    assert unanimous is not None and unanimous.low == unanimous.high == 1.0
    assert unanimous.fit is not None and unanimous.fit > 0.99


def test_of_real_annotators_it_lies_where_two_simple_figures_put_it(shared_data: Path) -> None:
    made = []
    for line in (shared_data / "pandalm_testset" / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        labels = [vote["label"] for vote in row["votes"]]
        made.append(pair(row["prompt"], labels.count("a"), labels.count("b")))
    assert len(made) == 999
    best = ceiling(made, 0, resamples=20)
    assert best is not None and best.low is not None and best.high is not None and best.fit is not None
    several = [p.counts for p in made if p.counts.decided >= 2]
    majority = sum(max(c.left, c.right) for c in several) / sum(c.decided for c in several)
    assert 0.9 < best.low <= best.fit <= best.high
    assert best.low <= majority, "whose winner is partly luck"
