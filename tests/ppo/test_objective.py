"""PPO's formulas against numbers worked out by hand, sums written from the definitions, and properties."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manners.ppo.objective import (
    adapt_coefficient,
    beside,
    explained_variance,
    gae,
    kl_penalty,
    policy_loss,
    shape_rewards,
    value_loss,
)

NAN = math.nan
RAGGED = torch.tensor([[True, True, True], [True, True, False]])
"""Two responses, of three tokens and of two."""


def table(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_what_the_other_answers_to_a_prompt_got_by_hand() -> None:
    one, two, three = (1, 2), (1,), (2,)
    scores = torch.tensor([1.0, 5.0, 3.0, 2.0, 8.0, 4.0])
    found = beside(scores, [one, two, one, three, one, two])
    assert found.tolist() == pytest.approx([5.5, 4.0, 4.5, 0.0, 2.0, 5.0])


def test_what_a_prompt_gets_by_itself_is_gone() -> None:
    # Exactly: whatever is added to every score of a prompt, the difference from the others stays.
    prompts = [(number // 4,) for number in range(16)]
    scores = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    offset = torch.tensor([10.0 * (number // 4) for number in range(16)], dtype=torch.float64)
    torch.testing.assert_close(scores - beside(scores, prompts), scores + offset - beside(scores + offset, prompts))


def test_kl_penalty_by_hand() -> None:
    # policy - reference: log 2, 0, -log 2 and log 4, then padding.
    policy = table((math.log(0.5), -1.0, math.log(0.1)), (math.log(0.8), -2.0, NAN))
    reference = table((math.log(0.25), -1.0, math.log(0.2)), (math.log(0.2), -2.0, NAN))
    k1 = kl_penalty(policy, reference, RAGGED, "k1")
    assert k1[0].tolist() == pytest.approx([math.log(2), 0, -math.log(2)])
    assert k1[1].tolist() == pytest.approx([math.log(4), 0, 0])
    # k3: the reference is half as probable: 1/2 - 1 + log 2; twice: 2 - 1 - log 2; a quarter: 1/4 - 1 + log 4.
    k3 = kl_penalty(policy, reference, RAGGED, "k3")
    assert k3[0].tolist() == pytest.approx([math.log(2) - 0.5, 0, 1 - math.log(2)])
    assert k3[1].tolist() == pytest.approx([math.log(4) - 0.75, 0, 0])


def pulls(logits: Tensor, reference: Tensor, estimator: Literal["k1", "k3"]) -> tuple[Tensor, Tensor]:
    """Gradients in the logits: of KL(policy || reference), and what its estimate pulls with as a penalty in the reward.

    The second is the policy gradient's expectation, the sum over tokens of p f grad log p with f held fixed.
    """
    logits = logits.clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    [exact] = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits, retain_graph=True)
    penalty = kl_penalty(
        logprobs.detach()[None], reference[None], torch.ones((1, len(logits)), dtype=torch.bool), estimator
    )
    [pull] = torch.autograd.grad((logprobs.exp().detach() * penalty[0] * logprobs).sum(), logits)
    return exact, pull


@pytest.mark.parametrize("seed", range(20))
def test_as_a_penalty_in_the_reward_k1_pulls_home_and_k3_does_not(seed: int) -> None:
    # k3 pulls with grad KL(policy || reference) - grad KL(reference || policy): alike to first order, so that little is
    # left of it near the reference, and that little is of second order: the same on both sides, away from it on one.
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(20, generator=generator, dtype=torch.float64).log_softmax(0)
    step = 0.01 * torch.randn(20, generator=generator, dtype=torch.float64)
    there, opposite = ([pulls(reference + side * step, reference, k) for k in ("k1", "k3")] for side in (1, -1))
    for (exact, k1), (_, k3) in (there, opposite):
        assert cosine(k1, exact) == pytest.approx(1)
        torch.testing.assert_close(k1, exact)
        assert k3.norm() < 0.05 * exact.norm()
    assert cosine(there[0][0], opposite[0][0]) < -0.99
    assert cosine(there[1][1], opposite[1][1]) > 0.99
    assert min(cosine(k3, exact) for (exact, _), (_, k3) in (there, opposite)) < 0


def test_k3_pushes_a_token_that_became_rarer_further_down() -> None:
    # One token of ten at 0.08 instead of 0.1: home is up. By hand, in its logit: -0.245 p (1 - p), and by k3 +0.027.
    reference = torch.full((10,), 0.1, dtype=torch.float64).log()
    logits = torch.full((10,), 0.92 / 9, dtype=torch.float64).log()
    logits[0] = math.log(0.08)
    exact, pull = pulls(logits, reference, "k3")
    slope = 0.08 * 0.92
    assert float(exact[0]) == pytest.approx(slope * (math.log(0.8) - math.log(0.92 / 0.9)))
    assert float(pull[0]) == pytest.approx(float(exact[0]) - slope * (0.9 / 0.92 - 0.1 / 0.08))
    assert cosine(pull, exact) == pytest.approx(-1)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_both_estimators_are_unbiased(estimator: Literal["k1", "k3"]) -> None:
    # The mean over the policy's own tokens is the divergence itself, summed here over a vocabulary of three.
    policy, reference = table((0.7, 0.2, 0.1)), table((0.3, 0.3, 0.4))
    kl = kl_penalty(policy.log(), reference.log(), torch.ones((1, 3), dtype=torch.bool), estimator)
    exact = 0.7 * math.log(0.7 / 0.3) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.4)
    assert float((policy * kl).sum()) == pytest.approx(exact)


def test_kl_costs_and_the_score_comes_at_the_last_kept_token() -> None:
    kl = table((1.0, -2.0, 3.0), (4.0, 5.0, NAN))
    rewards = shape_rewards(torch.tensor([10.0, 20.0]).double(), kl, RAGGED, 0.1)
    assert rewards[0].tolist() == pytest.approx([-0.1, 0.2, -0.3 + 10])
    assert rewards[1].tolist() == pytest.approx([-0.4, -0.5 + 20, 0])


def test_the_score_of_a_single_token_comes_there() -> None:
    keep = torch.tensor([[True, False, False]])
    assert shape_rewards(torch.tensor([5.0]), torch.zeros((1, 3)), keep, 0.1).tolist() == [[5, 0, 0]]


def test_a_response_of_nothing_has_no_place_for_a_score() -> None:
    with pytest.raises(ValueError, match="without a kept token"):
        shape_rewards(torch.zeros(2), torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]), 0.1)


def test_the_textbook_example() -> None:
    # One token each: score 0.7 against a baseline of 0.8, and 0.5 against 0.3.
    keep = torch.ones((2, 1), dtype=torch.bool)
    rewards = shape_rewards(torch.tensor([0.7, 0.5]).double(), table((0.0,), (0.0,)), keep, 0.05)
    advantages, returns = gae(rewards, table((0.8,), (0.3,)), keep, gamma=1.0, lam=0.95)
    assert advantages.flatten().tolist() == pytest.approx([-0.1, 0.2])
    assert returns.flatten().tolist() == pytest.approx([0.7, 0.5])


def test_gae_by_hand() -> None:
    # gamma = lam = 1/2. Row 0: d = (1 + 2/2 - 4, 0 + 6/2 - 2, 8 - 6) = (-2, 1, 2); A = (-2 + 1.5/4, 1 + 2/4, 2).
    # Row 1 ends after two tokens: d = (0 + 2/2 - 1, 4 - 2) = (0, 2); A1 = 2, A0 = 0 + 2/4.
    rewards = table((1, 0, 8), (0, 4, NAN))
    values = table((4, 2, 6), (1, 2, NAN))
    advantages, returns = gae(rewards, values, RAGGED, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[-1.625, 1.5, 2], [0.5, 2, 0]]
    assert returns.tolist() == [[2.375, 3.5, 8], [1.5, 4, 0]]


def gae_by_definition(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = sum over l of (gamma lam)^l (r_{t+l} + gamma V_{t+l+1} - V_{t+l}), with V = 0 past the end."""
    following = [*values[1:], 0.0]
    return [
        sum((gamma * lam) ** (u - t) * (rewards[u] + gamma * following[u] - values[u]) for u in range(t, len(rewards)))
        for t in range(len(rewards))
    ]


