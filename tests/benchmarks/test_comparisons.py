"""Two runs and two checkouts are compared to the last digit, and in turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import between, same_report
from benchmarks.contender import Measurement, Part


def measured(items: int, seconds: float, memory: int) -> Measurement:
    return Measurement(items, {"work": Part(seconds, 1.0)}, memory_bytes=memory)


def test_ratios_are_taken_within_a_round() -> None:
    rounds = [
        (measured(10, 1.0, 100), measured(10, 2.0, 100)),
        (measured(10, 10.0, 100), measured(10, 10.0, 110)),
        (measured(10, 5.0, 200), measured(10, 4.0, 180)),
    ]
    assert between.line("x", "a/s", rounds) == (
        "| x | 1.000 [0.500, 1.250] | 1.000 [0.900, 1.100] | 2.000 a/s | 2.500 a/s |"
    )


def test_every_fact_that_differs_is_named_and_times_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {"seed": 0, "seconds": {"ppo": 1.0}, "reward": {"accuracy": 0.1, "curve": [1, 2]}, "gone": None}
    after = {"seed": 0.0, "seconds": {"ppo": 2.0}, "reward": {"accuracy": 0.1000000001, "curve": [1, 2, 3]}}
    for name, facts in (("before", before), ("after", after)):
        (tmp_path / name).write_text(json.dumps(facts), encoding="utf-8")
    files = [str(tmp_path / "before"), str(tmp_path / "after")]
    assert same_report.main([files[0], files[0]]) == 0
    assert capsys.readouterr().out == "the same: 6 facts\n"
    assert same_report.main(files) == 1
    assert capsys.readouterr().out.splitlines() == [
        "gone: null -> absent",
        "reward.accuracy: 0.1 -> 0.1000000001",
        "reward.curve.length: 2 -> 3",
        "reward.curve[2]: absent -> 3",
        "seed: 0 -> 0.0",
    ]
