"""Files that were read, and read wrongly: each was taken for something else than it says, without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from manners.errors import MannersError
from manners.store import Store
from manners.store.files.exchanges import parse_exchange
from manners.store.files.prompts import import_prompts
from manners.store.files.rows import BadRow, Reason
from manners.store.files.transfer import import_comparisons, preview, read_comparisons
from manners.types import Choice, Comparison, PromptUse, Role
from tests.store.test_published import assistant, jsonl, opinion, sheet, user

HI: dict[str, Any] = {"prompt": "Hi"}
TRAIN = {PromptUse.TRAIN: 1.0}


def only(path: Path, **options: Any) -> Comparison:
    [one] = read_comparisons(path, {}, **options)
    return one


def said(one: Comparison) -> Choice:
    [verdict] = one.verdicts
    return verdict.choice


# Objects in the cells of a sheet.

WEBGPT: dict[str, Any] = {"question": {"dataset": "eli5", "full_text": "Why don't"}, "answer_0": "A", "answer_1": "B"}
WEBGPT |= {"score_0": 0.5, "score_1": -0.5}
OPENAI: dict[str, Any] = {"input": {"messages": [user("Hi")], "tools": []}}
OPENAI |= {"preferred_output": [assistant("A")], "non_preferred_output": [assistant("B")]}
SUMMARIES: dict[str, Any] = {"info": {"post": "Hi", "title": "t", "article": None}, "choice": 0, "worker": "w"}
SUMMARIES |= {"summaries": [{"text": "A", "policy": "m1"}, {"text": "B", "policy": "m2"}]}
TREE: dict[str, Any] = {"prompt": {"text": "Hi", "role": "prompter"}, "message_tree_id": "t"}
TREE["prompt"]["replies"] = [{"text": t, "role": "assistant", "rank": r} for r, t in enumerate("AB")]
NECTAR: dict[str, Any] = {
    "prompt": "Hi",
    "answers": [{"answer": t, "rank": r, "model": "m"} for r, t in enumerate("AB")],
}


@pytest.mark.parametrize("written", [json.dumps, repr])
@pytest.mark.parametrize(
    ("row", "prompt"), [(WEBGPT, "Why don't"), (OPENAI, "Hi"), (SUMMARIES, "Hi"), (TREE, "Hi"), (NECTAR, "Hi")]
)
def test_an_object_in_a_cell_is_read_as_in_a_line(
    tmp_path: Path, store: Store, row: dict[str, Any], prompt: str, written: Callable[[Any], str]
) -> None:
    cells = {name: written(value) if isinstance(value, list | dict) else value for name, value in row.items()}
    path = sheet(tmp_path / "some.csv", [cells])
    line = only(jsonl(tmp_path / "some.jsonl", [row]))
    assert only(path).prompt == line.prompt
    assert line.prompt[-1].text == prompt
    assert opinion(only(path)) == opinion(line) == ("A", "B", ">")
    assert import_prompts(store, path, TRAIN).new == 1
    assert store.prompts()[0].dialogue == line.prompt


# Answers that look like lists.


def test_an_answer_that_is_a_list_in_json_is_a_text(tmp_path: Path) -> None:
    row = {"prompt": "Name fruit, as JSON", "chosen": '["apple", "pear"]', "rejected": '["apple"]'}
    assert opinion(only(jsonl(tmp_path / "some.jsonl", [row]))) == (row["chosen"], row["rejected"], ">")
    battle = {"prompt": "Name fruit", "response_a": '["apple"]', "response_b": '["pear"]', "winner": "model_b"}
    assert opinion(only(jsonl(tmp_path / "arena.jsonl", [battle]))) == ('["pear"]', '["apple"]', ">")


def test_answers_of_several_turns_are_still_told_from_the_prompt(tmp_path: Path) -> None:
    row = {"prompt": '["Hi", "and?"]', "response_a": '["A", "A2"]', "response_b": '["B", "B2"]', "winner": "tie"}
    path = jsonl(tmp_path / "some.jsonl", [row, row | {"response_a": "[]"}, row | {"prompt": '["Hi"]'}])
    assert preview(path, {}).problems == {Reason.TRANSCRIPT: 3}


# Scores.


@pytest.mark.parametrize(
    "name",
    [
        "rating_chosen",
        "chosen_reward_score",
        "chosen_overall_score",
        "score.chosen",
        "scoreChosen",
        "chosen_scores",
        "Chosen Rating",
        "CHOSEN_RM_SCORE",
        "chosen_rank",
    ],
)
def test_equal_scores_are_a_tie_whatever_they_are_called(tmp_path: Path, name: str) -> None:
    other = name.replace("chosen", "rejected").replace("Chosen", "Rejected").replace("CHOSEN", "REJECTED")
    row = HI | {"chosen": "A", "rejected": "B", name: 2, other: 2.0}
    path = jsonl(tmp_path / "some.jsonl", [row])
    assert said(only(path)) is Choice.TIE
    assert preview(path, {}).unused == ()
    better, worse = (1, 3) if "rank" in name else (3, 1)
    assert opinion(only(jsonl(path, [row | {name: better, other: worse}]))) == ("A", "B", ">")
    with pytest.raises(MannersError, match=f"says the opposite of the verdict: {worse} beside {better}"):
        only(jsonl(path, [row | {name: worse, other: better}]))


@pytest.mark.parametrize("name", ["chosen_toxicity_score", "chosen_length", "chosen_model", "chosen_rating_count"])
def test_a_number_that_is_not_how_good_an_answer_is_decides_nothing(tmp_path: Path, name: str) -> None:
    other = name.replace("chosen", "rejected")
    path = jsonl(tmp_path / "some.jsonl", [HI | {"chosen": "A", "rejected": "B", name: 2, other: 2}])
    assert opinion(only(path)) == ("A", "B", ">")


def test_two_equal_ratings_in_one_list_are_a_tie(tmp_path: Path) -> None:
    row = HI | {"chosen": "A", "rejected": "B", "generations": ["B", "A"], "rating": [9.0, 9.0]}
    rows = [row, row | {"rating": [9.0, 8.0]}, row | {"rating": None}, row | {"rating": ["good", "good"]}]
    found = list(read_comparisons(jsonl(tmp_path / "some.jsonl", rows), {}))
    assert [said(one) is Choice.TIE for one in found] == [True, False, False, False]


# K answers.


def test_an_instruction_is_asked_with_the_text_that_it_is_about(store: Store, tmp_path: Path) -> None:
    rows = [
        {"instruction": "Translate", "input": word, "responses": ["house", "mouse"], "scores": scores}
        for word, scores in (("Haus", [2, 1]), ("Maus", [1, 2]), ("", [1, 1]))
    ]
    path = jsonl(tmp_path / "some.jsonl", rows)
    result = import_comparisons(store, path, {}, skip_bad=False)
    assert [one.prompt[-1].text for one in store.comparisons()] == [
        "Translate\n\nHaus",
        "Translate\n\nMaus",
        "Translate",
    ]
    assert (result.unused, result.ties) == ((), 1)


def test_an_answer_that_is_there_twice_is_not_another_persons(tmp_path: Path) -> None:
    lists = HI | {"chosen": ["A"], "rejected": ["B", "B"], "num_correct": 1}
    ranks = HI | {"answers": [{"answer": t, "rank": r} for t, r in (("A", 1), ("B", 2), ("A", 3))]}
    for row, same in ((lists, 1), (ranks, 2)):
        path = jsonl(tmp_path / "some.jsonl", [row])
        assert opinion(only(path)) == ("A", "B", ">")
        assert preview(path, {}).left_out == {Reason.IDENTICAL: same}


def test_each_annotators_scores_are_compared_with_their_own(tmp_path: Path) -> None:
    rows = [
        HI | {"response": text, "score": score, "annotator": who}
        for who, scores in (("ann", (5, 3)), ("bob", (1, 2)))
        for text, score in zip("AB", scores, strict=True)
    ]
    path = jsonl(tmp_path / "some.jsonl", rows)
    found = {one.verdicts[0].annotator.name: opinion(one) for one in read_comparisons(path, {})}
    assert found == {"ann": ("A", "B", ">"), "bob": ("B", "A", ">")}
    assert preview(path, {}).unused == ()


@pytest.mark.parametrize(
    "row",
    [
        {"answers": [{"answer": "B", "rank": None, "score": 1}, {"answer": "A", "rank": None, "score": 3}]},
        {"responses": [[assistant("B")], [assistant("A")]], "scores": [1, 3]},
        {"responses": [assistant("B"), assistant("A")], "scores": [1, 3]},
    ],
)
def test_answers_are_read_by_the_scores_that_there_are(tmp_path: Path, row: dict[str, Any]) -> None:
    assert opinion(only(jsonl(tmp_path / "some.jsonl", [HI | row]))) == ("A", "B", ">")


def test_an_answer_that_is_missing_comes_to_bad_rows_whichever_it_is(tmp_path: Path) -> None:
    answers = [{"answer": None, "score": 3}, {"answer": "B", "score": 1}, {"answer": "A", "score": 2}]
    for turn in range(3):
        row = HI | {"answers": answers[turn:] + answers[:turn]}
        found = preview(jsonl(tmp_path / "some.jsonl", [row]), {})
        assert (found.problems, [opinion(one) for one in found.rows]) == ({Reason.EMPTY: 2}, [("A", "B", ">")])


# One answer, and no more.


@pytest.mark.parametrize("output", [[assistant("A"), assistant("B")], [user("A")], [user("Hi"), assistant("A")]])
def test_a_preferred_output_is_one_answer(tmp_path: Path, output: list[Any]) -> None:
    path = jsonl(tmp_path / "some.jsonl", [OPENAI | {"preferred_output": output}])
    with pytest.raises(MannersError, match="line 1, field `preferred_output`: is not one assistant message"):
        only(path)


def test_what_closes_a_turn_of_the_prompt_is_no_part_of_the_answer_in_any_format(tmp_path: Path) -> None:
    chatml = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    spoken = "Human: Hi\n\nAssistant:"
    for prompt, text in ((chatml, "A<|im_end|>"), (spoken, " A")):
        for row in (
            {"left": text, "right": text.replace("A", "B"), "verdict": "left"},
            {"chosen": text, "rejected": text.replace("A", "B")},
            {"answers": [{"answer": text, "rank": 1}, {"answer": text.replace("A", "B"), "rank": 2}]},
        ):
            one = only(jsonl(tmp_path / "some.jsonl", [{"prompt": prompt} | row]))
            assert (opinion(one), one.prompt[-1].text) == (("A", "B", ">"), "Hi")
        assert parse_exchange({"prompt": prompt, "response": text}, "file")[1].text == "A"
    assert parse_exchange(HI | {"response": " A<|im_end|>"}, "file")[1].text == " A<|im_end|>"


def test_messages_to_be_scored_come_after_what_the_system_column_says() -> None:
    talk = {"messages": [user("Hi"), assistant("A")], "system": "Be brief"}
    prompt, response = parse_exchange(talk, "file")
    assert [(turn.role, turn.text) for turn in prompt] == [(Role.SYSTEM, "Be brief"), (Role.USER, "Hi")]
    assert response.text == "A"
    with pytest.raises(BadRow, match="is not the system turn"):
        parse_exchange(talk | {"messages": [{"role": "system", "content": "Be long"}, *talk["messages"]]}, "file")


@pytest.mark.parametrize("name", ["AI", "Bot", "ASSISTANT", "### Assistant"])
def test_a_transcript_may_call_the_assistant_otherwise(tmp_path: Path, name: str) -> None:
    human = "### Human" if name.startswith("#") else "Human"
    prompt = f"{human}: Hi\n{name}: Hello\n{human}: And?\n{name}:"
    path = jsonl(tmp_path / "some.jsonl", [{"prompt": prompt, "chosen": " A", "rejected": " B"}])
    one = only(path)
    assert [(turn.role, turn.text) for turn in one.prompt] == [
        (Role.USER, "Hi"),
        (Role.ASSISTANT, "Hello"),
        (Role.USER, "And?"),
    ]
    assert opinion(one) == ("A", "B", ">")
    assert preview(path, {}).notes == ("1 prompts are transcripts and are read as turns",)
    plain = jsonl(path, [{"prompt": f"User: who is {name}: a person?", "chosen": "A", "rejected": "B"}])
    assert len(only(plain).prompt) == 1


def test_a_transcript_that_was_read_is_not_pointed_out(tmp_path: Path) -> None:
    chatml = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
    for talk in ("Human: Hi\nAI: {}", chatml):
        path = jsonl(tmp_path / "some.jsonl", [{"chosen": talk.format("A"), "rejected": talk.format("B")}])
        assert opinion(only(path)) == ("A", "B", ">")
        assert preview(path, {}).notes == ()
        jsonl(path, [{"chosen": talk.format("caf\u00c3\u00a9"), "rejected": talk.format("B")}])
        assert [note.partition(",")[0] for note in preview(path, {}).notes] == ["1 rows have `\u00c3\u00a9`"]


def test_a_space_is_taken_off_behind_a_turns_mark_only(tmp_path: Path) -> None:
    prompt = "User: Hi\nAI: Hello\nUser: Explain this AI:"
    assert opinion(only(jsonl(tmp_path / "some.jsonl", [{"prompt": prompt, "chosen": " A", "rejected": " B"}]))) == (
        " A",
        " B",
        ">",
    )


def test_a_name_that_was_not_read_as_a_turn_is_pointed_out(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Human: Hi", "chosen": "Assistant: A", "rejected": "Assistant: B"},
        {"prompt": "Hi", "chosen": "C", "rejected": "AI: D"},
        {"prompt": "Human: Hi\n\nAssistant:", "chosen": " E", "rejected": " F"},
        {"prompt": "User experience: what is it?", "chosen": "G", "rejected": "H"},
    ]
    notes = preview(jsonl(tmp_path / "some.jsonl", rows), {}).notes
    assert [note.partition(",")[0] for note in notes] == [
        "1 prompts are transcripts and are read as turns",
        "1 rows have `Human:` at the beginning of a text",
        "1 rows have `AI:` at the beginning of a text",
    ]


# Words.


def test_true_and_false_are_words_for_verdicts(tmp_path: Path) -> None:
    rows = [HI | {"left": "A", "right": "B", "verdict": True}, HI | {"left": "A", "right": "C", "verdict": False}]
    words = {"true": Choice.LEFT, "false": Choice.RIGHT}
    found = list(read_comparisons(jsonl(tmp_path / "some.jsonl", rows), {}, words=words))
    assert [opinion(one) for one in found] == [("A", "B", ">"), ("C", "A", ">")]
    with pytest.raises(MannersError, match=r"is 'true', which is not one of .* --verdict WORD=VERDICT"):
        list(read_comparisons(jsonl(tmp_path / "some.jsonl", rows), {}))


@pytest.mark.parametrize(("yes", "no"), [("TRUE", "FALSE"), ("WAHR", "FALSCH"), ("VRAI", "FAUX"), ("PRAWDA", "FAŁSZ")])
def test_our_sheet_comes_back_from_a_spreadsheet_in_another_language(tmp_path: Path, yes: str, no: str) -> None:
    path = tmp_path / "some.csv"
    lines = [
        "prompt;left;right;verdict;exchanged;escaped",
        f"Hi;'=A;B;left;{yes};{yes}",
        f"Hi;'=A;C;left;{no};{no}",
    ]
    path.write_text("\r\n".join(lines), encoding="utf-8-sig")
    found = list(read_comparisons(path, {}))
    assert [(one.left.text, one.verdicts[0].exchanged) for one in found] == [("=A", True), ("'=A", False)]


@pytest.mark.parametrize("field", ["judge", "judge_hash", "annotator"])
def test_a_judge_with_the_name_of_a_model_is_pointed_out(tmp_path: Path, field: str) -> None:
    row = HI | {"response_a": "A", "response_b": "B", "winner": "model_a", field: "gpt4_pair"}
    [note] = preview(jsonl(tmp_path / "some.jsonl", [row]), {}).notes
    assert "the annotator `gpt4_pair`, who counts as the kind that --annotator-kind says" in note


# Files that are something else.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt\tchosen\trejected\nHi\tA\tB\n", "holds columns, and no line is a prompt; name it with .csv or .tsv"),
        ("Frage\tGut\tSchlecht\r\nHi\tA\tB\r\n", "holds columns"),
        ("prompt\nHi\n", "holds columns"),
        ("id,prompt\n1,Hi\n", "holds columns"),
        ('{"prompt": "Hi"}\n', "holds objects of JSON, and no line is a prompt; name it with .jsonl"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_text_of_rows_is_no_list_of_prompts(
    store: Store, tmp_path: Path, text: str, message: str, encoding: str
) -> None:
    path = tmp_path / "some.txt"
    path.write_text(text, encoding=encoding, newline="")
    with pytest.raises(MannersError, match=message):
        import_prompts(store, path, TRAIN)
    assert store.prompts() == []


def test_prompts_with_tabs_commas_and_braces_are_prompts(store: Store, tmp_path: Path) -> None:
    texts = ["\tindented code", "Name a prompt, please", "{'a': 1} is what?", "What is a\ttab?", "messages"]
    path = tmp_path / "some.txt"
    path.write_text("\n".join(texts), encoding="utf-8")
    assert import_prompts(store, path, TRAIN).new == len(texts)
    assert [prompt.dialogue[-1].text for prompt in store.prompts()] == texts


def test_the_last_character_of_a_western_sheet_may_be_an_accent(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_bytes("prompt;chosen;rejected\nGröße?;A;B\nUnd?;C;Café".encode("cp1252"))
    found = list(read_comparisons(path, {}))
    assert [opinion(one) for one in found] == [("A", "B", ">"), ("C", "Café", ">")]
    assert preview(path, {}).encoding == "cp1252"


def test_tables_without_a_byte_or_in_an_old_form_are_refused_in_one_sentence(tmp_path: Path) -> None:
    for name, content, message in (
        ("some.arrow", b"", "is damaged"),
        ("some.feather", b"", "is damaged"),
        ("old.feather", b"FEA1\x00\x00\x00\x00", "Feather of its first version, which is not read here"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(MannersError, match=message):
            preview(path, {})


# What is said of it.


def test_a_column_that_was_looked_at_and_holds_nothing_is_not_unused(store: Store, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "some.parquet"
    table = pa.Table.from_pylist([HI | {"chosen": "A", "rejected": "B", "annotator": None, "other": None}])
    pq.write_table(table, path)
    assert import_comparisons(store, path, {}, skip_bad=False).unused == ("other",)


def test_a_field_with_a_point_in_its_name_is_named_once(tmp_path: Path) -> None:
    row = HI | {"chosen": "A", "rejected": "B", "tags": {"math_v0.1": {"hard": True}}}
    assert preview(jsonl(tmp_path / "some.jsonl", [row]), {}).unused == ("tags",)


def test_what_a_prompt_was_taken_from_is_not_unused(store: Store, tmp_path: Path) -> None:
    found = import_prompts(store, jsonl(tmp_path / "some.jsonl", [OPENAI]), TRAIN)
    assert found.unused == ("non_preferred_output", "preferred_output")


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        (
            ("instruction", "chosen_response", "rejected_response", "chosen_avg_rating", "rejected_avg_rating"),
            "--map instruction=prompt --map chosen_response=chosen --map rejected_response=rejected.",
        ),
        (("chosen", "rejected", "input", "labelling_prompt"), "--map input=prompt."),
        (("chosen", "rejected", "task", "trajectory"), "--map trajectory=prompt."),
    ],
)
def test_the_options_that_are_suggested_name_texts(tmp_path: Path, columns: tuple[str, ...], options: str) -> None:
    path = jsonl(tmp_path / "some.jsonl", [dict.fromkeys(columns, "x") | {"chosen_model": "m"}])
    with pytest.raises(MannersError) as caught:
        preview(path, {})
    assert str(caught.value).endswith(f"say which is which with {options}")


def test_one_conversation_a_row_is_told_that_nothing_is_compared(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "some.jsonl", [{"messages": [user("Hi"), assistant("A")], "label": True}])
    with pytest.raises(MannersError, match="one conversation a row, and nothing to compare it with; `manners prompts"):
        preview(path, {})
