"""How exactly numbers of float32 are multiplied: exactly, unless somebody asks for speed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def rounded_products() -> Iterator[None]:
    """Let factors be rounded before they are multiplied, where the processor is faster so; sums stay float32.

    To bfloat16 by a processor that multiplies such numbers, to TF32 by a GPU, and not at all by others. It holds for
    the whole process while it lasts. Source: `torch.set_float32_matmul_precision`, "medium".
    """
    with _precision("medium"):
        yield


@contextmanager
def exact_products() -> Iterator[None]:
    """Let nothing be rounded: the many small products of attention would take four times as long so on a CPU."""
    with _precision("highest"):
        yield


@contextmanager
def _precision(wanted: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
