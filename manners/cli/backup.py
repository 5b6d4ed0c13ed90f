"""The commands that copy a workspace while it is in use, and put it back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from manners.cli.common import Common, Result
from manners.store import to_server_url


@dataclass(frozen=True, kw_only=True)
class Backup(Common):
    """Copy the workspace, in use or not: the record at one moment, and each version once; then read all of it again."""

    directory: Annotated[Positional[Path], arg(metavar="DIR")]
    """A folder for backups, best on another disk; a second backup in it copies only what is new."""

    def run(self) -> Result:
        """Write and verify it."""
        from manners.backup.take import backup

        return backup(self.open(), self.directory)


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
        return restore(self.directory, self.workspace, url)
