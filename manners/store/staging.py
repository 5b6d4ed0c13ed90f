"""A large import, a slice at a time: nobody has to wait for it, and all of it is added or nothing.

    1. stage    what is to be added is written beside the record, in slices; nobody reads it there
    2. decide   one small write says that it is complete: from then on it counts as added; where it was chosen by what
                the store held before, it is seen that this still holds
    3. add      slices of it go into the record and off the stage, each in one transaction

Whoever is killed before 2 has added nothing. Whoever is killed after it has added all: the next one to open the store
does what is left of 3. Readers see the part that is in by then. What could not be read back is refused in 1.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import TypeVar

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, delete, exists, func, insert, select, update

from manners.errors import MannersError, Unavailable, described
from manners.store.comparisons import merge_ids
from manners.store.statements import take_turns
from manners.store.tables import ImportRow, StagedRow
from manners.store.texts import Placed, place_prompts
from manners.store.verdicts import insert_verdicts, unknown_verdicts
from manners.types import Comparison

AT_ONCE = 200
"""Comparisons, or prompts, that are added in one transaction, without a stage."""
SLICE_SECONDS = 0.08
"""How long a slice should hold the database: others wait for one of them, and their commit is to come within 0.2 s."""
FIRST_SLICE, MOST_IN_SLICE = 40, 500
SLICE_TEXT = 2**20
"""Characters from which on a slice takes nothing more: a few long rows are a slice too."""
ABANDONED = timedelta(hours=1)
"""After so long without a slice, what was never decided is thrown away: nobody is writing it any more."""
T = TypeVar("T", bound=Comparison | Placed)
Transaction = Callable[[], AbstractContextManager[Connection]]
Holds = Callable[[Connection], bool]
_staged: TypeAdapter[Comparison | Placed] = TypeAdapter(Comparison | Placed)


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
    first, following = _take(source, AT_ONCE), next(source, None)
    if following is None:
        with write() as connection:
            take_turns(connection)
            return _add(connection, first)
    key = _stage(write, chain(first, [following], source))
    _decide(write, key, _whatever_there_is)
    return _finish(write, key)


def place(write: Transaction, prompts: Sequence[Placed], holds: Holds) -> bool:
    """Put prompts where they were chosen to be, if that still `holds`; return whether it did. All of them, or none.

    Whatever others do between the decision and the last slice came after it: a prompt that they bring in meanwhile is
    where this puts it.
    """
    if len(_take(iter(prompts), AT_ONCE)) == len(prompts) and not any(one.moves for one in prompts):
        with write() as connection:
            take_turns(connection)
            if still := holds(connection):
                place_prompts(connection, prompts)
            return still
    key = _stage(write, prompts)
    if not _decide(write, key, holds):
        return False
    _finish(write, key)
    return True


def decided(connection: Connection) -> int:
    """Return how many imports have been decided: what is different once one has moved a prompt."""
    return connection.execute(select(func.count()).select_from(ImportRow).where(ImportRow.decided)).scalar_one()


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
            _abandon(write, one.id)


@contextmanager
def said() -> Iterator[None]:
    """Say on stderr what keeps an import from being finished: it keeps nobody out of the store."""
    try:
        yield
    except Exception as fault:
        what = str(fault) if isinstance(fault, MannersError) else described(fault)
        print(f"An import that somebody was killed in is not finished: {what}", file=sys.stderr)


def throw_away(connection: Connection, texts: Collection[str]) -> int:
    """Throw away the imports that are not decided and in which one of these texts stands; return how many.

    Whoever is writing one down is told at its next slice, and has added nothing.
    """
    wanted = tuple(json.dumps(text, ensure_ascii=False) for text in texts if text)
    undecided = select(ImportRow.id).where(ImportRow.decided.is_(False))
    connection.execute(undecided.order_by(ImportRow.id).with_for_update())  # a slice on its way is waited for, and read
    query = select(StagedRow.import_id, StagedRow.content).join(ImportRow).where(ImportRow.decided.is_(False))
    rows = connection.execute(query.execution_options(yield_per=MOST_IN_SLICE))
    found = {row.import_id for row in rows if any(text in row.content for text in wanted)}
    _drop(connection, found)
    return len(found)


def _abandon(write: Transaction, key: int) -> None:
    """Throw away an import that nobody writes any more.

    All of it at once, and by what is there now: who had only stood still may have gone on since it was looked at, and
    is told otherwise at its next slice, as by `throw_away`.
    """
    old = ImportRow.touched_at < datetime.now(UTC) - ABANDONED
    still = select(ImportRow.id).where(ImportRow.id == key, ImportRow.decided.is_(False), old)
    with write() as connection:
        if connection.execute(still.with_for_update()).first() is not None:
            _drop(connection, {key})


def _drop(connection: Connection, keys: Collection[int]) -> None:
    """Throw imports away, with what is staged of them: no slice can follow."""
    connection.execute(delete(StagedRow).where(StagedRow.import_id.in_(keys)))
    connection.execute(delete(ImportRow).where(ImportRow.id.in_(keys)))


def _stage(write: Transaction, items: Iterable[Comparison | Placed]) -> int:
    """1: write everything down; return the import's id."""
    pace, source, count = _Pace(), iter(items), 0
    row = {"decided": False, "touched_at": datetime.now(UTC), "comparisons": 0, "verdicts": 0, "duplicates": 0}
    with write() as connection:
        key = connection.execute(insert(ImportRow).returning(ImportRow.id), row).scalar_one()
    try:
        while some := _take(source, pace.size):
            rows = [{"import_id": key, "content": _written(one, n)} for n, one in enumerate(some, start=count + 1)]
            count += len(rows)
            with write() as connection, pace.measured():
                _touch(connection, key)
                connection.execute(insert(StagedRow), rows)
            pace.rest()
    except BaseException:
        _discard(write, key)
        raise
    return key


