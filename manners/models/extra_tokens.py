"""Tokens that a tokenizer has and its model has no row for: a pad or a marker that somebody added."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from manners.errors import MannersError
from manners.models.surgery import word_rows

EXCHANGE = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
"""What is laid out to see which tokens a template writes."""


def within_rows(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Take out of a tokenizer the added tokens that its model has no row for, and say which; nothing where none is.

    A pad is masked wherever it stands, and any other does for it. A word that was added is written with the pieces that
    the model knows.

    Raises:
        MannersError: the template writes such a token, an answer ends with it, a text begins with it, or it was not
            added: tokenizer and model are not of one model.
    """
    rows = word_rows(model)
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    if not beyond:
        return ""
    added = set(tokenizer.added_tokens_encoder)
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if set(beyond) - added or backend is None:
        raise MannersError(
            f"{name} has a tokenizer of {len(tokenizer):,} tokens and embeddings of {rows:,}: they are not of one"
            " model; use the tokenizer that the model was trained with"
        )
    begins = set(tokenizer.encode("x"))
    for token, index in beyond.items():
        if index in begins or token == tokenizer.eos_token or token in _written(tokenizer):
            raise MannersError(
                f"{name} has no row for {token} (token {index:,}, embeddings of {rows:,}), which its chat template"
                " writes or which ends or begins a text; use a model that was trained with this token, or the"
                " tokenizer that the model came with"
            )
    described: dict[str, Any] = json.loads(backend.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["id"] < rows]
    vars(tokenizer)["_tokenizer"] = Tokenizer.from_str(json.dumps(described))
    _forget(tokenizer, set(beyond))
    return f"its tokenizer without tokens that the model has no row for: {', '.join(sorted(beyond))}"


def _forget(tokenizer: PreTrainedTokenizerBase, gone: set[str]) -> None:
    """Let no special token be one that is gone."""
    for attribute in tokenizer.SPECIAL_TOKENS_ATTRIBUTES:
        if str(getattr(tokenizer, attribute, None)) in gone:
            setattr(tokenizer, attribute, None)
    tokenizer.extra_special_tokens = [token for token in tokenizer.extra_special_tokens if str(token) not in gone]


def _written(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what the tokenizer's chat templates say, and what each of them writes around an exchange."""
    templates: Any = tokenizer.chat_template or []
    templates = list(templates.values()) if isinstance(templates, dict) else templates
    texts = [templates] if isinstance(templates, str) else [str(template) for template in templates]
    for template in list(texts):
        try:
            texts.append(str(tokenizer.apply_chat_template(EXCHANGE, chat_template=template, tokenize=False)))
        except (TemplateError, ValueError, TypeError, KeyError):  # one that needs more than this says so by itself
            continue
    return "\n".join(texts)
