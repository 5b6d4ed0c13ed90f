"""What others call our fields: the options that a refusal suggests do what they say."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from manners.errors import MannersError
from manners.store.files.columns import suggested
from manners.store.files.mapping import column_and_field
from manners.store.files.transfer import read_comparisons

FILES = [
    ("question,answer_a,answer_b,choice", "Hi,Hello.,What?,left"),
    ("id,query,model_a,response_a,model_b,response_b,winner", "1,Hi,x,Hello.,y,What?,left"),
    ("instruction,output_1,output_2,preference", "Hi,Hello.,What?,tie"),
    ("Prompt Text,Left Answer,Right Answer,Label", "Hi,Hello.,What?,right"),
    ("question,better,worse", "Hi,Hello.,What?"),
    ("input,accepted_response,rejected_response", "Hi,Hello.,What?"),
    ("question,chosen,rejected", "Hi,Hello.,What?"),
    ("user,left,right,verdict", "Hi,Hello.,What?,both_bad"),
]


@pytest.mark.parametrize(("header", "row"), FILES)
def test_the_suggested_options_read_the_file(tmp_path: Path, header: str, row: str) -> None:
    path = tmp_path / "some.csv"
    path.write_text(f"{header}\n{row}\n", encoding="utf-8")
    with pytest.raises(MannersError) as refused:
        list(read_comparisons(path, {}))
    options = re.findall(r'--map ((?:"[^"]*"|[^\s"])+=[a-z]+)', str(refused.value))
    mapping = dict(column_and_field(shlex.split(option)[0]) for option in options)
    [comparison] = read_comparisons(path, mapping)
    assert comparison.prompt[0].text == "Hi"
    assert {comparison.left.text, comparison.right.text} == {"Hello.", "What?"}
    assert len(comparison.verdicts) == 1


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        (["question", "answer"], "--map question=prompt --map answer=response"),
        (
            ["instruction", "completion", "input"],
            "--map instruction=prompt --map input=prompt --map completion=response",
        ),
        (["id", "source", "a b"], '--map "a b"=prompt'),
        (["promptText", "modelOutput", "model"], "--map promptText=prompt --map modelOutput=response"),
        (["frage", "antwort"], "--map frage=prompt --map antwort=response"),
        (["id"], ""),
        ([], ""),
    ],
)
def test_columns_by_what_others_call_them(columns: list[str], options: str) -> None:
    assert suggested(columns, ("prompt", "response")) == options


def test_a_row_that_lacks_what_others_have_is_no_question_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    good = {"prompt": "Hi", "left": "Hello.", "right": "What?", "verdict": "left"}
    rows = [good, {"left": "a", "right": "b", "verdict": "tie"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(MannersError, match=r"line 2, field `prompt`: is missing; correct it or leave such lines out"):
        list(read_comparisons(path, {}))
