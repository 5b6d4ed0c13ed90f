"""What a server does beside serving: backups on a schedule, old ones removed, and a restore rehearsed now and then.

There is no schedule that is kept anywhere: once a minute it looks at when the last of each was, and one pure function
decides. A clock that was set back makes both due.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from manners.backup import record, snapshots
from manners.backup.record import Failure, Rehearsal
from manners.backup.restore import restore
from manners.backup.take import backup
from manners.backup.take import last as last_backup
from manners.backup.thin import thin
from manners.errors import MannersError, described
from manners.logs import fail
from manners.settings import BackupSettings
from manners.store import Store, audit
from manners.workspace import Workspace, scratch_folder

LOOK = 60.0
"""Seconds between two looks."""
AGAIN = timedelta(hours=1)
"""After which a backup or a rehearsal that failed is tried once more."""
BAD = ("backup: failed", "cannot be put back", "is not what an earlier backup holds")
"""What says of a sentence that something is wrong."""


def follow(workspace: Workspace, chosen: BackupSettings, ended: threading.Event) -> None:
    """Do what is due, and look again, until the event is set; what fails is said, kept, and tried again later."""
    pause = LOOK
    while chosen.into is not None and not ended.wait(pause):
        pause = LOOK
        try:
            for sentence in look(workspace, chosen):
                if any(bad in sentence for bad in BAD):
                    fail(sentence)
                else:
                    print(sentence, file=sys.stderr)
        except Exception as error:  # also where nothing can be kept: a full disk ends no schedule
            pause = AGAIN.total_seconds()
            fail(f"backup: nothing could be looked at, tried again in an hour: {described(error)}")


def look(workspace: Workspace, chosen: BackupSettings) -> list[str]:
    """Take a backup if one is due, then rehearse a restore if that is; return what is to be said of them."""
    if chosen.into is None:
        return []
    folder, said = Path(chosen.into).expanduser(), list[str]()
    failure = record.failure(workspace)
    failed = failure.at if failure and failure.into in ("", str(folder)) else None
    if is_due(_last(workspace, folder), failed, timedelta(hours=chosen.every), _now()):
        said.append(_tried(lambda: _backup(workspace, folder, chosen.keep), workspace, folder))
    rehearsed = record.rehearsal(workspace)
    failed_at = rehearsed.at if rehearsed and not rehearsed.verified else None
    at = rehearsed.at if rehearsed else None
    if chosen.rehearse and _last(workspace, folder) and is_due(at, failed_at, timedelta(days=chosen.rehearse), _now()):
        said.append(rehearse(workspace, folder).sentence)
    return said


def is_due(last: str | None, failed: str | None, every: timedelta, now: datetime) -> bool:
    """Return whether something is to be done again: never done, done too long ago, or in what is the future now.

    What `failed` since waits an hour. Moments are in ISO 8601, UTC; what is none was never.
    """
    since = {name: now - at for name, said in (("last", last), ("failed", failed)) if (at := snapshots.moment(said))}
    if "failed" in since:
        return not timedelta(0) <= since["failed"] < AGAIN
    return "last" not in since or not timedelta(0) <= since["last"] < every


def rehearse(workspace: Workspace, folder: Path) -> Rehearsal:
    """Put the latest backup of a folder back into a scratch folder there, see whether all of it came, and keep that.

    The scratch folder is its owner's alone, and is gone afterwards; after a kill, with the next backup.
    """
    begun = time.monotonic()
    place, verdicts, versions = folder, 0, 0
    try:
        place = snapshots.find(folder, workspace.root)
        with scratch_folder(folder / "rehearsal") as scratch:
            scratch.chmod(0o700)
            found = restore(place, scratch)
        verdicts, versions = found["verdicts"], found["versions"]
        problem = "" if found["verified"] else f"missing: {', '.join(found['missing'][:3]) or 'rows of the record'}"
    except (MannersError, OSError) as error:
        problem = str(error)
    except Exception as error:  # what cannot be foreseen is the very thing that is rehearsed for; it may say words
        problem = described(error)
    made = Rehearsal(
        at=_now().isoformat(timespec="seconds"),
        backup=str(place),
        verdicts=verdicts,
        versions=versions,
        verified=not problem,
        problem=problem,
        seconds=round(time.monotonic() - begun, 3),
    )
    record.keep(workspace, rehearsal=made)
    return made


def _backup(workspace: Workspace, folder: Path, keep: int) -> str:
    made = backup(workspace, folder)
    with closing(Store.open(workspace.database)) as store:
        audit.record(store, audit.Deed(audit.Event.EXPORTED, about="backup"))
    holds = f"backup: {made['path']} holds {made['verdicts']} verdicts and {made['versions']} versions"
    if made["spoilt"]:
        return f"{holds}; {spoilt(made['spoilt'])}"
    gone = thin(folder, keep, workspace.root)
    return f"{holds}; {gone.backups} older ones removed, with {gone.size:,} bytes" if gone.backups else holds


def spoilt(names: Sequence[str]) -> str:
    """Say that weights are not what they were, and that no older backup goes for it."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"{names[0]}{more} is not what an earlier backup holds, so that none of these is removed: see `manners doctor`,"
        " and put it back with `manners restore` into another folder"
    )


def failed(error: Exception, into: Path) -> Failure:
    """Return what is kept of a backup that could not be taken; a fault of ours may say somebody's words."""
    foreseen = isinstance(error, MannersError | OSError)
    return Failure(_now().isoformat(timespec="seconds"), str(error) if foreseen else type(error).__name__, str(into))


def _tried(work: Callable[[], str], workspace: Workspace, into: Path) -> str:
    """Do it, and keep whether it failed; a server goes on either way, whatever ends it."""
    try:
        said, failure = work(), None
    except Exception as error:
        failure = failed(error, into)
        why = error if isinstance(error, MannersError | OSError) else described(error)
        said = f"backup: failed, and is tried again in an hour: {why}"
    record.keep(workspace, failure=failure)
    return said


def _last(workspace: Workspace, folder: Path) -> str | None:
    """Return when the last backup into a folder was, as far as the workspace knows and it is still there."""
    said = last_backup(workspace)
    here = said is not None and Path(said["path"]).parent == folder.resolve() and Path(said["path"]).is_dir()
    return said["made_at"] if said is not None and here else None


def _now() -> datetime:
    return datetime.now(UTC)
