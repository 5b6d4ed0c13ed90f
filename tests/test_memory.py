"""How much memory is free, read from systems made of files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from manners.memory import free_memory

MIB = 2**20
NO_LIMIT = 9223372036854771712
"""What version 1 of control groups says where there is none."""


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A machine with 1000 MiB available, and no control groups."""
    write(tmp_path / "proc/meminfo", f"MemTotal: 1 kB\nMemFree: 7 kB\nMemAvailable: {1000 * 1024} kB\n")
    return tmp_path


def write(file: Path, text: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def group(folder: Path, version: int, limit: object, used: int, idle: int = 0) -> None:
    """Write the files of one control group."""
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    write(folder / names[0], limit)
    write(folder / names[1], used)
    write(folder / "memory.stat", f"cache 5\n{names[2]} {idle}")


def test_without_limits_it_is_what_the_kernel_calls_available(system: Path) -> None:
    assert free_memory(system) == 1000 * MIB


def test_the_tightest_group_above_the_process_decides(system: Path) -> None:
    write(system / "proc/self/cgroup", "0::/user/run")
    tree = system / "sys/fs/cgroup"
    group(tree / "user", 2, 300 * MIB, 100 * MIB, idle=20 * MIB)
    group(tree / "user/run", 2, "max", 90 * MIB)
    assert free_memory(system) == 220 * MIB
    group(tree / "user/run", 2, 100 * MIB, 90 * MIB)
    assert free_memory(system) == 10 * MIB


def test_version_1_in_a_container_that_sees_only_the_top_of_the_tree(system: Path) -> None:
    write(system / "proc/self/cgroup", "5:devices:/x\n4:cpu,memory:/docker/abc\n0::/docker/abc")
    group(system / "sys/fs/cgroup/memory", 1, 500 * MIB, 100 * MIB, idle=5 * MIB)
    assert free_memory(system) == 405 * MIB
    group(system / "sys/fs/cgroup/memory", 1, NO_LIMIT, 100 * MIB)
    assert free_memory(system) == 1000 * MIB


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None


AGAIN_AND_AGAIN = """
import resource, sys, torch
from manners.memory import free_memory, keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def filled():
    torch.ones(2**24)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    filled()
begun = faults()
for _ in range(5):
    filled()
print((faults() - begun) * resource.getpagesize())
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = resident()
free_memory()
print(before - resident())
"""
"""Prints the bytes of new pages for five tensors of 64 MiB after forty others, and the bytes given back at last."""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other allocators")
def test_freed_memory_is_used_again_and_given_back_before_it_is_counted() -> None:
    def run(how: str) -> list[int]:
        command = [sys.executable, "-c", AGAIN_AND_AGAIN, how]
        return [int(n) for n in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]

    (fresh, _), (used_again, given_back) = run("by default"), run("kept")
    assert fresh > 4 * 64 * MIB
    assert used_again < 8 * MIB and given_back > 64 * MIB


APART = """
import resource, torch
from manners.memory import keep_freed_memory, memory_apart
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
def given_back():
    tensors = [torch.ones(2**20) for _ in range(16)]
    before = resident()
    del tensors
    return before - resident()
keep_freed_memory()
with memory_apart():
    apart = given_back()
print(apart, given_back())
"""
"""Prints the bytes given back of 64 MiB in 16 tensors, first of those made apart."""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other allocators")
def test_memory_apart_goes_back_at_once_and_afterwards_it_is_kept_again() -> None:
    done = subprocess.run([sys.executable, "-c", APART], capture_output=True, text=True, check=True)
    apart, kept = (int(n) for n in done.stdout.split())
    assert apart > 60 * MIB and kept < 4 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_this_machine_has_some_free() -> None:
    free = free_memory()
    assert free is not None
    assert MIB < free < 2**50
