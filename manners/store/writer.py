"""Many small writes in one transaction: a thread commits whatever has come meanwhile, and only then says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from sqlalchemy import Connection

from manners.store.store import Store

T = TypeVar("T")
MOST_AT_ONCE = 256
"""Writes in one transaction: nobody waits for more than that."""
_Job = tuple[Callable[[Connection], Any], "Future[Any]"]


class Writer:
    """Writes for many threads at once; each gets its answer after the commit."""

    def __init__(self, store: Store) -> None:
        """Write into a store."""
        self._store = store
        self._jobs = SimpleQueue[_Job]()
        threading.Thread(target=self._run, name="writer", daemon=True).start()

    def write(self, job: Callable[[Connection], T]) -> T:
        """Run a write, and return what it returns once it is committed; raises what it raises, alone."""
        done: Future[T] = Future()
        self._jobs.put((job, done))
        return done.result()

    def _run(self) -> None:
        while True:
            jobs = [self._jobs.get()]
            while len(jobs) < MOST_AT_ONCE and not self._jobs.empty():
                jobs.append(self._jobs.get())
            self._commit(jobs)

    def _commit(self, jobs: list[_Job]) -> None:
        results: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            with self._store.write() as connection:
                if len(jobs) == 1:
                    results = [(done, job(connection), None) for job, done in jobs]
                else:
                    results = [(done, *_apart(connection, job)) for job, done in jobs]
        except Exception as error:  # nothing was committed: all of them failed
            results = [(done, None, error) for _, done in jobs]
        for done, result, failed in results:
            if failed is None:
                done.set_result(result)
            else:
                done.set_exception(failed)


def _apart(connection: Connection, job: Callable[[Connection], T]) -> tuple[T | None, Exception | None]:
    """Run a write in a transaction of its own within the others': whatever it meets is for its own caller."""
    try:
        with connection.begin_nested():
            return job(connection), None
    except Exception as error:
        return None, error
