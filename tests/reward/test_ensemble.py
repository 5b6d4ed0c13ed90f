"""The ensemble: normalisation, spread, and scores that know nothing of their neighbours."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from manners.models.branches import Branch, ScalarBranch
from manners.models.packing import pack_flat
from manners.models.pretrained import Pretrained
from manners.models.proof import proved
from manners.models.trunk import grow_trunk
from manners.reward.ensemble import RewardModel, Scored, score_exchanges, score_rendered, within_prompts
from manners.text import Rendered
from manners.types import Dialogue, Response
from tests.conftest import some
from tests.ppo.scripted import answers
from tests.reward.planted import comparisons
from tests.worlds import ARCHITECTURES, TELLS_NOTHING, tiny_model, tiny_pretrained, with_compute


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


@pytest.fixture(scope="module")
def raw(world: Pretrained) -> RewardModel:
    """Three untrained members, not normalised."""
    members = tuple(ScalarBranch(world.trunk, torch.Generator().manual_seed(n)) for n in range(3))
    return RewardModel(members, (0.0,) * 3, (1.0,) * 3)


@pytest.fixture(scope="module")
def initial_answers(world: Pretrained) -> list[Rendered]:
    return list(answers(Branch(world.trunk, trainable=False), world, count=3).rendered)


def test_by_hand() -> None:
    scored = Scored(torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]]))
    assert scored.mean.tolist() == [3, 2]
    assert scored.std.tolist() == pytest.approx([(8 / 3) ** 0.5, 0])


PROMPTS = [number // 3 for number in range(48)]
"""Of `initial_answers`: three to each of 16."""


def test_the_spread_within_prompts_by_hand() -> None:
    # 1 and 3 lie 1 from their mean, 10 and 14 lie 2: (1 + 1 + 4 + 4) / (4 answers - 2 prompts) = 5.
    scores = torch.tensor([[1.0, 10.0, 3.0, 14.0], [7.0, 7.0, 7.0, 7.0]])
    assert within_prompts(scores, "abab").tolist() == pytest.approx([5**0.5, 1])
    assert within_prompts(scores[:, :3], "aba").tolist() == pytest.approx([2**0.5, 1])
    with pytest.raises(ValueError, match="several answers to a prompt"):
        within_prompts(scores, "abcd")


def test_among_the_initial_answers_to_a_prompt_the_reward_has_deviation_1_and_members_weigh_alike(
    world: Pretrained, raw: RewardModel, initial_answers: list[Rendered]
) -> None:
    before = score_rendered(raw, world, initial_answers)
    before = before * torch.tensor([[1.0], [2.0], [5.0]])  # members do not agree on a scale by themselves
    reward = raw.normalised_on(before, PROMPTS)
    scores = (before - torch.tensor(reward.shifts).unsqueeze(1)) / torch.tensor(reward.scales).unsqueeze(1)
    torch.testing.assert_close(scores.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)

    def deviation(some: Tensor) -> float:
        by_prompt = some.view(-1, 3)
        variance = ((by_prompt - by_prompt.mean(dim=1, keepdim=True)) ** 2).sum() / (48 - 16)
        return float(variance.sqrt())

    assert deviation(scores.mean(dim=0)) == pytest.approx(1, abs=1e-5)
    own = [deviation(member) for member in scores]
    assert own == pytest.approx([own[0]] * 3, rel=1e-5) and own[0] >= 1
    assert reward.unit == pytest.approx(sum(reward.scales) / 3)
    pairs = torch.stack([before[:, 0::2], before[:, 1::2]], dim=-1)
    torch.testing.assert_close(reward.margins(pairs), scores[:, 0::2] - scores[:, 1::2])


def test_what_no_comparison_bears_on_moves_no_scale(
    world: Pretrained, raw: RewardModel, initial_answers: list[Rendered]
) -> None:
    # Every prompt's scores may be shifted without a change of any comparison's probability.
    before = score_rendered(raw, world, initial_answers)
    offsets = torch.randn((3, 16), generator=torch.Generator().manual_seed(0)) * 10 * before.std()
    moved = raw.normalised_on(before + offsets.repeat_interleave(3, dim=1), PROMPTS)
    assert moved.scales == pytest.approx(raw.normalised_on(before, PROMPTS).scales, rel=1e-4)


def test_scores_that_do_not_vary_are_not_blown_up(raw: RewardModel) -> None:
    assert raw.normalised_on(torch.full((3, 4), 7.0), "aabb").scales == (1, 1, 1)


def test_a_score_knows_nothing_of_its_neighbours(
    world: Pretrained, raw: RewardModel, initial_answers: list[Rendered]
) -> None:
    together = score_rendered(raw, world, initial_answers)
    for tokens in (1, 200):
        narrow = replace(world, trunk=with_compute(world.trunk, bucket_tokens=tokens))
        torch.testing.assert_close(score_rendered(raw, narrow, initial_answers), together, atol=1e-4, rtol=1e-4)
    assert float(together.std()) > 0.01


@pytest.mark.parametrize("model_type", some(ARCHITECTURES, 3))
def test_in_one_row_scores_are_what_they_are_alone(model_type: str) -> None:
    trunk = proved(grow_trunk(tiny_model(model_type), 2), 128)
    if not trunk.compute.flat:
        assert model_type in TELLS_NOTHING
        return
    world = replace(tiny_pretrained(), trunk=trunk)
    reward = RewardModel((ScalarBranch(trunk, torch.Generator().manual_seed(0)),), (0.0,), (1.0,))
    prompts = [(1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 4, 5, 6, 7, 8, 10, 11), (20, 21)]
    responses = [(5, 6, 7), (8,), tuple(range(1, 60))]
    rendered = [Rendered(prompt, response) for prompt in prompts for response in responses]
    alone = replace(world, trunk=with_compute(trunk, flat=False, shares_prompts=False, bucket_tokens=1))
    one_by_one = torch.cat([score_rendered(reward, alone, [one]) for one in rendered], dim=1)
    torch.testing.assert_close(score_rendered(reward, world, rendered), one_by_one, atol=1e-5, rtol=1e-4)
    assert float(one_by_one.std()) > 1e-3


def test_where_the_longest_decides_how_positions_are_turned_nothing_stands_in_one_row() -> None:
    """Phi 3 turns all positions by another table as soon as one in a forward is beyond a limit."""
    turned: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4}
    turned |= {"long_factor": [1.0, 2, 4, 8], "original_max_position_embeddings": 48, "factor": 5.0}
    turned |= {"partial_rotary_factor": 1.0}
    model = tiny_model("phi3", sliding_window=None, rope_parameters=turned, original_max_position_embeddings=48)
    trunk = proved(grow_trunk(model, 2), 256)
    assert trunk.compute.by_row and not trunk.compute.flat


def test_a_model_that_does_not_listen_is_not_given_one_row() -> None:
    deaf = grow_trunk(tiny_model(), 2)
    batch = pack_flat([Rendered((1, 2), (3,)), Rendered((1, 2), (4,))])
    with pytest.raises(RuntimeError, match="does not listen"):
        deaf.states(batch)


def test_any_number_of_exchanges_comes_in_order_and_in_chunks(world: Pretrained, raw: RewardModel) -> None:
    exchanges: list[tuple[Dialogue, Response]] = [
        (c.prompt, side) for c in comparisons(10, 1.0) for side in (c.left, c.right)
    ]
    few = torch.cat([s.mean for s in score_exchanges(raw, world, exchanges)])
    many = list(score_exchanges(raw, world, chain.from_iterable(exchanges for _ in range(26))))
    assert [len(s.mean) for s in many] == [512, 8]
    torch.testing.assert_close(torch.cat([s.mean for s in many]), few.repeat(26), atol=1e-4, rtol=1e-4)
    assert list(score_exchanges(raw, world, [])) == []
