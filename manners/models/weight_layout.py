"""Linear layers for decoding, which multiply the same weights by a few rows again and again.

A matrix product first lays its weights out anew, in blocks that fit the processor's registers and caches. At a few rows
that costs as much as it saves; done once for many tokens it makes a token a tenth to a fifth cheaper on one processor,
and not at all on another (docs/decisions.md, D115): it is measured when a model is loaded. The operators are those of
PyTorch's own compiler; where they are missing (no MKL, another type of number), nothing is laid out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from manners.memory import memory_apart
from manners.models.surgery import on_paper, put

ROWS = range(4, 129)
"""Numbers of rows at which it pays."""
PATIENCE = 6
"""Tokens that as many rows read before weights are laid out for them, which takes the time of two."""
LARGEST = 2_000_000_000
"""Bytes of a model beyond which a second copy of its weights is too much to ask."""
SAMPLE = 100_000_000
"""Bytes of weights that are multiplied to measure it, more than caches hold; a smaller model is left as it is."""
SAMPLE_ROWS = 32
"""Rows that they are multiplied by."""
ROUNDS = 5
"""How often, with and without in turn: the median of the ratios counts, in processor time (docs/decisions.md)."""
WORTH = 0.08
"""Share of the time of matrix products that must be saved: less is not worth a second copy of the weights."""


class LaidOutLinear(nn.Module):
    """x Wᵀ + b, with W laid out for a number of rows; others are multiplied as ever."""

    def __init__(self, layer: nn.Linear) -> None:
        """Share the parameters of a layer."""
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
        self._rows = 0
        self._laid_out = torch.empty(0)

    def lay_out(self, rows: int) -> None:
        """Lay W out for this many rows, as it is now; 0 gives the memory back."""
        reorder = torch.ops.mkl._mkl_reorder_linear_weight
        self._rows = rows
        self._laid_out = reorder(self.weight.detach(), rows) if rows else torch.empty(0)

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """Multiply."""
        if x.numel() != self._rows * x.shape[-1]:
            return nn.functional.linear(x, self.weight, self.bias)
        y: Tensor = torch.ops.mkl._mkl_linear(x, self._laid_out, self.weight, self.bias, self._rows)
        return y


class WeightLayout:
    """Lays the weights of a model out once the same number of rows keeps coming."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Put layers that can be laid out into a model of float32 on a CPU whose modules nobody else uses.

        It is for parameters that do not change meanwhile.
        """
        self._layers = list[LaidOutLinear]()
        self._rows = self._calls = 0
        for name, layer in _linear_layers(model).items():
            self._layers.append(LaidOutLinear(layer))
            put(model, name, self._layers[-1])

    def expect(self, rows: int) -> None:
        """Hear that this many rows are about to read a token each."""
        if rows != self._rows:
            if self._calls > PATIENCE:
                self._lay_out(0)
            self._rows = rows
            self._calls = 0
        self._calls += 1
        if self._calls == PATIENCE + 1 and rows in ROWS:
            self._lay_out(rows)

    def _lay_out(self, rows: int) -> None:
        with memory_apart():
            for layer in self._layers:
                layer.lay_out(rows)


def laid_out_bytes(model: PreTrainedModel) -> int:
    """Return the memory that weights take once they are laid out."""
    return sum(layer.weight.nbytes for layer in _linear_layers(model).values())


def layout_gain(model: PreTrainedModel) -> float | None:
    """Measure, in about 0.2 seconds, which share of the time of matrix products it saves here to lay weights out.

    None where they cannot be laid out, or are not whatever it saves: not where the model is too large, or so small that
    caches hold it, or where anything else than MKL multiplies.
    """
    if on_paper(model):
        return None
    layers = list(_linear_layers(model).values())
    fits = all(layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32 for layer in layers)
    if not fits or sum(parameter.nbytes for parameter in model.parameters()) > LARGEST or not available():
        return None
    sample, size = list[nn.Linear](), 0
    for layer in layers:
        if size < SAMPLE:
            sample.append(layer)
            size += layer.weight.nbytes
    return _measured_gain(sample) if size >= SAMPLE else None


def _measured_gain(plain: Sequence[nn.Linear]) -> float:
    laid_out = [LaidOutLinear(layer) for layer in plain]
    with memory_apart(), torch.inference_mode():
        for layer in laid_out:
            layer.lay_out(SAMPLE_ROWS)
        rounds = [(_seconds(plain), _seconds(laid_out)) for _ in range(ROUNDS)]
    return 1 - median(with_it / without for without, with_it in rounds)


def _seconds(layers: Sequence[nn.Linear | LaidOutLinear]) -> float:
    """What it takes to multiply by each of some layers, in the processor's time: others on it hardly count."""
    rows = {width: torch.ones((SAMPLE_ROWS, width)) for width in {layer.weight.shape[1] for layer in layers}}
    begin = time.process_time()
    for layer in layers:
        layer(rows[layer.weight.shape[1]])
    return time.process_time() - begin


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear}


@cache
def available() -> bool:
    """Try whether this PyTorch lays weights out."""
    try:
        torch.ops.mkl._mkl_reorder_linear_weight(torch.zeros((8, 8)), 4)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True
