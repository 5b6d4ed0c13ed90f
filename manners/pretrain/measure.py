"""How well a model writes: bits a byte of text that it never learned from, and what it says when nobody asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from manners.pretrain.corpus import ids_of
from manners.pretrain.documents import Document
from manners.pretrain.forward import IGNORED, loss
from manners.pretrain.rows import lay_out
from manners.pretrain.vocabulary import ends_of

TEMPERATURE = 0.8
"""Of samples: at 1 a small model's rare mistakes spoil most of them."""


@dataclass(frozen=True)
class HeldOut:
    """Texts that are not trained on, laid into rows as training text is."""

    rows: Int[Tensor, "B T1"]
    targets: Int[Tensor, "B T"]
    """What is predicted; special tokens, and what fills the last row, do not count."""
    bytes: int
    """Of the texts, which are those of the targets: each token of theirs is predicted once."""
    tokens: int

    @classmethod
    def of(cls, some: Sequence[Document], tokenizer: PreTrainedTokenizerBase, length: int) -> HeldOut:
        """Lay out documents in rows of so many tokens, all of them, the last row filled up."""
        bos, _ = ends_of(tokenizer)
        whole = ids_of(tokenizer, some)
        ids = np.array([token for one in whole for token in one], np.int64)
        ends = np.cumsum([len(one) for one in whole])
        said = np.ones(len(ids), bool)
        said[[int(end) - 1 for end, document in zip(ends, some, strict=True) if document.ends]] = False
        starts = [int(end) - len(one) for one, end in zip(whole, ends, strict=True)]
        said[[start for start, document in zip(starts, some, strict=True) if document.begins]] = False
        spans = [(len(one), document.begins, at) for one, document, at in zip(whole, some, starts, strict=True)]
        laid, left, _ = lay_out(spans, length)
        laid = [*laid, left] if left else laid
        rows = np.full((len(laid), length), bos, np.int64)
        counts = np.zeros((len(laid), length), bool)
        for row, spans_of in enumerate(laid):
            place = 0 if spans_of[0][1] else 1
            for size, _, start in spans_of:
                rows[row, place : place + size] = ids[start : start + size]
                counts[row, place : place + size] = said[start : start + size]
                place += size
        targets = np.where(counts, rows, IGNORED)[:, 1:]
        size = sum(len(document.text.encode()) for document in some)
        return cls(torch.from_numpy(rows), torch.from_numpy(targets), size, int(counts.sum()))


@dataclass(frozen=True)
class Measured:
    """What a model lost on held-out text."""

    nats: float
    """A token."""
    bits: float
    """A byte."""


@torch.no_grad()
def measured(model: PreTrainedModel, held: HeldOut, at_once: int) -> Measured:
    """Return the loss on held-out texts, so many rows at once: bits a byte = nats / (ln 2 * bytes of the targets)."""
    device = model.device
    parts = zip(torch.split(held.rows, at_once), torch.split(held.targets, at_once), strict=True)
    nats = sum(float(loss(model, rows.to(device), targets.to(device))) for rows, targets in parts)
    return Measured(nats / held.tokens, nats / (math.log(2) * held.bytes))


@torch.no_grad()
def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, count: int, most: int) -> list[str]:
    """Return texts that the model begins by itself, at `TEMPERATURE`, each up to its end or so many tokens."""
    bos, eos = ends_of(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((count, 1), bos)
    step, cache = ids, None
    done = torch.zeros(count, dtype=torch.bool)
    while ids.shape[1] <= most and not bool(done.all()):
        out: Any = model(step.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        chances = (out.logits[:, -1].float().cpu() / TEMPERATURE).softmax(dim=1)
        step = torch.multinomial(chances, 1, generator=generator)
        step[done] = eos
        done |= (step == eos).squeeze(1)
        ids = torch.cat((ids, step), dim=1)
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return texts
