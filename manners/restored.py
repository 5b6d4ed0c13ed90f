"""What `manners restore` has made ready is put into its place: whole, however often a kill comes between.

    .restored/    all that comes back, complete; while it is there, nothing else in the workspace counts

From the moment at which that folder has its name there is no way back, only forward: whoever opens the workspace next
finishes what is left. The write-ahead log of the store that was goes first, or SQLite would play it into the new one.
"""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock

from manners.partials import remove

READY = ".restored"
STALE = ("store.db-wal", "store.db-shm", "store.db-journal", "report.html", "report.json", "run.json")
"""What belongs to the workspace that was: logs of its store, and what is written anew from the record."""


def finish(root: Path) -> None:
    """Put what stands ready in a workspace in its place; nothing where nothing does."""
    ready = root / READY
    if not ready.is_dir():
        return
    with FileLock(root / "restore.lock"):
        if not ready.is_dir():
            return
        for name in STALE:
            (root / name).unlink(missing_ok=True)
        for one in sorted(ready.iterdir()):
            place = root / one.name
            if place.is_dir():
                remove(place)
            one.replace(place)
        folder = os.open(root, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        ready.rmdir()
