"""Requests are laid out beside the batch, by one thread: accounts take turns, and who has left is left out."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from manners.models.batch import Prepared, prepare
from manners.models.requests import Submit
from manners.models.waiting import Waiting
from manners.text import Renderer


@dataclass(frozen=True)
class Ready:
    """A request that is laid out, or why it cannot be."""

    key: int
    outcome: Prepared | Exception


class _Gone(Exception):
    """Nobody waits for this request any more."""


class Preparing:
    """Takes requests, and puts each into a queue once it is laid out."""

    def __init__(self, renderer: Renderer, seats: int, done: SimpleQueue[Any]) -> None:
        """Take a renderer that nobody else uses, how many seats there are, and where to put what is ready."""
        self._renderer = renderer
        self._seats = seats
        self._done = done
        self._waiting = Waiting[Submit]()
        self._wanted = set[int]()
        """Requests that somebody waits for, until they are handed over."""
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="preparing", daemon=True).start()

    def take(self, submit: Submit) -> None:
        """Lay a request out when its account's turn comes."""
        with self._changed:
            self._wanted.add(submit.key)
            self._waiting.add(submit.request.account, submit)
            self._changed.notify()

    def cancel(self, key: int) -> None:
        """Let a request go, also in the middle."""
        with self._changed:
            self._wanted.discard(key)
            self._waiting.drop(lambda submit: submit.key == key)

    def is_wanted(self, key: int) -> bool:
        """Whether somebody still waits for a request that is ready; asked once, when it is handed over."""
        with self._changed:
            wanted = key in self._wanted
            self._wanted.discard(key)
            return wanted

    def _run(self) -> None:
        while True:
            submit = self._next()

            def check(key: int = submit.key) -> None:
                if key not in self._wanted:
                    raise _Gone

            try:
                outcome: Prepared | Exception = prepare(self._renderer, submit.request, self._seats, check)
            except _Gone:
                continue
            except Exception as error:  # a template may refuse a dialogue with anything
                outcome = error
            self._done.put(Ready(submit.key, outcome))

    def _next(self) -> Submit:
        with self._changed:
            while (turn := self._waiting.first({})) is None:
                self._changed.wait()
            return self._waiting.take(turn[0])
