"""What a stage works with: a workspace, its settings and store, and the model, loaded once."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from manners.checkpoint import Run, unfinished
from manners.models.pretrained import Pretrained, load
from manners.settings import Settings
from manners.store import Store
from manners.workspace import Workspace, atomic_write

COMMANDS = {"sample": "sample", "reward": "reward", "ppo": "ppo", "evaluation": "evaluate"}
"""The stages that can be stopped and go on, by the name of their facts, each with its command."""
Facts = dict[str, Any]
"""What a stage found out, in JSON's types: what the report shows."""


@dataclass(frozen=True)
class Session:
    """An open workspace; stages that follow one another share the loaded model."""

    workspace: Workspace
    settings: Settings

    @cached_property
    def store(self) -> Store:
        """The record of what people said."""
        return Store.open_or_create(self.workspace.database)

    def run_lock(self, stage: str) -> AbstractContextManager[None]:
        """Hold the right to train: one process a workspace, while asking, importing and reading go on beside it.

        A team's store holds the lock itself, for a lock file means little on the disk that several machines share.

        Raises:
            MannersError: at once, naming stage and process, when another training run holds it.
        """
        return (self.workspace if self.workspace.url is None else self.store).run_lock(stage)

    @cached_property
    def pretrained(self) -> Pretrained:
        """The initial model, cut and proved."""
        loaded = load(self.settings.model)
        trunk, device = loaded.trunk, loaded.trunk.device
        print(
            f"{loaded.name}: {loaded.parameters / 1e6:.0f} million parameters on {device} in"
            f" {self.settings.model.dtype}, cut at layer {trunk.cut}" + (f" ({loaded.note})" if loaded.note else ""),
            file=sys.stderr,
        )
        return loaded

    def begin(self, stage: str, read: Sequence[str], data: Facts, *, resume: bool) -> Run | Facts:
        """Begin a run of a stage, or go on with the unfinished one; a run that has finished already gives its facts.

        `read` names the settings that the stage reads, `data` what else decides how it ends: a run goes on only with
        the same. With `resume`, a stage that is not begun is begun.

        Raises:
            MannersError: a run is unfinished and was not asked for, or was begun with something else, or is damaged.
        """
        command = f"manners {COMMANDS[stage]}"
        run = Run(self.workspace.runs / stage, command, self._begun_with(read) | data, self.settings.checkpoint_every)
        if not resume:
            run.begin_anew()
        elif run.go_on():
            print(f"{command}: going on after {run.seconds:.0f} seconds of work", file=sys.stderr)
        elif (facts := self.read_facts(stage)) and facts.get("begun_with") == run.begun_with:
            print(f"{command}: this run has finished; leave out --resume to begin another", file=sys.stderr)
            return facts
        else:
            print(f"{command}: no run is unfinished, so one begins", file=sys.stderr)
        return run

    def finish(self, stage: str, run: Run, facts: Facts) -> Facts:
        """Keep the facts of a run for the report, and drop its checkpoints; returns the facts."""
        costs = {"seconds": run.seconds, "peak_memory_bytes": peak_memory(), "begun_with": run.begun_with}
        self.save_facts(stage, facts | costs)
        run.end()
        return facts | costs

    def unfinished(self) -> list[str]:
        """Commands that would go on with a run that was stopped."""
        stopped = [stage for stage in COMMANDS if unfinished(self.workspace.runs / stage)]
        return [f"manners {COMMANDS[stage]} --resume" for stage in stopped]

    def _begun_with(self, read: Sequence[str]) -> Facts:
        """Settings that a stage reads, by name, and what the model is."""
        chosen = {stage: asdict(getattr(self.settings, stage)) for stage in ("model", *read)}
        trunk = self.pretrained.trunk
        return {
            "seed": self.settings.seed,
            **{f"{stage}.{name}": value for stage, values in chosen.items() for name, value in values.items()},
            "the model's trunk": f"{trunk.hash}, cut at layer {trunk.cut}",
            "the chat template": self.pretrained.renderer.template_hash,
        }

    def save_facts(self, stage: str, facts: Facts) -> Facts:
        """Keep a stage's facts for the report; returns them."""
        atomic_write(self._facts_file(stage), json.dumps(facts, indent=1, default=str) + "\n")
        return facts

    def read_facts(self, stage: str) -> Facts | None:
        """Return a stage's facts, or None if it has not run."""
        file = self._facts_file(stage)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def _facts_file(self, stage: str) -> Path:
        self.workspace.runs.mkdir(exist_ok=True)
        return self.workspace.runs / f"{stage}.json"


def digest(data: object) -> str:
    """Return a short name for data that must be the same when a run goes on."""
    return hashlib.sha256(repr(data).encode()).hexdigest()[:16]


@contextmanager
def timed(facts: Facts) -> Iterator[Facts]:
    """Add the seconds that a block takes, and the process's peak memory, to its facts."""
    begin = time.monotonic()
    yield facts
    facts["seconds"] = time.monotonic() - begin
    facts["peak_memory_bytes"] = peak_memory()


def peak_memory() -> int:
    """Most memory that this process has taken so far, in bytes: on the GPU if it uses one, else resident."""
    if on_gpu := _gpu_memory():
        return on_gpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _gpu_memory() -> int:
    """Most memory of a CUDA device that this process has taken so far, in bytes; 0 where it uses none."""
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """What the figures were computed on."""
    name = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), name)
    gpu = {"gpu": torch.cuda.get_device_name()} if _gpu_memory() else {}
    return {"cpu": name, "cores": torch.get_num_threads(), "torch": torch.__version__} | gpu