def _written(item: Comparison | Placed, place: int) -> str:
    """Return an item as JSON that is read back as the same; raises MannersError where there is none.

    Once it was decided that it counts as added, it would be too late to find out.
    """
    with suppress(ValueError):
        content = _staged.dump_json(item)
        if _staged.validate_json(content) == item:
            return content.decode()
    raise MannersError(f"number {place} of what is to be added holds a value that cannot be kept: leave it out.")


def _read(content: str) -> Comparison | Placed:
    """Return what was written down. Raises MannersError where an older manners has written what cannot be read."""
    try:
        return _staged.validate_json(content)
    except ValueError as error:
        raise MannersError("it holds a value that cannot be kept: correct its file and import it again.") from error


def _decide(write: Transaction, key: int, holds: Holds) -> bool:
    """2: say that it is complete, or throw it away where what it was chosen by no longer holds; return which."""
    try:
        with write() as connection:
            take_turns(connection)
            if still := holds(connection):
                _touch(connection, key, decided=True)
    except BaseException:
        _discard(write, key)
        raise
    if not still:
        _discard(write, key)
    return still


def _whatever_there_is(_: Connection) -> bool:
    return True


def _finish(write: Transaction, key: int) -> Merged:
    """3: add what is staged, a slice at a time; whoever else does the same takes other slices."""
    pace = _Pace()
    while True:
        try:
            with write() as connection, pace.measured():
                take_turns(connection)
                if not (rows := _staged_rows(connection, key, pace.size)):
                    counts = select(ImportRow.comparisons, ImportRow.verdicts, ImportRow.duplicates)
                    return Merged(*connection.execute(counts.where(ImportRow.id == key)).one())
                items = [_read(row.content) for row in rows]
                place_prompts(connection, [one for one in items if isinstance(one, Placed)])
                added = _add(connection, [one for one in items if isinstance(one, Comparison)])
                connection.execute(delete(StagedRow).where(StagedRow.import_id == key, StagedRow.id <= rows[-1].id))
                _count(connection, key, added)
        except Unavailable:
            raise  # it goes on when the store is opened again
        except MannersError as error:
            _discard(write, key)
            raise MannersError(f"{error} Of the file only a part was added.") from error
        pace.rest()


def _staged_rows(connection: Connection, key: int, count: int) -> list[Row[int, str]]:
    """Return the first rows of an import, as many as a slice takes."""
    query = select(StagedRow.id, StagedRow.content).where(StagedRow.import_id == key).order_by(StagedRow.id)
    rows: list[Row[int, str]] = []
    size = 0
    with connection.execute(query.limit(count).execution_options(yield_per=1)) as found:
        for row in found:
            rows.append(row)
            if (size := size + len(row.content)) >= SLICE_TEXT:
                break
    return rows


def _take(source: Iterator[T], count: int) -> list[T]:
    """Return the next items, at most so many, and none after those that are long enough for a slice."""
    taken: list[T] = []
    size = 0
    for item in islice(source, count):
        taken.append(item)
        if (size := size + _length(item)) >= SLICE_TEXT:
            break
    return taken


def _length(item: Comparison | Placed) -> int:
    """Return how many characters of text there are in a comparison or a prompt."""
    if isinstance(item, Placed):
        return sum(len(turn.text) for turn in item.dialogue or ())
    said = (*(turn.text for turn in item.prompt), item.left.text, item.right.text)
    return sum(map(len, (*said, *(verdict.comment for verdict in item.verdicts))))


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
            "what was written down of the file was thrown away meanwhile, and nothing of it was added, for it had stood"
            " still for an hour, or holds words of somebody who was forgotten meanwhile: import the file again, without"
            " such words unless they may be kept"
        )


def _count(connection: Connection, key: int, added: Merged) -> None:
    values = {
        ImportRow.comparisons: ImportRow.comparisons + added.comparisons,
        ImportRow.verdicts: ImportRow.verdicts + added.verdicts,
        ImportRow.duplicates: ImportRow.duplicates + added.duplicates,
        ImportRow.touched_at: datetime.now(UTC),
    }
    connection.execute(update(ImportRow).where(ImportRow.id == key).values(values))
