"""docs/python.md is run as it stands, on a tiny random model: every block, in order, and what it says it prints."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.worlds import save_tiny

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
MODEL = "smollm2-135m"
"""The name on the page, in place of which the tiny model is loaded."""


@pytest.mark.long
def test_the_blocks_of_the_page_print_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 4 and sum(MODEL in block for block in blocks) == 1
    model = save_tiny(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(block.replace(MODEL, str(model)), str(PAGE), "exec"), names)
        assert printed.getvalue().splitlines() == re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
    names["store"].close()