@settings(deadline=None)
@given(
    rows=st.lists(
        st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=6), min_size=1, max_size=4
    ),
    gamma=st.sampled_from([1.0, 0.95]),
    lam=st.sampled_from([1.0, 0.95]),
    before=st.integers(0, 2),
    after=st.integers(0, 2),
)
def test_gae_is_the_sum_of_its_definition(
    rows: list[list[tuple[float, float]]], gamma: float, lam: float, before: int, after: int
) -> None:
    width = before + max(map(len, rows)) + after
    rewards, values = (torch.full((len(rows), width), NAN, dtype=torch.float64) for _ in range(2))
    keep = torch.zeros((len(rows), width), dtype=torch.bool)
    expected = torch.zeros((len(rows), width), dtype=torch.float64)
    for index, row in enumerate(rows):
        here = slice(before, before + len(row))
        rewards[index, here] = torch.tensor([r for r, _ in row], dtype=torch.float64)
        values[index, here] = torch.tensor([v for _, v in row], dtype=torch.float64)
        keep[index, here] = True
        by_definition = gae_by_definition([r for r, _ in row], [v for _, v in row], gamma, lam)
        expected[index, here] = torch.tensor(by_definition, dtype=torch.float64)
    advantages, returns = gae(rewards, values, keep, gamma, lam)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns[keep], (expected + values)[keep])
    assert not returns[~keep].any()


