"""Both contenders of the learning benchmark are given one reward, and ours learns from it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from benchmarks import contender, goal
from benchmarks.contender import PPOTask, as_task
from benchmarks.ours import ppo
from manners.feedback import crowd
from manners.text import Rendered, collate
from tests.loop import calls, tiny
from tests.worlds import save_tiny


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PPOTask:
    monkeypatch.setitem(crowd.TASTES, tiny.FIGURES.name, tiny.FIGURES)
    monkeypatch.setattr(goal, "BATCH", 4)
    session = tiny.project(tmp_path / "project", save_tiny(tmp_path / "model"))
    calls.sample(session, crowd=True)
    calls.train_reward(session)
    monkeypatch.setattr("sys.argv", ["goal", str(tmp_path / "project"), str(tmp_path)])
    goal.main()
    task = replace(as_task(PPOTask, json.loads((tmp_path / "goal.json").read_text())), updates=2)
    (tmp_path / "goal.json").write_text(json.dumps(asdict(task)))
    return task


def test_the_exported_reward_is_that_of_ours_and_ours_learns_from_it(
    task: PPOTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert task.goal is not None and len(task.prompts) == 24
    pretrained = ppo.loaded(task.model.folder, task.trainable_layers)
    reward = ppo.stored_reward(task.goal, pretrained)
    ids = tuple(task.prompts[0])
    batch = collate([Rendered(ids, (90, 91, 92))], task.model.pad_id)
    exported = AutoModelForSequenceClassification.from_pretrained(task.goal.folder)
    with torch.no_grad():
        logit = float(exported(input_ids=torch.tensor([[*ids, 90, 91, 92]])).logits)
    ours = float(reward.score(pretrained.trunk.states(batch), batch).mean)
    assert len(reward.members) == 1 and ours == pytest.approx(logit - task.goal.shift, abs=1e-4)

    monkeypatch.setattr("sys.argv", ["ppo", str(tmp_path / "goal.json")])
    ppo.main()
    found = contender.parse(capsys.readouterr().out.splitlines()[-1])
    assert len(found.curve) == 2 and found.units == 4
    assert max(abs(score) for _, score in found.curve) < 5, "scores are in standard deviations of the initial model's"
