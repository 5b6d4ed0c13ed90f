"""Who is next: accounts take turns, however much each of them asks for.

Each account has a queue of its own, in order of arrival. The next one is the first of the account that holds the fewest
seats; among equals, of the account whose last turn is longest ago; and then the one that came first. So whoever asks
for a thousand answers waits for them, and nobody else does. Source: Demers et al. 1989, "Analysis and simulation of a
fair queueing algorithm"; ours counts turns, not bytes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")
REMEMBERED = 10_000
"""Accounts whose last turn is known; the ones whose turn is longest ago are forgotten first."""


class Waiting(Generic[T]):
    """Those who wait, by account."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._queues: dict[str, deque[tuple[int, T]]] = {}
        self._served = OrderedDict[str, int]()
        """The number of each account's last turn."""
        self._count = 0

    def __iter__(self) -> Iterator[T]:
        """Yield all that wait, account by account."""
        return (one for queue in self._queues.values() for _, one in queue)

    def add(self, account: str, one: T) -> None:
        """Put somebody behind those of their account."""
        self._queues.setdefault(account, deque()).append((self._number(), one))

    def put_back(self, account: str, one: T) -> None:
        """Put somebody before those of their account: they had a turn already."""
        self._queues.setdefault(account, deque()).appendleft((0, one))

    def first(self, held: Mapping[str, int], may: Callable[[T], bool] = lambda _: True) -> tuple[str, T] | None:
        """Return whose turn it is, with their account, by what each account holds; None where nobody waits who may."""
        ready = [name for name, queue in self._queues.items() if may(queue[0][1])]
        if not ready:
            return None

        def turn(name: str) -> tuple[int, int, int]:
            return held.get(name, 0), self._served.get(name, 0), self._queues[name][0][0]

        account = min(ready, key=turn)
        return account, self._queues[account][0][1]

    def take(self, account: str) -> T:
        """Take the first of an account."""
        queue = self._queues[account]
        _, one = queue.popleft()
        if not queue:
            del self._queues[account]
        self._served.pop(account, None)
        self._served[account] = self._number()
        if len(self._served) > REMEMBERED:
            self._served.popitem(last=False)
        return one

    def drop(self, gone: Callable[[T], bool]) -> None:
        """Forget those who are gone."""
        left = {name: deque(pair for pair in queue if not gone(pair[1])) for name, queue in self._queues.items()}
        self._queues = {name: queue for name, queue in left.items() if queue}

    def _number(self) -> int:
        self._count += 1
        return self._count
