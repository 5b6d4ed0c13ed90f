"""Which runs were stopped, and what they were begun with: told from their folders alone, without torch."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

KEEP = 2
"""Checkpoints that are kept: should the last one be damaged, the run goes on from the one before it."""


def unfinished(folder: Path) -> list[Path]:
    """Checkpoints of a stage's unfinished run, oldest first; none where no run is unfinished."""
    return sorted(folder.glob("checkpoint-*"), key=number_of)


def begun_with(folder: Path) -> dict[str, Any]:
    """Return what a stage's unfinished run was begun with, which each of its checkpoints says.

    Nothing where none is unfinished, or none can be read: whoever goes on with it is told what is damaged.
    """
    for checkpoint in reversed(unfinished(folder)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return dict(json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))["begun_with"])
    return {}


def number_of(checkpoint: Path) -> int:
    """Return which checkpoint of its run this is."""
    return int(checkpoint.name.removeprefix("checkpoint-"))
