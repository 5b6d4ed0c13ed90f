"""A whole model in a folder that plain transformers reads."""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from manners.models.quiet import quiet_transformers
from manners.workspace import atomic_folder


def save_whole(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder that plain `from_pretrained` loads, all of it or nothing.

    Raises MannersError where the folder exists already.
    """
    with atomic_folder(folder) as draft, quiet_transformers():
        _make_savable(model)
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)


def _make_savable(model: PreTrainedModel) -> None:
    """Leave what says how answers end in generation settings that transformers reads, and refuses to write.

    Many models come with a temperature beside `do_sample = false`, which it ignores.
    """
    config = getattr(model, "generation_config", None)  # a classifier has none
    try:
        if config is not None:
            config.validate(strict=True)
    except ValueError:
        kept = ("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens", "max_length", "do_sample")
        model.generation_config = GenerationConfig(**{name: getattr(config, name, None) for name in kept})
