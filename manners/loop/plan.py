"""What a stage will take, in memory and work: said before it starts, and refused where it cannot fit."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from manners.errors import MannersError
from manners.facts import Facts
from manners.loop.session import Session
from manners.memory import free_memory

OVERHEAD = 150_000_000
"""Bytes that libraries keep for themselves, and that the allocator cannot give back between pieces in use: 0 to 170
million where it was measured (docs/decisions.md, D072)."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something that takes memory."""

    name: str
    size: int
    """Bytes."""
    lower: str
    """The setting that makes it smaller."""


@dataclass(frozen=True, slots=True)
class Disk:
    """What is kept on the disk while a stage runs."""

    folder: Path
    needed: int
    """Bytes, at most."""
    free: int

    @property
    def facts(self) -> Facts:
        """Both figures."""
        return {"trunk_states_on_disk_bytes_at_most": self.needed, "disk_free_bytes": self.free}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stage will take."""

    stage: str
    work: Facts
    model: int
    """Bytes of the model, which is loaded by now."""
    parts: tuple[Part, ...]
    """What comes on top of it, at the moment when most is held."""
    free: int | None
    """Bytes that may still be taken on the model's device; None where the system does not say."""
    disk: Disk | None = None
    on_gpu: bool = False

    @property
    def needed(self) -> int:
        """Bytes that are still to be taken, libraries and allocator included."""
        return OVERHEAD + sum(part.size for part in self.parts)

    def along(self, processes: int, *, loaded: bool = False) -> Plan:
        """Return what so many processes of one machine take together; each on a GPU has one of its own.

        `loaded` says that all of them hold the model by now, as what is free shows. Each keeps trunk states.
        """
        if processes == 1:
            return self
        each = self.needed + (0 if loaded else self.model)
        others = () if self.on_gpu else (Part("other_processes", (processes - 1) * each, "--processes"),)
        disk = None if self.disk is None else replace(self.disk, needed=processes * self.disk.needed)
        return replace(self, parts=(*self.parts, *others), disk=disk)

    @property
    def facts(self) -> Facts:
        """The plan in JSON's types."""
        memory = {"model": self.model} | {part.name: part.size for part in self.parts} | {"overhead": OVERHEAD}
        totals = {"memory_needed_bytes": self.needed, "memory_free_bytes": self.free}
        disk = self.disk.facts if self.disk else {}
        return {"stage": self.stage, **self.work, **disk, "memory_bytes": memory, **totals}


def announce(plan: Plan) -> None:
    """Print what each part will take on stderr.

    Raises MannersError where more is needed than is free: with the largest part, and the setting to lower. So it does
    for what is kept on the disk.
    """
    lines = [f"memory for {plan.stage}", f"{_megabytes(plan.model)}  model, loaded"]
    lines += [f"{_megabytes(part.size)}  {part.name.replace('_', ' ')} ({part.lower})" for part in plan.parts]
    free = "" if plan.free is None else f" of {plan.free / 1e6:,.0f} MB free"
    lines += [f"{_megabytes(OVERHEAD)}  overhead", f"{_megabytes(plan.needed)}  to be taken{free}"]
    if disk := plan.disk:
        lines += [f"{_megabytes(disk.needed)}  on the disk at most, of {disk.free / 1e6:,.0f} MB free in {disk.folder}"]
    print("\n".join(lines), file=sys.stderr)
    if plan.free is not None and plan.needed > plan.free:
        part = max(plan.parts, key=lambda part: part.size)
        raise MannersError(
            f"{plan.stage} needs about {plan.needed / 1e9:,.2f} GB more memory and {plan.free / 1e9:,.2f} GB is free:"
            f" the largest part is {part.name.replace('_', ' ')} with {part.size / 1e9:,.2f} GB; lower {part.lower}"
        )
    if disk and disk.needed > disk.free:
        raise MannersError(
            f"{plan.stage} keeps {disk.needed:,} bytes of trunk states in {disk.folder}, and {disk.free:,} are free"
            " there: make room on that disk, set a lower reward.limit or sft.limit, or set model.trunk_states to"
            " recomputed"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:9,.0f} MB"


def make_plan(session: Session, stage: str, work: Facts, parts: list[Part], disk: Disk | None = None) -> Plan:
    """Return the plan of a stage on the model of a session, with the memory that is free now."""
    trunk = session.pretrained.trunk
    model = session.pretrained.parameters * trunk.whole.dtype.itemsize
    return Plan(stage, work, model, tuple(parts), free_on(trunk.device), disk, trunk.device.type == "cuda")


def free_on(device: torch.device) -> int | None:
    """Return the bytes that may still be taken on a device; None where the system does not say."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
