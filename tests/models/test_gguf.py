"""A GGUF file holds the model to the bit, and gives its logits elsewhere; what has no place in one is refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from manners.errors import MannersError
from manners.models import gguf_file
from manners.models.gguf_file import Kind, Written
from manners.models.gguf_words import words_of
from manners.models.pretrained import Pretrained, load
from manners.models.quiet import quiet_transformers
from manners.settings import ModelSettings
from manners.text import Renderer
from tests.conftest import some
from tests.models.exchanges import rendered
from tests.worlds import END, EOS, PAD, START, TEMPLATE, VOCABULARY, tiny_pretrained, tiny_tokenizer

NO_WINDOW: dict[str, Any] = {"use_sliding_window": False}
WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", NO_WINDOW),
    "qwen3": ("qwen3", {"head_dim": 128, "tie_word_embeddings": True}),  # transformers reads no other size of a head
}
KINDS: tuple[Kind, ...] = ("f32", "f16", "bf16", "q8_0")
LONG_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@cache
def world(name: str) -> Pretrained:
    """One of the models, which no test changes."""
    model_type, overrides = WORLDS[name]
    return tiny_pretrained(model_type, **overrides)


def written(pretrained: Pretrained, folder: Path, kind: Kind = "f32") -> Written:
    return gguf_file.write(pretrained.trunk.whole, pretrained.renderer, folder, kind, "policy-1", "somebody/base")


def halves(tensor: Tensor, heads: int) -> Tensor:
    """Take apart what llama.cpp has interleaved, number by number: of each head first the even rows, then the odd."""
    size = tensor.shape[0] // heads
    rows = [head * size + row for head in range(heads) for row in (*range(0, size, 2), *range(1, size, 2))]
    return tensor[rows]


def read_back(file: Path) -> dict[str, Tensor]:
    """Return all tensors of a file in float32, by the reader that comes with the format."""
    found = GGUFReader(file).tensors
    read = {t.name: gguf.dequantize(t.data, t.tensor_type).reshape([*map(int, t.shape)][::-1]) for t in found}
    return {name: torch.from_numpy(np.array(value)) for name, value in read.items()}


def said(file: Path) -> dict[str, Any]:
    """Return a file's description."""
    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


# Tensors


@pytest.mark.parametrize("name", some(WORLDS, 2))
@pytest.mark.parametrize("kind", some(KINDS, 2))
def test_every_tensor_is_that_of_the_model(tmp_path: Path, name: str, kind: Kind) -> None:
    (model_type, overrides), pretrained = WORLDS[name], world(name)
    model, config = pretrained.trunk.whole, pretrained.trunk.whole.config
    found = read_back(written(pretrained, tmp_path / "out", kind).file)
    tied = bool(overrides.get("tie_word_embeddings"))
    assert ("output.weight" in found) is not tied, "a head that is the embedding is there once"
    ours = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
    inside = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    named = dict(model.named_parameters())
    assert len(found) == len(named)
    for where, tensor in found.items():
        *layer, part, ending = where.split(".")
        name_here = f"model.layers.{layer[1]}.{inside[part]}.{ending}" if layer else f"{ours[part]}.{ending}"
        expected = named[name_here].detach()
        if model_type == "llama" and part in ("attn_q", "attn_k"):
            tensor = halves(tensor, config.num_attention_heads if part == "attn_q" else config.num_key_value_heads)
        close = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 0.0}[kind] if expected.ndim > 1 else 0.0
        if kind == "q8_0" and expected.ndim > 1 and expected.shape[-1] % 32 == 0:
            blocks = expected.reshape(-1, 32)
            step = blocks.abs().amax(dim=1, keepdim=True) / 127
            assert ((tensor.reshape(-1, 32) - blocks).abs() <= 0.51 * step + 127 * step * 2**-11).all()
        else:
            close = 2**-11 if kind == "q8_0" and expected.ndim > 1 else close
            torch.testing.assert_close(tensor, expected, rtol=close, atol=1e-7 if close else 0.0)


def test_rows_that_are_no_whole_blocks_are_counted(tmp_path: Path) -> None:
    result = written(world("llama"), tmp_path / "out", "q8_0")  # mlp.down_proj has rows of 48, in each of 4 layers
    kinds = {t.name: t.tensor_type.name for t in GGUFReader(result.file).tensors}
    assert result.f16 == 4 and kinds["blk.2.ffn_down.weight"] == "F16" and kinds["blk.2.ffn_up.weight"] == "Q8_0"
    assert result.bytes == result.file.stat().st_size and result.tensors == len(kinds)


