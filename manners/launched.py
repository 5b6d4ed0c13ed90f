"""Which of how many processes this one is, by what its launcher has told it; loads nothing heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What torchrun and Ray Train set in the environment of the processes that they start."""


@dataclass(frozen=True)
class Place:
    """Which of how many processes one is."""

    number: int
    count: int
    here: int = 0
    """Its number among those of its machine."""
    beside: int = 1
    """How many there are on its machine."""


def told() -> Place | None:
    """Return what `torchrun` has told this process by its environment, None where nobody has."""
    if not all(os.environ.get(name, "").isdigit() for name in NAMES) or os.environ["WORLD_SIZE"] == "1":
        return None
    return Place(*(int(os.environ[name]) for name in NAMES))
