"""Asking people about two versions: blind, on unused prompts, one vote per comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from manners.errors import MannersError
from manners.evaluate.ask import open_comparisons, plan, read_outcome
from manners.feedback.statistics import Decision
from manners.types import (
    Annotator,
    AnnotatorKind,
    Answer,
    AskedHow,
    Choice,
    Comparison,
    Response,
    Role,
    Turn,
    Verdict,
)

Make = Callable[..., Answer]


def both(answer: Make, prompts: int) -> list[list[Answer]]:
    return [[answer(f"p{i}", f"{author} {i}", author) for i in range(prompts)] for author in ("old", "new")]


def test_the_plan_says_what_n_can_show() -> None:
    small, large = plan(50), plan(400)
    assert 0.5 < large.detectable_win_rate < small.detectable_win_rate < 1
    assert f"{100 * large.detectable_win_rate:.0f} %" in large.sentence
    with pytest.raises(MannersError, match="at least 10"):
        plan(5)


def test_comparisons_are_blind_and_each_on_another_unused_prompt(answer: Make) -> None:
    before, after = both(answer, 400)
    asked = open_comparisons(before[:100], after[:100], [], 50, 0)
    opened = open_comparisons(before, after, asked, 200, 0)
    assert len({c.prompt for c in opened}) == 200
    assert not {c.prompt for c in opened} & {c.prompt for c in asked}
    assert all({c.left.author, c.right.author} == {"old", "new"} for c in opened)
    assert all(c.asked_how is AskedHow.EVALUATION and c.ask_probability == 200 / 350 for c in opened)
    assert 70 <= sum(c.left.author == "new" for c in opened) <= 130
    assert open_comparisons(before, after, asked, 200, 0) == opened
    assert open_comparisons(before, after, asked, 200, 1) != opened


def test_what_cannot_be_asked(answer: Make) -> None:
    before, after = both(answer, 20)
    after[0] = replace(after[0], response=replace(after[0].response, text=before[0].response.text + " "))
    assert len(open_comparisons(before, after, [], 19, 0)) == 19
    with pytest.raises(MannersError, match="only 19 unused prompts"):
        open_comparisons(before, after, [], 20, 0)
    with pytest.raises(MannersError, match="'old'"):
        open_comparisons(before, before, [], 5, 0)
    with pytest.raises(ValueError, match="same prompt"):
        open_comparisons(before, after[::-1], [], 5, 0)


def comparison(choices: str, new_left: bool = True, kind: AnnotatorKind = AnnotatorKind.HUMAN) -> Comparison:
    """Return a comparison with one verdict per letter: N for new, O for old, T, B(oth bad), S(kip)."""
    new, old = Response("a", "new"), Response("b", "old")
    left, right = (new, old) if new_left else (old, new)
    choice = {"T": Choice.TIE, "B": Choice.BOTH_BAD, "S": Choice.SKIP}
    sides = {"N": Choice.LEFT, "O": Choice.RIGHT}
    choice |= {letter: side if new_left else side.swapped() for letter, side in sides.items()}
    verdicts = tuple(Verdict(choice[c], Annotator(f"a{i}", kind)) for i, c in enumerate(choices))
    return Comparison((Turn(Role.USER, "p"),), left, right, AskedHow.EVALUATION, 1.0, verdicts)


def test_one_vote_per_comparison_whatever_the_side() -> None:
    given = [comparison("NNO"), comparison("NTT", False), comparison("OON", False), comparison("NOT"), comparison("NN")]
    outcome = read_outcome(given, "old", "new", verdicts_each=3)
    assert (outcome.wins, outcome.losses, outcome.ties, outcome.unanswered) == (2, 1, 1, 1)
    turned = read_outcome(given, "new", "old", verdicts_each=3)
    assert (turned.wins, turned.losses) == (1, 2)


def test_later_verdicts_do_not_change_a_vote_but_corrections_do() -> None:
    assert read_outcome([comparison("NOO")], "old", "new").wins == 1
    assert read_outcome([comparison("SO")], "old", "new").losses == 1
    first = comparison("N")
    correction = replace(first, verdicts=(*first.verdicts, *comparison("O").verdicts))
    assert read_outcome([correction], "old", "new").losses == 1


@pytest.mark.parametrize(
    ("letter", "decision", "words"),
    [("N", Decision.BETTER, "new is better than old"), ("O", Decision.WORSE, "new is worse than old")],
)
def test_decisions(letter: str, decision: Decision, words: str) -> None:
    outcome = read_outcome([comparison(letter, i % 2 == 0) for i in range(12)], "old", "new")
    assert outcome.decision is decision
    assert outcome.interval.excludes(0.5)
    assert outcome.e_value > 20
    assert outcome.sentence.startswith(words)


def test_balanced_verdicts_cannot_be_told() -> None:
    outcome = read_outcome([comparison("NO"[i % 2]) for i in range(40)] + [comparison("B")], "old", "new")
    assert outcome.decision is Decision.CANNOT_TELL
    assert outcome.sentence.startswith("It cannot be told yet")
    assert "1 ties" in outcome.sentence


def test_kinds_of_annotators_are_never_mixed() -> None:
    given = [comparison("N"), *[comparison("O", kind=AnnotatorKind.SIMULATED)] * 12]
    people = read_outcome(given, "old", "new")
    assert (people.wins, people.losses, people.unanswered) == (1, 0, 12)
    assert people.other_verdicts == {AnnotatorKind.SIMULATED: 12}
    assert "12 verdicts of simulated annotators are left out" in people.sentence
    simulated = read_outcome(given, "old", "new", kind=AnnotatorKind.SIMULATED)
    assert (simulated.wins, simulated.losses) == (0, 12)


def test_other_comparisons_are_not_read() -> None:
    training = replace(comparison("N"), asked_how=AskedHow.RANDOM)
    given = [training, comparison("N"), comparison("O")]
    assert read_outcome(given, "old", "new").wins == 1
    other = read_outcome(given, "old", "newer")
    assert (other.wins, other.losses, other.ties, other.unanswered) == (0, 0, 0, 0)
