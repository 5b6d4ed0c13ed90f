"""The documented keys of report.json are those of the records, and no others are in a report (`loop/test_round.py`)."""

from __future__ import annotations

import re
from pathlib import Path

import manners
from manners.loop.round import EVERY, SAMPLE
from manners.report.keys import table

PAGE = Path(manners.__file__).parents[1] / "docs" / "report.md"
MARKED = re.compile(r"<!-- keys -->\n(.*)<!-- /keys -->", re.DOTALL)


def documented() -> str:
    """The table as docs/report.md holds it: print it to bring the page up to date."""
    return table({stage.name: stage.result for stage in EVERY if stage is not SAMPLE}) + "\n"


def test_the_page_holds_the_keys_of_the_records() -> None:
    marked = MARKED.search(PAGE.read_text(encoding="utf-8"))
    assert marked is not None and marked[1] == documented()
