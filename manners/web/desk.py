"""Between the queue and the record: what annotators see is stored before they see it, and so is each verdict."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, insert, select
from sqlalchemy.orm import aliased

from manners.errors import MannersError
from manners.feedback.queue import Queue
from manners.settings import ServeSettings
from manners.store import queries
from manners.store.flags import FlagReason, held_back, raise_flag
from manners.store.records import from_messages
from manners.store.store import Store
from manners.store.tables import (
    AnnotatorRow,
    ComparisonRow,
    GoldRow,
    PromptRow,
    ResponseRow,
    VerdictRow,
    ViewRow,
    WithdrawalRow,
)
from manners.store.writer import Writer
from manners.types import DELETED, Annotator, AnnotatorKind, AskedHow, Choice, Dialogue, Draw, DrawnHow, OpenComparison
from manners.workspace import Workspace

LOOK_EVERY = 3.0
"""Seconds between two looks at what other processes have stored."""
LATE = 1000
"""Rows read again at each look: numbers are given before a transaction ends, so a lower one may come later."""
PRIVATE = (AskedHow.CHAT.value, AskedHow.API.value)
"""Comparisons from somebody's conversation."""


class NoSuchView(MannersError):
    """What is answered was not shown to whoever answers."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A comparison as an annotator sees it: nothing in it says who wrote what, or why it is asked."""

    view: int
    prompt: Dialogue
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Given:
    """A verdict as it comes from the page: `choice` is of the sides shown."""

    view: int
    choice: Choice
    strength: int | None = None
    reasons: tuple[str, ...] = ()
    comment: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far somebody has come."""

    today: int
    total: int
    left: int


class Desk:
    """The queue with its record; safe to use from many threads of one process."""

    def __init__(self, workspace: Workspace, store: Store, settings: ServeSettings, seed: int | None = None) -> None:
        """Read what is open."""
        self._store, self._settings, self._writer = store, settings, Writer(store)
        self._queue = Queue(settings, seed, time.monotonic)
        self._spread_file = workspace.root / "runs" / "disagreement.json"
        self._spread_read = 0.0
        self._lock = threading.Lock()
        self._looked = -LOOK_EVERY
        self._seen = dict.fromkeys(("comparisons", "verdicts"), 0)
        self._look()

    def next(self, annotator: Annotator) -> Shown | None:
        """Show somebody a comparison; None where there is nothing for them to judge now."""
        with self._lock:
            self._look()
            draw = self._queue.draw(annotator.name)
        return None if draw is None else self._show(annotator, draw)

    def begin(self, annotator: Annotator) -> None:
        """Give back what somebody has before them: their page is a new one."""
        with self._lock:
            self._queue.release(annotator.name)

    def answer(self, annotator: Annotator, given: Given) -> None:
        """Store a verdict; the same view answered again changes nothing. Raises NoSuchView."""
        comparison, choice = self._writer.write(partial(_answer, annotator, given))
        with self._lock:
            self._queue.judge(annotator.name, comparison, choice)

    def undo(self, annotator: Annotator) -> Shown | None:
        """Take back somebody's latest verdict, and show them its comparison again; None where there is none."""
        taken = self._writer.write(partial(_withdraw, annotator))
        if taken is None:
            return None
        with self._lock:
            self._queue.withdraw(annotator.name, taken.comparison)
            self._queue.lease(annotator.name, taken.comparison)
        return self._show(annotator, taken)

    def flag(self, annotator: Annotator, view: int, reason: FlagReason, note: str) -> None:
        """Report a comparison: nobody else sees it until a reviewer has decided. Raises NoSuchView."""

        def report(connection: Connection) -> int:
            shown = _view(connection, annotator, view)
            raise_flag(connection, annotator, reason, note, comparison=shown.comparison_id)
            return int(shown.comparison_id)

        comparison = self._writer.write(report)
        self.hold_back(comparison, True)

    def hold_back(self, comparison: int, held: bool) -> None:
        """Show a comparison to nobody, or again to everybody."""
        with self._lock:
            self._queue.hold_back(comparison, held)

    def progress(self, annotator: Annotator) -> Progress:
        """Return how much somebody has judged, and what is left for them."""
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        query = (
            select(func.count(), func.count().filter(VerdictRow.created_at >= midnight))
            .select_from(VerdictRow)
            .join(AnnotatorRow)
            .where(_is(annotator), VerdictRow.id.not_in(select(WithdrawalRow.verdict_id)))
        )
        with self._store.read() as connection:
            total, today = connection.execute(query).one()
        with self._lock:
            return Progress(today, total, self._queue.left(annotator.name))

    def _show(self, annotator: Annotator, draw: Draw) -> Shown:
        return self._writer.write(partial(_show, annotator, draw, timedelta(minutes=self._settings.lease)))

    def _look(self) -> None:
        """Take in what has been stored since the last look."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY:
            return
        with self._store.read() as connection:
            self._add_comparisons(connection)
            self._note_verdicts(connection)
            for comparison in held_back(connection):
                self._queue.hold_back(comparison, True)
        self._read_spread()
        self._looked = time.monotonic()

    def _add_comparisons(self, connection: Connection) -> None:
        left, right = aliased(ResponseRow), aliased(ResponseRow)
        query = (
            select(
                ComparisonRow.id,
                left.prompt_id,
                left.id.label("left"),
                right.id.label("right"),
                left.author.label("one"),
                right.author.label("other"),
                GoldRow.id.label("gold"),
            )
            .join(left, ComparisonRow.left_id == left.id)
            .join(right, ComparisonRow.right_id == right.id)
            .outerjoin(GoldRow, GoldRow.comparison_id == ComparisonRow.id)
            .where(ComparisonRow.id > self._seen["comparisons"] - LATE, left.text != DELETED)
            .order_by(ComparisonRow.id)
        )
        if not self._settings.share_chats:
            query = query.where(ComparisonRow.asked_how.not_in(PRIVATE))
        for row in connection.execute(query):
            authors, pair = frozenset({row.one, row.other}), frozenset({row.left, row.right})
            self._queue.add(OpenComparison(row.id, row.prompt_id, authors, row.gold is not None, pair))
            self._seen["comparisons"] = row.id

    def _note_verdicts(self, connection: Connection) -> None:
        """Note what people have judged, here or by import."""
        query = (
            select(VerdictRow.id, VerdictRow.comparison_id, VerdictRow.choice, AnnotatorRow.name)
            .join(AnnotatorRow, VerdictRow.annotator_id == AnnotatorRow.id)
            .where(AnnotatorRow.kind == AnnotatorKind.HUMAN.value)
            .order_by(VerdictRow.id)
        )
        news = query.where(
            VerdictRow.id > self._seen["verdicts"] - LATE,
            VerdictRow.id.not_in(select(WithdrawalRow.verdict_id)),
        )
        for row in connection.execute(news):
            self._queue.judge(row.name, row.comparison_id, Choice(row.choice))
            self._seen["verdicts"] = row.id

    def _read_spread(self) -> None:
        """Read what the newest reward model's members differ about, where that has changed."""
        changed = self._spread_file.stat().st_mtime if self._spread_file.is_file() else 0.0
        if changed == self._spread_read:
            return
        self._spread_read = changed
        facts = json.loads(self._spread_file.read_text(encoding="utf-8"))
        self._queue.set_spread({int(comparison): std for comparison, std in facts["spread"].items()})


