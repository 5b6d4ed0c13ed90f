"""What can be wrong with a workspace, check by check; each says in a sentence what there is, and what to do.

Nothing here writes, and nothing loads torch: what takes the model is in `upkeep.doctor`.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from manners.audit import card, gate
from manners.audit.rules import FILE as RULES
from manners.audit.rules import rules
from manners.backup import record, snapshots
from manners.backup.record import Rehearsal
from manners.backup.snapshots import OBJECTS, STORE, Snapshot
from manners.backup.take import LAST
from manners.backup.take import last as last_backup
from manners.errors import MannersError
from manners.errors import described as fault
from manners.models import described, weight_files
from manners.partials import left_behind
from manners.restored import READY
from manners.settings import BackupSettings, Settings
from manners.settings_load import load
from manners.store.sound import Soundness
from manners.workspace import INITIAL, Workspace

PASS, WARN, FAIL = "pass", "warn", "fail"
SKEW = timedelta(minutes=1)
"""What clocks of machines that share a record may differ by."""
OLD = timedelta(days=7)
"""Since when a backup that nobody takes on a schedule is an old one."""
CHANGING = (gate.RECORD, card.JSON, card.HTML)
"""What changes in a version's folder when it is measured again; its weights and its description do not."""
Kept = tuple[Path, Snapshot]
"""A backup, and what it holds."""


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    verdict: str
    """`pass`, `warn` or `fail`; only the last makes `manners doctor` fail."""
    sentence: str


