"""What is said again is counted, and not said again."""

from __future__ import annotations

import io
import logging
from types import SimpleNamespace

import pytest

from manners import logs
from manners.logs import QUIET, REMEMBERED, Counted, Repeats, complain


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(at=0.0)
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: now.at))
    monkeypatch.setattr(logs, "_repeats", Repeats())
    return now


def test_a_line_that_comes_a_million_times_is_a_line_a_minute(clock: SimpleNamespace) -> None:
    written = io.StringIO()
    logger = logging.Logger("served")
    logger.addHandler(logging.StreamHandler(written))
    logger.addFilter(Counted())
    for second in range(180):
        clock.at = float(second)
        for number in range(100):
            logger.warning("Invalid request %d", number)
        if second == 90:
            logger.warning("Something else")
    lines = written.getvalue().splitlines()
    assert lines[0] == "Invalid request 0" and "Something else" in lines and len(lines) == 4
    assert [line.partition("[")[2] for line in lines if "[" in line] == ["6000 times since it was last said]"] * 2


def test_errors_of_one_kind_and_place_are_one_whatever_they_say(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(text: str, deeper: bool = False) -> None:
        try:
            if deeper:
                raise KeyError(text)
            raise ValueError(text)
        except (KeyError, ValueError) as error:
            complain(error)

    for number in range(50):
        fail(f"text of a stranger {number}")
    fail("another", deeper=True)
    said = capsys.readouterr().err
    assert [line.split()[0] for line in said.splitlines()] == ["ValueError", "KeyError"]
    assert "test_logs.py" in said and "stranger" not in said, "where it arose, and nobody's words"
    clock.at = QUIET
    fail("again")
    assert "[50 times since it was last said]" in capsys.readouterr().err


def test_what_is_remembered_is_bounded(clock: SimpleNamespace) -> None:
    repeats = Repeats()
    assert all(repeats.times(str(number)) == 1 for number in range(5 * REMEMBERED))
    assert len(repeats._said) == REMEMBERED
