"""Speed and memory of two checkouts of this repository, in turns: what a change of the code costs or saves.

python -m benchmarks.between ../before --rounds 5

Ours of `benchmarks.run` on the same inputs with the code of each checkout, in the other order each round; ratios are
taken within a round.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from benchmarks.contender import Measurement
from benchmarks.prepare import Request
from benchmarks.processes import ROOT, Contender, measure, pairs_file, prepare
from benchmarks.run import SET_ASIDE, Options, chosen, generate, ppo, reward

DEFAULT = ("ppo_k6", "reward_3", "generate_32")


@dataclass(frozen=True)
class Turns:
    """What to compare."""

    before: Annotated[Positional[Path], arg(metavar="DIR")]
    """The other checkout; its code runs with the packages of this one."""
    only: tuple[str, ...] = DEFAULT
    """Names of benchmarks."""
    rounds: int = 5
    threads: int = Options().threads
    pairs: int = Options().pairs


def main(turns: Turns) -> None:
    """Measure, and print a line for each benchmark."""
    with tempfile.TemporaryDirectory(prefix="manners-between-") as scratch:
        inputs = prepare(Request(scratch, pairs_file(), turns.pairs, SET_ASIDE), turns.threads)
        groups = chosen([ppo(inputs, False), reward(inputs), *generate(inputs, False)], turns.only)
        print("| benchmark | after / before, speed | memory | before | after |\n|---|---|---|---|---|")
        for group in groups:
            for name, task in group.ours.items():
                module = f"benchmarks.ours.{group.stage}"
                sides = (Contender(module, task, root=turns.before.absolute()), Contender(module, task, root=ROOT))
                rounds = list(take_turns(sides, turns, Path(scratch)))
                print(line(name, group.unit, rounds), flush=True)


def take_turns(
    sides: tuple[Contender, Contender], turns: Turns, folder: Path
) -> Iterator[tuple[Measurement, Measurement]]:
    """Yield what both sides measured, round by round."""
    before, after = sides
    for number in range(turns.rounds):
        if number % 2 == 0:
            first = measure(before, turns.threads, folder)
            second = measure(after, turns.threads, folder)
        else:
            second = measure(after, turns.threads, folder)
            first = measure(before, turns.threads, folder)
        parts = ", ".join(
            f"{part} {first.parts[part].seconds:.1f} s and {second.parts[part].seconds:.1f} s"
            for part in first.parts
            if part in second.parts
        )
        print(f"round {number + 1}: {first.speed:.3f} before, {second.speed:.3f} after ({parts})", file=sys.stderr)
        yield first, second


def line(name: str, unit: str, rounds: list[tuple[Measurement, Measurement]]) -> str:
    """Write the medians of the ratios, with their range."""
    speed = [after.speed / before.speed for before, after in rounds]
    memory = [after.memory_bytes / before.memory_bytes for before, after in rounds]
    plain = [median(side.speed for side in sides) for sides in zip(*rounds, strict=True)]
    return (
        f"| {name} | {median(speed):.3f} [{min(speed):.3f}, {max(speed):.3f}]"
        f" | {median(memory):.3f} [{min(memory):.3f}, {max(memory):.3f}]"
        f" | {plain[0]:.3f} {unit} | {plain[1]:.3f} {unit} |"
    )


if __name__ == "__main__":
    main(tyro.cli(Turns))
