"""PPO in the world whose best policy is known (`tests.worlds.known_world`), to the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manners.metrics import RunLog
from manners.ppo import guard
from manners.ppo.course import Material
from manners.ppo.train import PPOResult, train
from manners.reward.ensemble import RewardModel
from manners.settings import PPOSettings, SampleSettings
from tests.worlds import KNOWN_PROMPTS, KnownWorld

SAMPLE = SampleSettings(temperature=1.0, max_new_tokens=2)


def to_the_end(patch: pytest.MonkeyPatch) -> None:
    """Short sequences go through in one batch; an optimum of one answer a prompt, or of cut-off ones, is no fault."""
    patch.setattr("manners.models.compute.BUCKET_TOKENS", 1_000_000)
    patch.setattr(guard, "COLLAPSED_SHARE", 0.0)
    patch.setattr(guard, "SAME_ANSWER", 1.0)
    patch.setattr(guard, "FINISHED_FLOOR", 1.1)


def trained(
    world: KnownWorld, reward: RewardModel, coefficient: float, folder: Path, updates: int, **more: Any
) -> PPOResult:
    """Return what a run comes to: nothing but the initial model and the policy at its end is a candidate."""
    settings = PPOSettings(
        updates=updates,
        batch=256,
        minibatch=128,
        epochs=2,
        learning_rate=0.003,
        kl_coefficient=coefficient,
        kl_stop=10_000.0,
        value_coefficient=0.5,
        value_clip=100.0,
        unfinished_penalty=0.0,
        validate_every=updates,
        validation_prompts=256,
        **more,
    )
    with RunLog(folder) as log:
        material = Material(KNOWN_PROMPTS, KNOWN_PROMPTS * 32, (), ())
        return train(settings, SAMPLE, 0, world.pretrained, reward, material, log)
