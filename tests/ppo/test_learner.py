"""What changes during a run comes back from a checkpoint, also from one written before all stages shared one loop."""

from __future__ import annotations

import random
from dataclasses import asdict

import pytest
import torch

from manners.models.branches import Branch, set_trainable
from manners.models.pretrained import Pretrained
from manners.ppo.guard import Act, Warned
from manners.ppo.learner import Best, Learner, Validation, begin
from manners.settings import PPOSettings
from tests.worlds import tiny_pretrained

SETTINGS = PPOSettings(learning_rate=0.1)
FOUND = Validation((0.5, 1.5), 1.0, 0.9, 2.0, 0.01)


@pytest.fixture(scope="module")
def world() -> Pretrained:
    return tiny_pretrained()


def learner(world: Pretrained, seed: int) -> Learner:
    return begin(SETTINGS, seed, Branch(world.trunk, trainable=True), [])


def test_a_state_of_the_time_before_the_shared_loop_is_restored(world: Pretrained) -> None:
    policy = Branch(world.trunk, trainable=True)
    parameters = set_trainable([policy])
    optimiser = torch.optim.AdamW(parameters, lr=0.1, eps=1e-5, weight_decay=0.0)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    generator = torch.Generator().manual_seed(3)
    order = random.Random(3)
    old = {
        "coefficient": 0.2,
        "step_factor": 0.5,
        "update": 4,
        "episodes": 256,
        "optimizer_steps": 32,
        "queue": [(1, 2), (3,)],
        "parameters": [p.detach() for p in parameters],
        "optimiser": optimiser.state_dict(),
        "generator": generator.get_state(),
        "order": order.getstate(),
        "best": (2, asdict(FOUND), {"x": torch.ones(2)}, asdict(FOUND)),
        "warned": [(3, "value", "the step was halved", "it explains nothing")],
    }
    again = learner(world, seed=0)
    assert again.state().keys() == old.keys() | {"gains"}
    again.restore(old, [(3,), (4,), (1, 2)])
    assert (again.coefficient, again.step_factor, again.update) == (0.2, 0.5, 4)
    assert (again.episodes, again.optimizer_steps, again.queue) == (256, 32, [2, 0])
    assert all(torch.equal(a, b) for a, b in zip(again.training.parameters, parameters, strict=True))
    moments = again.training.optimiser.state_dict()["state"]
    for place, held in optimiser.state_dict()["state"].items():
        assert all(torch.equal(tensor, held[name]) for name, tensor in moments[place].items())
    assert torch.equal(torch.rand(3, generator=again.generator), torch.rand(3, generator=generator))
    assert again.order.random() == order.random()
    assert (again.best.update, again.best.validation, again.best.top) == (2, FOUND, FOUND)
    assert again.warned == [Warned(3, "value", Act.HALVE, "it explains nothing")]


def test_prompts_come_in_the_order_that_was_drawn_and_no_state_holds_them(world: Pretrained) -> None:
    """As they did when they stood in the queue themselves: what was trained then is trained again to the bit."""
    prompts = [(7, number) for number in range(5)]
    before, order = learner(world, seed=3), random.Random(3)
    queue = [prompt for _ in range(3) for prompt in order.sample(prompts, len(prompts))]
    assert before.next_prompts(prompts, 7) == queue[:7]
    state = before.state()
    assert len(state["queue"]) == 3 and all(isinstance(one, int) for one in state["queue"])
    again = learner(world, seed=0)
    again.restore(state, prompts)
    assert again.next_prompts(prompts, 8) == queue[7:]


def test_the_version_that_is_kept_is_in_the_format_of_the_model() -> None:
    half = tiny_pretrained()
    policy = Branch(half.trunk, trainable=True).to(torch.bfloat16)
    taught = begin(SETTINGS, 0, policy, [])
    taught.offer(1, FOUND, 1.0)
    assert isinstance(taught.best, Best)
    assert {tensor.dtype for tensor in taught.best.tensors.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in taught.state()["parameters"]} == {torch.float32}
