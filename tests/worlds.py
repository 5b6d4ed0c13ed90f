"""Tiny worlds that tests share: language models of many architectures and a tokenizer, made in a moment."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from manners.models.pretrained import Pretrained
from manners.models.proof import proved
from manners.models.trunk import grow_trunk
from manners.text import Renderer

VOCABULARY = 320
SPECIAL = ("<pad>", "<s>", "</s>", "<|start|>", "<|end|>")
PAD, BOS, EOS, START, END = range(len(SPECIAL))
END_IDS = frozenset((EOS, END))

TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
"""A chat template with one BOS and a token of its own that ends a turn."""
NO_SYSTEM_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
)
"""The same, refusing system turns."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 16},
    "mistral": {"sliding_window": 16},
    "gpt2": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": {},
    "falcon": {"head_dim": None},
    "gptj": {"rotary_dim": 4},
    "bloom": {},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.5},
    "olmo2": {},
    "mixtral": {},
    "smollm3": {},
    "stablelm": {},
}
"""Decoder-only model types, each with what this size needs; windows are shorter than the texts of the tests."""


def tiny_model(model_type: str = "llama", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Build a random model: width 32, 4 layers; norms and biases are random too, so logits are far from uniform."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    settings = {**shape, **ARCHITECTURES.get(model_type, {}), **overrides}
    config = AutoConfig.for_model(model_type, **{name: value for name, value in settings.items() if value is not None})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    if model.generation_config is not None:
        model.generation_config.eos_token_id = sorted(END_IDS)
    model.eval()
    return model


@cache
def _byte_pairs(special: tuple[str, ...]) -> str:
    """Train byte-pair encoding on a few sentences: every text can be written, and comes back exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sentences = [
        "system user assistant: thank you for the answer, that was kind of you.",
        "how do I bake bread without yeast, and how long does it take in the oven?",
        "the weather is fine today and the train to the sea leaves at noon.",
    ]
    tokenizer.train_from_iterator(sentences * 2, trainer)
    return str(tokenizer.to_str())


def tiny_tokenizer(
    chat_template: str | None = TEMPLATE, pad_token: str | None = "<pad>", bos_token: str | None = "<s>"
) -> PreTrainedTokenizerFast:
    """Build a byte-level tokenizer of 320 entries; with `chat_template` None it has none."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_byte_pairs(SPECIAL)),
        bos_token=bos_token,
        eos_token="</s>",
        pad_token=pad_token,
        additional_special_tokens=["<|start|>", "<|end|>"],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def bare_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer as GPT-2's: one special token, which begins and ends, no padding, no chat template."""
    model = Tokenizer.from_str(_byte_pairs(("</s>",)))
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="</s>", eos_token="</s>")


def tiny_renderer(chat_template: str | None = TEMPLATE, context: int = 256) -> Renderer:
    """Build a renderer around the tiny tokenizer."""
    return Renderer(tiny_tokenizer(chat_template), END_IDS, context)


def tiny_pretrained(
    model_type: str = "llama",
    trainable_layers: int | Literal["all"] = 2,
    chat_template: str | None = TEMPLATE,
    context: int = 256,
    **overrides: Any,
) -> Pretrained:
    """Build a model, cut and with its renderer, as `manners.models.pretrained.load` returns it."""
    trunk = proved(grow_trunk(tiny_model(model_type, **overrides), trainable_layers), context)
    return Pretrained(f"tiny-{model_type}", trunk, tiny_renderer(chat_template, context), note="")


def save_tiny(folder: Path, model_type: str = "llama", chat_template: str | None = TEMPLATE, **overrides: Any) -> Path:
    """Write a folder that `model.name` may be set to, and return it."""
    tiny_model(model_type, **overrides).save_pretrained(folder)
    tiny_tokenizer(chat_template).save_pretrained(folder)
    return folder
