"""What rounds take, as it is published."""

from __future__ import annotations

from benchmarks.loop_time import table


def test_a_round_says_whom_it_was_compared_with_and_all_of_them_what_they_took() -> None:
    one = {"round": 1, "verdicts": 1320, "win_rate": 0.75, "interval": [0.7, 0.8], "quality": [0.75, 0.7, 0.8]}
    two = {"round": 2, "verdicts": 2640, "win_rate": None, "interval": None, "quality": None}
    lines = table(
        1800.0, 720.0, [one | {"kl": 5.04, "outcome": "promoted"}, two | {"kl": 5.0, "outcome": "rejected"}]
    ).splitlines()
    assert lines[2:4] == [
        "| 1 | 1,320 | 75.0 % [70.0, 80.0] | 75.0 % [70.0, 80.0] | 5.0 | promoted |",
        "| 2 | 2,640 | not told | not told | 5.0 | rejected |",
    ]
    assert lines[-1].startswith("30 minutes, **2.50 times** the 12.0 minutes of a demo's stages. Measured on ")
