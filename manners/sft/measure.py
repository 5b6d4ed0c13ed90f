"""How well a branch reads answers that it has not learned from: loss and accuracy of the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from manners.feedback.statistics import cluster_bootstrap
from manners.models.branches import Branch
from manners.sft.data import ReadExamples
from manners.types import Interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """What a branch makes of some sequences, each summed over the tokens that are learned."""

    nats: Floats
    right: Floats
    """Tokens that were the likeliest."""
    tokens: Floats

    @property
    def loss(self) -> float:
        """Mean over tokens, in nats."""
        return float(self.nats.sum() / self.tokens.sum())


@torch.no_grad()
def reading(branch: Branch, data: ReadExamples) -> Reading:
    """Read all sequences with a branch."""
    nats, right = np.zeros(len(data.sequences)), np.zeros(len(data.sequences))
    tokens = np.array([sequence.learned for sequence in data.sequences], float)
    for which in data.micro_batches(range(len(data.sequences))):
        logprobs, likeliest = branch.read(*data.states(branch, which))
        counts = [data.sequences[i].learned for i in which]
        nats[which] = [-float(part.double().sum()) for part in torch.split(logprobs.cpu(), counts)]
        right[which] = [int(part.sum()) for part in torch.split(likeliest.cpu(), counts)]
    return Reading(nats, right, tokens)


def mean(sums: Floats, tokens: Floats, openings: Sequence[str], resamples: int, seed: int) -> Interval:
    """Return sums over sequences as a mean over tokens, with an interval over their openings."""
    return cluster_bootstrap(sums / tokens, openings, resamples, seed, tokens)


def change(
    before: Floats, after: Floats, tokens: Floats, openings: Sequence[str], resamples: int, seed: int
) -> Interval:
    """Return after - before as a mean over tokens, paired, with an interval over the sequences' openings."""
    return cluster_bootstrap((after - before) / tokens, openings, resamples, seed, tokens)
