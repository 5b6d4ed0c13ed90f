"""Both contenders of the learning benchmark are given one reward, and ours learns from it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import contender, goal
from benchmarks.contender import PPOTask, as_task
from benchmarks.ours import ppo
from benchmarks.peers import score as peer
from manners.feedback import crowd
from manners.loop.session import Session
from manners.reward import stored
from manners.reward.ensemble import RewardModel, score_exchanges
from manners.text import Rendered, collate
from manners.types import FinishReason, Response, Role, Turn
from manners.workspace import Workspace
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


@pytest.mark.long
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


@pytest.mark.long
def test_whoever_scores_in_plain_transformers_comes_to_the_first_member_s_scores(task: PPOTask, tmp_path: Path) -> None:
    assert task.goal is not None
    session = Session(Workspace.open(tmp_path / "project"), tiny.settings(tmp_path / "model"))
    reward = stored.load_reward(session.workspace, task.goal.version, session.pretrained)
    first = RewardModel(reward.members[:1], reward.shifts[:1], reward.scales[:1])
    rows = [{"prompt": f"sun {number}?", "response": "moon " * (1 + number % 5)} for number in range(9)]
    answers = [Response(row["response"], "file", FinishReason.STOP) for row in rows]
    asked = [((Turn(Role.USER, row["prompt"]),), one) for row, one in zip(rows, answers, strict=True)]
    ours = [score for some in score_exchanges(first, session.pretrained, asked) for score in some.mean.tolist()]
    tokenizer = AutoTokenizer.from_pretrained(task.goal.folder)
    exported = AutoModelForSequenceClassification.from_pretrained(task.goal.folder)
    for batch in (1, 4):
        theirs = [score - task.goal.shift for score in peer.scores(exported, tokenizer, rows, batch)]
        assert theirs == pytest.approx(ours, abs=1e-4)
