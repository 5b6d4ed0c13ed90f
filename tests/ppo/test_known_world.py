"""PPO against a world whose best policy is known in closed form: is the whole objective right, signs and all?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from manners.maths import KLEstimator
from manners.models.branches import Branch
from manners.ppo import rollout
from manners.ppo.objective import kl_penalty
from tests.conftest import some
from tests.ppo.known import to_the_end, trained
from tests.worlds import KnownWorld, known_world


@pytest.fixture(autouse=True)
def _to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    to_the_end(monkeypatch)


def learnt(world: KnownWorld, coefficient: float, folder: Path, updates: int = 100) -> torch.Tensor:
    """Log-probabilities of the policy at the end of a run, which is the one that is kept."""
    result = trained(world, world.reward, coefficient, folder, updates)
    assert result.best_update == updates
    return world.logprobs(result.policy)


def divergence(world: KnownWorld, logprobs: torch.Tensor, coefficient: float) -> float:
    """KL(optimum || policy) in nats, averaged over the prompts."""
    best = world.optimum(coefficient)
    return float((best.exp() * (best - logprobs)).sum(dim=1).mean())


def test_the_optimum_is_one() -> None:
    # c log Z is what the optimum is worth by its definition; the objective must agree, and any other be worth less.
    world = known_world()
    reference = world.logprobs(Branch(world.pretrained.trunk, trainable=False))
    torch.testing.assert_close(reference.exp().sum(dim=1), torch.ones(4, dtype=torch.float64))
    for coefficient in (0.05, 0.2, 1.0):
        worth = float(coefficient * (reference + world.rewards / coefficient).logsumexp(dim=1).mean())
        assert world.objective(world.optimum(coefficient), coefficient) == pytest.approx(worth)
        assert world.objective(reference, coefficient) == pytest.approx(0, abs=1e-6)
        assert world.objective(world.optimum(2 * coefficient), coefficient) < worth


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.long)])
@pytest.mark.parametrize("coefficient", some([0.2, 0.05, 1.0], 1))
def test_ppo_reaches_the_known_optimum(coefficient: float, dtype: torch.dtype, tmp_path: Path) -> None:
    world = known_world(dtype=dtype)
    logprobs = learnt(world, coefficient, tmp_path)
    best = world.objective(world.optimum(coefficient), coefficient)
    assert divergence(world, logprobs, coefficient) <= 0.05
    assert world.objective(logprobs, coefficient) >= 0.98 * best


@pytest.mark.long
@pytest.mark.parametrize(("estimator", "low", "high"), [("k1", 0.9, 1.0), ("k3", -0.1, 0.1)])
def test_k1_in_the_reward_soon_leads_there_and_k3_does_not(
    estimator: KLEstimator, low: float, high: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # k3 is unbiased, but the gradient of its expectation is not the policy gradient that it gives as a reward.
    # No version of it is better than the initial model, which is kept.
    monkeypatch.setattr(rollout, "kl_penalty", lambda new, old, keep, _: kl_penalty(new, old, keep, estimator))
    world = known_world()
    policy = trained(world, world.reward, 1.0, tmp_path, updates=30).policy
    share = world.objective(world.logprobs(policy), 1.0) / world.objective(world.optimum(1.0), 1.0)
    assert low < share < high


@pytest.mark.long
def test_with_the_penalty_turned_round_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "kl_penalty", lambda *given: -kl_penalty(*given))
    world = known_world()
    logprobs = learnt(world, 1.0, tmp_path, updates=30)
    assert divergence(world, logprobs, 1.0) > 0.05
    assert world.objective(logprobs, 1.0) < 0.5 * world.objective(world.optimum(1.0), 1.0)
