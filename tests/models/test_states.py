"""Kept trunk states are those that the trunk computes, whatever the order and the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from manners.models.branches import ScalarBranch, set_trainable
from manners.models.states import StateStore
from manners.models.trunk import grow_trunk
from manners.text import Rendered, collate
from tests.worlds import tiny_model

LENGTHS = enumerate((4, 0, 4, 2, 4, 0))
SEQUENCES = [Rendered(tuple(range(5, 6 + n)), tuple(range(50, 52 + n % 3 + i))) for i, n in LENGTHS]
"""Three prompts with one, two and three responses."""


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("layers", [2, "all"])
@torch.no_grad()
def test_states_of_any_choice_are_the_trunks(tmp_path: Path, layers: int | Literal["all"], share: bool) -> None:
    trunk = replace(grow_trunk(tiny_model(), layers), shares_prompts=share)
    store = StateStore(trunk, SEQUENCES, 0, tmp_path / "states")
    for chosen in ([0], [3, 1], [5, 5, 2, 0]):
        states, batch = store.batch(chosen)
        for index, (row, start, stop) in zip(chosen, batch.spans, strict=True):
            alone = collate([SEQUENCES[index]], 0)
            prompt = len(SEQUENCES[index].prompt_ids)
            columns = [*range(prompt), *range(start, stop)]
            assert torch.equal(batch.ids[row, columns], alone.ids[0])
            torch.testing.assert_close(states[row, columns], trunk.states(alone)[0], atol=1e-4, rtol=1e-4)
    if layers == "all":  # an empty trunk keeps nothing
        assert not (tmp_path / "states").exists()
    else:  # each prompt once
        tokens = 5 + 1 + 3 + sum(len(r.response_ids) for r in SEQUENCES)
        assert (tmp_path / "states").stat().st_size == tokens * trunk.width * 4


@pytest.mark.parametrize("share", [True, False])
def test_branches_score_and_learn_from_kept_states(tmp_path: Path, share: bool) -> None:
    trunk = replace(grow_trunk(tiny_model(), 2), shares_prompts=share)
    branch = ScalarBranch(trunk, torch.Generator().manual_seed(0))
    states, batch = StateStore(trunk, SEQUENCES, 0, tmp_path / "states").batch(range(6))
    assert len(batch.ids) == (3 if share else 6)
    parameters = set_trainable([branch])
    weights = torch.arange(1.0, 7.0)
    scores = branch.scores(states, batch)
    gradients = torch.autograd.grad((weights * scores).sum(), parameters)
    expected = [torch.zeros_like(p) for p in parameters]
    for weight, score, sequence in zip(weights, scores, SEQUENCES, strict=True):
        alone = collate([sequence], 0)
        again = branch.scores(trunk.states(alone), alone)[0]
        torch.testing.assert_close(again, score, atol=1e-4, rtol=1e-4)
        expected = [e + g for e, g in zip(expected, torch.autograd.grad(weight * again, parameters), strict=True)]
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert max(float(g.abs().max()) for g in gradients) > 0.01
