"""One training loop: masters that move, micro-batches that change nothing, no step on what is not finite."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from manners.maths import warm_up
from manners.muon import Muon
from manners.training import Group, Loss, Term, Training, training_bytes

FORMATS = [torch.float32, torch.bfloat16]
STEPS = 12


class Unfit(Exception):
    """What a stage says of a gradient that is not finite."""


def term(loss: Tensor, weight: float = 1.0) -> Term:
    """A term that has been computed already."""
    return Term("one", weight, "one", lambda: (loss, {}))


def weights(dtype: torch.dtype = torch.float32, count: int = 200) -> nn.Parameter:
    """As large as those of a language model."""
    return nn.Parameter((torch.randn(count, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype))


def example(number: int, count: int = 200) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(number))


def taught(training: Training, first: int, last: int) -> None:
    """Steps `first` to `last` of STEPS on half the squared distance from an example each."""
    (weight,) = training.parameters
    for number in range(first, last + 1):
        training.schedule(number, STEPS)
        training.learn([term(0.5 * (weight - example(number)).square().mean())])
        training.step(Unfit())


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """A state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return dict(torch.load(file, weights_only=True))


def by_hand(weight: nn.Parameter, optimiser: torch.optim.Optimizer, first: int, last: int) -> None:
    """The same steps without our loop, as every stage took them before there was one."""
    for number in range(first, last + 1):
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * warm_up(number, STEPS)
        torch.autograd.backward(0.5 * (weight - example(number)).square().mean())
        nn.utils.clip_grad_norm_([weight], 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def adamw(weight: nn.Parameter) -> torch.optim.AdamW:
    return torch.optim.AdamW([weight], lr=0.01, eps=1e-5, weight_decay=0.0)


# Masters


def test_small_steps_move_a_bfloat16_weight_as_far_as_a_float32_one() -> None:
    # Where every gradient is 1 each step of AdamW is the rate: 1,000 of 1e-6 come to -1e-3.
    moved = {}
    for dtype in FORMATS:
        weight = weights(dtype)
        before = weight.detach().float().clone()
        training = Training([weight], 1e-6, max_norm=1e9)
        for _ in range(1000):
            training.learn([term(weight.float().sum())])
            training.step(Unfit())
        assert weight.dtype == dtype
        torch.testing.assert_close(training.masters[0] - before, torch.full((200,), -1e-3), atol=2e-6, rtol=1e-3)
        torch.testing.assert_close(weight.detach(), training.masters[0].detach().to(dtype), atol=0, rtol=0)
        moved[dtype] = weight.detach().float() - before
    assert float(moved[torch.bfloat16].mean()) == pytest.approx(float(moved[torch.float32].mean()), rel=0.02)

    # What this is for: without masters most weights stay where they were.
    alone = weights(torch.bfloat16)
    before = alone.detach().clone()
    optimiser = torch.optim.AdamW([alone], lr=1e-6, eps=1e-5, weight_decay=0.0)
    for _ in range(1000):
        alone.grad = torch.ones_like(alone)
        optimiser.step()
    assert float((alone.detach() != before).float().mean()) < 0.05


def test_a_float32_parameter_is_its_own_master_and_its_steps_are_plain_adamw() -> None:
    ours, plain = weights(), weights()
    training = Training([ours], 0.01, max_norm=1.0)
    assert training.masters[0] is ours
    taught(training, 1, STEPS)
    by_hand(plain, adamw(plain), 1, STEPS)
    assert torch.equal(ours, plain)


def test_in_units_of_its_own_a_parameter_takes_the_same_steps_whatever_it_is_written_in() -> None:
    # x and 1000 y with y = x / 1000 are the same numbers in other units, so are their losses and steps.
    plain, written = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5) / 1000)
    for parameter, unit in ((plain, 2.0), (written, 0.002)):
        training = Training([parameter], 0.01, max_norm=0.5, units=[unit])
        for number in range(1, 20):
            training.schedule(number, 20)
            value = parameter * (2.0 / unit)
            training.learn([term((value - torch.arange(5.0) * number).square().sum() * 1e-6)])
            training.step(Unfit())
    assert float((plain - 1).detach().abs().min()) > 0.01
    torch.testing.assert_close(1000 * written.detach(), plain.detach(), atol=1e-6, rtol=1e-5)


def test_what_training_takes_beside_its_parameters() -> None:
    for dtype in FORMATS:
        weight = weights(dtype)
        training = Training([weight], 0.01, max_norm=1.0)
        taught(training, 1, 1)
        moments = [t for t in training.optimiser.state[training.masters[0]].values() if t.numel() > 1]
        gradients = [torch.zeros_like(training.masters[0])]
        beside = [] if training.masters[0] is weight else [training.masters[0], torch.zeros_like(weight)]
        expected = sum(t.nbytes for t in [*moments, *gradients, *beside])
        assert training_bytes(weight.nbytes, dtype) == expected


