"""Who holds the right to train in a workspace: as they have signed, and found out without taking it from anybody.

And how to hold a whole folder, in which nobody then trains or serves.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from manners.errors import MannersError

RUN_LOCK, SERVE_LOCK = "run.lock", "serve.lock"
INSTANT = 0.2
"""Seconds that a lock is waited for: whoever looks who holds it has it for less (`of_file`)."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that trains."""

    stage: str = ""
    """Empty where it has not signed: it took the lock an instant ago, or is none of ours."""
    pid: int = 0
    host: str = ""
    """Its machine; empty where it can be this one alone."""

    @property
    def process(self) -> str:
        """Its number, with its machine where that may be another one."""
        return f"process {self.pid} on {self.host}" if self.host else f"process {self.pid}"

    @property
    def words(self) -> str:
        """How it is called at the beginning of a refusal."""
        return f"`{self.stage}`, {self.process}," if self.stage else "another run"

    @property
    def is_me(self) -> bool:
        """Whether it is this process; a database keeps the beginning of a long name of a machine."""
        return self.pid == os.getpid() and this_machine().startswith(self.host)


def this_machine() -> str:
    """Return the name of this machine."""
    return socket.gethostname().partition(".")[0]


def signed(file: Path) -> Holder:
    """Return who has signed a lock file, in the file beside it."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return Holder(str(record["stage"]), int(record["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Holder()


def of_file(lock: Path, signature: Path) -> Holder | None:
    """Return who holds a lock file; None where nobody does, or where this machine cannot tell.

    It is tried to share it for an instant, which no holder allows, and which the next one waits for.
    """
    try:
        handle = os.open(lock, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return signed(signature)
    except OSError:
        return None
    finally:
        os.close(handle)
    return None


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold a folder: nobody serves it or trains in it meanwhile. Raises MannersError where somebody does."""
    with ExitStack() as held:
        for name, what in ((SERVE_LOCK, "is being served"), (RUN_LOCK, "is being trained in")):
            try:
                held.enter_context(FileLock(root / name, timeout=INSTANT))
            except Timeout:
                raise MannersError(f"{root} {what}: stop that first, and run again.") from None
        yield
