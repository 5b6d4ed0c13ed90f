"""A table of demos is printed, the README's is written only on demand, and seeds are compared only with other seeds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo_table

PAGE = f"before\n{demo_table.START}old\n{demo_table.END}\nafter\n"


def demo(folder: Path, seed: int, win_rate: float) -> str:
    """A demo's workspace, with what the table reads of its report."""
    interval = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    measured = {f"{part}_{when}": 2.0 for part in ("taste", "content") for when in ("before", "after")}
    report: dict[str, Any] = {
        "seed": seed,
        "seconds": {"ppo": 600.0},
        "peak_memory_bytes": 2e9,
        "machine": {"cpu": "a processor", "cores": 2},
        "reward": {"accuracy": 0.6, "interval": [0.5, 0.7], "baselines": {"longer_wins": interval}},
        "evaluation": {
            "win_rate": win_rate,
            "interval": [0.5, 0.7],
            "matched": interval,
            "perplexity_change": interval,
            **measured,
        },
    }
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return str(folder)


def shown(
    patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], readme: Path, *arguments: str
) -> tuple[str, str]:
    """What it prints, and what the README is afterwards."""
    readme.write_text(PAGE, encoding="utf-8")
    patch.setattr(demo_table, "README", readme)
    patch.setattr(sys, "argv", ["demo_table.py", *arguments])
    demo_table.main()
    return capsys.readouterr().out, readme.read_text(encoding="utf-8")


def test_the_readme_is_written_only_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = demo(tmp_path / "a", 7, 0.6)
    printed, page = shown(monkeypatch, capsys, tmp_path / "README.md", folder)
    assert "| 7 | 60.0% [50.0, 70.0] |" in printed and page == PAGE
    printed, page = shown(monkeypatch, capsys, tmp_path / "README.md", folder, "--publish")
    assert page == f"before\n{demo_table.START}{printed[:-1]}{demo_table.END}\nafter\n"


def test_how_far_seeds_are_apart_is_said_only_where_each_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before and after a change with one seed differ by the change; 0.6 and 0.8 are 14.1 points from seed to seed."""
    folders = [demo(tmp_path / str(at), *of) for at, of in enumerate([(0, 0.6), (1, 0.8), (0, 0.7)])]
    printed, _ = shown(monkeypatch, capsys, tmp_path / "README.md", *folders[:2])
    assert "a standard deviation of 14.1 points" in printed
    for some in (folders[::2], folders, folders[:1]):
        assert "standard deviation" not in shown(monkeypatch, capsys, tmp_path / "README.md", *some)[0]
