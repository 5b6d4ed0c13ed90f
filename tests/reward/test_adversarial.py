"""Comparisons that a reward model chose are learnt from, and no figure is measured on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from manners.errors import MannersError
from manners.feedback import agreement
from manners.feedback.admission import cases, fair
from manners.feedback.queue import Queue
from manners.feedback.statistics import first_two
from manners.loop.examples import preferred
from manners.loop.judging import panel
from manners.reward import measure, noise
from manners.reward.ceiling import ceiling
from manners.reward.drawing import draw_weight, pool_of
from manners.reward.groups import set_aside, slice_off
from manners.reward.labelled import Counts, LeftOut
from manners.reward.verdicts import label, pooled, to_measure_on
from manners.settings import ServeSettings
from manners.store.files.formats import Format, parse
from manners.store.files.rows import BadRow
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    DrawnHow,
    OpenComparison,
    Response,
    Role,
    Turn,
    Verdict,
)
from manners.web import findings
from tests.reward import planted

KIND = AnnotatorKind.HUMAN


def chosen(one: Comparison, drawn: bool = False) -> Comparison:
    """The same comparison as a reward model might have chosen it, with other answers and every verdict turned round."""
    turned = planted.turned(one)
    verdicts = turned.verdicts
    if drawn:
        verdicts = tuple(
            replace(v, drawn=DrawnHow.ADVERSARIAL, draw_probability=0.5, draw_pool=7) for v in turned.verdicts
        )
    left, right = (replace(side, text=f"{side.text} again") for side in (one.left, one.right))
    made = replace(
        turned, left=left, right=right, verdicts=verdicts, asked_how=AskedHow.ADVERSARIAL, asked_by="reward-1"
    )
    return replace(made, id=(one.id or 0) + 1000)


FAIR = planted.comparisons(60, 0.8)
HARD = [chosen(one, drawn=bool(place % 2)) for place, one in enumerate(FAIR)]
"""On the same prompts, and all the other way round: whatever counts them is far off."""


def test_its_verdicts_weigh_in_the_loss_and_nowhere_else() -> None:
    one = replace(HARD[0], verdicts=(*HARD[0].verdicts, Verdict(Choice.TIE, replace(planted.PEOPLE[0], name="Zoe"), 3)))
    plain = label([replace(one, asked_how=AskedHow.RANDOM)]).pairs[0]
    [pair] = label([one]).pairs
    assert pair.weights == plain.weights and sum(pair.weights) == 4
    assert pair.counts == pair.measured == Counts(0.0, 0.0, 0.0) and not pair.measures and plain.measures
    assert (pair.both_bad, pair.unknown, pair.made) == (0, 0, False)
    assert [voice.choice for voice in pair.voices] == [voice.choice for voice in plain.voices]
    assert not any(voice.fair for voice in pair.voices) and all(voice.fair for voice in plain.voices)


def test_nothing_that_is_measured_moves() -> None:
    """Accuracy, its rivals, calibration, ceiling, agreement and how often people err: to the last digit."""
    settled = set_aside(label(FAIR).pairs, 0.3, 5)
    both = label([*FAIR, *HARD])
    split = set_aside(both.pairs, 0.3, 5)
    assert split.held_out == settled.held_out and split.divided == settled.divided == 0
    margins = np.array([len(pair.left.text) - len(pair.right.text) for pair in split.held_out], dtype=np.float64)
    before = measure.measure(margins, settled.train, settled.held_out, 0)
    after = measure.measure(margins, split.train, split.held_out, 0)
    assert after == before
    assert ceiling(split.train, 0) == ceiling(settled.train, 0)
    assert noise.flip_rate(split.train) == noise.flip_rate(settled.train)
    by_chance = [replace(one, asked_how=AskedHow.RANDOM) for one in HARD]
    moved = set_aside(label([*FAIR, *by_chance]).pairs, 0.3, 5)
    assert len(moved.held_out) == 2 * len(settled.held_out), "asked at random, they would have counted"


def test_it_is_trained_on_unless_its_opening_is_set_aside_and_then_it_is_counted() -> None:
    prompt = (Turn(Role.USER, "of its own"),)
    alone = replace(HARD[0], prompt=prompt)
    for seed in range(20):
        split = set_aside(label([*FAIR, *HARD[1:], alone]).pairs, 0.3, seed)
        held = {pair.group for pair in split.held_out}
        assert all(pair.measures for pair in split.held_out)
        assert {pair.group for pair in split.train}.isdisjoint(held)
        assert {pair.group for pair in split.idle} <= held and not any(pair.measures for pair in split.idle)
        trained = [pair for pair in split.train if not pair.measures]
        assert len(trained) + len(split.idle) == 60 and len(split.idle) == len(held - {FAIR[0].prompt[0].text})
        assert prompt in {pair.prompt for pair in trained}, "of a group without a fair verdict nothing can be set aside"


def test_the_same_pair_asked_at_random_too_is_measured_by_its_own_verdicts() -> None:
    same = replace(planted.turned(FAIR[0]), asked_how=AskedHow.ADVERSARIAL, id=9000)
    for order in ([FAIR[0], same], [same, FAIR[0]]):
        assert len(pooled(order)) == 2
        assert [pair.counts for pair in label(order).pairs if pair.measures] == [label(FAIR[:1]).pairs[0].counts]


def test_it_is_in_nobodys_pool_and_tells_nothing_of_agreement_or_judges() -> None:
    serve = ServeSettings(overlap=9, agree=9)
    anna = replace(planted.PEOPLE[0], name="anna")
    assert pool_of([*FAIR, *HARD], serve).left(anna) == pool_of(FAIR, serve).left(anna) == 60
    assert first_two(chosen(FAIR[0], drawn=True).verdicts) == ()
    assert all(fair(one) == () for one in HARD)
    kept = findings.without([*FAIR, *HARD], frozenset())
    assert agreement.pairwise(kept, KIND, 0) == agreement.pairwise(FAIR, KIND, 0)
    assert findings.sources([*FAIR, *HARD]) == {KIND: {"random": 180, "adversarial": 180}}


def test_what_chance_gives_beside_it_weighs_as_what_chance_gives_without_it() -> None:
    """Half the draws are of no pool then; weighing 1 / (N p), the others would count twice as much as later ones."""
    serve = ServeSettings(gold_share=0, repeat_share=0, random_share=0.5, overlap=9, agree=9)
    queue = Queue(serve, 1, lambda: 0.0)
    for number in range(200):
        queue.add(OpenComparison(number, number, adversarial=number < 30))
    drawn = [draw for _ in range(100) if (draw := queue.draw("a")) is not None]
    by_chance = [draw for draw in drawn if draw.drawn is DrawnHow.RANDOM]
    said = (
        Verdict(Choice.LEFT, planted.PEOPLE[0], drawn=d.drawn, draw_probability=d.probability, draw_pool=d.pool)
        for d in by_chance
    )
    assert len(drawn) - len(by_chance) == 30 and {d.pool is None for d in by_chance} == {True, False}
    assert [draw_weight([one], 100) for one in said] == pytest.approx([1.0] * 70)


def test_how_reliable_an_annotator_is_hangs_on_none_of_it() -> None:
    """Those of the dashboard, and what `reward.reliability` weighs by; how much each has done and how fast it tells."""
    alone, both = (agreement.habits(some, KIND) for some in (FAIR, [*FAIR, *HARD]))
    assert [(one.annotator, one.reliability, one.left) for one in both] == [
        (one.annotator, one.reliability, one.left) for one in alone
    ]
    assert [one.verdicts for one in both] == [2 * one.verdicts for one in alone]
    assert noise.trust(label([*FAIR, *HARD]).pairs) == noise.trust(label(FAIR).pairs)


def test_an_answer_that_most_found_bad_is_no_example_whoever_chose_it() -> None:
    said = (Choice.LEFT, Choice.BOTH_BAD, Choice.BOTH_BAD)
    verdicts = tuple(Verdict(choice, who) for choice, who in zip(said, planted.PEOPLE, strict=False))
    one = replace(FAIR[0], verdicts=verdicts)
    for how in (AskedHow.RANDOM, AskedHow.ADVERSARIAL):
        assert preferred(label([replace(one, asked_how=how)]).pairs)[0] == []
        liked = replace(one, asked_how=how, verdicts=verdicts[:1])
        assert len(preferred(label([liked]).pairs)[0]) == 1


def test_of_a_judges_answers_those_that_a_model_chose_tell_nothing_of_versions() -> None:
    judge = Annotator("judge:one", AnnotatorKind.AI)
    flip = Verdict(Choice.SKIP, judge)
    judged = [replace(one, verdicts=(*one.verdicts, Verdict(Choice.LEFT, judge))) for one in FAIR]
    chosen_too = [*judged, *(replace(one, verdicts=(flip,)) for one in HARD)]
    assert panel(chosen_too, cases(chosen_too, judge)) == panel(judged, cases(judged, judge))


def test_a_file_measures_nothing_on_what_a_model_chose_and_says_so() -> None:
    rows = [*FAIR, *HARD]
    fair, left_out = to_measure_on(rows)
    assert {one.asked_how for one in fair} == {AskedHow.IMPORTED} and left_out == {LeftOut.CHOSEN: 60}
    assert label(fair).pairs == label(replace(one, asked_how=AskedHow.IMPORTED) for one in FAIR).pairs
    assert to_measure_on(FAIR)[1] == {}
    with pytest.raises(MannersError, match="a reward model chose all comparisons of the file"):
        to_measure_on(HARD)


def test_a_row_that_was_drawn_as_adversarial_is_one_or_is_refused() -> None:
    """Without the column `asked_how` it would be an import, which is measured."""
    row: dict[str, Any] = {"prompt": "a", "left": "b", "right": "c", "verdict": "left"}
    row |= {"drawn": "adversarial", "draw_probability": 0.5, "draw_pool": 3}
    assert parse(row, Format.ROWS, planted.PEOPLE[0]).asked_how is AskedHow.ADVERSARIAL
    assert parse(row | {"asked_how": "adversarial"}, Format.ROWS, planted.PEOPLE[0]).asked_by is None
    with pytest.raises(BadRow, match="adversarial"):
        parse(row | {"asked_how": "random"}, Format.ROWS, planted.PEOPLE[0])


def test_it_never_says_alone_how_often_pairs_are_read() -> None:
    """Four groups to measure on and forty without: the slice by which a scout stops has one of the four always."""
    others = [replace(one, prompt=(Turn(Role.USER, f"another {n}"),)) for n, one in enumerate(HARD[:40])]
    pairs = label([*FAIR[:4], *others]).pairs
    for seed in range(40):
        fit, off = slice_off(pairs, 0.2, seed)
        assert any(pairs[i].measures for i in off) and any(pairs[i].measures for i in fit)
        assert sorted([*fit, *off]) == list(range(44))


def test_with_nothing_else_there_is_nothing_to_measure_with() -> None:
    with pytest.raises(MannersError):
        set_aside(label(HARD).pairs, 0.3, 0)


def test_an_answer_of_a_deleted_person_or_an_upheld_report_is_left_out_as_ever() -> None:
    gone = replace(HARD[0], left=Response("[deleted]", "x"))
    found = label([*FAIR, replace(HARD[1], reported=True), gone])
    assert sum(found.left_out.values()) == 2 and all(pair.measures for pair in found.pairs)
