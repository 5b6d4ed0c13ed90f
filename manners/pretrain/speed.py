"""How fast a device multiplies matrices: what training can at most come to."""

from __future__ import annotations

import time

import torch

SIZES = {"cpu": 1024, "cuda": 8192}
ROUNDS = 4


@torch.no_grad()
def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of the fastest of a few products of large square matrices."""
    size = SIZES.get(device.type, 2048)
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(ROUNDS):
        started = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # a GPU has done it only then
        best = max(best, 2.0 * size**3 / (time.perf_counter() - started))
    return best
