"""One KL coefficient, the same KL: in worlds whose best policy is known, rewards come in units that comparisons fix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from manners.models.branches import Branch
from tests.worlds import KNOWN_PROMPTS, KnownWorld, known_world

COEFFICIENT = 0.3
ANSWERS = 64
"""Of the reference to each of the four prompts: 256 in all, as in a run."""


def best_kl(world: KnownWorld, rewards: Tensor) -> float:
    """KL of the best policy at `COEFFICIENT` under these rewards (P, Y), in nats a response; exact."""
    reference = world.logprobs(Branch(world.pretrained.trunk, trainable=False))
    best = (reference + rewards / COEFFICIENT).log_softmax(dim=1)
    return float((best.exp() * (best - reference)).sum(dim=1).mean())


def in_units(world: KnownWorld, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """These rewards in units of within prompts, and as up to now: of all answers, whatever the prompt."""
    chances = world.logprobs(Branch(world.pretrained.trunk, trainable=False)).exp()
    drawn = torch.multinomial(chances, ANSWERS, replacement=True, generator=torch.Generator().manual_seed(1))
    raw = rewards.gather(1, drawn).flatten().unsqueeze(0)
    prompts = [place for place in range(len(KNOWN_PROMPTS)) for _ in range(ANSWERS)]
    scale = world.reward.normalised_on(raw, prompts).scales[0]
    return rewards / scale, rewards / raw.std()


def test_one_coefficient_gives_like_kl_on_two_data_sets() -> None:
    # One set's prompts have much the same merit; the other's have offsets, of which comparisons within a prompt say
    # nothing, and a taste of its own, expressed three times as strongly.
    plain, other = known_world(0), known_world(1)
    offsets = torch.tensor([[-20.0], [-5.0], [5.0], [20.0]])
    sets = [(plain, plain.rewards), (plain, 3 * plain.rewards + offsets), (other, 3 * other.rewards + offsets)]
    now, before = zip(*([best_kl(w, r) for r in in_units(w, rewards)] for w, rewards in sets), strict=True)
    print("KL now:", now, "before:", before)
    assert now[1] == pytest.approx(now[0], rel=1e-4), "the same comparisons, the same policy"
    assert now[2] == pytest.approx(now[0], rel=0.25)
    assert max(before[1:]) < 0.5 * before[0], "where offsets count, what was learnt hardly does"
