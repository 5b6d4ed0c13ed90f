"""The texts that ship: counted, unlike one another, and split for ever."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from itertools import combinations

from manners.data import DEMO_SYSTEM, demo_prompts, plain_text
from manners.types import PromptUse, Role


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def questions(use: PromptUse) -> list[str]:
    return [dialogue[-1].text for dialogue in demo_prompts()[use]]


HELD_TO, CHOSEN_BY, JUDGED_BY = (plain_text(use) for use in (PromptUse.TRAIN, PromptUse.VALIDATE, PromptUse.EVALUATE))
ALL = [question for use in PromptUse for question in questions(use)]


def test_every_prompt_is_a_system_turn_and_one_short_user_turn() -> None:
    for dialogue in (dialogue for prompts in demo_prompts().values() for dialogue in prompts):
        assert [turn.role for turn in dialogue] == [Role.SYSTEM, Role.USER]
        assert dialogue[0].text == DEMO_SYSTEM
        assert 4 <= len(dialogue[1].text.split()) <= 25


def test_counts_by_use() -> None:
    assert [len(questions(use)) for use in (PromptUse.TRAIN, PromptUse.VALIDATE, PromptUse.EVALUATE)] == [520, 40, 130]


def test_no_two_prompts_are_nearly_alike_within_or_across_uses() -> None:
    assert len({question.lower() for question in ALL}) == len(ALL)
    bags = [set(words(question)) for question in ALL]
    assert max(len(a & b) / len(a | b) for a, b in combinations(bags, 2)) < 0.7


def test_the_part_kept_for_evaluation_never_changes() -> None:
    held = hashlib.sha256("\n".join(questions(PromptUse.EVALUATE)).encode()).hexdigest()
    assert held.startswith("5f27cc3a55f57e74")


def test_uses_take_turns_so_that_they_share_topics() -> None:
    """The first 480 lines go topic by topic, so any stretch must hold every use; the rest are to train on."""
    lines = resources.files("manners.data").joinpath("prompts.jsonl").read_text(encoding="utf-8").splitlines()
    uses = [json.loads(line)["use"] for line in lines]
    assert all(set(uses[start : start + 15]) == set(PromptUse) for start in range(480 - 14))
    assert set(uses[480:]) == {PromptUse.TRAIN}


def test_all_text_is_printable_ascii() -> None:
    for text in [*ALL, *HELD_TO, *CHOSEN_BY, *JUDGED_BY]:
        assert text.isascii() and text.isprintable() and text == text.strip()


def test_the_prose_is_long_enough_and_shares_no_eight_words_in_a_row_with_a_prompt() -> None:
    assert 2300 <= sum(len(words(paragraph)) for paragraph in JUDGED_BY) <= 3000 and len(JUDGED_BY) > 20
    assert min(sum(len(words(paragraph)) for paragraph in texts) for texts in (HELD_TO, CHOSEN_BY)) >= 1000
    assert min(len(paragraph) for paragraph in [*HELD_TO, *CHOSEN_BY, *JUDGED_BY]) > 200

    def runs(text: str) -> set[tuple[str, ...]]:
        return set(zip(*(words(text)[i:] for i in range(8)), strict=False))

    every = [set().union(*map(runs, texts)) for texts in (ALL, HELD_TO, CHOSEN_BY, JUDGED_BY)]
    assert not any(a & b for a, b in combinations(every, 2))
