"""A table of demos, one row for each, from its `report.json`; with `--publish` it takes the place of the README's.

for seed in 0 1 2; do manners demo --seed $seed --workspace demo-$seed; done
python benchmarks/demo_table.py demo-0 demo-1 demo-2 --publish
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- figures: demo -->\n", "<!-- /figures: demo -->"
HEAD = """| seed | win rate | at matched length | taste | content | perplexity | reward model | best rule |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Options:
    """Put demos side by side."""

    demos: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR")]
    """Their workspaces."""
    publish: bool = False
    """Put the table into the README, in place of the one there."""


def share(estimate: float, low: float, high: float) -> str:
    """Write a share with its interval, in per cent."""
    return f"{estimate:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def row(report: dict[str, Any]) -> str:
    """Write a demo's row of the table."""
    evaluation, reward = report["evaluation"], report["reward"]
    matched = evaluation["matched"]
    best = max(reward["baselines"], key=lambda name: float(reward["baselines"][name]["estimate"]))
    rule = reward["baselines"][best]
    cells = (
        str(report["seed"]),
        share(evaluation["win_rate"], *evaluation["interval"]),
        share(matched["estimate"], matched["low"], matched["high"]),
        *(f"{evaluation[f'{part}_before']:.2f} → {evaluation[f'{part}_after']:.2f}" for part in ("taste", "content")),
        f"{evaluation['perplexity_change']['estimate']:+.1%}",
        share(reward["accuracy"], *reward["interval"]),
        f"{best.replace('_', ' ')}: {share(rule['estimate'], rule['low'], rule['high'])}",
    )
    return f"| {' | '.join(cells)} |\n"


def taken(reports: Sequence[dict[str, Any]]) -> str:
    """Say how many minutes stages took, by the number of threads that they had."""
    minutes: dict[int, list[float]] = {}
    for report in reports:
        minutes.setdefault(report["machine"]["cores"], []).append(sum(report["seconds"].values()) / 60)
    spans = {
        threads: " to ".join(dict.fromkeys(f"{limit:.0f}" for limit in (min(some), max(some))))
        for threads, some in sorted(minutes.items(), reverse=True)
    }
    return " and ".join(f"{span} minutes on {threads} thread{'s' * (threads > 1)}" for threads, span in spans.items())


def table(reports: Sequence[dict[str, Any]]) -> str:
    """Write the table, what the demos took, and how far seeds are apart, where each has a seed of its own."""
    memory = max(report["peak_memory_bytes"] for report in reports) / 1e9
    text = (
        f"\n{'Its' if len(reports) == 1 else 'Their'} stages took {taken(reports)} of"
        f" {reports[0]['machine']['cpu']}, and at most {memory:.1f} GB of memory.\n"
    )
    if len({report["seed"] for report in reports}) == len(reports) > 1:  # else they differ by more than their seed
        spread = stdev(100 * report["evaluation"]["win_rate"] for report in reports)
        text += (
            f"From seed to seed the win rate has a standard deviation of {spread:.1f} points. No interval in the table"
            " holds that: each is of one run, over its prompts.\n"
        )
    return HEAD + "".join(row(report) for report in reports) + text


def main() -> None:
    """Print the table of the demos named on the command line, and put it into the README where that is asked for."""
    options = tyro.cli(Options)
    found = table([json.loads((folder / "report.json").read_text(encoding="utf-8")) for folder in options.demos])
    if options.publish:
        before, _, rest = README.read_text(encoding="utf-8").partition(START)
        README.write_text(before + START + found + END + rest.partition(END)[2], encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()
