"""Who is set aside: by hand, and how seldom somebody is who judges the answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad

from manners.feedback.outliers import BY_SIDE, RISK, outlying, side_wealth
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

L, R = Choice.LEFT, Choice.RIGHT


def person(name: str, account: int | None = None) -> Annotator:
    return Annotator(name, AnnotatorKind.HUMAN, account)


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


def rows(count: int, *said: tuple[Annotator, Choice]) -> list[tuple[Comparison, tuple[Verdict, ...]]]:
    """The same verdicts on so many comparisons, the sides shown either way in turn."""
    return [judged(*(Verdict(choice, who, exchanged=bool(n % 2)) for who, choice in said)) for n in range(count)]


def test_users_that_an_account_makes_up_set_nobody_aside() -> None:
    """Three of one account are one voice, and with those of another two; by hand, as above, 21 of these are enough."""
    made_up = [(person(f"app:{n}", 9), L) for n in range(3)]
    honest = person("hal", 7)
    assert outlying(rows(60, *made_up, (honest, R))) == set()
    assert outlying(rows(21, *made_up, (person("bea", 8), L), (honest, R))) == {honest}


def test_the_users_of_an_account_share_its_voice() -> None:
    """By hand: hal is agreed with by half of account 9 and not by bea, so that he wins 1.25 each time, and so does she.

    1.25^36 = 3081, of which a third is above 1000, and 1.25^35 = 2465.
    """
    said = ((person("app:1", 9), L), (person("app:2", 9), R), (person("bea", 8), L), (person("hal", 7), R))
    assert outlying(rows(35, *said)) == set()
    assert outlying(rows(36, *said)) == {person("bea", 8), person("hal", 7)}


def test_who_was_asked_to_label_is_heard_and_never_set_aside() -> None:
    users = [Verdict(L, person(name)) for name in ("bea", "cem")]
    asked = Verdict(R, person("lab"), drawn=DrawnHow.RANDOM, draw_probability=0.5)
    against = [judged(*(replace(v, exchanged=bool(n % 2)) for v in (*users, asked))) for n in range(60)]
    assert outlying(against) == set()
    clicks = [judged(replace(asked, choice=L)) for _ in range(60)]
    assert outlying(clicks) == set()
    two = [
        judged(
            replace(users[0], exchanged=turned),
            *(replace(asked, annotator=person(name), exchanged=turned) for name in ("lab", "lou")),
        )
        for turned in [False, True] * 12
    ]
    assert outlying(two) == {person("bea")}, "those who label say what others think"


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
