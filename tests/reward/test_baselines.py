"""Baselines and learning curve, in worlds whose right answer is known by hand or planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, spearmanr

from manners.errors import MannersError
from manners.reward.baselines import (
    Agreement,
    CurvePoint,
    accuracy,
    accuracy_gain,
    always_left,
    by_agreement,
    characters,
    doubling_gain,
    doubling_sentence,
    length_and_finish,
    length_correlation,
    longer_wins,
    share_at,
    shorter_wins,
)
from manners.reward.labelled import Counts, LabelledPair
from manners.types import FinishReason, Interval, Response, Role, Turn


def pair(
    group: str,
    left: float,
    right: float,
    tie: float = 0.0,
    texts: tuple[str, str] = ("long text", "short"),
    finish: tuple[FinishReason, FinishReason] = (FinishReason.STOP, FinishReason.STOP),
) -> LabelledPair:
    counts = Counts(float(left), float(right), float(tie))
    prompt = (Turn(Role.USER, group),)
    responses = [Response(text, "x", reason) for text, reason in zip(texts, finish, strict=True)]
    return LabelledPair(None, prompt, responses[0], responses[1], counts, counts, 0, group)


def test_accuracy_counts_single_verdicts() -> None:
    pairs = [pair("a", 2, 1), pair("b", 0, 2), pair("c", 1, 0), pair("d", 0, 0, 5)]
    # right on 2 of 3, wrong on 2, half of 1; ties are no decision
    assert accuracy(np.array([1.0, 1.0, 0.0, 1.0]), pairs, 0).estimate == pytest.approx(2.5 / 6)


def test_flipping_the_margins_flips_the_accuracy() -> None:
    rng = np.random.default_rng(0)
    pairs = [pair(str(i), *rng.integers(0, 4, 2)) for i in range(50)]
    margins = rng.normal(size=50)
    there, back = accuracy(margins, pairs, 1), accuracy(-margins, pairs, 1)
    assert there.estimate == pytest.approx(1 - back.estimate)
    assert (there.low, there.high) == pytest.approx((1 - back.high, 1 - back.low))


def test_what_agrees_at_a_level_by_hand() -> None:
    """Four in five: alone, one against one, two and three of one mind, and two of three."""
    told = math.log(4)
    assert share_at(Agreement.SINGLE, told, 1) == pytest.approx(0.8)
    assert share_at(Agreement.SPLIT, told, 2) == pytest.approx(0.5)
    assert share_at(Agreement.UNANIMOUS, told, 2) == pytest.approx(0.64 / 0.68)
    assert share_at(Agreement.UNANIMOUS, told, 3) == pytest.approx(0.512 / 0.52)
    assert share_at(Agreement.MOST, told, 3) == pytest.approx(0.6)
    k = np.array([1, 2, 5, 6])  # of seven, five or six are two thirds and not all: this way, or the other
    chances = binom.pmf(k, 7, 0.8)
    assert share_at(Agreement.MOST, told, 7) == pytest.approx(float(chances @ k / chances.sum() / 7))
    assert share_at(Agreement.UNANIMOUS, 900.0, 200) == 1.0
    assert share_at(Agreement.SPLIT, 0.0, 200) == pytest.approx(0.5)


def test_interval_has_the_width_that_theory_gives() -> None:
    pairs = [pair(str(i), *((1, 0) if i < 280 else (0, 1))) for i in range(400)]
    found = accuracy(np.ones(400), pairs, 0)
    half = 1.96 * math.sqrt(0.7 * 0.3 / 400)
    assert (found.low, found.high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.006)


def test_verdicts_on_one_opening_are_not_independent() -> None:
    apart = [pair(str(i), *((1, 0) if i < 280 else (0, 1))) for i in range(400)]
    together = [pair(str(i // 10), *((1, 0) if i < 280 else (0, 1))) for i in range(400)]
    narrow, wide = (accuracy(np.ones(400), pairs, 0) for pairs in (apart, together))
    # Ten copies of each verdict: as wide as 40 verdicts, the square root of 10 times wider.
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(math.sqrt(10), rel=0.15)


@pytest.mark.parametrize("right", [8, 0])
def test_all_right_or_all_wrong_is_not_certainty(right: int) -> None:
    found = accuracy(np.ones(8), [pair(str(i), 1, 0) if right else pair(str(i), 0, 1) for i in range(8)], 0)
    exact = binomtest(right, 8).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_accuracy_needs_a_decision() -> None:
    with pytest.raises(MannersError, match="no set-aside verdict chooses a side"):
        accuracy(np.ones(1), [pair("a", 0, 0, 3)], 0)


def test_gain_over_a_baseline_is_paired() -> None:
    pairs = [pair(str(i), 1, 0) for i in range(100)]
    margins = np.where(np.arange(100) < 80, 1.0, -1.0)
    baseline = np.where(np.arange(100) < 70, 1.0, -1.0)
    gain = accuracy_gain(margins, baseline, pairs, 0)
    assert gain.estimate == pytest.approx(0.1)
    # They differ on 10 pairs only, all in the same direction: narrower than either accuracy.
    half = 1.96 * math.sqrt(0.1 * 0.9 / 100)
    assert (gain.low, gain.high) == pytest.approx((0.1 - half, 0.1 + half), abs=0.012)
    assert accuracy_gain(margins, margins, pairs, 0).estimate == 0.0


def test_a_gain_that_is_the_same_everywhere_is_not_certainty() -> None:
    """A rule without an opinion, and a model that is right on all of so few openings: one coin in 32 is."""
    few, many = ([pair(str(i), 1, 0) for i in range(n)] for n in (5, 20))
    bound = 0.025 ** (1 / 5)
    gain = accuracy_gain(np.ones(5), np.zeros(5), few, 0)
    assert (gain.estimate, gain.low, gain.high) == pytest.approx((0.5, 0.5 - 1.5 * (1 - bound), 1 - 0.5 * bound))
    assert gain.low < 0 < accuracy_gain(np.ones(20), np.zeros(20), many, 0).low
    assert accuracy(np.zeros(5), few, 0).low == pytest.approx(0.5 * bound)
    busy = [pair("busy", 200, 0), *few]
    assert not accuracy_gain(np.ones(6), np.zeros(6), busy, 0).excludes(0.0), "one opening has nearly all verdicts"


def test_trivial_baselines() -> None:
    pairs = [pair("a", 3, 1), pair("b", 0, 1, texts=("short", "long text")), pair("c", 1, 0, texts=("same", "size"))]
    lengths = characters(pairs)
    assert lengths.tolist() == [[9, 5], [5, 9], [4, 4]]
    assert longer_wins(lengths, pairs, 0).estimate == pytest.approx(4.5 / 6)
    assert shorter_wins(lengths, pairs, 0).estimate == pytest.approx(1.5 / 6)
    assert always_left(pairs, 0).estimate == pytest.approx(4 / 6)


def ruled_pairs(n: int, seed: int) -> list[LabelledPair]:
    """Pairs whose annotators look at nothing but length and finishing: shorter, and above all finished, wins."""
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(n):
        sizes = rng.integers(5, 200, 2)
        cut = rng.random(2) < 0.3
        worth = -0.5 * np.log(sizes) - 3.0 * cut
        left = rng.binomial(3, 1 / (1 + math.exp(worth[1] - worth[0])))
        texts = ("x" * sizes[0], "x" * sizes[1])
        reasons = [FinishReason.LENGTH if is_cut else FinishReason.STOP for is_cut in cut]
        pairs.append(pair(str(i), left, 3 - left, texts=texts, finish=(reasons[0], reasons[1])))
    return pairs


def test_length_and_finish_recovers_its_planted_coefficients() -> None:
    train = ruled_pairs(2000, 0)
    probe = [
        pair("a", 1, 0, texts=("x" * 10, "x" * 27)),
        pair("b", 1, 0, texts=("same", "size"), finish=(FinishReason.UNKNOWN, FinishReason.LENGTH)),
    ]
    margins = length_and_finish(train, characters(train), probe, characters(probe))
    assert margins == pytest.approx([-0.5 * math.log(10 / 27), 3.0], rel=0.15)


def test_length_and_finish_beats_length_alone_where_finishing_matters() -> None:
    train, held_out = ruled_pairs(300, 0), ruled_pairs(300, 1)
    margins = length_and_finish(train, characters(train), held_out, characters(held_out))
    lengths = characters(held_out)
    assert accuracy_gain(margins, lengths[:, 1] - lengths[:, 0], held_out, 0).low > 0
    separable = [pair("a", 1, 0), pair("b", 0, 1, texts=("short", "long text"))]
    assert np.isfinite(length_and_finish(separable, characters(separable), held_out, lengths)).all()


def test_accuracy_by_level_of_agreement() -> None:
    pairs = [pair("a", 3, 0), pair("b", 4, 1), pair("c", 2, 1), pair("d", 3, 2), pair("e", 0, 1), pair("f", 0, 0, 2)]
    levels = by_agreement(np.ones(6), pairs, 0)
    assert [(level.level, level.n) for level in levels] == [
        (Agreement.UNANIMOUS, 1),
        (Agreement.MOST, 2),
        (Agreement.SPLIT, 1),
        (Agreement.SINGLE, 1),
    ]
    assert [level.accuracy.estimate for level in levels] == pytest.approx([1.0, 6 / 8, 3 / 5, 0.0])


def test_length_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    lengths = np.ceil(rng.lognormal(3, 1, 300))
    scores = np.log(lengths) + rng.normal(0, 1.5, 300)
    found = length_correlation(scores, lengths, [str(i) for i in range(300)], 0)
    assert found.estimate == pytest.approx(spearmanr(scores, lengths).statistic)
    # Fisher's transform gives about the width.
    half = 1.96 / math.sqrt(297) * (1 - found.estimate**2)
    assert (found.low, found.high) == pytest.approx((found.estimate - half, found.estimate + half), abs=0.03)
    assert length_correlation(-scores, lengths, ["a"] * 300, 0).estimate == pytest.approx(-found.estimate)


def test_constant_scores_have_no_correlation() -> None:
    assert length_correlation(np.zeros(5), np.arange(5.0), list("abcde"), 0) == Interval(0.0, -1.0, 1.0)


def curve(*accuracies: float, half: float = 0.01) -> list[CurvePoint]:
    return [CurvePoint(250 * 2**i, Interval(y, y - half, y + half)) for i, y in enumerate(accuracies)]


def test_doubling_of_a_straight_line_by_hand() -> None:
    gain = doubling_gain(curve(0.60, 0.63, 0.66))
    assert gain is not None
    # x = -1, 0, 1 about its mean: the slope's standard error is that of a point over the square root of 2.
    assert gain.estimate == pytest.approx(0.03)
    assert gain.high - gain.estimate == pytest.approx(0.01 / math.sqrt(2), rel=1e-3)


def test_an_uncertain_point_weighs_less() -> None:
    points = [*curve(0.60, 0.63), CurvePoint(1000, Interval(0.10, 0.0, 1.0))]
    gain = doubling_gain(points)
    assert gain is not None and gain.estimate == pytest.approx(0.03, abs=0.01)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (
            curve(0.60, 0.63, 0.66),
            "Doubling the 1,000 verdicts would buy about +3.0 points of accuracy (95 % int",
        ),
        (curve(0.60, 0.61, 0.60), "Cannot tell what doubling the 1,000 verdicts would buy: +0.0 points"),
        (
            curve(0.66, 0.63, 0.60),
            "More verdicts like these would not help: doubling the 1,000 would change -3.0",
        ),
        (curve(0.60), "Cannot tell what more verdicts would buy"),
    ],
)
def test_the_sentence_about_doubling(points: list[CurvePoint], words: str) -> None:
    assert doubling_sentence(points).startswith(words)
