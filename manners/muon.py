"""Muon: momentum whose singular values are made equal, for the matrices of a model's layers.

    B <- mu B + (1 - mu) G,   O = orthogonal((1 - mu) G + mu B),   W <- (1 - rate decay) W - rate 0.2 sqrt(max(m, n)) O

Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); the factor, by which a step is as large as AdamW's, from
Liu et al. 2025 (arxiv.org/abs/2502.16982).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Muon(torch.optim.Muon):
    """torch's Muon on a GPU; elsewhere the same with Newton-Schulz in float32, on all matrices of a shape at once.

    torch computes it in bfloat16, which most CPUs can only imitate. `tests/test_muon.py` holds the two to one another.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], rate: float, decay: float, momentum: float = 0.95) -> None:
        """Take matrices, the rate, and the weight decay, which is multiplied by the rate."""
        super().__init__(parameters, lr=rate, weight_decay=decay, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        self.seconds: float | None = 0.0
        """Spent here so far; None on a GPU, which does it in its own time."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step on the gradients there are."""
        if any(p.is_cuda for group in self.param_groups for p in group["params"]):
            self.seconds = None
            super().step(closure)  # type: ignore[no-untyped-call]
            return
        started = time.perf_counter()
        for group in self.param_groups:
            self._step(group)
        self.seconds = (self.seconds or 0.0) + time.perf_counter() - started

    def _step(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter.grad)
            momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
            update = parameter.grad.lerp(momentum, group["momentum"])
            wide = update if update.shape[0] <= update.shape[1] else update.mT
            alike[wide.shape[0], wide.shape[1]].append((parameter, wide))
        for (_, longer), some in alike.items():
            updates = orthogonal(torch.stack([update for _, update in some]), group["ns_coefficients"])
            for (parameter, _), update in zip(some, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                turned = update if parameter.shape == update.shape else update.mT
                parameter.add_(turned, alpha=-0.2 * longer**0.5 * group["lr"])


def orthogonal(
    matrices: Float[Tensor, "K m n"], coefficients: tuple[float, float, float], steps: int = 5
) -> Float[Tensor, "K m n"]:
    """Return matrices, m <= n, with their singular values brought near 1: five quintic steps of Newton-Schulz.

    X <- a X + (b A + c A^2) X,   A = X X^T,   from X / |X|_F. What comes out has singular values of 0.7 to 1.2.
    """
    a, b, c = coefficients
    x: Tensor = matrices / matrices.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
