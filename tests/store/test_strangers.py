"""What strangers bring: files as other programs leave them are read rightly, or refused in a sentence that is true."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manners.cli import main
from manners.errors import MannersError, UsageError
from manners.store import Store
from manners.store.files.mapping import mapping_of, words_of
from manners.store.files.prompts import import_prompts
from manners.store.files.transfer import import_comparisons, preview, read_comparisons
from manners.types import PromptUse, Role
from tests.store.conftest import by_file
from tests.store.test_published import assistant, opinion, user

Write = Callable[[str, bytes], Path]
PAIR = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}
OTHER = {"prompt": "Ho?", "chosen": "Ja.", "rejected": "Nein."}
READ = [("Hi?", "Yes.", "No.", ">"), ("Ho?", "Ja.", "Nein.", ">")]
SHEET = "prompt,chosen,rejected\nHi?,Yes.,No.\nHo?,Ja.,Nein.\n"
H = "\n\nHuman: Hi?\n\nAssistant: "


def jsonl(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), out)
    return out.getvalue()


def said(path: Path, mapping: tuple[str, ...] = (), words: tuple[str, ...] = ()) -> list[tuple[str, str, str, str]]:
    """Return the prompt, the better and the worse text, and how much better, of each comparison."""
    found = read_comparisons(path, mapping_of(mapping), words=words_of(words))
    return [(one.prompt[-1].text, *opinion(one)) for one in found]


CYRILLIC = "prompt,chosen,rejected\n" + "Как дела сегодня?,Хорошо спасибо,Плохо и грустно\n" * 30
RIGHT: dict[str, tuple[str, bytes]] = {
    "utf-16 of another script without its mark": ("x.csv", CYRILLIC.encode("utf-16-le")),
    "the other utf-16 of another script": ("x.csv", CYRILLIC.encode("utf-16-be")),
    "utf-32 without its mark": ("x.csv", SHEET.encode("utf-32-le")),
    "two marks of utf-8, sheet": ("x.csv", ("\ufeff\ufeff" + SHEET).encode()),
    "two marks of utf-8, lines": ("x.jsonl", "\ufeff\ufeff".encode() + jsonl(PAIR, OTHER)),
    "two marks of utf-8, array": ("x.json", ("\ufeff\ufeff" + json.dumps([PAIR, OTHER])).encode()),
    "a mark between files put together": ("x.jsonl", jsonl(PAIR) + "\ufeff".encode() + jsonl(OTHER)),
    "columns without a name": ("x.csv", b",,prompt,chosen,rejected\n0,0,Hi?,Yes.,No.\n1,1,Ho?,Ja.,Nein.\n"),
    "no number is nothing": (
        "x.jsonl",
        b'{"prompt": "Hi?", "chosen": "Yes.", "rejected": "No.", "strength": NaN, "score_chosen": NaN}\n'
        + jsonl(OTHER),
    ),
    "no number in a table": ("x.parquet", table([PAIR | {"strength": float("nan")}, OTHER | {"strength": None}])),
    "texts as bytes": ("x.parquet", table([{k: v.encode() for k, v in row.items()} for row in (PAIR, OTHER)])),
    "decimal numbers": (
        "x.parquet",
        table([row | {"chosen_score": Decimal("4.5"), "rejected_score": Decimal("3.0")} for row in (PAIR, OTHER)]),
    ),
    "times that Python has none of, in a column that is not read": (
        "x.parquet",
        table(
            [row | {"at": 10**15} for row in (PAIR, OTHER)],
            pa.schema([*((name, pa.string()) for name in PAIR), ("at", pa.timestamp("ms"))]),
        ),
    ),
    "messages as maps": (
        "x.parquet",
        table(
            [
                {
                    "prompt": [list(user(row["prompt"]).items())],
                    **{side: [list(assistant(row[side]).items())] for side in ("chosen", "rejected")},
                }
                for row in (PAIR, OTHER)
            ],
            pa.schema([(name, pa.list_(pa.map_(pa.string(), pa.string()))) for name in PAIR]),
        ),
    ),
    "json written as json": (
        "x.jsonl",
        jsonl(
            *(
                {
                    "prompt": json.dumps(json.dumps([user(row["prompt"])])),
                    **{side: json.dumps(json.dumps([assistant(row[side])])) for side in ("chosen", "rejected")},
                }
                for row in (PAIR, OTHER)
            )
        ),
    ),
    "numpy's notation within another": (
        "x.jsonl",
        jsonl(
            *(
                row | {"prompt": f"array([{{'content': '{row['prompt']}', 'role': 'user'}}],\n      dtype=object)"}
                for row in (PAIR, OTHER)
            )
        ),
    ),
    "a prompt as a list with one text": ("x.jsonl", jsonl(PAIR | {"prompt": ["Hi?"]}, OTHER | {"prompt": '["Ho?"]'})),
    "messages beside texts": (
        "x.jsonl",
        jsonl(
            *(
                {"messages": [user(r["prompt"])], "chosen": r["chosen"], "rejected": r["rejected"]}
                for r in (PAIR, OTHER)
            )
        ),
    ),
    "marks without their space": (
        "x.jsonl",
        jsonl(
            *(
                {side: f"\n\nHuman:{row['prompt']}\n\nAssistant:{row[side]}" for side in ("chosen", "rejected")}
                for row in (PAIR, OTHER)
            )
        ),
    ),
    "marks in the lines of another system": (
        "x.jsonl",
        jsonl(
            *(
                {s: f"\r\n\r\nHuman: {row['prompt']}\r\n\r\nAssistant: {row[s]}" for s in ("chosen", "rejected")}
                for row in (PAIR, OTHER)
            )
        ),
    ),
    "answers closed as the turns of their prompt are": (
        "x.jsonl",
        jsonl(
            *(
                {"prompt": f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"}
                | {side: row[side] + "<|im_end|>\n" for side in ("chosen", "rejected")}
                for row in (PAIR, OTHER)
            )
        ),
    ),
    "phi's marks": (
        "x.jsonl",
        jsonl(
            *(
                {"prompt": f"<|user|>\n{row['prompt']}<|end|>\n<|assistant|>\n"}
                | {side: row[side] + "<|end|>" for side in ("chosen", "rejected")}
                for row in (PAIR, OTHER)
            )
        ),
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_other_programs_leave_is_read_as_it_was_meant(write: Write, case: str) -> None:
    name, content = RIGHT[case]
    expected = [("Как дела сегодня?", "Хорошо спасибо", "Плохо и грустно", ">")] * 30 if "script" in case else READ
    path = write(name, content)
    assert said(path) == expected
    assert preview(path, {}).problems == {}


def test_a_turn_whose_mark_lacks_its_space_is_a_turn(write: Write) -> None:
    start = "\n\nHuman: Hi?\n\nAssistant: Yo.\n\nHuman:Really?\n\nAssistant: "
    [one] = read_comparisons(write("x.jsonl", jsonl({"chosen": start + "A", "rejected": start + "B"})), {})
    assert [turn.role for turn in one.prompt] == [Role.USER, Role.ASSISTANT, Role.USER]
    assert (one.prompt[1].text, one.prompt[2].text, opinion(one)) == ("Yo.", "Really?", ("A", "B", ">"))


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "the header again": ("x.csv", ("\ufeff" + SHEET + "\ufeff" + SHEET).encode(), "line 4: is the header again"),
    "a title above the header": (
        "x.csv",
        b"My survey,,\nprompt,chosen,rejected\nHi?,Yes.,No.\n",
        "line 2: has 3 fields where the header ('My survey') has 1; if the names of the columns are further down",
    ),
    "a column twice": ("x.csv", b"prompt,chosen,rejected,chosen\na,b,c,d\n", "line 1, field `chosen`: is there twice"),
    "bz2": ("x.jsonl.bz2", b"BZh9", "files that are packed so are neither read nor written here; unpack it"),
    "xz in disguise": ("x.jsonl", b"\xfd7zXZ\x00\x00", "is packed with xz, which is not read here: unpack it"),
    "zip": ("x.csv.zip", b"PK", "files that are packed so are neither read nor written here; unpack it"),
    "a packed table": (
        "x.parquet.gz",
        b"\x1f\x8b",
        "files that are packed so are neither read nor written here; unpack it",
    ),
    "an old workbook": ("x.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 99, "is a workbook: save its sheet"),
    "a page of the web": ("x.jsonl", b"<!DOCTYPE html>\n<html>\n", "is a page of the web"),
    "a page of the web as a table": ("x.parquet", b"<!DOCTYPE html>\n<html>\n", "is a page of the web"),
    "a pointer": ("x.parquet", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer that git has left"),
    "rows within an object": ("x.json", json.dumps({"data": [PAIR]}).encode(), "which keeps its rows in `data`"),
    "splits within an object": ("x.json", json.dumps({"train": [PAIR]}, indent=1).encode(), "its rows in `train`"),
    "columns": (
        "x.json",
        json.dumps({k: [v] for k, v in PAIR.items()}).encode(),
        "which holds columns: write its rows",
    ),
    "columns by number": ("x.json", json.dumps({k: {"0": v} for k, v in PAIR.items()}).encode(), "which holds columns"),
    "rows by number": ("x.json", json.dumps({"0": PAIR, "1": OTHER}).encode(), "whose fields are rows"),
    "a prompt of several texts": (
        "x.jsonl",
        jsonl(PAIR | {"prompt": ["Hi?", "Yes", "Ho?"]}),
        "line 1, field `prompt`: is a list of 3 texts, and does not say who speaks",
    ),
    "rendered by another template": (
        "x.jsonl",
        jsonl(PAIR | {"prompt": "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi?<|END_OF_TURN_TOKEN|>"}),
        "field `prompt`: was rendered with a model's template",
    ),
    "one answer a row": (
        "x.jsonl",
        jsonl({"prompt": "Hi?", "completion": "A", "label": True}),
        "one answer a row; answers to one prompt are compared by their score with --map completion=response"
        " --map label=score",
    ),
    "one answer and no score": (
        "x.jsonl",
        jsonl({"instruction": "Hi?", "input": "", "output": "A"}),
        "one answer a row, and nothing that says how good it is; `manners prompts import` takes its prompts",
    ),
    "a verdict by another name": (
        "x.csv",
        b"prompt,left,right,winner\nHi?,A,B,left\n",
        "field `verdict`: is missing; if a column holds it, say which with --map winner=verdict",
    ),
    "sides by another name": (
        "x.csv",
        b"prompt,response_a,response_b,verdict\nHi?,A,B,left\n",
        "field `left`: is missing; if a column holds it, say which with --map response_a=left --map response_b=right",
    ),
    "one side by another name": (
        "x.jsonl",
        jsonl({"prompt": "Hi?", "chosen": "A", "loser": "B"}),
        "field `rejected`: is missing; if a column holds it, say which with --map loser=rejected",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_by_its_cause(write: Write, case: str) -> None:
    name, content, sentence = REFUSED[case]
    with pytest.raises(MannersError) as caught:
        said(write(name, content))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "row", "sides"),
    [
        ("prompt,response_0,response_1,label", "Hi?,A,B,left", "response_0=left --map response_1=right"),
        ("question,tokens_0,answer_0,tokens_1,answer_1,vote", "Hi?,1,A,1,B,left", "answer_0=left --map answer_1=right"),
        ("instruction,input,output_1,output_2,preference", "Hi?,x,A,B,left", "output_1=left --map output_2=right"),
        ("prompt,r2,r1,winner", "Hi?,B,A,left", "r1=left --map r2=right"),
    ],
)
def test_two_sides_are_suggested_in_their_order(write: Write, header: str, row: str, sides: str) -> None:
    with pytest.raises(MannersError) as caught:
        said(write("x.csv", f"{header}\n{row}\n".encode()))
    assert f"--map {sides}" in str(caught.value)
    assert "input" not in header or "--map instruction=prompt --map input=prompt" in str(caught.value)


def test_columns_that_are_one_prompt_are_joined_and_no_column_is_lost(write: Write) -> None:
    path = write("x.csv", b"instruction,input,a,b,v\nSum up:,a text,A,B,left\nA joke?,,A,B,right\n")
    options = ("instruction=prompt", "input=prompt", "a=left", "b=right", "v=verdict")
    assert said(path, options) == [("Sum up:\n\na text", "A", "B", ">"), ("A joke?", "B", "A", ">")]
    assert preview(path, mapping_of(options)).unused == ()
    with pytest.raises(UsageError, match="`a` and `b` cannot both be `left`; only prompts are joined"):
        mapping_of(["a=left", "b=left"])
    with pytest.raises(UsageError, match="the column `q` cannot be both `prompt` and `system`"):
        mapping_of(["q=prompt", "q=system"])
    with pytest.raises(UsageError, match="'1' cannot mean both left and right"):
        words_of(["1=left", "1=right"])


def test_one_answer_a_row_with_a_thumb_is_compared_where_a_prompt_has_several(write: Write) -> None:
    rows = [("Hi?", "A", True), ("Hi?", "B", False), ("Hi?", "C", True), ("Ho?", "D", True)]
    path = write("x.jsonl", jsonl(*({"prompt": p, "completion": c, "label": said} for p, c, said in rows)))
    found = said(path, ("completion=response", "label=score"))
    assert sorted(found) == [("Hi?", "A", "B", ">"), ("Hi?", "A", "C", "="), ("Hi?", "C", "B", ">")]


def test_what_a_template_may_have_left_in_texts_is_pointed_out(write: Write) -> None:
    rows = [
        PAIR | {"chosen": "Yes.</s>"},
        OTHER | {"prompt": "### Instruction:\nHo?\n\n### Response:\n"},
        {"prompt": "USER: Hu? ASSISTANT:", "chosen": "A", "rejected": "B"},
    ]
    path = write("x.jsonl", jsonl(*rows))
    assert [note.partition(":")[0] for note in preview(path, {}).notes[:1]] == [
        "1 rows have `</s>` at the end of a text, which stays a part of it"
    ]
    said_of_prompts = [
        note for note in preview(path, {}).notes if "at the end of the prompt, which stays a part of it: was" in note
    ]
    assert [note.split("`")[1] for note in said_of_prompts] == ["### Response:", "ASSISTANT:"]
    assert preview(write("y.jsonl", jsonl(PAIR, {"prompt": H, "chosen": "A", "rejected": "B"})), {}).notes == (
        "1 prompts are transcripts and are read as turns",
    )


def test_summaries_that_workers_compared_are_comparisons(write: Write) -> None:
    info = {"id": "t3", "post": "My dog ate it.", "title": "Dog", "site": None, "article": None}
    two = [{"text": " It ate.", "policy": "sup1", "note": "ok"}, {"text": " Dog ate it.", "policy": "ref", "note": ""}]
    row = {"info": info, "summaries": two, "choice": 1, "worker": "w1", "batch": "b", "extra": {"confidence": 8}}
    path = write("x.jsonl", jsonl(row))
    [one] = read_comparisons(path, {})
    assert opinion(one) == (" Dog ate it.", " It ate.", ">") and one.prompt[0].text == "My dog ate it."
    assert ({one.left.author, one.right.author}, one.verdicts[0].annotator.name) == ({"sup1", "ref"}, "w1")
    seen = preview(path, {})
    assert seen.format == "summaries"
    assert set(seen.unused) == {"batch", "extra", "info.id", "info.title", "summaries.note"}


def test_names_that_no_encoding_holds_are_printed(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("x.jsonl", b'{"prompt": "Hi?", "chosen": "A", "rejected": "B", "x\\ud83d": 1}\n')
    command = ["comparisons", "import", str(path), "--dry-run", "--workspace", str(path.parent / "none")]
    for more in (["--json"], []):
        assert main([*command, *more]) == 0
        said = capsys.readouterr().out
        assert "x\\ud83d" in said
        assert not more or json.loads(said)["unused"] == ["x\ud83d"]


PROMPTS: dict[str, tuple[str, bytes, tuple[str, ...], list[str], str]] = {
    "ShareGPT": (
        "x.jsonl",
        jsonl({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "A"}], "id": 1}),
        (),
        ["Hi?"],
        "conversations",
    ),
    "messages in Python's notation": (
        "x.csv",
        f'messages\n"{[user("Hi?"), assistant("A")]}"\n'.encode(),
        (),
        ["Hi?"],
        "messages",
    ),
    "messages as lists by name": (
        "x.jsonl",
        jsonl({"messages": {"role": ["user", "assistant"], "content": ["Hi?", "A"]}}),
        (),
        ["Hi?"],
        "messages",
    ),
    "an instruction with its text": (
        "x.json",
        json.dumps([{"instruction": "Sum up:", "input": "x", "output": "A"}]).encode(),
        ("instruction=prompt", "input=prompt"),
        ["Sum up:\n\nx"],
        "prompts",
    ),
    "battles in cells": (
        "x.csv",
        b'model_a,model_b,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\nm,n,"[""Hi?""]",'
        b'"[""A""]","[""B""]",1,0,0\n',
        (),
        ["Hi?"],
        "arena",
    ),
    "conversations compared": (
        "x.jsonl",
        jsonl(
            {"conversation_a": [user("Hi?"), assistant("A")], "conversation_b": [user("Hi?"), assistant("B")]}
            | {"winner": "tie"}
        ),
        (),
        ["Hi?"],
        "arena",
    ),
    "a history with two answers": (
        "x.jsonl",
        jsonl({"history": "Hi?", "human_ref_A": "A", "human_ref_B": "B", "labels": 1}),
        (),
        ["Hi?"],
        "shp",
    ),
    "one answer a prompt": (
        "x.jsonl",
        jsonl(
            {"prompt": "Hi?", "response": "A", "helpfulness": 4}, {"prompt": "Ho?", "response": "A", "helpfulness": 4}
        ),
        (),
        ["Hi?", "Ho?"],
        "prompts",
    ),
}


@pytest.mark.parametrize(("new_store", "case"), by_file(PROMPTS), indirect=["new_store"])
def test_prompts_are_taken_out_of_what_people_have(store: Store, write: Write, case: str) -> None:
    name, content, options, expected, taken = PROMPTS[case]
    result = import_prompts(store, write(name, content), {PromptUse.TRAIN: 1.0}, mapping_of(options))
    assert [stored.dialogue[-1].text for stored in store.prompts()] == expected
    assert result.taken_from == taken


def test_what_was_guessed_about_a_file_of_prompts_is_said(store: Store, write: Write) -> None:
    western = "Schöne Grüße an alle, ja?\nWarum?\n".encode("cp1252")
    result = import_prompts(store, write("x.txt", western), {PromptUse.TRAIN: 1.0})
    assert result.notes == ("x.txt is not UTF-8 and is read as cp1252 (Western): look at its accents",)
    system = jsonl({"prompt": "Hi?", "system": "Be kind.", "id": 1})
    result = import_prompts(store, write("y.jsonl", system), {PromptUse.TRAIN: 1.0})
    assert (result.unused, result.notes) == (("id",), ())


def test_a_column_that_python_has_no_value_for_is_named_where_it_is_needed(store: Store, write: Write) -> None:
    rows = [{"prompt": "Hi?", "left": "A", "right": "B", "verdict": "left", "created_at": 10**15, "t": time(1, 2)}]
    types = [(name, pa.string()) for name in ("prompt", "left", "right", "verdict")]
    schema = pa.schema([*types, ("created_at", pa.timestamp("ms")), ("t", pa.time64("us"))])
    path = write("x.parquet", table(rows, schema))
    with pytest.raises(MannersError, match="row 1, field `created_at`: "):
        import_comparisons(store, path, {}, skip_bad=False)


def test_more_that_is_worth_a_look_is_pointed_out(write: Write) -> None:
    again = {"prompt": "Q: Hi? A:", "chosen": "Q: Hi? A: Yes", "rejected": "Q: Hi? A: No"}
    accents = {"prompt": "Gr\u00c3\u00bc\u00c3\u0178e?", "chosen": "A", "rejected": "B"}
    model = PAIR | {"annotator": "gpt-4-1106"}
    for row, told in (
        (again, "the prompt again at the beginning of both answers"),
        (accents, "`\u00c3\u00bc`, as where UTF-8 was read as another encoding"),
        (model, "the annotator `gpt-4-1106`, who counts as the kind that --annotator-kind says"),
    ):
        [note] = preview(write("x.jsonl", jsonl(row)), {}).notes
        assert told in note
    assert (
        preview(write("x.jsonl", jsonl(model | {"annotator_kind": "ai"}, PAIR | {"annotator": "Gemma"})), {}).notes
        == ()
    )


def test_a_prompt_beside_whole_conversations_may_be_one_of_their_turns(write: Write) -> None:
    talk = [{"role": "system", "content": "S"}, user("Hi?")]
    row = {"prompt": "Hi?", "chosen": [*talk, assistant("A")], "rejected": [*talk, assistant("B")]}
    [one] = read_comparisons(write("x.jsonl", jsonl(row)), {})
    assert [turn.role for turn in one.prompt] == [Role.SYSTEM, Role.USER]
    with pytest.raises(MannersError, match="field `prompt`: is not what `chosen` and `rejected` share"):
        said(write("x.jsonl", jsonl(row | {"prompt": "Ho?"})))


def test_answers_in_other_notations_are_read(write: Write) -> None:
    rows = [
        {"prompt": [user("Hi?")], "completion": [assistant(t)], "label": good}
        for t, good in (("A", True), ("B", False))
    ]
    assert said(write("x.jsonl", jsonl(*rows)), ("completion=response", "label=score")) == [("Hi?", "A", "B", ">")]
    cells = "prompt,response_a,response_b,winner\n\"['Hi?']\",\"['A']\",\"['B']\",model_a\n"
    assert said(write("x.csv", cells.encode())) == [("Hi?", "A", "B", ">")]
    path = write("y.jsonl", jsonl({"prompt": "Hi?", "responses": ["A", "B"], "ranking": [2, 1]}))
    with pytest.raises(
        MannersError, match="several answers in `responses`; say which column has their scores or ranks"
    ):
        said(path)
    assert said(path, ("ranking=ranks",)) == [("Hi?", "B", "A", ">")]
    gap = write("z.jsonl", jsonl({"prompt": "Hi?", "responses": ["A", None], "scores": [2, 1]}))
    with pytest.raises(MannersError, match="field `responses`: has an answer that is empty, or no text"):
        said(gap)


def test_a_verdict_in_a_column_called_chosen_is_suggested(write: Write) -> None:
    for header in ("question,answer1,answer2,chosen", "prompt,answer1,answer2,chosen"):
        path = write("x.csv", f"{header}\nHi?,A,B,answer1\n".encode())
        with pytest.raises(MannersError, match="--map answer1=left --map answer2=right --map chosen=verdict"):
            said(path)
