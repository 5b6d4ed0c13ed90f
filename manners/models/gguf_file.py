"""A model as a GGUF file, for llama.cpp and what is built on it: Llama (SmolLM too), Qwen 2 and Qwen 3.

Tensors get the names that llama.cpp has for them. Its code for Llama rotates neighbouring numbers of a head, where
transformers rotates halves: rows of q and k are laid out anew for it, which changes no logit. A head that is tied to
the embedding is left out, and one-dimensional tensors stay in float32.
Source: GGUF specification; llama.cpp, `conversion/llama.py` and `conversion/qwen.py`, for what is expected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Number
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from manners.errors import MannersError
from manners.models.gguf_words import add_words, words_of
from manners.models.surgery import describe, word_rows
from manners.text import Renderer
from manners.workspace import atomic_folder

Kind = Literal["f32", "f16", "bf16", "q8_0"]
"""Number format of the weights. `q8_0` is 8 bits a number, with a scale for each 32 (8.5 bits in all)."""

FAMILIES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
"""What can be written, by transformers' name."""
_NUMBERS = {"f32": Number.F32, "f16": Number.F16, "bf16": Number.BF16, "q8_0": Number.Q8_0}
_FILES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
LARGEST = {Number.F16: float(np.finfo(np.float16).max), Number.Q8_0: 127 * float(np.finfo(np.float16).max)}
"""The largest number that a format holds, where float32 holds more."""


@dataclass(frozen=True)
class Written:
    """What came of it."""

    file: Path
    bytes: int
    tensors: int
    split: str
    """llama.cpp's name for how the tokenizer splits a text."""
    spare: int
    """Rows of the embedding that no entry of the tokenizer has."""
    f16: int
    """Tensors in f16 instead of q8_0, since their rows are no whole blocks of 32."""


def write(model: PreTrainedModel, renderer: Renderer, folder: Path, kind: Kind, name: str, base: str) -> Written:
    """Write a new folder with one file, `NAME-KIND.gguf`, all of it or nothing; one tensor at a time is converted.

    Raises:
        MannersError: a family, a setting of one, or a tokenizer that llama.cpp has no code for (named); a number that
            the format cannot hold; the folder exists already, or the disk is full.
    """
    arch = _family(model)
    words = words_of(renderer, word_rows(model))
    placed = [(where, tensor, _number(tensor, kind)) for where, tensor in _tensors(model, arch)]
    file = f"{name}-{kind}.gguf"
    with atomic_folder(folder) as draft, closing(gguf.GGUFWriter(draft / file, gguf.MODEL_ARCH_NAMES[arch])) as writer:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(name)
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base)
        writer.add_file_type(_FILES[kind])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, model)
        add_words(writer, words, renderer, model)
        for where, tensor, number in placed:
            block, size = gguf.GGML_QUANT_SIZES[number]
            writer.add_tensor_info(where, tensor.shape, np.dtype(np.float32), tensor.numel() // block * size, number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for where, tensor, number in placed:
            writer.write_tensor_data(_converted(where, _laid_out(where, tensor, model), number))
    other = sum(number is Number.F16 for _, _, number in placed) if kind == "q8_0" else 0
    written = folder / file
    return Written(written, written.stat().st_size, len(placed), words.split, words.spare, other)


def _family(model: PreTrainedModel) -> gguf.MODEL_ARCH:
    """Return a model's architecture; raises MannersError for one, or a setting of one, that cannot be written."""
    config = model.config
    if config.model_type not in FAMILIES:
        raise MannersError(
            f"{describe(model)} is of the family {config.model_type}, which is not written as GGUF here"
            f" ({', '.join(FAMILIES)} are): export with --as folder, and convert that with llama.cpp's own program"
        )
    rope = config.rope_parameters
    ropes = ("default", "llama3") if config.model_type == "llama" else ("default",)  # Qwen's code reads no factors
    square = _head(config) * config.num_attention_heads == config.hidden_size
    odd = [
        ("hidden_act", config.hidden_act, config.hidden_act == "silu"),
        ("rope_type", rope["rope_type"], rope["rope_type"] in ropes),
        ("partial_rotary_factor", rope.get("partial_rotary_factor"), rope.get("partial_rotary_factor") in (None, 1.0)),
        ("sliding_window", _window(config), _window(config) is None),
        ("head_dim", _head(config), config.model_type != "qwen2" or square),
        ("attention_bias", True, config.model_type != "qwen3" or not config.attention_bias),
    ]
    for name, value, fits in odd:
        if not fits:
            raise MannersError(
                f"{describe(model)} has {name} = {value}, for which llama.cpp's {config.model_type} has no code: export"
                " with --as folder"
            )
    return FAMILIES[config.model_type]


def _window(config: Any) -> int | None:
    """Return how far back a layer looks that does not look at everything."""
    narrow = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return config.sliding_window if narrow else None


def _add_shape(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    config = model.config
    writer.add_vocab_size(word_rows(model))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head(config))
    writer.add_value_length(_head(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_rope_dimension_count(_head(config))


def _head(config: Any) -> int:
    """Return the numbers in a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _tensors(model: PreTrainedModel, arch: gguf.MODEL_ARCH) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's tensors under llama.cpp's names, tied ones once; raises MannersError for one without a name."""
    if model.config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", slowed(model.config)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        where = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if where is None:
            raise MannersError(
                f"{describe(model)} has {name}, which has no place in a GGUF file: export with --as folder"
            )
        yield where, parameter.detach()


def slowed(config: Any) -> Float[Tensor, " H"]:
    """Return by what each rotation of a head is slower than without scaling, 1 to `factor`, as Llama 3.1 has it.

    A rotation whose period fits the old context more than `high_freq_factor` times is as it was, one that fits less
    than `low_freq_factor` times is `factor` times as slow, and between them the speed changes linearly with the number
    of times. H is half the numbers of a head.
    """
    rope = config.rope_parameters
    half = torch.arange(0, _head(config), 2, dtype=torch.float64) / _head(config)
    fits = rope["original_max_position_embeddings"] * float(rope["rope_theta"]) ** -half / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = ((fits - low) / (high - low)).clamp(0, 1)
    times: Tensor = 1 / (share + (1 - share) / rope["factor"])
    return times.float()


def _number(tensor: Tensor, kind: Kind) -> Number:
    """Return the format of a tensor: one-dimensional ones are float32, and rows that are no whole blocks f16."""
    if tensor.ndim == 1:
        return Number.F32
    block, _ = gguf.GGML_QUANT_SIZES[_NUMBERS[kind]]
    return Number.F16 if tensor.shape[-1] % block else _NUMBERS[kind]


def _laid_out(where: str, tensor: Tensor, model: PreTrainedModel) -> Tensor:
    """Return a tensor as llama.cpp's code reads it: a Llama's q and k with the two halves of each head interleaved."""
    part = where.split(".")[-2]
    if model.config.model_type != "llama" or part not in ("attn_q", "attn_k"):
        return tensor
    heads = model.config.num_attention_heads if part == "attn_q" else model.config.num_key_value_heads
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _converted(where: str, tensor: Tensor, number: Number) -> np.ndarray[Any, Any]:
    values = tensor.to("cpu", torch.float32).contiguous().numpy()
    largest = LARGEST.get(number, math.inf)
    if not np.isfinite(values).all() or float(np.abs(values).max()) > largest:
        raise MannersError(f"{where} has numbers that {number.name.lower()} cannot hold; use --type bf16")
    converted: np.ndarray[Any, Any] = gguf.quants.quantize(values, number)
    return converted
