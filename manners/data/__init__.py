"""What ships with the package: prompts and settings of the demo, and plain prose against forgetting."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from manners.types import Dialogue, PromptUse, Role, Turn

DEMO_SYSTEM = "Answer in one short sentence."
"""The system turn before every prompt of the demo."""
DEMO_TOML = Path(__file__).parent / "demo.toml"
"""The demo's own settings: it begins with a copy of them as its `manners.toml`."""


def demo_prompts() -> dict[PromptUse, list[Dialogue]]:
    """Return the demo's prompts by use, each a system turn (`DEMO_SYSTEM`) and one user turn.

    The split is part of the file and never changes: what is kept for evaluation stays unseen in every run.
    """
    system = Turn(Role.SYSTEM, DEMO_SYSTEM)
    prompts: dict[PromptUse, list[Dialogue]] = {use: [] for use in PromptUse}
    for line in _read("prompts.jsonl").splitlines():
        row = json.loads(line)
        prompts[PromptUse(row["use"])].append((system, Turn(Role.USER, row["prompt"])))
    return prompts


def plain_text(use: PromptUse) -> list[str]:
    """Return plain English prose as paragraphs, all of it written for this package.

    PPO holds a policy to what the initial model made of some of them (train). A policy's perplexity on the others,
    before and after, shows how much of its general English it has forgotten: while PPO chooses the version it keeps
    (validate), and when that version is judged (evaluate).
    """
    return _read(f"prose_{use}.txt").strip().split("\n\n")


def _read(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
