"""Who learns faster? `python -m benchmarks.learning`: reward reached against wall-clock, same task and reward model."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib
import tyro
from matplotlib import pyplot

from benchmarks.processes import Contender, make_goal, measure
from benchmarks.publish import PAGE, ROOT, here, replace_between

RESULTS = ROOT / "benchmarks" / "learning.json"
PICTURE = ROOT / "docs" / "pictures" / "learning.png"
SMOOTHED = 3
"""Updates that a score is averaged over: a single batch's mean says little."""
STEPS = 4
"""Levels of reward between 0, which the initial model has on average, and the best that both reach."""
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Options:
    """What to run."""

    workspace: Path = Path("demo")
    """Where prompts and the newest reward model come from; `make demo` leaves such a folder."""
    seeds: tuple[int, ...] = (0, 1, 2)
    updates: int = 12
    """Of ours."""
    peer_updates: int = 5
    """Of TRL, whose updates take several times as long: both then learn for minutes."""
    learning_rate: float = 1e-4
    """Of ours: its default, for a branch."""
    peer_learning_rate: float = 1e-5
    """Of TRL, for a whole model; its default is 3e-6."""
    threads: int = os.cpu_count() or 1
    """Threads of every contender."""


@dataclass(frozen=True)
class Run:
    """One contender's curve."""

    contender: str
    seed: int
    curve: Curve


@dataclass(frozen=True)
class Reached:
    """When each contender first reached a mean score."""

    seed: int
    score: float
    ours: float
    """Seconds."""
    peer: float


def main(options: Options) -> None:
    """Let both learn once a seed, and publish table and picture."""
    if not options.workspace.is_dir():
        raise SystemExit(f"{options.workspace} is no workspace; run `make demo`, or name one with --workspace")
    with tempfile.TemporaryDirectory(prefix="manners-learning-") as scratch:
        runs = list(learned(options, Path(scratch)))
    RESULTS.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n", encoding="utf-8")
    replace_between(PAGE, "learning", f"{table(runs)}\n\n{here()}")
    draw(runs)


def learned(options: Options, folder: Path) -> Iterator[Run]:
    """Run ours, then the peer, for every seed."""
    task = make_goal(options.workspace, folder, options.threads)
    for seed in options.seeds:
        ours = replace(task, seed=seed, updates=options.updates, learning_rate=options.learning_rate)
        peer = replace(task, seed=seed, updates=options.peer_updates, learning_rate=options.peer_learning_rate)
        contenders = {
            "manners": Contender("benchmarks.ours.ppo", ours),
            "TRL 1.12.0": Contender("benchmarks.peers.ppo", peer, "trl-1.12.0"),
        }
        for name, contender in contenders.items():
            curve = measure(contender, options.threads, folder).curve
            print(f"seed {seed}, {name}: {curve[-1][1]:.2f} after {curve[-1][0]:.0f} s", file=sys.stderr)
            yield Run(name, seed, curve)


def smoothed(curve: Curve) -> Curve:
    """Average each score with those of the updates just before it; it begins where there are enough of them."""
    scores = [score for _, score in curve]
    return [(curve[i][0], sum(scores[i + 1 - SMOOTHED : i + 1]) / SMOOTHED) for i in range(SMOOTHED - 1, len(curve))]


def reached(seed: int, ours: Curve, peer: Curve) -> list[Reached]:
    """Say when each curve first reached each of `STEPS` levels up to the best that both reach."""
    ours, peer = smoothed(ours), smoothed(peer)
    high = min(max(score for _, score in curve) for curve in (ours, peer))
    levels = [high * step / STEPS for step in range(1, STEPS + 1)] if high > 0 else []
    return [Reached(seed, level, _when(ours, level), _when(peer, level)) for level in levels]


def table(runs: Sequence[Run]) -> str:
    """Return the times as a Markdown table."""
    lines = ["| seed | mean score | ours, s | peer, s | times faster |", "|---|---|---|---|---|"]
    curves = {(run.contender, run.seed): run.curve for run in runs}
    for seed in dict.fromkeys(run.seed for run in runs):
        for row in reached(seed, curves["manners", seed], curves["TRL 1.12.0", seed]):
            cells = (
                f"{row.seed}",
                f"{row.score:.2f}",
                f"{row.ours:.0f}",
                f"{row.peer:.0f}",
                f"{row.peer / row.ours:.1f}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(runs: Sequence[Run]) -> None:
    """Draw every curve, seeds of a contender in one colour."""
    matplotlib.use("agg")
    colours = dict(zip(dict.fromkeys(run.contender for run in runs), ("#3b6ea5", "#a5673b"), strict=True))
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    for run in runs:
        ends, scores = zip(*smoothed(run.curve), strict=True)
        label = run.contender if run.seed == runs[0].seed else None
        axes.plot([end / 60 for end in ends], scores, color=colours[run.contender], marker=".", label=label)
    axes.set_xlabel("minutes")
    axes.set_ylabel("mean score of the responses")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def _when(curve: Curve, level: float) -> float:
    return next(end for end, score in curve if score >= level)


if __name__ == "__main__":
    main(tyro.cli(Options))
