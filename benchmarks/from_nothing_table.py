"""The README's figures of `make from-nothing`, and a story of each phase, from its `report.json`.

make from-nothing && python benchmarks/from_nothing_table.py from-nothing
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

START, END = "<!-- figures: from-nothing -->\n", "<!-- /figures: from-nothing -->"
HEAD = """| after | carries what is asked | what another asks | the crowd's taste | preferred to the phase before |
|---|---|---|---|---|
"""
TITLES = {"pretrain": "pre-training", "sft": "learning from pairs", "ppo": "the crowd, a reward model, PPO"}


def share(value: dict[str, float] | None) -> str:
    """Write a share with its interval, in per cent."""
    return f"{value['estimate']:.1%} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]" if value else "-"


def row(title: str, phase: dict[str, Any]) -> str:
    """Write a phase's row of the table."""
    taste = phase["taste"]
    change = phase.get("taste_change")
    liked = f"{taste['estimate']:.2f}"
    if change:
        liked += f" ({change['estimate']:+.2f} [{change['low']:+.2f}, {change['high']:+.2f}])"
    by_chance = f"{phase['carried_by_chance']:.1%}"
    return f"| {title} | {share(phase['carried'])} | {by_chance} | {liked} | {share(phase.get('win_rate'))} |\n"


def block(report: dict[str, Any]) -> str:
    """Write what the README shows: the table, what it took, and the first request of the report with its answers."""
    phases, machine = report["phases"], report["machine"]
    wrote = phases["pretrain"]
    threads = f"{machine['cores']} thread{'s' if machine['cores'] > 1 else ''}"
    text = (
        f"Seed {report['seed']}: {report['seconds'] / 60:.0f} minutes on {threads} of {machine['cpu']}. The model of"
        f" {wrote['parameters'] / 1e6:.1f} million parameters needs"
        f" {wrote['bits_per_byte']:.2f} bits a byte of stories that it never saw, a 5-gram"
        f" {wrote['ngram_bits_per_byte']:.2f}, `gzip -9` {wrote['gzip_bits_per_byte']:.2f}."
    )
    shown = report["prompts"][0]
    stories = [f"The first request of the report, with the first answer of each: *{shown['prompt']}*", ""]
    for name, title in TITLES.items():
        answer = shown["answers"][name]
        told = " ".join(answer["text"].split()) + ("" if answer["finished"] else " [cut off]")
        stories += [f"- After {title}: {told}"]
    wrapped = [textwrap.fill(line, 118, subsequent_indent="  " if line.startswith("- ") else "") for line in stories]
    table = HEAD + "".join(row(title, phases[name]) for name, title in TITLES.items())
    return "\n".join([textwrap.fill(text, 118), "", table, *wrapped]) + "\n"


def main() -> None:
    """Put the figures of the run in the folder on the command line into the README."""
    report = json.loads((Path(sys.argv[1]) / "report.json").read_text(encoding="utf-8"))
    readme = Path(__file__).parents[1] / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    found = block(report)
    readme.write_text(before + START + found + END + rest.partition(END)[2], encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()
