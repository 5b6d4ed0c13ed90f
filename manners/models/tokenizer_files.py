"""The tokenizer of a model's files, with the chat template that lies beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file, cached_files

from manners.models.folders import ADAPTER, VOCABULARY, WORDS
from manners.template_files import PROCESSOR, TEMPLATES, in_json, of_folder

BESIDE = ("merges.txt", "added_tokens.json")
"""What some tokenizers have beside their vocabulary."""
_UNLESS_THERE: dict[str, Any] = {
    f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "gated_repo", "connection_errors")
}
"""Has files of an id that are not there, or cannot be had, left out."""


def read_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a folder or id; where it has no template, that of the model's processor is its own."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.chat_template is None:
        file = cached_file(source, PROCESSOR, **_UNLESS_THERE)
        tokenizer.chat_template = None if file is None else in_json(Path(file))
    return tokenizer


def beside_adapter(source: str, base: PreTrainedTokenizerBase) -> tuple[PreTrainedTokenizerBase, bool]:
    """Return the tokenizer of an adapter, and whether it brings one; one that brings a template alone lends it that."""
    found = cached_files(source, [ADAPTER, *WORDS, *BESIDE, *TEMPLATES], **_UNLESS_THERE)
    folder = Path(found[0]).parent if found else Path(source)
    if any(file for pattern in VOCABULARY for file in folder.glob(pattern)):
        return read_tokenizer(str(folder)), True
    template, _ = of_folder(folder)
    if template is not None:
        base.chat_template = template
    return base, False
