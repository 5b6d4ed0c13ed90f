"""What leaves a workspace: the form and the format that are asked for, and one sentence where a form cannot hold it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from manners.cli import main
from manners.errors import MannersError
from manners.loop import exporting, stages
from manners.loop.exporting import Form
from manners.models import versions
from manners.models.branches import Branch
from manners.models.gguf_file import Kind
from manners.models.pretrained import load
from manners.models.versions import Version
from manners.settings import ModelSettings
from manners.types import VersionKind
from manners.workspace import Workspace
from tests.models.exchanges import trained
from tests.worlds import save_tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base") / "llama")


def trained_in(workspace: Workspace, settings: ModelSettings, name: str = "policy-1") -> None:
    """Keep a policy that has moved, and a reward model in name only."""
    pretrained = load(settings)
    for called, kind in ((name, VersionKind.POLICY), ("reward-1", VersionKind.REWARD)):
        described = Version(
            called,
            kind,
            settings.name,
            pretrained.trunk.hash,
            pretrained.trunk.cut,
            pretrained.renderer.template_hash,
            "float32",
            "now",
            settings={"model": vars(settings)},
            shifts=(0.0,) if kind is VersionKind.REWARD else (),
            model_hash=pretrained.trunk.initial_hash,
        )
        versions.save(workspace, described, [trained(Branch(pretrained.trunk, trainable=True))])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, base: Path, empty_file: Path) -> Workspace:
    """A workspace with a policy and a reward model; an export changes nothing in it but the log."""
    made = Workspace.create(tmp_path_factory.mktemp("exporting") / "ws")
    shutil.copyfile(empty_file, made.database)
    trained_in(made, ModelSettings(name=str(base), trainable_layers=2, device="cpu", context=64))
    return made


def test_a_gguf_holds_the_merged_policy_in_the_format_that_is_asked_for(workspace: Workspace, tmp_path: Path) -> None:
    folder = stages.models_export(workspace, "policy-1", tmp_path / "plain")
    assert (folder["as"], folder["type"], folder["loads_with"]) == ("folder", "f32", "AutoModelForCausalLM")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").state_dict()
    facts = stages.models_export(workspace, "policy-1", tmp_path / "out", form="gguf", kind="f16")
    file = tmp_path / "out" / "policy-1-f16.gguf"
    assert (facts["file"], facts["type"], facts["pre_tokenizer"]) == (str(file), "f16", "gpt-2")
    assert [found.name for found in (tmp_path / "out").iterdir()] == [file.name]
    found = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    for layer in (0, 3):  # below the cut, and above it
        ours = torch.from_numpy(found[f"blk.{layer}.ffn_up.weight"].data.copy())
        assert torch.equal(ours, plain[f"model.layers.{layer}.mlp.up_proj.weight"].half())


def test_an_adapter_is_named_after_its_base(tmp_path: Path, base: Path) -> None:
    workspace = Workspace.create(tmp_path / "ws")
    trained_in(workspace, ModelSettings(name=str(base), trainable_layers=2, device="cpu", context=64, lora_rank=3))
    facts = stages.models_export(workspace, "policy-1", tmp_path / "out", form="lora", kind="bf16")
    assert (facts["base"], facts["layers"], facts["loads_with"]) == (str(base), 14, "peft.PeftModel")
    assert {t.dtype for t in load_file(tmp_path / "out" / "adapter_model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("version", "form", "kind", "reason"),
    [
        ("policy-1", "folder", "q8_0", "q8_0 is a format of GGUF files, and none of --as folder"),
        ("policy-1", "lora", None, "policy-1 was trained in whole layers"),
        ("reward-1", "gguf", None, "reward-1 is a reward model, which scores and writes nothing"),
        ("reward-1", "lora", None, "reward-1 is a reward model"),
    ],
)
def test_what_a_form_cannot_hold_is_refused_in_one_sentence(
    workspace: Workspace,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    version: str,
    form: Form,
    kind: Kind | None,
    reason: str,
) -> None:
    with pytest.raises(MannersError, match=reason):
        stages.models_export(workspace, version, tmp_path / "out", form=form, kind=kind)
    assert not (tmp_path / "out").exists()


def test_the_command_says_where_it_went(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A place that is not named is `exported`, beside whoever asks."""
    monkeypatch.chdir(tmp_path)
    line = ["models", "export", "policy-1", "--as", "gguf", "--type", "q8_0", "--workspace", str(workspace.root)]
    assert main([*line, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["file"] == "exported/policy-1-gguf/policy-1-q8_0.gguf" and facts["tensors_in_f16_instead"] == 4
    assert (tmp_path / facts["file"]).stat().st_size == facts["bytes"]
    assert main(line) == 1 and "exists already" in capsys.readouterr().err


def test_a_folder_that_is_there_is_refused_before_the_model_is_loaded(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the user's home too, and a link that leads nowhere, over which no folder can be put."""
    monkeypatch.setattr(exporting, "Session", lambda *_: 1 / 0)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "taken").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in (tmp_path / "taken", Path("~/taken"), tmp_path / "link"):
        with pytest.raises(MannersError, match=r"(taken|link) exists already"):
            stages.models_export(workspace, "policy-1", place)


def test_a_policy_that_was_trained_on_a_gpu_is_exported_without_one(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The device is that of the machine at hand; every other setting is that of the version."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = workspace.models / "policy-1" / "version.json"
    before = file.read_text(encoding="utf-8")
    file.write_text(before.replace('"device": "cpu"', '"device": "cuda"'), encoding="utf-8")
    line = ["models", "export", "policy-1", str(tmp_path / "out"), "--workspace", str(workspace.root)]
    try:
        assert main([*line, "--set", "model.device=cuda"]) == 1
        assert "model.device is cuda, which this machine does not have" in capsys.readouterr().err
        assert main([*line, "--set", "sample.temperature=1.0"]) == 2
        assert "--set sample.temperature=1.0 has no part in an export" in capsys.readouterr().err
        assert not (tmp_path / "out").exists() and main(line) == 0
    finally:
        file.write_text(before, encoding="utf-8")


@pytest.mark.parametrize("place", ["models/policy-2", "models/mine", "runs/x", "runs", "x/../models/x", "link/x"])
def test_nothing_is_exported_among_the_versions(workspace: Workspace, tmp_path: Path, place: str) -> None:
    there = sorted(one.name for one in workspace.models.iterdir())
    if place.startswith("link"):
        (tmp_path / "link").symlink_to(workspace.models)
    root = tmp_path if place.startswith("link") else workspace.root
    with pytest.raises(MannersError, match="which is for what manners keeps there: name another folder"):
        stages.models_export(workspace, "policy-1", root / place)
    assert sorted(one.name for one in workspace.models.iterdir()) == there
