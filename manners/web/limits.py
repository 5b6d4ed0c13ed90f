"""How often somebody may do something, in token buckets, and how much at once; in memory."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address, ip_network
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from manners.web.hashing import Line

T = TypeVar("T")

REMEMBERED = 10_000
"""Buckets, and secrets, kept; the ones used longest ago are forgotten first."""
RETRY = {"Retry-After": "1"}


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
UNDER_WAY = 8
"""Answers of the chat that are written for one account at once, with a reader or without."""
BEGUN = Rate(burst=100, a_second=0.1)
"""Conversations that one account begins: all of them are listed each time."""
EXPORTS = Rate(burst=5, a_second=1 / 60)
"""Exports of one account: each reads all that it ever said in the chat."""
CLEARINGS = Rate(burst=3, a_second=1 / 30)
"""How often the database is written anew for conversations that are deleted on the page, whoever deletes them."""
DELETIONS = Rate(burst=10, a_second=0.2)
"""Conversations that one account has deleted: for each, the files of the workspace are looked through."""
STORED = Rate(burst=64_000_000, a_second=50_000)
"""Bytes of one account that are stored for good: afterwards a thousand comparisons a minute, of three kilobytes each. A
turn of a chat counts with all that was said before it, as it is stored. A disk of 100 GB lasts three weeks (D458)."""
REPORTS = Rate(burst=20, a_second=1 / 60)
"""Reports of one account: each takes a pair, or an answer, away from everybody until a reviewer has decided."""
STRANGERS = Rate(burst=300, a_second=20)
"""Requests of one address that nobody has signed in for, to pages where one must have."""
OPENED = Rate(burst=1000, a_second=100)
"""Requests of one address to what is open to all: a hundred people behind one, with eight files to a page."""
RECKONED = Rate(burst=5, a_second=0.05)
"""Seconds of a core that go into the dashboard, whoever looks at it: then it is shown as it was (`site.Computed`)."""
REQUEST_BYTES = 100_000
"""What a request in progress counts as, beside its body: its task, its texts, its answer."""
HELD_BY_ONE = 16_000_000
"""Bytes that the requests in progress of one account may hold."""
HELD_BY_ALL = 128_000_000
"""Bytes that all requests in progress of accounts may hold; parsed, they take three to four times as much."""
HELD_BY_STRANGERS = 16_000_000
"""Bytes that the forms of all who have not signed in may hold: apart, so that they are in the way of nobody who has."""
LARGEST_FORM = 20_000
"""Bytes that somebody may send who has not signed in, a name and a password, and what such a form counts as."""
TOO_MANY = "too many requests of yours are in progress: wait for one of them"
WRITERS = 10
"""Threads that may wait for the database's lock at once: the others read meanwhile, and pages stay quick."""
RECKONERS = 4
"""Threads for the dashboard, which reckons for a while where there is much."""
TRIERS = 4
"""Threads that look up secrets which have let nobody in so far."""
HASHES = 1
"""Passwords hashed at once: each takes 64 MB (`hashing`)."""


@dataclass
class Limits:
    """The buckets, by what they count and whose they are."""

    hashing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(HASHES))
    """What whoever hashes a password holds meanwhile."""
    line: Line = field(default_factory=Line)
    """Whoever waits for that."""
    writing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(WRITERS))
    """What whoever writes into the database holds meanwhile."""
    reckoning: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(RECKONERS))
    """What whoever looks at the dashboard holds meanwhile: one reckons, the others wait for it."""
    trying: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(TRIERS))
    """What whoever comes with a secret that is not known holds meanwhile: most of those that are tried are wrong."""
    labelling: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2 * WRITERS))
    """What whoever labels holds meanwhile: these writes are committed many at once (`store.writer`)."""
    _buckets: OrderedDict[tuple[str, str], tuple[float, float]] = field(default_factory=OrderedDict)
    """Of each: what is left in it, and when that was counted."""
    _held: Counter[str] = field(default_factory=Counter)
    """Bytes, by whom."""
    _all: Counter[bool] = field(default_factory=Counter)
    """Bytes, by whether strangers hold them."""

    def hold(self, scope: Scope, who: str, size: int, otherwise: str = TOO_MANY, *, stranger: bool = False) -> None:
        """Let a request in progress take so many bytes, until it lets go; raises HTTPException 429 or 503."""
        if self._held[who] + size > HELD_BY_ONE:
            raise HTTPException(429, otherwise, RETRY)
        if self._all[stranger] + size > (HELD_BY_STRANGERS if stranger else HELD_BY_ALL):
            raise HTTPException(503, "too many requests are in progress: try again in a moment", RETRY)
        scope["state"].setdefault("held", Counter())[who, stranger] += size
        self._held[who] += size
        self._all[stranger] += size

    async def hashed(self, request: Request, who: str, call: Callable[[], T]) -> T:
        """Return what a call returns that hashes a password, once it is its turn.

        Raises ClientDisconnect where whoever asked has left meanwhile: nothing is hashed for nobody.
        """
        async with self.line.turn(who):
            if await request.is_disconnected():
                raise ClientDisconnect
            return await to_thread.run_sync(call, limiter=self.hashing)

    def let_go(self, scope: Scope) -> None:
        """Give back what a request held: it is answered."""
        for (who, stranger), size in scope["state"].pop("held", {}).items():
            self._held[who] -= size
            self._all[stranger] -= size
            if not self._held[who]:
                del self._held[who]

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
