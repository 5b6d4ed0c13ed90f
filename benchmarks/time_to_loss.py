"""How long until it writes as well: `python -m benchmarks.time_to_loss`, manners beside nanoGPT's plain loop.

Both train the same architecture on the same text with the same tokenizer; ours reads `share` of the peer's tokens, and
its rates have fallen by then. On the first seed the peer tries batches and rates, and further rates as long as the best
one is the lowest or the highest tried. Then, on every seed, one after the other and in turns of who begins: the seconds
that ours takes to the bits a byte with which the peer ends, over the seconds that the peer takes to its end. Measuring
is not timed on either side. Both are measured on the same rows, which begin with BOS as ours does; the peer also on
blocks of one long stream, as it is trained, and the better of its two counts.

Beside it the tokens a second of both, and of transformers' own Trainer, at the same shapes: the same model, rows and
rows a step. They take turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tyro

from benchmarks.environments import interpreter
from benchmarks.ours.pretrain import Task as OurTask
from benchmarks.peers.nanogpt import Task as PeerTask
from benchmarks.processes import data_folder
from benchmarks.publish import PAGE, ROOT, processor, replace_between
from manners.pretrain import dial, vocabulary
from manners.pretrain.corpus import sample, survey, tokenised
from manners.pretrain.measure import HeldOut
from manners.pretrain.vocabulary import encode

RESULTS = ROOT / "benchmarks" / "time_to_loss.json"
SHAKESPEARE, STORIES = "time_to_loss_shakespeare", "time_to_loss_stories"
RATES = (1e-3, 2e-3, 4e-3)
"""The recipe's for small models, and two above it."""
FURTHER = 3
"""Most rates that are tried beyond these, each twice or half of the last."""
SPEED_ROWS, SPEED_STEPS, SPEED_TURNS = 16, 20, 3
"""Rows a step, steps, and how often the contenders take turns where tokens a second are measured."""
TRAINER = "trl-1.16.0"
"""The environment that has transformers' Trainer."""
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Options:
    """What to run."""

    only: tuple[str, ...] = (SHAKESPEARE, STORIES)
    depth: int = 3
    vocabulary: int = 2048
    row: int = 256
    tokens: int = 1_000_000
    """That the peer reads."""
    share: float = 0.75
    """Of them that ours reads; it is timed to where it is as good, or never is."""
    peer_batches: tuple[int, ...] = (1024,)
    """Tokens of a step of the peer, each of which it tries."""
    batch: int | None = None
    """Of ours; as the dial says if left out."""
    seeds: int = 3
    threads: int = os.cpu_count() or 1
    results: Path = RESULTS
    page: Path = PAGE


def main(options: Options) -> None:
    """Measure on each text, and publish it as soon as it is measured."""
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix="manners-benchmark-") as scratch:
            found = {"name": name, **measured(text(name, Path(scratch)), options, Path(scratch))}
        publish(found, options)


def text(name: str, scratch: Path) -> Path:
    """Return the text of a benchmark: what lies in the folder of data, or stories that are made."""
    if name == STORIES:
        made = scratch / "stories"
        script = ROOT / "examples" / "from-nothing" / "stories.py"
        subprocess.run([sys.executable, str(script), str(made), "--megabytes", "16"], check=True, capture_output=True)
        return made / "stories.txt"
    if name != SHAKESPEARE:
        raise SystemExit(f"--only: there is no benchmark {name} (there are: {SHAKESPEARE}, {STORIES})")
    file = data_folder() / "tinyshakespeare" / "input.txt"
    if not file.is_file():
        raise SystemExit(f"{file} is not there; put tinyshakespeare there, or name its folder's parent in MANNERS_DATA")
    return file