# Elsewhere


@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("name", some(WORLDS, 2))
@torch.no_grad()
def test_transformers_own_reader_gives_the_same_logits(tmp_path: Path, name: str, kind: Kind) -> None:
    pretrained = world(name)
    file = written(pretrained, tmp_path / "out", kind).file
    with quiet_transformers():
        other = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    ids = torch.tensor([[*rendered(pretrained)[1].prompt_ids, *rendered(pretrained)[1].response_ids]])
    ours = pretrained.trunk.whole(input_ids=ids).logits
    close = 1e-5 if kind == "f32" else 0.03
    torch.testing.assert_close(other(input_ids=ids).logits, ours, atol=close, rtol=0)
    assert ours.std() > 1


@pytest.mark.long
@torch.no_grad()
def test_what_is_written_is_a_model_that_can_be_named(tmp_path: Path) -> None:
    pretrained = world("llama")
    file = written(pretrained, tmp_path / "out").file
    again = load(ModelSettings(name=str(file), trainable_layers=2, device="cpu", context=256))
    assert again.renderer.template.source == TEMPLATE
    sequence = rendered(pretrained)[0]
    ids = torch.tensor([sequence.prompt_ids + sequence.response_ids])
    assert rendered(again)[0] == sequence
    torch.testing.assert_close(again.trunk.whole(ids).logits, pretrained.trunk.whole(ids).logits, atol=1e-5, rtol=0)


# What it says


