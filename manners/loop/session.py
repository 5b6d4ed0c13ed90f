"""What a stage works with: a workspace, its settings and store, and the model, loaded once."""

from __future__ import annotations

import hashlib
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import torch

from manners import ranks
from manners.checkpoint import Run
from manners.facts import Facts
from manners.loop import kept
from manners.loop.starter import starter
from manners.models.pretrained import Pretrained
from manners.models.whole import load
from manners.results import Machine
from manners.settings import ModelSettings, Settings
from manners.store import Store
from manners.store.runlock import RunLock
from manners.templates import CHATML
from manners.unfinished import names_held
from manners.workspace import INITIAL, Workspace

LAID_OUT = "weights are laid out for decoding"
"""What says in the state of a run how it was begun."""
STARTED_BY = "started by"
"""What says in the state of a run who did."""
LOCK = "lock"
"""Where a session has the lock that a team's store holds for it."""


@dataclass(frozen=True)
class Session:
    """An open workspace; stages that follow one another share the loaded model."""

    workspace: Workspace
    settings: Settings
    turn: int | None = None
    """The round of `manners loop` at work; None for a stage by itself."""
    begun_by: str = ""
    """Who began the loop; empty for a stage by itself."""
    one: bool = False
    """Whether the loop stops when a stage of it is done."""

    def at(self, turn: int, begun_by: str = "") -> Session:
        """Return this session in a round of the loop, with the store and the model that are open already."""
        following = replace(self, turn=turn, begun_by=begun_by or self.begun_by)
        vars(following).update({name: vars(self)[name] for name in ("store", "pretrained", LOCK) if name in vars(self)})
        return following

    @property
    def seed(self) -> int:
        """What draws in this round follow from: known prompts that are asked again get other answers."""
        return self.settings.seed + 32_452_843 * (self.turn or 0)

    @cached_property
    def store(self) -> Store:
        """The record of what people said; where there are versions there was one, and a lost one is not made anew."""
        return kept.open_store(self.workspace)

    @contextmanager
    def run_lock(self, stage: str) -> Iterator[None]:
        """Hold the right to train: one process a workspace, while asking, importing and reading go on beside it.

        A team's store holds a lock itself, for a lock file means little on the disk that several machines share. The
        file is held too: on this machine it outlasts a server that is started anew.

        Raises:
            MannersError: at once, naming stage and process, when another training run holds it.
        """
        with ExitStack() as held:
            if self.workspace.url is not None:
                vars(self)[LOCK] = held.enter_context(self.store.run_lock(stage))
                held.callback(vars(self).pop, LOCK)
            held.enter_context(self.workspace.run_lock(stage))
            yield

    def keep_lock(self) -> None:
        """See that a team's store still holds the lock for this process, and take it again where it does not.

        Raises MannersError naming who holds it now.
        """
        lock: RunLock | None = vars(self).get(LOCK)
        if lock is not None:
            lock.keep()

    @cached_property
    def pretrained(self) -> Pretrained:
        """The initial model, cut and proved."""
        return self._load(self.settings.model)

    def give_template(self) -> None:
        """Have a model without a chat template laid out as ChatML from now on."""
        if "pretrained" not in vars(self) or self.pretrained.renderer.plain:
            vars(self)["pretrained"] = self._load(self.settings.model, CHATML)

    def _load(self, settings: ModelSettings, otherwise: str | None = None) -> Pretrained:
        loaded = load(settings, self.workspace, otherwise)
        compute = loaded.trunk.compute
        print(
            f"{loaded.name}: {loaded.parameters / 1e6:.0f} million parameters on {compute.device} in"
            f" {settings.dtype}, cut at layer {loaded.trunk.cut}"
            + (f" ({loaded.note})" if loaded.note else "")
            + f"; {compute.sentence}",
            file=sys.stderr,
        )
        return loaded

    def lay_out(self, run: Run, *, begun: bool) -> None:
        """Have a run decode with weights laid out for it, or without, to its end as it was begun.

        What pays is measured each time that a model is loaded, and rounding may hang on it. A run that an older version
        has begun had them laid out wherever that is possible.
        """
        now = self.pretrained.trunk.compute
        so = run.state.setdefault(LAID_OUT, now.layout_gain is not None if begun else now.lays_out)
        self.lay_out_as(ranks.gathered(so)[0])  # all who train along as the first

    def lay_out_as(self, so: bool) -> None:
        """Decode with weights laid out, or without, from now on."""
        if so != self.pretrained.trunk.compute.lays_out:
            vars(self)["pretrained"] = self.pretrained.laid_out(so)

    @cached_property
    def started_by(self) -> str:
        """Who started the run at work, see `loop.starter`."""
        return self.begun_by or starter(self.store, self.workspace.root)

    def begin_as(self, run: Run) -> None:
        """Have a run be that of whoever began it, also where somebody else goes on with it."""
        vars(self).pop("started_by", None)  # of the run before
        run.state[STARTED_BY] = vars(self)["started_by"] = run.state.get(STARTED_BY) or self.started_by

    def next_version_name(self, kind: str) -> str:
        """Return the name of the next version of a kind: no other one has it, had it, or is to have it."""
        known = names_held(self.workspace.runs).union(version.name for version in self.store.versions())
        return self.workspace.next_version_name(kind, known)

    @property
    def start(self) -> str:
        """The version that learning starts from: what the KL, the scale of rewards and the evaluation refer to."""
        return self.workspace.start()

    def run_of(self, stage: str, command: str, reads: Sequence[str], decides: Facts, *, loads: bool = True) -> Run:
        """Return a run of a stage that has neither begun nor gone on yet.

        `reads` names the settings that the stage reads beside those of the model, `decides` what else decides how it
        ends: a run goes on only with the same. A stage that loads no model is decided by the settings that it reads.
        """
        chosen = {name: asdict(getattr(self.settings, name)) for name in (*(["model"] if loads else []), *reads)}
        begun_with = {
            "seed": self.settings.seed,
            **{f"{name}.{field}": value for name, values in chosen.items() for field, value in values.items()},
            **(self._on_model() if loads else {}),
            **decides,
        }
        folder = self.workspace.runs / stage
        return Run(folder, f"manners {command}", begun_with, self.settings.checkpoint_every, self.keep_lock)

    def _on_model(self) -> Facts:
        """Say which model a run is on."""
        trunk = self.pretrained.trunk
        return {
            "the model's trunk": f"{trunk.hash}, cut at layer {trunk.cut}",
            "the chat template": self.pretrained.renderer.template_hash,
            **({} if self.start == INITIAL else {"the start version": self.start}),
        }

    def save_facts(self, name: str, facts: Facts) -> None:
        """Keep facts in the folder of runs."""
        kept.save_facts(self.workspace, name, facts)

    def read_facts(self, name: str) -> Facts | None:
        """Return facts that were kept, or None where there are none; raises MannersError where they are damaged."""
        return kept.read_facts(self.workspace, name)


def digest(data: object) -> str:
    """Return a short name for data that must be the same when a run goes on."""
    return hashlib.sha256(repr(data).encode()).hexdigest()[:16]


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


def machine() -> Machine:
    """What the figures were computed on."""
    name = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), name)
    gpu = torch.cuda.get_device_name() if _gpu_memory() else None
    return Machine(cpu=name, cores=torch.get_num_threads(), torch=torch.__version__, gpu=gpu)
