"""PPO by manners: policy, reference, reward members and value as branches on one trunk."""

from __future__ import annotations

import tempfile
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch

from benchmarks import flops
from benchmarks.contender import Goal, Measurement, Part, PPOTask, read_task, report
from manners.metrics import RunLog, read
from manners.models.branches import ScalarBranch
from manners.models.pretrained import Pretrained, load
from manners.ppo.course import Material
from manners.ppo.train import train
from manners.reward.ensemble import RewardModel
from manners.reward.stored import load_reward
from manners.settings import ModelSettings, PPOSettings, SampleSettings
from manners.workspace import Workspace

NEVER = frozenset({-1})
"""End tokens that are never drawn: every response is as long as the limit, as the peer's are."""


def main() -> None:
    """Run the updates; the time is that of rollout and optimisation, the first update and validation left out."""
    task = read_task(PPOTask)
    pretrained = loaded(task.model.folder, task.trainable_layers)
    if task.goal is None:
        pretrained.renderer.end_ids = NEVER
        reward = random_reward(pretrained, task.members)
    else:
        reward = stored_reward(task.goal, pretrained)
    sample = SampleSettings(temperature=task.temperature, max_new_tokens=task.new_tokens)
    prompts = [tuple(ids) for ids in task.prompts]
    with tempfile.TemporaryDirectory() as folder, RunLog(Path(folder) / "run") as log:
        train(settings(task), sample, task.seed, pretrained, reward, Material(prompts, prompts[:1], (), ()), log)
        updates = [point for point in read(Path(folder) / "run") if "time/rollout" in point]
    episodes = task.batch * (len(updates) - 1)
    needed = flops.ours_ppo(task, episodes)
    parts = {name: Part(sum(point[f"time/{name}"] for point in updates[1:]), needed[name]) for name in needed}
    ends = accumulate(point["time/rollout"] + point["time/optimise"] for point in updates)
    curve = [(end, point["objective/scores"]) for end, point in zip(ends, updates, strict=True)]
    report(Measurement(episodes, parts, curve=curve))


def settings(task: PPOTask) -> PPOSettings:
    """Set PPO up as TRL has it: no penalty for an unfinished response, and nothing that stops the run."""
    return PPOSettings(
        updates=task.updates,
        batch=task.batch,
        minibatch=task.batch,
        epochs=task.epochs,
        learning_rate=task.learning_rate,
        value="shared" if task.value == "shared" else "separate",
        unfinished_penalty=0.0,
        kl_stop=10_000.0,
        prose_coefficient=0.0,
        forgetting_limit=1000.0,
        validate_every=1_000_000,
        validation_prompts=1,
    )


def loaded(folder: str, trainable_layers: int | str) -> Pretrained:
    """Load a model as every contender of ours does."""
    layers: int | Literal["all"] = "all" if trainable_layers == "all" else int(trainable_layers)
    return load(ModelSettings(name=folder, trainable_layers=layers, device="cpu"))


def random_reward(pretrained: Pretrained, members: int) -> RewardModel:
    """Make a reward model with random heads: what it likes changes no speed."""
    heads = [ScalarBranch(pretrained.trunk, torch.Generator().manual_seed(k)) for k in range(members)]
    for head in heads:
        head.requires_grad_(False)
    return RewardModel(tuple(heads), (0.0,) * members, (1.0,) * members)


def stored_reward(goal: Goal, pretrained: Pretrained) -> RewardModel:
    """Load the first member of a reward model: what its export holds."""
    reward = load_reward(Workspace(Path(goal.workspace)), goal.version, pretrained)
    return RewardModel(reward.members[:1], reward.shifts[:1], reward.scales[:1])


if __name__ == "__main__":
    main()
