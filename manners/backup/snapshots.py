"""How backups lie in their folder.

    DIR/backup-7/backup.json   what the backup holds: the digest of each file and of the store, and what was deleted
    DIR/backup-7/store.db      the whole record, a SQLite file, whichever database it was made of
    DIR/objects/SHA256         files of the workspace, each kept once under the digest of its content

A backup that has its name is whole. The next one copies only files whose content is not there yet.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from manners.errors import MannersError
from manners.facts import from_facts
from manners.workspace import scratch_folder

OBJECTS = "objects"
MANIFEST = "backup.json"
STORE = "store.db"
PASSING = ("runs/step/", "runs/judge-answers.jsonl")
"""What a step that was begun on the page has said, and what a stopped `manners judge` was answered: they may say or
betray words, and who deletes these takes them along. They are of a process, not of the workspace, and in no backup."""
FORMAT = 1
"""Raised whenever an older manners could no longer read a backup."""


@dataclass(frozen=True)
class Snapshot:
    """What a backup holds, as backup.json says it."""

    format: int = FORMAT
    manners: str = ""
    made_at: str = ""
    """UTC, by the clock of the machine; which backup is the latest, its number says."""
    store_digest: str = ""
    verdicts: int = 0
    versions: int = 0
    files: dict[str, Any] = field(default_factory=dict)
    """Digest of each file, by its path in the workspace."""
    deleted: tuple[str, ...] = ()
    """Keys of the conversations and accounts that were deleted by then."""
    workspace: str = ""
    """Where the workspace was: several may keep theirs in one folder. Old backups do not say."""
    spoilt: tuple[str, ...] = ()
    """Weights that were damaged or gone by then, as an earlier backup told: nothing is held against these."""


def all_of(folder: Path) -> list[Path]:
    """Return the backups in a folder, oldest first; a folder of somebody's that is only called like one is none."""
    return [one for one in _named(folder) if (one / MANIFEST).is_file()]


def next_place(folder: Path) -> Path:
    """Return the folder of the next backup."""
    there = _named(folder)
    return folder / f"backup-{int(there[-1].name.removeprefix('backup-')) + 1 if there else 1}"


def of_workspace(folder: Path, workspace: Path) -> list[Path]:
    """Return the backups in a folder that say they are of a workspace, oldest first; a damaged one says nothing."""
    found = []
    for one in all_of(folder):
        with suppress(MannersError):
            found += [one] if read(one).workspace == str(workspace.resolve()) else []
    return found


def _named(folder: Path) -> list[Path]:
    found = [one for one in folder.glob("backup-*") if re.fullmatch(r"backup-\d{1,15}", one.name) and one.is_dir()]
    return sorted(found, key=lambda one: int(one.name.removeprefix("backup-")))


def moment(said: object) -> datetime | None:
    """Return a moment that a file names, which is UTC unless it says another zone; None where it names none."""
    try:
        found = datetime.fromisoformat(str(said))
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def find(named: Path, workspace: Path) -> Path:
    """Return the backup that a path names: itself, or the latest in the folder of what `workspace` may be.

    That is not one which says that it is of another workspace, where any says that it is of this one. Raises
    MannersError where there is none, and where nobody can tell which workspace is meant.
    """
    if (named / MANIFEST).is_file():
        return named
    there = all_of(named)
    if not there:
        raise MannersError(f"{named} holds no backup: name a folder that `manners backup` has written to.")
    of, mine = {one: _whose(one) for one in there}, str(workspace.resolve())
    others = {whose for whose in of.values() if whose not in ("", mine)}
    if mine in of.values():
        return [one for one in there if of[one] not in others][-1]
    if len(others) > 1:
        raise MannersError(f"{named} holds backups of {len(others)} workspaces: name one of them, as {there[-1]}.")
    return there[-1]


def _whose(backup: Path) -> str:
    """Return the workspace that a backup is of; empty where it does not say, as where it is damaged."""
    with suppress(MannersError):
        return read(backup).workspace
    return ""


def read(backup: Path) -> Snapshot:
    """Read what a backup holds; raises MannersError where the file does not say, or a newer manners wrote it."""
    file = backup / MANIFEST
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MannersError(f"{file} is damaged ({error}): use another backup.") from error
    found = from_facts(Snapshot, facts, str(file), "use another backup")
    if found.format > FORMAT:
        raise MannersError(f"{backup} was written by a newer manners: upgrade manners to read it.")
    if not all(isinstance(digest, str) and _is_inside(name) for name, digest in found.files.items()):
        raise MannersError(f"{file} is damaged (it names files outside a workspace): use another backup.")
    return found


def is_another(folder: Path, backup: Path, held: Snapshot) -> bool:
    """Return whether the version in a folder is another one than a backup holds of that name: made at another time.

    A description that cannot be read says nothing.
    """
    files = folder / "version.json", backup.parent / OBJECTS / held.files.get(f"models/{folder.name}/version.json", "")
    try:
        now, then = (json.loads(file.read_text(encoding="utf-8"))["created_at"] for file in files)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return bool(now != then)


def deleted_by_then(folder: Path) -> set[str]:
    """Return what any backup in a folder knows to be deleted; one that cannot be read knows nothing."""
    found = set[str]()
    for backup in all_of(folder):
        try:
            found |= set(read(backup).deleted)
        except MannersError:
            continue
    return found


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the right to write to a folder of backups, which is made if it lacks.

    Raises MannersError where it holds other things, cannot be written, or another backup is being written to it.
    """
    ours = (OBJECTS, "backup.lock")
    known = not folder.exists() or ((folder / OBJECTS).is_dir() and bool(all_of(folder)))
    if not known and (not folder.is_dir() or any(one.name not in ours for one in folder.iterdir())):
        raise MannersError(f"{folder} already holds other things: name a new or an empty folder for backups.")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / OBJECTS).mkdir(exist_ok=True, mode=0o700)
        lock = FileLock(folder / "backup.lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise MannersError(f"another backup is being written to {folder}: wait for it to end.") from None
    except OSError as error:
        raise MannersError(f"cannot write a backup to {folder} ({error.strerror}): name another folder.") from error
    try:
        yield
    finally:
        lock.release()


def keep(file: Path, folder: Path) -> tuple[str, int]:
    """Keep a file in a folder of backups; return its digest, and how many bytes were copied for it.

    What is there already under that digest is read, and copied anew if it is no longer what it was.
    """
    digest = digest_of(file)
    if is_sound(folder, digest):
        return digest, 0
    with scratch_folder(folder / OBJECTS / digest) as scratch:
        draft = scratch / "object"
        copy_private(file, draft)
        digest = digest_of(draft)  # of what was copied: a file that grows is kept as it was read
        draft.replace(folder / OBJECTS / digest)
    return digest, (folder / OBJECTS / digest).stat().st_size


def is_sound(folder: Path, digest: str) -> bool:
    """Return whether a file is kept under its digest, and is what it was."""
    kept = folder / OBJECTS / digest
    return kept.is_file() and digest_of(kept) == digest


def is_passing(name: str) -> bool:
    """Return whether a file, by its path in the workspace, is of a process that was at work there."""
    return name.startswith(PASSING)


def copy_private(source: Path, target: Path) -> None:
    """Copy a file to the disk, for its owner alone to read."""
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as written, source.open("rb") as read_from:
        shutil.copyfileobj(read_from, written, 1 << 20)
        written.flush()
        os.fsync(written.fileno())


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_inside(name: str) -> bool:
    parts = Path(name).parts
    return bool(parts) and not Path(name).is_absolute() and ".." not in parts
