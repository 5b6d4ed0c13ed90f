"""One batch of experience: responses drawn, scored and turned into advantages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from manners import ranks
from manners.maths import whiten
from manners.models.branches import Branch
from manners.models.compute import bucket_tokens
from manners.models.generate import Decoding, Generated, generate, joined
from manners.models.pretrained import Pretrained
from manners.models.trunk import States
from manners.ppo.camps import reward_of
from manners.ppo.course import Roles, ValueFunction
from manners.ppo.objective import beside, gae, kl_penalty, shape_rewards
from manners.reward.ensemble import RewardModel, Scored
from manners.settings import PPOSettings, SampleSettings
from manners.text import Batch, length_buckets
from manners.types import FinishReason

HEAVIEST = 2.0
"""Largest weight of a token for how it was drawn."""


@dataclass(frozen=True)
class Episodes:
    """Some episodes of a rollout, as wide as the longest of them: what one forward holds."""

    states: States
    batch: Batch
    logprobs: Float[Tensor, "B T"]
    """Of the drawn tokens, by the policy that drew them: what ratios are measured against."""
    values: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"]

    @property
    def keep(self) -> Bool[Tensor, "B T"]:
        """Where there is a response token."""
        return self.batch.keep


@dataclass(frozen=True)
class Drawn:
    """Responses with all that is computed of them whoever has drawn them: nothing here hangs on a value function."""

    draws: Generated
    scored: Scored
    ref_logprobs: Float[Tensor, "B T"]
    """Of the drawn tokens, by the reference; 0 where not kept."""
    noted: Mapping[str, float] = field(default_factory=dict)
    """What the curves are to say of how they were drawn."""

    @classmethod
    def together(cls, parts: Sequence[Drawn], pretrained: Pretrained, noted: Mapping[str, float]) -> Drawn:
        """Put what was drawn in several calls below one another, as if one call had drawn it."""
        draws = joined([part.draws for part in parts], pretrained.trunk, pretrained.renderer.pad_id)
        width = draws.batch.keep.shape[1]
        wide = [nn.functional.pad(part.ref_logprobs, (0, width - part.ref_logprobs.shape[1])) for part in parts]
        camps = [part.scored.camps for part in parts if part.scored.camps is not None]
        device = pretrained.trunk.device
        scored = Scored(
            torch.cat([part.scored.members for part in parts], dim=1).to(device),
            camps=torch.cat(camps, dim=1).to(device) if camps else None,
        )
        return cls(draws, scored, torch.cat(wide).to(device), noted)


Drawer = Callable[[Branch, Sequence[tuple[int, ...]], Float[Tensor, "B T"], Callable[[int], None]], Drawn]
"""Draws elsewhere, by the weights of a policy, what `draw` draws here: to each prompt, with its own uniform numbers."""


@dataclass(frozen=True)
class Rollout:
    """Everything that an update needs about a batch of episodes, frozen at the policy that drew them."""

    draws: Generated
    scored: Scored
    scores: Float[Tensor, " B"]
    """Mean over members, or what is served of camps (`ppo.camps`), less what `ppo.pessimism` takes off, less
    the penalty for being cut off."""
    penalties: Float[Tensor, " B"]
    """For being cut off."""
    logprobs: Float[Tensor, "B T"]
    """Of the drawn tokens, by the training forward of the policy that drew them, in nats; 0 where not kept."""
    drift: Float[Tensor, "B T"]
    """`logprobs` less those that the tokens were drawn with: what rounding differs by; 0 where not kept."""
    kl: Float[Tensor, "B T"]
    """Per token, in nats, by k1: the only estimator whose gradient, as a reward, is that of the KL."""
    rewards: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    """Whitened over the whole batch, then times `draw_weights(drift)`."""
    returns: Float[Tensor, "B T"]
    """What the value function learns: of the scores less what the other answers to the prompt came to."""
    noted: Mapping[str, float] = field(default_factory=dict)
    """As in `Drawn`."""

    @property
    def batch(self) -> Batch:
        """Token ids and masks."""
        return self.draws.batch

    @property
    def states(self) -> States:
        """Trunk states of the batch."""
        assert self.draws.states is not None
        return self.draws.states

    def episodes(self, rows: list[int]) -> Episodes:
        """Return some of its episodes."""
        states, batch = sliced(self.states, self.batch, rows)
        width = batch.keep.shape[1]
        logprobs, values, advantages, returns = (
            x[rows, :width] for x in (self.logprobs, self.values, self.advantages, self.returns)
        )
        return Episodes(states, batch, logprobs, values, advantages, returns)


def collect(
    roles: Roles,
    prompts: Sequence[tuple[int, ...]],
    settings: PPOSettings,
    sample: SampleSettings,
    coefficient: float,
    generator: torch.Generator,
    on_step: Callable[[int], None] = lambda finished: None,
    served: Float[Tensor, " G"] | None = None,
    drawer: Drawer | None = None,
) -> Rollout:
    """Draw a response to each prompt and compute what PPO learns from, in the order of the method.

    `served` weighs camps of annotators; None serves all of them on average. `drawer` draws in other processes; None
    draws here.
    """
    # 1. Responses, with the log-probabilities that they were drawn with and the trunk states on the way; scores of
    # whole ones, and the reference's log-probabilities.
    pretrained = roles.pretrained
    uniform = torch.rand((len(prompts), sample.max_new_tokens), generator=generator, dtype=torch.float64)
    if drawer is None:
        drawn = draw(roles.policy, roles.reference, roles.reward, pretrained, sample, prompts, uniform, on_step)
    else:
        drawn = drawer(roles.policy, prompts, uniform, on_step)
    draws, scored = drawn.draws, drawn.scored
    pretrained.renderer.finishes.look(draws.finish, sample.max_new_tokens)

    # 2. Cut-off responses pay. Values of every token, and its log-probabilities, the policy's by the forward that is
    # trained: one that reads token by token rounds otherwise, and ratios would begin off 1.
    _, (logprobs,), values = measure(draws, None, (roles.policy,), sample.temperature, roles.value, shared=True)
    cut_off = torch.tensor([f is FinishReason.LENGTH for f in draws.finish], device=scored.mean.device)
    penalties = settings.unfinished_penalty * cut_off
    scores = reward_of(scored, served) - doubt(scored, settings.pessimism) - penalties
    # 3. KL penalty per token, the score at the last one; advantages against the other answers and the learned baseline.
    keep = draws.batch.keep
    drift = torch.where(keep, logprobs - draws.logprobs, torch.zeros_like(logprobs))
    kl = kl_penalty(logprobs, drawn.ref_logprobs, keep, "k1")
    rewards = shape_rewards(scores, kl, keep, coefficient)
    baseline = beside(rewards.sum(dim=1), prompts) if settings.answers > 1 else torch.zeros_like(scores)
    gained = shape_rewards(scores - baseline, kl, keep, coefficient)
    advantages, returns = gae(gained, values, keep, settings.gamma, settings.lam)
    advantages = whiten(advantages, keep) * draw_weights(drift)
    return Rollout(
        draws, scored, scores, penalties, logprobs, drift, kl, rewards, values, advantages, returns, drawn.noted
    )


def draw(
    policy: Branch,
    reference: Branch,
    reward: RewardModel,
    pretrained: Pretrained,
    sample: SampleSettings,
    prompts: Sequence[tuple[int, ...]],
    uniform: Float[Tensor, "B T"],
    on_step: Callable[[int], None] = lambda finished: None,
) -> Drawn:
    """Draw a response to each prompt with its row of uniform numbers, score it, and have the reference read it.

    A row's outcome does not hang on the others, up to rounding: shares of a batch may be drawn by several processes.
    """
    trunk = pretrained.trunk
    draws = generate(
        policy.assembled(trunk),
        trunk,
        prompts,
        uniform.to(trunk.compute.uniform),
        Decoding.of(pretrained.renderer, sample, want_states=True),
        on_step,
    )
    scored, (ref_logprobs,), _ = measure(draws, reward, (reference,), sample.temperature)
    return Drawn(draws, scored, ref_logprobs)


def doubt(scored: Scored, pessimism: float | str) -> Float[Tensor, " N"]:
    """Return what is taken off the members' mean for what they differ about: so many standard deviations.

    Or all that is above the lowest of them, which is then the score (`minimum`). Source: Coste et al. 2023, "Reward
    model ensembles help mitigate overoptimization", section 3.
    """
    if isinstance(pessimism, str):
        return scored.mean - scored.members.amin(dim=0)
    return pessimism * scored.std


def draw_weights(drift: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Weight of each token for having been drawn from a distribution that rounds otherwise: min(exp(drift), HEAVIEST).

    In the expectation over what was drawn it puts what is trained in the place of what was sampled from, but for what
    it cuts off. In float32 it is 1 to the fourth digit. Source: truncated importance sampling, Ionides 2008; between
    two engines of one policy, Yao et al. 2025.
    """
    return drift.exp().clamp(max=HEAVIEST)


