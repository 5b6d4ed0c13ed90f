"""`manners restore`: a workspace as a backup holds it, without what was deleted or revoked since."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from manners import __version__, holder, restored
from manners.backup import snapshots
from manners.backup.snapshots import STORE, Snapshot
from manners.backup.take import backup
from manners.errors import MannersError, UsageError
from manners.settings_load import load
from manners.store import Store, deletions
from manners.store.copies import check_copy, load_copy, refuse_users, settle
from manners.store.deletions import Reapplied
from manners.store.quoting import quoting
from manners.store.revoked import Disabled, revoke_again, revoked
from manners.store.saying import UNREADABLE, without_examples, without_lines
from manners.store.schema import BEFORE
from manners.types import DELETED
from manners.workspace import FORMAT, Workspace, atomic_folder, atomic_write


@dataclass(frozen=True)
class Meanwhile:
    """What the workspace in the way knows, and what comes back must not undo."""

    deleted: frozenset[str] = frozenset()
    """Keys of the conversations and accounts that were."""
    secrets: frozenset[str] = frozenset()
    """Digests of the keys, sessions and links that have ended."""
    accounts: frozenset[Disabled] = frozenset()
    """Those that were disabled."""
    has_accounts: bool = False
    """Whether there ever were accounts: a store of before makes nobody the owner."""


def restore(named: Path, root: Path, database: str | None = None) -> dict[str, Any]:
    """Put a backup in place of the workspace in `root`, or into a new folder; return what came back, and what did not.

    What stands there is kept first, as one more backup. `database` names an empty PostgreSQL database for the store of
    a new folder.

    Raises MannersError where the workspace is served, trained in or open, holds other things, or the backup is damaged.
    """
    root = root.resolve()
    place = snapshots.find(named.expanduser().resolve(), root)
    snapshot = snapshots.read(place)
    folder = place.parent
    restored.finish(root)
    if database is not None:
        _refuse_taken(database, root)
    with _alone(root):
        url = _server(root) or database
        meanwhile, kept = _put_aside(root, folder)
        meanwhile = replace(
            meanwhile,
            deleted=meanwhile.deleted | snapshots.deleted_by_then(folder),
            has_accounts=bool(_marker(root).get("accounts")),
        )
        with atomic_folder(root / restored.READY) as draft:
            missing, applied = _make_ready(draft, place, snapshot, meanwhile, url)
            if url is None:
                refuse_users(root / STORE)
            else:
                load_copy(draft / STORE, url)
                (draft / STORE).unlink()
        restored.finish(root)
    workspace = Workspace.open(root)
    with closing(Store.open(workspace.database)) as store:
        verdicts, versions = sum(store.counts().verdicts.values()), store.counts().versions
    return {
        "path": str(root),
        "verdicts": verdicts,
        "versions": versions,
        "verified": not missing and (verdicts, versions) == (snapshot.verdicts, snapshot.versions),
        "from": str(place),
        "made_at": snapshot.made_at,
        "missing": [*missing, *_elsewhere(workspace)],
        "deleted_again": applied.conversations,
        "forgotten_again": applied.accounts,
        "learned_by": list(applied.learned_by),
        "kept": None if kept is None else str(kept),
    }


def _refuse_taken(database: str, root: Path) -> None:
    """Refuse a database that holds a store, and one for a workspace that has its own."""
    if Workspace.is_at(root):
        raise UsageError(f"{root} keeps its store where it is: leave out --database, or name a new folder.")
    with closing(Store.open_or_create(database)) as store:
        held = store.counts()
    if held.comparisons or held.responses or held.versions or any(held.prompts.values()):
        raise MannersError(f"{database} holds a store already: name an empty database.")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold a folder for the restore alone; raises MannersError where it is in use, or holds other things."""
    if root.exists() and not _is_ours(root) and (not root.is_dir() or any(_others(root))):
        raise MannersError(f"{root} already holds other things: name a workspace, or a new or an empty folder.")
    for one in (root / "models", root / "runs"):
        if one.is_symlink() or os.path.ismount(one):
            raise MannersError(
                f"{one} leads to another disk, and a restore puts a whole folder in its place: move the folder itself"
                " there, or restore into a new one with --workspace."
            )
    root.mkdir(parents=True, exist_ok=True)
    with holder.alone(root):
        yield


def _is_ours(root: Path) -> bool:
    """Return whether a folder is a workspace, or what is left of one."""
    return Workspace.is_at(root) or (root / STORE).is_file()


def _others(root: Path) -> Iterator[Path]:
    yield from (one for one in root.iterdir() if one.suffix not in (".lock", ".partial"))


def _server(root: Path) -> str | None:
    """Return the URL of the database that the workspace in the way keeps its store in, where that can be read."""
    url = _marker(root).get("database")
    return url if isinstance(url, str) else None


