"""The fresh evaluation prompts are frozen and met nowhere else; a run on them appends its line."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fresh
from manners.cli.project import Demo
from manners.data import demo_prompts
from manners.facts import Facts
from manners.feedback import crowd
from manners.loop import round as rounds
from manners.settings import Settings
from manners.types import PromptUse, opening
from tests.loop import tiny
from tests.worlds import save_tiny

ROWS = [json.loads(line) for line in fresh.PROMPTS.read_text(encoding="utf-8").splitlines()]
TEXTS = [row["prompt"] for row in ROWS]
MIX = fresh.ROOT / "benchmarks" / "prompts.jsonl"


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9']+", text.lower()))


def alike(one: str, other: str) -> float:
    return len(words(one) & words(other)) / len(words(one) | words(other))


def test_they_never_change() -> None:
    assert len(TEXTS) == len(set(TEXTS)) == 154
    assert hashlib.sha256("\n".join(TEXTS).encode()).hexdigest().startswith("f1043e4dbeae26e2")


def test_they_are_of_many_kinds_short_and_plain() -> None:
    counted = Counter(row["kind"] for row in ROWS)
    assert len(counted) == 8 and min(counted.values()) >= 10
    assert all(text.isascii() and text == text.strip() and 3 <= len(text.split()) <= 25 for text in TEXTS)


@pytest.mark.long
def test_none_is_met_in_training_or_in_the_benchmarks() -> None:
    demo = [dialogue for some in demo_prompts().values() for dialogue in some]
    mix = [json.loads(line)["prompt"] for line in MIX.read_text(encoding="utf-8").splitlines()]
    assert not {opening(one) for one in fresh.fresh_prompts()} & {opening(one) for one in demo}
    others = [*(dialogue[-1].text for dialogue in demo), *mix]
    assert max(alike(one, other) for one in TEXTS for other in others) < 0.6
    assert max(alike(one, other) for one, other in combinations(TEXTS, 2)) < 0.6


REPORT: dict[str, Any] = {
    "seed": 7,
    "machine": {"cpu": "A Processor", "cores": 2},
    "evaluation": {
        "prompts": 154,
        "win_rate": 0.7,
        "interval": [0.65, 0.75],
        "matched": {"estimate": 0.6, "low": 0.5, "high": 0.7},
        "best_of_n": {"n": 4, "head_to_head": {"estimate": 0.52, "low": 0.46, "high": 0.58}},
        "perplexity_change": {"estimate": 0.014, "low": 0.011, "high": 0.017},
    },
}


def test_a_line_holds_what_was_measured_and_the_others_stay(tmp_path: Path) -> None:
    page = tmp_path / "fresh.md"
    page.write_text(f"| seed |\n|---|\n{fresh.END}\nafter\n", encoding="utf-8")
    line = fresh.row(REPORT, "abc1234+", date(2026, 11, 28), 12.34)
    fresh.append(page, line)
    fresh.append(page, "| second |\n")
    assert page.read_text(encoding="utf-8") == f"| seed |\n|---|\n{line}| second |\n{fresh.END}\nafter\n"
    assert [cell.strip() for cell in line.strip("|\n").split("|")] == [
        "2026-11-28",
        "abc1234+",
        "7",
        "154",
        "A Processor, 2 threads",
        "70.0% [65.0, 75.0]",
        "60.0% [50.0, 70.0]",
        "n = 4: 52.0% [46.0, 58.0]",
        "1.014 [1.011, 1.017]",
        "12.3",
    ]
    assert " 12.3 since it went on |" in fresh.row(REPORT, "a", date(2026, 11, 28), 12.34, went_on=True)
    head = next(x for x in fresh.PAGE.read_text(encoding="utf-8").splitlines() if x.startswith("| date"))
    assert head.count("|") == line.count("|")
    with pytest.raises(SystemExit, match="no line"):
        fresh.append(fresh.PROMPTS, line)


def test_a_run_that_went_on_names_every_commit_that_made_it(tmp_path: Path) -> None:
    file = tmp_path / "fresh-7.commits"
    found = [fresh.noted(file, named) for named in ("a", "a", "b+", "b+", "a")]
    assert found == [["a"], ["a"], ["a", "b+"], ["a", "b+"], ["a", "b+", "a"]]


def test_it_is_the_demo_that_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    def demo(_: Path, settings: Settings, *, resume: bool) -> Facts:
        seen.append(settings)
        return {"resume": resume}

    monkeypatch.setattr(rounds, "demo", demo)
    Demo(workspace=tmp_path, seed=3).run()
    assert seen == [fresh.demo_settings(3)]


@pytest.mark.long
def test_a_run_is_judged_on_them_and_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(crowd.TASTES, tiny.FIGURES.name, tiny.FIGURES)
    few = fresh.fresh_prompts()[:14]
    prompts = {**tiny.PROMPTS, PromptUse.EVALUATE: few}
    settings = tiny.settings(save_tiny(tmp_path / "model"))
    settings = replace(settings, evaluate=replace(settings.evaluate, prompts=2))
    fresh.run(tmp_path / "run", settings, prompts)
    report = tiny.read_report(tmp_path / "run")
    assert report["evaluation"]["prompts"] == len(few)
    line = fresh.row(report, "abc", date(2026, 11, 28), 1.0)
    assert line.count("|") == 11 and f"| {settings.seed} |" in line
    fresh.run(tmp_path / "run", settings, prompts)
    assert tiny.steady(tiny.read_report(tmp_path / "run")) == tiny.steady(report)
