"""Agreement and reliability against another library, figures worked by hand, and a crowd whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import evalica
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import expit, stdtrit

from manners.feedback.agreement import alpha, counted, habits, left_share, pairwise, reliability
from manners.feedback.statistics import crossed_share, wilson
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    DrawnHow,
    Interval,
    Response,
    Role,
    Turn,
    Verdict,
)

L, R, T = Choice.LEFT, Choice.RIGHT, Choice.TIE
HUMAN = AnnotatorKind.HUMAN


def person(number: int) -> Annotator:
    return Annotator(f"p{number}", HUMAN)


def asked(rows: Sequence[Sequence[Choice | None]]) -> list[Comparison]:
    """One comparison a row, one annotator a column."""
    return [
        Comparison(
            (Turn(Role.USER, f"{number}?"),),
            Response("a", "x"),
            Response("b", "y"),
            AskedHow.RANDOM,
            verdicts=tuple(Verdict(choice, person(n)) for n, choice in enumerate(row) if choice is not None),
            id=number,
        )
        for number, row in enumerate(rows)
    ]


@given(st.lists(st.lists(st.sampled_from([L, R, T, None]), min_size=4, max_size=4), min_size=3, max_size=20))
def test_alpha_is_that_of_another_library(rows: list[list[Choice | None]]) -> None:
    shared = [row for row in rows if sum(choice is not None for choice in row) > 1]
    assume(len(shared) > 1 and len({choice for row in shared for choice in row if choice}) > 1)
    codes = {L: 0.0, R: 1.0, T: 2.0, None: np.nan}
    table = pd.DataFrame([[codes[choice] for choice in column] for column in zip(*shared, strict=True)])
    found = alpha(asked(rows), HUMAN, 0)
    assert found is not None
    assert found.estimate == pytest.approx(evalica.alpha(table, distance="nominal").alpha, abs=1e-9)


def test_agreement_by_hand() -> None:
    """The first two verdicts are the same on two of three comparisons."""
    found = pairwise(asked([[L, L, R], [L, T, L], [T, T, None], [L, None, None]]), HUMAN, 0)
    assert found is not None and found.estimate == pytest.approx(2 / 3)
    assert alpha(asked([[L, None], [None, R]]), HUMAN, 0) is None


def test_a_pair_chosen_for_being_hard_tells_nothing_of_how_far_people_agree() -> None:
    """Both of the first two must have been drawn fairly, and no third stands in."""
    fair = asked([[L, L], [L, R], [T, Choice.BOTH_BAD], [Choice.SKIP, R, L]])
    hard = [
        replace(one, verdicts=(replace(first, drawn=drawn), *others))
        for one in asked([[L, R, L], [R, L, None], [T, R, T]])
        for first, *others in (one.verdicts, one.verdicts[::-1])
        for drawn in (DrawnHow.DISAGREEMENT, DrawnHow.GOLD)
    ]
    found = pairwise([*fair, *hard], HUMAN, 0)
    assert found is not None and found == pairwise(fair, HUMAN, 0) and found.estimate == 0.5
    assert pairwise(hard, HUMAN, 0) is None
    assert alpha([*fair, *hard], HUMAN, 0) == alpha(fair, HUMAN, 0)


def test_a_few_comparisons_without_a_difference_are_no_certainty() -> None:
    """Coins fall so as well: two comparisons that were agreed about, or that were not, had an interval of no width."""
    for rows, estimate in (([[L, L], [R, R]], 1.0), ([[L, R], [R, L]], -0.5)):
        found = alpha(asked(rows), HUMAN, 0)
        assert found is not None and found.estimate == estimate and not found.excludes(0.0)
    # D_o of none among 20 is at most 1 - 0.025^(1/20); of 40 verdicts, half for either side, D_e is 20/39.
    many = alpha(asked([[L, L], [R, R]] * 10), HUMAN, 0)
    assert many is not None and many.low == pytest.approx(1 - (1 - 0.025 ** (1 / 20)) * 39 / 20) and many.high == 1.0


def test_reliability_tells_the_careful_from_the_careless() -> None:
    rng = np.random.default_rng(1)
    skill = [0.95, 0.9, 0.8, 0.5]
    truth = rng.integers(0, 2, 400)
    rows = [[(L, R)[t if rng.random() < s else 1 - t] for s in skill] for t in truth]
    found = reliability(counted(one, HUMAN) for one in asked(rows))
    assert [found[person(n)] for n in range(4)] == pytest.approx(skill, abs=0.06)


def test_habits_are_of_the_sides_shown() -> None:
    one = asked([[L]])[0]
    views = (
        Verdict(L, person(0), seconds=2.0, exchanged=True),
        Verdict(L, person(0), seconds=4.0, drawn=DrawnHow.REPEAT),
    )
    (found,) = habits([Comparison(one.prompt, one.left, one.right, one.asked_how, verdicts=views, id=5)], HUMAN, {5: R})
    assert (found.verdicts, found.left.estimate, found.seconds) == (2, 0.5, 3.0)
    assert found.itself is not None and found.itself.estimate == 1.0
    assert found.gold is not None and found.gold.estimate == 0.0 and found.reliability is None


def test_a_skipped_repeat_contradicts_nobody() -> None:
    one, who = asked([[L]])[0], person(0)

    def itself(*choices: Choice) -> Interval | None:
        first, *again = choices
        repeats = [Verdict(choice, who, drawn=DrawnHow.REPEAT) for choice in again]
        [found] = habits([replace(one, verdicts=(Verdict(first, who), *repeats))], HUMAN)
        return found.itself

    assert itself(L, Choice.SKIP) is itself(Choice.SKIP, L) is None
    assert itself(L, Choice.SKIP, L) == wilson(1, 1) and itself(L, Choice.SKIP, R) == wilson(0, 1)


def test_what_nobody_can_have_read_is_counted() -> None:
    one = asked([[L]])[0]
    long = replace(one, left=Response("l" * 600, "x"), right=Response("r" * 400, "y"))  # 10 s for the quickest reader
    said = [(L, 9.9), (R, 10.1), (Choice.TIE, 0.5), (Choice.SKIP, 0.5), (L, None)]
    verdicts = tuple(Verdict(choice, person(0), seconds=seconds) for choice, seconds in said)
    assert [found.unread for found in habits([replace(long, verdicts=verdicts)], HUMAN)] == [2]
    assert [f.unread for f in habits([replace(long, verdicts=verdicts, asked_how=AskedHow.CHAT)], HUMAN)] == [0]


def shown(by: Sequence[tuple[Choice, Annotator, bool]], number: int = 0) -> Comparison:
    """One comparison with verdicts on the sides as shown, which were exchanged for some."""
    verdicts = tuple(Verdict(c.swapped() if turned else c, who, exchanged=turned) for c, who, turned in by)
    prompt = (Turn(Role.USER, f"{number}?"),)
    return Comparison(prompt, Response("a", "x"), Response("b", "y"), AskedHow.RANDOM, verdicts=verdicts, id=number)


def test_who_always_clicks_left_reads_as_such() -> None:
    rng = np.random.default_rng(2)
    found = left_share([shown([(L, person(0), bool(rng.random() < 0.5))], n) for n in range(200)], HUMAN)
    assert found.estimate == found.high == 1.0 and found.low > 0.97


def test_side_bias_by_hand() -> None:
    """Four people of five verdicts each on 20 comparisons, one of them always left: the intervals by the formula."""
    assert left_share([], HUMAN) == wilson(0, 0)
    assert crossed_share([1.0, 0.0, 1.0, 0.0], [0, 0, 0, 0], [0, 1, 2, 3]).estimate == 0.5
    values = [1.0] * 5 + [1.0, 0.0, 1.0, 0.0, 0.0] * 3
    people = np.repeat(np.arange(4), 5)
    found = crossed_share(values, people, np.arange(20))
    residuals = np.array(values) - 0.55
    by_people = (residuals.reshape(4, 5).sum(axis=1) ** 2).sum() * 4 / 3 / 400
    by_items = (residuals**2).sum() * 20 / 19 / 400
    assert found.estimate == pytest.approx(0.55)
    ends = np.array([found.low, found.high])
    z2 = ((ends - 0.55) ** 2 / (ends * (1 - ends) / (0.55 * 0.45))) / by_people
    assert z2 == pytest.approx(stdtrit(3 * (1 + by_items / by_people), 0.975) ** 2)
    alike = crossed_share([1.0] * 6, [0, 0, 1, 1, 2, 2], range(6))
    assert alike == wilson(3, 3), "three people are no more than three"


def test_two_people_who_agree_or_differ_by_hand() -> None:
    def ends(n: float, t: float) -> list[float]:
        """Wilson's about one half: 1/2 -+ t sqrt(1 / n + t^2 / n^2) / 2 / (1 + t^2 / n)."""
        half = t * np.sqrt(1 / n + (t / n) ** 2) / 2 / (1 + t * t / n)
        return [0.5 - half, 0.5 + half]

    # Each says one and zero, so people vary by nothing: V = 4/3 * 4 * 1/4 / 16 = 1/12 of the items; n = 3; t of 3.
    alike = crossed_share([1, 0, 1, 0], [0, 0, 1, 1], range(4))
    assert [alike.low, alike.high] == pytest.approx(ends(3, 3.182446))
    # One always says one, the other zero: V = 2 * 2 * (3/2)^2 / 36 = 1/4 of the people; n = 1; t of 1.
    apart = crossed_share([1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])
    assert [apart.low, apart.high] == pytest.approx(ends(1, 12.706205))


@pytest.mark.parametrize(("people", "habit", "drawn"), [(5, 0.25, True), (5, 0.25, False), (12, 0.6, False)])
def test_a_crowd_without_a_bias_is_not_said_to_have_one(people: int, habit: float, drawn: bool) -> None:
    """Each person has a side that they like a little, each comparison a better text; sides are drawn, or all alike.

    Verdicts taken for independent would cover one half in 84 % to 90 % of these studies.
    """
    rng = np.random.default_rng(3)
    studies, comparisons = 400, 60
    covered = 0
    for _ in range(studies):
        likes, better = rng.normal(0, habit, people), rng.normal(0, 1.5, comparisons)
        item = np.repeat(np.arange(comparisons), 3)
        who = np.concatenate([rng.permutation(people)[:3] for _ in range(comparisons)])
        side = np.where(rng.random(len(item)) < 0.5, -1, 1) if drawn else np.ones(len(item))
        left = rng.random(len(item)) < expit(likes[who] + side * better[item])
        covered += not crossed_share(left, who, item).excludes(0.5)
    assert 0.92 <= covered / studies <= 0.98
