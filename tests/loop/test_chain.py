"""Phases chain: a version is read as a whole model, and what grew on one model is not taken for another's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from manners.errors import MannersError
from manners.loop import stages
from manners.loop.keep import keep
from manners.loop.round import REWARD
from manners.loop.session import Session
from manners.loop.stage import execute
from manners.models import versions, whole
from manners.models.branches import Branch
from manners.models.pretrained import Pretrained
from manners.models.saving import save_whole
from manners.results.phases import SFTResult
from manners.settings import ModelSettings, Settings
from manners.types import Role, Turn, VersionKind
from manners.workspace import Workspace
from tests.loop import calls, tiny
from tests.models.exchanges import trained
from tests.worlds import TEMPLATE, save_tiny, tiny_tokenizer

TALK = (Turn(Role.USER, "How do I bake bread?"),)


def named(settings: Settings, model: str, **changes: Any) -> Settings:
    return replace(settings, model=replace(settings.model, name=model, **changes))


def taught(session: Session, name: str = "sft-1", seed: int = 0) -> Branch:
    """Keep a branch that has moved far enough to be told apart, as if examples had taught it."""
    branch = trained(Branch(session.pretrained.trunk, trainable=True), seed)
    keep(session, name, branch, SFTResult(version=name), parent="initial", kind=VersionKind.SFT)
    return branch


@torch.no_grad()
def logits(model: Any, ids: tuple[int, ...]) -> Tensor:
    found: Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return found


def of(pretrained: Pretrained, policy: Branch | None = None) -> tuple[tuple[int, ...], Tensor]:
    ids = pretrained.renderer.prompt_ids(TALK)[0]
    return ids, logits(policy.assembled(pretrained.trunk) if policy else pretrained.trunk.whole, ids)


@pytest.fixture
def begun(model: Path, tmp_path: Path) -> Session:
    """A project with an SFT version."""
    session = tiny.project(tmp_path / "project", model)
    taught(session)
    return session


def test_a_round_runs_on_an_sft_version_and_refers_to_it(begun: Session, tmp_path: Path) -> None:
    workspace, first = begun.workspace, begun.pretrained
    branch = versions.load_policy(workspace, "sft-1", first, VersionKind.SFT)
    session = Session(workspace, named(begun.settings, "sft-1"))
    ids, found = of(session.pretrained)
    torch.testing.assert_close(found, of(first, branch)[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, of(first)[1], atol=1e-2), "and it is not what it grew on"
    assert session.pretrained.trunk.hash == first.trunk.hash, "its lower layers are: the hash of the trunk says nothing"
    assert "sft-1 above" in session.pretrained.note

    calls.sample(session, crowd=True)
    calls.train_reward(session)
    assert calls.train_policy(session)["version"] == "policy-1"
    judged = calls.evaluate(session)
    assert judged["against"] == "initial" and judged["verdict"].endswith("The initial model is sft-1 of this project.")
    described = [versions.describe(workspace, name) for name in ("reward-1", "policy-1")]
    assert [one.base for one in described] == ["sft-1", "sft-1"]
    assert stages.status(workspace)["policies"] == ["policy-1"]
    rows = {row["name"]: row for row in stages.models_list(workspace)["versions"]}
    assert (rows["sft-1"]["kind"], rows["policy-1"]["base"]) == ("sft", "sft-1")

    # What is exported says the same in plain transformers: the SFT version, and a policy above it.
    policy = versions.load_policy(workspace, "policy-1", session.pretrained)
    for name, expected in (("sft-1", found), ("policy-1", of(session.pretrained, policy)[1])):
        stages.models_export(workspace, name, tmp_path / name)
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        torch.testing.assert_close(logits(exported, ids), expected, atol=1e-5, rtol=1e-5)
        tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / name)
        asked = [{"role": "user", "content": TALK[0].text}]
        assert tuple(tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)) == ids

    # A policy is a model to begin with too, two branches above the folder.
    third = whole.load(replace(session.settings.model, name="policy-1"), workspace)
    torch.testing.assert_close(of(third)[1], of(session.pretrained, policy)[1], atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_what_grew_on_another_model_is_refused_by_name(begun: Session, tmp_path: Path) -> None:
    calls.sample(begun, crowd=True)
    calls.train_reward(begun)
    calls.train_policy(begun)
    session = Session(begun.workspace, named(begun.settings, "sft-1"))
    with pytest.raises(MannersError, match=r"reward-1 grew on .*, and the model is sft-1 now.*same lower layers"):
        calls.train_policy(session)
    with pytest.raises(MannersError, match=r"policy-1 grew on .* and the model is sft-1 now"):
        versions.load_policy(begun.workspace, "policy-1", session.pretrained)
    # The next step is a reward model of its own; what is there stays listed.
    begun.workspace.toml.write_text(begun.workspace.toml.read_text().replace(begun.settings.model.name, "sft-1"))
    found = stages.status(begun.workspace)
    assert found["reward_models"] == ["reward-1"] and found["next"] == "manners reward"

    # The other way round too, and where only the weights tell: an exported SFT version in a folder of its own.
    stages.models_export(begun.workspace, "sft-1", tmp_path / "elsewhere")
    outside = Session(begun.workspace, named(begun.settings, str(tmp_path / "elsewhere")))
    assert outside.pretrained.trunk.hash == begun.pretrained.trunk.hash
    with pytest.raises(MannersError, match="reward-1 grew on"):
        calls.train_policy(outside)


@pytest.mark.long
def test_a_model_that_moved_to_another_folder_is_the_same_model(begun: Session, tmp_path: Path) -> None:
    calls.sample(begun, crowd=True)
    calls.train_reward(begun)
    model = begun.pretrained
    save_whole(model.trunk.whole, model.tokenizer, tmp_path / "moved")
    moved = Session(begun.workspace, named(begun.settings, str(tmp_path / "moved")))
    assert calls.train_policy(moved)["version"] == "policy-1"


@pytest.mark.parametrize("changes", [{"trainable_layers": "all"}, {"lora_rank": 4}, {"dtype": "bfloat16"}])
def test_any_branch_is_read_as_it_was_made(model: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = tiny.project(tmp_path / "project", model)
    session = Session(plain.workspace, named(plain.settings, str(model), **changes))
    branch = taught(session)
    # Read by settings other than those it was made by.
    found = whole.load(ModelSettings(name="sft-1", trainable_layers=1, device="cpu", context=256), session.workspace)
    near = 1e-4 if session.settings.model.dtype == "float32" else 0.3
    expected = of(session.pretrained, branch)[1].float()
    torch.testing.assert_close(of(found)[1], expected, atol=near, rtol=near)


def test_versions_stand_on_one_another(begun: Session) -> None:
    second = Session(begun.workspace, named(begun.settings, "sft-1"))
    branch = taught(second, "sft-2", seed=1)
    found = whole.load(replace(begun.settings.model, name="sft-2"), begun.workspace)
    torch.testing.assert_close(of(found)[1], of(second.pretrained, branch)[1], atol=1e-5, rtol=1e-5)
    assert whole.outline(begun.workspace, "sft-2").layers == 4


@pytest.mark.parametrize(("template", "mark"), [(None, "!"), ("other", None), ("other", "!")])
def test_a_version_is_gone_on_from_with_the_settings_that_chose_its_template(
    tmp_path: Path, template: str | None, mark: str | None
) -> None:
    """Its template has them laid down, and was refused with them: it was neither called `other` nor read a `mark`."""
    folder = save_tiny(tmp_path / "model")
    marked = TEMPLATE.replace("'<s>'", "'<s>' ~ (mark | default('?'))")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": marked, "other": "{# #}" + marked}
    tokenizer.save_pretrained(folder)
    arguments = {} if mark is None else {"mark": mark}
    plain = tiny.project(tmp_path / "project", folder)
    chosen = named(plain.settings, str(folder), chat_template=template, template_arguments=arguments)
    session = Session(plain.workspace, chosen)
    taught(session)
    second = Session(plain.workspace, named(chosen, "sft-1"))
    expected = session.pretrained.renderer.prompt_ids(TALK)[0]
    assert str(session.pretrained.tokenizer.decode(list(expected))).startswith(f"<s>{mark or '?'}<|start|>user")
    assert second.pretrained.renderer.prompt_ids(TALK)[0] == expected
    assert "have made the template of sft-1 already" in second.pretrained.note
    taught(second, "sft-2")
    third = whole.load(replace(chosen.model, name="sft-2"), plain.workspace)
    assert third.renderer.prompt_ids(TALK)[0] == expected
    assert third.renderer.template_hash == second.pretrained.renderer.template_hash
    other = replace(chosen.model, name="sft-1", template_arguments={"mark": "other"})
    with pytest.raises(MannersError, match=r"model\.(chat_template|template_arguments)"):
        whole.load(other, plain.workspace)


def described_as(workspace: Workspace, version: str, **changes: Any) -> None:
    file = workspace.models / version / "version.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_circles_missing_damaged_and_reward_versions_are_one_sentence(begun: Session, tmp_path: Path) -> None:
    workspace = begun.workspace

    def read(name: str) -> None:
        whole.load(replace(begun.settings.model, name=name), workspace)

    with pytest.raises(MannersError, match=r"there is no version sft-9 in .* \(there are: sft-1\)"):
        read("sft-9")
    taught(Session(workspace, named(begun.settings, "sft-1")), "sft-2")
    file = workspace.models / "sft-2" / "branch-0.safetensors"
    sound = file.read_bytes()
    file.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(MannersError, match=r"sft-2.branch-0.safetensors is damaged"):
        read("sft-2")
    file.write_bytes(sound)
    described_as(workspace, "sft-1", base="sft-2")
    for name in ("sft-2", "sft-1"):
        with pytest.raises(MannersError, match=r"stands above itself \(sft-\d above sft-\d above sft-\d\)"):
            read(name)
        with pytest.raises(MannersError, match="stands above itself"):
            whole.outline(workspace, name)
    described_as(workspace, "sft-1", base=str(tmp_path / "gone"))
    with pytest.raises(MannersError, match=r"sft-1 grew on .*gone, which fails: model.name is .*gone"):
        read("sft-1")
    described_as(workspace, "sft-1", kind="reward")
    with pytest.raises(MannersError, match="sft-1 is a reward model, which scores and writes nothing"):
        read("sft-1")


def test_what_it_grew_on_is_not_what_it_was(begun: Session, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", seed=5)
    described_as(begun.workspace, "sft-1", base=str(other))
    with pytest.raises(MannersError, match=r"sft-1 was trained above another trunk"):
        whole.load(replace(begun.settings.model, name="sft-1"), begun.workspace)


def test_a_version_is_no_policy_and_says_how_to_go_on(begun: Session) -> None:
    with pytest.raises(MannersError, match=r'set model.name = "sft-1"'):
        stages.models_promote(begun.workspace, "sft-1")
    with pytest.raises(MannersError, match=r'a sft version where a policy version is needed; set model.name = "sft-1"'):
        versions.load_policy(begun.workspace, "sft-1", begun.pretrained)
    with pytest.raises(MannersError, match="sft-1 is of the kind sft, which has no members"):
        stages.models_export(begun.workspace, "sft-1", begun.workspace.root / "out", member="0")


def test_a_whole_model_is_a_version_too(begun: Session, tmp_path: Path) -> None:
    """As `manners pretrain` writes it: a folder of Hugging Face's, with a description beside it."""
    workspace, pretrained = begun.workspace, begun.pretrained
    other = save_tiny(workspace.models / "pretrain-1", seed=7)
    description = json.loads((workspace.models / "sft-1" / "version.json").read_text())
    (other / "version.json").write_text(json.dumps({**description, "name": "pretrain-1", "kind": "pretrain", "cut": 0}))
    session = Session(workspace, named(begun.settings, "pretrain-1"))
    ids, found = of(session.pretrained)
    torch.testing.assert_close(found, logits(AutoModelForCausalLM.from_pretrained(other), ids), atol=1e-5, rtol=1e-5)
    assert whole.outline(workspace, "pretrain-1").layers == 4
    branch = taught(session, "sft-2")
    assert versions.describe(workspace, "sft-2").base == "pretrain-1"
    for name, expected in (("pretrain-1", found), ("sft-2", of(session.pretrained, branch)[1])):
        stages.models_export(workspace, name, tmp_path / name)
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        torch.testing.assert_close(logits(exported, ids), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(MannersError, match=r'set model.name = "pretrain-1"'):
        versions.load_policy(workspace, "pretrain-1", pretrained)


def test_a_run_goes_on_only_with_the_same_model(begun: Session) -> None:
    calls.sample(begun, crowd=True)
    inputs = REWARD.work.inputs(begun, REWARD.options(), {})
    begun.run_of(REWARD.name, REWARD.command, REWARD.reads, inputs.decides).save()
    session = Session(begun.workspace, named(begun.settings, "sft-1"))
    with pytest.raises(MannersError, match=r"was begun with model.name = .*, and now it is sft-1"):
        execute(REWARD, session, resume=True)