def _marker(root: Path) -> dict[str, Any]:
    """Return what the file says that makes a folder a workspace, where that can be read."""
    try:
        return dict(json.loads((root / "workspace.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _put_aside(root: Path, folder: Path) -> tuple[Meanwhile, Path | None]:
    """Keep what stands in a folder as one more backup; return what it knows, and where it is kept.

    A store that cannot be read is kept as `store.db.damaged`, and knows what stands beside it.
    """
    noted = frozenset(deletions.noted(root))
    if not _is_ours(root):
        return Meanwhile(noted), None
    workspace = Workspace(root, _server(root))  # as far as it can be read: what is damaged in it is no hindrance
    try:
        with closing(Store.open(workspace.database)) as store:
            secrets, accounts = revoked(store)
            meanwhile = Meanwhile(noted | deletions.deleted(store), frozenset(secrets), frozenset(accounts))
        if not os.access(folder, os.W_OK):
            raise MannersError(
                f"{folder} cannot be written, so what stands in {root} cannot be kept: restore into a new folder with"
                " --workspace."
            )
        return meanwhile, Path(backup(workspace, folder)["path"])
    except MannersError as error:
        if not _is_damage(error, folder, root, str(workspace.database)):
            raise
    if not (root / STORE).is_file():
        return Meanwhile(noted), None
    (root / STORE).replace(root / f"{STORE}.damaged")
    return Meanwhile(noted), root / f"{STORE}.damaged"


def _is_damage(error: MannersError, *places: Path | str) -> bool:
    """Return whether a store cannot be read; what places are called says nothing of it (`/srv/damaged-goods`)."""
    said = str(error)
    for place in sorted(map(str, places), key=len, reverse=True):
        said = said.replace(place, "")
    return any(word in said for word in ("damaged", "not a database", "holds no store", "There is no store"))


def _make_ready(
    draft: Path, place: Path, snapshot: Snapshot, meanwhile: Meanwhile, url: str | None
) -> tuple[list[str], Reapplied]:
    """Fill a folder with all that comes back; return the files that are missing, and what the deletions did."""
    if snapshots.digest_of(place / STORE) != snapshot.store_digest:
        raise MannersError(f"{place / STORE} is not what was written: use another backup.")
    snapshots.copy_private(place / STORE, draft / STORE)
    with closing(Store.open(draft / STORE)) as store:
        applied = deletions.apply_again(store, meanwhile.deleted)
        revoke_again(store, set(meanwhile.secrets), set(meanwhile.accounts))
    for before in draft.glob(f"{STORE}{BEFORE}*"):  # of before its tables were changed, with what is deleted again
        before.unlink()
    settle(draft / STORE, vacuum=True)
    check_copy(draft / STORE)
    missing = [name for name, digest in snapshot.files.items() if not snapshots.is_sound(place.parent, digest)]
    halved = {Path(name).parts[1] for name in missing if name.startswith("models/") and len(Path(name).parts) > 2}
    for name, digest in snapshot.files.items():
        parts = Path(name).parts
        if name in missing or (parts[0] == "models" and len(parts) > 2 and parts[1] in halved):
            continue  # a version comes back whole, or not at all
        if snapshots.is_passing(name):
            continue  # older backups hold it, and with it perhaps words that are deleted by now
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        snapshots.copy_private(place.parent / snapshots.OBJECTS / digest, draft / name)
    for name in ("models", "runs"):
        (draft / name).mkdir(exist_ok=True)
    _without_words(draft / "runs", applied.words)
    _blank_reasons(draft / "models", applied.words, meanwhile.deleted)
    _write_small(draft, meanwhile, url)
    return missing, applied


def _write_small(draft: Path, meanwhile: Meanwhile, url: str | None) -> None:
    """Write the record of deletions, and where the store is now."""
    if meanwhile.deleted:
        atomic_write(draft / deletions.FILE, deletions.written(meanwhile.deleted))
    said = {"format": FORMAT, "manners": __version__} | _marker(draft) | {"database": url}
    if meanwhile.has_accounts:
        said["accounts"] = True
    text = json.dumps({name: value for name, value in said.items() if value is not None})
    atomic_write(draft / "workspace.json", text + "\n")


def _without_words(runs: Path, words: frozenset[str]) -> None:
    """Take deleted texts out of what stages found out, as whoever deletes them in a workspace does.

    Here also out of curves, and out of what else lies in folders of runs: nobody is writing to it.
    """
    if not words:
        return
    for file in [*runs.rglob("*.json")]:
        without_examples(file, words)
    for file in [*runs.rglob("*.jsonl")]:
        without_lines(file, words)


def _blank_reasons(models: Path, words: frozenset[str], deleted: frozenset[str]) -> None:
    """Put a tombstone in the place of the reasons in versions' records that say these words, or that are a person's who
    is forgotten; the cards that showed them go, and are written anew when something is measured."""
    people, quotes = {" ".join(key.split()[:2]) for key in deleted if " " in key}, quoting(words)
    for file in models.glob("*/checks.json"):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            found = [one for name in ("overrides", "reviews") for one in record.get(name, ())]
            gone = [one for one in found if one["by"] in people or quotes(one["reason"])]
        except (*UNREADABLE, KeyError, TypeError, AttributeError):
            continue  # damaged: whoever reads it is told
        for one in gone:
            one["reason"] = DELETED
        if gone:
            file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            for card in (file.with_name("card.json"), file.with_name("card.html")):
                card.unlink(missing_ok=True)


def _elsewhere(workspace: Workspace) -> list[str]:
    """Return what a workspace needs that is in no backup, and not on this machine."""
    try:
        name = load(workspace.toml).settings.model.name
    except MannersError as error:
        return [str(error)]
    absolute = Path(name).expanduser()
    return [f"model.name = {name}"] if absolute.is_absolute() and not absolute.exists() else []
