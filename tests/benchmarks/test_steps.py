"""The sweep of steps trains what the tool trains, and its table is what can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.evidence.steps import SETTINGS, World, once, paired, table
from manners.reward.train import train
from tests.reward.planted import comparisons
from tests.worlds import tiny_pretrained


def test_once_the_rule_it_is_what_the_tool_trains(tmp_path: Path) -> None:
    world, said = tiny_pretrained(), comparisons(60, agreement=0.95)
    settings = replace(SETTINGS, batch=8)
    read = World.of(world, said, tmp_path / "states")
    trained = train(settings, 3, world, said)
    counts = torch.tensor([pair.counts for pair in trained.split.held_out])[:, :2]
    losses = torch.nn.functional.softplus(torch.stack([-trained.margins, trained.margins], dim=1))
    found = once(read, 1.0, 3, settings)
    assert found["nats"] == pytest.approx(((counts * losses).sum(1) / counts.sum(1)).tolist(), abs=1e-4)
    assert len(set(found["groups"])) == len(trained.split.held_out)
    other = once(read, 0.25, 3, settings)
    assert other["groups"] == found["groups"] and other["nats"] != found["nats"]
    assert abs(sum(other["nats"]) / len(other["nats"]) - 0.693) < 0.2


def test_the_rule_is_held_against_the_best_of_the_sweep() -> None:
    """By hand: the best is twice the step, and the rule 0.02 nats behind it, 0.01 on one seed and 0.03 on the other."""

    def run(*nats: float) -> dict[str, list[float]]:
        return {"nats": list(nats), "groups": list(range(len(nats)))}

    sweep = {0.5: [run(0.7, 0.9), run(0.7, 0.7)], 1.0: [run(0.61, 0.71), run(0.63, 0.63)]}
    sweep[2.0] = [run(0.6, 0.7), run(0.6, 0.6)]
    behind, by_seed = paired(sweep[1.0], sweep[2.0])
    assert behind.estimate == pytest.approx(0.02) and by_seed == pytest.approx([0.01, 0.03])
    lines = table(sweep, sweep[2.0]).splitlines()
    assert lines[3].startswith("| 1 | 0.6450 | +0.0200 [") and lines[3].endswith("| +0.0100, +0.0300 |")
    assert lines[4].startswith("| 2 | 0.6250 | +0.0000 [") and lines[5].startswith(
        "| 1, matrices times 8 and 0.125 | 0.6250 |"
    )
    beyond = {1.0: [run(0.62, 0.72), run(0.62, 0.62)], 2.0: sweep[2.0]}
    assert table(beyond, sweep[2.0]).splitlines()[-1] == (
        "The rule is *not* within 0.01 nats of the best of the sweep, which is 2 times its step."
    )
    apart = {1.0: [run(0.58, 0.74), run(0.58, 0.64)], 2.0: sweep[2.0]}
    assert table(apart, sweep[2.0]).splitlines()[-1].startswith("It cannot be told whether the rule is within"), (
        "0.01 behind, by two pairs that differ"
    )
    assert table(sweep | {1.0: sweep[2.0]}, sweep[2.0]).splitlines()[-1].startswith("The rule is within 0.01 nats")
