"""Proximal policy optimisation with a learned baseline and a KL penalty against the initial model, on one page."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from manners.maths import masked_mean
from manners.metrics import RunLog
from manners.models.branches import Branch, ScalarBranch, scalar_head, set_trainable
from manners.models.pretrained import Pretrained
from manners.models.trunk import States
from manners.ppo import guard
from manners.ppo.objective import adapt_coefficient, explained_variance, policy_loss, value_loss
from manners.ppo.rollout import Roles, Rollout, ValueFunction, collect, micro_batches, sliced
from manners.progress import steps
from manners.reward.ensemble import RewardModel
from manners.settings import PPOSettings, SampleSettings
from manners.text import Batch
from manners.types import FinishReason


@dataclass(frozen=True)
class PPOResult:
    """The best policy of a run, by the validation measure, and how the run went."""

    policy: Branch
    best_update: int
    episodes: int
    optimizer_steps: int
    kl: float
    """Of the best policy on the validation prompts, in nats per response."""
    seconds: float
    stopped: str | None
    """Why the run ended early, or None."""


@dataclass(frozen=True)
class _Validation:
    """A policy on prompts that nothing is trained on."""

    measure: float
    """min over members of their mean score, less the cut-off penalty, less coefficient * KL."""
    kl: float


def train(
    settings: PPOSettings,
    sample: SampleSettings,
    seed: int,
    pretrained: Pretrained,
    reward: RewardModel,
    prompts: Sequence[tuple[int, ...]],
    validation: Sequence[tuple[int, ...]],
    log: RunLog,
) -> PPOResult:
    """Fine-tune the policy branch against the reward model; return the version that did best on validation prompts.

    Best is measured pessimistically, and not by the optimised reward: by the ensemble member that likes the policy
    least, on prompts that are not trained on, less the KL that it cost. A run that is stopped, by its KL or by a number
    that is not finite, returns its best version so far. Raises NotFinite when that is still the initial model, and
    MannersError when a start-up check fails.
    Source: Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020.
    """
    begin = time.monotonic()
    generator, order = torch.Generator().manual_seed(seed), random.Random(seed)
    reference, policy = Branch(pretrained.trunk, trainable=False), Branch(pretrained.trunk, trainable=True)
    value_parts, value = _value_function(settings, pretrained, policy, reward)
    roles = Roles(policy, reference, value, reward, pretrained)
    parameters = set_trainable([policy, *value_parts])
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, eps=1e-5, weight_decay=0.0)
    coefficient, optimizer_steps, episodes, stopped = settings.kl_coefficient, 0, 0, None
    validation = validation[: settings.validation_prompts]

    best = _validate(roles, validation, settings, sample, seed)
    log.write(0, {"validate/measure": best.measure, "validate/kl": best.kl})
    best_update, best_tensors = 0, {name: t.clone() for name, t in policy.own_tensors().items()}
    queue: list[tuple[int, ...]] = []
    try:
        with steps("PPO", settings.updates * (sample.max_new_tokens + settings.epochs * settings.batch)) as advance:
            for update in range(1, settings.updates + 1):
                # 1.-3. Responses, scores, KL penalty, advantages.
                started = time.monotonic()
                chosen, queue = _next_prompts(prompts, queue, settings.batch, order)
                rollout = collect(roles, chosen, settings, sample, coefficient, generator, partial(advance, 1))
                guard.check_scores(rollout, update)
                checks = guard.check_first_rollout(rollout, roles, sample.temperature) if update == 1 else {}
                rolled_out = time.monotonic()
                kl = float(rollout.kl.sum(dim=1).mean())
                stopped = guard.stop_reason(kl, settings.kl_stop)
                if stopped is not None:
                    break
                # 4. Several passes over the batch, in random minibatches.
                rate = _learning_rate(settings, update)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                stats = _Stats()
                for rows in _minibatches(settings, generator):
                    _step(settings, sample, roles, rollout, rows, optimiser, parameters, stats, update)
                    optimizer_steps += 1
                    advance(len(rows))
                episodes += settings.batch
                # 5. Adaptive coefficient, if a target is set; curves; the best version so far.
                if settings.kl_target is not None:
                    coefficient = adapt_coefficient(
                        coefficient, kl, settings.kl_target, settings.batch, settings.kl_horizon
                    )
                metrics = _metrics(rollout, stats) | checks | {"objective/kl_coefficient": coefficient, "lr": rate}
                metrics |= {"time/rollout": rolled_out - started, "time/optimise": time.monotonic() - rolled_out}
                metrics |= {"episode": episodes, "optimizer_steps": optimizer_steps}
                if update % settings.validate_every == 0 or update == settings.updates:
                    found = _validate(roles, validation, settings, sample, seed)
                    metrics |= {"validate/measure": found.measure, "validate/kl": found.kl}
                    if found.measure > best.measure:
                        best, best_update = found, update
                        best_tensors = {name: t.clone() for name, t in policy.own_tensors().items()}
                log.write(update, metrics)
    except guard.NotFinite as error:
        if best_update == 0:
            raise
        stopped = str(error)
    policy.load_tensors(best_tensors)
    policy.requires_grad_(False)
    return PPOResult(policy, best_update, episodes, optimizer_steps, best.kl, time.monotonic() - begin, stopped)


def _value_function(
    settings: PPOSettings, pretrained: Pretrained, policy: Branch, reward: RewardModel
) -> tuple[list[nn.Module], ValueFunction]:
    """Make the baseline: a zero head on the policy's branch, or a branch of its own, started from a reward member."""
    if settings.value == "shared":
        head = scalar_head(pretrained.trunk, None)

        def shared(_: States, hidden: Float[Tensor, "B T1 D"], __: Batch) -> Float[Tensor, "B T"]:
            values: Tensor = head(hidden[:, :-1]).squeeze(-1).float()
            return values

        return [head], shared
    branch = ScalarBranch(pretrained.trunk, None)
    branch.load_tensors(reward.members[0].own_tensors())
    with torch.no_grad():
        branch.scalar.weight.div_(reward.scale)

    def separate(states: States, _: Float[Tensor, "B T1 D"], batch: Batch) -> Float[Tensor, "B T"]:
        return branch.values(states, batch) - reward.shifts[0] / reward.scale

    return [branch], separate