@dataclass(frozen=True, slots=True)
class _Seen:
    comparison_id: int
    exchanged: bool


def _is(annotator: Annotator) -> ColumnElement[bool]:
    return (AnnotatorRow.name == annotator.name) & (AnnotatorRow.kind == annotator.kind.value)


@cache  # building it takes longer than running it
def _texts() -> Select[Any, str, str]:
    """Return the query for the prompt and the responses of `comparison`."""
    left, right = aliased(ResponseRow), aliased(ResponseRow)
    return (
        select(PromptRow.turns, left.text.label("left"), right.text.label("right"))
        .select_from(ComparisonRow)
        .join(left, ComparisonRow.left_id == left.id)
        .join(right, ComparisonRow.right_id == right.id)
        .join(PromptRow, left.prompt_id == PromptRow.id)
        .where(ComparisonRow.id == bindparam("comparison"))
    )


def _show(annotator: Annotator, draw: Draw, lease: timedelta, connection: Connection) -> Shown:
    """Store that a comparison is shown, and return it as it is."""
    now = datetime.now(UTC)
    row = {
        "comparison_id": draw.comparison,
        "annotator_id": queries.annotator_id(connection, annotator),
        "exchanged": draw.exchanged,
        "drawn": draw.drawn.value,
        "probability": draw.probability,
        "created_at": now,
        "expires_at": now + lease,
    }
    view = connection.execute(insert(ViewRow).returning(ViewRow.id), row).scalar_one()
    shown = connection.execute(_texts(), {"comparison": draw.comparison}).one()
    sides = (shown.right, shown.left) if draw.exchanged else (shown.left, shown.right)
    return Shown(view, from_messages(shown.turns), *sides)


def _view(connection: Connection, annotator: Annotator, view: int) -> _Seen:
    query = (
        select(ViewRow.comparison_id, ViewRow.exchanged).join(AnnotatorRow).where(ViewRow.id == view, _is(annotator))
    )
    row = connection.execute(query).first()
    if row is None:
        raise NoSuchView("this pair was not shown to you: open the labelling page again")
    return _Seen(row.comparison_id, row.exchanged)


def _answer(annotator: Annotator, given: Given, connection: Connection) -> tuple[int, Choice]:
    """Store a verdict unless its view has one; return its comparison, and the choice as it is stored."""
    shown = _view(connection, annotator, given.view)
    query = select(VerdictRow.choice).where(VerdictRow.view_id == given.view)
    stored = connection.execute(query).scalar_one_or_none()
    if stored is not None:
        return shown.comparison_id, Choice(stored)
    choice = given.choice.swapped() if shown.exchanged else given.choice
    row = {
        "comparison_id": shown.comparison_id,
        "annotator_id": queries.annotator_id(connection, annotator),
        "choice": choice.value,
        "strength": given.strength,
        "seconds": given.seconds,
        "reasons": list(given.reasons),
        "comment": given.comment,
        "created_at": datetime.now(UTC),
        "exchanged": shown.exchanged,
        "view_id": given.view,
    }
    connection.execute(insert(VerdictRow), row)
    return shown.comparison_id, choice


def _withdraw(annotator: Annotator, connection: Connection) -> Draw | None:
    """Take back the latest verdict that came from a view, and return what is to be shown again, sides as before."""
    query = (
        select(VerdictRow.id, ViewRow.comparison_id, ViewRow.exchanged, ViewRow.drawn, ViewRow.probability)
        .join(ViewRow, VerdictRow.view_id == ViewRow.id)
        .join(AnnotatorRow, VerdictRow.annotator_id == AnnotatorRow.id)
        .where(_is(annotator), VerdictRow.id.not_in(select(WithdrawalRow.verdict_id)))
        .order_by(VerdictRow.id.desc())
        .limit(1)
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    connection.execute(insert(WithdrawalRow), {"verdict_id": row.id, "created_at": datetime.now(UTC)})
    return Draw(row.comparison_id, DrawnHow(row.drawn), row.probability, row.exchanged)
