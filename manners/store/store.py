"""The store: short transactions over the tables, and nothing that overwrites."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, Engine, func, insert, select
from sqlalchemy.engine import URL
from sqlalchemy.orm import aliased

from manners.errors import MannersError
from manners.holder import Holder
from manners.store import holdings, schema, staging, traces
from manners.store.comparisons import insert_comparisons, openings_apart, select_comparisons
from manners.store.prompts import how_far, select_answerable, select_private, select_prompts
from manners.store.records import Holdings, Mark, Newest, Outcome, Round, VersionRecord
from manners.store.refusals import refusals
from manners.store.runlock import RunLock, run_lock, trained_by
from manners.store.staging import Merged
from manners.store.statements import chunks, take_turns, wait_for_verdicts
from manners.store.tables import ComparisonRow, RoundRow, VerdictRow, VersionRow
from manners.store.texts import Placed, claim, prompt_digest, prompt_ids, response_ids
from manners.store.verdicts import count_up_to, insert_verdicts
from manners.types import AskedHow, Comparison, Dialogue, PromptUse, StoredPrompt, Verdict, VersionKind


class Store:
    """The record of a workspace. Safe to use from many threads, and from many processes that each open it."""

    def __init__(self, engine: Engine, name: str) -> None:
        """Use `open` or `create` instead."""
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        self._reader = engine
        if engine.dialect.name == "postgresql":  # where each statement else sees what others have written meanwhile
            self._reader = engine.execution_options(isolation_level="REPEATABLE READ")
        self._name = name
        # A store that is let fall, or that the process ends with, tells the server so.
        weakref.finalize(self, engine.dispose)

    @staticmethod
    def open(url_or_path: str | Path) -> Store:
        """Open a store that is there, bringing tables of an older version up to date.

        Raises MannersError when there is none, or when a newer version of manners wrote it.
        """
        url = schema.to_url(url_or_path)
        if schema.is_file(url) and not Path(str(url.database)).is_file():
            raise MannersError(f"There is no store at {url.database}; make a workspace with `manners init` first.")
        with _opening(url) as store:
            if store._revision() is None:
                raise MannersError(f"{store._name} holds no store; make a workspace with `manners init` first.")
            store._bring_up_to_date()
            with staging.said():
                store.finish_imports()
        return store

    @staticmethod
    def look_at(url_or_path: str | Path) -> Store:
        """Open a store as it is: no table is brought up to date, no right changed, no import finished.

        What is asked of tables of an older version may fail.
        """
        url = schema.to_url(url_or_path)
        return Store(schema.connect(url), str(url.database) if schema.is_file(url) else url.render_as_string())

    @staticmethod
    def create(url_or_path: str | Path) -> Store:
        """Make an empty store: a SQLite file at a path, or tables in the PostgreSQL database of a URL.

        Raises MannersError when there is one already.
        """
        with _opening(schema.to_url(url_or_path)) as store:
            if store._revision() is not None:
                raise MannersError(f"{store._name} holds a store already; open it, or choose another place.")
            store._bring_up_to_date()
        return store

    @staticmethod
    def open_or_create(url_or_path: str | Path) -> Store:
        """Open the store that is there, or make an empty one; several processes may do so at once."""
        with _opening(schema.to_url(url_or_path)) as store:
            store._bring_up_to_date()
            with staging.said():
                store.finish_imports()
        return store

    @property
    def url(self) -> URL:
        """Where the store is."""
        return self._engine.url

    @property
    def is_writable(self) -> bool:
        """Whether it does not lie on a disk that can only be read."""
        return self.url.query.get("mode") != "ro"

    @contextmanager
    def raw(self) -> Iterator[sqlite3.Connection]:
        """Yield the driver's own connection to a SQLite file, outside a transaction."""
        with refusals(self._name), self._engine.connect() as connection:
            inner = connection.connection.dbapi_connection
            assert isinstance(inner, sqlite3.Connection)
            yield inner

    def close(self) -> None:
        """Let go of the database; the store opens connections again if it is used after that."""
        self._engine.dispose()

    def clear_traces(self, *, always: bool = False) -> bool:
        """Write the database anew where what was deleted has left traces in it, or `always`; see `traces`.

        Returns whether none is left that could be known of: not while others read or write for long.
        """
        return traces.clear(self._engine) if always or traces.has_traces(self._engine) else True

    @property
    def is_small(self) -> bool:
        """Whether that takes so little time that people can wait for it."""
        return traces.is_small(self._engine)

    def run_lock(self, stage: str) -> AbstractContextManager[RunLock]:
        """Hold the right to train in a PostgreSQL database, whatever else goes on in it; see `runlock`."""
        return run_lock(self._engine, self._name, stage)

    def trained_by(self) -> Holder | None:
        """Return who holds that right; None where nobody does."""
        return trained_by(self._engine, self._name)

    def add_prompts(self, dialogues: Iterable[Dialogue], use: PromptUse, source: str) -> list[int]:
        """Store prompts and return their ids in order; a prompt that is there already keeps its id.

        Raises MannersError, and stores none, when one is there with another use: the use is fixed on entry, so that
        nothing is ever evaluated on what was trained on.
        """
        ids: list[int] = []
        with self.write() as connection:
            take_turns(connection)
            for chunk in chunks(dialogues):
                keys = [prompt_digest(dialogue) for dialogue in chunk]
                wanted = [Placed(key, use, dialogue, source) for key, dialogue in zip(keys, chunk, strict=True)]
                stored = prompt_ids(connection, wanted)
                claim(connection, keys, source)
                for key, dialogue in zip(keys, chunk, strict=True):
                    if stored[key][1] is not use:
                        raise MannersError(
                            f"The prompt {dialogue[-1].text[:60]!r} is in {self._name} for `{stored[key][1]}` and "
                            f"cannot be added for `{use}`; leave it out."
                        )
                ids += [stored[key][0] for key in keys]
        return ids

    def newest(self) -> Newest:
        """Return how far prompts, comparisons and bets go by now: what a run begun now may be gone on with."""
        with self.read() as connection:
            return how_far(connection)

    def prompts(self, use: PromptUse | None = None, *, upto: Newest | None = None) -> list[StoredPrompt]:
        """Return the prompts of one use, or of all, by id; with `upto`, those that were there then."""
        with self.read() as connection:
            return select_prompts(connection, use, upto)

    def kept_openings(self, upto: Newest | None = None) -> frozenset[str]:
        """Return the openings of prompts that measure something (with `upto`, did then): nothing is trained on them."""
        with self.read() as connection:
            return openings_apart(connection, PromptUse.TRAIN, upto)

    def answerable(self, use: PromptUse, *, chats: bool, upto: Newest | None = None) -> list[Dialogue]:
        """Return the prompts of one use that a model may answer anew, by id.

        What was deleted never is, nor what begins as a prompt of a stricter use does (evaluation before validation,
        validation before training) or as one on which a candidate was compared; what only people's conversations have
        brought in is with `chats` alone. With `upto`, what came since is left out, prompts and candidates' comparisons;
        what was deleted since stays away.
        """
        with self.read() as connection:
            return select_answerable(connection, use, chats, upto)

    def only_in_chats(self, programs: bool = False) -> frozenset[Dialogue]:
        """Return the prompts that nothing but people's conversations, or these and `programs`, has brought in."""
        with self.read() as connection:
            return select_private(connection, programs=programs)

    def add_comparisons(self, comparisons: Iterable[Comparison]) -> list[int]:
        """Store what is put before annotators, with the verdicts that are there already, and return the ids in order.

        Prompts and responses that are new are stored too; each comparison is a new row, for each was shown. It is one
        transaction, in which nobody else writes: for a few of them; `merge_comparisons` is for many.
        """
        ids: list[int] = []
        with self.write() as connection:
            take_turns(connection)
            for chunk in chunks(comparisons):
                new = insert_comparisons(connection, chunk, response_ids(connection, chunk))
                verdicts = [(key, verdict) for key, c in zip(new, chunk, strict=True) for verdict in c.verdicts]
                insert_verdicts(connection, verdicts)
                ids += new
        return ids

    def merge_comparisons(self, comparisons: Iterable[Comparison]) -> Merged:
        """Add what is not there yet of records that were written elsewhere: all of it, or nothing.

        The same responses in the same order, asked about in the same way, are one comparison. On it, the same choice
        of the same annotator is one verdict, unless it states a time at which none is known. Many of them are added a
        slice at a time (`staging`), so that others can write meanwhile.
        """
        return staging.merge(self.write, comparisons)

    def place_prompts(self, prompts: Sequence[Placed], holds: staging.Holds) -> bool:
        """Put prompts where they were chosen to be, as `merge_comparisons` adds: all or none; see `staging.place`."""
        return staging.place(self.write, prompts, holds)

    def add_verdicts(self, verdicts: Sequence[tuple[int, Verdict]]) -> None:
        """Append verdicts, each with the id of the comparison that it answers.

        Raises MannersError, and stores none, when there is no such comparison.
        """
        wanted = {comparison for comparison, _ in verdicts}
        with self.write() as connection:
            for chunk in chunks(wanted):
                known = connection.execute(select(ComparisonRow.id).where(ComparisonRow.id.in_(chunk))).scalars()
                if missing := sorted(set(chunk) - set(known)):
                    raise MannersError(f"There is no comparison {missing[0]} in {self._name}; check its number.")
            for some in chunks(verdicts):
                insert_verdicts(connection, some)

    def comparisons(
        self,
        asked_how: AskedHow | None = None,
        *,
        as_of: int | None = None,
        newest: int | None = None,
        newest_bet: int | None = None,
    ) -> list[Comparison]:
        """Return the comparisons asked in one way, or in all, by id, with their verdicts in order of arrival.

        With `as_of`, a watermark, later verdicts are left out; what was taken back or deleted since stays away. With
        `newest` and `newest_bet`, ids, so are later comparisons with what they keep from training, and later bets.
        """
        with self.read() as connection:
            found = select_comparisons(connection, asked_how, newest, newest_bet)
            if as_of is None:
                return found
            counts = count_up_to(connection, as_of)
        # They come in order of arrival: the earlier ones are the first.
        return [replace(c, verdicts=c.verdicts[: counts.get(c.id or 0, 0)]) for c in found]

    def watermark(self) -> int:
        """Return the highest verdict id, 0 where there is none: what a version trained now may have learned from.

        No verdict with a lower id comes later, so that the cut stays what it is.
        """
        with self.read() as connection:
            newest: int = connection.execute(select(func.coalesce(func.max(VerdictRow.id), 0))).scalar_one()
            wait_for_verdicts(connection)
        return newest

    def mark(self) -> Mark:
        """Return what is different once there are other prompts, comparisons, verdicts, views or versions."""
        with self.read() as connection:
            return holdings.mark(connection)

    def add_version(self, version: VersionRecord) -> int:
        """Record a model version and return its id. Raises MannersError on a taken name or an unknown parent."""
        with self.write() as connection:
            known = _version_ids(connection)
            if version.name in known:
                raise MannersError(f"There is a version {version.name} in {self._name} already; choose another name.")
            row = {
                "name": version.name,
                "kind": version.kind.value,
                "path": version.path,
                "parent_id": None if version.parent is None else self._known(known, version.parent),
                "metrics": dict(version.metrics),
                "watermark": version.watermark,
                "created_at": version.created_at or datetime.now(UTC),
            }
            return connection.execute(insert(VersionRow).returning(VersionRow.id), row).scalar_one()

    def versions(self, kind: VersionKind | None = None) -> list[VersionRecord]:
        """Return the model versions of one kind, or of both, oldest first."""
        parent = aliased(VersionRow)
        query = (
            select(VersionRow, parent.name.label("parent"))
            .outerjoin(parent, VersionRow.parent_id == parent.id)
            .order_by(VersionRow.id)
        )
        if kind is not None:
            query = query.where(VersionRow.kind == kind.value)
        with self.read() as connection:
            return [
                VersionRecord(r.name, VersionKind(r.kind), r.path, r.parent, r.metrics, r.watermark, r.created_at, r.id)
                for r in connection.execute(query)
            ]

    def add_round(self, round_: Round) -> int:
        """Record how a round ended and return its id. Raises MannersError when a version that it names is unknown."""
        with self.write() as connection:
            known = _version_ids(connection)
            row = {
                "policy_id": self._known(known, round_.policy),
                "reward_id": self._known(known, round_.reward),
                "outcome": round_.outcome.value,
                "metrics": dict(round_.metrics),
                "created_at": round_.created_at or datetime.now(UTC),
            }
            return connection.execute(insert(RoundRow).returning(RoundRow.id), row).scalar_one()

    def rounds(self) -> list[Round]:
        """Return the rounds, oldest first."""
        policy, reward = aliased(VersionRow), aliased(VersionRow)
        query = (
            select(RoundRow, policy.name.label("policy"), reward.name.label("reward"))
            .join(policy, RoundRow.policy_id == policy.id)
            .join(reward, RoundRow.reward_id == reward.id)
            .order_by(RoundRow.id)
        )
        with self.read() as connection:
            rows = connection.execute(query)
            return [Round(r.policy, r.reward, Outcome(r.outcome), r.metrics, r.created_at, r.id) for r in rows]

    def counts(self) -> Holdings:
        """Return how much there is of everything."""
        with self.read() as connection:
            return holdings.holdings(connection)

    def _known(self, ids: dict[str, int], version: str) -> int:
        if version not in ids:
            raise MannersError(
                f"There is no version {version} in {self._name}; `manners models` lists those there are."
            )
        return ids[version]

    def _revision(self) -> str | None:
        with self.read() as connection:
            return schema.current_revision(connection)

    def _bring_up_to_date(self) -> None:
        """Make the tables, or change those of an older version."""
        if self._revision() != schema.newest_revision():
            with refusals(self._name):
                schema.keep_before(self._engine)
                schema.use_wal(self._engine)
            with self.write() as connection:
                schema.upgrade(connection, self._name)

    def finish_imports(self) -> None:
        """Add what an import that was killed had decided to add; where nothing can be written, it waits."""
        if self.is_writable:
            staging.recover(self.read, self.write)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection within a transaction that only reads, and sees one moment, however long it does."""
        with refusals(self._name), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection within a transaction that writes: all of it, or nothing if the block fails."""
        with refusals(self._name), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def tried(self) -> Iterator[Connection]:
        """Yield a connection within a transaction that writes, of which nothing stays: to see what it would change."""
        with self.write() as connection:
            take_turns(connection)
            step = connection.begin_nested()
            try:
                yield connection
            finally:
                step.rollback()


@contextmanager
def _opening(url: URL) -> Iterator[Store]:
    """Yield the store of a database, which is let go of again if it cannot be opened."""
    if schema.is_file(url):
        path = Path(str(url.database))
        path.parent.mkdir(parents=True, exist_ok=True)
        if schema.is_writable(path):
            schema.private(path)
    store = Store(schema.connect(url), str(url.database) if schema.is_file(url) else url.render_as_string())
    try:
        yield store
    except BaseException:
        store.close()
        raise


def _version_ids(connection: Connection) -> dict[str, int]:
    return {row.name: row.id for row in connection.execute(select(VersionRow.name, VersionRow.id))}
