"""Whom PPO serves where annotators want different things: all of them on average, the camp served worst, or between.

With s_g(x, y) the score of camp g, which is 0 on average on the start version's answers, J_g = E[s_g] is what a policy
has gained for that camp. PPO climbs

    (1 - w) sum_g share_g J_g + w softmin_g J_g,    softmin = -tau log (1/G sum_g exp(-J_g / tau)),

whose gradient is that of sum_g lambda_g J_g, lambda_g = (1 - w) share_g + w softmax(-J / tau)_g: the reward of an
answer is its score in each camp, weighed by lambda, which follows the gains from update to update. What a camp thinks
of a prompt, whatever the answer, is no part of it: camps are compared by gains, not answer by answer.
Source: Chakraborty et al. 2024, "MaxMin-RLHF", eq. 11; the soft minimum is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from manners.reward.ensemble import Camps, Scored

SOFTNESS = 0.1
"""tau, in units of the reward: camps whose gains differ by less are served alike."""
MEMORY = 0.7
"""Share of what was known of the gains that is still believed after another update."""


def gains(scored: Scored) -> list[float]:
    """Return the mean score of some answers in each camp; of none where annotators are not told apart."""
    return [] if scored.camps is None else (scored.mean + scored.camps).mean(dim=1).tolist()


def remembered(before: Sequence[float], now: Sequence[float]) -> list[float]:
    """Return what is known of the gains after one update more."""
    if not before:
        return list(now)
    return [MEMORY * was + (1 - MEMORY) * found for was, found in zip(before, now, strict=True)]


def weights(camps: Camps, known: Sequence[float], worst: float) -> Float[Tensor, " G"]:
    """Return lambda by what is known of the gains: nothing means that all are 0."""
    lacks = torch.zeros_like(camps.shares) if not known else -torch.tensor(known) / SOFTNESS
    return (1 - worst) * camps.shares + worst * lacks.softmax(dim=0)


def reward_of(scored: Scored, served: Float[Tensor, " G"] | None) -> Float[Tensor, " N"]:
    """Return the reward of answers: the mean over members, and what those who are served like more than all do."""
    return scored.mean + liked_more(scored, served)


def liked_more(scored: Scored, served: Float[Tensor, " G"] | None) -> Float[Tensor, " N"]:
    """Return by how much the camps that are served like answers more than all do: of all by their shares, nothing."""
    if served is None or scored.camps is None:
        return torch.zeros_like(scored.mean)
    return served.to(scored.camps.device) @ scored.camps
