"""Requests are laid out between the steps of the batch: short ones at once, long ones by a thread that has its turns.

A step gives the interpreter up some hundred times, and a thread that lays out a long dialogue meanwhile keeps it for up
to 5 ms each time: so the two take turns instead. Accounts take turns too, and who has left is left out.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from manners.models.batch import Prepared, prepare
from manners.models.requests import Submit
from manners.models.waiting import Waiting
from manners.shorten import Check
from manners.text import Renderer

SHORT = 8_192
"""Characters of a dialogue, and of an answer that is to be continued, laid out at once: some milliseconds."""
FEW = 40
"""Turns that it may have."""
AT_ONCE = 4
"""Short dialogues laid out between two steps."""


@dataclass(frozen=True)
class Ready:
    """A request that is laid out, or why it cannot be."""

    key: int
    outcome: Prepared | Exception


class _Gone(Exception):
    """Nobody waits for this request any more."""


class Preparing:
    """Takes requests, and hands each over once it is laid out."""

    def __init__(self, renderer: Renderer, seats: int, done: SimpleQueue[Any]) -> None:
        """Take the batch's renderer, how many seats there are, and where to put what is ready later."""
        self._renderer = renderer
        # The thread has a copy, since a tokenizer must not be used by two threads at once.
        self._own = copy.deepcopy(renderer)
        self._seats = seats
        self._done = done
        self._short = Waiting[Submit]()
        self._long = Waiting[Submit]()
        self._wanted = set[int]()
        """Requests that somebody waits for, until they are handed over."""
        self._changed = threading.Condition()
        """Guards all that is the thread's too: what is long, what is wanted, and whose turn it is."""
        self._turn = False
        """Whether the thread may go on."""
        self._rests = True
        """Whether it does not, since it may not, or has nothing to do."""
        self._at_work: int | None = None
        """The request that it lays out."""
        threading.Thread(target=self._run, name="preparing", daemon=True).start()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to be laid out at once."""
        return self._short.first({}) is None

    def take(self, submit: Submit) -> None:
        """Lay a request out when its account's turn comes."""
        prompt, begun = submit.request.prompt, submit.request.begun
        short = len(prompt) <= FEW and len(begun) + sum(len(turn.text) for turn in prompt) <= SHORT
        with self._changed:
            self._wanted.add(submit.key)
            (self._short if short else self._long).add(submit.request.account, submit)
            self._changed.notify_all()

    def cancel(self, key: int) -> None:
        """Let a request go, also in the middle."""
        with self._changed:
            self._wanted.discard(key)
            for waiting in (self._short, self._long):
                waiting.drop(lambda submit: submit.key == key)
            self._changed.notify_all()

    def is_wanted(self, key: int) -> bool:
        """Whether somebody still waits for a request that is ready; asked once, when it is handed over."""
        with self._changed:
            wanted = key in self._wanted
            self._wanted.discard(key)
            return wanted

    def at_once(self) -> list[Ready]:
        """Lay out the next short ones."""
        ready = list[Ready]()
        while len(ready) < AT_ONCE and (turn := self._short.first({})) is not None:
            ready.append(self._laid_out(self._renderer, self._short.take(turn[0]), lambda: None))
        return ready

    def go_on(self, may: bool) -> None:
        """Let the thread lay out long ones from now on, or let it rest as soon as it can."""
        with self._changed:
            self._turn = may
            self._changed.notify_all()

    def go_on_for(self, seconds: float) -> None:
        """Let the thread lay out long ones for so long, or until nothing is left."""
        with self._changed:
            if self._at_work is None and self._long.first({}) is None:
                return
            self._turn, self._rests = True, False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._rests, seconds)
            self._turn = False

    def _run(self) -> None:
        while True:
            submit = self._next()

            def check(key: int = submit.key) -> None:
                self._rest_until(lambda: self._turn or key not in self._wanted)
                if key not in self._wanted:
                    raise _Gone

            try:
                self._done.put(self._laid_out(self._own, submit, check))
            except _Gone:
                continue

    def _laid_out(self, renderer: Renderer, submit: Submit, check: Check) -> Ready:
        try:
            return Ready(submit.key, prepare(renderer, submit.request, self._seats, check))
        except _Gone:
            raise
        except Exception as error:  # a template may refuse a dialogue with anything
            return Ready(submit.key, error)

    def _next(self) -> Submit:
        with self._changed:
            self._at_work = None
            self._rest_until(lambda: self._turn and self._long.first({}) is not None)
            turn = self._long.first({})
            assert turn is not None
            submit = self._long.take(turn[0])
            self._at_work = submit.key
            return submit

    def _rest_until(self, true: Callable[[], bool]) -> None:
        with self._changed:
            while not true():
                self._rests = True
                self._changed.notify_all()
                self._changed.wait()
            self._rests = False
