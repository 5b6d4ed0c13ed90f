"""Win rates of versions: a world whose strengths are known, exchanged sides, and who never wins."""

from __future__ import annotations

from dataclasses import replace

import evalica
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manners.feedback.davidson import Judgement, rate
from manners.types import Choice

L, R, T = Choice.LEFT, Choice.RIGHT, Choice.TIE


def study(strengths: dict[str, float], count: int, seed: int, side: float = 0.0, people: int = 30) -> list[Judgement]:
    """Judgements by Davidson's model, with annotators and prompts that have opinions of their own."""
    rng = np.random.default_rng(seed)
    names = list(strengths)
    person = rng.normal(0, 0.5, people)
    prompt = rng.normal(0, 0.5, max(2, count // 4))
    found = []
    for _ in range(count):
        one, other = rng.choice(len(names), 2, replace=False)
        who, which = rng.integers(people), rng.integers(len(prompt))
        # What somebody prefers beyond the strengths is for or against the later version.
        taste = (person[who] + prompt[which]) * (1 if one > other else -1)
        d = strengths[names[one]] - strengths[names[other]] + side + taste
        shares = np.exp([d / 2, -d / 2, np.log(0.5)])
        choice = (L, R, T)[rng.choice(3, p=shares / shares.sum())]
        found.append(Judgement(names[one], names[other], choice, f"a{who}", f"p{which}"))
    return found


def test_known_strengths_are_found() -> None:
    found = rate(study({"a": 0.0, "b": 1.0, "c": -1.0}, 4000, 0, side=0.4), "a", 0)
    rates = {rating.version: rating.win_rate for rating in found.ratings}
    # By hand: (e^.5 + .25) / (e^.5 + e^-.5 + .5) = 0.690 at a difference of 1.
    assert rates["b"].estimate == pytest.approx(0.69, abs=0.07) and rates["b"].low > 0.5
    assert rates["c"].estimate == pytest.approx(0.31, abs=0.07) and rates["c"].high < 0.5
    assert found.side.estimate == pytest.approx(1 / (1 + np.exp(-0.4)), abs=0.04)
    assert found.apart == () and found.to_flip is not None and found.to_flip > 100


@settings(max_examples=15)
@given(st.integers(0, 999))
def test_exchanging_all_sides_changes_nothing_but_the_side_effect(seed: int) -> None:
    found = study({"a": 0.0, "b": 0.5}, 60, seed, side=0.5)
    turned = [replace(j, left=j.right, right=j.left, choice=j.choice.swapped(), longer=-j.longer) for j in found]
    one, other = rate(found, "a", 1), rate(turned, "a", 1)
    assert one.ratings[0].win_rate.estimate == pytest.approx(other.ratings[0].win_rate.estimate, abs=2e-3)
    assert one.side.estimate == pytest.approx(1 - other.side.estimate, abs=2e-3)


def test_who_never_wins_stays_finite() -> None:
    found = rate([Judgement("a", "b", L, f"x{n % 5}", f"p{n}") for n in range(40)], "a", 0)
    assert 0 < found.ratings[0].win_rate.estimate < 0.2
    assert found.ratings[0].win_rate.low > 0


def test_what_no_judgement_connects_is_named() -> None:
    found = rate([Judgement("a", "b", L, "x", "p"), Judgement("c", "d", R, "x", "q")], "a", 0)
    assert found.apart == (("c", "d"),)
    assert [rating.version for rating in found.ratings] == ["b"]
    assert rate([], "a", 0).ratings == ()


def test_a_narrow_lead_needs_few_verdicts_to_flip() -> None:
    wins = [Judgement("a", "b", (L, R)[n % 2], f"x{n % 7}", f"p{n}") for n in range(40)]
    sides = [replace(j, left="b", right="a", choice=j.choice) if n % 4 > 1 else j for n, j in enumerate(wins)]
    lead = [Judgement("b", "a", L, "x1", "p1"), Judgement("a", "b", R, "x2", "p2")]
    found = rate(sides + lead, "a", 0)
    assert found.to_flip == 2  # turning one round leaves them equal


@pytest.mark.parametrize("block", range(4))
def test_intervals_cover_the_truth(block: int) -> None:
    """2,000 studies in four blocks; 30 annotators and 50 prompts with opinions of their own, 200 verdicts."""
    hits = 0
    truth = 0.5
    for seed in range(500 * block, 500 * (block + 1)):
        (rating,) = rate(study({"a": 0.0, "b": 0.0}, 200, seed), "a", seed).ratings
        hits += rating.win_rate.low <= truth <= rating.win_rate.high
    assert 0.92 <= hits / 500 <= 0.98


def test_strengths_are_those_of_another_library() -> None:
    """Newman's algorithm in evalica has neither prior nor covariates: every verdict is given from both sides."""
    found = [replace(j, annotator="x", prompt=f"{n}") for n, j in enumerate(study({"a": 0, "b": 1, "c": -1}, 3000, 3))]
    found += [replace(j, left=j.right, right=j.left, choice=j.choice.swapped()) for j in found]
    winners = {L: evalica.Winner.X, R: evalica.Winner.Y, T: evalica.Winner.Draw}
    theirs = evalica.newman([j.left for j in found], [j.right for j in found], [winners[j.choice] for j in found])
    ours = {one.version: one.win_rate.estimate for one in rate(found, "a", 0).ratings}
    for version, rate_of_wins in ours.items():
        one, other = theirs.scores[version], theirs.scores["a"]
        tie = 2 * theirs.v * np.sqrt(one * other)
        assert rate_of_wins == pytest.approx((one + tie / 2) / (one + other + tie), abs=2e-3)
