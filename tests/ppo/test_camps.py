"""PPO for camps who want different things, in a world where the best for the worst-served of them is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from manners import metrics
from manners.models.branches import Branch
from manners.models.trunk import States
from manners.ppo import camps
from manners.reward.ensemble import Camps, RewardModel, Scored
from manners.text import Batch, Packed
from tests.ppo.known import to_the_end, trained
from tests.worlds import KNOWN_PROMPTS, KNOWN_RESPONSES, KNOWN_WORDS, KnownWorld, Lookup, known_world

SHARE, COEFFICIENT = 0.75, 0.2


class Two(Lookup):
    """A member whose final states are what all like, and by how much the first camp likes an answer more."""

    def __init__(self, world: KnownWorld, more: Float[Tensor, "6 6 7"]) -> None:
        super().__init__(world.pretrained, world.table)
        self.more = more

    def ends(self, states: States, batch: Batch | Packed) -> Float[Tensor, "B 2"]:
        """Look both up."""
        mean, table = super().scores(states, batch), self.table
        self.table = self.more
        more = super().scores(states, batch)
        self.table = table
        return torch.stack([mean, more], dim=1)

    def of_ends(self, ends: Float[Tensor, "B 2"]) -> Float[Tensor, " B"]:
        return ends[:, 0]


def differing(world: KnownWorld) -> tuple[Two, RewardModel]:
    """Two camps: the larger one likes most of what all like, and some other things; the smaller one dislikes these."""
    more = world.table + known_world(seed=5).table
    member = Two(world, more)
    directions = torch.tensor([[0.0, 1 - SHARE], [0.0, -SHARE]])
    known = Camps(directions, torch.zeros(2), torch.tensor([SHARE, 1 - SHARE]))
    return member, RewardModel((member,), (0.0,), (1.0,), camps=known)


def rewards(world: KnownWorld, more: Float[Tensor, "6 6 7"]) -> Float[Tensor, "2 P Y"]:
    """What every response to every prompt is worth to each camp."""
    said = [(y[0], y[1] if len(y) > 1 else len(KNOWN_WORDS)) for y in KNOWN_RESPONSES]
    apart = torch.stack([more[x[0]][tuple(zip(*said, strict=True))] for x in KNOWN_PROMPTS]).double()
    return torch.stack([world.rewards + (1 - SHARE) * apart, world.rewards - SHARE * apart])


def worth(world: KnownWorld, logprobs: Tensor, each: Tensor) -> list[float]:
    """Of a policy, to each camp, less the KL that it cost."""
    reference = world.logprobs(Branch(world.pretrained.trunk, trainable=False))
    kl = COEFFICIENT * (logprobs.exp() * (logprobs - reference)).sum(dim=1).mean()
    return [float((logprobs.exp() * one).sum(dim=1).mean() - kl) for one in each]


def best_for_the_worst(world: KnownWorld, each: Tensor) -> float:
    """max over policies of the least J_g - c KL: by duality the least over mixtures of c log Z of the mixed reward."""
    reference = world.logprobs(Branch(world.pretrained.trunk, trainable=False))

    def dual(share: float) -> float:
        mixed = share * each[0] + (1 - share) * each[1]
        return float(COEFFICIENT * (reference + mixed / COEFFICIENT).logsumexp(dim=1).mean())

    return float(minimize_scalar(dual, bounds=(0, 1), method="bounded").fun)


@pytest.mark.long
def test_the_worst_served_camp_gets_what_it_can_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_the_end(monkeypatch)
    found = {}
    for worst in (0.0, 1.0):
        world = known_world()
        member, reward = differing(world)
        result = trained(world, reward, COEFFICIENT, tmp_path / str(worst), updates=100, worst_camp=worst)
        each = rewards(world, member.more)
        found[worst] = worth(world, world.logprobs(result.policy), each)
        first = metrics.read(tmp_path / str(worst))[0]
        assert len(result.camps) == 2 and {"validate/camp_1", "validate/camp_2"} <= first.keys()
    optimum = best_for_the_worst(world, each)
    assert found[0.0][1] < found[0.0][0], "the smaller camp is served worse on average"
    assert min(found[1.0]) > min(found[0.0]) + 0.1
    assert 0.85 * optimum < min(found[1.0]) <= optimum + 0.02


def test_of_all_camps_by_their_shares_it_is_the_mean() -> None:
    known = Camps(torch.zeros((2, 3)), torch.zeros(2), torch.tensor([0.6, 0.4]))
    scored = Scored(torch.tensor([[1.0, 2.0]]), camps=torch.tensor([[0.4, -0.8], [-0.6, 1.2]]))
    torch.testing.assert_close(camps.reward_of(scored, camps.weights(known, [3.0, -1.0], 0.0)), scored.mean)
    assert camps.reward_of(scored, None) is scored.mean or torch.equal(camps.reward_of(scored, None), scored.mean)
    behind = camps.weights(known, [3.0, -1.0], 1.0)
    torch.testing.assert_close(behind, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(camps.reward_of(scored, behind), torch.tensor([0.4, 3.2]))
    torch.testing.assert_close(camps.weights(known, [0.05, 0.05], 0.5), torch.tensor([0.55, 0.45]))
    assert camps.gains(scored) == pytest.approx([1.3, 1.8])
    assert camps.remembered([], [1.0]) == [1.0] and camps.remembered([1.0], [2.0]) == pytest.approx([1.3])
