"""The ensemble: normalisation, spread, and scores that know nothing of their neighbours."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
import torch

from manners.models.branches import Branch, ScalarBranch
from manners.models.pretrained import Pretrained
from manners.reward.ensemble import RewardModel, Scored, score_exchanges, score_rendered
from manners.text import Rendered
from manners.types import Dialogue, Response
from tests.ppo.scripted import answers
from tests.reward.planted import comparisons
from tests.worlds import tiny_pretrained, with_compute


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


@pytest.fixture(scope="module")
def raw(world: Pretrained) -> RewardModel:
    """Three untrained members, not normalised."""
    members = tuple(ScalarBranch(world.trunk, torch.Generator().manual_seed(n)) for n in range(3))
    return RewardModel(members, (0.0, 0.0, 0.0), 1.0)


@pytest.fixture(scope="module")
def initial_answers(world: Pretrained) -> list[Rendered]:
    return list(answers(Branch(world.trunk, trainable=False), world, count=3).rendered)


def test_by_hand() -> None:
    scored = Scored(torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]]))
    assert scored.mean.tolist() == [3, 2]
    assert scored.std.tolist() == pytest.approx([(8 / 3) ** 0.5, 0])


def test_on_the_initial_answers_the_mean_is_0_and_the_deviation_1(
    world: Pretrained, raw: RewardModel, initial_answers: list[Rendered]
) -> None:
    before = score_rendered(raw, world, initial_answers)
    assert before.mean(dim=0).std() != pytest.approx(1, abs=0.05)
    reward = raw.normalised_on(before)
    scores = score_rendered(reward, world, initial_answers)
    torch.testing.assert_close(scores.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    assert float(scores.mean(dim=0).std()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(scores[2], (before[2] - before[2].mean()) / before.mean(dim=0).std())


def test_scores_that_do_not_vary_are_not_blown_up(raw: RewardModel) -> None:
    assert raw.normalised_on(torch.full((3, 4), 7.0)).scale == 1
    assert raw.normalised_on(torch.full((3, 1), 7.0)).scale == 1


def test_a_score_knows_nothing_of_its_neighbours(
    world: Pretrained, raw: RewardModel, initial_answers: list[Rendered]
) -> None:
    together = score_rendered(raw, world, initial_answers)
    for tokens in (1, 200):
        narrow = replace(world, trunk=with_compute(world.trunk, bucket_tokens=tokens))
        torch.testing.assert_close(score_rendered(raw, narrow, initial_answers), together, atol=1e-4, rtol=1e-4)
    assert float(together.std()) > 0.01


def test_any_number_of_exchanges_comes_in_order_and_in_chunks(world: Pretrained, raw: RewardModel) -> None:
    exchanges: list[tuple[Dialogue, Response]] = [
        (c.prompt, side) for c in comparisons(10, 1.0) for side in (c.left, c.right)
    ]
    few = torch.cat([s.mean for s in score_exchanges(raw, world, exchanges)])
    many = list(score_exchanges(raw, world, chain.from_iterable(exchanges for _ in range(26))))
    assert [len(s.mean) for s in many] == [512, 8]
    torch.testing.assert_close(torch.cat([s.mean for s in many]), few.repeat(26), atol=1e-4, rtol=1e-4)
    assert list(score_exchanges(raw, world, [])) == []
