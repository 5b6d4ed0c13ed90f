"""kill -9 at random moments: what was acknowledged is there, nothing is there twice, and everything goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from manners.backup import snapshots
from manners.backup.restore import restore
from manners.backup.take import backup
from manners.checkpoint import unfinished
from manners.loop.session import Session
from manners.models import versions
from manners.settings import Settings
from manners.store import Store, schema, staging
from manners.store.files.prompts import import_prompts, parse_split, side
from manners.store.files.transfer import import_comparisons
from manners.store.tables import VerdictRow, ViewRow
from manners.types import VersionKind
from manners.workspace import Workspace
from tests.loop import calls
from tests.store.test_migrations import ASKED, NOON, leave
from tests.web.conftest import NOWHERE, serve

KILLS = 40
"""Of processes in the middle of their work; `--times 5` makes them two hundred."""
SEED = 17
ROWS = 50
"""Comparisons in a file, each with a verdict; prompts in one."""
SPLIT = parse_split("train=0.8,evaluate=0.2")
OLD = 4000
"""Views in the store of an older revision."""


class World:
    """A workspace in which everything happens, and what must be in it."""

    def __init__(self, workspace: Workspace, settings: Settings, folder: Path, rng: random.Random) -> None:
        """Take the finished demo, and a folder for what is beside it."""
        self.root = workspace.root
        self.settings = settings
        self.folder = folder
        self.rng = rng
        self.acknowledged: set[str] = set()
        self.imported: set[int] = set()
        self.brought: set[int] = set()
        self.whole = self.count()
        """Verdicts that came neither from the page nor from an import of this test."""
        self.takes: dict[str, float] = {}

    def count(self) -> int:
        with closing(Store.open(self.root / "store.db")) as store, store.read() as connection:
            return connection.execute(select(func.count()).select_from(VerdictRow)).scalar_one()

    def play(self, name: str, act: Callable[[], object]) -> bool:
        """Do something in a process of its own, which is killed at a random moment; tell whether that hit it."""
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                act()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if name in self.takes:
            end, ended = begun + self.rng.uniform(0, 1.1 * self.takes[name]), (0, 0)
            while time.monotonic() < end and not (ended := os.waitpid(child, os.WNOHANG))[0]:
                time.sleep(0.0005)
            if time.monotonic() >= end and not ended[0]:
                os.kill(child, signal.SIGKILL)
                ended = os.waitpid(child, 0)
            status = ended[1]
        else:  # the first one says how long it takes
            status = os.waitpid(child, 0)[1]
            self.takes[name] = time.monotonic() - begun
        assert status in (0, signal.SIGKILL), f"{name} ended with {status}"
        return status != 0


def label(world: World) -> bool:
    """Somebody judges pair after pair, and the server is killed in the middle of one."""
    moment = world.rng.uniform(0.0, 1.5)
    with serve(world.root, "--upstream", NOWHERE, "--set", "serve.shortest_view=0") as server:
        threading.Timer(moment, server.kill).start()
        with suppress(httpx.HTTPError), httpx.Client(base_url=server.url, timeout=10) as client:
            client.post("/label/begin", json={})
            while True:
                pair = client.post("/label/next", json={}).raise_for_status().json()["pair"]
                if pair is None:
                    time.sleep(0.05)
                    continue
                given = {"view": pair["view"], "choice": world.rng.choice(["left", "right", "tie"])}
                for _ in range(world.rng.choice([1, 1, 2])):  # some are sent again, as a browser does
                    client.post("/label/verdict", json=given).raise_for_status()
                    world.acknowledged.add(pair["view"])
        server.process.wait()
    return True


def take_in(world: World) -> bool:
    """A file is imported: all of it, or nothing."""
    number = max(world.imported, default=0) + 1
    file = world.folder / f"pairs-{number}.jsonl"
    rows = [{"prompt": f"{number}, {row}?", "chosen": "yes", "rejected": "no"} for row in range(ROWS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def act() -> None:
        with closing(Store.open(world.root / "store.db")) as store:
            import_comparisons(store, file, {}, skip_bad=False)

    killed = world.play("import", act)
    with closing(Store.open(world.root / "store.db")) as store:
        there = sum(c.prompt[-1].text.startswith(f"{number}, ") for c in store.comparisons())
        assert there in ((0, ROWS) if killed else (ROWS,))
        import_comparisons(store, file, {}, skip_bad=False)
    world.imported.add(number)
    return killed


def bring_prompts(world: World) -> bool:
    """A file of prompts is imported and divided: all of it, or nothing."""
    number = max(world.brought, default=0) + 1
    file = world.folder / f"prompts-{number}.txt"
    file.write_text("".join(f"of {number}, {row}?\n" for row in range(ROWS)))

    def act() -> None:
        with closing(Store.open(world.root / "store.db")) as store:
            import_prompts(store, file, SPLIT)

    killed = world.play("prompts", act)
    for complete in (not killed, True):
        with closing(Store.open(world.root / "store.db")) as store:
            there = [one for one in store.prompts() if one.dialogue[-1].text.startswith(f"of {number}, ")]
            assert len(there) in ((ROWS,) if complete else (0, ROWS))
            assert all(one.use is side(one.dialogue, SPLIT) for one in there)
            import_prompts(store, file, SPLIT, skip_known=True)
    world.brought.add(number)
    return killed


def train(world: World) -> bool:
    """A reward model is trained, or its training goes on."""

    def act() -> None:
        workspace = Workspace.open(world.root)
        resume = bool(unfinished(workspace.runs / "reward"))
        calls.train_reward(Session(workspace, world.settings), resume=resume)

    return world.play("training", act)


def copy_out(world: World) -> bool:
    """A backup is made: whole, or not there."""
    killed = world.play("backup", lambda: backup(Workspace.open(world.root), world.folder / "bk"))
    for place in snapshots.all_of(world.folder / "bk")[-2:]:
        snapshot = snapshots.read(place)
        assert all(snapshots.is_sound(place.parent, digest) for digest in snapshot.files.values())
        assert snapshots.digest_of(place / "store.db") == snapshot.store_digest
    return killed


def put_back(world: World) -> bool:
    """What has just been copied is put back: the workspace is as it was, killed or not."""
    place = Path(backup(Workspace.open(world.root), world.folder / "bk")["path"])
    return world.play("restore", lambda: restore(place, world.root))


def migrate(world: World) -> bool:
    """A store of an older revision is opened: all that was in it is there, now or at the next time."""
    path = shutil.copy(world.folder / "old.db", world.folder / "older.db")
    for end in ("-wal", "-shm"):
        (world.folder / f"older.db{end}").unlink(missing_ok=True)
    killed = world.play("migration", lambda: Store.open(path).close())
    with closing(Store.open(path)) as store, store.read() as connection:
        assert schema.current_revision(connection) == schema.newest_revision()
        tokens = connection.execute(select(ViewRow.token)).scalars().all()
    assert len(set(tokens)) == OLD == len(tokens)
    return killed


ACTS = (label, take_in, bring_prompts, train, copy_out, put_back, migrate)


def old_store(path: Path) -> None:
    """Make a store as revision 0004 left it, with many views."""
    view = {"comparison_id": 1, "annotator_id": 1, "exchanged": False, "drawn": "random", "probability": 0.5}
    leave(path, "0004", ASKED, views=[view | {"created_at": NOON, "expires_at": NOON}] * OLD)


def check(world: World) -> None:
    """Every acknowledged verdict is there once; files hold what they say."""
    workspace = Workspace.open(world.root)  # which finishes a restore
    with closing(Store.open(world.root / "store.db")) as store, store.read() as connection:
        query = select(ViewRow.token).join(VerdictRow, VerdictRow.view_id == ViewRow.id)
        answered = list(connection.execute(query.where(ViewRow.token.is_not(None))).scalars())
        total = connection.execute(select(func.count()).select_from(VerdictRow)).scalar_one()
    assert world.acknowledged <= set(answered), f"lost: {world.acknowledged - set(answered)}"
    assert len(set(answered)) == len(answered), "a view has one verdict"
    assert total == world.whole + len(answered) + ROWS * len(world.imported), "nothing is there twice"
    for kind in (VersionKind.REWARD, VersionKind.POLICY):
        for name in versions.names(workspace, kind):
            versions.describe(workspace, name)
    assert workspace.current_policy() == "policy-1" and not list(world.root.rglob("*.partial"))


@pytest.mark.long
def test_kills_at_random_moments_lose_nothing_and_double_nothing(
    copy: Workspace,
    settings: Settings,
    tmp_path: Path,
    times: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"AT_ONCE": 20, "FIRST_SLICE": 5, "MOST_IN_SLICE": 5}.items():
        monkeypatch.setattr(staging, name, value)  # so that small files go by the stage
    rng = random.Random(SEED)
    short = replace(settings.reward, epochs=1, members=1, annotators="simulated")  # beside whom people label here
    chosen = replace(settings, checkpoint_every=0.0, reward=short)
    old_store(tmp_path / "old.db")
    copy.promote("policy-1")
    world = World(copy, chosen, tmp_path, rng)
    killed: dict[str, int] = {}
    while sum(killed.values()) < KILLS * times:
        act = rng.choice(ACTS)
        killed[act.__name__] = killed.get(act.__name__, 0) + act(world)
        check(world)
    print(f"killed at: {killed}; {len(world.acknowledged)} verdicts were acknowledged")
    assert set(killed) == {act.__name__ for act in ACTS} and all(killed.values())
    workspace = Workspace.open(world.root)
    calls.train_reward(Session(workspace, chosen), resume=bool(unfinished(workspace.runs / "reward")))
    made = backup(workspace, tmp_path / "bk")
    assert restore(tmp_path / "bk", tmp_path / "new")["verdicts"] == made["verdicts"] == world.count()
