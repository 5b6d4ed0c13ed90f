"""A model as it is read: whole, uncut, with its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Found:
    """A model as it is read, whole and uncut."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stored: torch.dtype = torch.float32
    """The number format of its files; of quantised ones, what they are dequantised to."""
    notes: tuple[str, ...] = ()
    """What was left out of it, or put into it."""
    added: tuple[str, ...] = ()
    """Tokens that it was given to be laid out with, and that nobody else's copy of it has."""
