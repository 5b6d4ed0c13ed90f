"""How much memory there is still to take, on the machine and within the process's limits; who keeps what is freed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""What glibc's `mallopt` calls M_TRIM_THRESHOLD and M_MMAP_MAX."""
_MAPPINGS = 65536
"""The largest number of mappings that glibc allows itself by default."""


def keep_freed_memory() -> None:
    """Let this process keep what it frees and use it again, where its allocator is glibc's; elsewhere do nothing.

    By default a large tensor is made of new pages each time, which the system clears first: a forward and backward of
    a whole model takes a tenth longer so (docs/decisions.md, D111). The price is room between what is kept: the demo's
    peak rose by 8 %.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, -1)  # the largest size there is


@contextmanager
def memory_apart() -> Iterator[None]:
    """Let large tensors that are made meanwhile be memory of their own, which goes back to the system with them.

    Many that come and go together would leave gaps in what `keep_freed_memory` keeps, and others would settle there.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_MMAP_MAX, _MAPPINGS)
    try:
        yield
    finally:
        keep_freed_memory()


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still take, or None where the system does not say.

    The smallest of what the kernel calls available, and what each control group above the process has left: its limit
    less its use, of which files in the cache that nobody has touched lately do not count, as they make room. Linux
    only; `root` is where `proc` and `sys` are. What this process keeps without using it is given back first.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)
    return min([*_of_machine(root), *_of_groups(root)], default=None)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


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
