"""Which runs were stopped, and what they were begun with: told from their folders alone, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

KEEP = 2
"""Checkpoints that are kept: should the last one be damaged, the one before it is still there."""


def unfinished(folder: Path) -> list[Path]:
    """Checkpoints of a stage's unfinished run, oldest first; none where no run is unfinished."""
    return sorted(folder.glob("checkpoint-*"), key=number_of)


def begun_with(folder: Path) -> dict[str, Any]:
    """Return what a stage's unfinished run was begun with; nothing where none is unfinished, or it cannot be read."""
    there = unfinished(folder)
    try:
        described = json.loads((there[-1] / "checkpoint.json").read_text(encoding="utf-8"))
        return dict(described["begun_with"])
    except (IndexError, OSError, ValueError, KeyError, TypeError):
        return {}  # whoever goes on with it is told what is damaged


def number_of(checkpoint: Path) -> int:
    """Return which checkpoint of its run this is."""
    return int(checkpoint.name.removeprefix("checkpoint-"))
