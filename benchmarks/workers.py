"""What more processes bring: `python -m benchmarks.workers`, PPO in one, with two workers, and by two as one, in turn.

    python -m benchmarks.workers --paper      # what travels, and what a worker takes, for models of usual sizes

Either puts its figures into docs/scale.md. The workspace is a small one of its own: the embedded model, the demo's
prompts, the crowd's verdicts on a few answers, and a reward model that has hardly learnt; none of that is looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import torch
import tyro

from benchmarks.memory import PROMPT, RESPONSE, SHAPES, Shape, Way
from benchmarks.publish import ROOT, here, replace_between
from manners.data import demo_prompts
from manners.loop.session import Session
from manners.models.paper import paper, trunk_on_paper
from manners.scale.cost import handed_over_bytes, returned_bytes, worker_bytes
from manners.settings import ModelSettings, RewardSettings, SampleSettings, Settings
from manners.workspace import Workspace

PAGE = ROOT / "docs" / "scale.md"
LARGEST = Shape("Llama-3.1-70B", 80, 8192, 28_672, 64, 8, 128, 128_256, tied=False)
WAYS = (
    Way(6, None, "float32"),
    Way(6, None, "bfloat16"),
    Way("all", 16, "bfloat16"),
    Way("all", None, "bfloat16"),
)
BATCH = 64
WAYS_TO_RUN = ("", "--workers", "--processes")
"""Options that say who works; none is one process."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    paper: bool = False
    """Count what travels, and measure nothing."""
    workers: int = 2
    rounds: int = 3
    updates: int = 3
    """Of which the first is left out: everything is slower once."""
    batch: int = 64
    tokens: int = 32
    """Of an answer, at most."""
    threads: int = os.cpu_count() or 1
    """Of all processes together."""


@dataclass(frozen=True)
class Measured:
    """One run of PPO."""

    way: str
    rollout: float
    """Seconds an update, on average."""
    optimise: float
    handover: float
    """Seconds a hand-over, of which there is one before every rollout with new weights."""
    whole: float
    """Seconds of the command from its start to its end."""
    largest: int
    """Peak of resident memory of the largest worker, in bytes; 0 without one."""
    planned: int
    """What the plan says of a worker."""

    def throughput(self, batch: int) -> float:
        """Episodes a second."""
        return batch / (self.rollout + self.optimise)


def main(options: Options) -> None:
    """Count or measure, and publish."""
    if options.paper:
        replace_between(PAGE, "figures: travels", travels())
        return
    with tempfile.TemporaryDirectory(prefix="manners-workers-") as scratch:
        prepared = prepare(Path(scratch) / "prepared", options)
        runs = list(measured(prepared, options))
    replace_between(PAGE, "figures: workers", f"{table(runs, options)}\n\n{here()}")


def prepare(root: Path, options: Options) -> Path:
    """Make a workspace with a reward model."""
    session = Session(Workspace.create(root), Settings())
    for use, dialogues in demo_prompts().items():
        session.store.add_prompts(dialogues, use, "demo")
    session.store.close()
    sample = [f"sample.max_new_tokens={options.tokens}", "sample.temperature=0.7"]
    manners(root, ["sample", "--crowd", "--limit", "32"], sample, options.threads)
    manners(root, ["reward"], [*sample, "reward.epochs=1", "reward.curve=false"], options.threads)
    return root


def measured(prepared: Path, options: Options) -> Iterator[Measured]:
    """Run PPO in each way, in turn, in a copy each time."""
    chosen = [f"ppo.updates={options.updates}", f"ppo.batch={options.batch}", f"ppo.minibatch={options.batch // 2}"]
    chosen += [f"sample.max_new_tokens={options.tokens}", "sample.temperature=0.7", "ppo.validation_prompts=8"]
    chosen += [f"ppo.validate_every={options.updates}"]
    for number in range(options.rounds):
        for way in WAYS_TO_RUN if number % 2 == 0 else WAYS_TO_RUN[::-1]:
            root = Path(shutil.copytree(prepared, prepared.parent / "run"))
            found = one(root, way, options.workers, chosen, options.threads)
            print(f"round {number + 1}: {found}", file=sys.stderr, flush=True)
            yield found
            shutil.rmtree(root)


def one(root: Path, way: str, count: int, chosen: Sequence[str], threads: int) -> Measured:
    """Run PPO once."""
    extra = [way, str(count)] if way else []
    planned = 0
    if way == "--workers":
        said = manners(root, ["ppo", "--plan", "--json", *extra], chosen, threads)[0]
        planned = int(json.loads(said.strip().splitlines()[-1])["each_worker_bytes"])
    begun = time.monotonic()
    largest = manners(root, ["ppo", *extra], chosen, threads)[1]
    whole = time.monotonic() - begun
    [curves] = root.glob("runs/policy-*/metrics.jsonl")
    points = [json.loads(line) for line in curves.read_text(encoding="utf-8").splitlines()]
    updates = [point for point in points if "time/rollout" in point][1:]
    last = updates[-1]
    return Measured(
        way,
        mean(point["time/rollout"] for point in updates),
        mean(point["time/optimise"] for point in updates),
        last.get("workers/handover_seconds", 0.0) / max(1, last.get("workers/handovers", 1)),
        whole,
        largest,
        planned,
    )


