"""What one step of drawing is made of on this machine: `python -m benchmarks.decode`.

A step multiplies every weight by a few rows, so it can never be faster than the weights are read from memory. The ways
take turns, and the fastest of each counts: other processes only ever slow one down.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from benchmarks.publish import here
from manners.models.decoder import Decoder
from manners.models.pretrained import load
from manners.models.weight_layout import LaidOutLinear, layout_gain
from manners.settings import ModelSettings

GAINS = 10
"""How often it is measured whether laying weights out pays."""
STEPS = 12
"""Tokens that a decoder reads before and while it is timed."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    model: str = "smollm2-135m"
    """As `model.name` names it; float32, on the CPU."""
    rows: tuple[int, ...] = (1, 8, 32, 96)
    """Rows of a step."""
    rounds: int = 5
    """How often each way takes its turn."""


def main(options: Options) -> None:
    """Print a table: milliseconds a step, by the number of rows."""
    whole = load(ModelSettings(name=options.model, device="cpu"))
    layers = [module for module in whole.trunk.whole.modules() if type(module) is nn.Linear]
    size = sum(layer.weight.nbytes for layer in layers)
    print(f"{size / 1e6:.0f} MB of weights. {here()}", file=sys.stderr)
    gains = [layout_gain(whole.trunk.whole) or 0.0 for _ in range(GAINS)]
    print(f"Laying out saves {min(gains):.0%} to {max(gains):.0%} of the time of matrix products.", file=sys.stderr)
    print("| rows | " + " | ".join(["weights read", "products", "oneDNN", "laid out", "step", "step, laid out"]) + " |")
    print("|---|---|---|---|---|---|---|")
    for rows in options.rows:
        ways = products(layers, rows)
        for lays_out in (False, True):
            compute = replace(whole.trunk.compute, lays_out=lays_out)
            ways["step, laid out" if lays_out else "step"] = step(Decoder(whole.trunk.whole, compute, 0), rows)
        taken = fastest(ways, options.rounds)
        print(f"| {rows} | " + " | ".join(f"{1000 * seconds:.0f} ms" for seconds in taken.values()) + " |", flush=True)


def products(layers: list[nn.Linear], rows: int) -> dict[str, Callable[[], Any]]:
    """Every weight of a model by so many rows: read only, and multiplied in three ways."""
    given = {layer.weight.shape[1]: torch.randn((rows, layer.weight.shape[1])) for layer in layers}
    weights = [layer.weight.detach() for layer in layers]
    reorder, multiply = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
    ordered = [reorder(weight, rows) for weight in weights]
    laid_out = [LaidOutLinear(layer) for layer in layers]
    for layer in laid_out:
        layer.lay_out(rows)

    def one_dnn() -> list[Tensor]:
        return [
            multiply(given[weight.shape[1]], mine, None, "none", [], "")
            for weight, mine in zip(weights, ordered, strict=True)
        ]

    return {
        "weights read": lambda: [weight.sum() for weight in weights],
        "products": lambda: [layer(given[layer.weight.shape[1]]) for layer in layers],
        "oneDNN": one_dnn,
        "laid out": lambda: [layer(given[layer.weight.shape[1]]) for layer in laid_out],
    }


def step(decoder: Decoder, rows: int) -> Callable[[], object]:
    """Let a decoder with so many seats, which has read a few tokens, read one more."""
    decoder.seat(torch.zeros(0, dtype=torch.long), [tuple(range(5, 45))] * rows, 200)
    token, running = torch.full((rows,), 7), torch.ones(rows, dtype=torch.bool)

    def read() -> Tensor:
        decoder.read(token, running)
        assert decoder.logits is not None
        return decoder.logits

    for _ in range(STEPS):
        read()
    return read


@torch.inference_mode()
def fastest(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Let each way take its turn, and return the seconds of its fastest."""
    taken = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            taken[name] = min(taken[name], time.perf_counter() - begin)
    return taken


if __name__ == "__main__":
    main(tyro.cli(Options))
