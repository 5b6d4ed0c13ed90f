"""Curves of a training run: one JSON line and one TensorBoard point per update."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Writes metrics of a run into its folder: `metrics.jsonl` for programs, event files for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        """Begin a folder anew: what a killed run of the same name left in it belongs to no version."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.points: list[dict[str, float]] = []
        self._lines = (folder / "metrics.jsonl").open("w", encoding="utf-8")
        self._board = SummaryWriter(str(folder))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append one point of every curve; on disk when this returns."""
        self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        self._lines.flush()
        self.points.append(metrics)
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def __enter__(self) -> RunLog:
        """Return itself."""
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Close the files."""
        self._lines.close()
        self._board.close()


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the points of a run, in order; none if it wrote none."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
