"""The documented keys of report.json are those of the records, and a real report has no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import manners
from manners.loop.round import EVERY, SAMPLE
from manners.report.keys import table
from tests.loop import tiny
from tests.worlds import save_tiny

PAGE = Path(manners.__file__).parents[1] / "docs" / "report.md"
MARKED = re.compile(r"<!-- keys -->\n(.*)<!-- /keys -->", re.DOTALL)


def documented() -> str:
    """The table as docs/report.md holds it: print it to bring the page up to date."""
    return table({stage.name: stage.result for stage in EVERY if stage is not SAMPLE}) + "\n"


def test_the_page_holds_the_keys_of_the_records() -> None:
    marked = MARKED.search(PAGE.read_text(encoding="utf-8"))
    assert marked is not None and marked[1] == documented()


def paths(facts: Any, name: str = "") -> Iterator[str]:
    """Every key of a report, as the table writes it."""
    if isinstance(facts, dict):
        for key, value in facts.items():
            yield f"{name}.{key}".lstrip(".")
            yield from paths(value, f"{name}.{key}".lstrip("."))
    elif isinstance(facts, list):
        for value in facts:
            yield from paths(value, f"{name}[]")


def test_a_demo_writes_no_other_keys(tmp_path: Path) -> None:
    report = tiny.demo(tmp_path / "demo", tiny.settings(save_tiny(tmp_path / "model")))
    rows = [line.split("|")[1:3] for line in documented().splitlines()[2:]]
    kinds = {key.strip(" `"): kind.strip() for key, kind in rows}
    written = set(paths(report))
    inside = {key for key, kind in kinds.items() if kind == "interval" or kind.startswith("by name")}
    parts = {stage.name for stage in EVERY}
    unknown = {key for key in written - kinds.keys() - parts if not any(key.startswith(f"{of}.") for of in inside)}
    assert unknown == set()
    assert kinds.keys() & written > {"reward.accuracy", "ppo.curves", "evaluation.matched.pairs", "reward.seconds"}
