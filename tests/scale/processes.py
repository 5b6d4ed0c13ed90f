"""What the processes of this machine are and listen to, as the kernel tells it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LISTENING = "0A"
"""What /proc/net/tcp calls it."""


def descendants(root: int) -> set[int]:
    """Return a process and all that it started, and they did."""
    parents = dict[int, int]()
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            stat = (entry / "stat").read_text()
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def holding(variable: str) -> set[int]:
    """Return the processes that were started with something in their environment (`NAME=value`)."""
    found = set[int]()
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return found


def listened_to(pids: set[int]) -> set[str]:
    """Return the addresses, in hexadecimal as the kernel writes them, on which processes wait for others."""
    sockets = set[str]()
    for pid in pids:
        with suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    sockets.add(os.readlink(descriptor))
    found = set[str]()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].partition(":")[0])
    return found


def running_as(name: str) -> list[int]:
    """Return the processes whose name or command holds something."""
    found = list[int]()
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if name.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def wait_until(holds: Callable[[], bool], seconds: float = 300.0) -> None:
    """Wait for something that another process does; fails where it never comes."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
