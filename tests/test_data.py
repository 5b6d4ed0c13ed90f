"""The texts that ship: counted, unlike one another, and split for ever."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from importlib import resources
from itertools import combinations
from pathlib import Path

import pytest

from manners.data import DEMO_SYSTEM, PIECE, Question, demo_prompts, own_text, plain_text
from manners.data import questions as likelihood_questions
from manners.errors import MannersError
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


def test_a_users_own_text_is_split_by_what_stands_in_it(tmp_path: Path) -> None:
    file, longer = tmp_path / "eigen.txt", tmp_path / "more.txt"
    texts = [f"Absatz {i} über Ebbe\n  und Flut." for i in range(200)]
    file.write_text("\r\n \r\n".join([*texts, texts[0]]), encoding="utf-8-sig")
    found = own_text(file)
    assert sorted(piece for pieces in found.values() for piece in pieces) == sorted(texts), "as it is written"
    shares = {use: len(pieces) / 200 for use, pieces in found.items()}
    assert shares == pytest.approx({PromptUse.TRAIN: 0.3, PromptUse.VALIDATE: 0.2, PromptUse.EVALUATE: 0.5}, abs=0.08)
    words = " ".join(f"wort{i}" for i in range(2000))
    longer.write_text("\n\n".join(["Etwas davor.", *reversed(texts), words, "字" * 1500]), encoding="utf-8")
    more = own_text(longer)
    assert all(set(found[use]) <= set(more[use]) for use in PromptUse), "a paragraph keeps its use"
    pieces = {piece for use in PromptUse for piece in more[use]}
    assert max(map(len, pieces)) == PIECE
    assert {word for piece in pieces for word in piece.split()} >= set(words.split()), "nothing is cut away"
    assert {"字" * PIECE, "字" * (1500 - 2 * PIECE)} <= pieces, "no spaces, no words: cut all the same"


def test_lines_of_code_stay_lines_and_their_indentation_stays(tmp_path: Path) -> None:
    file = tmp_path / "code.txt"
    short = [f"def f{i}(x):\n    if x:\n        return {i}" for i in range(60)]
    lines = [f"    total = total + {i} * weight[{i}]" for i in range(60)]
    file.write_text("\n\n".join([*short, "\n".join(lines)]), encoding="utf-8")
    pieces = [piece for some in own_text(file).values() for piece in some]
    assert set(short) <= set(pieces)
    parts = [piece for piece in pieces if piece not in short]
    assert len(parts) > 1 and max(map(len, parts)) <= PIECE
    assert sorted(line for part in parts for line in part.split("\n")) == sorted(lines)


def test_a_long_line_behind_a_short_one_leaves_that_whole(tmp_path: Path) -> None:
    file = tmp_path / "titles.txt"
    short = [f"Paragraph {i} of many." for i in range(60)]
    file.write_text("\n\n".join([*short, "Title of it\n" + "y" * (2 * PIECE)]), encoding="utf-8")
    pieces = {piece for some in own_text(file).values() for piece in some}
    assert "Title of it" in pieces and "y" * PIECE in pieces


def test_a_text_that_will_not_do_is_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    with pytest.raises(MannersError, match="cannot be read as UTF-8 text"):
        own_text(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MannersError, match="cannot be read as UTF-8 text"):
        own_text(file)
    file.write_text("One paragraph.\n\nAnother.")
    with pytest.raises(MannersError, match="each use needs 5; give a text of 50 paragraphs or more"):
        own_text(file)


ASKED = likelihood_questions()


def groups() -> dict[tuple[str, ...], list[Question]]:
    """Questions by the answers that they share."""
    found: dict[tuple[str, ...], list[Question]] = {}
    for question in ASKED:
        found.setdefault(tuple(sorted(question.answers)), []).append(question)
    return found


def test_there_are_enough_questions_of_four_families_and_no_two_alike() -> None:
    counted = Counter(question.family for question in ASKED)
    assert set(counted) == {"agreement", "facts", "arithmetic", "copying"}
    assert len(ASKED) >= 120 and min(counted.values()) >= 30
    assert len({(q.context, q.answers[0]) for q in ASKED}) == len({q.context for q in ASKED}) == len(ASKED)


def test_whoever_looks_at_the_answers_alone_is_right_by_chance() -> None:
    """Each answer of a group is right once: liking the short, the long, the first in the alphabet comes to 1 in k."""
    for answers, of_group in groups().items():
        assert len(answers) == len(of_group) == len(set(answers))
        assert sorted(question.answers[0] for question in of_group) == list(answers)
    for liking in (len, lambda text: -len(text), str):
        for family in ("agreement", "facts", "arithmetic", "copying"):
            asked = [q for q in ASKED if q.family == family]
            right = sum(min(sorted(q.answers), key=liking) == q.answers[0] for q in asked)
            assert right == pytest.approx(sum(1 / len(q.answers) for q in asked))


def test_sums_are_right_and_copies_stand_in_the_context() -> None:
    for question in ASKED:
        if question.family == "arithmetic":
            sum_asked = question.context.rsplit(", ", 1)[1].removesuffix(" =")
            assert str(eval(sum_asked)) == question.answers[0]
            assert sum_asked not in question.context.rsplit(", ", 1)[0]
        if question.family == "copying":
            stands = [answer.rstrip(".") in words(question.context) for answer in (a.lower() for a in question.answers)]
            assert stands == [True, False, False], question


def test_the_questions_never_change() -> None:
    held = hashlib.sha256(json.dumps([[q.family, q.context, q.answers] for q in ASKED]).encode()).hexdigest()
    assert held.startswith("6eadfe518d7061a3")
