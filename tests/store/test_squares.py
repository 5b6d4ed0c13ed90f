"""What a small file comes to is known before it is made: no row, prompt or tree takes the square of its length."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from manners.store.files import answers, trees
from manners.store.files.arrays import json_object
from manners.store.files.columns import suggested
from manners.store.files.messages import MOST_PYTHON, listed
from manners.store.files.prompts import _moving
from manners.store.files.rows import BadRow, Reason
from manners.store.files.seen import unused
from manners.store.files.transfer import preview
from manners.types import Dialogue, PromptUse, Role, Turn
from tests.growth import growth

MANY = 200
"""Of so many answers, each compared with each are 19,900."""
TEXTS = [f"answer {number}" for number in range(MANY)]


def written(folder: Path, rows: Iterable[Any]) -> Path:
    path = folder / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def message(name: int, parent: int | None, text: str, role: str, rank: int | None = None) -> dict[str, Any]:
    return {"message_id": f"m{name}", "parent_id": None if parent is None else f"m{parent}", "text": text} | {
        "role": role,
        "rank": rank,
    }


def replies(texts: Iterable[str]) -> list[dict[str, Any]]:
    return [{"text": text, "role": "assistant", "rank": place, "replies": []} for place, text in enumerate(texts)]


CROWDED: dict[str, tuple[list[Any], str]] = {
    "right and wrong answers": ([{"prompt": "p", "chosen": TEXTS, "rejected": [f"no {t}" for t in TEXTS]}], "40,000"),
    "answers with scores": (
        [{"prompt": "p", "completions": [{"text": text, "score": n} for n, text in enumerate(TEXTS)]}],
        "19,900",
    ),
    "answers beside scores": ([{"prompt": "p", "responses": TEXTS, "scores": [*range(MANY)]}], "19,900"),
    "answers in as many rows": (
        [{"prompt": "p", "response": text, "score": n} for n, text in enumerate(TEXTS)],
        "19,900",
    ),
    "a tree": ([{"prompt": {"text": "p", "role": "prompter", "replies": replies(TEXTS)}}], "19,900"),
    "a table of messages": (
        [message(0, None, "p", "prompter"), *(message(n + 1, 0, text, "assistant", n) for n, text in enumerate(TEXTS))],
        "19,900",
    ),
}


@pytest.mark.parametrize("case", CROWDED)
def test_answers_that_come_to_too_many_comparisons_are_a_bad_row(tmp_path: Path, case: str) -> None:
    rows, count = CROWDED[case]
    found = preview(written(tmp_path, rows), {})
    assert (found.total, found.problems) == (1, {Reason.TOO_LONG: 1})
    assert f"comes to {count} comparisons, more than 10,000" in found.first_problem and "line " in found.first_problem


def test_as_many_as_are_allowed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_COUPLES", 45)
    ten = [{"prompt": "p", "response": text, "score": n} for n, text in enumerate(TEXTS[:10])]
    assert preview(written(tmp_path, ten), {}).total == 45
    eleven = [*ten, {"prompt": "p", "response": "one more", "score": 1}, {"prompt": "q", "response": "a", "score": 1}]
    found = preview(written(tmp_path, [*eleven, {"prompt": "q", "response": "b", "score": 2}]), {})
    assert (found.total, found.problems) == (2, {Reason.TOO_LONG: 1}), "and the other prompt's answers are"


def test_a_long_prompt_stands_in_each_comparison_and_counts_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "FREELY", 2**20)
    rows = [{"prompt": "p" * size, "chosen": TEXTS[:10], "rejected": TEXTS[10:20]} for size in (10_000, 10_600)]
    found = preview(written(tmp_path, rows), {})
    assert (found.total, found.problems) == (101, {Reason.TOO_LONG: 1})
    assert "line 2" in found.first_problem and "of more than 1 MiB, with the prompt in each" in found.first_problem


def chain(length: int, text: str = "so?") -> list[dict[str, Any]]:
    """A conversation of which each turn is answered twice: a table with one message a row."""
    rows = [message(0, None, text, "prompter")]
    for turn in range(1, length):
        person = turn % 2 == 0
        rows.append(message(2 * turn, 2 * turn - 2, text, "prompter" if person else "assistant", None if person else 0))
        if not person:
            rows.append(message(2 * turn + 1, 2 * turn - 2, f"not {text}", "assistant", 1))
    return rows


def test_a_conversation_without_end_is_not_written_down_as_its_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert preview(written(tmp_path, chain(100)), {}).problems == {}
    found = preview(written(tmp_path, chain(300)), {})
    assert found.problems == {Reason.TOO_LONG: 1} and "more than 100 messages" in found.first_problem
    monkeypatch.setattr(trees, "FREELY", 100_000)
    found = preview(written(tmp_path, chain(50, "x" * 1000)), {})
    assert found.problems == {Reason.TOO_LONG: 1} and "each with all that was said before it" in found.first_problem


def test_the_python_of_a_cell_is_taken_apart_up_to_a_quarter_of_a_mega_only() -> None:
    assert listed("['" + "a" * (MOST_PYTHON - 4) + "']") == ["a" * (MOST_PYTHON - 4)]
    assert listed("['" + "a" * (MOST_PYTHON - 3) + "']") is None
    assert listed('["' + "a" * (2 * MOST_PYTHON) + '"]') == ["a" * (2 * MOST_PYTHON)], "JSON is"


def test_what_is_not_read_is_named_as_one_by_one_would_name_it() -> None:
    names = {"a", "a.b", "a.b.c", "a-b.c", "ab", "b.c", "b.c.d", "b-d", "c.d", "c.e.f", "e"}
    left = names - {"e"}
    wanted = sorted(name for name in left if not any(name.startswith(f"{one}.") for one in left))
    assert unused(names, {"e"}) == tuple(wanted)


@pytest.mark.parametrize(
    ("size", "work"),
    [
        (2000, lambda count: unused({f"field {number}" for number in range(count)}, set())),
        (100, lambda count: suggested([f"column {number}" for number in range(count)], ("prompt", "left", "right"))),
        (2000, lambda count: json_object("{" + "".join(f'"{n}": 1, ' for n in range(count)) + '"z": 1, "z": 2}')),
    ],
)
def test_names_of_fields_take_no_square_of_their_number(size: int, work: Any) -> None:
    assert growth(work, size) < 3


def test_prompts_to_be_divided_take_no_square_where_as_many_are_kept_already() -> None:
    def kept(about: str, count: int) -> dict[Dialogue, PromptUse]:
        return {(Turn(Role.USER, f"{about} {number}"),): PromptUse.EVALUATE for number in range(count)}

    assert growth(lambda count: _moving(kept("of the store", count), kept("of the file", count)), 400) < 3


def test_a_bad_row_among_the_answers_is_named_by_its_line(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": ["a"], "rejected": ["b"]}, *CROWDED["right and wrong answers"][0]]
    assert "line 2" in preview(written(tmp_path, rows), {}).first_problem
    bad = answers.every_two("p", [answers.Answer(text, 1.0) for text in TEXTS], "response", {})
    with pytest.raises(BadRow, match="19,900"):
        next(bad)