# Micro-batches


@settings(max_examples=30, deadline=None)
@given(cuts=st.sets(st.integers(1, 15)), seed=st.integers(0, 1000))
def test_the_size_of_micro_batches_changes_nothing(cuts: set[int], seed: int) -> None:
    inputs = torch.randn((16, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ends = []
    for borders in ([0, 16], [0, *sorted(cuts), 16]):
        weight = nn.Parameter(torch.ones(5, dtype=torch.float64))
        training = Training([weight], 0.01, max_norm=0.1)
        for _ in range(3):
            for start, end in pairwise(borders):
                loss = (inputs[start:end] @ weight).square().mean()
                training.learn([term(loss, weight=0.5)], end - start, 16)
            training.step(Unfit())
        ends.append(weight.detach())
    torch.testing.assert_close(ends[1], ends[0], atol=1e-12, rtol=1e-12)


def test_gradients_of_bfloat16_micro_batches_are_summed_without_rounding() -> None:
    # 1 + 256 / 512 is a sum that bfloat16 cannot reach in steps of 1 / 512: it stays at 1.
    weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    training = Training([weight], 0.01, max_norm=1e9)
    for share in [1.0, *[1 / 512] * 256]:
        training.learn([term(weight.sum() * share)])
    assert training.masters[0].grad is not None
    assert training.masters[0].grad.tolist() == [1.5]


def test_what_a_batch_weighs_counts_after_its_gradient_was_limited() -> None:
    # Gradients of norm 8 are limited to 1: of a batch that weighs a quarter to 1 / 4, of one that weighs three to 3.
    weight = nn.Parameter(torch.zeros(4))
    training = Training([weight], 0.01, max_norm=1.0)
    seen: list[Tensor] = []

    def look() -> None:
        assert weight.grad is not None
        seen.append(weight.grad.clone())

    vars(training.optimiser)["step"] = look
    for share in (0.25, 3.0, 1.0):
        training.learn([term(4 * weight.sum())])
        training.step(Unfit(), share)
    assert [float(one.norm()) for one in seen] == pytest.approx([0.25, 3.0, 1.0])


# Terms


def test_terms_of_one_forward_go_back_together_and_before_the_next_forward_comes() -> None:
    events: list[str] = []
    weight = nn.Parameter(torch.tensor(2.0))

    def forward(name: str) -> Tensor:
        events.append(f"{name} forward")
        activation = weight * 3
        activation.register_hook(lambda _: events.append(f"{name} backward"))  # type: ignore[no-untyped-call]
        return activation

    shared: list[Tensor] = []

    def policy() -> Loss:
        shared.append(forward("policy"))
        return shared[0].square(), {"seen": shared[0].detach()}

    def bonus() -> Loss:
        return shared[0], {}

    def value() -> Loss:
        return forward("value"), {}

    training = Training([weight], 0.1, max_norm=1e9)
    terms = [Term("policy", 1.0, "policy", policy), Term("value", 0.1, "value", value)]
    found = training.learn([*terms, Term("bonus", 10.0, "policy", bonus)], part=1, whole=2)
    assert events == ["policy forward", "policy backward", "value forward", "value backward"]
    assert {name: float(number) for name, number in found.items()} == {
        "loss/policy_avg": 36,
        "seen": 6,
        "loss/bonus_avg": 6,
        "loss/value_avg": 6,
    }
    # d/dw of (9 w^2 + 10 * 3 w + 0.1 * 3 w) / 2 at 2
    assert weight.grad is not None
    assert float(weight.grad) == pytest.approx((18 * 2 + 30 + 0.3) / 2)


# Not finite


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_takes_no_step_and_leaves_nothing(dtype: torch.dtype, broken: float) -> None:
    ours, other = weights(dtype), weights(dtype)
    training, untroubled = (Training([w], 0.01, max_norm=1.0) for w in (ours, other))
    for one in (training, untroubled):
        taught(one, 1, 3)
    said = Unfit("lower the rate")
    training.learn([term(ours.sum() * broken)])
    with pytest.raises(Unfit) as raised:
        training.step(said)
    assert raised.value is said
    assert torch.equal(ours, other)
    for one in (training, untroubled):
        taught(one, 4, STEPS)
    assert torch.equal(training.masters[0], untroubled.masters[0])


# Checkpoints


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_restored_run_ends_as_one_that_never_stopped(dtype: torch.dtype) -> None:
    whole, stopped, resumed = (Training([weights(dtype)], 0.01, max_norm=1.0) for _ in range(3))
    taught(whole, 1, STEPS)
    taught(stopped, 1, 5)
    resumed.restore(stored(stopped.state()))
    assert torch.equal(resumed.parameters[0], stopped.parameters[0])
    taught(resumed, 6, STEPS)
    assert torch.equal(resumed.masters[0], whole.masters[0])
    assert torch.equal(resumed.parameters[0], whole.parameters[0])
    assert resumed.parameters[0].dtype == dtype


def test_a_state_of_the_time_before_this_loop_is_restored_to_the_bit() -> None:
    weight = weights()
    optimiser = adamw(weight)
    by_hand(weight, optimiser, 1, 5)
    old = stored({"parameters": [weight.detach()], "optimiser": optimiser.state_dict()})
    by_hand(weight, optimiser, 6, STEPS)
    training = Training([weights()], 0.01, max_norm=1.0)
    training.restore(old)
    taught(training, 6, STEPS)
    assert torch.equal(training.parameters[0], weight)


def test_a_state_without_masters_is_restored_to_what_it_held() -> None:
    weight = weights(torch.bfloat16)
    optimiser = adamw(weight)
    by_hand(weight, optimiser, 1, 5)
    training = Training([weights(torch.bfloat16)], 0.01, max_norm=1.0)
    training.restore(stored({"parameters": [weight.detach()], "optimiser": optimiser.state_dict()}))
    moments, held = training.optimiser.state[training.masters[0]], optimiser.state[weight]
    for name in ("exp_avg", "exp_avg_sq", "step"):
        assert moments[name].dtype == torch.float32
        assert torch.equal(moments[name], held[name].float())
    assert torch.equal(training.parameters[0], weight)
    assert torch.equal(training.masters[0], weight.float())


# Groups


def two_kinds(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((8, 8), (8, 8), (20,))]


def of_groups(parameters: list[nn.Parameter]) -> Training:
    matrices = Group(parameters[:2], 0.02, muon=True, decay=0.5)
    return Training(parameters, 1.0, 1e9, groups=[matrices, Group(parameters[2:], 0.01, decay=0.1, betas=(0.8, 0.95))])


def taught_all(training: Training, first: int, last: int) -> None:
    for number in range(first, last + 1):
        training.set(warm_up(number, STEPS))
        losses = [
            (p - torch.randn(p.shape, generator=torch.Generator().manual_seed(number))) for p in training.parameters
        ]
        training.learn([term(torch.stack([0.5 * loss.square().sum() for loss in losses]).sum())])
        training.step(Unfit())


def test_groups_move_as_torchs_own_optimisers_do() -> None:
    ours, theirs = two_kinds(), two_kinds()
    taught_all(of_groups(ours), 1, STEPS)
    adamw_ = torch.optim.AdamW(theirs[2:], lr=0.0, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.1)
    muon = Muon(theirs[:2], 0.0, decay=0.5)
    for number in range(1, STEPS + 1):
        for parameter in theirs:
            example_ = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.grad = parameter.detach() - example_
        adamw_.param_groups[0]["lr"] = 0.01 * warm_up(number, STEPS)
        muon.param_groups[0]["lr"] = 0.02 * warm_up(number, STEPS)
        adamw_.step()
        muon.step()
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", FORMATS)
def test_groups_go_on_from_a_checkpoint_to_the_bit(dtype: torch.dtype) -> None:
    whole, part = two_kinds(dtype), two_kinds(dtype)
    taught_all(of_groups(whole), 1, STEPS)
    first = of_groups(part)
    taught_all(first, 1, 5)
    state = stored(first.state())
    again = of_groups(two_kinds(dtype))
    again.restore(state)
    taught_all(again, 6, STEPS)
    assert all(torch.equal(one, two) for one, two in zip(whole, again.parameters, strict=True))
    assert all(p.dtype == dtype for p in again.parameters)


@given(st.lists(st.tuples(st.floats(1e-3, 2.0), st.integers(1, 50)), min_size=1, max_size=5))
def test_the_rate_to_go_below_is_the_mean_of_those_that_the_weights_have(of: list[tuple[float, int]]) -> None:
    """As each weight by itself has a peak: its unit times the rate."""
    parameters = [weights(count=size) for _, size in of]
    training = Training(parameters, 0.0005, max_norm=1.0, units=[unit for unit, _ in of])
    training.set(0.0005)
    groups = training.optimiser.param_groups
    each = [group["lr"] for group in groups for p in group["params"] for _ in range(p.numel())]
    said = training.lower("ppo.learning_rate")
    found = re.fullmatch(r"set ppo\.learning_rate, which is none and comes to (\S+) here, to less than that", said)
    assert found and float(found[1]) == pytest.approx(sum(each) / len(each), rel=0.06)
    assert Training(parameters, 0.0005, max_norm=1.0).lower("ppo.learning_rate") == "lower ppo.learning_rate"
