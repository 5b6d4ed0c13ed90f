"""What can be wrong with a workspace, check by check; each says in a sentence what there is, and what to do.

Nothing here writes, and nothing loads torch: what takes the model is in `upkeep.doctor`.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from manners.audit.rules import rules
from manners.backup import record, snapshots
from manners.backup.take import last as last_backup
from manners.errors import MannersError
from manners.models import described
from manners.settings import BackupSettings, Settings
from manners.settings_load import load
from manners.store.sound import Soundness
from manners.types import VersionKind
from manners.workspace import INITIAL, Workspace

PASS, WARN, FAIL = "pass", "warn", "fail"
SKEW = timedelta(minutes=1)
"""What clocks of machines that share a record may differ by."""
OLD = timedelta(days=7)
"""Since when a backup that nobody takes on a schedule is an old one."""


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    verdict: str
    """`pass`, `warn` or `fail`; only the last makes `manners doctor` fail."""
    sentence: str


def settings(workspace: Workspace, overrides: Sequence[str] = ()) -> tuple[Check, Settings | None]:
    """Return whether the files that decide can be read, and the settings where they can."""
    try:
        found = load(workspace.toml, overrides).settings
        rules(workspace.root)
    except MannersError as error:
        return Check("settings", FAIL, str(error)), None
    return Check("settings", PASS, f"{workspace.toml.name} and the gate's rules can be read."), found


def permissions(workspace: Workspace, store: Soundness | None) -> Check:
    """Return whether the workspace can be written here, and the record read by its owner alone."""
    places = [workspace.root, workspace.models, workspace.runs]
    if locked := [place for place in places if place.is_dir() and not os.access(place, os.W_OK | os.X_OK)]:
        return Check("permissions", FAIL, f"{locked[0]} cannot be written: give this user the right to, or copy it.")
    if missing := [place for place in places if not place.is_dir()]:
        return Check("permissions", FAIL, f"{missing[0]} is not there: make that folder, or put a backup back.")
    if loose := [place for place in places if stat.S_IMODE(place.stat().st_mode) & stat.S_IWOTH]:
        return Check("permissions", FAIL, f"anybody can write to {loose[0]}: `chmod o-w {loose[0]}`.")
    if store is not None and store.open_to:
        file = workspace.root / store.open_to[0]
        return Check("permissions", FAIL, f"others can read {file}: `chmod 600 {file}`, or run any other command.")
    return Check("permissions", PASS, "The workspace can be written, and its record is its owner's alone.")


def database(workspace: Workspace, found: Soundness | MannersError) -> Check:
    """Return whether the record is sound, and its tables are those of this version."""
    if isinstance(found, MannersError):
        return Check("database", FAIL, str(found))
    if found.problem:
        said = f"{workspace.database} is damaged ({found.problem}): put a backup back with `manners restore`."
        return Check("database", FAIL, said)
    size = f"{found.size / 1e6:,.1f} MB"
    if not found.is_newest:
        said = "The database is sound, and of an older manners: the next command brings it up to date"
        return Check("database", WARN, f"{said}, after a copy of it ({size}).")
    return Check("database", PASS, f"The database is sound and up to date ({size}).")


def versions(workspace: Workspace, store: Soundness | None) -> Check:
    """Return whether what the record calls a version is there, can be read, and is what the last backup holds."""
    there = [name for kind in VersionKind for name in described.names(workspace, kind)]
    try:
        standing = [workspace.start(), *workspace.promoted()]
    except MannersError as error:
        return Check("versions", FAIL, str(error))
    gone = [name for name in dict.fromkeys(standing) if name != INITIAL and name not in there]
    if gone:
        said = f"{gone[-1]} was promoted, and {workspace.models / gone[-1]} is not there: put it back from a backup"
        return Check("versions", FAIL, f"{said}, or `manners models rollback`.")
    for name in there:
        try:
            described.describe(workspace, name)
        except MannersError as error:
            return Check("versions", FAIL, str(error))
    if changed := _changed(workspace, there):
        said = f"{changed[0]} is not what the last backup holds of it: the disk may be failing; put it back from there."
        return Check("versions", FAIL, said)
    recorded = () if store is None else tuple(name for name, _ in store.versions)
    missing = [name for name, path in (() if store is None else store.versions) if not (workspace.root / path).is_dir()]
    orphans = [name for name in there if store is not None and store.is_newest and name not in recorded]
    odd = [*(f"{n} is recorded, and its folder is gone" for n in missing), *(f"{n} is not recorded" for n in orphans)]
    if odd:
        said = "; ".join(odd)
        return Check("versions", WARN, f"{said}: put folders back from a backup; the next training records what is.")
    return Check("versions", PASS, f"{len(there)} version{'s' * (len(there) != 1)}, each with its folder and its row.")


def _changed(workspace: Workspace, names: Iterable[str]) -> list[Path]:
    """Return files of versions that differ from what the last backup holds; none where there is none to compare."""
    said = last_backup(workspace)
    if said is None:
        return []
    try:
        digests = snapshots.read(Path(said["path"])).files
    except MannersError:
        return []
    # The card and the checks of a version change when it is measured again; its weights and its description do not.
    files = [one for name in names for one in sorted((workspace.models / name).rglob("*.safetensors"))]
    kept = [(one, digests.get(one.relative_to(workspace.root).as_posix())) for one in files]
    return [one for one, digest in kept if digest is not None and snapshots.digest_of(one) != digest]


def clock(store: Soundness | None) -> Check:
    """Return whether this machine's clock goes on from where the record is."""
    if store is None or store.latest is None:
        return Check("clock", PASS, "There is nothing yet that this machine's clock could be held against.")
    now, latest = datetime.now(UTC), store.latest
    if latest - now > SKEW:
        said = f"This machine's clock says {now:%Y-%m-%d %H:%M} UTC, and the record has {latest:%Y-%m-%d %H:%M} already"
        return Check("clock", FAIL, f"{said}: set the clock right; what waits for a time waits too long.")
    return Check("clock", PASS, "This machine's clock goes on from where the record is.")


