"""How exactly numbers of float32 are multiplied: exactly, unless somebody asks for speed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ROUNDED = "medium"
_here = list[str]()
"""What was said before each `rounded_products` that lasts."""


@contextmanager
def rounded_products() -> Iterator[None]:
    """Let factors be rounded before they are multiplied, where the processor is faster so; sums stay float32.

    To bfloat16 by a processor that multiplies such numbers, to TF32 by a GPU, and not at all by others. It holds for
    the whole process while it lasts. Source: `torch.set_float32_matmul_precision`, "medium".
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(ROUNDED)
    _here.append(before)
    try:
        yield
    finally:
        _here.pop()
        torch.set_float32_matmul_precision(before)


@contextmanager
def exact_products() -> Iterator[None]:
    """Round nothing, inside `rounded_products`: attention's many small products take four times as long so on a CPU.

    Elsewhere it touches nothing: whoever calls us may have said by another of torch's ways how products are to be.
    """
    if not _here:
        yield
        return
    torch.set_float32_matmul_precision(_here[-1])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(ROUNDED)
