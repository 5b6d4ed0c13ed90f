"""The curves of PPO: what a rollout, and the optimisation after it, looked like.

Names are TRL's where it has one. Everything is averaged over kept tokens or whole responses, never over padding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean

import torch
from torch import Tensor

from manners.maths import masked_mean
from manners.models.generate import Generated
from manners.ppo.objective import explained_variance, kl_penalty
from manners.ppo.rollout import HEAVIEST, Rollout, draw_weights
from manners.text import Renderer
from manners.types import FinishReason

Metrics = dict[str, float]
"""A point of every curve."""
DEVIATION = "policy/first_ratio_max_dev"
"""Largest |ratio - 1|, in the first minibatch of an update, before its step."""
DEVIATION_99 = "policy/first_ratio_p99_dev"
"""Its 99th percentile."""
RETOKENISED = "response/retokenised"
"""Share of responses that are read in other tokens than were drawn."""


def rollout_metrics(rollout: Rollout, renderer: Renderer) -> Metrics:
    """What can be said of a rollout before anything is optimised on it."""
    keep = rollout.batch.keep
    draws = rollout.draws
    scores = rollout.scores
    lengths = keep.sum(dim=1).float()
    finished = [f is not FinishReason.LENGTH for f in draws.finish]
    responses = [r.response_ids for r in draws.rendered]
    correlation = torch.corrcoef(torch.stack([rollout.scored.mean.cpu(), lengths.cpu()]))[0, 1]
    return {
        "objective/kl": float(rollout.kl.sum(dim=1).mean()),
        "objective/kl_k3": float(kl_penalty(rollout.kl, torch.zeros_like(rollout.kl), keep, "k3").sum(dim=1).mean()),
        "objective/entropy": float(masked_mean(-draws.logprobs, keep) * lengths.mean()),
        "objective/non_score_reward": float((rollout.rewards.sum(dim=1) - scores).mean()),
        "objective/rlhf_reward": float(rollout.rewards.sum(dim=1).mean()),
        "objective/scores": float(scores.mean()),
        "policy/entropy_avg": float(masked_mean(-draws.logprobs, keep)),
        "policy/draw_weight_avg": float(masked_mean(draw_weights(rollout.drift), keep)),
        "policy/draw_weight_max": float(rollout.drift.exp()[keep].max()),
        "policy/draw_weight_cut": float(masked_mean((rollout.drift.exp() > HEAVIEST).float(), keep)),
        "val/explained_variance": explained_variance(rollout.values, rollout.returns, keep),
        "response/length": float(lengths.mean()),
        "response/finished": sum(finished) / len(finished),
        "response/distinct_2": distinct_2(responses),
        "response/most_common": most_common(responses),
        RETOKENISED: retokenised(draws, renderer),
        "reward/ensemble_std": float(rollout.scored.std.mean()),
        "reward/length_correlation": float(torch.nan_to_num(correlation)),
        **rollout.noted,
    }


def most_and_all(values: Tensor) -> tuple[float, float]:
    """99th percentile of values, and the largest; NaN where one of them is."""
    return float(values.sort().values[math.ceil(0.99 * len(values)) - 1]), float(values.max())


def distinct_2(responses: Sequence[tuple[int, ...]]) -> float:
    """Share of different token pairs among all: falls when the policy collapses."""
    pairs = [pair for ids in responses for pair in pairwise(ids)]
    return len(set(pairs)) / max(1, len(pairs))


def most_common(responses: Sequence[tuple[int, ...]]) -> float:
    """Share of the responses that are token for token alike: 1 where everyone gets the same answer."""
    return Counter(responses).most_common(1)[0][1] / len(responses)


def retokenised(draws: Generated, renderer: Renderer) -> float:
    """Share of responses whose text is read in other tokens than were drawn.

    A reward model learns from texts, and PPO scores the tokens that were drawn: there it may reward a spelling.
    """
    rows = zip(draws.rendered, draws.finish, strict=True)
    return sum(not renderer.reads_back(row.response_ids, finish) for row, finish in rows) / len(draws.finish)


@dataclass
class Passes:
    """What the terms of the objective looked like over an update: means over tokens, or over steps."""

    sums: Metrics = field(default_factory=dict)
    """Weighted by kept tokens."""
    tokens: float = 0.0
    first_deviations: list[Tensor] = field(default_factory=list)
    """|ratio - 1| of the tokens of the first minibatch, before its step, a micro-batch each."""
    steps: dict[str, list[float]] = field(default_factory=dict)
    """What is seen once a step."""

    def add(self, tokens: int, seen: Mapping[str, Tensor], first: bool) -> None:
        """Count a micro-batch in; `first` where it is of the first minibatch."""
        self.tokens += tokens
        for name, number in seen.items():
            if name != DEVIATION:
                self.sums[name] = self.sums.get(name, 0.0) + tokens * float(number)
            elif first:
                self.first_deviations.append(number)

    def add_step(self, seen: Mapping[str, Tensor]) -> None:
        """Count in what is seen once a step."""
        for name, number in seen.items():
            self.steps.setdefault(name, []).append(float(number))

    def metrics(self) -> Metrics:
        """The means, and how far the first ratios were from 1."""
        over_tokens = {name: total / max(self.tokens, 1.0) for name, total in self.sums.items()}
        over_steps = {name: mean(numbers) for name, numbers in self.steps.items()}
        first, largest = self.first_ratio()
        return over_tokens | over_steps | {DEVIATION_99: first, DEVIATION: largest}

    def first_ratio(self) -> tuple[float, float]:
        """99th percentile of |ratio - 1| in the first minibatch, before its step, and the largest."""
        return most_and_all(torch.cat(self.first_deviations))
