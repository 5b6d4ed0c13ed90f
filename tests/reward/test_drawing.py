"""What the queue drew is weighted back to what a random sample would have shown: exactly, and in a planted queue."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.evidence._planted_queue import TRUTH, asked
from manners.reward.baselines import accuracy
from manners.reward.drawing import draw_weight
from manners.reward.labelled import LabelledPair
from manners.reward.verdicts import label
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    DrawnHow,
    Response,
    Role,
    Turn,
    Verdict,
)

ANNA = Annotator("Anna", AnnotatorKind.HUMAN)
INTEREST = np.array([6.0, 3.0, 1.0, 1.0, 0.5])
WORTH = np.array([1.0, 0.0, 5.0, 2.0, -3.0])


def verdict(drawn: DrawnHow | None, probability: float | None = None, pool: int | None = None) -> Verdict:
    return Verdict(Choice.LEFT, ANNA, drawn=drawn, draw_probability=probability, draw_pool=pool)


def orders(left: tuple[int, ...], draws: int) -> Iterator[tuple[float, list[tuple[int, float, int]]]]:
    """Every order in which some are drawn by interest: its chance; and of each who it was, its chance, and its pool."""
    if not draws:
        yield 1.0, []
        return
    total = INTEREST[list(left)].sum()
    for one in left:
        chance = float(INTEREST[one] / total)
        for rest, drawn in orders(tuple(other for other in left if other != one), draws - 1):
            yield chance * rest, [(one, chance, len(left)), *drawn]


@pytest.mark.parametrize("draws", [1, 2, 3, 5])
def test_over_all_orders_the_weighted_mean_is_that_of_all_there_are(draws: int) -> None:
    """By enumeration: five comparisons, drawn one after another by what is interesting about them."""
    waiting = len(WORTH) - draws
    mean = plain = 0.0
    for chance, drawn in orders(tuple(range(len(WORTH))), draws):
        weights = [draw_weight([verdict(DrawnHow.DISAGREEMENT, p, pool)], waiting) for _, p, pool in drawn]
        mean += chance * float(np.mean([w * WORTH[one] for w, (one, _, _) in zip(weights, drawn, strict=True)]))
        plain += chance * float(np.mean([WORTH[one] / (pool * p) for one, p, pool in drawn]))
    assert mean == pytest.approx(WORTH.mean())
    if draws == len(WORTH):
        assert abs(plain - WORTH.mean()) > 0.1, "1 / (N p) alone forgets that what is left is what was not drawn"


def test_what_no_queue_drew_weighs_one_and_a_repeat_what_its_first_drawing_weighs() -> None:
    assert draw_weight([verdict(None)], 10) == 1.0
    first = verdict(DrawnHow.RANDOM, 0.05, 40)
    assert draw_weight([first], 100) == pytest.approx(1 / (40 * 0.05))
    assert draw_weight([first, verdict(DrawnHow.REPEAT, 0.01, 5)], 100) == draw_weight([first], 100)
    assert draw_weight([verdict(DrawnHow.RANDOM, 1.0, 1)], 0) == 1.0


def test_a_drawing_of_before_weighs_nothing_unless_it_was_uniform() -> None:
    assert draw_weight([verdict(DrawnHow.RANDOM, 0.05)], 10) == 1.0
    assert draw_weight([verdict(DrawnHow.DISAGREEMENT, 0.45)], 10) == 0.0


def labelled(drawn: DrawnHow | None, probability: float | None, pool: int | None) -> LabelledPair:
    one = Comparison(
        (Turn(Role.USER, "Question?"),), Response("a", "x"), Response("b", "x"), AskedHow.RANDOM, 1.0, id=1,
        verdicts=(verdict(drawn, probability, pool), Verdict(Choice.RIGHT, Annotator("Ben", AnnotatorKind.HUMAN))),
    )  # fmt: skip
    waiting = [
        Comparison((Turn(Role.USER, f"{n}?"),), Response("a", "x"), Response("b", "x"), AskedHow.RANDOM, 1.0, id=n)
        for n in range(2, 30)
    ]
    return label([one, *waiting]).pairs[0]


def test_what_is_learnt_from_does_not_depend_on_how_it_was_drawn() -> None:
    plain, drawn = labelled(None, None, None), labelled(DrawnHow.DISAGREEMENT, 0.5, 20)
    assert plain.drawn is None and plain.measured == plain.counts
    assert (drawn.counts, drawn.weights) == (plain.counts, plain.weights)
    assert drawn.measured.left == pytest.approx(0.1) == pytest.approx(drawn.shown_left or 0.0)
    assert drawn.measured.right == 1.0
    assert repr(drawn) != "" and "measured" not in repr(drawn) and "drawn=" not in repr(drawn)
    unknown = labelled(DrawnHow.DISAGREEMENT, 0.5, None)
    assert (unknown.measured.left, unknown.unknown) == (0.0, 1)


@pytest.mark.long
def test_a_planted_queue_is_seen_through() -> None:
    held, naive, weighted = 0, [], []
    studies = 150
    for seed in range(studies):
        made = asked(130, np.random.default_rng(seed))
        found = accuracy(made.margins, made.weighted, 0, 300)
        held += found.low <= TRUTH <= found.high
        weighted.append(found.estimate)
        naive.append(accuracy(made.margins, made.naive, 0, 2).estimate)
    assert float(np.mean(naive)) < TRUTH - 0.05, "each verdict once, the hard ones are too many"
    assert float(np.mean(weighted)) == pytest.approx(TRUTH, abs=0.015)
    assert 0.92 <= held / studies <= 0.98


def test_when_everything_is_judged_nothing_is_left_to_weigh() -> None:
    made = asked(30, np.random.default_rng(0), share=1.0)
    worth = np.array([pair.measured.decided for pair in made.weighted])
    assert worth[:-1] == pytest.approx(np.ones(len(worth) - 1)) and len(worth) == 90
