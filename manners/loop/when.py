"""When a round that has asked goes on to learn: so many new verdicts, or a time of the week; a look at the store says.

There is no schedule that is kept anywhere: whoever waits looks once a minute, and one pure function decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta

from manners.errors import UsageError

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_VERDICTS = re.compile(r"(\d{1,9}) new verdicts?")
_TIME = re.compile(r"(?:([a-z]+) +)?(\d{1,2}):(\d{2})")


@dataclass(frozen=True, kw_only=True)
class When:
    """What is waited for: verdicts, or a time of every day or of one day of the week."""

    verdicts: int | None = None
    """New ones; None where a time is waited for."""
    day: int | None = None
    """Of the week, Monday 0; None for every day."""
    at: time = time()

    def __str__(self) -> str:
        """What was written, in its plainest form."""
        if self.verdicts is not None:
            return f"{self.verdicts} new verdict{'s' if self.verdicts != 1 else ''}"
        return " ".join([*([] if self.day is None else [DAYS[self.day]]), f"{self.at:%H:%M}"])


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a look at the store and at the clock finds."""

    now: datetime
    """By the clock on this machine's wall, without a time zone."""
    since: datetime
    """From when on a time counts, by the same clock: the waiting had begun, and something new was there."""
    verdicts: int
    """New ones: what no reward model has learned from yet."""
    wanting: int
    """Comparisons that were opened, and can get verdicts still from those who are here to give them."""
    can_come: int = 0
    """Verdicts that these can get at most."""
    behind: bool = False
    """Whether the clock says a time before that: it was set back."""


def parse(text: str) -> When:
    """Read `200 new verdicts`, `monday 03:00`, `mon 3:00` or `03:00` (every day); raises UsageError for others."""
    words = " ".join(text.lower().split())
    if (found := _VERDICTS.fullmatch(words)) and int(found[1]):
        return When(verdicts=int(found[1]))
    if (found := _TIME.fullmatch(words)) and int(found[2]) < 24 and int(found[3]) < 60:
        named = [place for place, day in enumerate(DAYS) if found[1] in (day, day[:3])]
        if found[1] is None or named:
            return When(day=named[0] if named else None, at=time(int(found[2]), int(found[3])))
    raise UsageError(
        f'--when {text!r} says no moment: write a number, as in "200 new verdicts", or a time, as in "monday 03:00"'
        ' or "03:00".'
    )


def last(when: When, now: datetime) -> datetime:
    """Return the latest moment up to now at which a time was reached."""
    today = datetime.combine(now.date(), when.at)
    back = (0 if when.day is None else (now.weekday() - when.day) % 7) * timedelta(days=1)
    found = today - back
    return found if found <= now else found - timedelta(days=1 if when.day is None else 7)


def ready(when: When, look: Look) -> bool:
    """Return whether what was waited for is there.

    Verdicts: as many as were asked for, or all that those comparisons can get which were opened (some, at least), by
    those who are here. A time: it came since the waiting began, when there was something new to learn already, so that
    a night without a verdict is none. A clock that was set back makes nothing ready: the time has to come again.
    """
    if not look.verdicts:
        return False
    if when.verdicts is not None:
        return look.verdicts >= when.verdicts or not look.wanting
    return look.since < last(when, look.now)
