"""A tiny project: a random model of four layers, two dozen prompts, and a crowd that likes figures."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest

from manners.feedback import crowd
from manners.feedback.crowd import Taste, Weights
from manners.loop import round as loop_round
from manners.loop.session import Session
from manners.settings import (
    CrowdSettings,
    EvaluateSettings,
    ModelSettings,
    PPOSettings,
    RewardSettings,
    SampleSettings,
    Settings,
)
from manners.types import Dialogue, PromptUse, Role, Turn
from manners.workspace import Workspace

FIGURES = Taste("figures", Weights(plainness=0.5, figures=3.0), -inf)
"""What a model that babbles can be liked for; the tastes that ship would find all of its answers bad."""
MODEL = ModelSettings(trainable_layers=2, device="cpu", context=256)
SETTINGS = Settings(
    seed=3,
    model=MODEL,
    sample=SampleSettings(answers=2, temperature=1.0, max_new_tokens=8, batch=32),
    crowd=CrowdSettings(taste="figures", annotators=6, verdicts_per_comparison=2),
    reward=RewardSettings(members=2, epochs=2, batch=8, learning_rate=0.003, set_aside=0.3, curve=False),
    ppo=PPOSettings(updates=2, batch=16, minibatch=8, epochs=2, learning_rate=0.01, validate_every=1),
    evaluate=EvaluateSettings(prompts=12, samples=2, bootstrap=200),
)
LIVELY = ("seconds", "per_second", "peak_memory", "time/", "machine", "created_at")
"""Parts of the names of facts that differ from run to run."""


def prompts(count: int, about: str) -> list[Dialogue]:
    """Make short prompts."""
    return [(Turn(Role.USER, f"{about} {number}?"),) for number in range(count)]


PROMPTS = {
    PromptUse.TRAIN: prompts(24, "bread"),
    PromptUse.VALIDATE: prompts(8, "train"),
    PromptUse.EVALUATE: prompts(12, "sea"),
}


def settings(model: Path, seed: int = SETTINGS.seed, **stages: Any) -> Settings:
    """Return the tiny settings for a saved model, with some stages' settings replaced."""
    return replace(SETTINGS, seed=seed, model=replace(MODEL, name=str(model)), **stages)


def demo(root: Path, chosen: Settings, dialogues: dict[PromptUse, list[Dialogue]] = PROMPTS) -> dict[str, Any]:
    """Run the demo on these prompts; return report.json."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(crowd.TASTES, FIGURES.name, FIGURES)
        patch.setattr(loop_round, "demo_prompts", lambda: dialogues)
        loop_round.demo(root, chosen)
    return read_report(root)


def read_report(root: Path) -> dict[str, Any]:
    """Return report.json."""
    facts: dict[str, Any] = json.loads((root / "report.json").read_text(encoding="utf-8"))
    return facts


def steady(facts: Any) -> Any:
    """Return facts without those that a clock or the machine decides."""
    if isinstance(facts, dict):
        return {k: steady(v) for k, v in facts.items() if not any(part in k for part in LIVELY)}
    return [steady(item) for item in facts] if isinstance(facts, list) else facts


def toml(chosen: Settings) -> str:
    """Write settings as manners.toml holds them, but for the taste, which only tests know."""
    lines = [f"seed = {chosen.seed}"]
    for stage in ("model", "sample", "crowd", "reward", "ppo", "evaluate"):
        defaults, values = getattr(Settings(), stage), getattr(chosen, stage)
        changed = {k: v for k, v in vars(values).items() if v != getattr(defaults, k) and k != "taste"}
        lines += [f"[{stage}]", *(f"{name} = {json.dumps(value)}" for name, value in changed.items())]
    return "\n".join(lines) + "\n"


def project(root: Path, model: Path, dialogues: dict[PromptUse, list[Dialogue]] = PROMPTS) -> Session:
    """Make a workspace with prompts, settings in its file too, and open it."""
    workspace = Workspace.create(root)
    chosen = settings(model)
    workspace.toml.write_text(toml(chosen), encoding="utf-8")
    session = Session(workspace, chosen)
    for use, some in dialogues.items():
        session.store.add_prompts(some, use, "test")
    return session
