"""Curves of a training run: one JSON line and one TensorBoard point per update."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from torch.utils.tensorboard import SummaryWriter

from manners import ranks
from manners.errors import MannersError


class RunLog:
    """Writes metrics of a run into its folder: `metrics.jsonl` for programs, event files for TensorBoard."""

    def __init__(self, folder: Path, keep: int = 0) -> None:
        """Begin a folder anew, or go on after the first `keep` bytes of its curves, which a checkpoint speaks of.

        Of several processes that train as one the first writes; the others have the points. Raises MannersError where
        they are not there any more, or are another run's.
        """
        file = folder / "metrics.jsonl"
        self._lines: BinaryIO | None = None
        self.points: list[dict[str, Any]] = []
        """All points so far, each with its `step`."""
        if ranks.number():
            self.points += points_of(file.read_bytes()[:keep]) if keep else []
            return
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        elif not _ends_there(file, keep):
            raise MannersError(
                f"{file} is shorter than when the run was stopped, or another run's: restore it, or remove the run's"
                " checkpoints to begin anew"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = file.open("ab")
        self._lines.truncate(keep)
        self.points += read(folder)
        self._board = SummaryWriter(str(folder), purge_step=self.points[-1]["step"] + 1 if self.points else None)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append one point of every curve."""
        self.points.append({"step": step, **metrics})
        if self._lines is None:
            return
        self._lines.write(json.dumps(self.points[-1]).encode() + b"\n")
        self._lines.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def position(self) -> int:
        """Wait until all points are on the disk, and return their size in bytes."""
        if self._lines is None:
            return 0
        os.fsync(self._lines.fileno())
        return os.fstat(self._lines.fileno()).st_size

    def __enter__(self) -> RunLog:
        """Return itself."""
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Close the files."""
        if self._lines is not None:
            self._lines.close()
            self._board.close()


def _ends_there(file: Path, keep: int) -> bool:
    """Return whether a line of a file ends after so many bytes."""
    if not file.is_file():
        return False
    with file.open("rb") as lines:
        lines.seek(keep - 1)
        return lines.read(1) == b"\n"


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the points of a run, in order; none if it wrote none."""
    file = folder / "metrics.jsonl"
    return points_of(file.read_bytes()) if file.is_file() else []


def points_of(lines: bytes) -> list[dict[str, Any]]:
    """Return the points that stand in lines of JSON."""
    return [json.loads(line) for line in lines.decode().splitlines()]
