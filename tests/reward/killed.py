"""Reward training that is killed in the middle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from manners.checkpoint import Run
from manners.reward import train as module


class Killed(BaseException):
    """Stands for SIGKILL."""


def killed(begin: Callable[[Run], object], step: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Begin a run and kill it before a step of training, counted from 0; return the run that goes on."""
    take, taken = module._step, iter(range(1000))

    def dying(*given: object) -> int:
        if next(taken) == step:
            raise Killed
        return take(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_step", dying)
    with pytest.raises(Killed):
        begin(Run(folder, "manners reward", {}, 0.0))
    run = Run(folder, "manners reward", {}, 0.0)
    assert run.go_on()
    return run
