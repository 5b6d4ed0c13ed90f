"""The commands that copy a workspace while it is in use, and put it back."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from manners.cli.common import Common, Result
from manners.errors import MannersError, UsageError
from manners.store import Store, audit, to_server_url
from manners.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Backup(Common):
    """Copy the workspace, in use or not: the record at one moment, and each version once; then read all of it again."""

    directory: Annotated[Positional[Path], arg(metavar="DIR")]
    """A folder for backups, best on another disk; a second backup in it copies only what is new."""
    keep: Annotated[int | None, arg(metavar="N")] = None
    """Afterwards remove all backups in that folder but the newest N; all stay if left out."""
    rehearse: bool = False
    """Afterwards put it back into a scratch folder, to see that it can be."""

    def run(self) -> Result:
        """Write and verify it."""
        from manners.backup import record
        from manners.backup.take import backup
        from manners.backup.thin import thin
        from manners.upkeep import schedule

        if self.keep is not None and self.keep < 1:
            raise UsageError(f"--keep cannot be {self.keep}: one backup stays, at least.")
        workspace = self.open()
        try:
            made = backup(workspace, self.directory)
        except Exception as error:  # nobody reads what a timer of the system says
            with suppress(MannersError, OSError):  # where nothing can be kept, why it failed is still said
                record.keep(workspace, failure=schedule.failed(error, self.directory.expanduser()))
            raise
        record.keep(workspace, failure=None)
        _noted(workspace, audit.Event.EXPORTED)
        if self.rehearse:  # before any goes: one that cannot be put back is no reason to
            rehearsed = schedule.rehearse(workspace, self.directory.expanduser())
            if not rehearsed.verified:
                raise MannersError(rehearsed.sentence)
            made |= {"rehearsal": asdict(rehearsed)}
        if made["spoilt"]:
            raise MannersError(f"{made['path']} was written, but {schedule.spoilt(made['spoilt'])}.")
        if self.keep is not None:
            made |= {"removed": asdict(thin(self.directory.expanduser(), self.keep, workspace.root))}
        return made


@dataclass(frozen=True, kw_only=True)
class Restore(Common):
    """Put a backup in place of the workspace, or into a new folder; what was deleted since stays deleted."""

    directory: Annotated[Positional[Path], arg(metavar="DIR")]
    """A folder of backups, of which the latest is taken, or one of them."""
    database: Annotated[str | None, arg(metavar="URL")] = None
    """For a new folder: an empty PostgreSQL database for the store, postgresql://user@host/name."""

    def run(self) -> Result:
        """Put it back."""
        from manners.backup.restore import restore

        url = None if self.database is None else to_server_url(self.database)
        found = restore(self.directory, self.workspace, url)
        _noted(self.open(), audit.Event.RESTORED)
        return found


def _noted(workspace: Workspace, event: audit.Event) -> None:
    """Put on record what was done on this machine; the log that was restored goes on from where it was."""
    with closing(Store.open(workspace.database)) as store:
        audit.record(store, audit.Deed(event, about="backup"))
