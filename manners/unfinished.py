"""Which runs were stopped, and what they were begun with and make: told from their folders alone, without torch."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

VERSION = "version"
"""What says in a checkpoint, and in the state that it holds, which version the run is to make, if any."""
KEEP = 2
"""Checkpoints that are kept: should the last one be damaged, the run goes on from the one before it."""


def unfinished(folder: Path) -> list[Path]:
    """Checkpoints of a stage's unfinished run, oldest first; none where no run is unfinished."""
    return sorted(folder.glob("checkpoint-*"), key=number_of)


def begun_with(folder: Path) -> dict[str, Any]:
    """Return what a stage's unfinished run was begun with, which each of its checkpoints says.

    Nothing where none is unfinished, or none can be read: whoever goes on with it is told what is damaged.
    """
    return dict(_newest(folder).get("begun_with", {}))


def says_version(folder: Path) -> bool:
    """Return whether all checkpoints of a stage say what version it makes, if any: those of older code do not."""
    return all(VERSION in _described(checkpoint) for checkpoint in unfinished(folder))


def names_held(runs: Path) -> set[str]:
    """Return the names of versions that unfinished runs are going to make, and that nobody else may take.

    Of a run that does not say nobody knows which it is: all that have curves may be.
    """
    names = set[str]()
    for folder in {checkpoint.parent for checkpoint in runs.glob("*/checkpoint-*")}:
        newest = _newest(folder)
        said = [newest[VERSION]] if VERSION in newest else [curves.name for curves in runs.iterdir()]
        names.update(name for name in said if isinstance(name, str))
    return names


def _newest(folder: Path) -> dict[str, Any]:
    """Return what the newest checkpoint of a stage says that can be read; nothing where there is none."""
    return next(filter(None, map(_described, reversed(unfinished(folder)))), {})


def _described(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint says; nothing where that cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        described = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))
        return {**described, "begun_with": dict(described["begun_with"])}
    return {}


def number_of(checkpoint: Path) -> int:
    """Return which checkpoint of its run this is."""
    return int(checkpoint.name.removeprefix("checkpoint-"))
