"""What is trained by hand while a run is stopped takes nothing from it, and keeps it from nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from manners.checkpoint import unfinished
from manners.errors import MannersError
from manners.feedback import crowd
from manners.loop import session as session_module
from manners.loop.prompts import fitting
from manners.loop.session import Session
from manners.settings import DPOSettings, Settings
from manners.types import PromptUse
from manners.unfinished import VERSION, names_held
from manners.workspace import Workspace
from tests.loop import calls, tiny
from tests.loop.test_restart import STAGES, contents, killed_at_a_checkpoint


@pytest.fixture(scope="module")
def chosen(model: Path) -> Settings:
    """A checkpoint at every occasion."""
    direct = DPOSettings(beta=0.5, passes=1, batch=8, learning_rate=0.003, kl_stop=1000.0, validation_prompts=4)
    found = tiny.settings(model, checkpoint_every=0.0, dpo=direct)
    ppo = replace(found.ppo, batch=8, minibatch=4, epochs=1)
    return replace(found, ppo=ppo, reward=replace(found.reward, members=1, epochs=1))


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory: pytest.TempPathFactory, model: Path, chosen: Settings) -> Path:
    """A workspace with a reward model; not to be changed."""
    session = tiny.project(tmp_path_factory.mktemp("rewarded") / "project", model)
    session = replace(session, settings=chosen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(crowd.TASTES, tiny.FIGURES.name, tiny.FIGURES)
        calls.sample(session, crowd=True)
    calls.train_reward(session)
    session.store.close()
    return session.workspace.root


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, rewarded: Path, chosen: Settings) -> dict[str, dict[str, Any]]:
    """What PPO and DPO each leave of policy-1, where nothing else is trained."""
    found = {}
    for stage in ("ppo", "dpo"):
        root = shutil.copytree(rewarded, tmp_path_factory.mktemp(stage) / "alone")
        STAGES[stage](Session(Workspace.open(root), chosen), False)
        found[stage] = policy(root, "policy-1")
    return found


@pytest.fixture
def root(rewarded: Path, tmp_path: Path) -> Path:
    """A copy of that workspace."""
    return shutil.copytree(rewarded, tmp_path / "root")


def policy(root: Path, name: str) -> dict[str, Any]:
    """The weights and curves of a version."""
    places = {f"models/{name}/branch-0.safetensors": "weights", f"runs/{name}/metrics.jsonl": "curves"}
    return {places[file]: content for file, content in contents(root).items() if file in places}


@pytest.mark.parametrize(("first", "second"), [("dpo", "ppo"), ("ppo", "dpo")])
def test_two_runs_that_make_policies_take_two_names(
    first: str, second: str, root: Path, alone: dict[str, dict[str, Any]], chosen: Settings
) -> None:
    session = killed_at_a_checkpoint(first, root, chosen, 1)
    made = STAGES[second](session, False)
    assert made[VERSION] == "policy-2" and STAGES[first](session, True)[VERSION] == "policy-1"
    assert policy(root, "policy-1") == alone[first] and policy(root, "policy-2") == alone[second]
    assert {"policy-1", "policy-2"} < {version.name for version in session.store.versions()}
    session.store.close()


def test_a_run_that_is_given_up_took_nothing(root: Path, alone: dict[str, dict[str, Any]], chosen: Settings) -> None:
    killed_at_a_checkpoint("ppo", root, chosen, 1).store.close()
    killed_at_a_checkpoint("dpo", root, chosen, 1).store.close()
    assert names_held(root / "runs") == {"policy-1", "policy-2"}
    shutil.rmtree(root / "runs" / "dpo")
    session = Session(Workspace.open(root), chosen)
    assert session.next_version_name("policy") == "policy-2" and session.next_version_name("reward") == "reward-2"
    STAGES["ppo"](session, True)
    assert policy(root, "policy-1") == alone["ppo"] and names_held(root / "runs") == set()
    session.store.close()


def without_version(root: Path, stage: str) -> None:
    """Have a run say as little as older code did."""
    for checkpoint in unfinished(root / "runs" / stage):
        said = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))
        assert said.pop(VERSION) == "policy-1"
        (checkpoint / "checkpoint.json").write_text(json.dumps(said), encoding="utf-8")


def test_a_run_that_does_not_say_what_it_makes_holds_every_name_that_has_curves(root: Path, chosen: Settings) -> None:
    session = killed_at_a_checkpoint("ppo", root, chosen, 1)
    without_version(root, "ppo")
    assert session.next_version_name("policy") == "policy-2" and session.next_version_name("reward") == "reward-2"
    assert STAGES["ppo"](session, True)[VERSION] == "policy-1"
    session.store.close()


@pytest.fixture
def taken(root: Path, chosen: Settings) -> Iterator[Session]:
    """A workspace in which DPO was stopped, and PPO has made the version whose name it holds, as it once could."""
    session = killed_at_a_checkpoint("dpo", root, chosen, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "names_held", lambda _: set())
        assert STAGES["ppo"](session, False)[VERSION] == "policy-1"
    yield session
    session.store.close()


def test_a_version_that_another_run_has_made_is_not_taken_for_this_ones(
    taken: Session, alone: dict[str, dict[str, Any]]
) -> None:
    weights = alone["ppo"]["weights"]
    for _ in range(2):
        with pytest.raises(MannersError, match=r"models/policy-1 is there already, and another run has made it: move"):
            STAGES["dpo"](taken, True)
        assert policy(taken.workspace.root, "policy-1")["weights"] == weights
    (taken.workspace.models / "policy-1").rename(taken.workspace.root / "moved")
    assert STAGES["dpo"](taken, True)[VERSION] == "policy-1"
    assert policy(taken.workspace.root, "policy-1") == alone["dpo"]


def test_ppo_goes_on_with_the_reward_model_that_it_was_begun_with(
    root: Path, alone: dict[str, dict[str, Any]], chosen: Settings
) -> None:
    session = killed_at_a_checkpoint("ppo", root, chosen, 1)
    assert calls.train_reward(session)[VERSION] == "reward-2"
    gone = (session.workspace.models / "reward-1").rename(root / "gone")
    with pytest.raises(MannersError, match=r"runs/ppo was begun with reward-1, which is not in .*models any more: put"):
        STAGES["ppo"](session, True)
    gone.rename(session.workspace.models / "reward-1")
    assert STAGES["ppo"](session, True)["reward"] == "reward-1"
    assert policy(root, "policy-1") == alone["ppo"]
    assert calls.train_policy(session)["reward"] == "reward-2", "the next one learns from the newest"
    session.store.close()


def test_an_evaluation_goes_on_with_the_policy_that_it_was_begun_with(root: Path, chosen: Settings) -> None:
    calls.train_policy(Session(Workspace.open(root), chosen))
    session = killed_at_a_checkpoint("evaluation", root, chosen, 1)
    assert calls.train_policy(session)[VERSION] == "policy-2"
    assert calls.evaluate(session, resume=True)[VERSION] == "policy-1"
    assert calls.evaluate(session)[VERSION] == "policy-2"
    session.store.close()


def numbers(state: Any) -> Iterator[tuple[int, ...]]:
    """Every row of whole numbers in what a checkpoint holds, be it a list or a tensor."""
    if isinstance(state, dict):
        for value in state.values():
            yield from numbers(value)
    elif isinstance(state, torch.Tensor):
        if not state.is_floating_point():
            yield tuple(state.flatten().tolist())
    elif isinstance(state, list | tuple):
        if state and all(isinstance(one, int) for one in state):
            yield tuple(state)
        for value in state:
            yield from numbers(value)


@pytest.mark.parametrize("stage", ["reward", "ppo", "dpo"])
def test_no_checkpoint_of_what_trains_holds_a_prompt_as_tokens(stage: str, root: Path, chosen: Settings) -> None:
    """Nobody could find words there that are to be deleted."""
    session = killed_at_a_checkpoint(stage, root, chosen, 1)
    dialogues = [dialogue for use in PromptUse for dialogue in tiny.PROMPTS[use]]
    prompts = fitting(session, PromptUse.TRAIN, dialogues).ids.values()
    checkpoint = unfinished(root / "runs" / stage)[-1]
    rows = list(numbers(torch.load(checkpoint / "state.pt", weights_only=True)))
    assert rows and len(set(prompts)) > 20
    for ids in prompts:
        said = ",".join(map(str, ids))
        assert not any(said in ",".join(map(str, row)) for row in rows)
    session.store.close()
