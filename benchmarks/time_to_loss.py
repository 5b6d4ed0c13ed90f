"""How long until it writes as well: `python -m benchmarks.time_to_loss`, manners beside nanoGPT's plain loop.

Both train the same architecture on the same text with the same tokenizer, for as many tokens. On the first seed the
peer tries batches and rates, and further rates as long as the best one is the lowest or the highest tried. Then, on
every seed: the seconds that ours takes to the bits a byte with which the peer ends, over the seconds that the peer
takes to its end. Measuring is not timed on either side. Both are measured on the same rows, which begin with BOS as
ours does; the peer also on blocks of one long stream, as it is trained, and the better of its two counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tyro

from benchmarks.ours.pretrain import Task as OurTask
from benchmarks.peers.nanogpt import Task as PeerTask
from manners.pretrain import dial, vocabulary
from manners.pretrain.corpus import sample, survey, tokenised
from manners.pretrain.measure import HeldOut
from manners.pretrain.vocabulary import encode

RATES = (1e-3, 2e-3, 4e-3)
"""The recipe's for small models, and two above it."""
FURTHER = 3
"""Most rates that are tried beyond these, each twice or half of the last."""
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Options:
    """What to run."""

    text: Path
    """A file or folder of text."""
    name: str = "time_to_loss_shakespeare"
    separator: str = ""
    depth: int = 3
    vocabulary: int = 2048
    row: int = 256
    tokens: int = 2_000_000
    peer_batches: tuple[int, ...] = (2048, 8192)
    """Tokens of a step of the peer, each of which it tries."""
    batch: int | None = None
    """Of ours; as the dial says if left out."""
    seeds: int = 3
    threads: int = os.cpu_count() or 1
    output: Path | None = None
    """Where the figures go as JSON, beside standard output."""


def main(options: Options) -> dict[str, Any]:
    """Prepare, let both train, and say in how much of the peer's time ours was as good."""
    with tempfile.TemporaryDirectory(prefix="manners-benchmark-") as scratch:
        ours, peer = prepared(options, Path(scratch))
        tried = tuned(peer, options, scratch)
        best = min(tried, key=lambda task: tried[task][-1][1])
        rounds = list[dict[str, Any]]()
        for seed in range(options.seeds):
            theirs = run("peers.nanogpt", replace(best, seed=seed), options, scratch) if seed else tried[best]
            mine = run("ours.pretrain", replace(ours, seed=seed), options, scratch)
            rounds.append({"seed": seed, "peer": theirs, "ours": mine, "ratio": ratio(mine, theirs)})
            print(f"seed {seed}: {summary(mine, theirs)}", file=sys.stderr)
    ratios = [one["ratio"] for one in rounds]
    found: dict[str, Any] = {
        "name": options.name,
        "ratio": None if None in ratios else median(ratios),
        "ratios": ratios,
        "rate": best.rate,
        "batch": best.rows * best.row,
        "tried": [(task.rows * task.row, task.rate, *curve[-1]) for task, curve in tried.items()],
        "options": {name: str(value) for name, value in asdict(options).items()},
        "rounds": rounds,
    }
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in found.items() if name != "rounds"}))
    return found


def tuned(peer: PeerTask, options: Options, scratch: str) -> dict[PeerTask, Curve]:
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


def prepared(options: Options, scratch: Path) -> tuple[OurTask, PeerTask]:
    """Turn the text into tokens, for both."""
    ours = OurTask(
        text=str(options.text),
        separator=options.separator,
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


def run(module: str, task: OurTask | PeerTask, options: Options, scratch: str) -> Curve:
    """Train in a process of its own, and return its curve."""
    file = Path(scratch) / "task.json"
    file.write_text(json.dumps(asdict(task)), encoding="utf-8")
    environment: Mapping[str, str] = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    argv = [sys.executable, "-m", f"benchmarks.{module}", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
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
