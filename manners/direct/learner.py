"""A policy that learns from verdicts, and everything of a run that changes while it goes on."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from manners.direct.loss import dpo
from manners.direct.watch import Look, Watch
from manners.models.branches import Branch, set_trainable
from manners.models.pretrained import Pretrained
from manners.models.trunk import States
from manners.reward.pairs import ReadPairs
from manners.reward.steps import POLICY_STEP, units
from manners.settings import Settings
from manners.text import Packed
from manners.training import Loss, Training


@dataclass(frozen=True)
class Speaker:
    """A policy as what gives a number to a response: how likely it is to say it, at the temperature it is sampled at.

    Sampling and scoring take one distribution (`models.vocabulary`): at another temperature the optimum would be that
    of a policy that nobody draws from. At 1 this is what other implementations sum.
    """

    policy: Branch
    temperature: float

    def scores(self, states: States, batch: Packed) -> Float[Tensor, " N"]:
        """Return log-probabilities, in nats, of whole responses with the token that ends them."""
        return self.policy.said(states, batch, self.temperature)


@dataclass(frozen=True)
class Referred:
    """Pairs as the model reads them, with the reference's log-probability of either side."""

    pairs: ReadPairs
    reference: Float[Tensor, "pairs 2"]

    @classmethod
    def of(cls, pairs: ReadPairs, reference: Speaker) -> Referred:
        """Have the reference read every response, once."""
        return cls(pairs, pairs.all_scores(reference))

    def loss(self, speaker: Speaker, which: Sequence[int], beta: float, total: float) -> Loss:
        """Return the loss on some pairs of a batch whose verdicts weigh `total`; see `loss.dpo`."""
        logprobs = self.pairs.scores(speaker, which)
        reference = self.reference[list(which)].to(logprobs.device)
        counts = torch.tensor([self.pairs.pairs[i].weights for i in which], device=logprobs.device)
        return dpo(logprobs[:, 0], logprobs[:, 1], reference[:, 0], reference[:, 1], beta, counts, total)

    def measured(self, speaker: Speaker, beta: float) -> tuple[dict[str, float], Float[Tensor, " pairs"]]:
        """Return means over all verdicts, and the log-odds of the left side of each pair."""
        logprobs, reference = self.pairs.all_scores(speaker), self.reference
        counts = torch.tensor([pair.weights for pair in self.pairs.pairs])
        loss, seen = dpo(logprobs[:, 0], logprobs[:, 1], reference[:, 0], reference[:, 1], beta, counts)
        gained = beta * (logprobs - reference)
        return means(float(loss), seen), gained[:, 0] - gained[:, 1]


def means(loss: float, seen: Mapping[str, Tensor]) -> dict[str, float]:
    """Return a loss with the means of what `loss.dpo` counts, by the names that TRL gives them."""
    decided = max(float(seen["decided"]), 1e-9)
    names = {"agreeing": "accuracies", "margin": "margins", "chosen": "chosen", "rejected": "rejected"}
    return {"loss": loss} | {f"rewards/{name}": float(seen[own]) / decided for own, name in names.items()}


@dataclass(frozen=True)
class Course:
    """What stays the same during a run."""

    settings: Settings
    pretrained: Pretrained
    learn: Referred
    held: Referred
    watch: Watch
    start: Branch | None


class Learner:
    """A policy on its way."""

    def __init__(self, course: Course, which: Sequence[int], passes: int, seed: int) -> None:
        """Copy the reference's branch, and lay out the batches of all passes."""
        settings = course.settings.dpo
        self.branch = Branch(course.pretrained.trunk, trainable=True)
        if course.start is not None:
            self.branch.load_tensors(course.start.own_tensors())
        self.speaker = Speaker(self.branch, course.settings.sample.temperature)
        rate = settings.learning_rate
        own = units(self.branch) if rate is None else None
        parameters = set_trainable([self.branch])
        self.training = Training(parameters, POLICY_STEP if rate is None else rate, max_norm=1.0, units=own)
        order, pairs = random.Random(seed), course.learn.pairs
        self.usual = pairs.usual(which)
        self.batches = [b for _ in range(passes) for b in pairs.batches(which, settings.batch, order)]
        self.step = 0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold; the order of the batches follows from the seed."""
        return {"step": self.step, **self.training.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Become what `state` was made from, to the bit."""
        self.training.restore(state)
        self.step = state["step"]


@dataclass
class Done:
    """What has come of a run so far."""

    tried: list[tuple[int, float]] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    sound: dict[str, Tensor] = field(default_factory=dict)
    """The policy as it was looked at last without having gone too far."""
    stopped: str | None = None
    optimizer_steps: int = 0
    pairs: int = 0
    seconds: float = 0.0

    @property
    def kept(self) -> Look:
        """The last look at a policy that had not gone too far."""
        return self.looks[-1 if self.stopped is None else -2]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {**vars(self), "looks": [asdict(look) for look in self.looks]}

    def restore(self, state: dict[str, Any]) -> None:
        """Become what `state` was made from."""
        vars(self).update(state)
        self.looks = [Look(**{**look, **{n: tuple(look[n]) for n in ("kl", "lengths")}}) for look in state["looks"]]
