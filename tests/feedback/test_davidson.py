"""Win rates of versions: a world whose strengths are known, exchanged sides, and who never wins."""

from __future__ import annotations

from dataclasses import replace

import evalica
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import poisson, t

from manners.feedback.davidson import Judgement, Rating, Ratings, fit, judgements, rate
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Interval,
    Response,
    Role,
    Turn,
    Verdict,
)

L, R, T = Choice.LEFT, Choice.RIGHT, Choice.TIE
UNKNOWN_LENGTH = [-25.41241, 0.0, 25.41241]
"""Where no answer is the longer: the prior's 0 +- 2, times 12.706, Student's t of one degree of freedom."""


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


def loss(found: list[Judgement], names: list[str], parameters: NDArray[np.float64]) -> float:
    """Minus the penalised log-likelihood by its formula, a judgement at a time; strengths, side, length, log nu."""
    *strengths, side, length, log_nu = parameters
    of = dict(zip(names, strengths, strict=True))
    total = float(np.square(parameters).sum()) / (2 * 2.0**2)
    for one in found:
        d = of[one.left] - of[one.right] + side + length * one.longer / np.log(2)
        logits = {L: d / 2, R: -d / 2, T: log_nu}
        total += np.logaddexp.reduce(list(logits.values())) - logits[one.choice]
    return total


def wins(difference: float, log_nu: float) -> float:
    shares = np.exp([difference / 2, -difference / 2, log_nu])
    return float((shares[0] + shares[2] / 2) / shares.sum())


