"""What healthy curves look like, and unhealthy ones, each provoked: `python -m benchmarks.curves`.

Tiny models whose reward is planted (`tests/planted.py`), so that all of it takes minutes. Writes the picture and the
table of docs/curves.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from matplotlib.figure import Figure

from benchmarks.publish import ROOT, replace_between
from manners.metrics import RunLog
from manners.ppo.course import Material
from manners.ppo.train import PPOResult, train
from manners.reward.ensemble import RewardModel
from manners.settings import PPOSettings
from tests.planted import PROMPTS, WORLDS, Fooled, fast, world

PAGE, PICTURE = ROOT / "docs" / "curves.md", ROOT / "docs" / "pictures" / "curves.png"
SETTINGS = PPOSettings(updates=24, learning_rate=5e-3, prose_coefficient=0.0, forgetting_limit=1000.0, validate_every=2)
"""The defaults, but for what a model of one layer and eight words has no use for; the rate fits its size."""
LAST = 7
"""The word that the reward model is fooled by."""


@dataclass(frozen=True)
class Case:
    """A run that shows something."""

    world: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    fooled: float = 0.0
    """What the last of eight words earns as the first of an answer, and not by the member kept out of the reward."""


CASES = {
    "healthy": Case("first, any length"),
    "nothing is learned": Case("first, any length", {"learning_rate": 1e-6}),
    "no leash": Case("all of 40", {"kl_coefficient": 0.0, "learning_rate": 0.008}),
    "collapse": Case("first of 10", {"kl_coefficient": 0.0, "learning_rate": 0.015, "kl_stop": 10_000.0}),
    "over-optimisation": Case("first of 10", fooled=6.0),
    "longer and longer": Case("long", {"kl_coefficient": 0.01, "learning_rate": 0.01}),
}
PANELS: Mapping[str, Sequence[str]] = {
    "score (blue), by the member kept out (orange)": ("objective/scores", "validate/pessimistic"),
    "KL, nats a response": ("objective/kl",),
    "tokens a response": ("response/length",),
    "distinct pairs (blue), same answer (orange)": ("response/distinct_2", "response/most_common"),
    "explained variance": ("val/explained_variance",),
}


@dataclass(frozen=True)
class Options:
    """Where it goes."""

    page: Path = PAGE
    picture: Path = PICTURE


def main(options: Options) -> None:
    """Run every case, and publish."""
    torch.set_num_threads(1)
    ran = {name: run(case) for name, case in CASES.items()}
    replace_between(options.page, "curves", "\n".join(table(ran)))
    draw_all(ran, options.picture)


def run(case: Case) -> tuple[PPOResult, list[dict[str, Any]]]:
    """Train in a case's world; return what came of it, and the points of its curves."""
    there = world(WORLDS[case.world])
    reward = there.reward
    if case.fooled:
        reward = RewardModel((Fooled(there, LAST, case.fooled),), (0.0,), (1.0,), witness=there.reward)
    with ExitStack() as stack:
        stack.enter_context(fast())
        log = stack.enter_context(RunLog(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        settings, material = replace(SETTINGS, **case.settings), Material(PROMPTS, PROMPTS * 5, (), ())
        result = train(settings, there.sample, 0, there.pretrained, reward, material, log)
        return result, list(log.points)


def table(ran: Mapping[str, tuple[PPOResult, list[dict[str, Any]]]]) -> list[str]:
    """Return what each run did about itself, as a table."""
    rows = ["| run | what the run said of itself | kept: update |", "|---|---|---|"]
    for name, (result, _) in ran.items():
        said = "; ".join(str(one) for one in result.warned) or "nothing"
        rows.append(f"| {name} | {said} | {result.best_update} |")
    return rows


def draw_all(ran: Mapping[str, tuple[PPOResult, list[dict[str, Any]]]], picture: Path) -> None:
    """Draw a row of panels for each run; a dotted line is where a warning was acted upon."""
    figure = Figure(figsize=(3.1 * len(PANELS), 2.0 * len(ran)))
    axes = figure.subplots(len(ran), len(PANELS), squeeze=False)
    for axis, title in zip(axes[0], PANELS, strict=True):
        axis.set_title(title, fontsize=8)
    for row, (name, (result, points)) in zip(axes, ran.items(), strict=True):
        for axis, metrics in zip(row, PANELS.values(), strict=True):
            for metric in metrics:
                shown = [(p["step"], p[metric]) for p in points if metric in p]
                axis.plot(*zip(*shown, strict=True), label=metric, linewidth=1.5)
            for update in {one.update for one in result.warned}:
                axis.axvline(update, color="black", linestyle=":", linewidth=0.8)
            axis.tick_params(labelsize=7)
        row[0].set_ylabel(name, fontsize=9)
    figure.supxlabel("PPO update", fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(tyro.cli(Options))
