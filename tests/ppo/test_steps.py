"""How far PPO's steps go: in units of the weights themselves, unless a rate is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from manners.models.branches import Branch, ScalarBranch, scalar_head
from manners.models.pretrained import Pretrained
from manners.ppo.learner import Learner, begin
from manners.settings import PPOSettings
from manners.text import Rendered, collate
from tests.ppo.scripted import PROMPTS, SETTINGS, keep, likes, run
from tests.reward.test_steps import pretrained as rewritten
from tests.worlds import tiny_pretrained

SHORT = replace(SETTINGS, updates=3, epochs=2, batch=24, minibatch=12, validate_every=3)
SAID = [Rendered(prompt, (20 + number, 90 + number, 4)) for number, prompt in enumerate(PROMPTS)]


@torch.no_grad()
def logprobs(policy: Branch, world: Pretrained) -> Tensor:
    """Of the tokens of fixed answers."""
    batch = collate(SAID, 0)
    return policy.logprobs(policy.hidden(world.trunk.states(batch), batch), batch, 1.0)


def learnt(settings: PPOSettings, by: float, folder: Path) -> Tensor:
    """How a run moves the log-probabilities of fixed answers, of a model whose matrices are written so."""
    world = rewritten(by)
    before = logprobs(Branch(world.trunk, trainable=False), world)
    return logprobs(run(settings, world, likes(world), folder).policy, world) - before


@pytest.mark.parametrize("value", ["shared", "separate"])
@pytest.mark.parametrize(("rate", "same"), [(None, True), (0.003, False)])
def test_the_numbers_that_a_model_is_written_in_decide_nothing(
    rate: float | None,
    same: bool,
    value: Literal["shared", "separate"],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Learner, "offer", keep)
    settings = replace(SHORT, learning_rate=rate, value=value)
    plain, other = (learnt(settings, by, tmp_path / str(by)) for by in (1.0, 8.0))
    assert float(plain.std()) > 1e-3
    assert torch.allclose(plain, other, atol=0.02 * float(plain.std()), rtol=0) is same  # 8 rounds nothing


def spread(tensor: Tensor) -> float:
    return float(tensor.detach().square().mean().sqrt())


def test_a_value_head_goes_by_what_reads_the_same_states() -> None:
    """One that begins at zero has no spread of its own."""
    trunk = tiny_pretrained().trunk
    policy, head, apart = Branch(trunk, trainable=True), scalar_head(trunk, None), ScalarBranch(trunk, None)
    words = spread(trunk.whole.get_output_embeddings().weight)
    for part, weight in ((head, head.weight), (apart, apart.scalar.weight)):
        training = begin(PPOSettings(), 0, policy, [part]).training
        training.set(0.0005)
        rates = {id(group["params"][0]): group["lr"] for group in training.optimiser.param_groups}
        assert rates.pop(id(weight)) == pytest.approx(0.0005 * words)
        own = {id(p): p for p in (*policy.parameters(), *part.parameters()) if p.requires_grad}
        assert rates == {at: pytest.approx(0.0005 * spread(own[at])) for at in rates} and len(rates) == len(own) - 1


def test_a_rate_that_is_named_is_absolute() -> None:
    """As every settings file of before has it, and every checkpoint of a run that was begun with it."""
    trunk = tiny_pretrained().trunk
    policy, head = Branch(trunk, trainable=True), scalar_head(trunk, None)
    training = begin(PPOSettings(learning_rate=1e-4), 0, policy, [head]).training
    training.set(training.rate)
    [group] = training.optimiser.param_groups
    assert (group["lr"], group["eps"]) == (1e-4, 1e-5)