def measured(source: Path, options: Options, scratch: Path) -> dict[str, Any]:
    """Let both train, and say in how much of the peer's time ours was as good, and how fast all three are."""
    ours, peer = prepared(source, options, scratch)
    fast = speeds(ours, peer, options, scratch)
    tried = tuned(peer, options, scratch)
    best = min(tried, key=lambda task: tried[task][-1][1])
    rounds = list[dict[str, Any]]()
    for seed in range(options.seeds):
        short = replace(ours, tokens=round(options.share * options.tokens))
        both: list[tuple[str, OurTask | PeerTask]] = [("peers.nanogpt", best), ("ours.pretrain", short)]
        found = {
            module: run(module, replace(task, seed=seed), options, scratch)
            for module, task in (both if seed % 2 == 0 else both[::-1])
        }
        theirs, mine = found["peers.nanogpt"], found["ours.pretrain"]
        rounds.append({"seed": seed, "peer": theirs, "ours": mine, "ratio": ratio(mine, theirs)})
        print(f"seed {seed}: {summary(mine, theirs)}", file=sys.stderr)
    return {
        "processor": processor(),
        "threads": options.threads,
        "tokens": options.tokens,
        "share": options.share,
        "rate": best.rate,
        "batch": best.rows * best.row,
        "tried": [(task.rows * task.row, task.rate, *curve[-1]) for task, curve in tried.items()],
        "rounds": rounds,
        "speeds": fast,
    }


def speeds(ours: OurTask, peer: PeerTask, options: Options, scratch: Path) -> dict[str, list[float]]:
    """Return the tokens a second of each contender at the same shapes, by turn."""
    tokens = SPEED_STEPS * SPEED_ROWS * options.row
    mine = replace(ours, tokens=tokens, batch=SPEED_ROWS * options.row, measures=1)
    theirs = replace(peer, rows=SPEED_ROWS, steps=SPEED_STEPS, measures=1)
    contenders: dict[str, tuple[str, OurTask | PeerTask, str | None]] = {
        "ours": ("ours.pretrain", mine, None),
        "nanogpt": ("peers.nanogpt", theirs, None),
        "trainer": ("peers.trainer", theirs, TRAINER),
    }
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(SPEED_TURNS):
        for name in list(contenders) if turn % 2 == 0 else reversed(contenders):
            module, task, environment = contenders[name]
            found[name].append(tokens / run(module, task, options, scratch, environment)[-1][0])
            print(f"turn {turn + 1}, {name}: {found[name][-1]:.0f} tokens/s", file=sys.stderr)
    return found


