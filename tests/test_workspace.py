"""The workspace: made once, opened safely, written whole or not at all, trained in by one process at a time."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from manners.cli import main
from manners.errors import MannersError
from manners.workspace import FORMAT, Workspace, atomic_folder, atomic_write, move_aside, scratch_folder


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A new workspace."""
    return Workspace.create(tmp_path / "project")


def names(folder: Path) -> set[str]:
    """Return the names in a folder, hidden ones included."""
    return {path.name for path in folder.iterdir()}


def test_create_is_idempotent_and_open_finds_it(workspace: Workspace) -> None:
    """A second `create` keeps what is there."""
    workspace.toml.write_text("seed = 1\n")
    assert Workspace.create(workspace.root) == Workspace.open(workspace.root) == workspace
    assert workspace.toml.read_text() == "seed = 1\n"
    assert names(workspace.root) == {"manners.toml", "workspace.json", "models", "runs"}


def test_a_database_elsewhere_is_remembered(tmp_path: Path) -> None:
    """The marker holds its URL; a folder with its store in one place does not go on in another."""
    url = "postgresql+psycopg://ann@host/x"
    assert Workspace.create(tmp_path / "own").database == tmp_path / "own" / "store.db"
    made = Workspace.create(tmp_path / "team", url)
    assert made == Workspace.open(made.root) == Workspace.create(made.root) == Workspace.create(made.root, url)
    assert made.database == json.loads((made.root / "workspace.json").read_text())["database"] == url
    for root in ("own", "team"):
        with pytest.raises(MannersError, match=r"keeps its store in .*: name a new folder"):
            Workspace.create(tmp_path / root, "postgresql+psycopg://ann@host/y")
    with pytest.raises(MannersError, match="is a team's"):
        move_aside(made.root)


