"""Low-rank adapters: a branch that owns two thin matrices beside each weight instead of a copy of it.

Source: Hu et al. 2021, "LoRA", section 4.1; their alpha / r is `SCALE` here, whatever the rank.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from manners.errors import MannersError
from manners.models.surgery import describe, layer_list, put

SCALE = 2.0
"""Weight of the product beside the frozen weight."""


class LowRank(nn.Module):
    """A frozen linear layer W with its adapter: x W^T + SCALE (x A^T) B^T."""

    def __init__(self, base: nn.Linear | Conv1D, rank: int, generator: torch.Generator) -> None:
        """Draw A from N(0, 1 / inputs) and start B at zero, so that nothing changes before the first step."""
        super().__init__()
        self.base = base
        self.transposed = isinstance(base, Conv1D)
        outputs, inputs = reversed(base.weight.shape) if self.transposed else base.weight.shape
        a = torch.randn((rank, inputs), generator=generator) / inputs**0.5
        self.a = nn.Parameter(a.to(base.weight.device, base.weight.dtype))
        self.b = nn.Parameter(torch.zeros((outputs, rank), device=base.weight.device, dtype=base.weight.dtype))

    def forward(self, x: Float[Tensor, "*N inputs"]) -> Float[Tensor, "*N outputs"]:
        """Apply both."""
        adapted: Tensor = self.base(x) + SCALE * ((x @ self.a.T) @ self.b.T)
        return adapted

    def merged(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Return one plain layer that does the same, with its weight in a format; None: in that of the frozen one."""
        dtype = dtype or self.base.weight.dtype
        product = SCALE * (self.b.to(dtype) @ self.a.to(dtype)).detach()
        layer = copy.copy(self.base)
        layer._parameters = dict(self.base._parameters)
        weight = self.base.weight.detach().to(dtype) + (product.T if self.transposed else product)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return layer


def adapt(model: PreTrainedModel, cut: int, rank: int) -> None:
    """Put an adapter on every linear layer above the cut; raises MannersError where there is none.

    The first matrices are the same in every branch: members of an ensemble differ by head and order, as they do without
    adapters.
    """
    generator = torch.Generator().manual_seed(rank)
    found = 0
    for layer in layer_list(model)[cut:]:
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear | Conv1D):
                put(layer, name, LowRank(module, rank, generator))
                found += 1
    if not found:
        raise MannersError(
            f"{describe(model)} has no linear layers above layer {cut} to put adapters on; leave out model.lora_rank"
        )


def merge(model: PreTrainedModel, dtype: torch.dtype | None = None) -> None:
    """Replace every adapter by a plain layer, whose weight is in a format; None: in the model's."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LowRank):
            put(model, name, module.merged(dtype))
