"""Bulk scoring of files as people have them: other columns, messages, bad lines, and what does not fit."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from manners.errors import MannersError
from manners.loop import stages
from manners.loop.session import Session
from manners.reward import ensemble
from manners.settings import Settings
from manners.types import Role, Turn
from manners.workspace import Workspace
from tests.loop.test_stages import exchanges, write


def test_a_file_is_scored_whatever_its_columns_are_called(copy: Workspace, settings: Settings, tmp_path: Path) -> None:
    rows = exchanges(4)
    whole = stages.score(copy, settings, "reward-1", write(tmp_path / "plain.jsonl", rows), tmp_path / "plain")
    assert (whole["unused"], whole["skipped"]) == ([], {})

    def scores(name: str) -> list[tuple[float, float]]:
        lines = (tmp_path / name).read_text(encoding="utf-8").splitlines()
        return [(row["score"], row["spread"]) for row in map(json.loads, lines)]

    def told(row: dict[str, str]) -> list[dict[str, str]]:
        turns = {"user": row["prompt"], "assistant": row["response"]}
        return [{"role": role, "content": text} for role, text in turns.items()]

    ends = [{"finish_reason": row["finish_reason"]} for row in rows]
    forms: list[tuple[list[dict[str, Any]], dict[str, str]]] = [
        ([{"question": r["prompt"], "reply": r["response"], **e} for r, e in zip(rows, ends, strict=True)], {}),
        ([{"messages": told(row), **e} for row, e in zip(rows, ends, strict=True)], {}),
        ([{"messages": json.dumps(told(row)), **e} for row, e in zip(rows, ends, strict=True)], {}),
        ([{"prompt": told(row)[:1], "response": told(row)[1:], **e} for row, e in zip(rows, ends, strict=True)], {}),
        ([{"chat": told(row), "id": "7", **e} for row, e in zip(rows, ends, strict=True)], {"chat": "messages"}),
    ]
    with pytest.raises(MannersError, match=r"line 1, .*--map question=prompt --map reply=response; correct it"):
        stages.score(copy, settings, "reward-1", write(tmp_path / "0.jsonl", forms[0][0]), tmp_path / "0")
    forms[0] = (forms[0][0], {"question": "prompt", "reply": "response"})
    for number, (some, mapping) in enumerate(forms):
        file, output = write(tmp_path / f"{number}.jsonl", some), tmp_path / f"{number}"
        facts = stages.score(copy, settings, "reward-1", file, output, mapping=mapping)
        assert facts["scored"] == 4 and scores(f"{number}") == scores("plain")
        assert facts["unused"] == (["id"] if "chat" in mapping else [])


def test_lines_that_cannot_be_scored_are_left_out_and_counted_on_demand(
    copy: Workspace, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble, "CHUNK", 2)
    turns = [{"role": "user", "content": "Hi"}]
    bad: list[dict[str, Any]] = [{"prompt": "bread?"}, {"messages": turns}, {"messages": []}, {"prompt": " "}]
    bad[3]["response"] = "x"
    rows = [*exchanges(3), bad[0], bad[1], *exchanges(2), bad[2], bad[3]]
    file, output = write(tmp_path / "answers.jsonl", rows), tmp_path / "scores.jsonl"
    with pytest.raises(MannersError, match=r"line 4, field `response`: is missing; correct it and run again"):
        stages.score(copy, settings, "reward-1", file, output)
    for kept in (2, 4):  # whole chunks of what was written before are kept
        facts = stages.score(copy, settings, "reward-1", file, output, skip_bad=True)
        assert (facts["already_there"], facts["scored"]) == (kept, 5 - kept)
        lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        assert [line["line"] for line in lines] == [1, 2, 3, 6, 7]
        assert facts["skipped"] == {"lacks a field": 1, "value out of range": 1, "empty text": 2}
    file = write(tmp_path / "none.jsonl", bad)
    with pytest.raises(MannersError, match=r"none of the 4 rows can be read: .*line 1, field `response`"):
        stages.score(copy, settings, "reward-1", file, tmp_path / "none", skip_bad=True)
    with pytest.raises(
        MannersError,
        match=r"--map: `answer` is not a field of ours; choose among conversation, conversations, finish_reason",
    ):
        stages.score(copy, settings, "reward-1", file, tmp_path / "none", mapping={"response": "answer"})


def test_how_far_rounded_products_put_scores_off_is_measured_and_the_two_are_not_mixed(
    copy: Workspace, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact_products = ensemble.score_all

    def off_by_ten(*given: Any) -> ensemble.Scored:
        """Far more than a processor that rounds does: this one may not."""
        found = exact_products(*given)
        rounds = torch.get_float32_matmul_precision() == "medium"
        return replace(found, members=found.members + 10) if rounds else found

    file, exact, fast = write(tmp_path / "answers.jsonl", exchanges(5)), tmp_path / "exact", tmp_path / "fast"
    assert stages.score(copy, settings, "reward-1", file, exact)["fast"] is None
    monkeypatch.setattr(ensemble, "score_all", off_by_ten)
    rounding = stages.score(copy, settings, "reward-1", file, fast, fast=True)["fast"]
    assert rounding["rows"] == 5 and rounding["times_as_fast"] > 0
    assert (rounding["off_mean"], rounding["off_largest"]) == pytest.approx((10, 10), abs=0.1)
    both = [[json.loads(line)["score"] for line in one.read_text().splitlines()] for one in (exact, fast)]
    assert [b - a for a, b in zip(*both, strict=True)] == pytest.approx([10] * 5, abs=0.1)
    with pytest.raises(MannersError, match="line 1, holds something else where the score of"):
        stages.score(copy, settings, "reward-1", file, exact, fast=True)
    empty = write(tmp_path / "none.jsonl", [])
    assert stages.score(copy, settings, "reward-1", empty, tmp_path / "none", fast=True)["fast"] == {"rows": 0}


def test_what_does_not_fit_is_counted_where_it_is_scored(
    copy: Workspace, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble, "CHUNK", 2)
    rows = exchanges(5)
    for number in (1, 3):
        rows[number]["response"] = "bread " * 300
    file, output = write(tmp_path / "answers.jsonl", rows), tmp_path / "scores.jsonl"
    renderer = Session(copy, settings).pretrained.renderer
    lost = [
        len(renderer.tokenizer.encode(r["response"], add_special_tokens=False))
        + len(renderer.prompt_ids((Turn(Role.USER, r["prompt"]),))[0])
        - renderer.context
        for r in (rows[1], rows[3])
    ]
    for done in (0, 4):  # cut off at the length limit, these two have no token that ends them
        facts = stages.score(copy, settings, "reward-1", file, output)
        assert facts["already_there"] == done
        assert facts["shortened"] == {"count": 2, "share": 0.4, "tokens": sum(lost)}
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line.get("dropped") for line in lines] == [None, lost[0], None, lost[1], None]


def test_a_row_of_a_folder_is_named_by_its_file_and_its_kind(
    copy: Workspace, settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, rows in enumerate(([{"prompt": "bread?", "response": "bake it"}] * 3, [{"prompt": "sea?"}])):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"part-{number}.parquet")
    place = f"{folder / 'part-1.parquet'}, row 1, field `response`: is missing"
    with pytest.raises(MannersError, match=re.escape(place)):
        stages.score(copy, settings, "reward-1", folder, tmp_path / "out.jsonl")


def test_messages_to_be_scored_are_read_in_any_notation(copy: Workspace, settings: Settings, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "bread?"}, {"role": "assistant", "content": "bake it"}]
    shares = [{"from": {"user": "human", "assistant": "gpt"}[one["role"]], "value": one["content"]} for one in talk]
    forms: list[dict[str, Any]] = [
        {"messages": talk},
        {"messages": str(talk)},
        {"conversations": shares},
        {"messages": {name: [one[name] for one in talk] for name in talk[0]}},
    ]
    output = tmp_path / "out.jsonl"
    stages.score(copy, settings, "reward-1", write(tmp_path / "in.jsonl", forms), output)
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len({line["check"] for line in lines}) == 1 and len(lines) == 4
