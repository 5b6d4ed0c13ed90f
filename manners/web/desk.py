"""Between the queue and the record: what annotators see is stored before they see it, and so is each verdict."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial

from manners.feedback.queue import Queue
from manners.settings import ServeSettings
from manners.store import bets, verdicts, views
from manners.store.flags import FlagReason, held_back
from manners.store.store import Store
from manners.store.views import Given, Shown
from manners.store.writer import Writer
from manners.types import Annotator, Draw
from manners.workspace import Workspace

LOOK_EVERY = 3.0
"""Seconds between two looks at what other processes have stored."""
LATE = 1000
"""Rows read again at each look: numbers are given before a transaction ends, so a lower one may come later."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How far somebody has come."""

    today: int
    total: int
    left: int


class Desk:
    """The queue with its record; safe to use from many threads of one process."""

    def __init__(self, workspace: Workspace, store: Store, settings: ServeSettings, seed: int | None = None) -> None:
        """Read what is open."""
        self._store = store
        self._settings = settings
        self._writer = Writer(store)
        self._queue = Queue(settings, seed, time.monotonic)
        self._spread_file = workspace.root / "runs" / "disagreement.json"
        self._spread_read = 0.0
        self._lock = threading.Lock()
        self._looked = -math.inf
        self._newest_comparison = 0
        self._newest_verdict = 0
        self._look()
        self._remember_leases()

    def next(self, annotator: Annotator) -> Shown | None:
        """Show somebody a comparison; None where there is nothing for them to judge now."""
        while True:
            with self._lock:
                self._look()
                self._queue.writes_as(annotator.key, annotator.name)
                draw = self._queue.draw(annotator.key)
            if draw is None or (shown := self._show(annotator, draw)) is not None:
                return None if draw is None else shown

    def begin(self, annotator: Annotator, view: str | None = None) -> Shown | None:
        """Give back what somebody has before them, for their page is a new one, but for what it still shows (`view`).

        Returns that as it was shown; None where there is nothing to show again.
        """
        kept = None
        if view is not None:
            with self._store.read() as connection:
                kept = views.kept(connection, annotator, view)
        with self._lock:
            self._queue.release(annotator.key)
            if kept is not None:
                self._queue.lease(annotator.key, kept[0])
        return None if kept is None else kept[1]

    def judge(self, annotator: Annotator, given: Given) -> None:
        """Store a verdict; the same view answered again changes nothing. Raises NoSuchView and TooSoon."""
        shortest = timedelta(milliseconds=self._settings.shortest_view)
        comparison, choice = self._writer.write(partial(views.answer, annotator, given, shortest=shortest))
        with self._lock:
            self._queue.judge(annotator.key, comparison, choice)

    def undo(self, annotator: Annotator, view: str | None = None) -> Shown | None:
        """Take back somebody's verdict, and show them its comparison again; None where there is none.

        It is that on a view, or the latest.
        """
        taken = self._writer.write(partial(views.withdraw, annotator, view=view))
        if taken is None:
            return None
        draw, before = taken
        with self._lock:
            self._queue.withdraw(annotator.key, draw.comparison)
            self._queue.lease(annotator.key, draw.comparison)
        shown = self._show(annotator, draw)
        return None if shown is None else replace(shown, before=before)

    def flag(self, annotator: Annotator, view: str, reason: FlagReason, note: str) -> None:
        """Report a comparison: nobody else sees it until a reviewer has decided. Raises NoSuchView."""
        comparison = self._writer.write(partial(views.flag, annotator, view, reason, note))
        self.hold_back(comparison, True)

    def hold_back(self, comparison: int, held: bool) -> None:
        """Show a comparison to nobody, or again to everybody."""
        with self._lock:
            self._queue.hold_back(comparison, held)

    def reconsider(self, comparisons: Iterable[int]) -> None:
        """Show comparisons to nobody, or again to everybody, as the record says now that a report is decided."""
        with self._lock:
            kept = self._kept_away()
            for comparison in comparisons:
                self._queue.hold_back(comparison, comparison in kept)

    def tally(self, annotator: Annotator, day: timedelta | None = None) -> Tally:
        """Return how much somebody has judged, and what is left for them; `day` is how long ago their day began.

        Where it is not said, the day is that of UTC.
        """
        now = datetime.now(UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) if day is None else now - day
        with self._store.read() as connection:
            total, today = verdicts.count_of(connection, annotator, midnight)
        with self._lock:
            self._queue.writes_as(annotator.key, annotator.name)
            return Tally(today, total, self._queue.left(annotator.key))

    def open(self) -> int:
        """Return how many comparisons somebody may still be given, by the last look."""
        with self._lock:
            return self._queue.open

    def _show(self, annotator: Annotator, draw: Draw) -> Shown | None:
        """Show a comparison; None where its words were deleted since the last look, and then to nobody any more."""
        shown = self._writer.write(partial(views.show, annotator, draw, timedelta(minutes=self._settings.lease)))
        if shown is None:
            self.hold_back(draw.comparison, True)
        return shown

    def _look(self) -> None:
        """Take in what has been stored since the last look, here, by other processes and by imports."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY:
            return
        with self._store.read() as connection:
            after = self._newest_comparison - LATE
            for asked in views.open_comparisons(connection, after, chats=self._settings.share_chats):
                self._queue.add(asked)
                self._newest_comparison = asked.comparison
            for one in views.judged(connection, self._newest_verdict - LATE):
                self._queue.judge(one.annotator.key, one.comparison, one.choice)
                self._newest_verdict = one.verdict
        for comparison in self._kept_away():
            self._queue.hold_back(comparison, True)
        self._read_spread()
        self._looked = time.monotonic()

    def _kept_away(self) -> set[int]:
        """Return what is shown to nobody: what was reported or deleted, or is counted already in a bet."""
        with self._store.read() as connection:
            return held_back(connection) | bets.counted(connection)

    def _remember_leases(self) -> None:
        """Keep what the server that ended had given out for whoever may still have it on their screen."""
        with self._store.read() as connection:
            for annotator, comparison, left in views.unanswered(connection, datetime.now(UTC)):
                self._queue.lease(annotator.key, comparison, left.total_seconds())

    def _read_spread(self) -> None:
        """Read what the newest reward model's members differ about, where that has changed."""
        changed = self._spread_file.stat().st_mtime if self._spread_file.is_file() else 0.0
        if changed == self._spread_read:
            return
        self._spread_read = changed
        try:
            facts = json.loads(self._spread_file.read_text(encoding="utf-8"))
            spread = {int(comparison): float(std) for comparison, std in facts["spread"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            without = "pairs are drawn without it until a reward model is trained"
            print(f"{self._spread_file} is damaged ({error}): {without}", file=sys.stderr)
            return
        self._queue.set_spread(spread)
