"""The peer of pre-training is given its best rate, and what it is measured on is what ours is measured on."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import time_to_loss
from benchmarks.peers import nanogpt
from benchmarks.peers.nanogpt import HeldOut, Model
from benchmarks.time_to_loss import Options

PIECE = Path(__file__).parents[2] / "README.md"


def test_beyond_the_edge() -> None:
    assert doctest.testmod(time_to_loss).failed == 0


def test_the_peer_tries_on_where_its_best_rate_is_at_an_edge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ends(module: str, task: nanogpt.Task, options: Options, scratch: str) -> time_to_loss.Curve:
        return [(1.0, abs(math.log2(task.rate / 0.008)))]

    monkeypatch.setattr(time_to_loss, "run", ends)
    _, peer = time_to_loss.prepared(Options(PIECE, vocabulary=400, row=64), tmp_path)
    tried = time_to_loss.tuned(peer, Options(PIECE, row=64, peer_batches=(128, 256), tokens=2560), str(tmp_path))
    rates = [0.001, 0.002, 0.004, 0.008, 0.016]
    assert [task.rate for task in tried] == 2 * rates, "up to the first that is worse again"
    assert [(task.rows, task.steps) for task in tried] == [(2, 20)] * 5 + [(4, 10)] * 5


def test_the_peer_is_measured_on_our_rows_too(tmp_path: Path) -> None:
    _, peer = time_to_loss.prepared(Options(PIECE, vocabulary=400, row=64), tmp_path)
    task = replace(peer, steps=1)
    stream, rows, targets = (
        torch.from_numpy(np.load(f).astype(np.int64)) for f in (task.held_out, task.held_rows, task.held_targets)
    )
    targets = torch.where(targets < 0, -1, targets)
    text = int((stream[1:] >= task.special).sum())
    assert int((targets >= 0).sum()) == text, "each token of the text is predicted once, in either layout"
    torch.manual_seed(0)
    model = Model(task)
    with torch.no_grad():
        model.head.weight.zero_()
    # All tokens alike: log2(vocabulary) bits each, however they are laid out.
    expected = text * math.log2(task.vocabulary) / task.held_out_bytes
    assert nanogpt.bits(model, HeldOut(stream, rows, targets), task) == pytest.approx(expected, rel=1e-5)
