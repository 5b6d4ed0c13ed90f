"""Bulk scoring: `python -m benchmarks.score`, rows a second of what `manners score` does."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from benchmarks.prepare import prompt_texts
from benchmarks.publish import PAGE, here, replace_between
from manners.loop.session import Session
from manners.models import versions
from manners.reward import stored
from manners.reward.ensemble import Exchange, RewardModel, score_exchanges
from manners.settings_load import from_dict
from manners.types import FinishReason, Response, Role, Turn, VersionKind
from manners.workspace import Workspace


@dataclass(frozen=True)
class Options:
    """What to run."""

    workspace: Path = Path("demo")
    """Where the newest reward model comes from; `make demo` leaves such a folder."""
    answers: int = 8
    """To each prompt of the committed mix."""
    threads: int = os.cpu_count() or 1


def main(options: Options) -> None:
    """Score the same answers with one member and with all, and publish the table."""
    if not options.workspace.is_dir():
        raise SystemExit(f"{options.workspace} is no workspace; run `make demo`, or name one with --workspace")
    torch.set_num_threads(options.threads)
    workspace = Workspace.open(options.workspace)
    version = versions.describe(workspace, versions.latest(workspace, VersionKind.REWARD))
    pretrained = Session(workspace, from_dict(version.settings)).pretrained
    whole = stored.load_reward(workspace, version.name, pretrained)
    trunk = pretrained.trunk
    rows = list(exchanges(options.answers))
    lines = ["| members | prompts read | rows/s |", "|---|---|---|"]
    for members in sorted({1, len(whole.members)}):
        reward = RewardModel(whole.members[:members], whole.shifts[:members], whole.scales[:members])
        for name, shares in (("once an answer", False), ("once", True)):
            given = replace(pretrained, trunk=replace(trunk, compute=replace(trunk.compute, shares_prompts=shares)))
            begin = time.perf_counter()
            count = sum(len(scored.mean) for scored in score_exchanges(reward, given, rows))
            lines.append(f"| {members} | {name} | {count / (time.perf_counter() - begin):.1f} |")
    lines += ["", f"{len(rows)} answers to {len(rows) // options.answers} prompts. {here()}"]
    print("\n".join(lines))
    replace_between(PAGE, "scoring", "\n".join(lines))


def exchanges(answers: int) -> Iterator[Exchange]:
    """Answer every prompt of the mix with other texts of it."""
    texts, order = prompt_texts(), random.Random(0)
    for text in texts:
        for other in order.sample(texts, answers):
            yield (Turn(Role.USER, text),), Response(other, "benchmark", FinishReason.STOP)


if __name__ == "__main__":
    main(tyro.cli(Options))
