"""A chat template for a model that has none: ChatML, whose two markers get a token and a row each."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manners.errors import MannersError
from manners.models.found import Found
from manners.models.surgery import describe, word_rows
from manners.templates import MARKERS

SEED = 8


def with_markers(name: str, found: Found) -> Found:
    """Return a model that is laid out as ChatML: markers that its tokenizer lacks are added, with rows for them.

    A new row, of the embedding and of a head of its own, is drawn from the normal distribution of the rows that are
    there, each column by itself: mean + standard deviation * N(0, 1), always the same numbers. Two rows at the mean, as
    is usual, would be one and the same to the model: below a cut, and in a head that is tied to the embedding, nothing
    is trained, so that neither marker could ever be told from the other, or be more than half as likely as it should.
    What is drawn is as far from all other words as these are from each other, which a trained branch can aim at.
    Raises MannersError where the model cannot be given more rows.
    """
    tokenizer = copy.deepcopy(found.tokenizer)
    before = len(tokenizer)
    there = tokenizer.get_vocab()
    new = [marker for marker in MARKERS if marker not in there]
    tokenizer.add_tokens(new, special_tokens=True)
    notes = "laid out as ChatML" + (f", with the new tokens {' and '.join(new)}" if new else "")
    if new:
        try:
            _grow(found.model, before, len(tokenizer))
        except (RuntimeError, ValueError, AttributeError, TypeError, NotImplementedError) as error:
            raise MannersError(
                f"{name} ({describe(found.model)}) cannot be given rows for {' and '.join(new)}"
                f" ({type(error).__name__}: {error}); name a chat template of words that it knows with"
                " model.chat_template"
            ) from error
    return replace(found, tokenizer=tokenizer, notes=(*found.notes, notes), added=tuple(new))


@torch.no_grad()
def _grow(model: PreTrainedModel, before: int, after: int) -> None:
    """Give a model rows for tokens `before` to `after` - 1; some models have spare ones, which say nothing yet."""
    if word_rows(model) < after:
        model.resize_token_embeddings(after, mean_resizing=False)
    generator = torch.Generator().manual_seed(SEED)
    head = model.get_output_embeddings()
    tables = [model.get_input_embeddings().weight, *([] if head is None else [head.weight])]
    for table in {id(table): table for table in tables}.values():
        _draw(table, before, after, generator)
    bias = getattr(head, "bias", None)
    if isinstance(bias, Tensor):
        bias[before:after] = bias[:before].mean()


def _draw(table: Tensor, before: int, after: int, generator: torch.Generator) -> None:
    known = table[:before].float()
    noise = torch.randn((after - before, table.shape[1]), generator=generator)
    table[before:after] = (known.mean(dim=0) + known.std(dim=0) * noise.to(table.device)).to(table.dtype)
