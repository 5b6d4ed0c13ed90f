"""What depends on the device, and on what a model allows there: decided once, when it is loaded, and shown."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from manners.maths import float64_device
from manners.models.weight_layout import WORTH, layout_gain

BUCKET_TOKENS = 1024
"""Tokens of one forward on a CPU, padding included; changes memory and speed only."""
GPU_BUCKET_TOKENS = 4096
"""The same on any other device, where a forward of few tokens takes as long as one of many."""


@dataclass(frozen=True)
class Compute:
    """How a model is computed with. All but the number formats changes memory and speed only, up to rounding."""

    device: torch.device
    dtype: torch.dtype
    """Of the model's weights and states."""
    uniform: torch.dtype
    """Of the uniform numbers that tokens are drawn with."""
    exact: torch.device
    """Where sums in float64 run: on the device, if it has float64."""
    bucket_tokens: int
    """Tokens of one forward, with its backward where one follows; what is longer by itself is read alone."""
    saves_columns: bool
    """Whether a few columns less are worth a forward or a call more: on a CPU, and not where two short passes take
    longer than one (docs/decisions.md, D110)."""
    layout_gain: float | None
    """Share of the time of matrix products that it saves to lay weights out; None where they cannot be, or need not."""
    lays_out: bool
    """Whether weights are laid out for decoding (`models.weight_layout`): where it pays. A run that goes on does as it
    did (`Session.lay_out`), since the clock says one thing today and another tomorrow, and rounding may hang on it."""
    shares_prompts: bool = False
    """Whether responses may stand behind one copy of their prompt (`text.Packed`); `models.proof` finds out."""
    by_row: bool = False
    """Whether attention is told which columns are a row's own (`models.attention`); `models.proof` finds out."""
    flat: bool = False
    """Whether what is to be scored may stand in a single row (`models.packing`); `models.proof` finds out."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Compute:
        """Decide by the device on which a model is, before anything is known of what the model allows."""
        device = model.device
        gain = layout_gain(model)
        return cls(
            device,
            model.dtype,
            uniform_dtype(device),
            float64_device(device),
            bucket_tokens(device),
            saves_columns=device.type == "cpu",
            layout_gain=gain,
            lays_out=gain is not None and gain >= WORTH,
        )

    @property
    def shares_beginnings(self) -> bool:
        """Whether what all prompts begin with is read once for all rows."""
        return self.shares_prompts and self.saves_columns

    @property
    def sentence(self) -> str:
        """What was decided, for whoever starts a run."""
        gain = "" if self.layout_gain is None else f" (it saves {self.layout_gain:.0%} of the time of matrix products)"
        chosen = {
            f"up to {self.bucket_tokens:,} tokens a forward": True,
            "responses share their prompt": self.shares_prompts,
            "prompts share what they begin with": self.shares_beginnings,
            "attention reads a row's own columns": self.by_row,
            "what is scored stands in one row": self.flat,
            f"weights are laid out for decoding{gain}": self.lays_out,
            f"weights are not laid out for decoding{gain}": bool(gain) and not self.lays_out,
        }
        return ", ".join(words for words, so in chosen.items() if so)


def bucket_tokens(device: torch.device) -> int:
    """Return the tokens of one forward on a device, with its backward where one follows."""
    return BUCKET_TOKENS if device.type == "cpu" else GPU_BUCKET_TOKENS


def uniform_dtype(device: torch.device) -> torch.dtype:
    """Return what uniform numbers are in on a device: float64, or what there is on Apple's, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64
