"""A large import, a slice at a time: nobody has to wait for it, and all of it is added or nothing.

    1. stage    what is to be added is written beside the record, in slices; nobody reads it there
    2. decide   one small write says that it is complete: from then on it counts as added
    3. add      slices of it go into the record and off the stage, each in one transaction

Whoever is killed before 2 has added nothing. Whoever is killed after it has added all: the next one to open the store
does what is left of 3. Readers see the part that is in by then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, islice

from pydantic import TypeAdapter
from sqlalchemy import Connection, delete, exists, insert, select, update

from manners.errors import MannersError, Unavailable
from manners.store.comparisons import merge_ids
from manners.store.statements import take_turns
from manners.store.tables import ImportRow, StagedRow
from manners.store.verdicts import insert_verdicts, unknown_verdicts
from manners.types import Comparison

AT_ONCE = 200
"""Comparisons that are added in one transaction, without a stage."""
SLICE_SECONDS = 0.08
"""How long a slice should hold the database: others wait for one of them, and their commit is to come within 0.2 s."""
FIRST_SLICE, MOST_IN_SLICE = 40, 500
ABANDONED = timedelta(hours=1)
"""After so long without a slice, what was never decided is thrown away: nobody is writing it any more."""
Transaction = Callable[[], AbstractContextManager[Connection]]
_comparison = TypeAdapter(Comparison)


@dataclass(frozen=True, slots=True)
class Merged:
    """What was new, and how many of the records were known already."""

    comparisons: int
    verdicts: int
    duplicates: int


class _Pace:
    """How much fits into a slice, by how long the last one took."""

    def __init__(self) -> None:
        self.size = FIRST_SLICE
        self._took = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the work inside; the wait for the database is before it."""
        begun = time.monotonic()
        yield
        self._took = max(time.monotonic() - begun, 1e-4)
        self.size = max(1, min(MOST_IN_SLICE, int(self.size * min(2.0, SLICE_SECONDS / self._took)) or 1))

    def rest(self) -> None:
        """Leave the database to others for as long as it was held: on SQLite they look every tenth of a second."""
        time.sleep(max(0.01, self._took))


def merge(write: Transaction, comparisons: Iterable[Comparison]) -> Merged:
    """Add what is not there yet: a few comparisons in one transaction, more of them by a stage."""
    source = iter(comparisons)
    first = list(islice(source, AT_ONCE + 1))
    if len(first) <= AT_ONCE:
        with write() as connection:
            take_turns(connection)
            return _add(connection, first)
    return _finish(write, _stage(write, chain(first, source)))


def recover(read: Transaction, write: Transaction) -> None:
    """Finish what somebody was killed in the middle of, or throw it away where they had not decided."""
    staged = exists().where(StagedRow.import_id == ImportRow.id)
    query = select(ImportRow.id, ImportRow.decided, ImportRow.touched_at).where(staged).order_by(ImportRow.id)
    with read() as connection:
        found = connection.execute(query).all()
    for one in found:
        if one.decided:
            _finish(write, one.id)
        elif datetime.now(UTC) - one.touched_at > ABANDONED:
            _discard(write, one.id)


def throw_away(connection: Connection, texts: Collection[str]) -> int:
    """Throw away the imports that are not decided and in which one of these texts stands; return how many.

    Whoever is writing one down is told at its next slice, and has added nothing.
    """
    wanted = tuple(json.dumps(text, ensure_ascii=False) for text in texts if text)
    query = select(StagedRow.import_id, StagedRow.content).join(ImportRow).where(ImportRow.decided.is_(False))
    rows = connection.execute(query.execution_options(yield_per=MOST_IN_SLICE))
    found = {row.import_id for row in rows if any(text in row.content for text in wanted)}
    connection.execute(delete(StagedRow).where(StagedRow.import_id.in_(found)))
    connection.execute(delete(ImportRow).where(ImportRow.id.in_(found)))
    return len(found)


