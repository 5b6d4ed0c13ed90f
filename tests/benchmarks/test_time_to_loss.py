"""The peer of pre-training is given its best rate, and what it is measured on is what ours is measured on."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import time_to_loss
from benchmarks.peers import nanogpt
from benchmarks.peers.nanogpt import HeldOut, Model
from benchmarks.time_to_loss import Options

PIECE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_beyond_the_edge() -> None:
    assert doctest.testmod(time_to_loss).failed == 0


def test_the_peer_tries_on_where_its_best_rate_is_at_an_edge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ends(module: str, task: nanogpt.Task, options: Options, scratch: Path) -> time_to_loss.Curve:
        return [(1.0, abs(math.log2(task.rate / 0.008)))]

    monkeypatch.setattr(time_to_loss, "run", ends)
    _, peer = time_to_loss.prepared(PIECE, Options(vocabulary=400, row=64), tmp_path)
    tried = time_to_loss.tuned(peer, Options(row=64, peer_batches=(128, 256), tokens=2560), tmp_path)
    rates = [0.001, 0.002, 0.004, 0.008, 0.016]
    assert [task.rate for task in tried] == 2 * rates, "up to the first that is worse again"
    assert [(task.rows, task.steps) for task in tried] == [(2, 20)] * 5 + [(4, 10)] * 5


def test_the_peer_is_measured_on_our_rows_too(tmp_path: Path) -> None:
    _, peer = time_to_loss.prepared(PIECE, Options(vocabulary=400, row=64), tmp_path)
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


def test_a_machine_has_a_line_of_its_own_and_a_later_run_takes_its_place(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- time-to-loss -->\n<!-- /time-to-loss -->\n", encoding="utf-8")
    options = Options(results=tmp_path / "found.json", page=page)

    def found(processor: str, ours: list[list[tuple[float, float]]]) -> dict[str, Any]:
        peer = [(50.0, 2.0), (100.0, 1.5)]
        rounds = [{"peer": peer, "ours": curve, "ratio": time_to_loss.ratio(curve, peer)} for curve in ours]
        fast = {"ours": [300.0, 330.0], "nanogpt": [200.0, 200.0], "trainer": [100.0, 110.0]}
        return {"name": "text", "processor": processor, "threads": 2, "rounds": rounds, "speeds": fast}

    time_to_loss.publish(found("one", [[(10.0, 1.0)]]), options)
    time_to_loss.publish(found("two", [[(10.0, 3.0)]]), options)
    # From 1.7 bits after 40 s to 1.4 after 70 s: 1.5 after 60 s, of 100.
    time_to_loss.publish(found("one", [[(40.0, 1.7), (70.0, 1.4)], [(40.0, 1.5), (70.0, 1.4)]]), options)
    first, second = page.read_text(encoding="utf-8").splitlines()[3:5]
    assert "**0.50** [0.40, 0.60] of its time" in first and "1.57 [1.50, 1.65]" in first
    assert "no, on 1 of 1 seeds" in second


def test_a_text_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MANNERS_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match=r"tinyshakespeare.*input\.txt is not there"):
        time_to_loss.text(time_to_loss.SHAKESPEARE, tmp_path)
    with pytest.raises(SystemExit, match="no benchmark bible"):
        time_to_loss.text("bible", tmp_path)