def test_a_file_says_what_the_model_is_and_how_its_dialogues_end(tmp_path: Path) -> None:
    pretrained = tiny_pretrained("llama", vocab_size=330)
    facts = said(written(pretrained, tmp_path / "out", "f16").file)
    expected = {
        "general.architecture": "llama",
        "general.name": "policy-1",
        "general.base_model.0.name": "somebody/base",
        "general.file_type": 1,
        "llama.context_length": 256,
        "llama.embedding_length": 32,
        "llama.block_count": 4,
        "llama.feed_forward_length": 48,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 8,
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 330,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.eot_token_id": END,
        "tokenizer.ggml.padding_token_id": PAD,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    assert {name: facts[name] for name in expected} == expected
    assert math.isclose(facts["llama.attention.layer_norm_rms_epsilon"], 1e-6, rel_tol=1e-6)
    tokenizer = pretrained.tokenizer
    assert facts["tokenizer.ggml.tokens"][:VOCABULARY] == tokenizer.convert_ids_to_tokens(list(range(VOCABULARY)))
    assert facts["tokenizer.ggml.tokens"][-1] == "[PAD329]"
    kinds = facts["tokenizer.ggml.token_type"]
    assert kinds[START] == TokenType.CONTROL and kinds[7] == TokenType.NORMAL and kinds[-1] == TokenType.UNUSED
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert facts["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]


def test_an_added_token_that_is_not_special_stays_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    renderer = Renderer(tokenizer, frozenset({EOS, END}), 256)
    words = words_of(renderer, VOCABULARY + 1)
    assert words.tokens[-1] == "<think>" and words.kinds[-1] == TokenType.USER_DEFINED and not words.spare
    with pytest.raises(MannersError, match=r"an entry 320 .'<think>'., and the model 320 rows"):
        words_of(renderer, VOCABULARY)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_scaled_rotations_are_those_of_transformers(factor: float) -> None:
    model = tiny_pretrained("llama", rope_parameters=LONG_ROPE | {"factor": factor}, head_dim=32).trunk.whole
    plain = 10000.0 ** -(torch.arange(0, 32, 2) / 32)
    torch.testing.assert_close(gguf_file.slowed(model.config), plain / model.model.rotary_emb.inv_freq)


# How a text is split

_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(*steps: Any, normalizer: Any = None, **changes: Any) -> Renderer:
    """A renderer whose tokenizer splits a text by these steps."""
    made = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    described = json.loads(made.to_str())
    described["model"] |= changes
    made = Tokenizer.from_str(json.dumps(described))
    made.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    if normalizer is not None:
        made.normalizer = normalizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    return Renderer(tokenizer, frozenset({EOS, END}), 256)


def by(expression: str) -> tuple[Any, Any]:
    return (
        pre_tokenizers.Split(Regex(expression), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    )


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
KNOWN: dict[str, Any] = {
    "gpt-2": lambda: split(BYTES),
    "smollm": lambda: split(pre_tokenizers.Digits(individual_digits=True), BYTES),
    "qwen2": lambda: split(*by(_GPT4 % ""), normalizer=normalizers.NFC()),
    "llama-bpe": lambda: split(*by(_GPT4 % "{1,3}"), ignore_merges=True),
    "smaug-bpe": lambda: split(*by(_GPT4 % "{1,3}")),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_way_to_split_has_llama_cpps_name(name: str) -> None:
    assert words_of(KNOWN[name](), VOCABULARY).split == name


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: split(pre_tokenizers.Digits(individual_digits=False), BYTES), "Digits.*false.* ByteLevel"),
        (lambda: split(*by(r"\p{N}{1,4}")), r"the pre-tokenizer Split .*1,4"),
        (lambda: split(pre_tokenizers.ByteLevel(add_prefix_space=True)), "ByteLevel.*add_prefix_space.*true"),
        (lambda: split(BYTES, ignore_merges=True), "the pre-tokenizer ByteLevel"),
        (lambda: split(pre_tokenizers.Whitespace()), "the pre-tokenizer Whitespace"),
        (lambda: split(BYTES, normalizer=normalizers.Lowercase()), "the normalizer Lowercase"),
        (lambda: split(BYTES, dropout=0.1), "BPE with dropout"),
        (lambda: split(BYTES, byte_fallback=True), "as SentencePiece has"),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused_by_what_it_is(made: Any, reason: str) -> None:
    with pytest.raises(MannersError, match=rf"llama\.cpp has no name for the model's tokenizer .*{reason}"):
        words_of(made(), VOCABULARY)


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    made = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    made.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(MannersError, match=r"tokenizer .WordLevel."):
        words_of(Renderer(tokenizer, frozenset({1}), 64), 2)


# Refused


@pytest.mark.parametrize(
    ("model_type", "overrides", "reason"),
    [
        ("gpt2", {}, "is of the family gpt2, which is not written as GGUF here .llama, qwen2, qwen3 are."),
        ("mistral", {}, "is of the family mistral"),
        ("qwen2", {}, "has sliding_window = 16, for which llama.cpp's qwen2 has no code"),
        ("qwen3", {"attention_bias": True}, "has attention_bias = True"),
        ("qwen2", NO_WINDOW | {"head_dim": 16}, "has head_dim = 16"),
        ("llama", {"hidden_act": "gelu"}, "has hidden_act = gelu"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "has rope_type = dynamic",
        ),
        ("qwen2", NO_WINDOW | {"rope_parameters": LONG_ROPE}, "has rope_type = llama3, for which llama.cpp's qwen2"),
        ("qwen3", {"rope_parameters": LONG_ROPE}, "has rope_type = llama3, for which llama.cpp's qwen3"),
    ],
)
def test_what_llama_cpp_has_no_code_for_is_refused_by_name(
    tmp_path: Path, model_type: str, overrides: dict[str, Any], reason: str
) -> None:
    with pytest.raises(MannersError, match=reason):
        written(tiny_pretrained(model_type, **overrides), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "value"), [("f16", 1e5), ("q8_0", 1e7)])
def test_a_number_that_the_format_cannot_hold_is_refused_and_nothing_is_left(
    tmp_path: Path, kind: Kind, value: float
) -> None:
    pretrained = tiny_pretrained()
    with torch.no_grad():
        pretrained.trunk.whole.model.layers[2].mlp.up_proj.weight[3, 3] = value
    with pytest.raises(MannersError, match=rf"blk.2.ffn_up.weight has numbers that {kind} cannot hold"):
        written(pretrained, tmp_path / "out", kind)
    assert not list(tmp_path.iterdir())
    written(pretrained, tmp_path / "out", "bf16")


def test_nothing_is_written_over_and_no_half_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = world("llama")
    written(pretrained, tmp_path / "out")
    with pytest.raises(MannersError, match="out exists already"):
        written(pretrained, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(gguf_file, "_laid_out", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            written(pretrained, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_template_with_its_arguments_goes_along(tmp_path: Path) -> None:
    pretrained = world("llama")
    template = replace(pretrained.renderer.template, arguments={"mood": "kind"})
    renderer = Renderer(pretrained.tokenizer, frozenset({EOS, END}), 256, template)
    file = gguf_file.write(pretrained.trunk.whole, renderer, tmp_path / "out", "f32", "x", "y").file
    assert said(file)["tokenizer.chat_template"].startswith("{% set mood = ")