def backups(workspace: Workspace, chosen: BackupSettings) -> Check:
    """Return whether there is a backup, it is not an old one, and the last one could be put back."""
    rehearsed = record.rehearsal(workspace)
    if rehearsed is not None and not rehearsed.verified:
        said = f"The rehearsal of {rehearsed.at} could not put {rehearsed.backup} back ({rehearsed.problem})"
        return Check("backup", FAIL, f"{said}: take another with `manners backup`.")
    if failed := record.failure(workspace):
        return Check("backup", FAIL, f"The backup of {failed.at} failed ({failed.problem})")
    found = last_backup(workspace)
    if found is None:
        return Check("backup", WARN, "There is no backup: `manners backup DIR`, or set backup.into for one a day.")
    if not Path(found["path"]).is_dir():
        return Check("backup", WARN, f"The last backup, {found['path']}, is not there any more: take another.")
    age = datetime.now(UTC) - datetime.fromisoformat(found["made_at"])
    if age > (OLD if chosen.into is None else timedelta(hours=2 * chosen.every)):
        return Check("backup", WARN, f"The last backup is of {found['made_at']}: take another with `manners backup`.")
    again = "" if rehearsed is None else f", and one was put back to see that it can be on {rehearsed.at}"
    return Check("backup", PASS, f"The last backup is of {found['made_at']}{again}.")


def port(workspace: Workspace, chosen: Settings) -> Check:
    """Return whether the server could listen where it is to; a port that is taken costs it a step to the next."""
    number = chosen.serve.port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", number))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                said = f"Port {number} cannot be used ({error.strerror}): set serve.port to one above 1023."
                return Check("port", FAIL, said)
            said = f"Port {number} is in use, by this workspace's server or by another program"
            return Check("port", WARN, f"{said}: `manners serve` takes the next free one.")
    return Check("port", PASS, f"Port {number} is free.")


def failed(checks: Sequence[Check]) -> list[str]:
    """Return the names of those that failed."""
    return [check.name for check in checks if check.verdict == FAIL]
