"""The gallery of curves: what is called healthy is, and what is called a fault is found to be that fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import curves


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("healthy", ""),
        ("no leash", "KL to the start version"),
        ("collapse", "collapsed"),
        ("over-optimisation", "over-optimisation"),
        ("longer and longer", "drifted"),
    ],
)
def test_each_run_shows_what_it_is_called(name: str, sign: str) -> None:
    result, points = curves.run(curves.CASES[name])
    said = [one.sentence for one in result.warned]
    assert all(sign in sentence for sentence in said) and bool(said) == bool(sign)
    assert all(any(metric in point for point in points) for metrics in curves.PANELS.values() for metric in metrics)


@pytest.mark.long
def test_the_picture_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "SETTINGS", replace(curves.SETTINGS, updates=2))
    ran = {name: curves.run(curves.CASES[name]) for name in ("healthy", "nothing is learned")}
    curves.draw_all(ran, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert curves.table(ran)[2].startswith("| healthy | nothing |")
