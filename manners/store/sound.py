"""Whether a store is sound: looked at as it is, with nothing brought up to date and nothing mended."""

from __future__ import annotations

import stat
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, func, select, text

from manners.errors import MannersError
from manners.store import schema
from manners.store.audit import Event
from manners.store.records import Outcome
from manners.store.store import Store
from manners.store.tables import AuditRow, RoundRow, VersionRow, ViewRow


@dataclass(frozen=True)
class Soundness:
    """What a look at a store finds."""

    problem: str
    """What is wrong with it, in a few words; empty where nothing is."""
    is_newest: bool
    """Whether its tables are those that this version of manners writes; older ones are brought up to date when used."""
    size: int
    """Bytes."""
    open_to: tuple[str, ...] = ()
    """Files of it that others than their owner can read or write."""
    versions: tuple[tuple[str, str], ...] = ()
    """Name and folder of each model version that it knows; none where the tables are older."""
    promoted: tuple[str, ...] = ()
    """Versions that it knows to have been promoted, by a round or by hand."""
    latest: datetime | None = None
    """The newest moment that this tool itself wrote down in it, by the clock of then."""


def soundness(database: str | Path) -> Soundness:
    """Look at a store; raises MannersError where it cannot be opened, or a newer manners wrote it."""
    if isinstance(database, Path) and not database.is_file():
        raise MannersError(f"there is no store at {database}: put one back with `manners restore`.")
    with closing(Store.look_at(database)) as store:
        with store.read() as connection:
            revision = schema.current_revision(connection)
        if revision is None:
            raise MannersError(f"{database} holds no store: put one back with `manners restore`.")
        schema.refuse_newer(revision, str(database))
        is_newest = revision == schema.newest_revision()
        on_file = isinstance(database, Path)
        with store.read() as connection:
            problem = _problem(connection) if on_file else ""
            sound = is_newest and not problem
            return Soundness(
                problem=problem,
                is_newest=is_newest,
                size=size(connection),
                open_to=_open_to(database) if isinstance(database, Path) else (),
                versions=_versions(connection) if sound else (),
                promoted=_promoted(connection) if sound else (),
                latest=_latest(connection) if sound else None,
            )


def size(connection: Connection) -> int:
    """Return the bytes that a database takes."""
    if connection.dialect.name == "sqlite":
        pages, each = (int(connection.execute(text(f"PRAGMA {p}")).scalar_one()) for p in ("page_count", "page_size"))
        return pages * each
    return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())


def _problem(connection: Connection) -> str:
    """Return what SQLite finds wrong with a file; PostgreSQL looks after its own."""
    found = connection.execute(text("PRAGMA integrity_check(1)")).scalars().all()
    if found != ["ok"]:
        return str(found[0]).splitlines()[-1]
    orphan = connection.execute(text("PRAGMA foreign_key_check")).first()
    return "" if orphan is None else f"a row of {orphan[0]} refers to one of {orphan[2]} that is not there"


def _open_to(path: Path) -> tuple[str, ...]:
    files = (path, *(path.with_name(path.name + end) for end in schema.SIDE_FILES))
    return tuple(one.name for one in files if one.exists() and stat.S_IMODE(one.stat().st_mode) & ~schema.PRIVATE)


def _versions(connection: Connection) -> tuple[tuple[str, str], ...]:
    rows = connection.execute(select(VersionRow.name, VersionRow.path).order_by(VersionRow.id))
    return tuple((row.name, row.path) for row in rows)


def _promoted(connection: Connection) -> tuple[str, ...]:
    by_round = select(VersionRow.name).join(RoundRow, RoundRow.policy_id == VersionRow.id)
    rounds = connection.execute(by_round.where(RoundRow.outcome == Outcome.PROMOTED)).scalars()
    by_hand = connection.execute(select(AuditRow.about).where(AuditRow.event == Event.PROMOTED)).scalars()
    return tuple(dict.fromkeys([*rounds, *(about.removeprefix("version ") for about in by_hand)]))


def _latest(connection: Connection) -> datetime | None:
    tables = (AuditRow, RoundRow, VersionRow, ViewRow)
    moments = [connection.execute(select(func.max(table.created_at))).scalar_one() for table in tables]
    return max((moment for moment in moments if moment is not None), default=None)
