"""How often somebody may do something: token buckets, in memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address, ip_network

from anyio import CapacityLimiter

REMEMBERED = 10_000
"""Buckets kept; the ones used longest ago are forgotten first."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many at once, and so many a second after that."""

    burst: float
    a_second: float


REQUESTS = Rate(burst=200, a_second=50)
"""Requests of one account: far more than a person makes."""
SIGN_INS = Rate(burst=10, a_second=1 / 30)
"""Attempts of one address to sign in under one name."""
ENTRIES = Rate(burst=60, a_second=1)
"""Attempts of one address to come in, under whatever name: a class behind one address has joined within a minute."""
GENERATIONS = Rate(burst=30, a_second=2)
"""Answers that one account has drawn in the chat; for programs see `serve.answers_a_second`."""
HASHES = 2
"""Passwords hashed at once: each takes 64 MB and every core, and pages must stay quick meanwhile."""


@dataclass
class Limits:
    """The buckets, by what they count and whose they are."""

    hashing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(HASHES))
    """What whoever hashes a password holds meanwhile."""
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


def network_of(address: str) -> str:
    """Return whose address it is: of IPv6 the network of 64 bits, for whoever has one address has all of these."""
    try:
        known = ip_address(address)
    except ValueError:
        return address
    alone = isinstance(known, IPv4Address) or known.ipv4_mapped
    return address if alone else str(ip_network((known.packed, 64), strict=False))
