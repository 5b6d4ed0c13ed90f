"""The checks at start-up: silent in a sound world, and each of them loud where one thing is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from manners.errors import MannersError
from manners.models.pretrained import Pretrained
from manners.models.trunk import States
from manners.ppo import guard
from manners.ppo.rollout import Roles, Rollout, collect
from manners.reward.ensemble import RewardModel
from manners.settings import PPOSettings
from manners.text import Batch, Packed, Renderer
from tests.ppo.scripted import PROMPTS, SAMPLE, Likes, likes, roles
from tests.worlds import END_IDS, tiny_pretrained


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


def rolled_out(players: Roles) -> Rollout:
    return collect(players, PROMPTS, PPOSettings(), SAMPLE, 0.05, torch.Generator().manual_seed(1))


def test_a_sound_world_passes(world: Pretrained) -> None:
    players = roles(world, likes(world))
    checks = guard.check_first_rollout(rolled_out(players), players, SAMPLE.temperature)
    assert checks.keys() == {"check/ratio", "check/kl", "check/score"}
    assert all(abs(value) < 1e-4 for value in checks.values())


@pytest.mark.parametrize("temperature", [0.9, 1.1])
def test_sampling_at_another_temperature_than_scoring(world: Pretrained, temperature: float) -> None:
    players = roles(world, likes(world))
    with pytest.raises(MannersError, match=r"probability of a drawn token is off by .* different distributions"):
        guard.check_first_rollout(rolled_out(players), players, temperature)


def test_a_policy_that_is_not_the_reference(world: Pretrained) -> None:
    players = roles(world, likes(world))
    with torch.no_grad():
        for parameter in players.policy.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    with pytest.raises(MannersError, match=r"KL to the initial model is .* before any training"):
        guard.check_first_rollout(rolled_out(players), players, SAMPLE.temperature)


class Neighbourly(Likes):
    """A member whose score depends on who else is in the batch."""

    def scores(self, states: States, batch: Batch | Packed) -> Tensor:
        return super().scores(states, batch) + 0.05 * len(batch.ids)


class Indifferent(Likes):
    """A member that scores everything alike."""

    def scores(self, states: States, batch: Batch | Packed) -> Tensor:
        return torch.ones(len(batch.ids))


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (Neighbourly, r"score changes by 1\.1 standard deviations with the batch"),
        (Indifferent, "every response has the same score"),
    ],
)
def test_a_reward_that_cannot_be_used(world: Pretrained, member: type[Likes], says: str) -> None:
    players = roles(world, RewardModel((member(world.trunk),), (0.0,), 1.0))
    with pytest.raises(MannersError, match=says):
        guard.check_first_rollout(rolled_out(players), players, SAMPLE.temperature)


def test_a_pad_token_that_ends_turns(world: Pretrained) -> None:
    renderer = Renderer(world.tokenizer, END_IDS, 256)
    renderer.pad_id = min(END_IDS)
    players = roles(replace(world, renderer=renderer), likes(world))
    with pytest.raises(MannersError, match="pad token also ends turns"):
        guard.check_first_rollout(rolled_out(players), players, SAMPLE.temperature)


def test_scores_that_are_not_finite_are_named(world: Pretrained) -> None:
    rollout = rolled_out(roles(world, likes(world)))
    guard.check_scores(rollout, 3)
    scores = rollout.scores.clone()
    scores[[2, 5]] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(guard.NotFinite, match=r"reward is not finite at update 3, episodes \[2, 5\] of the batch"):
        guard.check_scores(replace(rollout, scores=scores), 3)


def test_the_kl_stop() -> None:
    assert guard.stop_reason(9.9, 10) is None
    assert guard.stop_reason(-0.1, 10) is None
    assert "reached 10.1 nats per response, above ppo.kl_stop = 10" in str(guard.stop_reason(10.1, 10))
    assert guard.stop_reason(float("nan"), 10) is not None
