"""Adapters that other tools have trained: merged into their base, which is then a model like any other."""

from __future__ import annotations

import importlib
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from manners.errors import MannersError
from manners.models.folders import ADAPTER
from manners.models.surgery import word_rows


def is_adapter(source: str) -> bool:
    """Return whether a folder, or what an id stands for, is an adapter and no model."""
    if Path(source).is_dir():
        return (Path(source) / ADAPTER).is_file()
    with suppress(OSError, ValueError):
        return find_adapter_config_file(source) is not None
    return False


def base_of(name: str, source: str) -> str:
    """Return the model that an adapter was trained on; raises MannersError where it does not say, or peft is missing.

    A base that the adapter names by a relative path is looked for beside the adapter too.
    """
    base = _peft(name).PeftConfig.from_pretrained(source).base_model_name_or_path
    if not base:
        raise MannersError(f"{name} is an adapter that names no base; set base_model_name_or_path in its {ADAPTER}")
    beside = Path(source) / base
    return str(beside) if Path(source).is_dir() and not Path(base).exists() and beside.is_dir() else str(base)


def merged(name: str, source: str, base: PreTrainedModel) -> tuple[PreTrainedModel, str]:
    """Return the base with an adapter merged into its weights, and what kind of adapter it was.

    Where the adapter brings embeddings with more rows than the base (tokens were added to it), the base gets as many.

    Raises:
        MannersError: an adapter that is no change of weights (prompts that were learnt, say), that is for another
            purpose than language, or that does not fit its base, wholly.
    """
    with warnings.catch_warnings():  # what peft warns of is either refused here, or about its own insides
        warnings.simplefilter("ignore")
        model, kind = _merge(_peft(name), name, source, base)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and head.weight is not embeddings.weight:
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
    return model, kind


def _merge(peft: Any, name: str, source: str, base: PreTrainedModel) -> tuple[PreTrainedModel, str]:
    config = peft.PeftConfig.from_pretrained(source)
    kind = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    task = getattr(config.task_type, "value", config.task_type)
    if config.is_prompt_learning or task not in (None, "CAUSAL_LM"):
        raise MannersError(
            f"{name} is an adapter ({kind}, {task}) that cannot be merged into a language model; name its base, or one"
            " that was trained with LoRA for CAUSAL_LM"
        )
    weights = peft.load_peft_weights(source, device="cpu")
    rows = _rows(weights)
    if rows and rows != word_rows(base):
        base.resize_token_embeddings(rows, mean_resizing=False)
    if not getattr(config, "ensure_weight_tying", False):
        _untie(base, weights)
    tuned = peft.PeftModel(base, config)
    result = tuned.load_adapter(source, "default", torch_device="cpu")
    if wrong := [*result.missing_keys, *result.unexpected_keys]:
        raise MannersError(
            f"{name} is an adapter that does not fit its base ({len(wrong)} tensors, {wrong[0]} first); set"
            f" base_model_name_or_path in its {ADAPTER} to the model that it was trained on"
        )
    if not hasattr(tuned.base_model, "merge_and_unload"):
        raise MannersError(f"{name} is an adapter of a kind ({kind}) that cannot be merged; name its base")
    return tuned.merge_and_unload(), kind


def _untie(base: PreTrainedModel, weights: dict[str, Any]) -> None:
    """Give the head weights of its own where it shares them with the embedding, and the adapter changes one of the two.

    Merged into what they share, the change would be one of both.
    """
    embeddings: Any = base.get_input_embeddings()
    head: Any = base.get_output_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return
    names = [name for name, module in base.named_modules() if module in (embeddings, head)]
    if any(f".{name}.lora_" in f".{key}" for key in weights for name in names):
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        config: Any = base.config
        config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False


def _rows(weights: dict[str, Any]) -> int | None:
    """Return how many rows the embeddings have that an adapter brings whole; None where it brings none."""
    whole = (t for key, t in weights.items() if "lora_" not in key and t.ndim == 2 and key.endswith(_EMBEDDINGS))
    return next((int(tensor.shape[0]) for tensor in whole), None)


_EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight", "embed_out.weight")
"""What the embedding and the head are called in most models."""


def _peft(name: str) -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise MannersError(
            f"{name} is an adapter, and peft, which merges it into its base, is not installed: run `pip install"
            " 'manners[adapters]'`, or merge it yourself and name the result"
        ) from error
