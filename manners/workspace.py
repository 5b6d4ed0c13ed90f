"""The folder that holds a project: where things are, writes that are whole or not there, one training run at a time.

    manners.toml     settings that differ from the defaults
    workspace.json   the folder's format number, where the store is if not here, and whether there are accounts
    store.db         what was asked and what was answered
    models/          one folder a model version
    runs/            curves and checkpoints, one folder a training run
    report.html, report.json

What is being written is called `.NAME.HOST-PID-TOKEN.partial` until it is complete.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from manners import __version__, holder, restored
from manners.errors import MannersError
from manners.holder import Holder
from manners.partials import clear_partials as clear_partials
from manners.partials import partial_name, remove

FORMAT = 1
"""Raised whenever an older manners could no longer read the folder."""

NO_SETTINGS = "# Settings that differ from the defaults; `manners settings` lists them all.\n"

INITIAL = "initial"
"""Name of the policy that is the base model itself."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """A project's folder; `create` makes one, `open` finds one."""

    root: Path
    url: str | None = None
    """The PostgreSQL database that holds the store, where a team shares it."""

    @property
    def toml(self) -> Path:
        """Settings of this workspace that differ from the defaults."""
        return self.root / "manners.toml"

    @property
    def database(self) -> Path | str:
        """What was asked and what was answered: a file here, or the URL of a database."""
        return self.url or self.root / "store.db"

    @property
    def models(self) -> Path:
        """One folder a model version."""
        return self.root / "models"

    @property
    def runs(self) -> Path:
        """Curves and checkpoints, one folder a training run."""
        return self.root / "runs"

    @property
    def report_html(self) -> Path:
        """The report that people read."""
        return self.root / "report.html"

    @property
    def report_json(self) -> Path:
        """The same facts for programs."""
        return self.root / "report.json"

    @classmethod
    def create(cls, root: Path, url: str | None = None, toml: str = NO_SETTINGS) -> Workspace:
        """Make a workspace with this `manners.toml` in a new or empty folder; one that is there is opened as it is.

        Raises:
            MannersError: the folder holds other things, cannot be written, or keeps its store elsewhere than at `url`.
        """
        if not _marker(root).exists():
            if root.exists() and (not root.is_dir() or any(root.iterdir())):
                raise MannersError(f"{root} already holds other things: name a new or an empty folder.")
            try:
                root.mkdir(parents=True, exist_ok=True)
                record = {"format": FORMAT, "manners": __version__} | ({"database": url} if url else {})
                atomic_write(_marker(root), json.dumps(record) + "\n")
            except OSError as error:
                raise MannersError(
                    f"cannot make a workspace in {root} ({error.strerror}): name another folder."
                ) from error
        workspace = cls.open(root)
        if url not in (None, workspace.url):
            raise MannersError(f"{root} keeps its store in {workspace.database}: name a new folder for another one.")
        workspace.models.mkdir(exist_ok=True)
        workspace.runs.mkdir(exist_ok=True)
        if not workspace.toml.exists():
            atomic_write(workspace.toml, toml)
        return workspace

    @staticmethod
    def is_at(root: Path) -> bool:
        """Tell whether a folder is a workspace."""
        return _marker(root).exists()

    @classmethod
    def open(cls, root: Path) -> Workspace:
        """Find the workspace in a folder, and clear away what a killed process left half-written in it.

        Raises:
            MannersError: the folder is no workspace, or was written by a newer manners.
        """
        restored.finish(root)
        workspace = cls.look_at(root)
        if os.access(root, os.W_OK):
            clear_partials(root)
        return workspace

    @classmethod
    def look_at(cls, root: Path) -> Workspace:
        """Find the workspace in a folder and leave all in it as it is; raises as `open` does."""
        try:
            record = json.loads(_marker(root).read_text(encoding="utf-8"))
            found = int(record["format"])
            url = record.get("database")
        except (FileNotFoundError, NotADirectoryError):
            hint = f"run `manners init {root}` or name one with --workspace"
            raise MannersError(f"{root} is not a workspace: {hint}.") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MannersError(f"{_marker(root)} is damaged: put a backup back with `manners restore`.") from error
        if found > FORMAT:
            known = f"its format is {found}, this version knows {FORMAT}"
            raise MannersError(f"{root} was written by a newer manners ({known}): upgrade manners to open it.")
        return cls(root, url)

    @contextmanager
    def run_lock(self, stage: str) -> Iterator[None]:
        """Hold the lock file: one process of this machine trains, while asking, importing and reading go on beside it.

        Raises:
            MannersError: at once, naming stage and process id, when another training run holds it.
        """
        lock = FileLock(self._lock_file, timeout=holder.INSTANT)
        try:
            lock.acquire()
        except Timeout:
            raise is_training(holder.signed(self._signature).words, self.root) from None
        try:
            atomic_write(self._signature, json.dumps({"pid": os.getpid(), "stage": stage}) + "\n")
            yield
        finally:
            self._signature.unlink(missing_ok=True)
            lock.release()

    def trained_by(self) -> Holder | None:
        """Return who holds the lock file, without taking it; None where nobody does."""
        return holder.of_file(self._lock_file, self._signature)

    @property
    def _lock_file(self) -> Path:
        return self.root / holder.RUN_LOCK

    @property
    def _signature(self) -> Path:
        return self.root / "run.json"

    def start(self) -> str:
        """Return the name of the version that learning starts from: `initial` until another one was chosen.

        It is what a policy's KL, the scale of rewards, best-of-n and the evaluation are measured against. The initial
        model stays what it is: forgetting and drift are measured from there.
        """
        return str(self._standing().get("start", INITIAL))

    def start_from(self, version: str) -> None:
        """Let learning start from a version from now on; what was promoted before started elsewhere, and goes."""
        with self.promoting():
            atomic_write(self.standing_file, json.dumps({"history": [], "start": version}) + "\n")

    def current_policy(self) -> str:
        """Return the name of the promoted policy, or of the start version."""
        return [self.start(), *self.promoted()][-1]

    def promoted(self) -> list[str]:
        """Return the policies that were promoted, oldest first; the last is the current one."""
        return list(self._standing().get("history", ()))

    def promote(self, policy: str, check: Callable[[], None] = lambda: None) -> None:
        """Make a policy the current one, once, if a `check` lets it while nobody else promotes, goes back or prunes."""
        with self.promoting():
            check()
            if policy != self.current_policy():
                self._set_promoted([*self.promoted(), policy])

    def roll_back(self, never: Collection[str] = ()) -> str:
        """Go back to the policy that was the current one before, past those that are `never` to be it again.

        Return the one that was. `audit.gate.roll_back` knows which ones.

        Raises:
            MannersError: the current one is the initial model.
        """
        with self.promoting():
            was, before = self.current_policy(), self.before(never)
            if before is None:
                what = "the initial model" if was == INITIAL else f"the start version, {was},"
                raise MannersError(f"the current policy is {what} already: there is nothing to go back to.")
            self._set_promoted(before)
            return was

    def before(self, never: Collection[str] = ()) -> list[str] | None:
        """Return what will have been promoted after a roll-back; None where there is nothing to go back to."""
        promoted = self.promoted()
        before = promoted[:-1]
        while before and before[-1] in never:
            before.pop()
        if not before and self.start() in never:
            before = [INITIAL]
        return None if before == promoted else before

    def promoting(self) -> FileLock:
        """Return the lock under which it is read and written what was promoted: who comes second waits."""
        return FileLock(self.root / "promote.lock")

    def _set_promoted(self, policies: list[str]) -> None:
        atomic_write(self.standing_file, json.dumps(self._standing() | {"history": policies}) + "\n")

    @property
    def standing_file(self) -> Path:
        """What was promoted, and where learning starts."""
        return self.models / "current.json"

    def _standing(self) -> dict[str, Any]:
        """Return what was promoted, and where learning starts, if it is said; raises MannersError where damaged."""
        file = self.standing_file
        if not file.exists():
            return {}
        try:
            standing = json.loads(file.read_text(encoding="utf-8"))
            names = [*standing["history"], standing.get("start", INITIAL)]
            sound = isinstance(standing["history"], list) and all(isinstance(name, str) for name in names)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise MannersError(f"{file} is damaged: restore it from a backup of the workspace.")
        return dict(standing)

    def next_version_name(self, kind: str, recorded: Iterable[str] = ()) -> str:
        """Return the name of the next version of a kind, one above the highest there is: `reward-1`, `policy-3`.

        `recorded` are names that the store or an unfinished run knows: one that has no folder is not given either.
        """
        known = [*recorded, *(folder.name for folder in self.models.glob(f"{kind}-*"))]
        taken = [re.fullmatch(rf"{re.escape(kind)}-(\d+)", name) for name in known]
        return f"{kind}-{max((int(match[1]) for match in taken if match), default=0) + 1}"


