"""Versions come back bit for bit, refuse what they do not fit, and export to plain transformers."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from manners.errors import MannersError
from manners.models import versions
from manners.models.branches import Branch, set_trainable
from manners.models.lowrank import SCALE, LowRank
from manners.models.pretrained import Pretrained, load
from manners.settings import ModelSettings
from manners.text import collate
from manners.types import Role, Turn, VersionKind
from manners.workspace import INITIAL, Workspace
from tests.conftest import some
from tests.models.exchanges import rendered, trained, version_of
from tests.models.test_generate import goodness_of_fit
from tests.worlds import (
    BOS,
    END,
    EOS,
    NO_SYSTEM_TEMPLATE,
    PAD,
    START,
    save_tiny,
    tiny_model,
    tiny_pretrained,
    with_words,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.create(tmp_path / "work")


def save_policy(workspace: Workspace, pretrained: Pretrained, name: str = "policy-1") -> Branch:
    policy = trained(Branch(pretrained.trunk, trainable=True))
    versions.save(workspace, version_of(pretrained, name, VersionKind.POLICY), [policy])
    return policy


# Kept


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("layers", [2, "all"])
def test_a_policy_comes_back_bit_for_bit_with_its_description(
    workspace: Workspace, layers: int | Literal["all"], rank: int | None
) -> None:
    pretrained = tiny_pretrained(trainable_layers=layers, lora_rank=rank)
    policy = save_policy(workspace, pretrained)
    again = versions.load_policy(workspace, "policy-1", tiny_pretrained(trainable_layers=layers, lora_rank=rank))
    stored = dict(again.named_parameters())
    assert all(torch.equal(t, stored[name]) for name, t in policy.own_tensors().items())
    assert not set_trainable([again])
    assert versions.describe(workspace, "policy-1") == version_of(pretrained, "policy-1", VersionKind.POLICY)


def test_a_version_stores_its_own_layers_only(workspace: Workspace) -> None:
    pretrained = tiny_pretrained(trainable_layers=1)
    save_policy(workspace, pretrained)
    size = (workspace.models / "policy-1" / "branch-0.safetensors").stat().st_size
    assert size < 0.4 * 4 * pretrained.parameters


def test_the_initial_version_is_the_base_model_itself(workspace: Workspace) -> None:
    pretrained = tiny_pretrained()
    initial = versions.load_policy(workspace, INITIAL, pretrained)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        whole = pretrained.trunk.whole(input_ids=ids).logits
        assert torch.equal(initial.assembled(pretrained.trunk)(input_ids=ids).logits, whole)


def test_names_are_in_order_of_number_and_the_latest_is_the_highest(workspace: Workspace) -> None:
    with pytest.raises(MannersError, match=r"no policy version .* yet; run `manners ppo` first"):
        versions.latest(workspace, VersionKind.POLICY)
    pretrained = tiny_pretrained()
    for name in ("policy-10", "policy-9", "policy-backup"):
        save_policy(workspace, pretrained, name)
    assert versions.names(workspace, VersionKind.POLICY) == ["policy-9", "policy-10"]
    assert versions.latest(workspace, VersionKind.POLICY) == "policy-10"
    with pytest.raises(MannersError, match="run `manners reward` first"):
        versions.latest(workspace, VersionKind.REWARD)


# Refused


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda: tiny_pretrained(seed=1), "trained above another trunk"),
        (lambda: tiny_pretrained(trainable_layers=1), "cut 2.*than the one loaded.*cut 3"),
        (lambda: tiny_pretrained(lora_rank=3), "trained above another trunk.*model.lora_rank"),
        (lambda: tiny_pretrained("mistral"), "trained above another trunk"),
        (lambda: tiny_pretrained(chat_template=NO_SYSTEM_TEMPLATE), "trained with chat template"),
        (lambda: tiny_pretrained(chat_template=None), "trained with chat template"),
    ],
    ids=["trunk", "cut", "adapters", "architecture", "template", "no template"],
)
def test_a_version_of_another_trunk_cut_or_template_is_refused(
    workspace: Workspace, other: object, reason: str
) -> None:
    save_policy(workspace, tiny_pretrained())
    assert callable(other)
    with pytest.raises(MannersError, match=reason):
        versions.load_policy(workspace, "policy-1", other())


def test_an_unknown_version_is_refused_with_those_there_are(workspace: Workspace) -> None:
    with pytest.raises(MannersError, match=r"no version policy-7 in .* \(there are: none yet\)"):
        versions.describe(workspace, "policy-7")
    pretrained = tiny_pretrained()
    save_policy(workspace, pretrained)
    with pytest.raises(MannersError, match=r"there are: policy-1"):
        versions.load_policy(workspace, "policy-7", pretrained)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_file_of_tensors_is_refused_by_name(workspace: Workspace, keep: int) -> None:
    pretrained = tiny_pretrained()
    save_policy(workspace, pretrained)
    file = workspace.models / "policy-1" / "branch-0.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(MannersError, match=r"branch-0\.safetensors is damaged"):
        versions.load_policy(workspace, "policy-1", pretrained)
    file.unlink()
    with pytest.raises(MannersError, match=r"branch-0\.safetensors is damaged"):
        versions.load_policy(workspace, "policy-1", pretrained)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "policy"}', '{"kind": "cook", "shifts": []}'])
def test_a_damaged_description_is_refused_by_name(workspace: Workspace, content: str) -> None:
    save_policy(workspace, tiny_pretrained())
    (workspace.models / "policy-1" / "version.json").write_text(content, encoding="utf-8")
    with pytest.raises(MannersError, match=r"version\.json is damaged"):
        versions.describe(workspace, "policy-1")


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors be written half way, and then fail as a full disk does."""

    def half(tensors: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(versions, "save_file", half)


def test_a_full_disk_leaves_nothing_half_written_and_says_so(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained = tiny_pretrained()
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(MannersError, match=r"no space left .* nothing was written"):
            save_policy(workspace, pretrained)
    assert not list(workspace.models.iterdir())
    save_policy(workspace, pretrained)  # and with space it works, under the same name
    assert [f.name for f in workspace.models.iterdir()] == ["policy-1"]


# Exported


@pytest.mark.parametrize("layers", [2, "all"])
def test_an_exported_policy_writes_no_token_that_nobody_sees(tmp_path: Path, layers: int | Literal["all"]) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[[PAD, BOS, EOS, START, END]] *= 4
    pretrained = with_words(model, layers)
    versions.export_policy(Branch(pretrained.trunk, trainable=True), pretrained, tmp_path / "out")
    exported: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert exported.generation_config.suppress_tokens == [PAD, BOS, START]
    assert exported.generation_config.eos_token_id == [EOS, END]
    prompt = torch.tensor([pretrained.renderer.prompt_ids((Turn(Role.USER, "how long?"),))[0]]).expand(200, -1)

    def written(**asked: Any) -> Tensor:
        torch.manual_seed(0)
        drawn: Tensor = exported.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=True, max_new_tokens=6, pad_token_id=77, **asked
        )
        return drawn[:, prompt.shape[1] :]

    hidden = torch.tensor([PAD, BOS, START])
    assert not torch.isin(written(), hidden).any()
    assert torch.isin(written(suppress_tokens=None), hidden).any(), "it would"
    assert model.generation_config is None or model.generation_config.suppress_tokens is None, "the base is as it was"


HOSTILE = {
    "temperature": 0.2,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.2,
    "typical_p": 0.3,
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[77]],
    "begin_suppress_tokens": [78, 79],
    "forced_bos_token_id": 80,
    "min_new_tokens": 4,
    "num_beams": 3,
    "do_sample": True,
}
"""What a maker may have chosen for `generate`, all of which makes another policy of the one that was trained."""