@torch.no_grad()
def measure(
    draws: Generated,
    reward: RewardModel | None,
    branches: Sequence[Branch],
    temperature: float,
    value: ValueFunction | None = None,
    shared: bool = False,
) -> tuple[Scored, list[Float[Tensor, "B T"]], Float[Tensor, "B T"]]:
    """Scores of what was drawn, its log-probabilities by each branch, and its values; these read the first branch.

    Without a reward model there are scores of no member. Every branch runs over the trunk states once, in micro-batches
    of similar length. `shared`: of what several processes have drawn together, each measures its share, for all.
    """
    assert draws.states is not None
    members = draws.logprobs.new_zeros((len(reward.members) if reward else 0, len(draws.finish)))
    camps = members.new_zeros((len(reward.camps.shares), len(draws.finish))) if reward and reward.camps else None
    logprobs = [torch.zeros_like(draws.logprobs) for _ in branches]
    values = torch.zeros_like(draws.logprobs)
    every = list(range(len(draws.finish)))
    for rows in micro_batches(draws.batch, ranks.share(every) if shared else every):
        states, batch = sliced(draws.states, draws.batch, rows)
        width = batch.keep.shape[1]
        if reward is not None:
            scored = reward.score(states, batch)
            members[:, rows] = scored.members
            if camps is not None and scored.camps is not None:
                camps[:, rows] = scored.camps
        hidden = [branch.hidden(states, batch) for branch in branches]
        for found, branch, final in zip(logprobs, branches, hidden, strict=True):
            found[rows, :width] = branch.logprobs(final, batch, temperature)
        if value is not None:
            values[rows, :width] = value(states, hidden[0], batch)
    if shared:  # rows that others have measured are 0 here
        ranks.add(found for found in (members, camps, *logprobs, values) if found is not None)
    return Scored(members, camps=camps), logprobs, torch.where(draws.batch.keep, values, torch.zeros_like(values))


def micro_batches(batch: Batch, rows: Sequence[int]) -> list[list[int]]:
    """Split rows into groups of similar length that one forward can hold; what all begin with counts as nothing."""
    lengths = (batch.attend.sum(dim=1) - batch.common)[list(rows)].tolist()
    return [[rows[i] for i in bucket] for bucket in length_buckets(lengths, bucket_tokens(batch.ids.device))]


def sliced(states: States, batch: Batch, rows: Sequence[int]) -> tuple[States, Batch]:
    """Return some rows without the columns that none of them uses."""
    batch, columns = batch.rows(list(rows)).trim()
    return states[list(rows)][:, columns], batch
