"""A pessimist is not fooled by what one member of the reward model likes for no reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from manners.metrics import RunLog
from manners.ppo import guard
from manners.ppo.course import Material
from manners.ppo.rollout import doubt
from manners.ppo.train import train
from manners.reward.ensemble import RewardModel, Scored
from manners.settings import PPOSettings
from tests.planted import PROMPTS, WORLDS, Fooled, fast, world


def test_what_is_taken_off_by_hand() -> None:
    # Means 2 and 4; deviations root 2/3 and 0, as of all members there are.
    scored = Scored(torch.tensor([[1.0, 4.0], [2.0, 4.0], [3.0, 4.0]]))
    assert doubt(scored, 0.0).tolist() == [0, 0]
    assert doubt(scored, 1.5).tolist() == pytest.approx([1.5 * (2 / 3) ** 0.5, 0])
    assert (scored.mean - doubt(scored, "minimum")).tolist() == [1, 4]


@pytest.mark.long
def test_what_members_differ_about_is_not_climbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "COLLAPSED_SHARE", 0.0)
    earned = dict[float | str, float]()
    tried: tuple[float | Literal["minimum"], ...] = (0.0, 1.0, "minimum")
    for pessimism in tried:
        there = world(WORLDS["first of 10"])
        # Each by another word, and none of the liked ones.
        members = tuple(Fooled(there, word, by=9.0) for word in (5, 6, 7))
        alike = RewardModel(members, (0.0,) * 3, (1.0,) * 3)
        # Who judges versions is fooled as well: what is kept is what was climbed.
        reward = replace(alike, witness=alike)
        settings = PPOSettings(
            updates=24,
            learning_rate=5e-3,
            prose_coefficient=0.0,
            forgetting_limit=1000.0,
            validate_every=24,
            pessimism=pessimism,
        )
        with RunLog(tmp_path / str(pessimism)) as log, fast():
            material = Material(PROMPTS, PROMPTS * 5, (), ())
            result = train(settings, there.sample, 0, there.pretrained, reward, material, log)
        assert result.best_update == 24
        earned[pessimism], _ = there.worth(result.policy)
    assert earned[0.0] < 0 < 1.3 < min(earned[1.0], earned["minimum"]), earned
