"""Bulk scoring: `python -m benchmarks.score --workspace DIR`, beside a loop over a Hugging Face classifier.

The rows are 2,000 answers in four parts. Each part goes to `manners score`'s own function with the whole ensemble of
the newest reward model, and to that model's first member as `models export` writes it, in plain transformers: row by
row, and in padded batches of 16 in the order of the file. That is one model against several, so ours is measured with
the first member alone too, and each with `--fast`. Contenders take turns, each in a process of its own; only scoring is
timed, from text to score. Behind it, what memory a tiny random model takes for few rows and for many, all of
them short.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import tyro

from benchmarks.contender import Measurement
from benchmarks.prepare import prompt_texts
from benchmarks.processes import Contender, make_random_model, make_score_task, measure
from benchmarks.publish import PAGE, here, replace_between

PARTS = 4
ROWS = 2_000
ANSWERS = 8
"""To each prompt; who reads a prompt once for all of them saves the more, the more there are."""
LOOP, BATCHES = "transformers, row by row", "transformers, batches of 16"
OURS: dict[str, dict[str, Any]] = {
    "`manners score`": {},
    "`manners score --fast`": {"fast": True},
    "its first member alone": {"alone": True},
    "its first member alone, fast": {"alone": True, "fast": True},
}


@dataclass(frozen=True)
class Options:
    """What to run."""

    workspace: Path = Path("demo")
    """Where the newest reward model comes from; `make demo` leaves such a folder."""
    threads: int = os.cpu_count() or 1
    rows: tuple[int, ...] = (10_000, 1_000_000)
    """How many rows the memory of a tiny model is measured with; none leaves that out."""
    parts: int = PARTS
    """How many of the four parts are measured; none leaves that out."""


def main(options: Options) -> None:
    """Measure speed, then memory, and publish both."""
    if options.parts and not options.workspace.is_dir():
        raise SystemExit(f"{options.workspace} is no workspace; run `make demo`, or name one with --workspace")
    with tempfile.TemporaryDirectory(prefix="manners-score-") as scratch:
        folder = Path(scratch)
        if options.parts:
            publish("scoring", speeds(options, folder))
        if options.rows:
            publish("scoring-memory", peaks(options, folder))


def publish(name: str, lines: Sequence[str]) -> None:
    """Print a table, and put it on the page of benchmarks."""
    text = "\n".join([*lines, "", here()])
    print(text)
    replace_between(PAGE, name, text)


def speeds(options: Options, folder: Path) -> list[str]:
    """Return the table of rows a second."""
    task = make_score_task(options.workspace, folder, options.threads)
    found: dict[str, list[Measurement]] = {name: [] for name in (*OURS, LOOP, BATCHES)}
    size = ROWS // PARTS
    rows = list(exchanges(ROWS))
    for part in range(options.parts):
        file = folder / f"part{part}.jsonl"
        write(file, rows[part * size : (part + 1) * size])
        given = replace(task, file=str(file))
        contenders = {
            **{name: Contender("benchmarks.ours.score", replace(given, **how)) for name, how in OURS.items()},
            LOOP: Contender("benchmarks.peers.score", given),
            BATCHES: Contender("benchmarks.peers.score", replace(given, batch=16)),
        }
        for name in list(contenders) if part % 2 == 0 else reversed(contenders):
            found[name].append(measure(contenders[name], options.threads, folder))
            print(f"part {part + 1}, {name}: {found[name][-1].speed:.2f} rows/s", file=sys.stderr)
    words = f"{options.parts * size} answers to {options.parts * size // ANSWERS} prompts"
    return [*table(found), "", f"{words}; `manners score` has {task.members} members, transformers the first of them."]


def table(found: dict[str, list[Measurement]]) -> Iterator[str]:
    """Yield the lines of the table: the median over the parts, and the ratio to row by row with its spread."""
    yield "| | rows/s | as fast as row by row [min, max] | peak of memory |"
    yield "|---|---|---|---|"
    for name, some in found.items():
        ratios = [a.speed / b.speed for a, b in zip(some, found[LOOP], strict=True)]
        told = "" if name == LOOP else f"**{median(ratios):.2f} times** [{min(ratios):.2f}, {max(ratios):.2f}]"
        memory = max(one.memory_bytes for one in some) / 1e9
        yield f"| {name} | {median(one.speed for one in some):.1f} | {told} | {memory:.2f} GB |"


def exchanges(count: int, words: int = 3) -> Iterator[dict[str, str]]:
    """Answer prompts of the mix with other texts of it, three of which are about as long as a short answer."""
    texts, order = prompt_texts(), random.Random(0)
    asked = (text for text in cycle(texts) for _ in range(ANSWERS))
    for text in islice(asked, count):
        yield {"prompt": text, "response": " ".join(order.sample(texts, words))}


def peaks(options: Options, folder: Path) -> list[str]:
    """Return the table of memory by number of rows, for a reward model that a tiny random model becomes."""
    model = make_random_model(folder / "random", 2, 192, options.threads)
    rows, workspace = list(exchanges(10_000, 1)), str(folder / "tiny")
    write(folder / "pairs.jsonl", [pair(rows[number], number) for number in range(0, 10_000, 40)])
    _manners("init", workspace, "--model", model)
    small = (
        "--set",
        "model.trainable_layers=1",
        "--set",
        "reward.curve=false",
        "--set",
        "reward.epochs=1",
        "--set",
        "reward.members=1",
    )
    _manners("comparisons", "import", str(folder / "pairs.jsonl"), "--workspace", workspace)
    _manners("reward", "--workspace", workspace, *small)
    lines = ["| rows | peak of memory |", "|---|---|"]
    for count in options.rows:
        file, output = folder / "many.jsonl", folder / f"scores{count}.jsonl"
        write(file, islice(cycle(rows), count))
        done = _manners("score", "reward-1", str(file), "--output", str(output), "--workspace", workspace)
        if done["scored"] != count:
            raise SystemExit(f"{count} rows, and {done['scored']} of them scored")
        print(f"{count:,} rows: {done['rows_per_second']:,.0f} rows/s", file=sys.stderr)
        lines.append(f"| {count:,} | {done['peak_memory_bytes'] / 1e6:,.0f} MB |")
        print(lines[-1], file=sys.stderr)
    return lines


def pair(row: dict[str, str], number: int) -> dict[str, str]:
    """Make a pair of an answer and half of it, the longer one chosen half of the time."""
    whole, half = row["response"], row["response"][: len(row["response"]) // 2]
    chosen, rejected = (whole, half) if number % 80 else (half, whole)
    return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}


def write(file: Path, rows: Iterator[dict[str, str]] | Sequence[dict[str, str]]) -> None:
    """Write rows as JSONL, one at a time."""
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def _manners(*words: str) -> dict[str, float]:
    """Run a command of manners, and return what it says as JSON."""
    command = [str(Path(sys.executable).parent / "manners"), *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    main(tyro.cli(Options))
