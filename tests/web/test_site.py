"""What takes a while, and is not computed as often as it could be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from manners.store.records import Mark
from manners.web import site
from manners.web.limits import RECKONED
from manners.web.site import Computed


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.spent = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(site, "time", clock)
    return clock


def taking(clock: Clock, seconds: float) -> Callable[[], tuple[dict[str, Any], float]]:
    """Something that takes so many seconds of a core, and says how often it was computed."""
    times = list[int]()

    def compute() -> tuple[dict[str, Any], float]:
        times.append(1)
        clock.now += seconds
        clock.spent += seconds
        return {"times": len(times)}, seconds

    return compute


def test_it_is_computed_where_the_mark_is_another(clock: Clock) -> None:
    computed, compute = Computed(), taking(clock, 0.1)
    for number, times in ((1, 1), (1, 1), (2, 2), (3, 3), (3, 3)):
        assert computed.get(Mark((number,), ()), compute) == {"times": times, "behind": None}


def test_who_looks_all_the_time_has_it_take_a_share_of_a_core(clock: Clock) -> None:
    computed, compute = Computed(), taking(clock, 0.5)
    ages = list[float | None]()
    for number in range(10_000):
        ages.append(computed.get(Mark((number,), ()), compute)["behind"])
        clock.now += 0.5
    assert clock.spent <= RECKONED.burst + RECKONED.a_second * clock.now + 0.5
    assert clock.spent >= 0.9 * RECKONED.a_second * clock.now, "and it is computed again in the end"
    assert ages[:8] == [None] * 8, "who looks a few times sees what is there"
    said = [age for age in ages if age is not None]
    assert min(said) >= 0.5 and max(said) <= 0.5 / RECKONED.a_second + 1, "how old it is stands beside it"


def test_what_takes_long_leaves_nothing_for_a_while(clock: Clock) -> None:
    computed, compute = Computed(), taking(clock, 45.0)
    assert computed.get(Mark((1,), ()), compute)["times"] == 1
    clock.now += 700.0  # 40 seconds too much, at a twentieth of a core
    assert computed.get(Mark((2,), ()), compute) == {"times": 1, "behind": 745.0}
    clock.now += 100.0
    assert computed.get(Mark((2,), ()), compute) == {"times": 2, "behind": None}


def test_what_was_taken_back_is_not_shown_again_whatever_that_takes(clock: Clock) -> None:
    computed, compute = Computed(), taking(clock, 45.0)
    for gone in range(5):
        assert computed.get(Mark((1,), (gone,)), compute) == {"times": gone + 1, "behind": None}
