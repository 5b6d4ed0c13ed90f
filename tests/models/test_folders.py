"""Folders as people have them: each is read with its own weights, or is refused in one sentence by its cause."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from manners.errors import MannersError
from manners.models import versions
from manners.models.branches import Branch
from manners.models.pretrained import load
from manners.settings import ModelSettings
from manners.template_files import of_folder
from tests.worlds import END_IDS, EOS, TEMPLATE, save_tiny, tiny_model, tiny_tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"


def named(name: object) -> ModelSettings:
    return ModelSettings(name=str(name), trainable_layers=2, device="cpu", context=64)


def refusal(folder: Path) -> str:
    with pytest.raises(MannersError) as refused:
        load(named(folder))
    sentence = str(refused.value)
    assert str(folder) in sentence and "\n" not in sentence and len(sentence.replace(str(folder), "")) < 350
    return sentence


def configured(folder: Path, **entries: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return found


def in_one_bin(folder: Path) -> None:
    torch.save(weights(folder), folder / "pytorch_model.bin")


def in_old_bin(folder: Path) -> None:
    torch.save(weights(folder), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def in_bins(folder: Path) -> None:
    tensors = weights(folder)
    files = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        torch.save({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def in_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    tiny_model().save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3


def tokenizer_of_slow_files(folder: Path) -> None:
    """The tokenizer as vocabulary and merges, as it was kept before there was one file."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))


@pytest.mark.parametrize("keep", [in_one_bin, in_old_bin, in_bins, in_shards], ids=lambda keep: keep.__name__)
def test_every_way_of_keeping_weights_gives_the_same_model(tmp_path: Path, keep: Callable[[Path], None]) -> None:
    folder = save_tiny(tmp_path / "model")
    keep(folder)
    loaded = load(named(folder))
    expected = dict(tiny_model().named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in loaded.trunk.whole.named_parameters())
    assert loaded.note == ""