@torch.no_grad()
def test_an_exported_policy_draws_as_it_was_trained_whatever_its_base_was_set_to(tmp_path: Path) -> None:
    model: Any = tiny_model(initializer_range=0.3)
    model.generation_config.update(**HOSTILE)
    pretrained = with_words(model)
    versions.export_policy(Branch(pretrained.trunk, trainable=False), pretrained, tmp_path / "out", temperature=0.7)
    exported: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prompt = torch.tensor([pretrained.renderer.prompt_ids((Turn(Role.USER, "how long?"),))[0]])
    many = prompt.expand(6000, -1)
    torch.manual_seed(0)
    drawn = exported.generate(many, attention_mask=torch.ones_like(many), max_new_tokens=2)[:, prompt.shape[1] :]

    # By the base's own logits: all but what nobody sees, at the temperature.
    def fits(tokens: Tensor, read: Tensor, temperature: float) -> float:
        logits = model(input_ids=read).logits[0, -1].double().index_fill(0, torch.tensor([PAD, BOS, START]), -math.inf)
        return goodness_of_fit(tokens.tolist(), torch.softmax(logits / temperature, dim=0))

    first, second = drawn.unbind(1)
    commonest = first[first > END].mode().values
    later = second[first == commonest]
    assert fits(first, prompt, 0.7) > 1e-4 > fits(first, prompt, 1.0)
    assert len(later) > 100 and fits(later, torch.cat([prompt, commonest.view(1, 1)], dim=1), 0.7) > 1e-4
    kept = {name: getattr(exported.generation_config, name) for name in HOSTILE}
    ours = {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "do_sample": True}
    assert kept == dict.fromkeys(HOSTILE) | ours
    assert model.generation_config.top_k == 3, "the base is as it was"


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("layers", [2, "all"])
@pytest.mark.parametrize("model_type", some(["llama", "qwen2", "gpt2", "gemma2"], 2))
@torch.no_grad()
def test_an_exported_policy_has_the_same_logprobs_in_plain_transformers(
    tmp_path: Path, model_type: str, layers: int | Literal["all"], rank: int | None
) -> None:
    pretrained = tiny_pretrained(model_type, trainable_layers=layers, lora_rank=rank)
    policy = trained(Branch(pretrained.trunk, trainable=True))
    versions.export_policy(policy, pretrained, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == pretrained.tokenizer.chat_template

    sequences = rendered(pretrained)
    batch = collate(sequences, pretrained.renderer.pad_id)
    ours = policy.text_logprobs(policy.hidden(pretrained.trunk.states(batch), batch), batch)
    for row, sequence in enumerate(sequences):
        ids = torch.tensor([sequence.prompt_ids + sequence.response_ids])
        start = len(sequence.prompt_ids)
        every = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
        theirs = every[torch.arange(start - 1, sequence.length - 1), ids[0, start:]]
        torch.testing.assert_close(ours[row, : len(theirs)], theirs, atol=1e-4, rtol=1e-4)
        before = torch.log_softmax(pretrained.trunk.whole(input_ids=ids).logits[0], dim=-1)
        assert (before - every).abs().max() > 0.01  # what was trained is in it


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, odd: float) -> None:
    branch = Branch(tiny_pretrained().trunk, trainable=True)
    tensors = branch.own_tensors()
    name = sorted(tensors)[3]
    tensors[name] = tensors[name].clone().index_fill_(0, torch.tensor([1]), odd)
    save_file(tensors, tmp_path / "branch-0.safetensors")
    with pytest.raises(MannersError, match=rf"branch-0.safetensors is damaged .*{name} holds what is no number"):
        versions.fill(branch, tmp_path / "branch-0.safetensors")


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@torch.no_grad()
def test_an_export_is_in_the_number_format_of_the_initial_models_files_or_in_the_one_asked_for(
    tmp_path: Path, stored: str
) -> None:
    folder = save_tiny(tmp_path / "base")
    torch.nn.Module.to(tiny_model(), dtype=getattr(torch, stored)).save_pretrained(folder)
    pretrained = load(ModelSettings(name=str(folder), trainable_layers=2, device="cpu", context=64))
    policy = trained(Branch(pretrained.trunk, trainable=True))
    exact = {name: p.clone() for name, p in policy.assembled(pretrained.trunk).named_parameters()}
    for asked in (None, torch.float32, torch.bfloat16, torch.float16):
        versions.export_policy(policy, pretrained, tmp_path / str(asked), asked)
        expected = asked or getattr(torch, stored)
        found = load_file(tmp_path / str(asked) / "model.safetensors")
        assert {tensor.dtype for tensor in found.values()} == {expected}
        assert all(torch.equal(tensor, exact[name].to(expected)) for name, tensor in found.items())
        assert json.loads((tmp_path / str(asked) / "config.json").read_text())["dtype"] == str(expected)[6:]
    now = policy.assembled(pretrained.trunk).named_parameters()
    assert all(torch.equal(p, exact[name]) for name, p in now), "what was exported is as it was"


