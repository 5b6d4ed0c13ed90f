"""A second head that length goes to, in training alone: what people give for length is dropped with it.

Verdicts are explained by two heads, the quality q of an answer, which the branch learns, and a times the logarithm of
its length in tokens, with the a that alone explains the verdicts best. With m the differences of q between both answers
of each pair of a batch, and d those of log length, what is minimised beside is

    corr(m, d)^2,        corr(m, d) = sum m d / root(sum m^2 sum d^2),

so that quality says nothing about length. Saved and scored is q alone.
Source: Chen et al. 2024, "ODIN: Disentangled reward mitigates hacking in RLHF". There the second head is another row on
the same features, and has to be kept from taking content with it; here it reads nothing but the length (D451). There
correlations are those of single answers; here of pairs, since scores are free up to a shift per prompt, and without a
mean, since sides are arbitrary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from manners.reward.labelled import Floats
from manners.reward.pairs import ReadPairs, Scorer

WEIGHT = 0.3
"""Of the penalty beside the loss in nats a verdict."""
TINY = 1e-12
"""What is not divided by: margins or lengths that do not differ have no correlation."""
STEEPEST = 20.0
"""Bound of a: verdicts that all follow length have no best one."""
Pulls = dict[int, float]
"""By pair of a batch, the derivative of the penalty by its margin."""


def log_lengths(data: ReadPairs, which: Sequence[int]) -> Floats:
    """Return d (pairs,) = log length left - log length right, in tokens; 0 of pairs that nobody has judged.

    That a scrap is no answer must not be dropped with the length that it lacks.
    """
    tokens = [[len(data.rendered[side].response_ids) for side in data.sides[i]] for i in which]
    logs = np.log(np.array(tokens, dtype=np.float64).reshape(-1, 2))
    judged = np.array([not data.pairs[i].made for i in which], dtype=np.float64)
    return (logs[:, 0] - logs[:, 1]) * judged


def ruler(data: ReadPairs, which: Sequence[int]) -> float:
    """Return the a that explains best which sides some verdicts chose: p(left) = sigmoid(a d)."""
    d = log_lengths(data, which)
    left, right, _ = np.array([data.pairs[i].weights for i in which], dtype=np.float64).reshape(-1, 3).T

    def loss(a: float) -> float:
        return float(left @ np.logaddexp(0, -a * d) + right @ np.logaddexp(0, a * d))

    return float(minimize_scalar(loss, bounds=(-STEEPEST, STEEPEST), method="bounded").x)


def correlation(a: Float[Tensor, " N"], b: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Return sum a b / root(sum a^2 sum b^2): of differences whose signs are arbitrary; 0 where one of them is 0."""
    return (a * b).sum() / (a.square().sum() * b.square().sum()).clamp(min=TINY).sqrt()


def slopes(margins: Float[Tensor, " pairs"], d: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Return the derivative of corr(m, d)^2 by each margin."""
    margins = margins.detach().requires_grad_()
    (found,) = torch.autograd.grad(correlation(margins, d).square(), margins)
    return found


def pulls(member: Scorer, data: ReadPairs, batch: Sequence[int]) -> Pulls:
    """Return the penalty's derivative by the margins of a batch, those of its pairs that somebody has judged.

    A correlation is no sum over pairs, and what is held at one time is a part of the batch. So the batch is read once
    without a gradient; each part then brings pull times margin, whose gradient is that of the whole.
    """
    judged = [i for i in batch if not data.pairs[i].made]
    place = {i: row for row, i in enumerate(judged)}
    margins = torch.zeros(len(judged), dtype=torch.float64)
    with torch.no_grad():
        for micro in data.micro_batches(judged):
            scores = data.scores(member, micro)
            margins[[place[i] for i in micro]] = (scores[:, 0] - scores[:, 1]).double().cpu()
    found = slopes(margins, torch.from_numpy(log_lengths(data, judged)))
    return dict(zip(judged, found.tolist(), strict=True))