def said(error: Exception) -> str:
    """Return what is told of a check that could not be made: of a fault of ours its kind and place, and no words."""
    if isinstance(error, MannersError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used ({error.strerror}): look at what it is, or put it back from a backup."
    return f"This check came to no end ({fault(error)}): something in the workspace is not what it should be."


def guarded(names: Sequence[str], look: Callable[[], Iterable[Check]]) -> list[Check]:
    """Return the checks that a look makes, in the order of their names; where it stops, one fails and the rest warn."""
    found: list[Check] = []
    try:
        for check in look():
            found.append(check)  # one by one, so that what was found stays
    except Exception as error:
        here, *rest = names[len(found) :]
        found.append(Check(here, FAIL, said(error)))
        found += [Check(name, WARN, f"Cannot tell as long as {here} fails.") for name in rest]
    return found


def opened(root: Path) -> tuple[Check, Workspace]:
    """Return whether a folder can be opened as a workspace, and it, as it is: nothing is cleared away or finished.

    Raises MannersError where there is none, nor what is left of one.
    """
    workspace, problem = Workspace(root), ""
    try:
        workspace = Workspace.look_at(root)
    except (MannersError, OSError) as error:
        if not any(os.path.lexists(root / name) for name in ("workspace.json", READY)):
            raise
        problem = said(error)
    if (root / READY).is_dir():
        what = f"A restore into {root} was stopped before its end, and all else is as it was before"
        return Check("workspace", WARN, f"{what}: any other command finishes it, as `manners status`."), workspace
    if problem:
        return Check("workspace", FAIL, problem), workspace
    if left := list(left_behind(root)):
        what = f"{left[0]} is half-written ({len(left)} such), by a process that is not there any more"
        return Check("workspace", WARN, f"{what}: any other command removes it, as `manners status`."), workspace
    return Check("workspace", PASS, f"{root} can be opened, and nothing in it waits to be finished."), workspace


def _refuse_dead_link(file: Path) -> None:
    """Refuse a link that leads nowhere: what is there then is read as if it were not."""
    if os.path.lexists(file) and not file.exists():
        raise MannersError(f"{file} is a link that leads nowhere: put the file itself there, or remove it.")


def settings(workspace: Workspace, overrides: Sequence[str] = ()) -> tuple[Check, Settings | None]:
    """Return whether the files that decide can be read, and the settings where they can."""
    try:
        found = load(workspace.toml, overrides).settings
        rules(workspace.root)
        for file in (workspace.toml, workspace.root / RULES):
            _refuse_dead_link(file)
    except Exception as error:
        return Check("settings", FAIL, said(error)), None
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
    """Return whether each version is there with its weights, and is what the record and the last backup know of it."""
    there = described.every(workspace)
    try:
        _refuse_dead_link(workspace.standing_file)
        lost = _lost(workspace)
    except MannersError as error:
        return Check("versions", FAIL, str(error))
    if lost:
        return Check("versions", FAIL, lost)
    kept = _kept(workspace)
    damage = [*_damaged(workspace), *_changed(workspace, kept)]
    if damage:
        more = f" ({len(damage) - 1} more are not right.)" if len(damage) > 1 else ""
        return Check("versions", FAIL, f"{damage[0]}{more}")
    odd = [*_forgotten(workspace, store, kept), *_unknown(workspace, store, there)]
    if odd:
        return Check("versions", WARN, f"{'; '.join(odd)}.")
    return Check("versions", PASS, f"{len(there)} version{'s' * (len(there) != 1)}, each with its weights and its row.")


def _lost(workspace: Workspace) -> str:
    """Return which version is gone that was promoted or that learning starts from, the newest; empty where none is.

    To go back is a remedy for the current one alone: from another it would take back what is sound.
    """
    start, promoted = workspace.start(), workspace.promoted()
    gone = [name for name in (start, *promoted) if name != INITIAL and not _has_folder(workspace, name)]
    if not gone:
        return ""
    name = gone[-1]
    what = f"{name} was promoted" if name in promoted else f"learning starts from {name}"
    back = ", or `manners models rollback`" if name == workspace.current_policy() and promoted else ""
    return f"{what}, and {workspace.models / name} is not there: put it back from a backup{back}."


def _has_folder(workspace: Workspace, name: str) -> bool:
    return described.NUMBERED.fullmatch(name) is not None and (workspace.models / name).is_dir()


def _damaged(workspace: Workspace) -> Iterator[str]:
    """Yield what is wrong with a version by itself: no description or a damaged one, or weights that are not there."""
    for folder in sorted(workspace.models.glob("[!.]*")):
        if not described.NUMBERED.fullmatch(folder.name):
            continue
        if not (folder / "version.json").is_file():
            yield f"{folder} has no version.json: put it back from a backup, or move {folder.name} away."
            continue
        try:
            weight_files.check(workspace, described.describe(workspace, folder.name))
        except Exception as error:  # the next one may be damaged too
            yield said(error)


def _changed(workspace: Workspace, kept: Kept | None) -> Iterator[str]:
    """Yield what of a version that is there differs from what the last backup holds, or is gone.

    What had been damaged by then is held against an earlier one, as the last says: it is so as long as nothing changes.
    """
    if kept is None:
        return
    place, held = kept
    for name in dict.fromkeys([*held.files, *held.spoilt]):
        parts, file, digest = Path(name).parts, workspace.root / name, held.files.get(name)
        if parts[0] != "models" or len(parts) < 3 or parts[-1] in CHANGING:
            continue
        folder = workspace.models / parts[1]
        if not folder.is_dir() or snapshots.is_another(folder, place, held):
            continue
        if name in held.spoilt:
            if not file.is_file() or snapshots.digest_of(file) == digest:
                what = f"{file} is not what an earlier backup holds of it"
                yield f"{what}: the disk may be failing; put it back from there."
        elif not file.is_file():
            yield f"{file} is gone, and the last backup holds it: put it back from there."
        elif snapshots.digest_of(file) != digest:
            yield f"{file} is not what the last backup holds of it: the disk may be failing; put it back from there."


def _forgotten(workspace: Workspace, store: Soundness | None, kept: Kept | None) -> Iterator[str]:
    """Yield what was promoted where the workspace does not say any more that anything was."""
    if os.path.lexists(where := workspace.standing_file):
        return
    known = [*(store.promoted if store else ()), *_promoted_by(workspace, kept)]
    if known:
        yield f"{known[-1]} was promoted once, and {where}, which says what is, is not there: put it back from a backup"


def _promoted_by(workspace: Workspace, kept: Kept | None) -> list[str]:
    """Return what had been promoted by the last backup, as far as that can be read."""
    if kept is None:
        return []
    place, held = kept
    name = workspace.standing_file.relative_to(workspace.root).as_posix()
    with suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads((place.parent / OBJECTS / held.files[name]).read_text(encoding="utf-8"))
        return [str(name) for name in said["history"] or [said.get("start", INITIAL)] if name != INITIAL]
    return []


def _unknown(workspace: Workspace, store: Soundness | None, there: Sequence[str]) -> Iterator[str]:
    """Yield folders that are no version, versions that the record does not know, and those that it alone knows."""
    for folder in sorted(workspace.models.glob("[!.]*")):
        if folder.is_dir() and not described.NUMBERED.fullmatch(folder.name):
            yield f"{folder} is no version, for it is not called as one (policy-3): move it out of there"
    recorded = () if store is None else store.versions
    gone = [name for name, path in recorded if not (workspace.root / path).is_dir()]
    known = {name for name, _ in recorded}
    orphans = [name for name in there if store is not None and store.is_newest and name not in known]
    odd = [*(f"{n} is recorded, and its folder is gone" for n in gone), *(f"{n} is not recorded" for n in orphans)]
    if odd:
        yield f"{'; '.join(odd)}: put folders back from a backup; the next training records what is"


def _kept(workspace: Workspace) -> Kept | None:
    """Return the last backup with what it holds; None where there is none that can be read, as another check says."""
    if (found := last_backup(workspace)) is None:
        return None
    place = Path(found["path"])
    with suppress(MannersError, OSError):
        return place, snapshots.read(place)
    return None


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
    """Return whether there is a backup, all that it says it holds is there, it is not old, and could be put back."""
    rehearsed = record.rehearsal(workspace)
    again = "" if rehearsed is None else f", and one was put back to see that it can be on {rehearsed.at}"
    anew = "take and rehearse another with `manners backup DIR --rehearse`"
    if rehearsed is not None and snapshots.moment(rehearsed.at) is None:
        return Check("backup", FAIL, f"{record.FILE} does not say when the last rehearsal was: {anew}.")
    if rehearsed is not None and not rehearsed.verified:
        said = f"The rehearsal of {rehearsed.at} could not put {rehearsed.backup} back ({rehearsed.problem})"
        return Check("backup", FAIL, f"{said}: {anew}.")
    if failed := record.failure(workspace):
        return Check("backup", FAIL, f"The backup of {failed.at} failed ({failed.problem})")
    found = last_backup(workspace)
    if found is None:
        if os.path.lexists(file := workspace.root / LAST):
            return Check("backup", FAIL, f"{file} does not say where the last backup is: take another.")
        return Check("backup", WARN, "There is no backup: `manners backup DIR`, or set backup.into for one a day.")
    place = Path(found["path"])
    if not place.parent.is_dir():
        return Check("backup", WARN, f"{place.parent}, where the last backup is, is not there: is its disk connected?")
    try:
        if lacking := next(_lacking(place, snapshots.read(place)), ""):
            what = f"The last backup, {place}, cannot be put back ({lacking})"
            return Check("backup", FAIL, f"{what}: take another with `manners backup`.")
    except MannersError as error:
        return Check("backup", FAIL, f"The last backup, {place}, cannot be put back: {error}")
    age = _age(found["made_at"], chosen, again)
    return (_rehearsed(rehearsed, chosen) or age) if age.verdict == PASS else age


def _rehearsed(rehearsed: Rehearsal | None, chosen: BackupSettings) -> Check | None:
    """Return that a restore was rehearsed too long ago, where it is to be now and then; None where it was not."""
    at = snapshots.moment(rehearsed.at) if rehearsed else None
    if at is None or chosen.into is None or not chosen.rehearse:
        return None
    if timedelta(0) <= datetime.now(UTC) - at + SKEW <= timedelta(days=2 * chosen.rehearse) + SKEW:
        return None
    what = f"The last backup that was put back to see that it can be is of {at:%Y-%m-%d %H:%M} UTC"
    return Check("backup", WARN, f"{what}: `manners backup DIR --rehearse`, or let `manners serve` run.")


def _lacking(place: Path, snapshot: Snapshot) -> Iterator[str]:
    """Yield what a backup says it holds and does not: weights are looked at by their headers, all else is read."""
    if not (place / STORE).is_file() or snapshots.digest_of(place / STORE) != snapshot.store_digest:
        yield f"{STORE} is not what was written"
    for name, digest in snapshot.files.items():
        kept = place.parent / OBJECTS / digest
        if not kept.is_file():
            yield f"{name} is not there"
        elif not name.endswith(".safetensors"):
            if snapshots.digest_of(kept) != digest:
                yield f"{name} is not what was written"
        elif what := weight_files.wrong(kept):
            yield f"{name} {what}"


def _age(made_at: str, chosen: BackupSettings, again: str) -> Check:
    """Return whether the last backup, which is there, is of the last days, and not of those to come."""
    made = snapshots.moment(made_at)
    if made is None:
        return Check("backup", FAIL, f"{LAST} does not say when the last backup was: take another.")
    age = datetime.now(UTC) - made
    if age < -SKEW:
        what = f"The last backup says that it is of {made:%Y-%m-%d %H:%M} UTC, which is still to come"
        return Check("backup", FAIL, f"{what}: set the clock right, and take another with `manners backup`.")
    if age > (OLD if chosen.into is None else timedelta(hours=2 * chosen.every)):
        return Check("backup", WARN, f"The last backup is of {made_at}: take another with `manners backup`.")
    return Check("backup", PASS, f"The last backup is of {made_at}{again}.")


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
