"""What is being written, until it is whole: `.NAME.HOST-PID-TOKEN.partial`, and what a killed process left of it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PARTIAL = re.compile(r"\..+\.(?P<host>[^.]+)-(?P<pid>\d+)-[0-9a-f]+\.partial")
_DAY = 24 * 3600.0


def partial_name(path: Path) -> Path:
    """Return a name beside `path` that says which process of which machine is writing it."""
    owner = f"{socket.gethostname().partition('.')[0]}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{owner}.partial")


def left_behind(root: Path) -> Iterator[Path]:
    """Yield what processes left half-written that are no longer there to finish it."""
    here = socket.gethostname().partition(".")[0]
    for partial in list(root.rglob(".*.partial")):
        match = _PARTIAL.fullmatch(partial.name)
        with suppress(FileNotFoundError):
            # A process of another machine that shares the disk cannot be looked up: its work is given a day.
            old = time.time() - partial.stat().st_mtime > _DAY
            if match and (not _is_running(int(match["pid"])) if match["host"] == here else old):
                yield partial


def clear_partials(root: Path) -> None:
    """Remove what processes left half-written that are no longer there to finish it."""
    for partial in left_behind(root):
        with suppress(FileNotFoundError):
            remove(partial)


def remove(path: Path) -> None:
    """Remove a file or a folder, if there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    """Return whether a process of this machine is there; one that is not ours to signal is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