def _stage(write: Transaction, comparisons: Iterable[Comparison]) -> int:
    """1 and 2: write everything down, and decide; return the import's id."""
    pace, source = _Pace(), iter(comparisons)
    row = {"decided": False, "touched_at": datetime.now(UTC), "comparisons": 0, "verdicts": 0, "duplicates": 0}
    with write() as connection:
        key = connection.execute(insert(ImportRow).returning(ImportRow.id), row).scalar_one()
    try:
        while some := list(islice(source, pace.size)):
            rows = [{"import_id": key, "content": _comparison.dump_json(one).decode()} for one in some]
            with write() as connection, pace.measured():
                _touch(connection, key)
                connection.execute(insert(StagedRow), rows)
            pace.rest()
        with write() as connection:
            _touch(connection, key, decided=True)
    except BaseException:
        _discard(write, key)
        raise
    return key


def _finish(write: Transaction, key: int) -> Merged:
    """3: add what is staged, a slice at a time; whoever else does the same takes other slices."""
    pace = _Pace()
    while True:
        try:
            with write() as connection, pace.measured():
                take_turns(connection)
                query = select(StagedRow.id, StagedRow.content).where(StagedRow.import_id == key).order_by(StagedRow.id)
                rows = connection.execute(query.limit(pace.size)).all()
                if not rows:
                    counts = select(ImportRow.comparisons, ImportRow.verdicts, ImportRow.duplicates)
                    return Merged(*connection.execute(counts.where(ImportRow.id == key)).one())
                added = _add(connection, [_comparison.validate_json(row.content) for row in rows])
                connection.execute(delete(StagedRow).where(StagedRow.import_id == key, StagedRow.id <= rows[-1].id))
                _count(connection, key, added)
        except Unavailable:
            raise  # it goes on when the store is opened again
        except MannersError as error:
            _discard(write, key)
            raise MannersError(f"{error} What stood before it in the file was added.") from error
        pace.rest()


def _discard(write: Transaction, key: int) -> None:
    """Throw away what is staged, a slice at a time."""
    pace = _Pace()
    while True:
        with write() as connection, pace.measured():
            query = select(StagedRow.id).where(StagedRow.import_id == key).limit(MOST_IN_SLICE)
            ids = connection.execute(query).scalars().all()
            connection.execute(delete(StagedRow).where(StagedRow.id.in_(ids)))
        if not ids:
            return
        pace.rest()


def _add(connection: Connection, comparisons: Sequence[Comparison]) -> Merged:
    """Add those of a few comparisons that are not there yet, and their verdicts."""
    ids, added = merge_ids(connection, comparisons)
    verdicts, known = unknown_verdicts(connection, ids, comparisons)
    insert_verdicts(connection, verdicts)
    unjudged = sum(not comparison.verdicts for comparison in comparisons)
    created_unjudged = sum(not comparisons[position].verdicts for position in added)
    return Merged(len(added), len(verdicts), known + unjudged - created_unjudged)


def _touch(connection: Connection, key: int, decided: bool = False) -> None:
    values = {"decided": decided, "touched_at": datetime.now(UTC)}
    if not connection.execute(update(ImportRow).where(ImportRow.id == key).values(values)).rowcount:
        raise MannersError(
            "the file holds words of somebody who was forgotten meanwhile, and nothing of it was added: take them out,"
            " or import it again if they may be kept"
        )


def _count(connection: Connection, key: int, added: Merged) -> None:
    values = {
        ImportRow.comparisons: ImportRow.comparisons + added.comparisons,
        ImportRow.verdicts: ImportRow.verdicts + added.verdicts,
        ImportRow.duplicates: ImportRow.duplicates + added.duplicates,
        ImportRow.touched_at: datetime.now(UTC),
    }
    connection.execute(update(ImportRow).where(ImportRow.id == key).values(values))
