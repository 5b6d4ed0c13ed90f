"""Figures of a policy's behaviour where the answer is known: versions whose answers and likelihoods are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from manners.audit.amplification import amplification
from manners.audit.policy import Behaved, Told, figures, readings
from manners.audit.rules import POLICY, Rule, held, rules, together
from manners.data import behaviour
from manners.feedback.statistics import wilson
from manners.results.audit import CANNOT_TELL, FAIL, PASS, Check
from manners.reward.labelled import Counts, LabelledPair
from manners.types import Interval, Response, Role, Turn
from tests.audit.test_audit_gate import ruled

PACK = behaviour()
REFUSAL = "I'm sorry, but I cannot help with that."
AXES = tuple(dict.fromkeys(swap.axis for swap in PACK.swaps))
Normal = Callable[..., NDArray[np.float64]]


def made(rng: np.random.Generator, refused: tuple[float, float] = (0.1, 0.6)) -> Behaved:
    """Make up a version that refuses so many of the harmless and the harmful prompts, and treats groups alike."""

    def answer(prompt: str, refusing: float = 0.02) -> str:
        if rng.random() < refusing:
            return REFUSAL
        return f"About this: {prompt.lower()} " + "It depends on what you have at hand. " * int(rng.integers(1, 4))

    swaps = [(answer(one), answer(other)) for one, other in (swap.prompts() for swap in PACK.swaps)]
    return Behaved(
        benign=[answer(prompt, refused[0]) for prompt in PACK.benign],
        unsafe=[answer(prompt, refused[1]) for prompt in PACK.unsafe],
        swaps=swaps,
        scores=[(float(a), float(b)) for a, b in rng.normal(size=(len(swaps), 2))],
        truths=rng.normal(size=(len(PACK.truths), 4)).tolist(),
        contested=rng.normal(size=(len(PACK.contested), 4, 2)).tolist(),
        sentences=[(a.tolist(), b.tolist()) for a, b in rng.normal(size=(len(swaps), 2, 2))],
    )


def nudged(was: Behaved, rng: np.random.Generator, by: float) -> Behaved:
    """Move all likelihoods and scores at random, as weights moved at random do."""

    def moved(values: object) -> list[Any]:
        array = np.asarray(values, np.float64)
        found: list[Any] = (array + by * rng.normal(size=array.shape)).tolist()
        return found

    return replace(
        was,
        scores=[(a, b) for a, b in moved(was.scores)],
        truths=moved(was.truths),
        contested=moved(was.contested),
        sentences=[(a, b) for a, b in moved(was.sentences)],
    )


def checked(told: Sequence[Told]) -> dict[str, Check]:
    """Hold figures against the rules that ship, corrected for their number."""
    alone = [held(t.figure.name, rule(t), t.figure.value, t.figure.n, t.figure.sentence) for t in told]
    return {check.name: check for check in together(alone, [rule(t) for t in told])}


def rule(told: Told) -> Rule:
    return rules().of(POLICY, told.figure.name)


def audited(before: Behaved, after: Behaved) -> dict[str, Check]:
    return checked(figures(PACK, before, after))


@pytest.fixture(scope="module")
def before() -> Behaved:
    return made(np.random.default_rng(0))


def failed(found: dict[str, Check]) -> set[str]:
    return {name for name, check in found.items() if check.verdict == FAIL}


def test_a_version_beside_itself_passes_everything(before: Behaved, tmp_path: Path) -> None:
    found = audited(before, before)
    assert {check.verdict for check in found.values()} == {PASS} and {check.value for check in found.values()} == {0.0}
    assert all("English" in found[name].sentence for name in ("over_refusal", "truthfulness", "opinion_movement"))
    assert len(found) == 7 + 4 * len(AXES) and set(found) <= set(ruled(tmp_path, POLICY, found))


def test_one_that_refuses_everything_is_flagged(before: Behaved) -> None:
    mute = replace(before, benign=[REFUSAL] * 60, unsafe=[REFUSAL] * 60, swaps=[(REFUSAL, REFUSAL)] * 60)
    told = figures(PACK, before, mute)
    found = checked(told)
    assert {"over_refusal", "helpfulness"} <= failed(found) and not {"under_refusal", "truthfulness"} & failed(found)
    assert found["harmful_compliance"].verdict == PASS
    [over] = [one for one in told if one.figure.name == "over_refusal"]
    assert len(over.worst) == 3 and {case.after for case in over.worst} == {REFUSAL}
    assert all(case.before != REFUSAL and case.prompt in PACK.benign for case in over.worst)


def test_one_that_answers_whatever_is_asked_is_flagged(before: Behaved) -> None:
    eager = replace(before, unsafe=[f"Sure. To {prompt.lower()} take what you need." for prompt in PACK.unsafe])
    assert failed(audited(before, eager)) == {"under_refusal", "harmful_compliance"}


def test_one_that_believes_what_is_wrong_is_flagged(before: Behaved) -> None:
    wrong = replace(before, truths=[[0.0, 9.0, 0.0, 0.0]] * len(PACK.truths))
    found = audited(before, wrong)
    assert failed(found) == {"truthfulness"} and "25% by chance" in found["truthfulness"].sentence


@pytest.mark.parametrize("axis", AXES[:2])
def test_one_that_is_biased_on_purpose_is_flagged_on_that_axis_alone(before: Behaved, axis: str) -> None:
    """It speaks ill of the second of two, refuses to answer about them, and the reward model likes that."""
    biased = [swap.axis == axis for swap in PACK.swaps]
    after = replace(
        before,
        swaps=[(a, REFUSAL if bad else b) for bad, (a, b) in zip(biased, before.swaps, strict=True)],
        scores=[(a + 3 * bad, b) for bad, (a, b) in zip(biased, before.scores, strict=True)],
        sentences=[(a, [b[0] - 5.0 * bad, b[1]]) for bad, (a, b) in zip(biased, before.sentences, strict=True)],
    )
    found = failed(audited(before, after))
    assert {f"swap_lean_{axis}", f"swap_refusal_{axis}", f"swap_score_{axis}"} <= found
    assert not [name for name in found if name.startswith("swap_") and axis not in name and name != "swap_dependence"]


def test_one_that_takes_a_side_is_flagged_whichever_it_is(before: Behaved) -> None:
    """The first position of every question, and then each other one: what counts is that it moved."""
    firm = [[[4.0, 0.0]] * 4 for _ in PACK.contested]
    turned = [one if n % 2 else [[0.0, 4.0]] * 4 for n, one in enumerate(firm)]
    for contested in (firm, turned):
        assert failed(audited(before, replace(before, contested=contested))) == {"opinion_movement"}
    assert len({text for one in PACK.contested for text in readings(one)}) == 4 * len(PACK.contested)


def test_opinion_movement_by_hand() -> None:
    """Five questions: the mean probability of the first position goes from 1/2 to 3/4 in one of them."""
    asked = replace(PACK, benign=(), unsafe=(), truths=(), swaps=(), contested=PACK.contested[:5])
    even = [[[0.0, 0.0]] * 4 for _ in range(5)]
    was = Behaved([], [], [], [], [], even, [])
    three = float(np.log(3))
    now = replace(was, contested=[[[three, 0.0]] * 4, *even[1:]])
    [moved] = [one.figure for one in figures(asked, was, now) if one.figure.name == "opinion_movement"]
    half = 2.77644511 * 0.25 / 5  # t(4) times the standard error of 0.25, 0, 0, 0, 0: 0.05
    assert moved.value is not None
    assert (moved.value.estimate, moved.value.low, moved.value.high) == pytest.approx((0.05, 0.05 - half, 0.05 + half))
    untold = {one.figure.name: one.figure for one in figures(asked, was, now)}
    assert untold["over_refusal"].value is None and "too few to tell" in untold["over_refusal"].sentence


def test_the_correction_is_holms_by_hand() -> None:
    """Of ten checks, two fail alone: one by far, one by so little that ten times its p-value is above 5 %."""
    asked = Rule(better="below", threshold=0.0, margin=0.1)
    far, near = Interval(0.4, 0.3, 0.5), Interval(0.2, 0.12, 0.28)
    values = [far, near, *[Interval(0.0, -0.05, 0.05)] * 8]
    alone = [held(f"check_{n}", asked, value, 10_000, "A figure.") for n, value in enumerate(values)]
    assert [check.verdict for check in alone] == [FAIL, FAIL, *[PASS] * 8]
    # z = 1.96 * 0.1 / 0.08 = 2.45, p = 0.0143; the second smallest of ten is multiplied by nine.
    assert asked.p_value(near, 10_000) == pytest.approx(0.0143, abs=2e-4)
    found = together(alone, [asked] * 10)
    assert [check.verdict for check in found] == [FAIL, CANNOT_TELL, *[PASS] * 8]
    assert "not after a correction" in found[1].sentence and found[0].sentence == alone[0].sentence
    assert together(alone[1:2], [asked])[0].verdict == FAIL, "alone it fails"
    unmeasured = [held("bias", asked, None, 0, "Nothing.")] * 9
    assert together([*alone[1:2], *unmeasured], [asked] * 10)[0].verdict == FAIL, "what was not measured counts nothing"
    # At the edge the p-value and the interval agree, whichever way the rule looks.
    for edge in (
        Rule(better="above", threshold=0.0, margin=0.1, fails=None),
        Rule(better="within", threshold=0.0, margin=0.1),
        asked,
    ):
        sign = -1 if edge.better == "above" else 1
        touching = Interval(sign * 0.2, min(sign * 0.1, sign * 0.3), max(sign * 0.1, sign * 0.3))
        assert edge.p_value(touching, 40) == pytest.approx(0.05)
    assert asked.p_value(Interval(0.0, 0.0, 0.0), 10) == 1.0 and asked.p_value(Interval(0.2, 0.2, 0.2), 10) == 0.0


def null(rng: np.random.Generator, kind: str) -> tuple[Behaved, Behaved]:
    """Return two versions of which none behaves worse."""
    if kind == "fresh seeds":  # the same policy, drawn anew: likelihoods stay
        was = made(rng)
        return was, replace(was, **{name: getattr(made(rng), name) for name in ("benign", "unsafe", "swaps", "scores")})
    if kind == "weights moved at random":
        was = made(rng)
        return was, nudged(replace(was, benign=made(rng).benign, unsafe=made(rng).unsafe), rng, 0.3)
    was, now = made(rng, (0.1, 0.6)), made(rng, (0.3, 0.4))  # two that do differ, with their labels permuted
    now = nudged(replace(now, **{n: getattr(was, n) for n in ("truths", "contested", "sentences")}), rng, 0.5)
    coins = {name: rng.random(len(getattr(was, name))) < 0.5 for name in vars(was)}

    def dealt(one: Behaved, other: Behaved) -> Behaved:
        return Behaved(
            **{
                name: [
                    b if heads else a
                    for heads, a, b in zip(coin, getattr(one, name), getattr(other, name), strict=True)
                ]
                for name, coin in coins.items()
            }
        )

    return dealt(was, now), dealt(now, was)


KINDS = ("fresh seeds", "weights moved at random", "labels permuted")


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_audits_of_what_did_not_get_worse_raise_no_alarm(kind: str) -> None:
    rng = np.random.default_rng(7)
    assert sum(bool(failed(audited(*null(rng, kind)))) for _ in range(3)) <= 1


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_of_200_audits_of_what_did_not_get_worse_at_most_one_in_twenty_raises_an_alarm(kind: str) -> None:
    rng = np.random.default_rng(11)
    alarms = sum(bool(failed(audited(*null(rng, kind)))) for _ in range(200))
    assert alarms / 200 <= 0.05, f"{alarms} of 200: {wilson(alarms, 200)}"


def test_what_the_pack_is_about_is_found_sooner_than_by_equal_weights() -> None:
    """A policy that refuses three harmless prompts in ten more than the initial model did, forty times."""
    rng = np.random.default_rng(5)
    found = before = 0
    for _ in range(40):
        told = figures(PACK, made(rng), made(rng, (0.4, 0.6)))
        equal = [replace(rule(t), weight=1.0) for t in told]
        alone = [held(t.figure.name, rule(t), t.figure.value, t.figure.n, t.figure.sentence) for t in told]
        found += "over_refusal" in failed(checked(told))
        before += "over_refusal" in failed({check.name: check for check in together(alone, equal)})
    assert found > before, f"{found} of 40 by weight, {before} without"


def pair(number: int, left: str, right: str) -> LabelledPair:
    asked = (Turn(Role.USER, f"question {number}?"),)
    counts = Counts(3.0, 0.0, 0.0)
    return LabelledPair(number, asked, Response(left, "a"), Response(right, "b"), counts, counts, 0, f"group {number}")


def test_what_was_amplified_beside_what_was_chosen_by_hand() -> None:
    """People chose a refusal over an answer in half of the pairs, and the policy comes to refuse in all of them.

    The chosen ones refuse 0.25 more than both answers together, and the policy 1 more than before: a quarter.
    """
    learned = [pair(n, REFUSAL if n % 2 else "It is so.", "It is so.") for n in range(40)]
    found = {one.feature: one for one in amplification(["It is so."] * 20, [REFUSAL] * 20, learned, 0)}
    refusal = found["refusal"]
    assert refusal.change and refusal.chosen and refusal.change.estimate == 1.0
    assert refusal.chosen.estimate == 0.25 and refusal.share == 0.25 and "25% of the change" in refusal.sentence
    still = {one.feature: one for one in amplification(["It is so."] * 20, ["It is so."] * 20, learned, 0)}["refusal"]
    assert still.share is None and "cannot be told from none" in still.sentence
    alone = {one.feature: one for one in amplification(["It is so."] * 20, [REFUSAL] * 20, [], 0)}["refusal"]
    assert alone.chosen is None and "too few comparisons" in alone.sentence
    against = [pair(n, "It is so.", REFUSAL) for n in range(40)]
    other = {one.feature: one for one in amplification(["It is so."] * 20, [REFUSAL] * 20, against, 0)}["refusal"]
    assert other.share is not None and other.share < 0 and "point elsewhere" in other.sentence


def test_what_choices_that_are_even_account_for_is_not_said() -> None:
    even = [pair(n, *("It is so.", REFUSAL)[:: 1 if n % 2 else -1]) for n in range(40)]
    found = {one.feature: one for one in amplification(["It is so."] * 20, [REFUSAL] * 20, even, 0)}["refusal"]
    assert found.chosen and not found.chosen.excludes(0.0) and found.share is None
    assert found.sentence.endswith("The choices are not shown to favour it or the opposite.")


def test_none_of_a_few_answers_that_refuse_is_not_none_of_all() -> None:
    still = {one.feature: one for one in amplification(["It is so."] * 6, ["It is so."] * 6, [], 0)}
    for feature in ("refusal", "reservation"):
        change = still[feature].change
        assert change and change.estimate == 0.0 and change.low < -0.2 and change.high > 0.2
