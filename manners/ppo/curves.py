"""The curves of PPO: what a rollout, and the optimisation after it, looked like.

Names are TRL's where it has one. Everything is averaged over kept tokens or whole responses, never over padding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean

import torch

from manners.maths import masked_mean
from manners.ppo.objective import PolicyStats, ValueStats, explained_variance
from manners.ppo.rollout import Rollout
from manners.types import FinishReason

Metrics = dict[str, float]
"""A point of every curve."""


def rollout_metrics(rollout: Rollout) -> Metrics:
    """What can be said of a rollout before anything is optimised on it."""
    keep, draws, scores = rollout.batch.keep, rollout.draws, rollout.scores
    lengths = keep.sum(dim=1).float()
    finished = [f is not FinishReason.LENGTH for f in draws.finish]
    responses = [r.response_ids for r in draws.rendered]
    correlation = torch.corrcoef(torch.stack([rollout.scored.mean.cpu(), lengths.cpu()]))[0, 1]
    return {
        "objective/kl": float(rollout.kl.sum(dim=1).mean()),
        "objective/entropy": float(masked_mean(-draws.logprobs, keep) * lengths.mean()),
        "objective/non_score_reward": float((rollout.rewards.sum(dim=1) - scores).mean()),
        "objective/rlhf_reward": float(rollout.rewards.sum(dim=1).mean()),
        "objective/scores": float(scores.mean()),
        "policy/entropy_avg": float(masked_mean(-draws.logprobs, keep)),
        "val/explained_variance": explained_variance(rollout.values, rollout.returns, keep),
        "response/length": float(lengths.mean()),
        "response/finished": sum(finished) / len(finished),
        "response/distinct_2": distinct_2(responses),
        "response/most_common": most_common(responses),
        "reward/ensemble_std": float(rollout.scored.std.mean()),
        "reward/length_correlation": float(torch.nan_to_num(correlation)),
    }


def distinct_2(responses: Sequence[tuple[int, ...]]) -> float:
    """Share of different token pairs among all: falls when the policy collapses."""
    pairs = [pair for ids in responses for pair in pairwise(ids)]
    return len(set(pairs)) / max(1, len(pairs))


def most_common(responses: Sequence[tuple[int, ...]]) -> float:
    """Share of the responses that are token for token alike: 1 where everyone gets the same answer."""
    return Counter(responses).most_common(1)[0][1] / len(responses)


@dataclass
class Passes:
    """Means over the minibatches of an update, weighted by kept tokens."""

    sums: Metrics = field(default_factory=dict)
    tokens: float = 0.0
    first_deviation: float = 0.0
    """Largest |ratio - 1| in the first minibatch, before its step."""
    prose: list[float] = field(default_factory=list)
    """Divergence from the initial model on plain text, a step each."""

    def add(self, tokens: int, losses: tuple[float, float], policy: PolicyStats, value: ValueStats) -> None:
        """Count a micro-batch in; `losses` are those of policy and value."""
        seen = {
            "loss/policy_avg": losses[0],
            "loss/value_avg": losses[1],
            "policy/approxkl_avg": float(policy.approxkl),
            "policy/clipfrac_avg": float(policy.clipfrac),
            "val/ratio": float(policy.ratio),
            "val/clipfrac_avg": float(value.clipfrac),
        }
        self.tokens += tokens
        for name, number in seen.items():
            self.sums[name] = self.sums.get(name, 0.0) + tokens * number

    def metrics(self) -> Metrics:
        """The means, and how far the first ratios were from 1."""
        means = {name: total / max(self.tokens, 1.0) for name, total in self.sums.items()}
        prose = {"loss/prose_avg": mean(self.prose)} if self.prose else {}
        return means | prose | {"policy/first_ratio_max_dev": self.first_deviation}
