"""A tiny world for PPO: a random model of four layers, and a reward whose maximum is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from manners.metrics import RunLog
from manners.models.branches import Branch, ScalarBranch
from manners.models.generate import Decoding, Generated, generate
from manners.models.pretrained import Pretrained
from manners.models.trunk import States, Trunk
from manners.ppo.course import Material, Roles
from manners.ppo.learner import Best, Learner, Validation
from manners.ppo.train import PPOResult, train
from manners.reward.ensemble import RewardModel
from manners.settings import PPOSettings, SampleSettings
from manners.text import Batch, Packed
from tests.worlds import END, START

LIKED = 80
"""A quarter of the vocabulary; the random model draws about as many."""
SAMPLE = SampleSettings(temperature=1.0, max_new_tokens=5)
PROMPTS = [(START, *range(40 + i, 44 + i + i % 3), END) for i in range(24)]
VALIDATION = [(START, *range(100 + i, 103 + i), END) for i in range(16)]
UPDATES = 10
RATE = 0.03
SETTINGS = PPOSettings(
    updates=UPDATES,
    batch=64,
    minibatch=32,
    epochs=4,
    learning_rate=RATE,
    kl_coefficient=0.05,  # of rewards in the raw
    value_clip=0.2,
    unfinished_penalty=0.0,
    forgetting_limit=1000.0,
    validate_every=2,
    validation_prompts=16,
)


class Likes(ScalarBranch):
    """A member that likes token ids below LIKED: four times their share of the response."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__(trunk, None)

    def scores(self, states: States, batch: Batch | Packed) -> Tensor:
        assert isinstance(batch, Batch)
        return 4 * ((batch.response_ids < LIKED) & batch.keep).sum(dim=1) / batch.keep.sum(dim=1)


def answers(policy: Branch, pretrained: Pretrained, count: int = 10) -> Generated:
    """Answer the validation prompts, always with the same random numbers."""
    prompts = [p for p in VALIDATION for _ in range(count)]
    return generate(
        policy.assembled(pretrained.trunk),
        pretrained.trunk,
        prompts,
        torch.rand((len(prompts), SAMPLE.max_new_tokens), generator=torch.Generator().manual_seed(7)).double(),
        Decoding.of(pretrained.renderer, SAMPLE, want_states=False),
    )


def liked_share(policy: Branch, pretrained: Pretrained) -> float:
    """Share of liked tokens among all that a policy draws."""
    batch = answers(policy, pretrained).batch
    return float((batch.response_ids < LIKED)[batch.keep].float().mean())


def likes(pretrained: Pretrained) -> RewardModel:
    """A reward model of a single scripted member."""
    return RewardModel((Likes(pretrained.trunk),), (0.0,), (1.0,))


def roles(pretrained: Pretrained, reward: RewardModel) -> Roles:
    """Policy and reference both the initial model; the value of column t is t / 10."""

    def value(_: States, hidden: Tensor, batch: Batch) -> Tensor:
        columns = torch.arange(batch.keep.shape[1], dtype=torch.float32) / 10
        return columns.expand(batch.keep.shape)

    reference, policy = (Branch(pretrained.trunk, trainable=trainable) for trainable in (False, True))
    return Roles(policy, reference, value, reward, pretrained)


PROSE = ("The train to the sea leaves at noon.", "How long does bread take in the oven?")
"""What forgetting is measured on: this world is not about English, and its limit is out of reach."""


def run(
    settings: PPOSettings,
    pretrained: Pretrained,
    reward: RewardModel,
    folder: Path,
    seed: int = 0,
    held_to: Sequence[str] = (),
) -> PPOResult:
    """Train on the prompts of this world, with the curves in `folder`."""
    with RunLog(folder) as log:
        return train(settings, SAMPLE, seed, pretrained, reward, Material(PROMPTS, VALIDATION, held_to, PROSE), log)


def keep(learner: Learner, update: int, found: Validation, _: float) -> None:
    """Stands for the choice among versions: the last one."""
    tensors = {name: t.clone() for name, t in learner.policy.own_tensors().items()}
    learner.best = Best(update, found, tensors, found)
