"""What takes long is worked out in a process of its own, which gives way to all that is served.

In a thread it would have Python's lock for as long as nobody else asked for it, and whoever does waits for it at each
turn: a second of the dashboard's work is then a second of slow pages. It is started for the first who asks, and ends
when nobody has for `IDLE` seconds, since it takes some hundred megabytes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from manners.errors import MannersError, Unavailable
from manners.logs import complain
from manners.web.spawned import spawned

NICENESS = 19
"""What it gives way by: the model's process gives way by 10, and that which hashes passwords by 15."""
IDLE = 300.0
"""Seconds."""
T = TypeVar("T")


class Apart:
    """Works one thing out at a time; safe to use from many threads."""

    def __init__(self, idle: float = IDLE) -> None:
        """Begin without a process; it ends when nobody has asked for so many seconds."""
        self._idle = idle
        self._lock = threading.Lock()
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def work(self, compute: Callable[..., T], *given: object) -> tuple[T, float]:
        """Return what a function of a module makes of what it is given, and the seconds of a core that it took.

        All of it crosses from one process to the other. Raises what the function raises as a MannersError, and
        Unavailable where the process has ended twice.
        """
        with self._lock:
            for _ in range(2):  # it may have ended at this moment, for nobody had asked
                connection = self._connection or self._start()
                try:
                    connection.send((compute, given))
                    found, seconds = connection.recv()
                except (EOFError, OSError):
                    self._end()
                    continue
                if isinstance(found, MannersError):
                    raise found
                return found, seconds
        raise Unavailable("the process that works this out has ended: see the server's log, and try again in a moment")

    def stop(self) -> None:
        """End the process, also in the middle of its work."""
        if (process := self._process) is not None:
            process.kill()  # it keeps nothing

    def _start(self) -> Connection:
        self._process, self._connection = spawned("manners aside", _serve, self._idle)
        return self._connection

    def _end(self) -> None:
        if self._process is not None and self._connection is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
        self._process = self._connection = None


APART = Apart()
"""The one of this process: whoever serves has one to give way to all."""


def _serve(connection: Connection, idle: float) -> None:
    """Work out what is asked for, until nobody asks any more."""
    os.nice(NICENESS)
    while connection.poll(idle):
        try:
            compute, given = connection.recv()
        except EOFError:
            return
        begin = time.process_time()
        found = _outcome(compute, given)
        connection.send((found, time.process_time() - begin))


def _outcome(compute: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    try:
        return compute(*given)
    except MannersError as error:
        return error
    except Exception as error:
        complain(error)
        return MannersError(f"this could not be worked out ({type(error).__name__}): see the server's log")
