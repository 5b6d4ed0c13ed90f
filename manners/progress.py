"""Progress with time left, on stderr: a bar on a terminal, a plain line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from manners.terminal import beneath, in_one_line

Item = TypeVar("Item")

EVERY = 5.0
"""Seconds between two lines of a log; work that takes less prints nothing there."""


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield from `iterable` and show how far it is; `total` is needed where it has no length."""
    count = len(iterable) if total is None and isinstance(iterable, Sized) else total
    with steps(description, count) as advance:
        for item in iterable:
            yield item
            advance(1)


@contextmanager
def steps(description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show the progress of a block that calls what this yields with the number of steps it has just done."""
    console = Console(file=beneath(sys.stderr))
    description = in_one_line(description)
    if console.is_terminal:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Progress(TextColumn("{task.description}", markup=False), *columns, console=console) as bar:
            task = bar.add_task(description, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        log = _Log(console, description, total)
        yield log.advance
        log.end()


class _Log:
    """Progress as lines of a log."""

    def __init__(self, console: Console, description: str, total: int | None) -> None:
        self.console = console
        self.description = description
        self.total = total
        self.done = 0
        self.start = self.said = time.monotonic()

    def advance(self, count: int) -> None:
        """Count steps; say so if the last line is old."""
        self.done += count
        now = time.monotonic()
        if now - self.said >= EVERY:
            self.said = now
            spent = now - self.start
            left = (
                f", about {spent / self.done * (self.total - self.done):.0f} s left" if self.total and self.done else ""
            )
            self._say(f"{spent:.0f} s{left}")

    def end(self) -> None:
        """Say how long it took, if anything was said before."""
        if self.said > self.start:
            self._say(f"done in {time.monotonic() - self.start:.0f} s")

    def _say(self, text: str) -> None:
        of = "" if self.total is None else f"/{self.total}"
        self.console.print(
            f"{self.description}: {self.done}{of}, {text}", highlight=False, markup=False, soft_wrap=True
        )
