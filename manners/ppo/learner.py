"""Everything of a PPO run that changes while it goes on."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from manners.models.branches import Branch, set_trainable
from manners.ppo.guard import Act, Warned
from manners.reward.steps import POLICY_STEP, units
from manners.settings import PPOSettings
from manners.training import Training


@dataclass(frozen=True)
class Validation:
    """A policy on prompts that nothing is trained on; scores in units of the reward."""

    measures: tuple[float, ...]
    """Of each prompt: the score by the member kept out of the reward, less penalty and coefficient * KL."""
    mean: float
    """Mean score over members and prompts."""
    pessimistic: float
    """Mean score by the member kept out of the reward; where there is none, the least of the members' means."""
    kl: float
    """In nats per response."""
    forgotten: float
    """Rise of perplexity on plain text, as a share."""
    camps: tuple[float, ...] = ()
    """Mean score of each camp of annotators, where they are told apart."""

    @property
    def measure(self) -> float:
        """What versions are compared by."""
        return mean(self.measures)

    def keeps_up_with(self, other: Validation) -> bool:
        """Whether it is not worse than another by more than the standard error of the paired difference."""
        gains = [a - b for a, b in zip(self.measures, other.measures, strict=True)]
        error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
        return mean(gains) >= -error

    def metrics(self) -> dict[str, float]:
        """Return its point of the curves."""
        names = ("measure", "mean", "pessimistic", "kl", "forgotten")
        camps = {f"validate/camp_{number}": score for number, score in enumerate(self.camps, 1)}
        return {f"validate/{name}": float(getattr(self, name)) for name in names} | camps


UNMEASURED = Validation((-math.inf,), -math.inf, -math.inf, 0.0, 0.0)
"""What any version does better than."""
COUNTERS = ("coefficient", "step_factor", "update", "episodes", "optimizer_steps", "queue", "gains")
"""Fields of a learner that a checkpoint holds as they are."""


@dataclass(frozen=True)
class Best:
    """The version that would be kept if the run ended now."""

    update: int
    validation: Validation
    tensors: dict[str, Tensor]
    top: Validation
    """The best that any version so far came to."""

    def after(
        self, update: int, found: Validation, forgetting_limit: float, tensors: Callable[[], dict[str, Tensor]]
    ) -> Best:
        """Return what is kept once another version is validated, by the rule of `Learner.offer`."""
        ahead = found.measure > self.top.measure
        close = self.update > 0 and found.keeps_up_with(self.top)
        if update == 0 or (found.forgotten <= forgetting_limit and (ahead or close)):
            return Best(update, found, tensors(), found if ahead else self.top)
        return self


@dataclass
class Learner:
    """The policy on its way, random states, place in the data, and what was found so far."""

    policy: Branch
    training: Training
    generator: torch.Generator
    order: random.Random
    coefficient: float
    """Of the KL penalty; moves with `ppo.kl_target`."""
    best: Best = Best(0, UNMEASURED, {}, UNMEASURED)
    step_factor: float = 1.0
    """What warnings left of the learning rate."""
    update: int = 0
    """The last finished one."""
    episodes: int = 0
    optimizer_steps: int = 0
    queue: list[int] = field(default_factory=list)
    """Places of the prompts left of the current pass; never the prompts: a checkpoint is to hold nobody's words."""
    warned: list[Warned] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    """What is known of what each camp of annotators has gained (`ppo.camps`)."""

    @property
    def stopped(self) -> bool:
        """Whether a warning has stopped the run."""
        return any(w.act is Act.STOP for w in self.warned)

    def next_prompts(self, prompts: Sequence[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
        """Take the next `count` prompts of an endless shuffled pass over all of them."""
        while len(self.queue) < count:
            self.queue = self.queue + self.order.sample(range(len(prompts)), len(prompts))
        chosen, self.queue = self.queue[:count], self.queue[count:]
        return [prompts[place] for place in chosen]

    def heed(self, warnings: Sequence[Warned]) -> None:
        """Do what the warnings demand."""
        self.warned += warnings
        self.step_factor *= 0.5 ** sum(w.act is Act.HALVE for w in warnings)

    def offer(self, update: int, found: Validation, forgetting_limit: float) -> None:
        """Keep the version at hand unless it did worse than the best so far, or has forgotten too much.

        What is measured on a few dozen prompts is noisy, and training goes somewhere: a later version is kept also when
        it is behind by less than the standard error of the difference, once any version has beaten the one that the run
        began as. That is kept whatever it has forgotten: there must be something to return.
        """

        def tensors() -> dict[str, Tensor]:
            return {name: t.clone() for name, t in self.policy.own_tensors().items()}

        self.best = self.best.after(update, found, forgetting_limit, tensors)

    def state(self) -> dict[str, Any]:
        """Return everything that a checkpoint must hold; tensors are the live ones."""
        best = self.best
        return {
            **{name: getattr(self, name) for name in COUNTERS},
            **self.training.state(),
            "generator": self.generator.get_state(),
            "order": self.order.getstate(),
            "best": (best.update, asdict(best.validation), best.tensors, asdict(best.top)),
            "warned": [(w.update, w.sign, w.act.value, w.sentence) for w in self.warned],
        }

    def restore(self, state: dict[str, Any], prompts: Sequence[tuple[int, ...]]) -> None:
        """Become what `state` was made from, on these prompts, to the bit."""
        for name in COUNTERS:
            setattr(self, name, state.get(name, getattr(self, name)))  # an older checkpoint knows no camps
        self.queue = [one if isinstance(one, int) else prompts.index(one) for one in state["queue"]]  # and held prompts
        self.training.restore(state)
        self.generator.set_state(state["generator"])
        self.order.setstate(state["order"])
        update, validation, tensors, top = state["best"]
        self.best = Best(update, Validation(**validation), tensors, Validation(**top))
        self.warned = [Warned(update, sign, Act(act), sentence) for update, sign, act, sentence in state["warned"]]


def begin(settings: PPOSettings, seed: int, policy: Branch, value_parts: Sequence[nn.Module]) -> Learner:
    """Return the state before the first update."""
    rate = settings.learning_rate
    own = _units(policy, value_parts) if rate is None else None
    parameters = set_trainable([policy, *value_parts])
    training = Training(parameters, POLICY_STEP if rate is None else rate, settings.max_grad_norm, own)
    generator = torch.Generator().manual_seed(seed)
    order = random.Random(seed)
    return Learner(policy, training, generator, order, settings.kl_coefficient)


def _units(policy: Branch, value_parts: Sequence[nn.Module]) -> list[float]:
    """Return what policy and value are measured in: a value head on the policy's branch as a reward model's head is."""
    heads = [part for part in value_parts if isinstance(part, nn.Linear)]
    branches = [part for part in value_parts if isinstance(part, Branch)]
    return [*units(policy, *heads), *(unit for branch in branches for unit in units(branch))]


def minibatches(settings: PPOSettings, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield the episodes of each optimiser step of an update: every pass takes all of them in a new order."""
    for _ in range(settings.epochs):
        shuffled = torch.randperm(settings.batch, generator=generator).tolist()
        for start in range(0, settings.batch, settings.minibatch):
            yield shuffled[start : start + settings.minibatch]
