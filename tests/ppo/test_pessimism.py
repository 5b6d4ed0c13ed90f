"""A pessimist is not fooled by what one member of the reward model likes for no reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from jaxtyping import Float
from torch import Tensor

from manners.metrics import RunLog
from manners.models.trunk import States
from manners.ppo import guard
from manners.ppo import rollout as rollout_module
from manners.ppo.course import Material
from manners.ppo.train import train
from manners.reward.ensemble import RewardModel
from manners.settings import PPOSettings
from manners.text import Batch, Packed
from tests.planted import FIRST_WORD, PROMPTS, WORLDS, Member, World, draw, world


class Fooled(Member):
    """A member that also likes answers which begin with one word."""

    def __init__(self, there: World, word: int) -> None:
        super().__init__(there.pretrained, there.planted)
        self.word = FIRST_WORD + word

    def scores(self, states: States, batch: Batch | Packed) -> Float[Tensor, " B"]:
        """Score every response."""
        assert isinstance(batch, Batch)
        return super().scores(states, batch) + 9.0 * (batch.response_ids[:, 0] == self.word)


@pytest.mark.long
def test_what_members_differ_about_is_not_climbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manners.models.compute.BUCKET_TOKENS", 1_000_000)
    monkeypatch.setattr(rollout_module, "generate", draw)
    monkeypatch.setattr(guard, "COLLAPSED_SHARE", 0.0)
    earned = {}
    for pessimism in (0.0, 1.0):
        there = world(WORLDS["first of 10"])
        members = tuple(Fooled(there, word) for word in (5, 6, 7))  # each by another word, and none of the liked ones
        alike = RewardModel(members, (0.0,) * 3, (1.0,) * 3)
        reward = replace(
            alike, witness=alike
        )  # who judges versions is fooled as well: what is kept is what was climbed
        settings = PPOSettings(
            updates=24,
            learning_rate=5e-3,
            prose_coefficient=0.0,
            forgetting_limit=1000.0,
            validate_every=24,
            pessimism=pessimism,
        )
        with RunLog(tmp_path / str(pessimism)) as log:
            material = Material(PROMPTS, PROMPTS * 5, (), ())
            result = train(settings, there.sample, 0, there.pretrained, reward, material, log)
        assert result.best_update == 24
        earned[pessimism], _ = there.worth(result.policy)
    assert earned[0.0] < 0 < 1.3 < earned[1.0], earned
