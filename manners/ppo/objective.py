"""The formulas of PPO, as pure functions: tensors in, tensors and statistics out.

Axes: B sequences, T response tokens. Masks are called `keep`: bool, True = counts; rows have lengths of their own.
Every loss is a mean over kept tokens. Rewards, values and advantages are in reward units, KL in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from manners.maths import KLEstimator, kl_per_token, masked_mean


def kl_penalty(
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    keep: Bool[Tensor, "B T"],
    estimator: KLEstimator,
) -> Float[Tensor, "B T"]:
    """Estimate, per drawn token, of KL(policy || reference), in nats; 0 where not kept. See `maths.kl_per_token`.

    In the reward it is k1. With weights f on the drawn tokens the policy's gradient is E[f grad log p]: for k1 that of
    KL(policy || reference), for k3 that of KL(policy || reference) - KL(reference || policy), which vanishes to first
    order near the reference and on one side of it points away. k3 is a metric.
    """
    kl = kl_per_token(logprobs, ref_logprobs, estimator)
    return torch.where(keep, kl, torch.zeros_like(kl))


def shape_rewards(
    scores: Float[Tensor, " B"], kl: Float[Tensor, "B T"], keep: Bool[Tensor, "B T"], coefficient: float
) -> Float[Tensor, "B T"]:
    """Reward per token: -coefficient * kl_t, and the score of the whole response at its last kept token.

    Source: Ziegler et al. 2019, eq. 2; Stiennon et al. 2020, section 3.4. Differs from implementations that add the
    score one past the end: the last kept token is the end-of-turn token, or the last one before the length limit.
    Raises ValueError where a row keeps nothing.
    """
    if not bool(keep.any(dim=1).all()):
        raise ValueError("a response without a kept token has no place for its score")
    rewards = torch.where(keep, -coefficient * kl, torch.zeros_like(kl))
    columns = torch.arange(keep.shape[1], device=keep.device)
    last = torch.where(keep, columns, -1).max(dim=1).values
    at_last = columns == last.unsqueeze(1)
    return rewards + torch.where(at_last, scores.unsqueeze(1), torch.zeros_like(rewards))


def beside(scores: Float[Tensor, " B"], prompts: Sequence[tuple[int, ...]]) -> Float[Tensor, " B"]:
    """Mean over the other responses to the same prompt; 0 where there is none.

    A baseline that does not depend on the response: it takes the differences between prompts out of the advantages, and
    leaves the expectation of the gradient as it is. Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline
    for free!"; Ahmadian et al. 2024 (RLOO), eq. 7.
    """
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    group = torch.tensor([places[prompt] for prompt in prompts], device=scores.device)
    counts = torch.bincount(group)[group]
    sums = torch.zeros(len(places), dtype=scores.dtype, device=scores.device).index_add(0, group, scores)[group]
    return (sums - scores) / (counts - 1).clamp(min=1)  # a sum of one score less that score is 0 exactly


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    keep: Bool[Tensor, "B T"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantages against the learned baseline, and value targets; not whitened; 0 where not kept.

    A_t = d_t + gamma lam A_{t+1} with d_t = r_t + gamma V_{t+1} - V_t and V = 0 past a row's last kept token;
    returns R_t = A_t + V_t. Source: Schulman et al. 2015, eq. 16. Raises ValueError if `keep` has a gap inside a row.
    """
    starts = keep[:, 1:] & ~keep[:, :-1]
    if bool((starts.sum(dim=1) + keep[:, 0]).gt(1).any()):
        raise ValueError("`keep` has a gap inside a row: a response is one run of tokens")
    values = torch.where(keep, values, torch.zeros_like(values))
    rewards = torch.where(keep, rewards, torch.zeros_like(rewards))
    advantages = torch.zeros_like(rewards)
    advantage = next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(keep[:, t], delta + gamma * lam * advantage, torch.zeros_like(advantage))
        advantages[:, t] = advantage
        next_value = values[:, t]
    return advantages, advantages + values


@dataclass(frozen=True, slots=True)
class PolicyStats:
    """What a policy loss looked like, over kept tokens."""

    clipfrac: Tensor
    """Share of tokens at which the clipped term is the one that counts."""
    approxkl: Tensor
    """mean((new - old)^2) / 2, in nats (k2)."""
    ratio: Tensor
    """Mean of new probability / old probability."""
    deviations: Tensor
    """|ratio - 1| of each kept token."""


def policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    keep: Bool[Tensor, "B T"],
    clip: float,
) -> tuple[Float[Tensor, ""], PolicyStats]:
    """Clipped surrogate: mean over kept tokens of max(-A rho, -A clamp(rho, 1 - clip, 1 + clip)), rho = new / old.

    Source: Schulman et al. 2017, eq. 7.
    """
    difference = torch.where(keep, logprobs - old_logprobs, torch.zeros_like(logprobs))
    advantages = torch.where(keep, advantages, torch.zeros_like(advantages))
    ratio = difference.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = masked_mean(torch.maximum(plain, clipped), keep)
    with torch.no_grad():
        stats = PolicyStats(
            clipfrac=masked_mean((clipped > plain).float(), keep),
            approxkl=0.5 * masked_mean(difference**2, keep),
            ratio=masked_mean(ratio, keep),
            deviations=(ratio - 1).abs()[keep],
        )
    return loss, stats


@dataclass(frozen=True, slots=True)
class ValueStats:
    """What a value loss looked like, over kept tokens."""

    clipfrac: Tensor
    """Share of tokens at which the clipped error is the one that counts."""
    mean: Tensor
    """Mean predicted value, in reward units."""


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    keep: Bool[Tensor, "B T"],
    clip: float,
) -> tuple[Float[Tensor, ""], ValueStats]:
    """Half the mean over kept tokens of max((V - R)^2, (clamp(V, V_old - clip, V_old + clip) - R)^2).

    Source: Schulman et al. 2017's released code; Ziegler et al. 2019. The clip is in reward units.
    """
    values, old_values, returns = (torch.where(keep, x, torch.zeros_like(x)) for x in (values, old_values, returns))
    near = old_values + (values - old_values).clamp(-clip, clip)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    loss = 0.5 * masked_mean(torch.maximum(plain, clipped), keep)
    with torch.no_grad():
        stats = ValueStats(masked_mean((clipped > plain).float(), keep), masked_mean(values, keep))
    return loss, stats


def explained_variance(values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], keep: Bool[Tensor, "B T"]) -> float:
    """1 - Var(R - V) / Var(R) over kept tokens: 1 is perfect, 0 no better than a constant, below 0 worse."""
    truth, error = returns[keep], (returns - values)[keep]
    variance = float(truth.var())
    return 1 - float(error.var()) / variance if variance > 0 else 0.0


def adapt_coefficient(coefficient: float, kl: float, target: float, episodes: int, horizon: int) -> float:
    """Move the KL coefficient towards a target KL (nats per response): c (1 + e min(1, n / horizon)).

    e = clamp(kl / target - 1, -0.2, 0.2), n episodes since the last change. Source: Ziegler et al. 2019, section 2.2.
    Differs in the minimum: with n of five horizons their factor comes to 0, and c would never move again.
    """
    error = min(0.2, max(-0.2, kl / target - 1))
    return coefficient * (1 + error * min(1.0, episodes / horizon))
