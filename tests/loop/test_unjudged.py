"""Rounds that end without a judgement: nothing better was found, so that nobody is asked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from manners.audit import gate
from manners.facts import Facts
from manners.loop import evaluate, history, rounds, stages
from manners.loop.rounds import Asked
from manners.loop.session import Session
from manners.models import described, versions
from manners.ppo.learner import Learner, Validation
from manners.store import Outcome, Store, audit
from manners.types import AskedHow, PromptUse
from manners.workspace import Workspace
from tests.loop import tiny
from tests.loop.small_rounds import everything_wins, small
from tests.loop.test_rounds import judges


@pytest.fixture
def _nothing_better(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No update does better than what PPO began as."""
    really = Learner.offer

    def offer(self: Learner, update: int, found: Validation, limit: float) -> None:
        if update == 0:
            really(self, update, found, limit)

    with everything_wins():
        monkeypatch.setattr(Learner, "offer", offer)
        yield


def project(fresh: Path, model: Path, root: Path, **loop: int) -> Session:
    chosen = small(model)
    workspace = Workspace.open(shutil.copytree(fresh, root))
    (root / "gate.toml").unlink()
    session = Session(workspace, replace(chosen, loop=replace(chosen.loop, **loop)))
    session.store.add_prompts(tiny.prompts(14, "hill"), PromptUse.EVALUATE, "test")
    return session


def is_the_initial_model(session: Session, policy: str) -> bool:
    """Whether a policy's weights are the initial model's, to the bit."""
    branches = [versions.load_policy(session.workspace, name, session.pretrained) for name in ("initial", policy)]
    was, now = (list(branch.assembled(session.pretrained.trunk).parameters()) for branch in branches)
    return all(torch.equal(a, b) for a, b in zip(was, now, strict=True))


@pytest.mark.usefixtures("_nothing_better")
def test_people_are_not_asked_about_a_policy_that_is_what_was_there(fresh: Path, model: Path, tmp_path: Path) -> None:
    session = project(fresh, model, tmp_path / "loop", verdicts=12, judgements=10)

    def step(count: int = 1) -> Facts:
        return rounds.play(session, Asked(rounds=count, step=True))

    assert step()["waiting_for"]["what"] == "verdicts"
    judges(session, 9, AskedHow.RANDOM)
    ended = step()
    assert ended["waiting_for"] is None and ended["current"] == "initial"
    [told] = ended["rounds"]
    assert (told["outcome"], told["win_rate"], told["gate"]["cannot_tell"]) == ("rejected", None, ["win_rate"])
    assert is_the_initial_model(session, "policy-1")
    assert not session.store.comparisons(AskedHow.EVALUATION), "nobody is asked which of two same things is better"
    [row] = session.store.rounds()
    assert row.outcome is Outcome.REJECTED and row.metrics["source"] == "none"
    assert row.metrics["verdict"].startswith("Nothing better was found: policy-1 is initial, as it was before PPO")
    assert history.attempt([row], "policy-2", "initial") == 1, "it was no try"
    said = [check.sentence for check in gate.standing(session.workspace, "policy-1").checks if check.name == "win_rate"]
    assert said[0].startswith("Nothing better was found")
    assert step()["rounds"] == ended["rounds"]
    # And the next round begins, with comparisons of its own.
    waiting = step(2)["waiting_for"]
    assert waiting["what"] == "verdicts" and waiting["have"] == 0
    assert "policy-1 is initial" in stages.report(session.workspace, session.settings)["verdict"]


@pytest.mark.usefixtures("_nothing_better")
def test_the_crowd_is_not_asked_either_and_old_versions_go(
    fresh: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rounds that find nothing, of which only the last one's versions stay (`loop.keep`)."""
    session = project(fresh, model, tmp_path / "loop", keep=1)
    monkeypatch.setattr(evaluate, "run", lambda *_: pytest.fail("nothing is evaluated"))
    told = rounds.play(session, Asked(rounds=2, crowd=True))["rounds"]
    assert [one["outcome"] for one in told] == ["rejected"] * 2
    assert [one["gate"]["verdict"] for one in told] == ["cannot_tell"] * 2, "of what is gone nothing is known"
    assert history.attempt(session.store.rounds(), "policy-3", "initial") == 1
    assert set(described.every(session.workspace)) == {"policy-2", "reward-2"}
    assert "loop.keep is 1, and nothing needs policy-1, reward-1: removed" in capsys.readouterr().err
    with closing(Store.open(session.workspace.database)) as store:
        noted = [entry.about for entry in audit.entries(store) if entry.event == "pruned"]
    assert sorted(noted) == [f"version {name}" for name in ("policy-1", "reward-1")]
