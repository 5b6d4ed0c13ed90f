"""Facts as a reader sees them: numbers, shares with their intervals, times and sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from manners.report import plots
from manners.types import Interval

Facts = Mapping[str, Any]


def with_interval(value: Interval | Facts | None) -> str:
    """Return a share with its 95 % interval as text: `71.3 % (68.2 to 74.1 %)`."""
    known = interval(value)
    return "not measured" if known is None else f"{plots.percent(known.estimate)} ({plots.span(known)})"


def ends(value: Facts | None) -> str:
    """Return the ends of an interval of shares alone, where the estimate stands beside it: `68.2 to 74.1 %`."""
    known = interval(value)
    return "not measured" if known is None else plots.span(known)


def relative_change(value: Interval | Facts | None) -> str:
    """Return a relative change with its 95 % interval as text: `+1.2 % (-0.3 to +2.7 %)`, with true minus signs."""
    percent = "\N{NO-BREAK SPACE}%"
    return _change(value, 100, 1, percent, percent)


def difference(value: Interval | Facts | None) -> str:
    """Return a difference of two means with its 95 % interval as text: `+0.186 (+0.150 to +0.221)`."""
    return _change(value, 1, 3)


def points(value: Interval | Facts | None) -> str:
    """Return a difference of two shares with its 95 % interval as text: `+10.8 points (+3.1 to +18.4)`."""
    return _change(value, 100, 1, " points")


def _change(value: Interval | Facts | None, times: int, digits: int, unit: str = "", unit_of_ends: str = "") -> str:
    """Return what something changed by, with its 95 % interval, each `times` as much; a dash where it is not known."""
    known = interval(value)
    if known is None:
        return "\N{EN DASH}"
    estimate, low, high = (_signed(times * end, digits) for end in (known.estimate, known.low, known.high))
    return f"{estimate}{unit} ({low} to {high}{unit_of_ends})"


def _signed(value: float, digits: int) -> str:
    """Return a number with its sign."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def number(value: object) -> str:
    """Return a count in full, any other number to about three digits, and a dash for what is not there."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if not isinstance(value, float) or not math.isfinite(value):
        return "\N{EN DASH}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: object) -> str:
    """Return a time in seconds as text: `3 min 20 s`."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "\N{EN DASH}"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def size(count: object) -> str:
    """Return a number of bytes in decimal units: `3.2 GB`."""
    if not isinstance(count, int | float):
        return "\N{EN DASH}"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def finite(value: Any) -> bool:
    """Return whether a value is a number that can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def interval(value: Facts | Interval | None) -> Interval | None:
    """Return an interval all of whose ends are finite numbers, also one in JSON's form; None for anything else."""
    if isinstance(value, Interval):
        ends: list[Any] = [value.estimate, value.low, value.high]
    else:
        ends = [(value or {}).get(key) for key in ("estimate", "low", "high")]
    known = [float(end) for end in ends if finite(end)]
    return Interval(*known) if len(known) == len(ends) else None


def pair(estimate: float | None, ends: tuple[float, float] | None) -> Interval | None:
    """Return the interval of an estimate whose ends stand apart from it."""
    low, high = ends or (None, None)
    return interval({"estimate": estimate, "low": low, "high": high})
