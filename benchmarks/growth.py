"""How PPO grows with batch, response length and model size: `python -m benchmarks.growth`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import matplotlib
import tyro
from matplotlib import pyplot

from benchmarks.contender import PPOTask
from benchmarks.prepare import Request
from benchmarks.processes import Contender, make_random_model, measure, prepare
from benchmarks.publish import PAGE, ROOT, here, replace_between

RESULTS = ROOT / "benchmarks" / "growth.json"
PICTURE = ROOT / "docs" / "pictures" / "growth.png"
BATCHES = (4, 16, 64)
LENGTHS = (16, 48, 128)
SHAPES = {"14M": (12, 192), "45M": (16, 384), "135M": (30, 576), "361M": (32, 960)}
"""Layers and width by number of parameters; a fifth of the layers is trained."""
UNITS = {"batch": "episodes", "response length": "tokens", "model size": "parameters"}


@dataclass(frozen=True)
class Options:
    """What to run."""

    peer: bool = False
    """Also TRL, whose largest points take 20 GB of memory."""
    threads: int = os.cpu_count() or 1
    """Threads of every contender."""


@dataclass(frozen=True)
class Point:
    """One run of two updates, of which the second is timed."""

    axis: str
    value: str
    contender: str
    episodes_per_second: float
    memory_bytes: int


def main(options: Options) -> None:
    """Measure every point and publish table and picture."""
    with tempfile.TemporaryDirectory(prefix="manners-growth-") as scratch:
        points = list(measured(options, Path(scratch)))
    RESULTS.write_text(json.dumps([asdict(point) for point in points], indent=1) + "\n", encoding="utf-8")
    replace_between(PAGE, "growth", f"{table(points)}\n\n{here()}")
    draw(points)


def measured(options: Options, folder: Path) -> Iterator[Point]:
    """Run every contender at every value of every axis; the other axes stay where `ppo_k6` has them."""
    contenders = {"manners": "benchmarks.ours.ppo"} | ({"TRL 1.12.0": "benchmarks.peers.ppo"} if options.peer else {})
    for axis, value, task in tasks(options, folder):
        for name, module in contenders.items():
            environment = None if name == "manners" else "trl-1.12.0"
            found = measure(Contender(module, task, environment), options.threads, folder)
            print(f"{axis} {value}, {name}: {found.speed:.3f} episodes/s", file=sys.stderr)
            yield Point(axis, value, name, found.speed, found.memory_bytes)


def tasks(options: Options, folder: Path) -> Iterator[tuple[str, str, PPOTask]]:
    """Yield axis, value and task of every point."""
    inputs = prepare(Request(str(folder), None, 12, 0.1), options.threads)
    base = PPOTask(
        model=inputs.model,
        prompts=inputs.chat,
        updates=2,
        batch=16,
        new_tokens=48,
        epochs=4,
        micro=4,
        trainable_layers=6,
        value="shared",
        members=3,
    )
    for batch in BATCHES:
        yield "batch", str(batch), replace(base, batch=batch, prompts=list(islice(cycle(inputs.chat), 3 * batch)))
    for length in LENGTHS:
        yield "response length", str(length), replace(base, new_tokens=length)
    for name, (layers, width) in SHAPES.items():
        made = make_random_model(folder / name, layers, width, options.threads)
        model = prepare(Request(str(folder), None, 12, 0.1, made), options.threads).model
        yield "model size", name, replace(base, model=model, trainable_layers=layers // 5)


def table(points: Sequence[Point]) -> str:
    """Return the points as a Markdown table."""
    lines = ["| | | contender | episodes/s | peak memory |", "|---|---|---|---|---|"]
    for point in points:
        memory = f"{point.memory_bytes / 1e9:.2f} GB"
        cells = (point.axis, point.value, point.contender, f"{point.episodes_per_second:.3g}", memory)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(points: Sequence[Point]) -> None:
    """Draw speed above memory, one column an axis."""
    matplotlib.use("agg")
    figure, rows = pyplot.subplots(2, len(UNITS), figsize=(10, 5), sharex="col")
    for column, (axis, unit) in enumerate(UNITS.items()):
        for name in dict.fromkeys(point.contender for point in points):
            chosen = [point for point in points if point.axis == axis and point.contender == name]
            values = [point.value for point in chosen]
            rows[0][column].plot(values, [point.episodes_per_second for point in chosen], marker="o", label=name)
            rows[1][column].plot(values, [point.memory_bytes / 1e9 for point in chosen], marker="o", label=name)
        rows[0][column].set_title(axis, fontsize=10)
        rows[1][column].set_xlabel(unit)
    rows[0][0].set_ylabel("episodes/s")
    rows[1][0].set_ylabel("peak memory, GB")
    for axes in rows.flat:
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    rows[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Options))