def test_what_is_in_the_files_and_is_not_used_is_said(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    extra = {"v_head.summary.weight": torch.zeros(1, 32), "v_head.summary.bias": torch.zeros(1)}
    save_file(weights(folder) | extra, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(named(folder)).note == "not used of its files: v_head.summary (2 tensors)"


class Runs:
    """Runs a program where somebody reads it back."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_code_in_a_bin_file_is_not_run(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    torch.save({**weights(folder), "more": Runs(tmp_path / "mark")}, folder / "pytorch_model.bin")
    assert "or holds code, which is not run" in refusal(folder)
    assert not (tmp_path / "mark").exists()


METHODS: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "gptq": {"bits": 4, "group_size": 128},
    "awq": {"bits": 4, "group_size": 128, "version": "gemm"},
    "fp8": {"activation_scheme": "dynamic"},
    "compressed-tensors": {"format": "pack-quantized"},
    "hqq": {},
    "exl2": {},
    "some-method-to-come": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_quantised_weights_are_refused_by_their_method(tmp_path: Path, method: str) -> None:
    folder = save_tiny(tmp_path / "model")
    configured(folder, quantization_config={"quant_method": method, **METHODS[method]})
    assert f"holds quantised weights ({method}), which can be neither trained nor cut here" in refusal(folder)


def test_quantised_weights_are_known_by_other_signs_too(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "apple")
    configured(folder, quantization={"group_size": 64, "bits": 4})
    assert "holds quantised weights" in refusal(folder)
    for number, packed in enumerate(("qweight", "SCB", "weight_scale")):  # in files whose configuration says nothing
        folder = save_tiny(tmp_path / str(number))
        tensors = weights(folder)
        tensors["model.layers.0.self_attn.q_proj." + packed] = tensors.pop("model.layers.0.self_attn.q_proj.weight")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        assert f"holds quantised weights (model.layers.0.self_attn.q_proj.{packed})" in refusal(folder)


def moved(folder: Path, into: str) -> None:
    (folder / into).mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        shutil.move(file, folder / into / file.name)


def without(*files: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for path in [path for name in files for path in folder.glob(name)]:
            path.unlink()

    return remove


def quantised_file(folder: Path) -> None:
    without("config.json", "*.safetensors")(folder)
    (folder / "it.gguf").write_bytes(b"GGUF")


def as_its_maker_keeps_it(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    (folder / "config.json").rename(folder / "params.json")


def version(folder: Path) -> None:
    moved(folder, "there")
    (folder / "version.json").write_text("{}")


def missing_shard(folder: Path) -> None:
    in_shards(folder)
    next(folder.glob("model-*")).unlink()


def bin_of(content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return write


LACKING: dict[str, tuple[Callable[[Path], object], str]] = {
    "tokenizer, no model": (without("config.json", "*.safetensors"), "it holds a tokenizer and no model"),
    "tokenizer and configuration": (without("*.safetensors"), "holds no weights .* but a configuration only"),
    "model, no tokenizer": (without("tokenizer*", "chat_template*"), "holds a model and no tokenizer"),
    "a tokenizer without words": (without("tokenizer.json"), "tokenizer"),
    "pointers for weights": (lambda f: (f / "model.safetensors").write_text(POINTER), "model.safetensors is a pointer"),
    "a pointer for words": (lambda f: (f / "tokenizer.json").write_text(POINTER), "tokenizer.json is a pointer"),
    "a folder of checkpoints": (lambda f: moved(f, "checkpoint-500"), "name the folder .*/checkpoint-500 in it"),
    "a quantised file": (quantised_file, "name the file .*/it.gguf in it"),
    "another library's weights": (
        lambda f: (f / "model.safetensors").rename(f / "model.onnx"),
        "but model.onnx; name a folder made by save_pretrained",
    ),
    "its maker's own layout": (as_its_maker_keeps_it, "laid out for another library"),
    "a version of a workspace": (
        version,
        "a version of a workspace: write it with `manners models export model DIR`",
    ),
    "an empty folder": (without("*"), "a folder without config.json; name a folder made by save_pretrained"),
    "a missing shard": (missing_shard, "cannot be loaded"),
    "an empty bin": (bin_of(b""), "cannot be loaded|plain numbers"),
    "a bin of no tensors": (bin_of(b"no tensors " * 99), "plain numbers|cannot be loaded"),
    "a width in words": (lambda f: configured(f, hidden_size="wide"), "cannot be loaded"),
    "both kinds": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        "holds an adapter .* and the weights of a whole",
    ),
}


@pytest.mark.parametrize("case", LACKING)
def test_what_a_folder_lacks_is_said_with_what_to_do(tmp_path: Path, case: str) -> None:
    folder = save_tiny(tmp_path / "model")
    damage, sentence = LACKING[case]
    damage(folder)
    refused = refusal(folder)
    assert re.search(sentence, refused), refused


def test_an_adapter_without_peft_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    folder = save_tiny(tmp_path / "model")
    without("config.json", "*.safetensors")(folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "nobody/nothing"}')
    assert "is an adapter, and peft, which merges it" in refusal(folder)
    assert "`pip install 'manners[adapters]'`" in refusal(folder)


def test_a_file_of_weights_is_named_by_its_folder(tmp_path: Path) -> None:
    with pytest.raises(MannersError, match="a file; name the folder that it is in"):
        load(named(save_tiny(tmp_path / "model") / "model.safetensors"))


def test_a_tokenizer_in_the_files_of_old_is_read(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "gpt2")
    tokenizer_of_slow_files(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>"}))
    text = "how do I bake bread?"
    assert load(named(folder)).renderer.text_ids(text) == tuple(tiny_tokenizer().encode(text, add_special_tokens=False))


def kept_in(kind: torch.dtype, **entries: Any) -> Callable[[Path], None]:
    """Weights in a format, whatever the configuration says of it."""

    def keep(folder: Path) -> None:
        configured(folder, **entries)
        save_file({name: t.to(kind) for name, t in weights(folder).items()}, folder / "model.safetensors")

    return keep


@pytest.mark.parametrize("again", [lambda _: None, in_one_bin, in_bins], ids=["safetensors", "bin", "bins"])
@pytest.mark.parametrize("said", ["float32", None])
def test_what_is_exported_is_in_the_format_of_the_files_whatever_their_configuration_says(
    tmp_path: Path, said: str | None, again: Callable[[Path], None]
) -> None:
    folder = save_tiny(tmp_path / "model")
    kept_in(torch.bfloat16, dtype=said)(folder)
    again(folder)
    loaded = load(named(folder))
    assert loaded.stored == torch.bfloat16
    versions.export_policy(Branch(loaded.trunk, trainable=False), loaded, tmp_path / "out")
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_weights_in_few_bits_are_refused_where_no_configuration_names_them(tmp_path: Path, kind: torch.dtype) -> None:
    folder = save_tiny(tmp_path / "model")
    tensors = weights(folder)
    which = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {which: tensors[which].to(kind)}, folder / "model.safetensors")
    assert f"holds quantised weights ({which} in " in refusal(folder)


@pytest.mark.parametrize(
    "more", ["self_attn.q_proj.bias", "self_attn.q_norm.weight", "mlp.up_proj.lora_A.weight", "mlp.up_proj.scale_inv"]
)
def test_a_part_of_a_layer_that_the_configuration_leaves_out_is_no_part_to_leave_out(tmp_path: Path, more: str) -> None:
    folder = save_tiny(tmp_path / "model")
    extra = {f"model.layers.0.{more}": torch.ones(8), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(weights(folder) | extra, folder / "model.safetensors")
    assert f"holds model.layers.0.{more}, for which the model" in refusal(folder)


@pytest.mark.parametrize(
    ("kind", "attention"), [("gpt2", "h.0.attn"), ("gptj", "h.0.attn"), ("gpt_neox", "layers.0.attention")]
)
def test_masks_that_older_files_keep_beside_the_weights_are_no_part(tmp_path: Path, kind: str, attention: str) -> None:
    folder = save_tiny(tmp_path / "model", kind)
    base = "gpt_neox" if kind == "gpt_neox" else "transformer"
    masks = {"bias": torch.ones(1, 1, 8, 8).tril().to(torch.uint8), "masked_bias": torch.tensor(-1e9)}
    save_file(weights(folder) | {f"{base}.{attention}.{n}": m for n, m in masks.items()}, folder / "model.safetensors")
    assert load(named(folder)).trunk.whole.config.model_type == kind


def test_layers_that_a_configuration_leaves_out_are_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    configured(folder, num_hidden_layers=3, layer_types=None)
    assert "not used of its files: model.layers.3 (9 tensors)" in load(named(folder)).note


@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, strange: float) -> None:
    folder = save_tiny(tmp_path / "model")
    tensors = weights(folder)
    tensors["model.embed_tokens.weight"][-1, 0] = strange
    save_file(tensors, folder / "model.safetensors")
    assert "whose model.embed_tokens.weight holds what is no number" in refusal(folder)


def generation(folder: Path, **entries: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(entries))


@pytest.mark.parametrize("strange", [-1, 99_999, "</s>"])
def test_what_ends_an_answer_and_is_no_token_of_the_model_is_said_and_not_used(tmp_path: Path, strange: object) -> None:
    folder = save_tiny(tmp_path / "model")
    generation(folder, eos_token_id=[EOS, strange])
    loaded = load(named(folder))
    assert f"its files end an answer with {strange!r} too, for which the model has no row" in loaded.note
    assert loaded.renderer.end_ids == END_IDS


def test_what_the_configuration_alone_ends_an_answer_with_ends_one(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    generation(folder, pad_token_id=0)
    configured(folder, eos_token_id=[EOS, 10])
    assert load(named(folder)).renderer.end_ids == {*END_IDS, 10}


def test_generation_settings_that_are_damaged_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    (folder / "generation_config.json").write_text("{")
    assert "whose generation_config.json is damaged" in refusal(folder)


@pytest.mark.parametrize("odd", [{"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.6}])
def test_generation_settings_that_transformers_reads_and_does_not_write_stop_no_export(
    tmp_path: Path, odd: dict[str, Any]
) -> None:
    folder = save_tiny(tmp_path / "model")
    generation(folder, do_sample=False, eos_token_id=EOS, **odd)
    loaded = load(named(folder))
    versions.export_policy(Branch(loaded.trunk, trainable=False), loaded, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert set(written["eos_token_id"]) == END_IDS and all(written[name] == 1.0 for name in odd)


def test_code_that_is_not_run_and_a_context_beyond_the_model_are_said(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", max_position_embeddings=48)
    configured(folder, auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    note = load(named(folder)).note
    assert "it brings code of its own, which is not run: read as LlamaForCausalLM" in note
    assert "it takes 48 tokens at most: model.context = 64 is more" in note


def test_the_template_of_a_models_processor_is_its_tokenizers_too(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", chat_template=None)
    assert load(named(folder)).renderer.plain and of_folder(folder)[0] is None
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    assert load(named(folder)).renderer.template.source == TEMPLATE == of_folder(folder)[0]
