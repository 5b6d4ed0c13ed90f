"""Progress in a log: nothing for short work, a line now and then with the time left for long work."""

from __future__ import annotations

import time

import pytest

from manners.progress import steps, track


def test_short_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed, and everything passes through."""
    assert list(track([1, 2, 3], "counting")) == [1, 2, 3]
    assert list(track(iter("ab"), "counting")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


def test_long_work_says_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """At most a line every five seconds, on stderr, with the time left by the pace so far."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in track(range(8), "rollout"):
        now += 2.5
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "rollout: 2/8, 5 s, about 15 s left",
        "rollout: 4/8, 10 s, about 10 s left",
        "rollout: 6/8, 15 s, about 5 s left",
        "rollout: 8/8, 20 s, about 0 s left",
        "rollout: 8/8, done in 20 s",
    ]


def test_manual_steps_without_a_total(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a total there is a count but no time left."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with steps("reading") as advance:
        now = 6.0
        advance(500)
    assert capsys.readouterr().err.splitlines() == ["reading: 500, 6 s", "reading: 500, done in 6 s"]
