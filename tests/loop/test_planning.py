"""What a stage will take is said before it starts, is about what it takes, and is refused where it is not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import manners
from manners.errors import MannersError
from manners.loop import plan as planning
from manners.loop import ppo, stages
from manners.loop.plan import OVERHEAD, Disk, Part, Plan, announce
from manners.loop.session import Session
from manners.models import pretrained, states
from manners.models.branches import Branch, ScalarBranch
from manners.models.pretrained import load
from manners.ppo.rollout import collect
from manners.settings import Settings
from manners.text import Rendered, collate
from manners.types import Dialogue, PromptUse, Role, Turn
from manners.workspace import Workspace
from tests.loop import tiny

ROOT = Path(manners.__file__).parents[1]


def test_a_plan_is_printed_and_what_does_not_fit_is_refused_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    parts = (Part("reward_members", 4_000_000, "reward.members"), Part("rollout_states", 90_000_000, "ppo.batch"))
    needed = OVERHEAD + 94_000_000
    announce(Plan("ppo", {}, 7_000_000, parts, needed))
    announce(Plan("ppo", {}, 7_000_000, parts, None))
    printed = capsys.readouterr().err
    assert "        7 MB  model, loaded\n        4 MB  reward members (reward.members)\n" in printed
    assert "244 MB  to be taken of 244 MB free\n" in printed
    with pytest.raises(MannersError) as caught:
        announce(Plan("ppo", {}, 7_000_000, parts, needed - 10_000_000))
    assert str(caught.value) == (
        "ppo needs about 0.24 GB more memory and 0.23 GB is free: the largest part is rollout states with 0.09 GB;"
        " lower ppo.batch"
    )


@pytest.mark.long
def test_trunk_states_that_the_workspaces_disk_cannot_hold_are_refused(
    copy: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = Disk(Path("/w/runs"), 5_000_000, 4_999_999)
    announce(Plan("reward", {}, 0, (), None, replace(disk, free=5_000_000)))
    assert "        5 MB  on the disk at most, of 5 MB free in /w/runs\n" in capsys.readouterr().err
    with pytest.raises(MannersError) as caught:
        announce(Plan("reward", {}, 0, (), None, disk))
    assert str(caught.value) == (
        "reward keeps 5,000,000 bytes of trunk states in /w/runs, and 4,999,999 are free there: make room on that disk,"
        " set a lower reward.limit or sft.limit, or set model.trunk_states to recomputed"
    )
    taken = list[tuple[Path, int]]()
    take = states.reserve

    def taking(file: Path, size: int) -> None:
        taken.append((file.parent.parent, size))
        take(file, size)

    def with_free(free: int, chosen: Settings = settings) -> int:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        found = stages.train_reward(copy, chosen, plan=True)
        assert found["disk_free_bytes"] == free
        needed: int = found["trunk_states_on_disk_bytes_at_most"]
        return needed

    monkeypatch.setattr(states, "reserve", taking)
    most, exact = with_free(10**9), with_free(0)
    assert 0 < exact < most == with_free(most) and exact == with_free(most - 1)
    assert 0 < with_free(0, replace(settings, reward=replace(settings.reward, limit=2))) < exact
    whole, anew = replace(settings.model, trainable_layers="all"), replace(settings.model, trunk_states="recomputed")
    assert with_free(0, replace(settings, model=whole)) == with_free(0, replace(settings, model=anew)) == 0
    with_free(exact - 1)
    with pytest.raises(MannersError, match=rf"keeps {exact:,} bytes of trunk states in {copy.runs}"):
        stages.train_reward(copy, settings, plan=False)
    assert not taken
    with_free(exact)
    stages.train_reward(copy, settings, plan=False)
    assert sum(size for _, size in taken) == exact
    assert {folder for folder, _ in taken} == {copy.runs}
    assert not list(copy.runs.glob(".*"))


def test_every_stage_refuses_before_it_does_anything(
    copy: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Session(copy, settings).store.add_prompts(tiny.prompts(2, "noon"), PromptUse.TRAIN, "test")
    plans = {
        "sample": stages.sample(copy, settings, crowd=True, plan=True),
        "reward": stages.train_reward(copy, settings, plan=True),
        "ppo": stages.train_policy(copy, settings, plan=True),
        "evaluate": stages.evaluate(copy, settings, ask=None, plan=True),
    }
    files = sorted(copy.root.rglob("*"))
    monkeypatch.setattr(planning, "free_memory", lambda: OVERHEAD)
    runs: dict[str, Callable[[], object]] = {
        "sample": lambda: stages.sample(copy, settings, crowd=True, plan=False),
        "reward": lambda: stages.train_reward(copy, settings, plan=False),
        "ppo": lambda: stages.train_policy(copy, settings, plan=False),
        "evaluate": lambda: stages.evaluate(copy, settings, ask=None, plan=False),
    }
    for name, run in runs.items():
        needed = plans[name]["memory_needed_bytes"]
        with pytest.raises(
            MannersError, match=rf"^{name} needs about {needed / 1e9:.2f} GB more memory.*lower \w+\.\w+$"
        ):
            run()
    assert {file for file in copy.root.rglob("*") if "run.lock" not in file.name} <= set(files)


def test_the_plan_of_ppo_counts_what_validation_draws_at_once(
    copy: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(**changes: Any) -> dict[str, Part]:
        chosen = replace(settings, ppo=replace(settings.ppo, **changes))
        return {part.name: part for part in ppo.plan(Session(copy, chosen)).parts}

    drawn = list[int]()

    def counting(roles: Any, prompts: Any, *given: Any, **more: Any) -> Any:
        drawn.append(len(prompts))
        return collect(roles, prompts, *given, **more)

    monkeypatch.setattr("manners.ppo.train.collect", counting)
    few: dict[str, Any] = {"batch": 4, "minibatch": 4, "updates": 1}
    stages.train_policy(copy, replace(settings, ppo=replace(settings.ppo, **few)), plan=False)
    row = planned(batch=2, minibatch=2, validation_prompts=1)["rollout_states"].size // 2
    found = planned(**few)
    assert max(drawn) == 16 and found["rollout_states"].size == 16 * row, "two answers to each of eight prompts"
    assert found["rollout_states"].lower == "ppo.validation_prompts"
    assert planned(batch=32)["rollout_states"] == Part("rollout_states", 32 * row, "ppo.batch")


def test_a_model_larger_than_the_memory_is_refused_before_it_is_read(
    model: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 * load(settings.model).parameters
    monkeypatch.setattr(pretrained, "free_memory", lambda: size)
    load(settings.model)
    monkeypatch.setattr(pretrained, "free_memory", lambda: size - 1)
    with pytest.raises(MannersError, match=rf"{model}, whose 0 million parameters take .* use a smaller model"):
        load(settings.model)


def test_weights_are_counted_as_the_stages_hold_them(copy: Workspace, settings: Settings) -> None:
    trunk = Session(copy, settings).pretrained.trunk
    policy = Branch(trunk, trainable=True)
    branch = sum(4 * p.numel() for p in policy.parameters() if p.requires_grad)
    scalar = ScalarBranch(trunk, None)
    owned = sum(4 * p.numel() for p in scalar.model.parameters() if p.requires_grad)
    batch = collate([Rendered((1, 2), (3, 4))], 0)
    torch.autograd.backward(scalar.scores(torch.zeros((1, 4, trunk.width)), batch).sum())
    trained = sum(4 * p.grad.numel() for p in scalar.model.parameters() if p.grad is not None)
    memory = stages.train_reward(copy, settings, plan=True)["memory_bytes"]
    assert owned == trained < branch, "no head that is only a language model's"
    assert (memory["members"], memory["gradient_and_adam"]) == (2 * owned, 3 * trained)
    separate = replace(settings, ppo=replace(settings.ppo, value="separate"))
    shared, apart = (stages.train_policy(copy, s, plan=True)["memory_bytes"] for s in (settings, separate))
    assert (shared["policy_and_value"], apart["policy_and_value"]) == (branch, branch + owned)
    assert (shared["gradient_and_adam"], apart["gradient_and_adam"]) == (3 * branch, 3 * (branch + trained))
    assert shared["reward_members"] == settings.reward.members * owned


def test_prompts_that_do_not_fit_are_counted_by_use_and_refused_when_none_fits(
    copy: Workspace, settings: Settings
) -> None:
    store = Session(copy, settings).store
    long = [(replace(tiny.prompts(1, "bread")[0][0], text="bread " * 300),)]
    store.add_prompts(long, PromptUse.EVALUATE, "test")
    prompts = stages.evaluate(copy, settings, ask=None, plan=True)["prompts"]
    assert prompts == {"evaluate": {"fit": 12, "shortened": 0, "do_not_fit": 1}}
    assert stages.train_policy(copy, settings, plan=True)["prompts"].keys() == {"train", "validate"}
    wordy = replace(settings, sample=replace(settings.sample, max_new_tokens=250))
    with pytest.raises(MannersError, match=r"none of the 13 prompts for `evaluate` leaves room.*raise model\.context"):
        stages.evaluate(copy, wordy, ask=None, plan=False)


@pytest.mark.parametrize("stage", ["sample", "ppo", "evaluate"])
@pytest.mark.parametrize("plan", [True, False])
def test_prompts_that_are_all_too_long_are_called_so(
    copy: Workspace, settings: Settings, stage: str, plan: bool, tmp_path: Path
) -> None:
    wordy = replace(settings, sample=replace(settings.sample, max_new_tokens=250))
    use = "evaluate" if stage == "evaluate" else "train"
    says = rf"none of the \d+ prompts for `{use}` leaves room for a response of 250 tokens: raise model\.context \(256 "
    with pytest.raises(MannersError, match=says):
        match stage:
            case "sample":
                Session(copy, settings).store.add_prompts(tiny.prompts(3, "tea"), PromptUse.TRAIN, "test")
                stages.sample(copy, wordy, crowd=False, plan=plan)
            case "ppo":
                stages.train_policy(copy, wordy, plan=plan)
            case _:
                stages.evaluate(copy, wordy, ask=None, plan=plan)


def test_prompts_that_are_cut_or_left_out_are_said_and_on_record(
    copy: Workspace, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    def talk(first: str, last: str) -> Dialogue:
        return (Turn(Role.USER, first), Turn(Role.ASSISTANT, "Yes."), Turn(Role.USER, last))

    store = Session(copy, settings).store
    for use in PromptUse:
        store.add_prompts([talk(f"{use} " + "bread " * 300, "So?"), talk(use, "bread " * 300)], use, "test")
    facts = stages.sample(copy, settings, crowd=True, plan=False)
    assert (facts["prompts_shortened"], facts["left_out"]) == (1, {"prompt longer than the context": 1})
    said = "of 2 prompts for `train`, 1 leave no room for a response of 8 tokens in a context of 256"
    assert said in capsys.readouterr().err
    facts = stages.train_policy(copy, settings, plan=False)
    assert (facts["prompts_shortened"], facts["prompts_skipped"]) == (2, 2)
    every = replace(settings, evaluate=replace(settings.evaluate, prompts=100))
    facts = stages.evaluate(copy, every, ask=None, plan=False)
    assert (facts["prompts"], facts["prompts_shortened"], facts["prompts_skipped"]) == (13, 1, 1)
    assert "1 lose earlier turns" in capsys.readouterr().err
    stages.report(copy, settings)
    page = (copy.root / "report.html").read_text(encoding="utf-8")
    assert "Of the prompts, 2 left no room for a response and were left out, and 2 lost earlier turns" in page


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a process's highest memory on demand")
def test_the_plan_is_about_what_a_stage_takes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.loop.peaks", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for stage, (planned, measured) in json.loads(done.stdout.splitlines()[-1]).items():
        assert 0.9 * measured <= planned <= 1.5 * measured + OVERHEAD, stage