def curvature(found: list[Judgement], names: list[str], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Second derivatives of the loss, by differences."""
    steps = np.eye(len(at)) * 1e-3

    def second(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        plus = loss(found, names, at + a + b) + loss(found, names, at - a - b)
        return (plus - loss(found, names, at + a - b) - loss(found, names, at - a + b)) / 4e-6

    return np.array([[second(a, b) for b in steps] for a in steps])


def test_the_estimates_are_at_the_top_of_the_likelihood() -> None:
    rng = np.random.default_rng(8)
    found = [replace(one, longer=float(rng.normal())) for one in study({"a": 0.0, "b": 0.8, "c": -0.5}, 60, 5, 0.3)]
    best = minimize(lambda p: loss(found, ["a", "b", "c"], p), np.zeros(6), tol=1e-9).x
    rated = rate(found, "a", 0)
    for place, rating in enumerate(rated.ratings, start=1):
        assert rating.win_rate.estimate == pytest.approx(wins(best[place] - best[0], best[-1]), abs=1e-4)
        assert rating.verdicts == sum(rating.version in (one.left, one.right) for one in found)
    assert rated.side.estimate == pytest.approx(expit(best[3]), abs=1e-4)
    assert rated.length.estimate == pytest.approx(best[4], abs=1e-4)


def test_of_one_annotator_and_one_prompt_the_curvature_is_all_there_is() -> None:
    found = [replace(one, annotator="x", prompt="p") for one in study({"a": 0.0, "b": 0.8}, 40, 5)]
    best = minimize(lambda p: loss(found, ["a", "b"], p), np.zeros(5), tol=1e-9).x
    contrast = np.array([-1.0, 1.0, 0, 0, 0])
    spread = t(1).ppf(0.975) * np.sqrt(contrast @ np.linalg.inv(curvature(found, ["a", "b"], best)) @ contrast)
    (rating,) = rate(found, "a", 0).ratings
    difference = best[1] - best[0]
    ends = [wins(difference - spread, best[-1]), wins(difference + spread, best[-1])]
    assert [rating.win_rate.low, rating.win_rate.high] == pytest.approx(ends, abs=1e-3)


def test_of_many_ties_on_a_liked_side_the_curvature_is_all_there_is_too() -> None:
    # The tie parameter and the side's depend on each other here, so a wrong slope of either shows in both.
    given = [("a", "b", L)] * 9 + [("b", "a", L)] * 6 + [("a", "b", T)] * 7 + [("b", "a", T)] * 3 + [("b", "a", R)] * 3
    found = [Judgement(*one, "x", "p") for one in given]
    best = minimize(lambda p: loss(found, ["a", "b"], p), np.zeros(5), tol=1e-9).x
    half = t(1).ppf(0.975) * np.linalg.inv(curvature(found, ["a", "b"], best))[2, 2] ** 0.5
    rated = rate(found, "a", 0)
    side = rated.side
    ends = expit([best[2] - half, best[2], best[2] + half])
    assert [side.low, side.estimate, side.high] == pytest.approx(ends, rel=1e-4)
    assert [rated.length.low, rated.length.estimate, rated.length.high] == pytest.approx(UNKNOWN_LENGTH)


def side_width(found: list[Judgement]) -> float:
    side = rate(found, "a", 0).side
    ends = np.array([side.low, side.high])
    return float(np.diff(np.log(ends / (1 - ends)))[0] / 2)


def test_annotators_of_one_mind_leave_the_curvature_and_their_number() -> None:
    # All five say the same, so between them nothing varies; what is left is read by Student's t of 5 - 1.
    said = [("a", "b", L), ("b", "a", L), ("a", "b", R), ("b", "a", R), ("a", "b", L), ("a", "b", T), ("b", "a", L)]
    found = [Judgement(*one, f"x{n}", "p") for n in range(5) for one in said]
    best = minimize(lambda p: loss(found, ["a", "b"], p), np.zeros(5), tol=1e-9).x
    alone = np.linalg.inv(curvature(found, ["a", "b"], best))[2, 2]
    assert side_width(found) == pytest.approx(t(4).ppf(0.975) * alone**0.5, rel=1e-4)
    length = rate(found, "a", 0).length
    assert [length.low, length.estimate, length.high] == pytest.approx(UNKNOWN_LENGTH)


def test_what_annotators_and_prompts_share_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cluster's variance by what its judgements move the estimate: inverse curvature times slope, summed."""
    rng = np.random.default_rng(1)
    likes = np.linspace(-1, 1, 20)
    found = []
    for who, which in np.ndindex(20, 20):
        shares = np.exp([(likes[who] + likes[which]) / 2, -(likes[who] + likes[which]) / 2, np.log(0.5)])
        sides = ("a", "b") if rng.random() < 0.5 else ("b", "a")
        found.append(Judgement(*sides, (L, R, T)[rng.choice(3, p=shares / shares.sum())], f"x{who}", f"p{which}"))
    best = minimize(lambda p: loss(found, ["a", "b"], p), np.zeros(5), tol=1e-9).x
    inverse, steps = np.linalg.inv(curvature(found, ["a", "b"], best)), np.eye(5) * 1e-5
    slopes = [[loss([one], ["a", "b"], best + s) - loss([one], ["a", "b"], best - s) for s in steps] for one in found]
    moved = ((np.array(slopes) / 2e-5 - best / 2.0**2) @ inverse)[:, 2].reshape(20, 20)
    people, prompts = (float((moved.sum(axis=axis) ** 2).sum()) * 20 / 19 for axis in (1, 0))
    one_by_one = float((moved**2).sum()) * 400 / 399
    freedom = 19 * (people + prompts) ** 2 / (people**2 + prompts**2)
    total = people + prompts - one_by_one
    expected = t(freedom).ppf(0.975) * total**0.5
    # Neither more nor less than what they share passes for it within the tolerance below.
    assert max(people, prompts, total - one_by_one) < 0.82 * total < 0.82**2 * (people + prompts)
    monkeypatch.setattr("manners.feedback.davidson.RESAMPLES", 1000)
    assert side_width(found) == pytest.approx(expected, rel=0.06)


def test_three_annotators_stand_for_others_as_far_as_three_can() -> None:
    """The bootstrap's variance by going through all resamples, times 3/2, and Student's t of 3 - 1."""
    # Two always prefer the left side and one the right, each on both orders: the versions are equal under any weights.
    said = [(f"x{n}", one, other) for n in range(3) for one, other in (("a", "b"), ("b", "a")) for _ in range(3)]
    found = [Judgement(one, other, R if who == "x2" else L, who, "p") for who, one, other in said]

    def side(left: int, right: int) -> float:
        """The side's effect at the top, where so many copies of either kind of annotator are drawn."""

        def minus_log(p: NDArray[np.float64]) -> float:
            norm = np.logaddexp.reduce([p[0] / 2, -p[0] / 2, p[1]])
            return float(6 * (left + right) * norm - 3 * (left - right) * p[0] + np.square(p).sum() / (2 * 2.0**2))

        return float(minimize(minus_log, np.zeros(2)).x[0])

    chances = np.outer(poisson(2).pmf(np.arange(8)), poisson(1).pmf(np.arange(6)))
    sides = np.array([[side(left, right) for right in range(6)] for left in range(8)])
    chances /= chances.sum()
    spread = (chances * (sides - (chances * sides).sum()) ** 2).sum() * 3 / 2
    assert side_width(found) == pytest.approx(t(2).ppf(0.975) * spread**0.5, rel=0.15)


def test_working_on_few_numbers_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = study({"a": 0.0, "b": 0.5}, 30, 1)
    whole = rate(found, "a", 0).ratings[0].win_rate
    monkeypatch.setattr("manners.feedback.davidson.AT_ONCE", 1)  # less than the judgements of one resample
    single = rate(found, "a", 0).ratings[0].win_rate
    assert (single.low, single.estimate, single.high) == pytest.approx((whole.low, whole.estimate, whole.high))


def test_the_top_is_found_from_far_away() -> None:
    found = [replace(one, longer=0.1 * n) for n, one in enumerate(study({"a": 0.0, "b": 1.0}, 40, 2))]
    best = minimize(lambda p: loss(found, ["a", "b"], p), np.zeros(5), tol=1e-9).x
    sides = [[1, -1] if one.left == "a" else [-1, 1] for one in found]
    design = np.array([[*side, 1, one.longer / np.log(2)] for side, one in zip(sides, found, strict=True)])
    outcome = np.array([(L, R, T).index(one.choice) for one in found])
    far = np.array([[9.0, -9.0, 5.0, -9.0, -9.0]])
    assert fit(design, outcome, np.ones((1, 40)), far)[0] == pytest.approx(best, abs=1e-4)


def test_copies_of_a_verdict_say_nothing_new() -> None:
    rng = np.random.default_rng(1)
    sides = (("a", "b"), ("b", "a"))
    once = [Judgement(*sides[n % 2], (L, R)[int(rng.random() < 0.4)], f"x{n}", f"p{n}") for n in range(60)]
    best = minimize(lambda p: loss(once, ["a", "b"], p), np.zeros(5), tol=1e-9).x
    alone = np.linalg.inv(curvature(once, ["a", "b"], best))[2, 2]
    width = side_width(once)
    assert width == pytest.approx(t(118).ppf(0.975) * alone**0.5, rel=0.2)
    # What one person said six times, or six said of one prompt, is one thing six times.
    times = [(one, f"{n} {k}") for n, one in enumerate(once) for k in range(6)]
    assert side_width([replace(one, prompt=name) for one, name in times]) == pytest.approx(width, rel=0.35)
    assert side_width([replace(one, annotator=name) for one, name in times]) == pytest.approx(width, rel=0.35)
    apart = [replace(one, annotator=name, prompt=name) for one, name in times]
    assert side_width(apart) == pytest.approx(width / 6**0.5, rel=0.35)


def test_judgements_are_of_the_sides_shown_and_of_one_kind() -> None:
    anna, machine = Annotator("anna", AnnotatorKind.HUMAN), Annotator("m", AnnotatorKind.AI)
    prompt = (Turn(Role.USER, "Why?"),)
    verdicts = (
        Verdict(L, anna, exchanged=True),
        Verdict(R, Annotator("ben", AnnotatorKind.HUMAN)),
        Verdict(R, machine),
    )
    two = Comparison(prompt, Response("Because.", "v1"), Response("No", "v2"), AskedHow.RANDOM, verdicts=verdicts)
    same = replace(two, left=Response("Because.", "v2"))
    longer = float(np.log(9 / 3))
    assert judgements([two, same], AnnotatorKind.HUMAN) == [
        Judgement("v2", "v1", R, "anna", "why?", -longer),
        Judgement("v1", "v2", R, "ben", "why?", longer),
    ]
    assert [one.annotator for one in judgements([two], AnnotatorKind.AI)] == ["m"]
    talk = (Turn(Role.USER, "Hi"), Turn(Role.ASSISTANT, "Hello."), *prompt)
    assert {one.prompt for one in judgements([replace(two, prompt=talk)], AnnotatorKind.HUMAN)} == {"hi"}


@settings(max_examples=5)
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
    nothing = Ratings("a", (), Interval(0.5, 0.0, 1.0), Interval(0.0, -np.inf, np.inf), None, ())
    assert rate([], "a", 0) == nothing


def test_verdicts_are_counted_with_who_gave_them() -> None:
    # Of b: five verdicts, by the accounts 1 and 2 (of three names) and by two without; of c: one, by such a one.
    who = [("x", 1), ("x's program", 1), ("y", 2), ("z", None), ("w", None)]
    found = [Judgement("a", "b", L, name, f"p{n}", account=account) for n, (name, account) in enumerate(who)]
    b, c = rate([*found, Judgement("c", "a", R, "z", "p9")], "a", 0).ratings
    assert (b, c) == (Rating("b", b.win_rate, 5, 2, 2), Rating("c", c.win_rate, 1, 0, 1))


def test_a_narrow_lead_needs_few_verdicts_to_flip() -> None:
    wins = [Judgement("a", "b", (L, R)[n % 2], f"x{n % 7}", f"p{n}") for n in range(40)]
    sides = [replace(j, left="b", right="a", choice=j.choice) if n % 4 > 1 else j for n, j in enumerate(wins)]
    lead = [Judgement("b", "a", L, "x1", "p1"), Judgement("a", "b", R, "x2", "p2")]
    found = rate(sides + lead, "a", 0)
    assert found.to_flip == 2  # turning one round leaves them equal


def test_a_lead_won_against_others_is_not_flipped_by_the_one_verdict_between_the_two() -> None:
    # Of 20 against c, a won all and b 12. One verdict puts a before b: turned round it takes nothing of those others.
    won = [("a", "c")] * 20 + [("b", "c")] * 12 + [("c", "b")] * 8
    sides = [(pair, L) if n % 2 else (pair[::-1], R) for n, pair in enumerate(won)]
    beside = [Judgement(*pair, choice, f"x{n % 5}", f"p{n}") for n, (pair, choice) in enumerate(sides)]
    assert rate(beside, "a", 0).to_flip is None
    assert rate([*beside, Judgement("a", "b", L, "x0", "r")], "a", 0).to_flip is None


@pytest.mark.long
def test_intervals_cover_the_truth(times: int) -> None:
    """30 annotators and 50 prompts with opinions of their own, 200 verdicts in each study."""
    hits, studies = 0, 500 * times
    truth = 0.5
    for seed in range(studies):
        (rating,) = rate(study({"a": 0.0, "b": 0.0}, 200, seed), "a", seed).ratings
        hits += rating.win_rate.low <= truth <= rating.win_rate.high
    assert 0.92 <= hits / studies <= 0.98


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
