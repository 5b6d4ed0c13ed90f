"""A team's right to train, where the database has lost it: the run that had it notices, and trains beside nobody."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from manners.checkpoint import Run, unfinished
from manners.errors import MannersError
from manners.loop import patience
from manners.loop.session import Session
from manners.loop.waiting import Waiting
from manners.settings import Settings
from manners.store import Store, runlock
from manners.workspace import Workspace
from tests.postgres import Server
from tests.store.test_team import terminate

MISSING = Waiting(what="verdicts", have=0, need=1, at_most=1, sentence="waiting for verdicts")


@pytest.fixture
def team(server: Server, tmp_path: Path) -> Iterator[Session]:
    """A session in a workspace whose store is in a database."""
    with server.database() as url:
        Store.create(url).close()
        session = Session(Workspace.create(tmp_path / "team", url), Settings())
        with closing(session.store):
            yield session


def lost(server: Server, session: Session) -> None:
    assert session.workspace.url is not None
    terminate(server, session.workspace.url)


def test_on_one_machine_the_folder_is_locked_too(server: Server, team: Session) -> None:
    """While nobody has noticed yet that the database has forgotten the lock."""
    with team.run_lock("ppo"):
        lost(server, team)
        another = Session(Workspace.open(team.workspace.root), Settings())
        told = f"^`ppo`, process {os.getpid()}, is training in"
        with closing(another.store), pytest.raises(MannersError, match=told), another.run_lock("loop"):
            pass
    with team.run_lock("reward"):
        pass


def test_a_run_writes_nothing_where_another_has_come_to_train(
    server: Server, team: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folders on one database: those of two machines, say."""
    folder = team.workspace.runs / "ppo"
    with team.run_lock("ppo"), closing(Store.open(str(team.workspace.url))) as other:
        run = Run(folder, "manners ppo", {}, 0.0, team.at(1).keep_lock)
        run.save()
        lost(server, team)
        run.save()
        lost(server, team)
        there = unfinished(folder)
        told = r"`loop`, process .* is training there now"
        with monkeypatch.context() as patch, other.run_lock("loop"), pytest.raises(MannersError, match=told):
            patch.setattr(runlock, "PATIENCE", -1.0)  # another process would not be waited for either
            run.save()
        assert unfinished(folder) == there and len(there) == 2
        run.save()


def test_a_loop_that_waits_notices_at_its_next_look(
    server: Server, team: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "LOOK", 0.0)
    looks = list[int]()

    def missing() -> Waiting | None:
        looks.append(1)
        lost(server, team)
        return MISSING if len(looks) < 3 else None

    with team.run_lock("loop"):
        assert patience.wait(team, missing, step=False) is None
        assert len(looks) == 3
        monkeypatch.setattr(runlock, "PATIENCE", -1.0)
        with (
            closing(Store.open(str(team.workspace.url))) as other,
            other.run_lock("ppo"),
            pytest.raises(MannersError, match=r"`ppo`, process .* is training there now"),
        ):
            patience.wait(team, lambda: MISSING, step=False)
