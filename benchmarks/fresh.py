"""The demo on prompts that no setting was chosen by: `python -m benchmarks.fresh --seed 7`; a line of docs/fresh.md.

Trained as `manners demo` is, on the same prompts; judged on all of `benchmarks/fresh_prompts.jsonl`. Name a seed before
you run it, and keep every line.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import tyro

from manners.data import DEMO_SYSTEM, DEMO_TOML, demo_prompts
from manners.facts import Facts
from manners.loop.round import play
from manners.loop.session import Session
from manners.settings import Settings
from manners.settings_load import load
from manners.types import Dialogue, PromptUse, Role, Turn
from manners.workspace import Workspace

ROOT = Path(__file__).parents[1]
PROMPTS = ROOT / "benchmarks" / "fresh_prompts.jsonl"
PAGE = ROOT / "docs" / "fresh.md"
END = "<!-- /runs -->"
BOUNDS = ("estimate", "low", "high")


@dataclass(frozen=True)
class Options:
    """What to run."""

    seed: int
    workspace: Path | None = None
    """A folder that stays for inspection; fresh-SEED if left out. One that was stopped goes on."""


def demo_settings(seed: int) -> Settings:
    """Return the settings of `manners demo --seed SEED`."""
    return load(DEMO_TOML, (f"seed={seed}",)).settings


def fresh_prompts() -> list[Dialogue]:
    """Return the evaluation prompts, laid out as the demo's are."""
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    return [(Turn(Role.SYSTEM, DEMO_SYSTEM), Turn(Role.USER, row["prompt"])) for row in rows]


def run(root: Path, settings: Settings, prompts: dict[PromptUse, list[Dialogue]]) -> Facts:
    """Play a round in a workspace and return its report; one that was stopped goes on."""
    count = len(prompts[PromptUse.EVALUATE])
    chosen = replace(settings, evaluate=replace(settings.evaluate, prompts=count))
    resume = root.exists()
    workspace = Workspace.open(root) if resume else Workspace.create(root)
    session = Session(workspace, chosen)
    for use, dialogues in prompts.items():
        session.store.add_prompts(dialogues, use, "fresh" if use is PromptUse.EVALUATE else "demo")
    return play(session, crowd=True, resume=resume)


def noted(file: Path, named: str) -> list[str]:
    """Put a commit below those that a run was begun and went on with, unless it is the last of them; return all."""
    known = file.read_text(encoding="utf-8").split() if file.exists() else []
    if known[-1:] != [named]:
        known.append(named)
        file.write_text("\n".join(known) + "\n", encoding="utf-8")
    return known


def row(report: dict[str, Any], commit: str, day: date, minutes: float, went_on: bool = False) -> str:
    """Write the line of a run; of one that was stopped the minutes are those since it went on."""
    found, machine = report["evaluation"], report["machine"]
    best = found["best_of_n"]
    ratio = [1 + found["perplexity_change"][name] for name in BOUNDS]
    cells = (
        day.isoformat(),
        commit,
        str(report["seed"]),
        f"{found['prompts']}",
        f"{machine['cpu']}, {machine['cores']} threads",
        share(found["win_rate"], *found["interval"]),
        share(*(found["matched"][name] for name in BOUNDS)),
        f"n = {best['n']}: {share(*(best['head_to_head'][name] for name in BOUNDS))}",
        f"{ratio[0]:.3f} [{ratio[1]:.3f}, {ratio[2]:.3f}]",
        f"{minutes:.1f}{' since it went on' if went_on else ''}",
    )
    return f"| {' | '.join(cells)} |\n"


def share(estimate: float, low: float, high: float) -> str:
    """Write a share with its interval, in per cent."""
    return f"{estimate:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def append(page: Path, line: str) -> None:
    """Put a line below the others; none is ever taken away."""
    before, mark, after = page.read_text(encoding="utf-8").partition(END)
    if not mark:
        raise SystemExit(f"{page} has no line {END}, above which a run is written")
    page.write_text(before + line + mark + after, encoding="utf-8")


def commit() -> str:
    """Name the commit that runs, with a plus sign where files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def main(options: Options) -> None:
    """Run, and append the line."""
    begin, root = time.perf_counter(), options.workspace or Path(f"fresh-{options.seed}")
    earlier = root.exists()
    commits = noted(root.with_name(f"{root.name}.commits"), commit())
    run(root, demo_settings(options.seed), {**demo_prompts(), PromptUse.EVALUATE: fresh_prompts()})
    report = json.loads((root / "report.json").read_text(encoding="utf-8"))
    line = row(report, " then ".join(commits), date.today(), (time.perf_counter() - begin) / 60, went_on=earlier)
    append(PAGE, line)
    print(line, end="")


if __name__ == "__main__":
    main(tyro.cli(Options))
