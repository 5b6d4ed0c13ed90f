"""The starter pack of `manners audit policy`: counted, well formed, and unlike one another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import pytest

from manners.data import Question, behaviour, demo_prompts

PACK = behaviour()


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def test_there_is_enough_of_everything() -> None:
    assert len(PACK.benign) >= 60 and len(PACK.unsafe) >= 60
    assert len(PACK.truths) >= 100 and len(PACK.swaps) >= 60 and len(PACK.contested) >= 40
    assert set(Counter(swap.axis for swap in PACK.swaps).values()) == {10}, "each axis says as much"


@pytest.mark.parametrize(
    "texts",
    [
        (*PACK.benign, *PACK.unsafe),
        [question.context for question in PACK.truths],
        [wording for one in PACK.contested for wording in one.wordings],
        [swap.prompt for swap in PACK.swaps],
        [swap.context for swap in PACK.swaps],
    ],
    ids=["prompts", "questions", "contested", "open swaps", "sentences"],
)
def test_no_two_are_alike(texts: Sequence[str]) -> None:
    assert len({text.lower() for text in texts}) == len(texts)
    bags = [words(text) for text in texts]
    close = [(texts[i], texts[j]) for i, j in combinations(range(len(bags)), 2) if _alike(bags[i], bags[j]) > 0.85]
    assert not close


def _alike(one: set[str], other: set[str]) -> float:
    return len(one & other) / max(1, len(one | other))


def test_prompts_are_short_turns_of_a_user() -> None:
    for prompt in (*PACK.benign, *PACK.unsafe, *(text for swap in PACK.swaps for text in swap.prompts())):
        assert prompt[0].isupper() and prompt[-1] in ".?" and 4 <= len(prompt.split()) <= 24, prompt
        assert prompt == " ".join(prompt.split())
    asked = {dialogue[-1].text for prompts in demo_prompts().values() for dialogue in prompts}
    assert not asked & {*PACK.benign, *PACK.unsafe}, "nothing is trained on by the demo"


def test_each_question_has_one_right_answer_that_its_looks_do_not_give_away() -> None:
    for question in PACK.truths:
        assert question.context.endswith("?") and len(question.answers) == 4
        assert len({answer.lower() for answer in question.answers}) == 4, question.context
        assert all(answer == answer.strip() and answer[0].isalnum() for answer in question.answers)
    for pick in (max, min):  # who takes the longest answer, or the shortest, is right about as often as by chance
        by_length = [question.answers.index(pick(question.answers, key=len)) == 0 for question in PACK.truths]
        assert 0.15 < sum(by_length) / len(by_length) < 0.42


def differing(one: str, other: str) -> tuple[str, str]:
    """Return what is left of two texts without what they begin and end with in common, word by word."""
    a, b = one.split(), other.split()
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return " ".join(a), " ".join(b)


def test_a_swap_changes_who_it_is_about_and_nothing_else() -> None:
    assert len({swap.who for swap in PACK.swaps}) == len(PACK.swaps)
    for swap in PACK.swaps:
        first, second = swap.who
        assert first != second and "{who}" not in "".join((*swap.who, *swap.ways)) and swap.ways[0] != swap.ways[1]
        for template, texts in (
            (swap.prompt, swap.prompts()),
            (swap.context, [question.context for question in swap.sentences()]),
        ):
            assert template.count("{who}") == 1 and "{" not in "".join(texts)
            left, right = differing(*texts)
            assert left.strip(",.?'") in first and right.strip(",.?'") in second, "only the person differs"
        assert {question.answers for question in swap.sentences()} == {swap.ways}


def test_sentences_end_as_they_are_scored() -> None:
    """What follows stands behind a space, and ends the sentence."""
    for question in (question for swap in PACK.swaps for question in swap.sentences()):
        assert isinstance(question, Question) and not question.context.endswith((" ", "."))
        assert all(way.endswith(".") and way[0].islower() for way in question.answers)


def test_a_contested_question_takes_no_side() -> None:
    """Two wordings, two positions of about one length: neither order nor length is to speak for one of them."""
    longer = []
    for one in PACK.contested:
        assert all(wording.endswith("?") for wording in one.wordings) and one.wordings[0] != one.wordings[1]
        assert all(position.endswith(".") for position in one.positions) and one.positions[0] != one.positions[1]
        first, second = (len(position) for position in one.positions)
        assert max(first, second) <= 2.5 * min(first, second), one.positions
        longer.append(first > second)
    assert 0.2 < sum(longer) / len(longer) < 0.8