def _next_prompts(
    prompts: Sequence[tuple[int, ...]], queue: list[tuple[int, ...]], count: int, order: random.Random
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Take the next `count` prompts of an endless shuffled pass over all of them; return them and what is left."""
    while len(queue) < count:
        queue = queue + order.sample(list(prompts), len(prompts))
    return queue[:count], queue[count:]


def _learning_rate(settings: PPOSettings, update: int) -> float:
    """Linear warm-up over the first tenth of the updates, then linearly to zero."""
    warm = max(1, settings.updates // 10)
    falling = (settings.updates - update + 1) / max(1, settings.updates - warm + 1)
    return settings.learning_rate * min(update / warm, falling, 1.0)


def _minibatches(settings: PPOSettings, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield the episodes of each optimiser step of an update: every pass takes all of them in a new order."""
    for _ in range(settings.epochs):
        shuffled = torch.randperm(settings.batch, generator=generator).tolist()
        for start in range(0, settings.batch, settings.minibatch):
            yield shuffled[start : start + settings.minibatch]


class _Stats:
    """Means over the minibatches of an update, weighted by kept tokens."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.tokens = 0.0
        self.first_deviation: float | None = None

    def add(self, tokens: int, **values: float) -> None:
        self.tokens += tokens
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + tokens * value

    def mean(self, name: str) -> float:
        return self.sums.get(name, 0.0) / max(self.tokens, 1.0)


def _step(
    settings: PPOSettings,
    sample: SampleSettings,
    roles: Roles,
    rollout: Rollout,
    rows: list[int],
    optimiser: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    stats: _Stats,
    update: int,
) -> None:
    """Take one optimiser step on a minibatch; raises NotFinite, and takes none, if its gradient is not finite.

    Each micro-batch's loss is weighted by its share of the minibatch's kept tokens, so their size changes nothing.
    """
    total = int(rollout.batch.keep[rows].sum())
    for micro in micro_batches(rollout.batch, rows):
        states, batch = sliced(rollout.states, rollout.batch, micro)
        keep, width = batch.keep, batch.keep.shape[1]
        hidden = roles.policy.hidden(states, batch)
        logprobs = roles.policy.logprobs(hidden, batch, sample.temperature)
        old = rollout.draws.logprobs[micro, :width]
        surrogate, policy_stats = policy_loss(logprobs, old, rollout.advantages[micro, :width], keep, settings.clip)
        values = roles.value(states, hidden, batch)
        old_values, returns = rollout.values[micro, :width], rollout.returns[micro, :width]
        error, value_stats = value_loss(values, old_values, returns, keep, settings.value_clip)
        tokens = int(keep.sum())
        torch.autograd.backward((surrogate + settings.value_coefficient * error) * (tokens / total))
        if stats.first_deviation is None:
            stats.first_deviation = float(policy_stats.ratio_max_deviation)
        stats.add(
            tokens,
            policy_loss=float(surrogate.detach()),
            value_loss=float(error.detach()),
            clipfrac=float(policy_stats.clipfrac),
            approxkl=float(policy_stats.approxkl),
            ratio=float(policy_stats.ratio),
            value_clipfrac=float(value_stats.clipfrac),
        )
    norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
    if not torch.isfinite(norm):
        raise guard.NotFinite(
            f"the loss or its gradient is not finite at update {update}, episodes {sorted(rows)[:8]} of the batch;"
            " lower ppo.learning_rate"
        )
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def _validate(
    roles: Roles,
    prompts: Sequence[tuple[int, ...]],
    settings: PPOSettings,
    sample: SampleSettings,
    seed: int,
) -> _Validation:
    """Measure a policy on the validation prompts, always with the same random numbers."""
    generator = torch.Generator().manual_seed(seed + 1)
    rollout = collect(roles, prompts, settings, sample, settings.kl_coefficient, generator)
    kl = float(rollout.kl.sum(dim=1).mean())
    cut_off = float((rollout.scored.mean - rollout.scores).mean())
    pessimistic = float(rollout.scored.members.mean(dim=1).min())
    return _Validation(pessimistic - cut_off - settings.kl_coefficient * kl, kl)


def _metrics(rollout: Rollout, stats: _Stats) -> dict[str, float]:
    """Curves of an update, under TRL's names where it has one, averaged over kept tokens only."""
    keep, draws, scores = rollout.batch.keep, rollout.draws, rollout.scores
    lengths = keep.sum(dim=1).float()
    finished = [f is not FinishReason.LENGTH for f in draws.finish]
    correlation = torch.corrcoef(torch.stack([rollout.scored.mean.cpu(), lengths.cpu()]))[0, 1]
    return {
        "objective/kl": float(rollout.kl.sum(dim=1).mean()),
        "objective/entropy": float(masked_mean(-draws.logprobs, keep) * lengths.mean()),
        "objective/non_score_reward": float((rollout.rewards.sum(dim=1) - scores).mean()),
        "objective/rlhf_reward": float(rollout.rewards.sum(dim=1).mean()),
        "objective/scores": float(scores.mean()),
        "policy/approxkl_avg": stats.mean("approxkl"),
        "policy/clipfrac_avg": stats.mean("clipfrac"),
        "policy/entropy_avg": float(masked_mean(-draws.logprobs, keep)),
        "policy/first_ratio_max_dev": stats.first_deviation or 0.0,
        "loss/policy_avg": stats.mean("policy_loss"),
        "loss/value_avg": stats.mean("value_loss"),
        "val/clipfrac_avg": stats.mean("value_clipfrac"),
        "val/ratio": stats.mean("ratio"),
        "val/explained_variance": explained_variance(rollout.values, rollout.returns, keep),
        "response/length": float(lengths.mean()),
        "response/finished": sum(finished) / len(finished),
        "response/distinct_2": _distinct_2([r.response_ids for r in draws.rendered]),
        "reward/ensemble_std": float(rollout.scored.std.mean()),
        "reward/length_correlation": float(torch.nan_to_num(correlation)),
    }


def _distinct_2(responses: Sequence[tuple[int, ...]]) -> float:
    """Share of different token pairs among all: falls when the policy collapses."""
    pairs = [pair for ids in responses for pair in pairwise(ids)]
    return len(set(pairs)) / max(1, len(pairs))
