"""Who is set aside: by hand, and how seldom somebody is who judges the answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from manners.feedback.outliers import BY_SIDE, RISK, outlying, side_wealth
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict

L, R = Choice.LEFT, Choice.RIGHT


def person(name: str) -> Annotator:
    return Annotator(name, AnnotatorKind.HUMAN)


def judged(*verdicts: Verdict) -> tuple[Comparison, tuple[Verdict, ...]]:
    said = (Turn(Role.USER, "?"),)
    return Comparison(said, Response("a", "x"), Response("b", "y"), AskedHow.CHAT, 1.0, verdicts), verdicts


@pytest.mark.parametrize("one, other", [(0, 0), (1, 0), (30, 2), (10, 10), (3, 40)])
def test_wealth_is_the_integral_by_another_way(one: int, other: int) -> None:
    whole, _ = quad(lambda p: (p / BY_SIDE) ** one * ((1 - p) / (1 - BY_SIDE)) ** other, BY_SIDE, 1)
    assert side_wealth(one, other) == pytest.approx(whole / (1 - BY_SIDE), rel=1e-6)


def test_wealth_is_fair_at_the_limit() -> None:
    """The mean over 12 verdicts of a user exactly at the limit is 1, by the binomial's own weights."""
    from math import comb

    mean = sum(comb(12, n) * BY_SIDE**n * (1 - BY_SIDE) ** (12 - n) * side_wealth(n, 12 - n) for n in range(13))
    assert mean == pytest.approx(1.0)


def test_who_always_takes_the_side_shown_first_is_set_aside() -> None:
    """Whatever the comparison's own sides are: half of them are shown the other way round."""
    clicks = [judged(Verdict(R if n % 2 else L, person("ann"), exchanged=bool(n % 2))) for n in range(40)]
    assert outlying(clicks) == {person("ann")}
    assert outlying(clicks[:20]) == set(), "twenty verdicts prove nothing"


def test_who_is_against_everybody_is_set_aside_and_nobody_else() -> None:
    """By hand: at 21 comparisons the bet has won 1.5^21 = 4988, of which a third is above 1000."""
    rows = [
        judged(
            *(Verdict(L, person(name), exchanged=bool(n % 2)) for name in ("bea", "cem", "dan")),
            Verdict(R, person("troll"), exchanged=bool(n % 2)),
        )
        for n in range(21)
    ]
    assert outlying(rows) == {person("troll")}
    assert outlying(rows[:19]) == set()
    two = [judged(*verdicts[2:]) for _, verdicts in rows]
    assert outlying(two) == set(), "of two who differ nobody can say who is wrong"


def test_people_who_judge_the_answers_are_kept() -> None:
    """A user who leans to the left side, one with another taste in a third of all cases, one who throws a coin."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(400):
        better, exchanged = rng.choice(["left", "right"], 2)
        truth = Choice(better)
        turned = exchanged == "left"
        noisy = [truth if rng.random() < 0.7 else truth.swapped() for _ in range(3)]
        leans = L if rng.random() < 0.5 else (truth.swapped() if turned else truth)
        said = {
            **{f"other {n}": choice for n, choice in enumerate(noisy)},
            "leans": leans.swapped() if turned else leans,
            "other taste": truth.swapped() if rng.random() < 0.33 else truth,
            "coin": Choice(rng.choice(["left", "right"])),
        }
        rows.append(judged(*(Verdict(choice, person(name), exchanged=turned) for name, choice in said.items())))
    assert outlying(rows) == set()
    assert RISK <= 0.001
