"""The notebook is one, says nothing of an earlier run, and its cells, in their order, lead to a promoted policy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot

from manners.feedback import crowd

FOLDER = Path(__file__).parents[2] / "examples"
NOTEBOOK: dict[str, Any] = json.loads((FOLDER / "notebook.ipynb").read_text(encoding="utf-8"))


def cells(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == kind]


def test_it_is_a_notebook_of_format_4_without_outputs() -> None:
    """As nbformat 4.5 asks: https://nbformat.readthedocs.io, "The notebook file format"."""
    assert NOTEBOOK.keys() == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert NOTEBOOK["metadata"]["kernelspec"].keys() >= {"name", "display_name"}
    names = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[a-zA-Z0-9-_]{1,64}", name) for name in names)
    for cell in NOTEBOOK["cells"]:
        shared = {"cell_type", "id", "metadata", "source"}
        assert cell.keys() == shared | ({"outputs", "execution_count"} if cell["cell_type"] == "code" else set())
        assert all(isinstance(line, str) for line in cell["source"])
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


def test_its_links_lead_somewhere_and_its_cells_are_plain_python() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", "\n".join(cells("markdown")))
    assert links and all((FOLDER / link).exists() for link in links)
    for source in cells("code"):
        assert not re.search(r"^\s*[%!?]", source, re.MULTILINE), "exec knows no magics"
        compile(source, "notebook", "exec")


@pytest.mark.long
def test_its_cells_lead_from_nothing_to_a_promoted_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(crowd.TASTES, "figures", crowd.TASTES["random"])  # and away again, whatever the cells set
    pyplot.switch_backend("agg")
    names: dict[str, Any] = {}
    for source in cells("code"):
        exec(compile(source, "notebook", "exec"), names)
    drawn = [axes for number in pyplot.get_fignums() for axes in pyplot.figure(number).axes]
    pyplot.close("all")
    said = capsys.readouterr().out
    assert names["workspace"].current_policy() == "policy-1" and names["judged"]["promoted"] is True
    assert names["judged"]["interval"][0] > 0.5 and names["model"]["interval"][0] > 0.5
    assert names["wrote"]["bits_per_byte"] < names["wrote"]["gzip_bits_per_byte"]
    assert names["taught"]["loss_after"] < names["taught"]["loss_before"]
    assert all(np.size(axes.lines[0].get_xdata()) >= 4 for axes in drawn[:3]) and len(drawn) == 4
    report = tmp_path / "notebook" / "workspace" / "report.html"
    assert "No person took part" in report.read_text(encoding="utf-8")
    assert (tmp_path / "notebook" / "exported" / "config.json").is_file()
    assert "policy-1 True" in said and "Take " in said
    assert {path.name for path in tmp_path.iterdir()} == {"notebook"}, "nothing is left beside its folder"