def manners(root: Path, command: Sequence[str], chosen: Sequence[str], threads: int) -> tuple[str, int]:
    """Run a command; return what it prints, and the peak of memory of the largest worker that it had."""
    sets = [part for setting in chosen for part in ("--set", setting)]
    program = [sys.executable, "-c", "import sys; from manners.cli import main; sys.exit(main())"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    largest = 0
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        whole = [*program, *command, "--workspace", str(root), *sets]
        with subprocess.Popen(whole, env=environment, stdout=said, stderr=errors) as process:
            while process.poll() is None:
                largest = max([largest, *worker_peaks()])
                time.sleep(0.25)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"manners {' '.join(command)} failed:\n{errors.read()[-4000:]}")
        said.seek(0)
        return said.read(), largest


def worker_peaks() -> Iterator[int]:
    """Yield the peak of resident memory of each worker that there is now, in bytes; Linux only."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, StopIteration):
            if (entry / "cmdline").read_bytes().startswith(b"ray::Worker"):
                lines = (entry / "status").read_text().splitlines()
                yield 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def table(runs: Sequence[Measured], options: Options) -> str:
    """Return medians over the rounds, as a Markdown table, with the ratio."""
    lines = [
        "| | rollout, s | optimise, s | hand-over, s | episodes a second | command, s | a worker, GB (planned) |",
        "|---|---|---|---|---|---|---|",
    ]
    speeds = dict[str, list[float]]()
    for way in WAYS_TO_RUN:
        some = [run for run in runs if run.way == way]
        speeds[way] = [run.throughput(options.batch) for run in some]
        memory = f"{max(r.largest for r in some) / 1e9:.2f} ({some[0].planned / 1e9:.2f})" if some[0].planned else "-"
        cells = [median(run.rollout for run in some), median(run.optimise for run in some)]
        cells += [median(run.handover for run in some), median(speeds[way]), median(run.whole for run in some)]
        lines.append(f"| {named(way, options)} | " + " | ".join(f"{cell:.2f}" for cell in cells) + f" | {memory} |")
    said = [over(way, speeds, options) for way in WAYS_TO_RUN[1:]]
    said.append(
        f"As many threads in all, {options.rounds} rounds in turn: SmolLM2-135M in float32, {options.batch} episodes an"
        f" update, answers of at most {options.tokens} tokens. The first update of a run is left out."
    )
    return "\n".join([*lines, "", " ".join(said)])


def named(way: str, options: Options) -> str:
    """Name who works."""
    return f"{options.workers} {way.removeprefix('--')}" if way else "one process"


def over(way: str, speeds: Mapping[str, Sequence[float]], options: Options) -> str:
    """Say how much a way makes of what one process makes."""
    ratios = [two / one for one, two in zip(speeds[""], speeds[way], strict=True)]
    return (
        f"{named(way, options)} make {median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] times the episodes of"
        " one process."
    )


def travels() -> str:
    """Return what travels an update, and what a worker takes, on paper, as a Markdown table."""
    lines = [
        "| model | trained | weights, once an update | back, of 64 episodes | a worker |",
        "|---|---|---|---|---|",
    ]
    shapes = [shape for shape in SHAPES if shape.name in ("SmolLM2-135M", "Llama-3.2-1B", "Llama-3.1-8B")]
    for shape in (*shapes, LARGEST):
        for way in WAYS:
            if way.dtype == "float32" and shape.width > 2048:
                continue
            out, back, worker = map(size_of, counted(shape, way))
            lines.append(f"| {shape.name} | {way.words} | {out} | {back} | {worker} |")
    return "\n".join(lines)


def size_of(size: int) -> str:
    """Write bytes as a person reads them."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def counted(shape: Shape, way: Way) -> tuple[int, int, int]:
    """Return the bytes that go out, that come back, and that a worker takes of two that share a batch."""
    settings = Settings(
        model=ModelSettings(trainable_layers=way.layers, lora_rank=way.rank, dtype=way.dtype),
        sample=SampleSettings(max_new_tokens=RESPONSE),
        reward=RewardSettings(curve=False),
    )
    with paper():
        trunk = trunk_on_paper(shape.config, settings.model, torch.device("cuda"))
        return (
            handed_over_bytes(trunk),
            returned_bytes(trunk, settings, BATCH, PROMPT),
            worker_bytes(trunk, settings, BATCH // 2, BATCH // 2, PROMPT),
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
