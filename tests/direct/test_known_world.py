"""DPO against a world whose best policy is known: verdicts by Bradley-Terry of known rewards, every pair compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from manners.direct.learner import Referred, Speaker
from manners.models.branches import Branch, set_trainable
from manners.reward.labelled import Counts, LabelledPair
from manners.reward.pairs import ReadPairs
from manners.text import Rendered
from manners.training import Training
from manners.types import Dialogue, FinishReason, Response, Role, Turn
from tests.conftest import some
from tests.worlds import KNOWN_PROMPTS, KNOWN_RESPONSES, KnownWorld, known_world


def compared(world: KnownWorld, folder: Path) -> ReadPairs:
    """Every pair of responses to every prompt, with as many verdicts for either side as its chances are."""
    said = [Response(f"response {number}", "initial", FinishReason.STOP) for number in range(len(KNOWN_RESPONSES))]
    asked: list[Dialogue] = [(Turn(Role.USER, f"prompt {number}"),) for number in range(len(KNOWN_PROMPTS))]
    rendered = {
        (prompt, response): Rendered(ids, answer)
        for prompt, ids in zip(asked, KNOWN_PROMPTS, strict=True)
        for response, answer in zip(said, KNOWN_RESPONSES, strict=True)
    }
    pairs = []
    for prompt, rewards in zip(asked, world.rewards, strict=True):
        for i in range(len(said)):
            for j in range(i):
                chance = float(torch.sigmoid(rewards[i] - rewards[j]))
                counts = Counts(chance, 1 - chance, 0.0)
                pairs.append(LabelledPair(None, prompt, said[i], said[j], counts, counts, 0, "all"))
    return ReadPairs(world.pretrained, pairs, rendered, folder / "states", "reading")


def learnt(world: KnownWorld, beta: float, folder: Path, temperature: float = 1.0, steps: int = 300) -> Branch:
    """Train on all pairs at once."""
    policy = Branch(world.pretrained.trunk, trainable=True)
    reference = Speaker(Branch(world.pretrained.trunk, trainable=False), temperature)
    data = Referred.of(compared(world, folder), reference)
    training = Training(set_trainable([policy]), 0.01, max_norm=1.0)
    which = list(range(len(data.pairs.pairs)))
    for step in range(1, steps + 1):
        training.schedule(step, steps)
        torch.autograd.backward(data.loss(Speaker(policy, temperature), which, beta, data.pairs.weight(which))[0])
        training.step(ValueError())
    return policy


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], tuple[KnownWorld, Branch]]:
    """A function that returns the world, and the policy that is learnt in it at a beta."""

    @cache
    def trained(beta: float) -> tuple[KnownWorld, Branch]:
        world = known_world()
        return world, learnt(world, beta, tmp_path_factory.mktemp("known"))

    return trained


def divergence(best: Tensor, logprobs: Tensor) -> float:
    """KL(best || policy) in nats, averaged over the prompts."""
    return float((best.exp() * (best - logprobs)).sum(dim=1).mean())


@pytest.mark.parametrize("beta", some([1.0, 0.3], 1))
def test_dpo_reaches_the_known_optimum(beta: float, at: Callable[[float], tuple[KnownWorld, Branch]]) -> None:
    # The likelihood of Bradley-Terry verdicts is largest at p_ref exp(r / beta) / Z: the optimum of PPO at that KL
    # coefficient, worked out by the world, not by the loss.
    world, policy = at(beta)
    logprobs = world.logprobs(policy)
    reference = world.logprobs(Branch(world.pretrained.trunk, trainable=False))
    best = world.optimum(beta)
    assert divergence(best, logprobs) <= 0.02 < 0.1 < divergence(best, reference)
    assert world.objective(logprobs, beta) >= 0.98 * world.objective(best, beta)


@pytest.mark.long
def test_the_wrong_beta_is_another_policy(at: Callable[[float], tuple[KnownWorld, Branch]]) -> None:
    world, policy = at(0.3)
    assert divergence(world.optimum(1.0), world.logprobs(policy)) > 0.1


@pytest.mark.long
def test_the_policy_that_is_sampled_at_a_temperature_is_the_one_that_is_best(tmp_path: Path) -> None:
    # At temperature 2 the reference is that of temperature 2: what is drawn from then has the closed form.
    world, beta, temperature = known_world(), 1.0, 2.0

    def logprobs(branch: Branch) -> Tensor:
        data = compared(world, tmp_path)
        with torch.no_grad():
            by_response = Speaker(branch, temperature).scores(*data.store.batch(range(len(data.rendered))))
        place = {(r.prompt_ids, r.response_ids): n for n, r in enumerate(data.rendered)}
        order = [place[prompt, response] for prompt in KNOWN_PROMPTS for response in KNOWN_RESPONSES]
        return by_response[order].double().view(len(KNOWN_PROMPTS), -1)

    reference = logprobs(Branch(world.pretrained.trunk, trainable=False))
    torch.testing.assert_close(reference.exp().sum(dim=1), torch.ones(4, dtype=torch.float64), atol=1e-5, rtol=0)
    best = (reference + world.rewards / beta).log_softmax(dim=1)
    assert divergence(best, logprobs(learnt(world, beta, tmp_path, temperature))) <= 0.02 < divergence(best, reference)
