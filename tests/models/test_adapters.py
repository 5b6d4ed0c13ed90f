"""Adapters that other tools trained are merged into their base: what comes out is arithmetic by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from manners.errors import MannersError
from manners.models import versions
from manners.models.branches import Branch
from manners.models.paper import outline
from manners.models.pretrained import load
from manners.settings import ModelSettings
from manners.turns import template_of
from tests.worlds import TEMPLATE, VOCABULARY, save_tiny, tiny_model, tiny_tokenizer

RANK, ALPHA = 2, 6
LINEAR = ("q_proj", "down_proj")


def settings(folder: Path, **others: Any) -> ModelSettings:
    return ModelSettings(name=str(folder), trainable_layers=2, device="cpu", context=64, **others)


def adapter(folder: Path, base: object, tensors: dict[str, torch.Tensor] | None = None, **entries: Any) -> Path:
    """Write an adapter as peft keeps one: two thin matrices for two linear layers of each of four layers."""
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None if base is None else str(base),
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": list(LINEAR),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | entries))
    save_file(thin() if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


def thin() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, weight in tiny_model().named_parameters():
        if name.split(".")[-2] in LINEAR:
            path = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{path}.lora_A.weight"] = torch.randn((RANK, weight.shape[1]), generator=generator)
            tensors[f"{path}.lora_B.weight"] = torch.randn((weight.shape[0], RANK), generator=generator)
    assert len(tensors) == 2 * 2 * 4
    return tensors


def by_hand(scale: float = ALPHA / RANK) -> dict[str, torch.Tensor]:
    """W + alpha / r * B A."""
    expected = {name: weight.detach().clone() for name, weight in tiny_model().named_parameters()}
    tensors = thin()
    for name in expected:
        path = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{path}.lora_A.weight" in tensors:
            expected[name] += scale * tensors[f"{path}.lora_B.weight"] @ tensors[f"{path}.lora_A.weight"]
    return expected


peft = pytest.importorskip("peft", reason="an optional part: pip install 'manners[adapters]'")


@pytest.mark.parametrize(("entries", "scale"), [({}, 3.0), ({"use_rslora": True}, ALPHA / RANK**0.5)])
def test_an_adapter_is_its_base_with_the_product_added(tmp_path: Path, entries: dict[str, Any], scale: float) -> None:
    base = save_tiny(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", base, **entries)
    loaded = load(settings(folder))
    expected = by_hand(scale)
    found = dict(loaded.trunk.whole.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], weight, atol=1e-5) for name, weight in expected.items())
    assert loaded.note == f"an adapter (lora) merged into {base}"
    assert loaded.renderer.template_hash == load(settings(base)).renderer.template_hash
    assert load(settings(folder)).trunk.hash == loaded.trunk.hash != load(settings(base)).trunk.hash


def test_weights_in_a_bin_file_and_a_base_beside_the_adapter_will_do(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", "base")
    save_tiny(folder / "base")
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    found = dict(load(settings(folder)).trunk.whole.named_parameters())
    assert all(torch.allclose(found[name], weight, atol=1e-5) for name, weight in by_hand().items())


def test_an_adapter_on_an_adapter_is_both(tmp_path: Path) -> None:
    first = adapter(tmp_path / "first", save_tiny(tmp_path / "base"))
    found = dict(load(settings(adapter(tmp_path / "second", first))).trunk.whole.named_parameters())
    assert all(torch.allclose(found[name], weight, atol=1e-5) for name, weight in by_hand(2 * 3.0).items())


def test_a_tokenizer_of_its_own_goes_with_the_rows_that_it_brings(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", tie_word_embeddings=True)
    rows = torch.randn((VOCABULARY + 1, 32), generator=torch.Generator().manual_seed(2))
    heads = {f"base_model.model.{name}.weight": rows.clone() for name in ("model.embed_tokens", "lm_head")}
    folder = adapter(tmp_path / "adapter", base, thin() | heads, modules_to_save=["embed_tokens", "lm_head"])
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["yeast"])
    tokenizer.save_pretrained(folder)
    loaded = load(settings(folder))
    whole = loaded.trunk.whole
    [words] = whole.get_input_embeddings().parameters()
    assert torch.equal(words, rows) and len(loaded.tokenizer) == VOCABULARY + 1
    assert VOCABULARY in loaded.renderer.text_ids("yeast") and "no row" not in loaded.note
    ids = torch.tensor([[5, 6, VOCABULARY]])
    versions.export_policy(Branch(loaded.trunk, trainable=False), loaded, tmp_path / "out")
    again = load(settings(tmp_path / "out")).trunk.whole
    with torch.no_grad():
        assert torch.allclose(again(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # peft's own
def test_an_adapter_that_peft_itself_wrote_gives_the_logits_that_peft_gives(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    shape = {"r": 4, "target_modules": ["v_proj", "up_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    with torch.random.fork_rng():
        tuned = peft.get_peft_model(tiny_model(), peft.LoraConfig(use_dora=True, **shape))
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = tuned.eval()(input_ids=ids).logits
        found = load(settings(tmp_path / "adapter")).trunk.whole(input_ids=ids).logits
        assert not torch.allclose(tiny_model()(input_ids=ids).logits, expected, atol=0.1)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # peft's own
@pytest.mark.parametrize("change", [{"target_modules": ["lm_head", "v_proj"]}, {"target_modules": ["embed_tokens"]}])
def test_an_adapter_of_a_head_that_is_tied_changes_the_head_alone(tmp_path: Path, change: dict[str, Any]) -> None:
    base = save_tiny(tmp_path / "base", tie_word_embeddings=True)
    with torch.random.fork_rng():
        config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **change)
        tuned = peft.get_peft_model(tiny_model(tie_word_embeddings=True), config)
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(tmp_path / "adapter")
    loaded = load(settings(tmp_path / "adapter"))
    versions.export_policy(Branch(loaded.trunk, trainable=False), loaded, tmp_path / "out")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = tuned.eval()(input_ids=ids).logits
        for model in (loaded.trunk.whole, load(settings(tmp_path / "out")).trunk.whole):
            assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-4)


@pytest.mark.parametrize("beside", [(), ("tokenizer_config.json",)])
def test_an_adapter_that_brings_a_template_and_no_tokens_is_laid_out_by_it(
    tmp_path: Path, beside: tuple[str, ...]
) -> None:
    base = save_tiny(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", base)
    for name in beside:
        shutil.copy(base / name, folder)
    (folder / "chat_template.jinja").write_text("{# my own #}" + TEMPLATE)
    loaded = load(settings(folder))
    assert loaded.renderer.template.source == (folder / "chat_template.jinja").read_text() != TEMPLATE
    assert loaded.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


@pytest.mark.parametrize("brings", ["template", "tokenizer"])
def test_an_adapter_by_its_id_is_laid_out_as_one_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brings: str
) -> None:
    """Laid into the hub's cache as its client does: `refs/main` names the one snapshot."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    commit, place = "0" * 40, tmp_path / "cache" / "models--acme--lora"
    (place / "refs").mkdir(parents=True)
    (place / "snapshots").mkdir()
    (place / "refs" / "main").write_text(commit)
    folder = adapter(place / "snapshots" / commit, save_tiny(tmp_path / "base"))
    own = "{# my own #}" + TEMPLATE
    if brings == "template":
        (folder / "chat_template.jinja").write_text(own)
    else:
        tiny_tokenizer(own).save_pretrained(folder)
    loaded = load(replace(settings(folder), name="acme/lora"))
    assert loaded.renderer.template.source == own
    assert template_of(outline("acme/lora").tokenizer).source == own
    with pytest.raises(MannersError, match="nobody/nothing, which cannot be loaded"):
        outline("nobody/nothing")


