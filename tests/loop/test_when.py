"""When a round goes on to learn: by hand, and as properties over any clock."""

from __future__ import annotations

from datetime import datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.errors import UsageError
from manners.loop.when import DAYS, Look, When, last, parse, ready

SUNDAY_NIGHT = datetime(2026, 11, 29, 23, 0)
MONDAY = datetime(2026, 11, 30, 3, 0)
moments = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1))
times = st.builds(
    When, day=st.none() | st.integers(0, 6), at=st.times().map(lambda t: t.replace(second=0, microsecond=0))
)


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("200 new verdicts", When(verdicts=200)),
        ("1 new verdict", When(verdicts=1)),
        ("  50   NEW verdicts ", When(verdicts=50)),
        ("monday 03:00", When(day=0, at=time(3))),
        ("Mon 3:00", When(day=0, at=time(3))),
        ("sunday 23:59", When(day=6, at=time(23, 59))),
        ("thu 12:30", When(day=3, at=time(12, 30))),
        ("03:00", When(at=time(3))),
        ("0:05", When(at=time(0, 5))),
    ],
)
def test_what_people_write_is_read(text: str, when: When) -> None:
    assert parse(text) == when
    assert parse(str(when)) == when


@pytest.mark.parametrize(
    "text",
    [
        "",
        "monday",
        "0 new verdicts",
        "-3 new verdicts",
        "verdicts",
        "moonday 03:00",
        "monday 24:00",
        "03:60",
        "3",
        "tuesdays 03:00",
        "200 verdicts",
        "monday 3 am",
    ],
)
def test_what_says_no_moment_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="says no moment"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "now", "since", "verdicts", "wanting", "is_ready"),
    [
        ("200 new verdicts", MONDAY, MONDAY, 199, 5, False),
        ("200 new verdicts", MONDAY, MONDAY, 200, 5, True),
        ("200 new verdicts", MONDAY, MONDAY, 40, 0, True),  # nobody can give more
        ("200 new verdicts", MONDAY, MONDAY, 0, 0, False),
        ("monday 03:00", SUNDAY_NIGHT, SUNDAY_NIGHT - timedelta(days=2), 9, 9, False),
        ("monday 03:00", MONDAY, SUNDAY_NIGHT, 9, 9, True),
        ("monday 03:00", MONDAY - timedelta(seconds=1), SUNDAY_NIGHT, 9, 9, False),
        ("monday 03:00", MONDAY + timedelta(days=6), SUNDAY_NIGHT, 9, 9, True),  # the machine was off at the time
        ("monday 03:00", MONDAY, MONDAY, 9, 9, False),  # this one was used by the round before
        ("monday 03:00", MONDAY, SUNDAY_NIGHT, 0, 9, False),  # nothing to learn
        ("03:00", SUNDAY_NIGHT, SUNDAY_NIGHT - timedelta(hours=12), 1, 1, False),
        ("03:00", MONDAY, SUNDAY_NIGHT, 1, 1, True),
        ("monday 03:00", SUNDAY_NIGHT, MONDAY, 9, 9, False),  # the clock was set back
    ],
)
def test_looks_by_hand(text: str, now: datetime, since: datetime, verdicts: int, wanting: int, is_ready: bool) -> None:
    assert ready(parse(text), Look(now=now, since=since, verdicts=verdicts, wanting=wanting)) is is_ready


@given(times, moments)
def test_the_last_time_is_the_only_one_in_its_week_or_day(when: When, now: datetime) -> None:
    found, period = last(when, now), timedelta(days=1 if when.day is None else 7)
    assert now - period < found <= now
    assert found.time() == when.at
    assert when.day is None or DAYS[found.weekday()] == DAYS[when.day]


@given(times, moments, st.timedeltas(timedelta(0), timedelta(days=30)), st.timedeltas(timedelta(0), timedelta(days=9)))
def test_what_is_ready_stays_so_and_comes_within_a_week(
    when: When, since: datetime, waited: timedelta, more: timedelta
) -> None:
    def at(now: datetime) -> bool:
        return ready(when, Look(now=now, since=since, verdicts=1, wanting=1))

    assert not at(since), "a time that was there when the waiting began is the last round's"
    assert at(since + waited + more) >= at(since + waited)
    assert at(since + timedelta(days=7))


@given(st.integers(1, 1000), st.integers(0, 1000), st.integers(0, 3), moments)
def test_verdicts_do_not_ask_the_clock(need: int, have: int, wanting: int, now: datetime) -> None:
    look = Look(now=now, since=now, verdicts=have, wanting=wanting)
    assert ready(When(verdicts=need), look) is (have >= need or (have > 0 and wanting == 0))
