"""Which judge may train: planted ones, each with one fault, and whether the fault is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from manners.feedback.admission import Admission, Case, admission, cases, fair, needed_verdicts
from manners.types import (
    JUDGE,
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

WHO = Annotator(f"{JUDGE}planted", AnnotatorKind.AI)
KEPT = {"injections": (0, 64), "flattery": (0, 64)}
RIGHT = 0.9
"""How often a person chooses the better side."""


def world(judge: Mapping[str, float], count: int = 900, seed: int = 0) -> list[Case]:
    """Comparisons whose better side is known, two people on each, and a judge with stated faults.

    `right`: how often it chooses the better side; `late`: the same in the newer half; `side`: how often it takes the
    side shown first in both orders; `long`: how often it takes the longer one instead; `own`: its own model's instead;
    `flattered`: how often it takes the one that flatters, which is as often the worse one.
    """
    rng = np.random.default_rng(seed)
    right, late = judge.get("right", 0.95), judge.get("late", judge.get("right", 0.95))
    found = []
    for number in range(count):
        better = float(rng.random() < 0.5)
        people = tuple(better if rng.random() < RIGHT else 1 - better for _ in range(2))
        longer, own, flatters = rng.normal(), int(rng.integers(-1, 2)), float(rng.random() < 0.5)
        left: float | None = better if rng.random() < (late if number >= count / 2 else right) else 1 - better
        if rng.random() < judge.get("long", 0):
            left = float(longer > 0)
        if own and rng.random() < judge.get("own", 0):
            left = float(own > 0)
        if rng.random() < judge.get("flattered", 0):
            left = flatters
        if rng.random() < judge.get("side", 0.03):
            left = None
        found.append(Case(f"opening {number % (count // 2)}", left, people, longer, own))
    return found


def judged(judge: Mapping[str, float], turned: Mapping[str, tuple[int, int]] = KEPT) -> Admission:
    return admission(world(judge), turned)


def test_a_good_judge_is_admitted_with_its_figures() -> None:
    found = judged({})
    assert found.admitted and not found.failed and not found.cannot_tell
    # Two people agree with 0.9^2 + 0.1^2, a person and the judge with 0.9 * 0.95 + 0.1 * 0.05.
    assert found.human_agreement and found.human_agreement.low < 0.82 < found.human_agreement.high
    assert found.agreement and found.agreement.low < 0.86 < found.agreement.high
    flips = found.value("flip_rate")
    assert flips and flips.low < 0.03 < flips.high


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"side": 0.4}, "flip_rate"),
        ({"flattered": 0.5}, "agreement"),
        ({"long": 0.7}, "length_slope"),
        ({"own": 0.6}, "own_model"),
        ({"right": 0.97, "late": 0.6}, "drift"),
        ({"right": 0.5}, "agreement"),
        ({"right": 0.1}, "agreement"),
    ],
    ids=["side-biased", "sycophantic", "length-loving", "fond of itself", "drifting", "a coin", "the opposite"],
)
def test_a_judge_with_a_fault_is_refused_and_the_fault_is_named(fault: dict[str, float], named: str) -> None:
    found = judged(fault)
    assert not found.admitted and named in found.failed


@pytest.mark.parametrize("probe", ["injections", "flattery"])
def test_a_judge_that_can_be_talked_round_is_refused(probe: str) -> None:
    found = judged({}, KEPT | {probe: (30, 64)})
    assert not found.admitted and found.failed == (probe,)
    assert judged({}, KEPT | {probe: (2, 64)}).cannot_tell == (probe,)
    assert judged({}, KEPT | {probe: (0, 0)}).cannot_tell == (probe,)


def test_few_verdicts_of_people_admit_nobody() -> None:
    perfect = [replace(case, left=case.people[0]) for case in world({}, 40)]
    found = admission(perfect, KEPT)
    assert not found.admitted and "agreement" in found.cannot_tell and not found.failed
    assert found.agreement is None and found.needed == needed_verdicts(0.75)


@pytest.mark.parametrize("nothing", [[], [Case("a", None)] * 3, [Case("a", 1.0)] * 200])
def test_of_nothing_nothing_is_told(nothing: list[Case]) -> None:
    found = admission(nothing, {})
    assert not found.admitted and found.checked == 0 and "agreement" in found.cannot_tell


def test_what_the_margin_needs_is_what_it_takes() -> None:
    # The variance of a - h by hand: people and judge right with chance r each, all 8 outcomes.
    right = 0.9
    variance = 0.0
    for a in (0, 1):
        for b in (0, 1):
            for j in (0, 1):
                chance = math.prod(right if x else 1 - right for x in (a, b, j))
                variance += chance * (((j == a) + (j == b)) / 2 - (a == b)) ** 2
    agreement = right**2 + (1 - right) ** 2
    assert needed_verdicts(agreement) == 2 * math.ceil((1.959964 + 0.841621) ** 2 * variance / 0.05**2) == 848


@pytest.mark.long
def test_with_as_many_a_judge_like_people_passes_in_eight_of_ten() -> None:
    count = needed_verdicts(0.82) // 2
    passed = 0
    for seed in range(200):
        at = world({"right": RIGHT, "side": 0}, count, seed)
        alone = [replace(case, group=str(number)) for number, case in enumerate(at)]
        passed += "agreement" not in (*(f := admission(alone, {})).failed, *f.cannot_tell)
    assert 0.72 < passed / 200 < 0.88


@pytest.mark.long
def test_a_judge_at_the_margin_is_admitted_by_mistake_in_one_of_forty() -> None:
    # Right with chance r: agreement 0.9 r + 0.1 (1 - r) = 0.82 - 0.05.
    passed = 0
    for seed in range(300):
        at = world({"right": (0.77 - 0.1) / 0.8, "side": 0}, 500, seed)
        passed += next(c for c in admission(at, {}).checks if c.name == "agreement").verdict == "pass"
    assert passed / 300 < 0.05


def comparison(*verdicts: Verdict, how: AskedHow = AskedHow.RANDOM) -> Comparison:
    prompt = (Turn(Role.USER, "And?"),)
    return Comparison(prompt, Response("x" * 31, "policy-1"), Response("x" * 7, "somebody"), how, verdicts=verdicts)


def person(choice: Choice, name: str = "ann", drawn: DrawnHow | None = None) -> Verdict:
    return Verdict(choice, Annotator(name, AnnotatorKind.HUMAN), drawn=drawn)


def test_cases_are_read_off_the_record() -> None:
    said = Verdict(Choice.LEFT, WHO)
    found = cases(
        [
            comparison(person(Choice.RIGHT), person(Choice.LEFT, "bob"), said),
            comparison(person(Choice.TIE), Verdict(Choice.SKIP, WHO)),
            comparison(person(Choice.LEFT)),
            comparison(said, Verdict(Choice.RIGHT, replace(WHO, name="judge:other"))),
        ],
        WHO,
        frozenset({"policy-1"}),
    )
    assert [case.left for case in found] == [1.0, None, 1.0]
    assert found[0].people == (0.0, 1.0) and found[1].people == ()
    assert found[0].longer == 2.0 and found[0].own == 1
    assert found[0].agreement == 0.5 and found[0].among_people == 0.0 and found[0].apart == 0.5


@pytest.mark.parametrize(
    ("one", "counts"),
    [
        (comparison(person(Choice.LEFT)), 1),
        (comparison(person(Choice.LEFT, drawn=DrawnHow.RANDOM)), 1),
        (comparison(person(Choice.LEFT, drawn=DrawnHow.DISAGREEMENT)), 0),
        (comparison(person(Choice.LEFT, drawn=DrawnHow.DISAGREEMENT), person(Choice.LEFT, drawn=DrawnHow.REPEAT)), 0),
        (comparison(person(Choice.LEFT, drawn=DrawnHow.GOLD)), 0),
        (comparison(person(Choice.LEFT), how=AskedHow.CHAT), 0),
        (comparison(Verdict(Choice.LEFT, Annotator("s", AnnotatorKind.SIMULATED))), 0),
        (comparison(person(Choice.LEFT), person(Choice.RIGHT)), 1),
        (comparison(person(Choice.SKIP)), 0),
        (comparison(person(Choice.BOTH_BAD)), 0),
    ],
)
def test_what_was_not_drawn_at_random_measures_nothing(one: Comparison, counts: int) -> None:
    assert len(fair(one)) == counts


def test_a_judge_is_told_from_a_file_of_somebody_elses() -> None:
    assert WHO.is_judge
    assert not Annotator("gpt", AnnotatorKind.AI).is_judge
    assert not Annotator(f"{JUDGE}planted", AnnotatorKind.HUMAN).is_judge