def test_create_refuses_what_holds_other_things(tmp_path: Path) -> None:
    """Neither a folder with a file in it nor a file becomes a workspace."""
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(MannersError, match="already holds other things"):
        Workspace.create(tmp_path)
    with pytest.raises(MannersError, match="already holds other things"):
        Workspace.create(tmp_path / "thesis.tex")
    with pytest.raises(MannersError, match="name another folder"):
        Workspace.create(tmp_path / "thesis.tex" / "project")
    assert names(tmp_path) == {"thesis.tex"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is not a workspace: run `manners init"),
        (json.dumps({"format": FORMAT + 1}), "written by a newer manners"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": "new"}', "is damaged"),
    ],
)
def test_open_refuses(tmp_path: Path, content: str | None, says: str) -> None:
    """No workspace, a newer one, or a damaged one: each has its sentence."""
    if content is not None:
        (tmp_path / "workspace.json").write_text(content)
    with pytest.raises(MannersError, match=says):
        Workspace.open(tmp_path)


def test_versions_count_from_the_highest(workspace: Workspace) -> None:
    """A gap is not filled, for a name must never mean two things; other kinds and other names do not count."""
    assert workspace.next_version_name("policy") == "policy-1"
    for name in ("policy-1", "policy-10", "reward-3", "policy-old"):
        (workspace.models / name).mkdir()
    assert workspace.next_version_name("policy") == "policy-11"
    assert workspace.next_version_name("reward") == "reward-4"


HOLDER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from manners.workspace import Workspace
with Workspace.open(Path(sys.argv[1])).run_lock("ppo"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_training_run_at_a_time(workspace: Workspace) -> None:
    """A second process is refused at once, by name of the first; a killed holder holds nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workspace.root)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(MannersError, match=rf"`ppo`, process {holder.pid}, is training"),
            workspace.run_lock("reward"),
        ):
            pass
        assert holder.poll() is None, "it was refused, and did not wait for the holder to end"
        # Everything else goes on beside it.
        atomic_write(Workspace.open(workspace.root).report_json, "{}")
        holder.send_signal(signal.SIGKILL)
    with workspace.run_lock("reward"), pytest.raises(MannersError, match=f"`reward`, process {os.getpid()}"):
        workspace.run_lock("ppo").__enter__()
    with workspace.run_lock("ppo"):
        pass


def test_a_lock_without_a_signature_is_respected(workspace: Workspace) -> None:
    """In the instant before the holder has signed, the lock already counts."""
    with workspace.run_lock("reward"):
        (workspace.root / "run.json").unlink()
        with pytest.raises(MannersError, match="another run is training"):
            workspace.run_lock("ppo").__enter__()


def test_atomic_write_replaces_or_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New content whole, or the old content and nothing beside it."""
    path = tmp_path / "report.json"
    atomic_write(path, "old")
    atomic_write(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"
    atomic_write(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    monkeypatch.setattr(os, "fsync", fails_with(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(MannersError, match=r"no space left .*report\.json: nothing was written; make more than"):
        atomic_write(path, "newer")
    assert names(tmp_path) == {"report.json"}
    assert path.read_bytes() == b"\x00"


def fails_with(error: Exception) -> Callable[..., None]:
    """Return a function that raises `error`."""

    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_no_folder(tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's error, and that of a library that wraps it, become one sentence; nothing half-written remains."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=500_000))
    told = pytest.raises(MannersError, match=r"no space left on the disk.*more than 2\.5 MB")
    with told, atomic_folder(tmp_path / "models" / "policy-1") as folder:
        (folder / "weights").write_bytes(bytes(2_000_000))
        raise error
    assert names(tmp_path / "models") == set()


def test_atomic_folder_appears_at_the_end_or_never(tmp_path: Path) -> None:
    """It is invisible while it is filled; any failure, Ctrl-C included, removes it; a taken name is refused."""
    path = tmp_path / "policy-1"
    with atomic_folder(path) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_text("x")
        assert not path.exists()
    assert (path / "deep" / "weights").read_text() == "x"
    with pytest.raises(MannersError, match="exists already"), atomic_folder(path):
        pass
    for failure in (ValueError("bug"), KeyboardInterrupt(), OSError(errno.EACCES, "Permission denied")):
        with pytest.raises(type(failure)), atomic_folder(tmp_path / "policy-2"):
            raise failure
    assert names(tmp_path) == {"policy-1"}


def test_a_policy_is_promoted_once_and_rolled_back_in_one_step(workspace: Workspace) -> None:
    """Promoting what is the current one already leaves no second entry; an older one may become current again."""
    for name in ("policy-1", "policy-1", "policy-2", "policy-2", "policy-1"):
        workspace.promote(name)
    assert workspace.promoted() == ["policy-1", "policy-2", "policy-1"]
    assert (workspace.roll_back(), workspace.current_policy()) == ("policy-1", "policy-2")


def test_a_scratch_folder_is_gone_afterwards_whatever_happens(workspace: Workspace) -> None:
    """It lies beside its name, hidden, is empty at first, and an `open` meanwhile leaves it alone."""
    for failure in (None, ValueError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")):
        with suppress(ValueError, KeyboardInterrupt, OSError), scratch_folder(workspace.runs / "states") as folder:
            assert folder.parent == workspace.runs and folder.name.startswith(".states.")
            assert names(folder) == set()
            (folder / "held-out").write_bytes(bytes(9))
            Workspace.open(workspace.root)
            assert (folder / "held-out").is_file()
            if failure is not None:
                raise failure
        assert names(workspace.runs) == set()


KILLED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from manners import workspace
with getattr(workspace, sys.argv[2])(Path(sys.argv[1])) as folder:
    (folder / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["atomic_folder", "scratch_folder"])
def test_what_a_killed_process_left_is_cleared(workspace: Workspace, kind: str) -> None:
    """On the next open, its half-written folder goes; that of a living process, and of a stranger's today, stay."""
    command = [sys.executable, "-c", KILLED, str(workspace.models / "policy-1"), kind]
    subprocess.run(command, check=False, timeout=60)
    [left] = workspace.models.iterdir()
    assert left.name.endswith(".partial")
    here = socket.gethostname().partition(".")[0]
    living = workspace.models / f".policy-2.{here}-{os.getpid()}-00.partial"
    recent, stale = (workspace.models / f".policy-{n}.far-away-1-00.partial" for n in (3, 4))
    for folder in (living, recent, stale):
        folder.mkdir()
    os.utime(stale, (0, 0))
    Workspace.open(workspace.root)
    assert names(workspace.models) == {living.name, recent.name}


def test_move_aside_keeps_one_previous(tmp_path: Path) -> None:
    """The old workspace is kept under another name, the one before it goes, and a folder of somebody else's stays."""
    root = tmp_path / "demo"
    assert move_aside(root) is None
    for text in ("first", "second"):
        atomic_write(Workspace.create(root).report_json, text)
        assert move_aside(root) == tmp_path / "demo.previous"
    assert names(tmp_path) == {"demo.previous"}
    assert Workspace.open(tmp_path / "demo.previous").report_json.read_text() == "second"
    root.mkdir()
    assert move_aside(root) is None
    (root / "thesis.tex").write_text("")
    with pytest.raises(MannersError, match="is not a workspace"):
        move_aside(root)


@pytest.mark.parametrize("used", ["demo", "demo.previous"])
@pytest.mark.parametrize(("lock", "says"), [("serve.lock", "is being served"), ("run.lock", "is being trained in")])
def test_what_somebody_uses_is_neither_moved_nor_removed(tmp_path: Path, used: str, lock: str, says: str) -> None:
    """A process of its own holds the lock, as a server or a training run does."""
    for name in ("demo", "demo.previous"):
        atomic_write(Workspace.create(tmp_path / name).report_json, name)
    holds = (
        "import fcntl, sys; held = open(sys.argv[1], 'w'); fcntl.flock(held, fcntl.LOCK_EX); print(flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", holds, str(tmp_path / used / lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        with pytest.raises(MannersError, match=f"^{re.escape(str(tmp_path / used))} {says}: stop that first"):
            move_aside(tmp_path / "demo")
        other.stdin.close()
    assert all((tmp_path / name / "report.json").read_text() == name for name in ("demo", "demo.previous"))
    assert move_aside(tmp_path / "demo") == tmp_path / "demo.previous"
    assert (tmp_path / "demo.previous" / "report.json").read_text() == "demo"


def test_a_teams_workspace_is_neither_moved_nor_removed(tmp_path: Path) -> None:
    Workspace.create(tmp_path / "demo")
    Workspace.create(tmp_path / "demo.previous", "postgresql+psycopg://ann@host/x")
    with pytest.raises(MannersError, match=r"demo\.previous is a team's"):
        move_aside(tmp_path / "demo")
    assert names(tmp_path) == {"demo", "demo.previous"}


@pytest.mark.parametrize(
    ("where", "asked", "gone"),
    [
        ("demo", ".", "demo"),
        ("demo", "../demo", "../demo"),
        ("demo/models", "..", "demo"),
        ("demo/models", "../../demo", "../../demo"),
        ("demo.previous", "../demo", "../demo.previous"),
    ],
)
def test_nobody_is_moved_aside_with_the_folder_they_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, asked: str, gone: str
) -> None:
    """The next demo would be made in the one that was moved, by a path that begins where we are."""
    for name in ("demo", "demo.previous"):
        atomic_write(Workspace.create(tmp_path / name).report_json, name)
    monkeypatch.chdir(tmp_path / where)
    named = tmp_path / gone if gone == "demo" else gone
    with pytest.raises(MannersError, match=f"^{re.escape(str(named))} has to make room for the demo"):
        move_aside(Path(asked))
    assert names(tmp_path) == {"demo", "demo.previous"}
    assert all((tmp_path / name / "report.json").read_text() == name for name in ("demo", "demo.previous"))


def test_a_folder_is_moved_aside_by_any_path_that_leads_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Workspace.create(tmp_path / "demo").root
    monkeypatch.chdir(tmp_path)
    assert move_aside(Path("demo/models/..")) == tmp_path / "demo.previous"
    assert not root.exists()
    Workspace.create(Path("demo"))
    assert move_aside(Path("demo")) == Path("demo.previous")
    assert names(tmp_path) == {"demo.previous"}
    monkeypatch.chdir(tmp_path / "demo.previous" / "models")
    assert move_aside(Path(".")) is None, "an empty folder makes room as it is"


def test_a_demo_in_the_current_folder_is_refused_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Workspace.create(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    assert main(["demo", "--workspace", "."]) == 1
    [said] = capsys.readouterr().err.splitlines()
    assert said.endswith("and you are in it: go elsewhere, or name a new one.")


def test_promotions_that_come_between_each_other_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads what was promoted, waits for the other to have read it too, and writes."""
    workspace = Workspace.create(tmp_path / "ws")
    read = Workspace.promoted

    def slowly(self: Workspace) -> list[str]:
        found = read(self)
        time.sleep(0.02)
        return found

    monkeypatch.setattr(Workspace, "promoted", slowly)
    names = [f"policy-{number}" for number in range(1, 5)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(workspace.promote, names))
    assert sorted(read(workspace)) == names
