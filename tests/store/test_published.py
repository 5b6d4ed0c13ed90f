"""Data sets as they are published: each row of the table in docs/store.md is a file that is imported here."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manners.errors import MannersError
from manners.store import Store
from manners.store.files.formats import IMPORTED
from manners.store.files.rows import Reason
from manners.store.files.transfer import ImportResult, import_comparisons, preview, read_comparisons
from manners.types import Annotator, AnnotatorKind, Choice, Comparison, Role

ROOT = Path(__file__).parents[2]
SPOKEN = "\n\nHuman: Hi\n\nAssistant: "
HEAD = "| format | how it is told apart | verdicts and ties | scores and strength | annotators | models | not used |"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@dataclass(frozen=True)
class Case:
    """One format: its row of the table, and a small file of it with what must come of it."""

    told: str
    verdicts: str
    scores: str
    annotators: str
    models: str
    unused: str
    rows: list[dict[str, Any]]
    said: set[tuple[str, str, str]]
    """(better text, worse text, `>`, `=` or `both bad`), with the strength behind the sign where there is one."""
    left_out: dict[Reason, int] = field(default_factory=dict)
    annotator: Annotator | None = None
    authors: frozenset[str] = frozenset({"imported"})


def battle(winner: str, b: str = "B") -> dict[str, Any]:
    a = [{"role": "user", "content": "Hi"}, assistant([{"type": "text", "text": f"A {winner}", "image": None}])]
    row = {"conversation_a": a, "conversation_b": [user("Hi"), assistant(f"{b} {winner}")], "winner": winner}
    return row | {"model_a": "m1", "model_b": "m2", "judge": "arena_user_9", "tstamp": 1682351591.13, "turn": 1}


def node(text: str, role: str, rank: int | None, *replies: dict[str, Any]) -> dict[str, Any]:
    return {"text": text, "role": role, "rank": rank, "lang": "en", "replies": list(replies)}


def message(name: Any, parent: Any, text: str, role: str, rank: float | None) -> dict[str, Any]:
    return {"message_id": name, "parent_id": parent, "text": text, "role": role, "rank": rank, "lang": "en"}


CASES = {
    "rows": Case(
        "`left`, `right` or `verdict`",
        "as stated; `tie` and `both_bad` are kept",
        "`strength` 1, 2, 3",
        "`annotator`, `annotator_kind`",
        "`left_model`, `right_model`",
        "-",
        [
            {"prompt": "Hi", "left": "A", "right": "B", "verdict": "left", "strength": 2, "left_model": "m1"},
            {"prompt": "Hi", "left": "A", "right": "C", "verdict": "tie", "right_model": "m1"},
        ],
        {("A", "B", ">2"), ("A", "C", "=")},
        authors=frozenset({"imported", "m1"}),
    ),
    "pairs": Case(
        "`prompt`, `chosen`, `rejected`; LLaMA-Factory's `conversations` for `prompt`",
        "`chosen` is better; equal scores are a tie",
        "`score_chosen` and `score_rejected`, and their like (`rating_chosen`, `chosen_avg_rating`, `chosen_reward`, "
        "`chosen_rank`), or both in one list (`rating`): only whether they are equal, and a row where the worse has "
        "more is bad; `strength` as in `rows`",
        "as in `rows`",
        "`chosen_model`, `rejected_model` (also with `-`)",
        "`margin`: `--map margin=strength` where it is 1, 2, 3",
        [
            {"prompt": "Hi", "chosen": "A", "rejected": "B", "score_chosen": 8.5, "score_rejected": 8.5},
            {"prompt": "Hi", "chosen": [user("Hi"), assistant("C")], "rejected": assistant("D"), "chosen-model": "m1"},
            {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "E"}}
            | {"rejected": {"from": "gpt", "value": "F"}, "margin": 0.3},
        ],
        {("A", "B", "="), ("C", "D", ">"), ("E", "F", ">")},
        authors=frozenset({"imported", "m1"}),
    ),
    "hh": Case(
        "`chosen`, `rejected`, no `prompt`: transcripts",
        "`chosen` is better",
        "as in `pairs`",
        "as in `rows`",
        "as in `pairs`",
        "-",
        [{"chosen": SPOKEN + "A", "rejected": SPOKEN + "B"}],
        {("A", "B", ">")},
    ),
    "arena": Case(
        "LMArena: `conversation_a`, `conversation_b` (or `prompt`, `response_a`, `response_b`) with `winner` or "
        "`winner_model_a`",
        "`model_a`, `model_b`, `tie`, `tie (bothbad)`; conversations that part before the last answer are bad rows",
        "none",
        "`judge`, `judge_hash`",
        "`model_a`, `model_b`",
        "`turn`, `language`, ...",
        [battle("model_a"), battle("model_b"), battle("tie"), battle("tie (bothbad)")],
        {
            ("A model_a", "B model_a", ">"),
            ("B model_b", "A model_b", ">"),
            ("A tie", "B tie", "="),
            ("A tie (bothbad)", "B tie (bothbad)", "both bad"),
        },
        annotator=Annotator("arena_user_9", AnnotatorKind.HUMAN),
        authors=frozenset({"m1", "m2"}),
    ),
    "preference-strength": Case(
        "HelpSteer2: `prompt`, `response_1`, `response_2`, `preference_strength`; HelpSteer3: `context`, `response1`, "
        "`response2`, `overall_preference`",
        "below 0 the first is better, above 0 the second; 0 is a tie",
        "1, 2 or 3 of either sign is the strength",
        "none named",
        "none",
        "`preference_statement`, `individual_preference`, ...",
        [
            {"prompt": "Hi", "response_1": "A", "response_2": "B", "preference_strength": -3, "split": "train"},
            {"prompt": "Hi", "response_1": "A", "response_2": "C", "preference_strength": 0},
            {"context": [user("Hi")], "response1": "D", "response2": "E", "overall_preference": 1},
        ],
        {("A", "B", ">3"), ("A", "C", "="), ("E", "D", ">1")},
    ),
    "shp": Case(
        "SHP: `history`, `human_ref_A`, `human_ref_B`, `labels`",
        "`labels` 1: A is better, 0: B; equal votes are a tie",
        "`score_A`, `score_B`: only which has more; a label that they deny is a bad row",
        "none named",
        "none",
        "`upvote_ratio`, ...",
        [
            {"history": "Hi", "human_ref_A": "A", "human_ref_B": "B", "labels": 0, "score_A": 3, "score_B": 9},
            {"history": "Hi", "human_ref_A": "A", "human_ref_B": "C", "labels": 1, "score_A": 3, "score_B": 3},
        ],
        {("B", "A", ">"), ("A", "C", "=")},
    ),
    "pku-saferlhf": Case(
        "PKU-SafeRLHF: `response_0`, `response_1`, `better_response_id`",
        "`better_response_id` 0 or 1; `--map safer_response_id=better_response_id` for the safer one",
        "none",
        "none named",
        "`response_0_source`, `response_1_source`",
        "`safer_response_id`, `is_response_0_safe`, ...",
        [
            {"prompt": "Hi", "response_0": "A", "response_1": "B", "better_response_id": 1, "safer_response_id": 0}
            | {"response_0_source": "m1", "response_1_source": "m2"}
        ],
        {("B", "A", ">")},
        authors=frozenset({"m1", "m2"}),
    ),
    "webgpt": Case(
        "WebGPT: `question`, `answer_0`, `answer_1`, `score_0`, `score_1`",
        "the higher score is better; equal ones are a tie",
        "as said",
        "none named",
        "none",
        "`quotes_0`, ...",
        [
            {"question": {"full_text": "Hi", "id": "1"}, "answer_0": "A", "answer_1": "B", "score_0": -1, "score_1": 1},
            {"question": {"full_text": "Hi"}, "answer_0": "A", "answer_1": "C", "score_0": 0.0, "score_1": 0.0},
        ],
        {("B", "A", ">"), ("A", "C", "=")},
    ),
    "summaries": Case(
        "OpenAI's summarize_from_feedback: `info`, `summaries`, `choice`",
        "`choice` 0 or 1",
        "none",
        "`worker`",
        "`policy` of each",
        "`info.title`, `extra`, ...",
        [
            {"info": {"post": "Hi", "article": None, "title": "T"}, "choice": 1, "worker": "w1", "extra": {"c": 8}}
            | {"summaries": [{"text": "A", "policy": "m1", "note": "n"}, {"text": "B", "policy": "m2", "note": "n"}]},
            {"info": {"post": None, "article": "Hi", "title": "T"}, "choice": 0, "worker": "w1", "extra": {"c": 8}}
            | {"summaries": [{"text": "C", "policy": "m1", "note": "n"}, {"text": "D", "policy": "m2", "note": "n"}]},
        ],
        {("B", "A", ">"), ("C", "D", ">")},
        annotator=Annotator("w1", AnnotatorKind.HUMAN),
        authors=frozenset({"m1", "m2"}),
    ),
    "preferred-output": Case(
        "OpenAI: `input`, `preferred_output`, `non_preferred_output`",
        "`preferred_output` is better",
        "none",
        "none named",
        "none",
        "`input.tools`, ...",
        [
            {"input": {"messages": [user("Hi")], "tools": [1]}}
            | {"preferred_output": [assistant("A")], "non_preferred_output": [assistant("B")]}
        ],
        {("A", "B", ">")},
    ),
    "lists": Case(
        "RewardBench 2: `chosen` and `rejected` are lists of texts; in the cells of a sheet, beside `num_correct` or "
        "`models`",
        "each chosen one is better than each rejected one; nothing is said of two chosen or two rejected ones",
        "none",
        "none named",
        "`models`, where it has one for each",
        "`subset`, `num_correct`, ...",
        [{"prompt": "Hi", "chosen": ["A", "B"], "rejected": ["C", "D"], "models": ["m1"] * 4, "subset": "Ties"}],
        {("A", "C", ">"), ("A", "D", ">"), ("B", "C", ">"), ("B", "D", ">")},
        authors=frozenset({"m1"}),
    ),
    "trees": Case(
        "OpenAssistant trees: `prompt` with `replies`",
        "of the replies of an assistant to one message, the lower rank is better; deleted ones are passed over",
        "`rank`; a reply without one is compared with none, and counted",
        "none named",
        "`model_name`",
        "`labels`, ...",
        [
            {"message_tree_id": "t"}
            | {
                "prompt": node(
                    "Hi",
                    "prompter",
                    None,
                    node("A", "assistant", 1, node("Hi", "prompter", None, node("D", "assistant", None))),
                    node("B", "assistant", 0),
                    node("C", "assistant", None),
                )
            }
        ],
        {("B", "A", ">")},
        left_out={Reason.UNSCORED: 2, Reason.ALONE: 1},
    ),
    "tree-messages": Case(
        "OpenAssistant messages: `message_id`, `parent_id`, `text`, `role`, `rank`, in any order",
        "as in trees",
        "as in trees",
        "none named",
        "`model_name`",
        "`labels`, ...",
        [
            message("3", "1", "A", "assistant", 1.0),
            message("1", None, "Hi", "prompter", None),
            message("2", "1", "B", "assistant", 0.0),
            message("5", "4", "C", "assistant", 0.0),
        ],
        {("B", "A", ">")},
        left_out={Reason.ALONE: 1},
    ),
    "answers": Case(
        "Nectar (`answers` with `rank`), UltraFeedback (`completions` with `overall_score`), and their like: a list of "
        "objects with a text and a score or rank, or texts (`responses`, `generations`) beside `scores` or `ranks`",
        "every two answers are compared; the higher score, or lower rank, is better, and equals are a tie",
        "only which is more: how much more is nobody's strength",
        "`gpt-4`, an AI, where the file is Nectar (`good_natured`) or has UltraFeedback's `annotations`",
        "`model` of each, or `models`",
        "`completions.annotations`, `turns`, ...",
        [
            {"prompt": SPOKEN, "good_natured": True, "turns": 1}
            | {"answers": [{"answer": t, "rank": r, "model": "m1"} for t, r in (("A", 1.0), ("B", 2.0), ("C", 2.0))]},
        ],
        {("A", "B", ">"), ("A", "C", ">"), ("B", "C", "=")},
        annotator=Annotator("gpt-4", AnnotatorKind.AI),
        authors=frozenset({"m1"}),
    ),
    "rated": Case(
        "HelpSteer, HelpSteer2: `prompt`, `response` and one of `score`, `rating`, `helpfulness`, `reward`, `rank`",
        "as in `answers`, of all rows with one prompt, wherever they stand",
        "as in `answers`; of several scores the first of these, another by `--map correctness=helpfulness`",
        "`annotator`: the scores of each are compared with their own",
        "`model`",
        "`correctness`, `coherence`, ...",
        [
            {"prompt": "Hi", "response": "A", "helpfulness": 4, "correctness": 1},
            {"prompt": "Ho", "response": "X", "helpfulness": 4},
            {"prompt": "Hi", "response": "B", "helpfulness": 2},
            {"prompt": "Hi", "response": "C", "helpfulness": 2},
        ],
        {("A", "B", ">"), ("A", "C", ">"), ("B", "C", "=")},
        left_out={Reason.ALONE: 1},
    ),
}


def table() -> str:
    """The table of docs/store.md: print it to bring the page up to date."""
    rows = [
        (f"`{name}`", case.told, case.verdicts, case.scores, case.annotators, case.models, case.unused)
        for name, case in CASES.items()
    ]
    return "\n".join([HEAD, "|---" * 7 + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def opinion(comparison: Comparison) -> tuple[str, str, str]:
    [verdict] = comparison.verdicts
    texts = [comparison.left.text, comparison.right.text]
    if verdict.choice is Choice.RIGHT:
        texts.reverse()
    if verdict.choice in (Choice.LEFT, Choice.RIGHT):
        return texts[0], texts[1], ">" + str(verdict.strength or "")
    return *sorted(texts), {Choice.TIE: "=", Choice.BOTH_BAD: "both bad"}[verdict.choice]  # type: ignore[return-value]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sheet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as a table printed to a sheet has them: what is no text or number as JSON."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({n: json.dumps(v) if isinstance(v, list | dict) else v for n, v in row.items()})
    return path


def test_the_table_of_formats_is_that_of_the_tests() -> None:
    page = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
    assert table() in page, f"put this table into docs/store.md:\n{table()}"


@pytest.mark.parametrize("name", CASES)
def test_a_published_format_comes_to_its_verdicts(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = jsonl(tmp_path / "some.jsonl", case.rows)
    seen = preview(path, {})
    assert (seen.format, seen.encoding, seen.separator) == (name, "utf-8", "")
    assert (seen.left_out, seen.problems, seen.ties) == (case.left_out, {}, sum(sign == "=" for *_, sign in case.said))
    found = [comparison for comparison in read_comparisons(path, {}) if comparison.verdicts]
    assert {opinion(comparison) for comparison in found} == case.said
    assert {verdict.annotator for c in found for verdict in c.verdicts} == {case.annotator or IMPORTED}
    assert {side.author for c in found for side in (c.left, c.right)} == case.authors
    assert all(comparison.prompt[-1].text == "Hi" for comparison in found)


def test_published_formats_come_in_once(store: Store, tmp_path: Path) -> None:
    for again in (False, True):
        for name, case in CASES.items():
            result = import_comparisons(store, jsonl(tmp_path / f"{name}.jsonl", case.rows), {}, skip_bad=False)
            assert (result.format, result.left_out, result.skipped) == (name, case.left_out, {})
            assert result.ties == sum(sign == "=" for *_, sign in case.said)
            assert result.verdicts + result.duplicates == len(case.said)
            assert not again or (result.comparisons, result.verdicts) == (0, 0)


@pytest.mark.parametrize("name", CASES)
def test_a_published_format_in_the_cells_of_a_sheet(tmp_path: Path, name: str) -> None:
    rows = [row for row in CASES[name].rows if {*row} <= {*CASES[name].rows[0]}]
    lines = list(read_comparisons(jsonl(tmp_path / "some.jsonl", rows), {}))
    cells = list(read_comparisons(sheet(tmp_path / "some.csv", rows), {}))
    assert {opinion(one) for one in cells if one.verdicts} == {opinion(one) for one in lines if one.verdicts}
    assert [one.prompt for one in cells] == [one.prompt for one in lines]


@pytest.mark.parametrize("winner", ["right", "left"])
def test_equal_scores_are_no_preference_whichever_was_chosen(tmp_path: Path, winner: str) -> None:
    texts = ("A", "B") if winner == "left" else ("B", "A")
    for names in (("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating")):
        row = {"prompt": "Hi", "chosen": texts[0], "rejected": texts[1], names[0]: 3, names[1]: "3.0"}
        [one] = read_comparisons(jsonl(tmp_path / "some.jsonl", [row]), {})
        assert one.verdicts[0].choice is Choice.TIE
        bad = jsonl(tmp_path / "bad.jsonl", [row | {names[1]: 4}])
        with pytest.raises(
            MannersError, match=f"line 1, field `{names[0]}`: says the opposite of the verdict: 3 beside"
        ):
            list(read_comparisons(bad, {}))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("arena", {"winner": "nobody"}, "field `winner`: is 'nobody', which is not one of"),
        ("arena", {"conversation_b": [user("Hi"), assistant("")]}, "field `conversation_b`: is empty"),
        ("preference-strength", {"response_2": ""}, "field `response_2`: is empty"),
        ("preference-strength", {"preference_strength": "much"}, "field `preference_strength`: is 'much'"),
        ("shp", {"labels": 2}, "field `labels`: is '2'"),
        ("shp", {"history": ""}, "field `history`: has an empty turn"),
        ("pku-saferlhf", {"better_response_id": -1}, "field `better_response_id`: is '-1'"),
        (
            "answers",
            {"answers": [{"answer": "", "rank": 1}, {"answer": "A", "rank": 2}]},
            "field `answers`: has an ans",
        ),
        ("answers", {"answers": [{"answer": "A", "rank": "x"}, {"answer": "B", "rank": 1}]}, "field `rank`: is 'x'"),
        ("rated", {"response": None}, "field `response`: is missing"),
        ("lists", {"rejected": [""]}, "field `rejected`: has an answer that is empty"),
    ],
)
def test_a_bad_row_is_named_by_the_field_that_the_file_has(
    tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    first = CASES[name].rows[0]
    path = jsonl(tmp_path / "some.jsonl", [first, first | change])
    with pytest.raises(MannersError) as caught:
        list(read_comparisons(path, {}))
    assert f"{path}, line 2, {message}" in str(caught.value)


@pytest.mark.parametrize("word", ["model_b", "m2", "B", "response_b"])
def test_the_winner_of_a_battle_may_be_named_in_other_ways(tmp_path: Path, word: str) -> None:
    row = {"prompt": "Hi", "response_a": "A", "response_b": "B", "model_a": "m1", "model_b": "m2", "winner": word}
    [one] = read_comparisons(jsonl(tmp_path / "some.jsonl", [row]), {})
    assert opinion(one) == ("B", "A", ">")
    twins = jsonl(tmp_path / "twins.jsonl", [row | {"model_a": "m2", "winner": "m2"}])
    with pytest.raises(MannersError, match="field `winner`: is 'm2'"):
        list(read_comparisons(twins, {}))


def test_another_verdict_of_a_published_format_is_mapped(tmp_path: Path) -> None:
    [safer] = read_comparisons(
        jsonl(tmp_path / "safe.jsonl", CASES["pku-saferlhf"].rows), {"safer_response_id": "better_response_id"}
    )
    assert opinion(safer) == ("A", "B", ">")
    rows = [row | {"correctness": score} for row, score in zip(CASES["rated"].rows, (1, 9, 3, 2), strict=True)]
    found = read_comparisons(jsonl(tmp_path / "rated.jsonl", rows), {"correctness": "helpfulness"})
    assert {opinion(one) for one in found} == {("B", "A", ">"), ("C", "A", ">"), ("B", "C", ">")}


def test_a_damaged_first_row_does_not_decide_how_the_others_are_read(tmp_path: Path) -> None:
    pair = {"prompt": "Hi", "chosen": "A", "rejected": "B"}
    path = jsonl(tmp_path / "some.jsonl", [{"chosen": "A", "rejected": "B"}, pair, pair])
    with pytest.raises(MannersError, match="line 1, field `prompt`: is missing"):
        list(read_comparisons(path, {}))


LISTED = [
    {"instruction": "Hi", "responses": ["A", "B"], "scores": [1, 0.5], "models": ["m1", "m2"]},
    {"prompt": "Hi", "generations": ["A", "B"], "ratings": [5, 2], "generation_models": ["m1", "m2"]},
    {"question": "Hi", "answers": [{"text": "A", "pm_score": 4}, {"text": "B", "pm_score": -1}]},
    {"prompt": "Hi", "responses": ["A", "B"], "ranks": [1, 2]},
    {"prompt": "Hi", "answers": {"answer": ["A", "B"], "rank": [1, 2], "model": ["m1", "m2"]}},
    {
        "instruction": "Hi",
        "completions": [{"response": "A", "overall_score": 7}, {"response": "B", "overall_score": 3}],
    },
    {"messages": [user("Hi")], "candidates": [{"content": "A", "reward": 0.1}, {"content": "B", "reward": -0.1}]},
]


@pytest.mark.parametrize("row", LISTED)
def test_other_ways_to_write_k_answers(tmp_path: Path, row: dict[str, Any]) -> None:
    [one] = read_comparisons(jsonl(tmp_path / "some.jsonl", [row]), {})
    assert opinion(one) == ("A", "B", ">") and [turn.text for turn in one.prompt] == ["Hi"]


def said(
    store: Store, path: Path, mapping: dict[str, str], words: dict[str, Choice]
) -> tuple[ImportResult, set[tuple[str, str, str]]]:
    result = import_comparisons(store, path, mapping, skip_bad=False, words=words)
    return result, {opinion(comparison) for comparison in store.comparisons()}


SIDES = {"response_a": "left", "response_b": "right", "preference": "verdict"}


def judged(*verdicts: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": "Hi", "response_a": f"A{n}", "response_b": f"B{n}", "preference": verdict}
        for n, verdict in enumerate(verdicts)
    ]


def test_words_for_verdicts_are_said_on_the_command_line(store: Store, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "some.jsonl", judged("A is better", "b wins", "Same", "neither"))
    with pytest.raises(MannersError, match=r"field `verdict`: is 'A is better'.*--verdict WORD=VERDICT says"):
        import_comparisons(store, path, SIDES, skip_bad=False)
    words = {"a  IS better": Choice.LEFT, "b wins": Choice.RIGHT, "same": Choice.TIE, "neither": Choice.BOTH_BAD}
    _, found = said(store, path, SIDES, words)
    assert found == {("A0", "B0", ">"), ("B1", "A1", ">"), ("A2", "B2", "="), ("A3", "B3", "both bad")}


def test_a_word_of_a_published_format_may_mean_another_verdict(store: Store, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "some.jsonl", [battle("tie (bothbad)"), battle("model_a")])
    assert said(store, path, {}, {"tie (bothbad)": Choice.TIE})[0].ties == 1


def test_numbers_some_of_them_below_zero_go_by_their_sign(store: Store, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "some.jsonl", judged(-3, "+1", 0, 2.5))
    result, found = said(store, path, SIDES, {})
    assert found == {("A0", "B0", ">3"), ("B1", "A1", ">1"), ("A2", "B2", "="), ("B3", "A3", ">")}
    assert any("some below 0: these are left" in note for note in result.notes)


def test_the_sign_may_mean_the_other_side(store: Store, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "some.jsonl", judged(-2, 1, 0))
    result, found = said(store, path, SIDES, {"-1": Choice.RIGHT, "1": Choice.LEFT})
    assert found == {("B0", "A0", ">2"), ("A1", "B1", ">1"), ("A2", "B2", "=")} and not result.notes


@pytest.mark.parametrize("numbers", [(0, 1), (1, 2), (1, 2, 3), ("1", "0")])
def test_numbers_without_a_sign_mean_nothing_by_themselves(tmp_path: Path, numbers: tuple[Any, ...]) -> None:
    path = jsonl(tmp_path / "some.jsonl", judged(*numbers))
    with pytest.raises(MannersError, match=r"line 1, field `verdict`: is '[01]', which is not one of left"):
        list(read_comparisons(path, SIDES))
    words = {"0": Choice.LEFT, "1": Choice.RIGHT}
    [first, *_] = read_comparisons(path, SIDES, words=words, skipped=Counter())
    assert first.verdicts[0].strength is None


TURNS = [(Role.USER, "Hi"), (Role.ASSISTANT, "Hello\nyou"), (Role.USER, "And?")]
TRANSCRIPTS = [
    "\n\nHuman: Hi\n\nAssistant: Hello\nyou\n\nHuman: And?\n\nAssistant: ",
    "\n\nHuman: Hi\n\nAssistant: Hello\nyou\n\nHuman: And?\n\nAssistant:",
    "Human: Hi\n\nAssistant: Hello\nyou\n\nHuman: And?",
    "User: Hi\nAssistant: Hello\nyou\nUser: And?\nAssistant:",
    "### Human: Hi\n### Assistant: Hello\nyou\n### Human: And?\n### Assistant:",
    "human:\nHi\n\nassistant:\nHello\nyou\n\nhuman:\nAnd?\n\nassistant:\n",
    "System: Be kind.\n\nHuman: Hi\n\nAssistant: Hello\nyou\n\nHuman: And?\n\nAssistant:",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello\nyou<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "<|user|>\nHi</s>\n<|assistant|>\nHello\nyou</s>\n<|user|>\nAnd?</s>\n<|assistant|>\n",
    "<|prompter|>Hi<|endoftext|><|assistant|>Hello\nyou<|endoftext|><|prompter|>And?<|endoftext|><|assistant|>",
    "Hi\n<extra_id_1>Assistant\nHello\nyou\n<extra_id_1>User\nAnd?",
    [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello\nyou"}, {"from": "human", "value": "And?"}],
    [user("Hi"), assistant("Hello\nyou"), user("And?"), assistant(None)],
    [{"role": "system", "content": None}, user("Hi"), assistant("Hello\nyou"), user("And?")],
    [user("Hi"), assistant([{"type": "text", "text": "Hello\n"}, {"type": "text", "text": "you"}]), user("And?")],
    [{"role": "User", "text": "Hi"}, {"role": "model", "parts": [{"text": "Hello\nyou"}]}, user("And?"), None],
    {"role": ["user", "assistant", "user"], "content": ["Hi", "Hello\nyou", "And?"]},
    json.dumps([user("Hi"), assistant("Hello\nyou"), user("And?")]),
    repr([user("Hi"), assistant("Hello\nyou"), user("And?")]),
    "[{'content': 'Hi', 'role': 'user'}\n {'content': 'Hello\\nyou', 'role': 'assistant'}\n"
    " {'content': 'And?', 'role': 'user'}]",
]


@pytest.mark.parametrize("prompt", TRANSCRIPTS)
def test_a_conversation_in_the_prompt_is_read_as_turns(tmp_path: Path, prompt: Any) -> None:
    row = {"prompt": prompt, "system": "Be kind.", "chosen": "A", "rejected": "B"}
    [one] = read_comparisons(jsonl(tmp_path / "some.jsonl", [row]), {})
    assert [(turn.role, turn.text) for turn in one.prompt] == [(Role.SYSTEM, "Be kind."), *TURNS]
    assert opinion(one) == ("A", "B", ">")


def test_a_transcript_may_begin_with_the_assistant(tmp_path: Path) -> None:
    row = {"prompt": "\n\nAssistant: Hello\n\nHuman: Hi\n\nAssistant:", "chosen": " A", "rejected": " B"}
    [one] = read_comparisons(jsonl(tmp_path / "some.jsonl", [row]), {})
    assert [turn.text for turn in one.prompt] == ["Hello", "Hi"] and opinion(one) == ("A", "B", ">")


PLAIN = [
    "Assistant: I said so.",
    "User: anna\nUser: ben",
    "Human: all too human, says Nietzsche. Is he right?",
    "Translate:\n\nHuman: Hi\n\nAssistant: Hello",
    "What does `Assistant: ` mean?\nAssistant: a helper",
    "User: anna\nPlease reset my password",
    '{"name": "x"}',
    '[{"name": "x"}]',
    "[INSTRUCTIONS] be brief",
]


@pytest.mark.parametrize("prompt", PLAIN)
def test_a_text_that_only_speaks_of_turns_stays_a_text(tmp_path: Path, prompt: str) -> None:
    [one] = read_comparisons(jsonl(tmp_path / "some.jsonl", [{"prompt": prompt, "chosen": "A", "rejected": "B"}]), {})
    assert [(turn.role, turn.text) for turn in one.prompt] == [(Role.USER, prompt)]


BROKEN = [
    ({"prompt": "[{'role': 'user', 'content': 'Hi"}, "field `prompt`: begins like a list of messages, and is not JSON"),
    ({"prompt": "<s>[INST] Hi [/INST]"}, "field `prompt`: was rendered with a model's template"),
    ({"prompt": [user("Hi"), {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]}, "calls a tool"),
    ({"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "the type 'image_url'"),
    ({"prompt": [user("Hi")], "chosen": assistant(None)}, "field `chosen`: is empty"),
    ({"prompt": "Hi", "chosen": 3}, "field `chosen`: is not a text"),
    (
        {"prompt": [{"role": "system", "content": "Be rude."}, user("Hi")], "system": "Be kind."},
        "field `system`: is not",
    ),
]


@pytest.mark.parametrize(("row", "message"), BROKEN)
def test_what_no_conversation_can_be_made_of_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = jsonl(tmp_path / "some.jsonl", [{"chosen": "A", "rejected": "B"} | row])
    with pytest.raises(MannersError) as caught:
        list(read_comparisons(path, {}))
    assert str(caught.value).startswith(f"{path}, line 1, field") and message in str(caught.value)


def test_what_is_in_the_file_and_not_used_is_named_by_every_import(store: Store, tmp_path: Path) -> None:
    row = {"question": "Hi", "prompt": "Ho", "chosen": [assistant("A") | {"weight": 1, "name": None}], "rejected": "B"}
    path = jsonl(tmp_path / "some.jsonl", [row | {"source": None, "meta": {"a": {"b": 1}}}])
    expected = ("chosen.weight", "meta", "prompt", "source")
    assert preview(path, {"question": "prompt"}).unused == expected
    assert import_comparisons(store, path, {"question": "prompt"}, skip_bad=False).unused == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("question", "chosen", "rejected"), "and no `prompt`; say which is which with --map question=prompt."),
        (("instruction", "chosen_response", "rejected_response"), "--map chosen_response=chosen --map rejected_resp"),
        (("prompt", "response_a", "response_b", "choice"), "--map response_b=right --map choice=verdict"),
        (("Prompt", "Chosen ", "REJECTED"), '--map Prompt=prompt --map "Chosen "=chosen --map REJECTED=rejected.'),
        (("prompt", "completion", "label"), "one answer a row; answers to one prompt are compared by their score with"),
        (("frage", "wahl"), "--map COLUMN=FIELD, where the fields are prompt, chosen, rejected."),
    ],
)
def test_what_is_no_comparison_of_ours_is_told_with_a_mapping(
    write: Callable[[str, bytes], Path], columns: tuple[str, ...], message: str
) -> None:
    path = write("some.csv", (",".join(columns) + "\n" + ",".join("abcd"[: len(columns)]) + "\n").encode())
    with pytest.raises(MannersError) as caught:
        preview(path, {})
    assert message in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(("name", "parent"), [(int, int), (int, float), (float, int), (str, float), (int, str)])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_messages_may_be_numbered_and_tables_write_whole_numbers_as_fractions(
    tmp_path: Path, suffix: str, name: Callable[[int], Any], parent: Callable[[int], Any]
) -> None:
    """A column of whole numbers in which the first message has none is one of fractions to whoever writes it."""
    rows = [
        message(name(10), None, "Hi", "prompter", None),
        message(name(2), parent(10), "A", "assistant", 1),
        message(name(3), parent(10), "B", "assistant", 0),
        message(name(4), parent(3), "More?", "prompter", None),
        message(name(5), parent(4), "C", "assistant", 1),
        message(name(6), parent(4), "D", "assistant", 0),
    ]
    path = tmp_path / f"some{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {(one.prompt[-1].text, *opinion(one)) for one in read_comparisons(path, {})}
    assert found == {("Hi", "B", "A", ">"), ("More?", "D", "C", ">")}
