"""Old backups go, and with them the files that no other backup holds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from manners.backup import snapshots
from manners.backup.snapshots import OBJECTS
from manners.errors import MannersError
from manners.workspace import discard

DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Thinned:
    """What went."""

    backups: int = 0
    files: int = 0
    size: int = 0
    """Bytes of these files."""


def thin(folder: Path, keep: int, workspace: Path) -> Thinned:
    """Remove a workspace's backups in a folder but the newest `keep`, and every file that none which stays holds.

    Those of other workspaces stay, and those that do not say whose they are. No file is removed where a backup that
    stays cannot be read: nobody knows what it holds. Raises MannersError where another backup is being written to the
    folder.
    """
    if keep < 1:
        raise ValueError("one backup stays, at least")
    with snapshots.writing(folder):
        old = snapshots.of_workspace(folder, workspace)[:-keep]
        for one in old:
            discard(one)
        try:
            held = {digest for one in snapshots.all_of(folder) for digest in snapshots.read(one).files.values()}
        except MannersError:
            return Thinned(len(old))
        gone = [one for one in (folder / OBJECTS).iterdir() if DIGEST.fullmatch(one.name) and one.name not in held]
        size = sum(one.stat().st_size for one in gone)
        for one in gone:
            one.unlink()
        return Thinned(len(old), len(gone), size)
