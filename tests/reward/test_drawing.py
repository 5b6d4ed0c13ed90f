"""What the queue drew is weighted back to what a random sample would have shown: exactly, and in a planted queue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.evidence._planted_queue import ONCE, SERVE, TRUTH, asked
from manners.reward.baselines import accuracy
from manners.reward.drawing import draw_weight, pool_of
from manners.reward.labelled import LabelledPair
from manners.reward.verdicts import label
from manners.settings import ServeSettings
from manners.types import (
    DELETED,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Bet,
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


def asked_about(number: int, *verdicts: Verdict) -> Comparison:
    sides = Response("a", "x"), Response("b", "x")
    return Comparison((Turn(Role.USER, f"{number}?"),), *sides, AskedHow.RANDOM, 1.0, verdicts, id=number)


def labelled(drawn: DrawnHow | None, probability: float | None, pool: int | None) -> LabelledPair:
    ben = Verdict(Choice.RIGHT, Annotator("Ben", AnnotatorKind.HUMAN))
    one = asked_about(1, verdict(drawn, probability, pool), ben)
    return label([one, *(asked_about(n) for n in range(2, 30))]).pairs[0]


def test_what_is_learnt_from_does_not_depend_on_how_it_was_drawn() -> None:
    plain, drawn = labelled(None, None, None), labelled(DrawnHow.DISAGREEMENT, 0.5, 20)
    assert plain.drawn is None and plain.measured == plain.counts
    assert (drawn.counts, drawn.weights) == (plain.counts, plain.weights)
    assert drawn.measured.left == pytest.approx(0.1) == pytest.approx(drawn.measured_left)
    assert plain.measured_left == 1.0 == plain.shown_left == drawn.shown_left
    assert drawn.measured.right == 1.0
    assert repr(drawn) != "" and "measured" not in repr(drawn) and "drawn=" not in repr(drawn)
    unknown = labelled(DrawnHow.DISAGREEMENT, 0.5, None)
    assert (unknown.measured.left, unknown.unknown) == (0.0, 1)


@pytest.mark.parametrize(("serve", "weight"), [(SERVE, 0.1), (ONCE, 1.0)])
def test_what_others_have_judged_is_still_ones_own_to_judge_until_it_has_enough(
    serve: ServeSettings, weight: float
) -> None:
    """By hand: all other 19 of Anna's pool are left to her where two are asked about each, and none where one is."""
    ben = Verdict(Choice.RIGHT, Annotator("Ben", AnnotatorKind.HUMAN))
    hers = asked_about(1, verdict(DrawnHow.DISAGREEMENT, 0.5, 20))
    found = label([hers, *(asked_about(n, ben) for n in range(2, 21))], serve=serve).pairs[0]
    assert found.measured.left == pytest.approx(weight)


def test_what_is_nobodys_to_judge_is_in_no_pool() -> None:
    """By hand: of twelve comparisons Anna may still be given two."""
    open_, other = asked_about(1), Annotator("Ben", AnnotatorKind.HUMAN)
    agreed = tuple(Verdict(Choice.LEFT, Annotator(name, AnnotatorKind.HUMAN)) for name in ("Ben", "Cleo"))
    skips = tuple(Verdict(Choice.SKIP, Annotator(name, AnnotatorKind.HUMAN)) for name in ("Ben", "Cleo", "Dora"))
    said = [
        open_,
        asked_about(2, Verdict(Choice.LEFT, other), Verdict(Choice.RIGHT, Annotator("judge:x", AnnotatorKind.AI))),
        asked_about(3, *agreed),
        asked_about(4, *skips),
        asked_about(5, verdict(None)),
        replace(open_, left=Response("a", "Anna")),
        replace(open_, asked_how=AskedHow.GOLD),
        replace(open_, asked_how=AskedHow.CANDIDATE),
        replace(open_, asked_how=AskedHow.CHAT),
        replace(open_, reported=True),
        replace(open_, bets=(Bet(AnnotatorKind.HUMAN, 1.0, 2),)),
        replace(open_, right=Response(DELETED, "x")),
    ]
    assert pool_of(said, SERVE).left(ANNA) == 2
    assert pool_of(said, SERVE).left(other) == 3, "that which Anna has judged, and that which she wrote, but not 2"
    assert pool_of(said, replace(SERVE, share_chats=True)).left(ANNA) == 3
    assert pool_of(said, ONCE).left(ANNA) == 1


@pytest.mark.long
@pytest.mark.parametrize("serve", [SERVE, ONCE])
def test_a_planted_queue_is_seen_through(serve: ServeSettings) -> None:
    held, naive, weighted = 0, [], []
    studies = 150
    for seed in range(studies):
        made = asked(130, np.random.default_rng(seed), serve=serve)
        found = accuracy(made.margins, made.weighted, 0, 300)
        held += found.low <= TRUTH <= found.high
        weighted.append(found.estimate)
        naive.append(accuracy(made.margins, made.naive, 0, 2).estimate)
    assert float(np.mean(naive)) < TRUTH - 0.05, "each verdict once, the hard ones are too many"
    assert float(np.mean(weighted)) == pytest.approx(TRUTH, abs=0.015)
    assert 0.92 <= held / studies <= 0.98


def test_a_planted_queue_is_seen_through_when_most_was_judged_once_and_the_hard_ones_twice() -> None:
    studies = [asked(100, np.random.default_rng(seed), share=0.6) for seed in range(30)]
    means = [accuracy(made.margins, made.weighted, 0, 2).estimate for made in studies]
    assert float(np.mean(means)) == pytest.approx(TRUTH, abs=0.015)


@pytest.mark.parametrize("serve", [SERVE, ONCE])
def test_when_everything_is_judged_nothing_is_left_to_weigh(serve: ServeSettings) -> None:
    made = asked(30, np.random.default_rng(0), 1.0, serve)
    worth = np.array([pair.measured.decided for pair in made.weighted])
    assert worth == pytest.approx(np.full(90, float(serve.overlap)))
