"""The stage of DPO in a workspace: without any reward model from verdicts to a promoted policy, and on its own."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from manners.errors import MannersError
from manners.feedback import crowd
from manners.loop import stages
from manners.loop.round import COMMANDS, DPO, STAGES
from manners.loop.session import Session
from manners.loop.stage import execute
from manners.models import versions
from manners.models.branches import Branch
from manners.settings import DPOSettings, Settings
from manners.store import Store
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    FinishReason,
    PromptUse,
    Response,
    Verdict,
)
from manners.workspace import Workspace
from tests.loop import tiny
from tests.loop.test_restart import Killed, dying_at

DIRECT = DPOSettings(beta=0.5, passes=2, batch=8, learning_rate=0.003, kl_stop=1000.0, validation_prompts=6)


@pytest.fixture(scope="module")
def settings(model: Path) -> Settings:
    return tiny.settings(model, dpo=DIRECT, checkpoint_every=0.0)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, model: Path, settings: Settings) -> Iterator[Path]:
    """A workspace with verdicts of the crowd, and no reward model."""
    root = tmp_path_factory.mktemp("direct") / "project"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(crowd.TASTES, tiny.FIGURES.name, tiny.FIGURES)
        tiny.project(root, model)
        stages.sample(Workspace.open(root), settings, crowd=True, plan=False)
        yield root


@pytest.fixture(scope="module")
def directed(tmp_path_factory: pytest.TempPathFactory, sampled: Path, settings: Settings) -> Path:
    """The same after DPO."""
    root = shutil.copytree(sampled, tmp_path_factory.mktemp("directed") / "project")
    stages.train_directly(Workspace.open(root), settings, plan=False)
    return root


@pytest.fixture
def own(directed: Path, tmp_path: Path) -> Workspace:
    return Workspace.open(shutil.copytree(directed, tmp_path / "own"))


def facts(workspace: Workspace, name: str = "dpo") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace.runs / f"{name}.json").read_text(encoding="utf-8"))
    return found


def test_it_stands_beside_a_round() -> None:
    assert DPO in COMMANDS and DPO not in STAGES and set(STAGES) < set(COMMANDS)


def test_what_it_finds_out(own: Workspace, settings: Settings) -> None:
    found = facts(own)
    assert (found["version"], found["method"], found["begun_as"]) == ("policy-1", "dpo", "initial")
    assert found["loss_before"] == pytest.approx(math.log(2), abs=1e-5) and found["tokens"] > 0
    assert found["loss_after"] != found["loss_before"] and found["stopped"] is None
    assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]
    assert {"longer_wins", "shorter_wins", "always_left", "length_and_finish"} == found["baselines"].keys()
    assert found["trained_on"] + found["set_aside"] == 24 and found["source"] == "simulated"
    assert found["kl"]["low"] <= found["kl"]["estimate"] <= found["kl"]["high"] and found["kl"]["estimate"] > 0
    assert next(iter(found["kl_by_step"])) == "0" and len(found["kl_by_step"]) == 5
    assert found["prompts"] == 6 and found["prompts_set_aside"] is False
    assert "agrees with" in found["sentence"] and "`manners evaluate`" in found["sentence"]
    version = versions.describe(own, "policy-1")
    assert (version.method, version.reward, version.source) == ("dpo", None, AnnotatorKind.SIMULATED)
    assert version.watermark == Session(own, settings).store.watermark()
    status = stages.status(own)
    assert (status["verdicts_not_yet_learned_from"], status["next"]) == (0, "manners evaluate")
    assert (own.runs / "policy-1" / "metrics.jsonl").is_file()


def test_the_pairs_set_aside_are_those_of_the_reward_model(own: Workspace, settings: Settings) -> None:
    direct = facts(own)
    rewarded = stages.train_reward(own, settings, plan=False)
    for name in ("trained_on", "set_aside", "verdicts", "divided", "baselines"):
        assert rewarded[name] == direct[name], name


def test_without_a_reward_model_it_is_judged_reported_promoted_and_exported(
    own: Workspace, settings: Settings, tmp_path: Path
) -> None:
    assert not list(own.models.glob("reward-*"))
    stages.evaluate(own, settings, ask=None, plan=False)
    found = facts(own, "evaluation")
    assert found["version"] == "policy-1" and found["source"] == "simulated" and "win_rate" in found
    assert "score_before" not in found and "head_to_head" not in found["best_of_n"]
    assert (
        "no reward model" not in found["verdict"] and "there is none; `manners reward` trains one" in found["verdict"]
    )
    assert found["best_of_n"]["sentence"] in found["verdict"] and "PPO" not in found["verdict"]
    assert "nan" not in json.dumps(found).lower().split('"examples"')[0]
    stages.report(own, settings)
    page = (own.root / "report.html").read_text(encoding="utf-8")
    report = json.loads((own.root / "report.json").read_text(encoding="utf-8"))
    assert "Direct preference optimisation" in page and report["dpo"]["version"] == "policy-1"
    assert report["dpo"].keys() >= {"version", "tokens", "loss_before", "loss_after"}
    (played,) = Session(own, settings).store.rounds()
    assert (played.policy, played.reward) == ("policy-1", "policy-1")
    stages.models_promote(own, "policy-1", "a test")
    assert own.current_policy() == "policy-1"
    stages.models_export(own, "policy-1", tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    session = Session(own, settings)
    policy = versions.load_policy(own, "policy-1", session.pretrained)
    ids = torch.tensor([[1, 9, 30, 7]])
    whole = policy.assembled(session.pretrained.trunk)
    torch.testing.assert_close(exported(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-4, rtol=0)
    before = Branch(session.pretrained.trunk, trainable=False).assembled(session.pretrained.trunk)
    assert not torch.allclose(before(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-2)


def test_with_a_reward_model_best_of_n_is_its_rival(own: Workspace, settings: Settings) -> None:
    stages.train_reward(own, settings, plan=False)
    stages.evaluate(own, settings, ask=None, plan=False)
    found = facts(own, "evaluation")
    assert "score_after" in found and found["best_of_n"]["head_to_head"]["estimate"] >= 0
    assert "DPO" in found["verdict"] and "PPO" not in found["verdict"]


def test_people_are_asked_about_it(own: Workspace, settings: Settings) -> None:
    assert stages.evaluate(own, settings, ask=10, plan=False)["version"] == "policy-1"


def test_what_it_will_take(own: Workspace, settings: Settings) -> None:
    plan = stages.train_directly(own, settings, plan=True)
    assert plan["stage"] == "dpo" and plan["optimizer_steps"] == facts(own)["optimizer_steps"]
    assert plan["pair_passes"] == 2 * plan["trained_on"] and plan["prompts"] == 6
    assert {"policy", "gradient_and_adam", "last_look_kept"} < plan["memory_bytes"].keys()
    scouted = replace(settings, dpo=replace(DIRECT, passes=None))
    assert stages.train_directly(own, scouted, plan=True)["pair_passes"] > plan["pair_passes"]


def test_a_run_goes_on_with_the_same_settings_only(sampled: Path, settings: Settings, tmp_path: Path) -> None:
    root = shutil.copytree(sampled, tmp_path / "stopped")
    with pytest.MonkeyPatch.context() as patch:
        dying_at(patch, 6)
        with pytest.raises(Killed):
            execute(DPO, Session(Workspace.open(root), settings))
    assert stages.status(Workspace.open(root))["next"] == "manners dpo --resume"
    other = replace(settings, dpo=replace(DIRECT, beta=0.2))
    with pytest.raises(MannersError, match=r"begun with dpo\.beta = 0\.5, and now it is 0\.2"):
        execute(DPO, Session(Workspace.open(root), other), resume=True)
    late = Verdict(Choice.TIE, Annotator("late", AnnotatorKind.SIMULATED))
    Session(Workspace.open(root), settings).store.add_verdicts([(1, late)])
    execute(DPO, Session(Workspace.open(root), settings), resume=True)
    assert versions.describe(Workspace.open(root), "policy-1").watermark == 48, "what came since is for the next"


def pair(number: int, left: str = "bake it", right: str = "no", choice: Choice = Choice.LEFT) -> Comparison:
    first, second = (Response(text, "somebody", FinishReason.STOP) for text in (left, right))
    said = Verdict(choice, Annotator("one", AnnotatorKind.HUMAN))
    return Comparison(tiny.prompts(number + 1, "noon")[-1], first, second, AskedHow.IMPORTED, 1.0, (said,))


BOTH = (Choice.LEFT, Choice.RIGHT)
BAD: dict[str, tuple[list[Comparison], str]] = {
    "nothing": ([], "no comparisons to learn from"),
    "one prompt": ([pair(0, f"a {n}", "b", BOTH[n % 2]) for n in range(4)], "are about one prompt|set aside"),
    "one side": ([pair(n) for n in range(9)], "all 9 verdicts that choose a side say `left`"),
    "ties": ([pair(n, choice=Choice.TIE) for n in range(9)], "none of the 9 verdicts prefers a response"),
    "skips": ([pair(n, choice=Choice.SKIP) for n in range(9)], "9 with only skips"),
    "alike": ([pair(n, "same", "same", BOTH[n % 2]) for n in range(9)], "9 with identical responses"),
    "empty": ([pair(n, "", "b", BOTH[n % 2]) for n in range(9)], "9 with an empty response"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_it_cannot_learn_from_is_one_sentence(name: str, model: Path, settings: Settings, tmp_path: Path) -> None:
    given, says = BAD[name]
    session = Session(tiny.project(tmp_path / "project", model).workspace, settings)
    session.store.add_comparisons(given)
    with pytest.raises(MannersError, match=says) as raised:
        execute(DPO, session)
    assert "\n" not in str(raised.value) and not list(session.workspace.models.glob("policy-*"))


def test_without_prompts_for_validation_it_is_looked_at_with_those_set_aside(
    model: Path, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = {PromptUse.TRAIN: tiny.PROMPTS[PromptUse.TRAIN]}
    session = Session(tiny.project(tmp_path / "project", model, only).workspace, settings)
    session.store.add_comparisons([pair(n, choice=BOTH[n % 2]) for n in range(12)])
    found = execute(DPO, session).facts
    assert found["prompts_set_aside"] is True and 0 < found["prompts"] <= found["set_aside"]
    assert "no prompts for validation: the policy is looked at with those of pairs set aside" in capsys.readouterr().err
    assert found["source"] == "human"


def test_an_older_record_still_loads(own: Workspace, settings: Settings) -> None:
    file = own.runs / "dpo.json"
    file.write_text(json.dumps({"version": "policy-1", "loss_after": 0.6, "gone": 1}), encoding="utf-8")
    assert Store.open(own.database) and stages.report(own, settings)["report"].endswith("report.html")
