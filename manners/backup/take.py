"""`manners backup`: the record and the versions as they are at one moment, while everything goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from manners import __version__
from manners.backup import snapshots
from manners.backup.snapshots import MANIFEST, STORE, Snapshot
from manners.errors import MannersError
from manners.restored import STALE
from manners.store import Store, cases, deletions
from manners.store.copies import check_copy, write_copy
from manners.workspace import Workspace, atomic_folder, atomic_write, clear_partials, discard

FILES = (
    "manners.toml",
    "gate.toml",
    "constitution.md",
    "workspace.json",
    "guidelines.md",
    "models/current.json",
    "models/day",
    deletions.FILE,
)
"""What decides how the workspace behaves, beside its versions and runs."""
KNOWN = (
    *FILES,
    *STALE,
    "audit",
    "models",
    "runs",
    "store.db",
    "backup.json",
    "upkeep.json",
    "serve.address",
    "draws.secret",
)
"""What nobody is told of where it is left out: a backup has it otherwise, it is of a process, or it is written anew."""
LAST = "backup.json"
"""In the workspace: when the last backup was."""


def backup(workspace: Workspace, folder: Path) -> dict[str, Any]:
    """Write a backup of a workspace that may be in use, verify it, and return what it holds.

    Raises MannersError where the store is damaged, or the folder cannot be written or is in the workspace.
    """
    workspace, folder = replace(workspace, root=workspace.root.resolve()), folder.expanduser().resolve()
    if folder == workspace.root or workspace.root in folder.parents:
        raise MannersError(
            f"{folder} is in the workspace itself, where nothing is to be left of what is deleted later: name a folder"
            " elsewhere, best on another disk."
        )
    with snapshots.writing(folder):
        clear_partials(folder)
        found = _write(workspace, folder)
    if os.access(workspace.root, os.W_OK):
        said = {name: found[name] for name in ("path", "verdicts", "versions", "verified")}
        with suppress(MannersError, OSError):  # a disk that is full takes no note, and the backup stands
            atomic_write(workspace.root / LAST, json.dumps({"made_at": _now(), **said}) + "\n")
    return found


def last(workspace: Workspace) -> dict[str, Any] | None:
    """Return when the last backup was, where, and of how much; None where there was none, or nobody can say."""
    try:
        said = json.loads((workspace.root / LAST).read_text(encoding="utf-8"))
        if snapshots.moment(said["made_at"]) is None:
            return None
        return {"made_at": str(said["made_at"]), "path": str(said["path"]), "verdicts": int(said["verdicts"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(workspace: Workspace, folder: Path) -> dict[str, Any]:
    place = snapshots.next_place(folder)
    copied = 0
    with atomic_folder(place) as draft:
        small, listed = _copy(workspace, draft / STORE)
        with closing(Store.open(draft / STORE)) as store:
            recorded = {version.name for version in store.versions()}
            deleted = deletions.deleted(store) | deletions.noted(workspace.root)
        verdicts, versions = check_copy(draft / STORE)  # with what an import had decided to add
        files: dict[str, str] = {}
        for name, content in small.items():
            (draft / "small").write_bytes(content)
            files[name], size = snapshots.keep(draft / "small", folder)
            copied += size
        (draft / "small").unlink(missing_ok=True)
        gone = set[tuple[str, ...]]()
        for file in _files(workspace, [n for n in _version_names(workspace) if n in listed or n in recorded]):
            try:
                digest, size = snapshots.keep(file, folder)
            except FileNotFoundError:
                if file.is_relative_to(workspace.models):
                    gone.add(file.relative_to(workspace.root).parts[:2])
                continue  # a run that ended meanwhile has cleared it away, or somebody a version
            files[file.relative_to(workspace.root).as_posix()] = digest
            copied += size
        # A version is in a backup whole, or not at all, also one that was removed while it was copied.
        versions_there = {Path(name).parts[:2] for name in files if name.startswith("models/") and name not in FILES}
        gone |= {parts for parts in versions_there if not workspace.root.joinpath(*parts).is_dir()}
        files = {name: one for name, one in files.items() if Path(name).parts[:2] not in gone or name in FILES}
        spoilt = _spoilt(workspace, folder, files)
        digest = snapshots.digest_of(draft / STORE)
        snapshot = Snapshot(
            manners=__version__,
            made_at=_now(),
            store_digest=digest,
            verdicts=verdicts,
            versions=versions,
            files=files,
            deleted=tuple(sorted(deleted)),
            workspace=str(workspace.root),
            spoilt=tuple(spoilt),
        )
        (draft / MANIFEST).write_text(json.dumps(asdict(snapshot), indent=1) + "\n", encoding="utf-8")
        for one in draft.iterdir():
            one.chmod(0o600)
        draft.chmod(0o700)
    try:
        _verify(place, folder)
    except MannersError:
        discard(place)  # else it would count among those that stay, and a sound one go for it
        raise
    return {
        "path": str(place),
        "verdicts": verdicts,
        "versions": versions,
        "verified": True,
        "files": len(files),
        "copied_bytes": copied + (place / STORE).stat().st_size,
        "left_out": sorted(_left_out(workspace)),
        "spoilt": spoilt,
    }


def _spoilt(workspace: Workspace, folder: Path, files: Mapping[str, str]) -> list[str]:
    """Return the weights of versions that are there and are not what the backups of the workspace so far hold.

    Weights are written once: what differs, or is gone beside the rest of its version, is damage. What a backup itself
    says to have been damaged by then is nothing to hold them against: they may have been put right since. Nor is
    another version of that name: after a restore, or in a new workspace in its place, names are given once more.
    """
    there = {Path(name).parts[1] for name in files if name.startswith("models/")}
    found = set[str]()
    for one in snapshots.of_workspace(folder, workspace.root):
        earlier = snapshots.read(one)
        for name in earlier.files.keys() - set(earlier.spoilt):
            parts = Path(name).parts
            weights = parts[0] == "models" and name.endswith(".safetensors") and parts[1] in there
            differs = weights and files.get(name) != earlier.files[name]
            if differs and not snapshots.is_another(workspace.models / parts[1], one, earlier):
                found.add(name)
    return sorted(found)


def _verify(place: Path, folder: Path) -> None:
    """Read all of a backup again; raises MannersError where the disk does not hold what was written."""
    snapshot = snapshots.read(place)
    bad = [name for name, digest in snapshot.files.items() if not snapshots.is_sound(folder, digest)]
    if snapshots.digest_of(place / STORE) != snapshot.store_digest:
        bad.append(STORE)
    if bad:
        raise MannersError(
            f"{place} was not what was written ({bad[0]} differs), and is removed: check the disk, and use another."
        )
    check_copy(place / STORE)


def _copy(workspace: Workspace, store: Path) -> tuple[dict[str, bytes], list[str]]:
    """Copy the record; return the small files with what stages found out, and the versions, from just before.

    What they name, the copy knows: a run that ends meanwhile is not done in it. Where something was deleted meanwhile,
    whose words they may hold, they are read again.
    """
    while True:
        noted = deletions.noted(workspace.root)
        small = dict[str, bytes]()
        for file in (*(workspace.root / name for name in FILES), *sorted(workspace.runs.glob("[!.]*.json"))):
            with suppress(FileNotFoundError):
                small[file.relative_to(workspace.root).as_posix()] = file.read_bytes()
        listed = _version_names(workspace)
        write_copy(workspace.database, store)
        if deletions.noted(workspace.root) == noted:
            return small, listed
        store.unlink()


def _version_names(workspace: Workspace) -> list[str]:
    return sorted(one.name for one in workspace.models.glob("[!.]*") if one.is_dir())


def _files(workspace: Workspace, versions: Iterable[str]) -> Iterator[Path]:
    """Yield the files of the versions, and the curves of runs, not their facts nor checkpoints of unfinished ones."""
    roots = [*(workspace.models / name for name in versions), workspace.runs]
    for root in roots:
        for file in sorted(root.rglob("*")):
            inside = file.relative_to(workspace.root)
            parts = inside.parts
            hidden = any(part.startswith(".") or part.startswith("checkpoint-") for part in parts)
            facts = file.parent == workspace.runs and file.suffix == ".json"
            if file.is_file() and not hidden and not facts and not snapshots.is_passing(inside.as_posix()):
                yield file


def _left_out(workspace: Workspace) -> Iterator[str]:
    """Yield what lies in the workspace and is in no backup."""
    for one in workspace.root.iterdir():
        known = one.name in KNOWN or one.name.startswith(("store.db", ".")) or one.suffix == ".lock"
        if not known:
            yield one.name
    for one in workspace.root.glob("audit/*"):
        if one.relative_to(workspace.root) != cases.FILE:
            yield str(one.relative_to(workspace.root))
    yield from (str(one.relative_to(workspace.root)) for one in workspace.runs.glob("*/checkpoint-*"))
    yield from (name.rstrip("/") for name in snapshots.PASSING if (workspace.root / name).exists())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