def refusal(folder: Path) -> str:
    with pytest.raises(MannersError) as refused:
        load(settings(folder))
    assert "\n" not in str(refused.value) and str(folder) in str(refused.value)
    return str(refused.value)


def test_what_cannot_be_merged_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    base = save_tiny(tmp_path / "base")
    fewer = {name: t for name, t in thin().items() if "layers.3" not in name}
    assert "does not fit its base (4 tensors" in refusal(adapter(tmp_path / "lacking", base, fewer))
    more = thin() | {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32)}
    assert "does not fit its base (1 tensors" in refusal(adapter(tmp_path / "more", base, more))
    wide = save_tiny(tmp_path / "wide", intermediate_size=64)
    assert "cannot be merged into its base" in refusal(adapter(tmp_path / "wider", wide))
    assert "names no base" in refusal(adapter(tmp_path / "none", None))
    assert "whose base fails: model.name is nobody/nothing" in refusal(adapter(tmp_path / "gone", "nobody/nothing"))
    assert "(lora, SEQ_CLS) that cannot be merged" in refusal(adapter(tmp_path / "scores", base, task_type="SEQ_CLS"))
    prompts = adapter(tmp_path / "prompts", base, {"prompt_embeddings": torch.zeros(4, 32)})
    described = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base)}
    (prompts / "adapter_config.json").write_text(json.dumps(described | {"num_virtual_tokens": 4}))
    assert "(prompt_tuning, CAUSAL_LM) that cannot be merged" in refusal(prompts)
    quantised = shutil.copytree(base, tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    assert "holds quantised weights (awq)" in refusal(adapter(tmp_path / "on-quantised", quantised))
    (base / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in refusal(base)
    damaged = adapter(tmp_path / "damaged", base)
    (damaged / "adapter_config.json").write_text("{")
    refusal(damaged)
