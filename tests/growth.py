"""Whether work grows with what it is given or with its square: in processor time of this thread, against itself."""

from __future__ import annotations

import time
from collections.abc import Callable

LITTLE = 0.01
"""Seconds that no work is held to be quicker than: below them one measures everything else."""


def growth(work: Callable[[int], object], size: int) -> float:
    """Return by which factor work takes longer on twice as much: 2 where it is linear, 4 where it is a square.

    Of several tries the shortest counts; what is done at once on twice as much is not measured any further.
    """
    first = _seconds(work, 2 * size)
    if first <= LITTLE:
        return 1.0
    tries = [(_seconds(work, size), _seconds(work, 2 * size)) for _ in range(4)]
    once, twice = (min(column) for column in zip(*tries, strict=True))
    return float(min(first, twice) / max(once, LITTLE))


def _seconds(work: Callable[[int], object], size: int) -> float:
    begun = time.thread_time()
    work(size)
    return time.thread_time() - begun
