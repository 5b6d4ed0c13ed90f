"""A language model's head whose logits are float32 where the model is narrower.

A bfloat16 number has 8 significant bits: a logit of 20 stands for everything from 19.94 to 20.06, and a ratio of
probabilities is off by a tenth before anything was learnt. Products of two bfloat16 numbers are exact in float32, and
here they are summed there and stay there. Gradients go back in the model's format, as through any other of its layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

BLOCK = 4096
"""Words whose weights are widened at a time, where nothing gives out wider sums than it multiplies."""
WIDE_SUMS = hasattr(torch.ops.aten.mm, "dtype")
"""Whether this PyTorch has a product of narrow matrices with wide sums (for CUDA, from 2.8 on)."""


class WideHead(nn.Module):
    """x Wᵀ + b in float32, of a narrower x and W; it shares the parameters of the layer whose place it takes."""

    def __init__(self, layer: nn.Linear) -> None:
        """Share the parameters of a layer."""
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """Multiply."""
        y: Tensor = _product(x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias.float()


class _Product(torch.autograd.Function):
    """h Wᵀ in float32; it keeps h and W, and no wider copy of them, for the way back."""

    @staticmethod
    def forward(ctx: Any, hidden: Float[Tensor, "N D"], weight: Float[Tensor, "V D"]) -> Float[Tensor, "N V"]:
        ctx.save_for_backward(hidden, weight)
        if hidden.is_cuda and WIDE_SUMS:
            return torch.mm(hidden, weight.T, out_dtype=torch.float32)
        wide = hidden.float()
        logits = wide.new_empty((len(wide), len(weight)))
        for start in range(0, len(weight), BLOCK):
            logits[:, start : start + BLOCK] = wide @ weight[start : start + BLOCK].float().T
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "N V"]) -> tuple[Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        narrow = gradient.to(weight.dtype)
        of_hidden, of_weight = ctx.needs_input_grad
        return narrow @ weight if of_hidden else None, narrow.T @ hidden if of_weight else None


_product: Callable[[Tensor, Tensor], Tensor] = _Product.apply
