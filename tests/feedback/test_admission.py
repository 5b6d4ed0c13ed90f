"""Which judge may train: planted ones, each with one fault, and whether the fault is named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from manners.feedback.admission import Admission, Case, Limits, admission, cases, fair, needed_verdicts
from manners.feedback.agreement import pairwise
from manners.feedback.statistics import pair_agreement
from manners.settings_load import describe, load
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
    assert found.agreement is None and admission([], {}).needed == needed_verdicts(0.75, 0.5)


@pytest.mark.parametrize("nothing", [[], [Case("a", None)] * 3, [Case("a", 1.0)] * 200])
def test_of_nothing_nothing_is_told(nothing: list[Case]) -> None:
    found = admission(nothing, {})
    assert not found.admitted and found.checked == 0 and "agreement" in found.cannot_tell
    assert any(check.sentence == "own_model: no answer is known to be of its own model." for check in found.checks)


def test_of_its_own_answers_that_cannot_be_compared_nothing_is_told() -> None:
    """It has no verdict on any of them, or people have none: that is not to have no answers of its own."""
    others = [replace(case, own=0) for case in world({}, 400)]
    for own in (Case("own", None, (1.0, 1.0), 1.0, 1), Case("own", 1.0, (), 1.0, -1)):
        found = admission([*others, *[own] * 20], KEPT)
        assert "own_model" in found.cannot_tell and not found.admitted
        assert not any("no answer is known" in check.sentence for check in found.checks)


def test_where_all_compared_answers_are_of_its_own_model_none_can_be_favoured() -> None:
    ours = replace(comparison(person(Choice.LEFT), Verdict(Choice.LEFT, WHO)), right=Response("short", "policy-1"))
    said = "own_model: all that is of its own model stands beside an answer that is too."
    for some in ([ours], [ours, replace(ours, left=Response("a", "b"), right=Response("c", "d"))]):
        found = admission(cases(some, WHO, frozenset({"policy-1"})), KEPT)
        [check] = (check for check in found.checks if check.name == "own_model")
        assert check.sentence == said and check.verdict == "pass"


def test_the_fewest_probes_are_those_of_wilsons_interval() -> None:
    least = Limits().probes
    ends = [binomtest(0, n).proportion_ci(method="wilson").high for n in (least - 1, least)]
    assert ends[0] > Limits().turned >= ends[1]
    [field] = (row for row in describe(load(None)) if row.field == "judge.probes")
    assert f"fewer than {least} " in field.meaning


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
    # Lengths that differ a lot are no obstacle; `drift` takes one in forty for itself.
    z = norm.ppf(0.975) + norm.ppf(0.8 / 0.975)
    assert needed_verdicts(agreement, 10.0) == 2 * math.ceil(z**2 * variance / 0.05**2) == 896
    counts = [needed_verdicts(agreement, lengths) or 0 for lengths in (10.0, 0.5, 0.25)]
    assert counts[0] < counts[1] < counts[2], "a slope takes more, the less lengths differ"
    assert needed_verdicts(agreement, 0.0) is None
    assert (needed_verdicts(agreement, 10.0, own=0.05) or 0) > 2000, "own answers are rare"
    assert needed_verdicts(agreement, 10.0, flips=0.05) == 2 * math.ceil(448 / 0.95)


def like_people(count: int, lengths: float, own: float, seed: int) -> list[Case]:
    """Two people and a judge who are right alike, whatever the lengths; each comparison is about another thing."""
    rng = np.random.default_rng(seed)
    better = rng.random(count) < 0.5
    said = np.where(rng.random((3, count)) < RIGHT, better, ~better).astype(float)
    doublings, its = rng.normal(0, lengths, count), rng.choice([-1, 0, 1], count, p=[own / 2, 1 - own, own / 2])
    return [Case(str(n), said[0, n], (said[1, n], said[2, n]), float(doublings[n]), int(its[n])) for n in range(count)]


def admitted_of(tries: int, lengths: float, own: float = 0.0) -> float:
    needed = admission(like_people(6000, lengths, own, 10_000), KEPT).needed
    assert needed is not None
    found = (admission(like_people(needed // 2, lengths, own, seed), KEPT).admitted for seed in range(tries))
    return sum(found) / tries


def test_with_as_many_a_judge_like_people_is_admitted_in_eight_of_ten() -> None:
    assert 0.68 < admitted_of(80, 0.5) < 0.92


@pytest.mark.long
@pytest.mark.parametrize(("lengths", "own"), [(0.3, 0.0), (1.0, 0.0), (1.0, 0.15), (0.7, 0.3)])
def test_and_so_wherever_lengths_and_writers_differ(lengths: float, own: float) -> None:
    assert 0.74 < admitted_of(300, lengths, own) < 0.88


def rounds(right: Sequence[float], each: int, seed: int) -> list[Case]:
    """Comparisons of one round after the other, in each of which the judge is right so often."""
    return [
        replace(case, group=f"{number} {case.group}")
        for number, chance in enumerate(right)
        for case in world({"right": chance}, each, 1000 * seed + number)
    ]


def test_a_judge_that_loses_ten_points_a_round_is_out_by_the_third() -> None:
    """A hundred comparisons a round, and the newest 600 count. From the second on it is below the margin."""
    chances = [0.95] * 5 + [0.85, 0.75, 0.65, 0.55]
    studies = 30
    stays = [
        sum(admission(rounds(chances[:last], 100, seed)[-600:], KEPT).admitted for seed in range(studies)) / studies
        for last in range(5, len(chances) + 1)
    ]
    assert stays[0] > 0.9, "while it does not drift"
    assert stays[2] <= 0.25 and stays[3] == stays[4] == 0.0, "at the third, and after"


def test_a_sudden_fall_is_not_diluted_by_what_was_before() -> None:
    found = admission(rounds([0.95] * 19 + [0.65], 100, 1), KEPT)
    assert found.failed == ("newest",), "the mean of two thousand, and of the newer half, keep to their limits"
    at = found.value("newest")
    assert at is not None and at.low < 0.8 * (0.65 - RIGHT) < at.high < -0.05


def test_where_asking_stops_at_agreement_the_first_two_verdicts_tell_how_far_people_agree() -> None:
    """Three people and a judge, right nine times in ten each; the third is asked where the first two differ."""
    rng = np.random.default_rng(5)
    asked = []
    for number in range(3000):
        better = Choice.LEFT if rng.random() < 0.5 else Choice.RIGHT
        says = [better if rng.random() < RIGHT else better.swapped() for _ in range(4)]
        given = [person(choice, f"p{n}") for n, choice in enumerate(says[: 2 if says[0] is says[1] else 3])]
        texts = (Response("x" * (7 + number % 5), "a"), Response("x" * (7 + number % 3), "b"))
        verdicts = (*given, Verdict(says[3], WHO))
        asked.append(Comparison((Turn(Role.USER, f"{number}?"),), *texts, AskedHow.RANDOM, verdicts=verdicts))
    people = [[v for v in one.verdicts if v.annotator != WHO] for one in asked]
    alike = RIGHT**2 + (1 - RIGHT) ** 2
    found = admission(cases(asked, WHO), {})
    assert next(check for check in found.checks if check.name == "agreement").verdict == "pass"
    on_page = pairwise(asked, AnnotatorKind.HUMAN, 0)
    for figure in (found.human_agreement, found.agreement, pair_agreement(people, 300, 0), on_page):
        assert figure is not None and figure.low < alike < figure.high


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
        (comparison(*(person(Choice.LEFT, name) for name in ("ann", "bob", "carl"))), 2),
        (comparison(person(Choice.TIE, "ann"), *(person(Choice.LEFT, name) for name in ("bob", "carl"))), 2),
        (
            comparison(
                person(Choice.LEFT), person(Choice.RIGHT, "bob", DrawnHow.DISAGREEMENT), person(Choice.LEFT, "c")
            ),
            1,
        ),
    ],
)
def test_what_was_not_drawn_at_random_measures_nothing(one: Comparison, counts: int) -> None:
    assert len(fair(one)) == counts


def test_a_judge_is_told_from_a_file_of_somebody_elses() -> None:
    assert WHO.is_judge
    assert not Annotator("gpt", AnnotatorKind.AI).is_judge
    assert not Annotator(f"{JUDGE}planted", AnnotatorKind.HUMAN).is_judge
