"""How fast this machine multiplies matrices right now: what every share of the peak refers to."""

from __future__ import annotations

import time

import torch

SIZE = 2048
SECONDS = 3.0


def main() -> None:
    """Multiply two square float32 matrices for a few seconds and print the floating-point operations a second."""
    a, b = torch.randn(2, SIZE, SIZE)
    torch.matmul(a, b)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS:
        torch.matmul(a, b)
        count += 1
    print(2 * SIZE**3 * count / (time.perf_counter() - begin))


if __name__ == "__main__":
    main()