def test_with_lam_1_returns_are_the_rewards_to_come() -> None:
    rewards = table((1, 2, 3), (4, 5, 0))
    _, returns = gae(rewards, table((7, -8, 9), (1, 0, 0)), RAGGED, gamma=1.0, lam=1.0)
    assert returns.tolist() == [[6, 5, 3], [9, 5, 0]]


def test_a_gap_in_a_response_is_refused() -> None:
    with pytest.raises(ValueError, match="gap"):
        gae(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([[True, False, True]]), 1.0, 0.95)


def policy_gradient(ratio: float, advantage: float, clip: float = 0.2) -> float:
    """Derivative of the policy loss of one token by its log-probability."""
    logprob = torch.tensor([[math.log(0.4) + math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[math.log(0.4)]], dtype=torch.float64)
    loss, _ = policy_loss(logprob, old, table((advantage,)), torch.ones((1, 1), dtype=torch.bool), clip)
    torch.autograd.backward(loss)
    assert logprob.grad is not None
    return logprob.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [
        (1.0, 2.0, -2.0),  # descent makes a good token more probable
        (1.0, -2.0, 2.0),  # and a bad one less
        (1.5, 1.0, 0.0),  # good and already more probable: earns no more
        (1.5, -1.0, 1.5),  # bad and more probable: must come back, however far
        (0.5, -1.0, 0.0),  # bad and already less probable
        (0.5, 1.0, -0.5),  # good and less probable: must come back
    ],
)
def test_the_clip_stops_the_gradient_on_the_side_that_earns(ratio: float, advantage: float, gradient: float) -> None:
    assert policy_gradient(ratio, advantage) == pytest.approx(gradient)


def test_policy_loss_by_hand() -> None:
    # Ratios 1.5, 1 and 0.5 for advantages 1, 2 and -1; then 1.1 and 1.5 for 10 and -2; padding counts for nothing.
    ratios = table((1.5, 1.0, 0.5), (1.1, 1.5, NAN))
    advantages = table((1, 2, -1), (10, -2, NAN))
    loss, stats = policy_loss(ratios.log(), torch.zeros_like(ratios), advantages, RAGGED, 0.2)
    # max(-A rho, -A clamp(rho)): -1.2, -2, max(0.5, 0.8), -11, 3.
    assert loss.item() == pytest.approx((-1.2 - 2 + 0.8 - 11 + 3) / 5)
    assert stats.clipfrac.item() == pytest.approx(2 / 5)
    assert stats.ratio.item() == pytest.approx((1.5 + 1 + 0.5 + 1.1 + 1.5) / 5)
    assert stats.deviations.tolist() == pytest.approx([0.5, 0.0, 0.5, 0.1, 0.5])
    squares = [math.log(r) ** 2 for r in (1.5, 1.0, 0.5, 1.1, 1.5)]
    assert stats.approxkl.item() == pytest.approx(sum(squares) / 5 / 2)


def test_value_loss_by_hand() -> None:
    # Moves of 0.1, 1 towards the return, and 1 away from it; then 0 and 0.5 past the return; clip 0.2.
    values = table((1.1, 2.0, 4.0), (0.0, 1.5, NAN))
    old = table((1.0, 1.0, 3.0), (0.0, 1.0, NAN))
    returns = table((2, 3, 2), (1, 1.3, NAN))
    loss, stats = value_loss(values, old, returns, RAGGED, 0.2)
    # 0.9^2; the clipped value 1.2 is farther off: 1.8^2; the plain one is: 2^2; 1^2; and |1.5 - 1.3| > |1.2 - 1.3|.
    assert loss.item() == pytest.approx((0.81 + 3.24 + 4 + 1 + 0.04) / 5 / 2)
    assert stats.clipfrac.item() == pytest.approx(1 / 5)
    assert stats.mean.item() == pytest.approx((1.1 + 2 + 4 + 0 + 1.5) / 5)


