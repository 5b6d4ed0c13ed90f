"""Every contender is a process of its own: nothing of one warms up, or fills the memory of, the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.contender import (
    DPOTask,
    GenerateTask,
    Measurement,
    PPOTask,
    RewardTask,
    ScoreTask,
    SFTTask,
    as_task,
    parse,
)
from benchmarks.environments import interpreter
from benchmarks.prepare import Inputs, Request, read_inputs

ROOT = Path(__file__).parents[1]
Task = PPOTask | RewardTask | SFTTask | DPOTask | GenerateTask | ScoreTask


@dataclass(frozen=True)
class Contender:
    """Who does what."""

    module: str
    task: Task
    environment: str | None = None
    """A peer's; None is the one that this process runs in."""
    root: Path = ROOT
    """The checkout whose code runs."""


def measure(contender: Contender, threads: int, folder: Path) -> Measurement:
    """Run a contender in a new process and return what it measured."""
    python = sys.executable if contender.environment is None else str(interpreter(contender.environment))
    command = [python, "-m", contender.module, _write(folder, asdict(contender.task))]
    return parse(_run(command, threads, contender.root))


def measure_peak(threads: int) -> float:
    """Floating-point operations a second of a large matrix product, now."""
    return float(_run([sys.executable, "-m", "benchmarks.machine"], threads))


def prepare(request: Request, threads: int) -> Inputs:
    """Prepare the inputs, in a process of its own: a child's peak of memory starts from that of its parent."""
    folder = Path(request.folder)
    _run([sys.executable, "-m", "benchmarks.prepare", _write(folder, asdict(request))], threads)
    return read_inputs(folder)


def make_goal(workspace: Path, folder: Path, threads: int) -> PPOTask:
    """Export a workspace's reward model and make the task of learning from it, in a process of its own."""
    _run([sys.executable, "-m", "benchmarks.goal", str(workspace.absolute()), str(folder)], threads)
    return as_task(PPOTask, json.loads((folder / "goal.json").read_text(encoding="utf-8")))


def make_score_task(workspace: Path, folder: Path, threads: int) -> ScoreTask:
    """Export a workspace's reward model and make the task of scoring with it, as `make_goal` does."""
    goal = make_goal(workspace, folder, threads)
    assert goal.goal is not None
    version = json.loads((workspace / "models" / goal.goal.version / "version.json").read_text(encoding="utf-8"))
    members = len(version["shifts"])
    return ScoreTask(goal.model, goal.goal.workspace, goal.goal.version, members, goal.goal.folder, goal.goal.shift)


def make_random_model(folder: Path, layers: int, width: int, threads: int) -> str:
    """Write a model of a shape with random weights, in a process of its own, and return its folder."""
    return _run([sys.executable, "-m", "benchmarks.random_model", str(folder), str(layers), str(width)], threads)


def data_folder() -> Path:
    """Return where published data sets are: under $MANNERS_DATA, or beside the repository."""
    return Path(os.environ.get("MANNERS_DATA", ROOT.parent / "shared" / "data"))


def pairs_file() -> str | None:
    """Return where the pairs of `hh_rlhf_harmless` are, None where they are not there."""
    file = data_folder() / "hh_rlhf_harmless" / "pairs.jsonl.gz"
    return str(file) if file.is_file() else None


def _write(folder: Path, task: object) -> str:
    file = folder / "task.json"
    file.write_text(json.dumps(task), encoding="utf-8")
    return str(file)


def _run(command: list[str], threads: int, root: Path = ROOT) -> str:
    """Run a module from a checkout's root and return the last line that it prints."""
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    environment = os.environ | quiet | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return lines[-1] if lines else ""