@torch.no_grad()
def test_what_adapters_add_to_narrow_weights_is_in_an_export_that_can_hold_it(tmp_path: Path) -> None:
    """A change of less than half a step of a bfloat16 number is gone where it is added in bfloat16."""
    model = tiny_model(hidden_size=128, intermediate_size=128, head_dim=32)
    torch.nn.Module.to(model, dtype=torch.bfloat16)
    pretrained = with_words(model, lora_rank=3)
    policy = Branch(pretrained.trunk, trainable=True)
    adapters = {name: module for name, module in policy.model.named_modules() if isinstance(module, LowRank)}
    for module in adapters.values():
        module.b.copy_(1e-4 * torch.randn(module.b.shape, generator=torch.Generator().manual_seed(1)))
    for dtype in (torch.float32, torch.bfloat16):
        versions.export_policy(policy, pretrained, tmp_path / str(dtype), dtype)
        found = load_file(tmp_path / str(dtype) / "model.safetensors")
        for name, module in adapters.items():
            base, a, b = (tensor.double() for tensor in (module.base.weight, module.a, module.b))
            exact = base + SCALE * b @ a
            half = 1e-7 if dtype is torch.float32 else 2**-8
            torch.testing.assert_close(found[f"{name}.weight"].double(), exact, rtol=1.01 * half, atol=1e-9)
            assert (exact - base).abs().max() > 0


def test_what_a_number_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    pretrained = tiny_pretrained()
    with torch.no_grad():
        next(pretrained.trunk.whole.get_input_embeddings().parameters())[3, 3] = 1e6
    with pytest.raises(MannersError, match=r"numbers in model.embed_tokens.weight that float16 cannot hold"):
        versions.export_policy(Branch(pretrained.trunk, trainable=False), pretrained, tmp_path / "out", torch.float16)
    assert not (tmp_path / "out").exists()
