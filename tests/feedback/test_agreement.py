"""Agreement and reliability against another library, figures worked by hand, and a crowd whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence

import evalica
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from manners.feedback.agreement import alpha, habits, pairwise, reliability
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
    """Of 3 + 1 pairs of verdicts 1 + 1 agree."""
    found = pairwise(asked([[L, L, R], [T, T, None], [L, None, None]]), HUMAN, 0)
    assert found is not None and found.estimate == pytest.approx(2 / 4)
    assert alpha(asked([[L, None], [None, R]]), HUMAN, 0) is None


def test_reliability_tells_the_careful_from_the_careless() -> None:
    rng = np.random.default_rng(1)
    skill = [0.95, 0.9, 0.8, 0.5]
    truth = rng.integers(0, 2, 400)
    rows = [[(L, R)[t if rng.random() < s else 1 - t] for s in skill] for t in truth]
    found = reliability(asked(rows), HUMAN)
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
