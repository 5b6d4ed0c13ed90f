"""A reward model that was made harder to fool, from the plan to what loads it: a version as any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from manners.errors import MannersError
from manners.loop import stages
from manners.loop.round import REWARD
from manners.loop.session import Session
from manners.models.branches import ScalarBranch
from manners.reward.stored import load_reward
from manners.settings import RewardSettings
from manners.workspace import Workspace
from tests.loop import tiny
from tests.reward.planted import comparisons
from tests.worlds import save_tiny

PLAIN = RewardSettings(members=2, epochs=1, batch=16, learning_rate=0.003, set_aside=0.3, curve=False)
HARD = replace(PLAIN, augment=0.4, length_head=True, reliability=True, smoothing=True)


def opened(tmp_path: Path, reward: RewardSettings, each: int = 3) -> Session:
    session = Session(Workspace.create(tmp_path / "w"), tiny.settings(save_tiny(tmp_path / "model"), reward=reward))
    some = comparisons(90, agreement=0.9)
    session.store.add_comparisons([replace(one, id=None, verdicts=one.verdicts[:each]) for one in some])
    return session


@pytest.mark.long
def test_a_hardened_reward_model_is_a_version_as_any_other(tmp_path: Path) -> None:
    session = opened(tmp_path, HARD)
    chosen = session.settings
    plan = stages.perform(session.workspace, chosen, REWARD, plan=True)
    facts = stages.perform(session.workspace, chosen, REWARD)
    # Of what is trained on two in five are made; what is set aside is what it was, and what measures.
    assert facts["made"] == plan["made"] == round(facts["trained_on"] * 0.4 / 0.6)
    assert facts["trained_on"] + facts["set_aside"] == 90 and facts["verdicts"] == 3 * facts["set_aside"]
    plain = stages.perform(session.workspace, replace(chosen, reward=PLAIN), REWARD)
    assert "made" not in plain and plain["set_aside"] == facts["set_aside"]
    for name in (facts["version"], plain["version"]):
        reward = load_reward(session.workspace, name, session.pretrained)
        assert [type(member) for member in reward.members] == [ScalarBranch, ScalarBranch]
        assert all(member.scalar.weight.shape == (1, session.pretrained.trunk.width) for member in reward.members)


@pytest.mark.parametrize("setting", ["reliability", "smoothing"])
def test_where_nobody_judged_what_others_did_training_is_refused(tmp_path: Path, setting: str) -> None:
    session = opened(
        tmp_path, replace(PLAIN, reliability=setting == "reliability", smoothing=setting == "smoothing"), each=1
    )
    with pytest.raises(MannersError, match=rf"set reward\.{setting}=false"):
        stages.perform(session.workspace, session.settings, REWARD)