@pytest.mark.parametrize(("value", "gradient"), [(1.1, -0.9), (1.5, 0.0), (0.5, -1.5)])
def test_the_value_clip_stops_only_what_runs_ahead_to_the_return(value: float, gradient: float) -> None:
    # Old value 1, return 2: beyond 1.2 nothing more is earned; away from the return the pull back stays.
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    loss, _ = value_loss(values, table((1.0,)), table((2.0,)), torch.ones((1, 1), dtype=torch.bool), 0.2)
    torch.autograd.backward(loss)
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(gradient)


def test_garbage_in_padding_reaches_no_gradient() -> None:
    new = table((-1.0, -2.0, -0.5), (-1.0, -0.3, NAN)).requires_grad_()
    garbage = table((0.5, 1.0, -1.0), (2.0, 0.0, NAN))
    policy, _ = policy_loss(new, garbage.clone() - 1, garbage, RAGGED, 0.2)
    value, _ = value_loss(new, garbage.clone() - 1, garbage, RAGGED, 0.2)
    torch.autograd.backward(policy + value)
    assert new.grad is not None
    assert bool(new.grad.isfinite().all())
    assert new.grad[1, 2] == 0


numbers = st.floats(-2, 2, allow_subnormal=False)


@settings(deadline=None)
@given(
    rows=st.lists(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=4), min_size=1, max_size=4),
    padding=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_neither_padding_nor_order_changes_a_loss(
    rows: list[list[tuple[float, float, float]]], padding: int, seed: int
) -> None:
    def losses(rows: list[list[tuple[float, float, float]]], padding: int) -> list[float]:
        width = max(map(len, rows)) + padding
        cells = torch.full((3, len(rows), width), NAN, dtype=torch.float64)
        keep = torch.zeros((len(rows), width), dtype=torch.bool)
        for index, row in enumerate(rows):
            cells[:, index, : len(row)] = torch.tensor(row, dtype=torch.float64).T
            keep[index, : len(row)] = True
        new, old, target = cells
        policy, stats = policy_loss(new, old, target, keep, 0.2)
        value, _ = value_loss(new, old, target, keep, 0.2)
        return [float(policy), float(value), float(stats.clipfrac), float(stats.approxkl)]

    shuffled = [rows[i] for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()]
    assert losses(shuffled, padding) == pytest.approx(losses(rows, 0))


def test_a_loss_is_a_mean_over_tokens_and_not_over_responses() -> None:
    # Three tokens of loss -1 and one of loss -5: the mean over responses would be -3.
    keep = torch.tensor([[True, True, True], [True, False, False]])
    zeros = torch.zeros((2, 3), dtype=torch.float64)
    loss, _ = policy_loss(zeros, zeros, table((1, 1, 1), (5, NAN, NAN)), keep, 0.2)
    assert loss.item() == pytest.approx(-2.0)


def test_explained_variance_by_hand() -> None:
    returns = table((1, 2, 3), (4, 5, NAN))
    assert explained_variance(returns, returns, RAGGED) == 1
    assert explained_variance(torch.zeros_like(returns), returns, RAGGED) == 0
    assert explained_variance(-returns, returns, RAGGED) == pytest.approx(-3)  # errors of 2 R: 1 - 4
    assert explained_variance(-returns / 10, returns / 10, RAGGED) == pytest.approx(-3)  # however small they are
    assert explained_variance(returns, torch.ones_like(returns), RAGGED) == 0  # nothing to explain


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),  # on target
        (6.6, 1 + 0.1 * 64 / 1000),  # 10 % over
        (60.0, 1 + 0.2 * 64 / 1000),  # far over: clamped
        (0.0, 1 - 0.2 * 64 / 1000),  # far under: clamped
    ],
)
def test_the_coefficient_follows_the_kl(kl: float, factor: float) -> None:
    assert adapt_coefficient(0.5, kl, target=6.0, episodes=64, horizon=1000) == pytest.approx(0.5 * factor)


@pytest.mark.parametrize("episodes", [1000, 5000, 64_000])
def test_a_batch_longer_than_the_horizon_moves_the_coefficient_by_a_fifth_at_most(episodes: int) -> None:
    # The plain formula gives 0.5 (1 - 0.2 * 5) = 0 at five horizons, and less than that beyond.
    assert adapt_coefficient(0.5, 0.0, 6.0, episodes, horizon=1000) == pytest.approx(0.4)
    assert adapt_coefficient(0.5, 60.0, 6.0, episodes, horizon=1000) == pytest.approx(0.6)
