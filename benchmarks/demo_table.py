"""The README's table: one row for each demo, from its `report.json`.

for seed in 0 1 2; do manners demo --seed $seed --workspace demo-$seed; done
python benchmarks/demo_table.py demo-0 demo-1 demo-2
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

START, END = "<!-- figures: demo -->\n", "<!-- /figures: demo -->"
HEAD = """| seed | win rate | at matched length | taste | content | perplexity | reward model | best rule |
|---|---|---|---|---|---|---|---|
"""


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


def main() -> None:
    """Put the table of the demos named on the command line into the README."""
    reports = [json.loads((Path(folder) / "report.json").read_text(encoding="utf-8")) for folder in sys.argv[1:]]
    memory = max(report["peak_memory_bytes"] for report in reports) / 1e9
    readme = Path(__file__).parents[1] / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    text = (
        f"\n{'Its' if len(reports) == 1 else 'Their'} stages took {taken(reports)} of"
        f" {reports[0]['machine']['cpu']}, and at most {memory:.1f} GB of memory.\n"
    )
    if len(reports) > 1:
        spread = stdev(100 * report["evaluation"]["win_rate"] for report in reports)
        text += (
            f"From seed to seed the win rate has a standard deviation of {spread:.1f} points. No interval in the table"
            " holds that: each is of one run, over its prompts.\n"
        )
    table = HEAD + "".join(row(report) for report in reports) + text
    readme.write_text(before + START + table + END + rest.partition(END)[2], encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