def is_training(who: str, where: Path | str) -> MannersError:
    """Return the refusal to train beside another run."""
    return MannersError(f"{who} is training in {where}: wait for it to end, or stop it, and run again.")


def move_aside(root: Path) -> Path | None:
    """Make room for a new workspace in `root`: rename the one there to `<root>.previous`, in place of the one before.

    Returns where the old workspace went, or None where there was none.

    Raises:
        MannersError: somebody serves or trains in what would be moved or removed, its store is a team's, it is no
            workspace, or whoever asks stands in it.
    """
    root = root if root.name not in ("", "..") else root.resolve()
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    previous = Path(f"{root}.previous")
    there = [Workspace.open(folder) for folder in (root, previous) if folder == root or folder.exists()]
    here = Path.cwd()
    if gone := next((folder for folder in (root, previous) if folder.resolve() in (here, *here.parents)), None):
        raise MannersError(f"{gone} has to make room for the demo, and you are in it: go elsewhere, or name a new one.")
    if team := next((one for one in there if one.url is not None), None):
        raise MannersError(f"{team.root} is a team's, with its store in {team.url}: name another folder for the demo.")
    with ExitStack() as held:
        for one in there:
            held.enter_context(holder.alone(one.root))
        if previous.exists():
            shutil.rmtree(previous)
        root.rename(previous)
    return previous


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: into a neighbour, to the disk, then renamed over `path`.

    Raises:
        MannersError: no space is left; nothing was written.
    """
    data = content.encode() if isinstance(content, str) else content
    with _partial(path) as partial:
        partial.write_bytes(data)
        _to_disk(partial)
        partial.replace(path)
    _to_disk(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `path` when the block ends, and vanishes when the block fails.

    Raises:
        MannersError: `path` exists already, or no space is left; nothing was written.
    """
    refuse_taken(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _partial(path) as partial:
        partial.mkdir()
        yield partial
        for inner in [*partial.rglob("*"), partial]:
            _to_disk(inner)
        partial.rename(path)
    _to_disk(path.parent)


def refuse_taken(path: Path) -> None:
    """Raise MannersError where something is called so already, a link that leads nowhere among it."""
    if os.path.lexists(path):
        raise MannersError(f"{path} exists already: move it away or choose another name.")


def discard(path: Path) -> None:
    """Remove a folder all at once: it is there whole, or gone."""
    with _partial(path) as partial:
        path.rename(partial)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that is gone when the block ends; after a kill, when the workspace is opened.

    Where machines share the disk, whoever fills it for more than a day touches it (`os.utime`) now and then.
    """
    scratch = partial_name(path)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        remove(scratch)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """Yield the name of a neighbour of `path` that is gone afterwards, whatever happens in the block."""
    partial = partial_name(path)
    try:
        yield partial
    except Exception as error:
        if not _disk_is_full(error, path.parent):
            raise
        # What had fitted and what is free even so, together, were not enough.
        needed = f"more than {(_size(partial) + shutil.disk_usage(path.parent).free) / 1e6:,.1f} MB"
        raise MannersError(
            f"no space left on the disk to write {path}: nothing was written; make {needed} free and run again."
        ) from error
    finally:
        remove(partial)


def _disk_is_full(error: Exception, folder: Path) -> bool:
    """Return whether a write failed for want of space; torch and safetensors wrap the system's error in their own."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < 2**16


def _size(path: Path) -> int:
    """Return the bytes in a file or in a folder's files; none where there is neither."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _marker(root: Path) -> Path:
    """Return the file that makes a folder a workspace."""
    return root / "workspace.json"
