"""Kept trunk states are those that the trunk computes, whatever the order and the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from manners.models.branches import ScalarBranch
from manners.models.states import StateStore
from manners.models.trunk import grow_trunk
from manners.text import Rendered, collate
from tests.worlds import tiny_model

SEQUENCES = [Rendered(tuple(range(5, 6 + n)), tuple(range(50, 52 + n % 3))) for n in (4, 0, 9, 2, 7, 1)]


@pytest.mark.parametrize("layers", [2, "all"])
@torch.no_grad()
def test_states_of_any_choice_are_the_trunks(tmp_path: Path, layers: int | Literal["all"]) -> None:
    trunk = grow_trunk(tiny_model(), layers)
    store = StateStore(trunk, SEQUENCES, 0, tmp_path / "states", rows=2)
    for chosen in ([0], [3, 1], [5, 5, 2, 0]):
        states, batch = store.batch(chosen)
        expected = collate([SEQUENCES[i] for i in chosen], 0)
        assert torch.equal(batch.ids, expected.ids) and torch.equal(batch.attend, expected.attend)
        keep = batch.attend
        torch.testing.assert_close(states[keep], trunk.states(expected)[keep], atol=1e-4, rtol=1e-4)
    assert (tmp_path / "states").exists() == (layers != "all")  # an empty trunk keeps nothing


def test_branches_score_and_learn_from_kept_states(tmp_path: Path) -> None:
    trunk = grow_trunk(tiny_model(), 2)
    branch = ScalarBranch(trunk, torch.Generator().manual_seed(0))
    states, batch = StateStore(trunk, SEQUENCES, 0, tmp_path / "states").batch(range(6))
    scores = branch.scores(states, batch)
    for row, sequence in enumerate(SEQUENCES):
        alone = collate([sequence], 0)
        torch.testing.assert_close(branch.scores(trunk.states(alone), alone)[0], scores[row], atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(scores.sum(), branch.scalar.weight)
    assert gradient.abs().sum() > 0