def publish(found: dict[str, Any], options: Options) -> None:
    """Put what was found in the place of what the same benchmark found on the same processor, and write the table."""
    kept = json.loads(options.results.read_text(encoding="utf-8")) if options.results.is_file() else []
    kept = [one for one in kept if (one["name"], one["processor"]) != (found["name"], found["processor"])]
    rows = sorted([*kept, found], key=lambda one: (one["name"], one["processor"]))
    options.results.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    replace_between(options.page, "time-to-loss", table(rows))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of what was found."""
    lines = [
        "| benchmark | on | the peer ends with, bits a byte | after | ours is as good in [min, max] | ours ends with"
        " | tokens/s over nanoGPT's | over Trainer's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        rounds = one["rounds"]
        ratios = [turn["ratio"] for turn in rounds]
        share = (
            f"no, on {ratios.count(None)} of {len(ratios)} seeds"
            if None in ratios
            else f"**{median(ratios):.2f}** [{min(ratios):.2f}, {max(ratios):.2f}] of its time"
        )
        ours = one["speeds"]["ours"]
        over = [[a / b for a, b in zip(ours, one["speeds"][peer], strict=True)] for peer in ("nanogpt", "trainer")]
        cells = (
            f"`{one['name']}`",
            f"{one['threads']} threads, {one['processor']}",
            ", ".join(f"{turn['peer'][-1][1]:.3f}" for turn in rounds),
            f"{median(turn['peer'][-1][0] for turn in rounds):.0f} s",
            share,
            ", ".join(f"{turn['ours'][-1][1]:.3f}" for turn in rounds),
            *(f"{median(found):.2f} [{min(found):.2f}, {max(found):.2f}]" for found in over),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tuned(peer: PeerTask, options: Options, scratch: Path) -> dict[PeerTask, Curve]:
    """Let the peer try its batches and rates, and further rates where the best is at the edge of those tried."""
    tried = dict[PeerTask, Curve]()
    for batch in options.peer_batches:
        rows = max(1, batch // options.row)
        sized = replace(peer, rows=rows, steps=options.tokens // (rows * options.row))
        rates, ends = list(RATES), dict[float, float]()
        while rates:
            task = replace(sized, rate=rates.pop(0))
            tried[task] = run("peers.nanogpt", task, options, scratch)
            ends[task.rate] = tried[task][-1][1]
            print(f"peer, {rows} rows, rate {task.rate:g}: {ends[task.rate]:.3f} bits a byte", file=sys.stderr)
            if not rates and len(ends) < len(RATES) + FURTHER:
                rates = beyond(ends)
    return tried


def beyond(ends: Mapping[float, float]) -> list[float]:
    """Return the rate to try next, where the best of those tried is the lowest or the highest; else none.

    >>> beyond({1.0: 3.0, 2.0: 2.0, 4.0: 1.0}), beyond({1.0: 1.0, 2.0: 2.0}), beyond({1.0: 2.0, 2.0: 1.0, 4.0: 2.0})
    ([8.0], [0.5], [])
    """
    best = min(ends, key=lambda rate: ends[rate])
    if best == max(ends):
        return [2 * best]
    return [best / 2] if best == min(ends) else []


def prepared(text: Path, options: Options, scratch: Path) -> tuple[OurTask, PeerTask]:
    """Turn the text into tokens, for both."""
    ours = OurTask(
        text=str(text),
        separator="",
        folder=str(scratch / "tokens"),
        vocabulary=options.vocabulary,
        depth=options.depth,
        row=options.row,
        tokens=options.tokens,
        batch=options.batch,
        seed=0,
    )
    folder = Path(ours.folder)
    found = survey(ours.division, folder)
    tokenizer = vocabulary.learn(sample(ours.division, found, folder), options.vocabulary, options.row)
    tokenizer.save_pretrained(folder / "tokenizer")
    corpus = tokenised(ours.division, tokenizer, folder)
    bos, eos = vocabulary.ends_of(tokenizer)
    np.save(scratch / "train.npy", np.asarray(corpus.ids))
    held = [[bos, *ids, eos] for ids in encode(tokenizer, [document.text for document in corpus.measured])]
    np.save(scratch / "held.npy", np.concatenate([np.array(one, np.uint16) for one in held]))
    laid = HeldOut.of(corpus.measured, tokenizer, options.row + 1)
    np.save(scratch / "rows.npy", laid.rows.numpy())
    np.save(scratch / "targets.npy", laid.targets.numpy())
    shape = dial.shape(ours.settings, 10**9)
    return ours, PeerTask(
        train=str(scratch / "train.npy"),
        held_out=str(scratch / "held.npy"),
        held_rows=str(scratch / "rows.npy"),
        held_targets=str(scratch / "targets.npy"),
        held_out_bytes=sum(len(document.text.encode()) for document in corpus.measured),
        special=len(vocabulary.SPECIAL),
        vocabulary=shape.vocabulary,
        width=shape.width,
        layers=shape.depth,
        heads=shape.heads,
        hidden=shape.hidden,
        row=options.row,
        rows=1,
        steps=1,
        rate=RATES[0],
        seed=0,
    )


def run(
    module: str, task: OurTask | PeerTask, options: Options, scratch: Path, environment: str | None = None
) -> Curve:
    """Train in a process of its own, and return its curve."""
    file = scratch / "task.json"
    file.write_text(json.dumps(asdict(task)), encoding="utf-8")
    variables = os.environ | {"OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(ROOT)}
    python = sys.executable if environment is None else str(interpreter(environment))
    argv = [python, "-m", f"benchmarks.{module}", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=variables, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr)
    curve: Curve = [(seconds, bits) for seconds, bits in json.loads(done.stdout.strip().splitlines()[-1])]
    return curve


def ratio(ours: Curve, peer: Curve) -> float | None:
    """Return our seconds to the peer's last bits a byte over its seconds, between two measurements in proportion.

    None where ours never got there.
    """
    seconds, goal = peer[-1]
    before = (0.0, 8.0)
    for point in ours:
        if point[1] <= goal:
            share = (before[1] - goal) / (before[1] - point[1])
            return (before[0] + share * (point[0] - before[0])) / seconds
        before = point
    return None


def summary(ours: Curve, peer: Curve) -> str:
    """Say in a line how both ended."""
    found = ratio(ours, peer)
    return (
        f"peer {peer[-1][1]:.3f} bits a byte in {peer[-1][0]:.0f} s, ours {ours[-1][1]:.3f} in {ours[-1][0]:.0f} s,"
        f" as good in {'no' if found is None else f'{found:.2f} of its'} time"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
