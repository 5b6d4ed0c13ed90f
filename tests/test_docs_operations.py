"""docs/operations.md: its commands run in their order, and what it says of figures and checks is what there is."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from manners.cli import main
from manners.web.figures import Figures
from tests.test_docs_pages import DOCS, Page
from tests.upkeep.test_doctor import NAMES
from tests.worlds import save_tiny

TEXT = (DOCS / "operations.md").read_text(encoding="utf-8")


def test_every_command_on_the_page_runs_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny(tmp_path / "model")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    told: dict[str, Any] = {}
    commands = list(Page(TEXT, model).commands())
    assert len(commands) == 8
    for command in commands:
        words = command.split()[1:]
        monkeypatch.setattr(sys, "stdin", io.StringIO("a long password\n"))
        assert main([*words, *([] if "--json" in words else ["--json"])]) == 0, capsys.readouterr().err
        told[command] = json.loads(capsys.readouterr().out)
        if words[0] == "init":
            toml = f"[model]\nname = {json.dumps(str(model))}\ntrainable_layers = 2\ncontext = 256\n"
            Path("project/manners.toml").write_text(toml, encoding="utf-8")
    made = next(facts for command, facts in told.items() if command.startswith("manners backup"))
    assert made["rehearsal"]["verified"] and made["removed"]["backups"] == 0
    [checked, again] = [facts["checks"] for command, facts in told.items() if command.startswith("manners doctor")]
    assert [one["name"] for one in checked] == NAMES
    assert next(one for one in again if one["name"] == "backup")["verdict"] == "pass"
    assert Path("again/store.db").is_file()


def test_the_checks_and_figures_on_the_page_are_those_there_are() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", TEXT, re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`([\w*]+)`", row)}
    assert set(NAMES) <= names
    figures = {name.removesuffix("_total") for name in names if name.startswith("manners_")}
    there = {family.name for family in Figures().registry.collect()}
    process = {name for name in there if name.startswith("manners_process_")}
    assert process and figures - {"manners_process_*"} == there - process
