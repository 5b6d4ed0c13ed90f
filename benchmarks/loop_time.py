"""What rounds take beside one demo: `python -m benchmarks.loop_time demo`, where `demo` has a demo that has finished.

Rounds with the demo's settings, prompts and simulated crowd, in a workspace of their own: `manners loop --crowd` in one
process, timed from outside, loading included, over the seconds of the demo's stages. The figures go to docs/rounds.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from benchmarks.publish import ROOT, here, replace_between
from manners.data import demo_prompts
from manners.loop.round import ASKED
from manners.loop.session import Session
from manners.settings import Settings
from manners.workspace import Workspace

PAGE = ROOT / "docs" / "rounds.md"
COMMAND = (sys.executable, "-c", "import sys; from manners.cli import main; sys.exit(main())")


@dataclass(frozen=True)
class Options:
    """What to run."""

    demo: Annotated[Positional[Path], arg(metavar="DIR")]
    """The folder of a demo that was run on this machine, from its beginning to its end."""
    rounds: int = 3
    publish: bool = True
    """Write the figures into the documentation."""


def prepare(folder: Path, demo: Path) -> None:
    """Make a workspace with the demo's settings and prompts."""
    session = Session(Workspace.create(folder), Settings())
    copyfile(demo / "manners.toml", session.workspace.toml)
    with closing(session.store) as store:
        for use, dialogues in demo_prompts().items():
            store.add_prompts(dialogues, use, "demo")


def play(folder: Path, rounds: int) -> tuple[float, Mapping[str, Any]]:
    """Play the rounds; return the seconds that they took, and what the loop said at its end."""
    command = (*COMMAND, "loop", "--rounds", str(rounds), "--crowd", "--set", f"loop.prompts={ASKED}", "--json")
    begin = time.perf_counter()
    ended = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - begin, json.loads(ended.stdout)


def table(seconds: float, demo: float, rounds: list[Mapping[str, Any]]) -> str:
    """Write a row for each round, and what all of them took."""
    rows = [
        f"| {number['round']} | {number['verdicts']:,} | {rate(number['win_rate'], number['interval'])}"
        f" | {rate(*quality(number))} | {'not told' if number['kl'] is None else format(number['kl'], '.1f')}"
        f" | {number['outcome']} |"
        for number in rounds
    ]
    return "\n".join(
        (
            "| round | verdicts | over the version before | over the start version | KL, nats | outcome |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"{seconds / 60:.0f} minutes, **{seconds / demo:.2f} times** the {demo / 60:.1f} minutes of a demo's stages"
            f". {here()}",
        )
    )


def quality(number: Mapping[str, Any]) -> tuple[float | None, list[float] | None]:
    """Return a round's rate over the start version with its interval, if it was told."""
    told = number["quality"]
    return (told[0], list(told[1:])) if told else (None, None)


def rate(estimate: float | None, interval: list[float] | None) -> str:
    """Write a win rate with its interval, in per cent."""
    if estimate is None or interval is None:
        return "not told"
    return f"{100 * estimate:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def main(options: Options) -> None:
    """Play the rounds, and print what they took."""
    demo = sum(json.loads((options.demo / "report.json").read_text(encoding="utf-8"))["seconds"].values())
    with tempfile.TemporaryDirectory(prefix="manners-loop-time-") as scratch:
        prepare(Path(scratch) / "rounds", options.demo)
        seconds, said = play(Path(scratch) / "rounds", options.rounds)
    text = table(seconds, demo, said["rounds"])
    print(text)
    if options.publish:
        replace_between(PAGE, "figures: loop_time", text)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
