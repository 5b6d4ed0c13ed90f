"""How much memory there is still to take: on the machine, and within the limits that this process runs under."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still take, or None where the system does not say.

    The smallest of what the kernel calls available, and what each control group above the process has left: its limit
    less its use, of which files in the cache that nobody has touched lately do not count, as they make room. Linux
    only; `root` is where `proc` and `sys` are.
    """
    return min([*_of_machine(root), *_of_groups(root)], default=None)


def _of_machine(root: Path) -> Iterator[int]:
    with suppress(OSError):
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                yield int(value.split()[0]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """Yield what is left in each group; version 1 has a tree for memory alone, version 2 one for everything."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                top, limit, used, idle = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
            elif "memory" in controllers.split(","):
                top, limit, used = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
                idle = "total_inactive_file"
            else:
                continue
            group = top / path.lstrip("/")
            # In a container the path may be the host's, of which only the top is there.
            for folder in [group, *group.parents][: len(group.parts) - len(top.parts) + 1]:
                yield from _left(folder / limit, folder / used, folder / "memory.stat", idle)


def _left(limit: Path, used: Path, statistics: Path, idle: str) -> Iterator[int]:
    with suppress(OSError):
        allowed = limit.read_text(encoding="ascii").strip()
        if allowed != "max":
            counts = dict(line.split() for line in statistics.read_text(encoding="ascii").splitlines())
            yield int(allowed) - int(used.read_text(encoding="ascii")) + int(counts.get(idle, 0))
