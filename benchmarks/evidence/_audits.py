"""Audits for forgetting of a model that is there: two versions answer and read; and what is no loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch

from manners.data import Question
from manners.evaluate.forgetting import Reading, forgetting
from manners.evaluate.reading import read
from manners.models.answer import answer
from manners.models.branches import Branch, set_trainable
from manners.models.perplexity import PlainText
from manners.models.pretrained import Pretrained
from manners.results.evaluation import Forgetting
from manners.settings import SampleSettings
from manners.types import Answer, Dialogue

T = TypeVar("T")
BACK, BACK_STEPS = 0.002, 40
"""Rate and number of the steps that bring a movement back to a text."""
CLOSE = 0.05
"""How near to the KL that is wanted a random movement comes, as a share of it."""


@dataclass(frozen=True)
class Version:
    """What an audit knows of a version."""

    reading: Reading
    said: list[list[Answer]]


@dataclass(frozen=True)
class Bench:
    """A model with all that its versions are audited on."""

    pretrained: Pretrained
    prompts: Sequence[Dialogue]
    paragraphs: Sequence[str]
    asked: Sequence[Question]
    sample: SampleSettings
    answers: int = 2

    @cached_property
    def initial(self) -> Branch:
        """The initial model."""
        return Branch(self.pretrained.trunk, trainable=False)

    def reading(self, policy: Branch) -> Reading:
        """What a version makes of text and questions."""
        return read([policy], self.pretrained, self.paragraphs, self.asked)[0]

    def said(self, policy: Branch, seed: int) -> list[list[Answer]]:
        """What a version answers, by prompt."""
        found: list[list[Answer]] = [[] for _ in self.prompts]
        for some in answer(policy, self.pretrained, self.prompts, self.answers, self.sample, seed, "bench"):
            for place, one in zip(some.places, some.answers, strict=True):
                found[place].append(one)
        return found

    def version(self, policy: Branch, seed: int) -> Version:
        """Read and answer."""
        return Version(self.reading(policy), self.said(policy, seed))

    def audit(self, before: Version, after: Version) -> Forgetting:
        """Compare two versions."""
        return forgetting(before.reading, after.reading, self.asked, before.said, after.said)

    @torch.no_grad()
    def kl(self, policy: Branch, seed: int = 0) -> float:
        """KL(policy || initial) in nats a response, from the policy's own answers."""
        total, count = 0.0, 0
        for some in answer(policy, self.pretrained, self.prompts, self.answers, self.sample, seed, "bench", True):
            batch, states = some.generated.batch, some.generated.states
            assert states is not None
            own, other = (
                branch.logprobs(branch.hidden(states, batch), batch, self.sample.temperature)
                for branch in (policy, self.initial)
            )
            total += float((own - other)[batch.keep].sum())
            count += len(some.answers)
        return total / count

    def moved(self, kl: float, seed: int, held_to: Sequence[str] = ()) -> Branch:
        """Move every trained tensor at random, by the same share of its size, until the KL is as large as wanted.

        Held to a text, each try is first brought back to what the initial model makes of it, as PPO is by its prose:
        what is left of the movement is at random among those that leave the text alone.
        """
        generator = torch.Generator().manual_seed(seed)
        policy = Branch(self.pretrained.trunk, trainable=True)
        start = {name: tensor.clone() for name, tensor in policy.own_tensors().items()}
        steps = {
            name: torch.randn(t.shape, generator=generator) * t.float().pow(2).mean().sqrt()
            for name, t in start.items()
        }
        text = PlainText(self.initial, self.pretrained, held_to) if held_to else None
        low, high = 0.0, 1.0
        for _ in range(30 if text is None else 10):
            size = (low + high) / 2
            policy.load_tensors({name: (t + size * steps[name]).to(t.dtype) for name, t in start.items()})
            if text is not None:
                brought_back(policy, text)
            found = self.kl(policy)
            if abs(found - kl) <= CLOSE * kl:
                break
            low, high = (size, high) if found < kl else (low, size)
        policy.requires_grad_(False)
        return policy


def brought_back(policy: Branch, text: PlainText) -> None:
    """Take steps on the divergence from the initial model on a text."""
    optimiser = torch.optim.Adam(set_trainable([policy]), lr=BACK)
    for number in range(BACK_STEPS):
        optimiser.zero_grad()
        torch.autograd.backward(text.divergence(policy, number))
        optimiser.step()


def permuted(before: Version, after: Version, seed: int) -> tuple[Version, Version]:
    """Exchange the two labels of every paragraph, question and prompt by coin: no difference is left but chance."""
    rng = np.random.default_rng(seed)
    nll, other_nll = _exchanged(before.reading.nll, after.reading.nll, rng)
    answers, other_answers = _exchanged(before.reading.answers, after.reading.answers, rng)
    said, other_said = _exchanged(before.said, after.said, rng)
    return (
        Version(replace(before.reading, nll=nll, answers=answers), said),
        Version(replace(after.reading, nll=other_nll, answers=other_answers), other_said),
    )


def _exchanged(a: Sequence[T], b: Sequence[T], rng: np.random.Generator) -> tuple[list[T], list[T]]:
    coins = rng.random(len(a)) < 0.5
    pairs = [(y, x) if coin else (x, y) for x, y, coin in zip(a, b, coins, strict=True)]
    return [x for x, _ in pairs], [y for _, y in pairs]
