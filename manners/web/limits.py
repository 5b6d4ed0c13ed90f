"""How often somebody may do something: token buckets, in memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

REMEMBERED = 10_000
"""Buckets kept; the ones used longest ago are forgotten first."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many at once, and so many a second after that."""

    burst: float
    a_second: float


REQUESTS = Rate(burst=200, a_second=50)
"""Requests of one account, or of one address that has not signed in: far more than a person makes."""
SIGN_INS = Rate(burst=10, a_second=1 / 30)
"""Attempts to sign in under one name."""
GENERATIONS = Rate(burst=30, a_second=2)
"""Answers that one account has drawn."""


@dataclass
class Limits:
    """The buckets, by what they count and whose they are."""

    _buckets: OrderedDict[tuple[str, str], tuple[float, float]] = field(default_factory=OrderedDict)
    """Of each: what is left in it, and when that was counted."""

    def take(self, what: str, who: str, rate: Rate, count: float = 1.0) -> float:
        """Take from a bucket; return the seconds to wait, 0 where it held enough."""
        now = time.monotonic()
        left, then = self._buckets.pop((what, who), (rate.burst, now))
        left = min(rate.burst, left + (now - then) * rate.a_second)
        wait = max(0.0, (count - left) / rate.a_second)
        self._buckets[what, who] = (left if wait else left - count, now)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        return wait
