"""Reported answers asked for again, on cases whose outcome is plain."""

from __future__ import annotations

import pytest

from manners.audit.cases import figures
from manners.audit.rules import POLICY, held, rules, together
from manners.results.audit import CANNOT_TELL, FAIL, PASS, Check
from manners.store.cases import Case
from manners.store.flags import FlagReason
from manners.types import FinishReason, Response


def case(answer: str, finish: FinishReason = FinishReason.STOP) -> Case:
    return Case((), answer, "policy-1", FlagReason.WRONG, finish)


BAD = [case(f"Bad answer  {n}.") for n in range(6)]


def checked(reported: list[Case], said: list[str], was: list[float], now: list[float]) -> dict[str, Check]:
    """As an audit holds them against the rules that ship, among many other checks."""
    found = figures(reported, [Response(text, "policy-2", FinishReason.STOP) for text in said], was, now)
    of = [rules().of(POLICY, one.name) for one in found]
    alone = [held(one.name, rule, one.value, one.n, one.sentence) for one, rule in zip(found, of, strict=True)]
    return {check.name: check for check in together(alone, of)}


@pytest.mark.parametrize("again", ["Bad answer  3.", " bad ANSWER 3.\n"])
def test_one_answer_given_again_is_enough(again: str) -> None:
    said = [again if n == 3 else f"good {n}" for n in range(6)]
    found = checked(BAD, said, [], [])
    assert found["cases"].verdict == FAIL and found["cases"].value == pytest.approx(1 / 6)
    assert "Of 6 answers" in found["cases"].sentence and "1 are given again" in found["cases"].sentence
    assert checked(BAD[:1], ["bad answer 0."], [], [])["cases"].verdict == FAIL, "of one as well"


@pytest.mark.parametrize(
    ("reported", "was_cut", "said", "is_cut", "again"),
    [
        ("The moon is made", True, "the moon  is made of cheese.", False, True),
        ("The moon is made", False, "The moon is made of cheese.", False, False),  # another answer, that begins alike
        ("The moon is \ufffd", True, "The moon is é.", False, True),  # cut within a letter
        ("The moon is made", True, "The sun is made of cheese.", False, False),
        ("The moon is made of cheese.", False, "The moon is made of", True, True),
        ("The moon is made of cheese.", False, "The moon is made of", False, False),
        ("", True, "The moon.", False, False),
        ("The moon.", False, "", True, False),
    ],
)
def test_what_was_cut_off_is_given_again_as_far_as_it_goes(
    reported: str, was_cut: bool, said: str, is_cut: bool, again: bool
) -> None:
    ends = {True: FinishReason.LENGTH, False: FinishReason.STOP}
    [same, _] = figures([case(reported, ends[was_cut])], [Response(said, "policy-2", ends[is_cut])], [], [])
    assert same.value is not None and same.value.estimate == again
    assert ("1 of the 1 were cut off" in same.sentence) == was_cut


def test_other_words_pass_and_no_reward_model_says_nothing() -> None:
    found = checked(BAD, [f"good {n}" for n in range(6)], [], [])
    assert found["cases"].verdict == PASS
    assert found["cases_score"].verdict == CANNOT_TELL and "no reward model" in found["cases_score"].sentence


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([1.0, 1.2, 0.8, 1.1, 0.9], PASS),
        ([-1.0, -1.2, -0.8, -1.1, -0.9], FAIL),
        ([1.0, -1.0, 2.0, -2.0, 0.1], CANNOT_TELL),
        ([1.0, 1.2, 0.8, 1.1], CANNOT_TELL),  # too few
    ],
)
def test_scores_say_by_how_much_and_few_say_nothing(gains: list[float], verdict: str) -> None:
    count = len(gains)
    was = [3.0 * n for n in range(count)]
    found = checked(BAD[:count], ["good"] * count, was, [a + gain for a, gain in zip(was, gains, strict=True)])
    assert found["cases_score"].verdict == verdict
    if found["cases_score"].value is not None:
        assert found["cases_score"].value == pytest.approx(sum(gains) / count)


def test_without_a_case_there_is_no_figure() -> None:
    """A pass on nothing would satisfy a gate that requires one, and take its place among the checks corrected for."""
    assert figures([], [], [], []) == []
