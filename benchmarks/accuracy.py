"""Does either reward model predict people better? `python -m benchmarks.accuracy`: same pairs, same held-out pairs.

No speeds are published here, so that the machine may do other things meanwhile: `benchmarks.run` compares speeds.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from benchmarks.contender import Measurement
from benchmarks.prepare import Request, split_of
from benchmarks.processes import Contender, measure, pairs_file, prepare
from benchmarks.publish import PAGE, ROOT, replace_between
from benchmarks.run import reward_task
from manners.reward.baselines import accuracy, accuracy_gain, characters, longer_wins
from manners.reward.labelled import LabelledPair
from manners.types import Interval

RESULTS = ROOT / "benchmarks" / "accuracy.json"
PEER = "TRL RewardTrainer"


@dataclass(frozen=True)
class Options:
    """What to run."""

    pairs: int = 1000
    """Random pairs of `hh_rlhf_harmless`."""
    set_aside: float = 0.3
    """Share of them that both are measured on."""
    threads: int = os.cpu_count() or 1
    """Threads of every contender."""


@dataclass(frozen=True)
class Accuracy:
    """A contender's held-out accuracy."""

    contender: str
    accuracy: Interval
    gain: Interval | None
    """Over the peer, paired by conversation; None for the peer itself and for the ruler."""
    trained_on: int
    held_out: int


def main(options: Options) -> None:
    """Train all contenders on the same pairs and publish their accuracy."""
    if pairs_file() is None:
        raise SystemExit("hh_rlhf_harmless is not there, and made-up pairs have no accuracy; set MANNERS_DATA")
    with tempfile.TemporaryDirectory(prefix="manners-accuracy-") as scratch:
        folder = Path(scratch)
        inputs = prepare(Request(scratch, pairs_file(), options.pairs, options.set_aside), options.threads)
        one = reward_task(inputs, options.set_aside)
        contenders = {
            "manners, one member": Contender("benchmarks.ours.reward", one),
            "manners, three members": Contender("benchmarks.ours.reward", replace(one, members=3)),
            PEER: Contender("benchmarks.peers.reward", one, "trl-1.16.0"),
        }
        found = {}
        for name, contender in contenders.items():
            found[name] = measure(contender, options.threads, folder)
            print(f"{name}: {found[name].seconds:.0f} s", file=sys.stderr)
        results = compared(found, split_of(Path(inputs.comparisons), options.set_aside).held_out, len(inputs.train))
    RESULTS.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n", encoding="utf-8")
    replace_between(PAGE, "accuracy", table(results))


def compared(found: Mapping[str, Measurement], held_out: Sequence[LabelledPair], trained_on: int) -> list[Accuracy]:
    """Measure every contender's margins on the held-out pairs, and add the ruler: the longer response wins."""
    margins = {name: np.asarray(measured.margins) for name, measured in found.items()}
    rows = [
        Accuracy(
            name,
            accuracy(margins[name], held_out, seed=0),
            None if name == PEER else accuracy_gain(margins[name], margins[PEER], held_out, seed=0),
            trained_on,
            len(held_out),
        )
        for name, measured in found.items()
    ]
    ruler = longer_wins(characters(held_out), held_out, seed=0)
    return [*rows, Accuracy("longer response wins", ruler, None, 0, len(held_out))]


def table(results: Sequence[Accuracy]) -> str:
    """Return the accuracies as a Markdown table."""
    lines = [
        f"Trained on {results[0].trained_on} pairs, measured on {results[0].held_out} others.",
        "",
        "| contender | held-out accuracy [95 %] | over the peer, points [95 %] |",
        "|---|---|---|",
    ]
    for result in results:
        share, gain = result.accuracy, result.gain
        gained = "" if gain is None else f"{_points(gain.estimate)} [{_points(gain.low)}, {_points(gain.high)}]"
        measured = f"{share.estimate:.1%} [{share.low:.1%}, {share.high:.1%}]"
        lines.append(f"| {result.contender} | {measured} | {gained} |")
    return "\n".join(lines)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


if __name__ == "__main__":
    main(tyro.cli(Options))
