"""Train the reward model on single verdicts, and measure it on groups of comparisons it never saw."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from manners.errors import MannersError
from manners.models.branches import ScalarBranch, set_trainable
from manners.models.pretrained import Pretrained
from manners.progress import steps
from manners.reward.baselines import CurvePoint, accuracy
from manners.reward.data import Labelled, LabelledPair, Split, label, set_aside, subset
from manners.reward.ensemble import RewardModel
from manners.reward.loss import preference_loss
from manners.reward.pairs import Pairs
from manners.settings import RewardSettings
from manners.types import Comparison

CURVE_SHARES = (0.25, 0.5)
"""Shares of the training verdicts at which the learning curve is measured, beside all of them."""


@dataclass(frozen=True)
class Trained:
    """A reward model with what its report needs."""

    reward: RewardModel
    labelled: Labelled
    split: Split
    margins: Float[Tensor, " pairs"]
    """Score left - score right of the held-out pairs, raw, mean over members."""
    member_scores: Float[Tensor, "K pairs 2"]
    """Raw scores of both sides of the held-out pairs, by member."""
    curve: tuple[CurvePoint, ...]
    optimizer_steps: int
    pairs_per_second: float


def train(settings: RewardSettings, seed: int, pretrained: Pretrained, comparisons: Sequence[Comparison]) -> Trained:
    """Train an ensemble of reward branches and score the pairs that were set aside.

    Raises MannersError when there is nothing to learn from (see `reward.data`).
    """
    # 1. Single verdicts, counted; whole groups set aside; a random part if that is what is asked for.
    labelled = label(comparisons, settings.annotators)
    split = set_aside(labelled.pairs, settings.set_aside, seed)
    if settings.limit is not None and settings.limit < len(split.train):
        drawn = sorted(random.Random(seed).sample(range(len(split.train)), settings.limit))
        split = Split(tuple(split.train[i] for i in drawn), split.held_out)
    with tempfile.TemporaryDirectory() as scratch:
        # 2. The trunk, once for every sequence, for all epochs and members.
        learn = Pairs(pretrained, split.train, Path(scratch) / "train", "reading pairs")
        held = Pairs(pretrained, split.held_out, Path(scratch) / "held-out", "reading pairs set aside")
        # 3. Members: the same pairs in another order, from another head.
        parts = [subset(split.train, share, seed) for share in CURVE_SHARES] if settings.curve else []
        place = {id(pair): i for i, pair in enumerate(split.train)}
        jobs = [(f"member {k + 1}", seed * 1000 + k, list(range(len(split.train)))) for k in range(settings.members)]
        jobs += [("learning curve", seed * 1000, [place[id(pair)] for pair in part]) for part in parts]
        total = sum(settings.epochs * len(which) for _, _, which in jobs)
        branches, count = [], 0
        with steps("training the reward model", total) as advance:
            begin = time.monotonic()
            for _, member_seed, which in jobs:
                branch, done = _train_member(settings, member_seed, pretrained, learn, which, advance)
                branches.append(branch)
                count += done
            seconds = time.monotonic() - begin
        # 4. Measure on what was set aside.
        held_scores = [held.all_scores(branch) for branch in branches]
    members = branches[: settings.members]
    scores = torch.stack(held_scores[: settings.members])
    mean = scores.mean(dim=0)
    curve = _curve(split, [*parts, split.train], [*held_scores[settings.members :], held_scores[0]], seed)
    reward = RewardModel(tuple(members), (0.0,) * len(members), 1.0)
    return Trained(reward, labelled, split, mean[:, 0] - mean[:, 1], scores, curve, count, total / max(seconds, 1e-9))


def _train_member(
    settings: RewardSettings,
    seed: int,
    pretrained: Pretrained,
    data: Pairs,
    which: list[int],
    advance: Callable[[int], None],
) -> tuple[ScalarBranch, int]:
    """Train one branch and the tie parameter by AdamW on the Davidson loss; return it and the number of steps."""
    branch = ScalarBranch(pretrained.trunk, torch.Generator().manual_seed(seed))
    log_tie = torch.nn.Parameter(torch.zeros((), device=pretrained.trunk.device))
    parameters = [*set_trainable([branch]), log_tie]
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, eps=1e-5, weight_decay=0.0)
    order = random.Random(seed)
    batches = [b for _ in range(settings.epochs) for b in data.batches(which, settings.batch, order)]
    warm = max(1, len(batches) // 10)
    for step, batch in enumerate(batches):
        rate = settings.learning_rate * min((step + 1) / warm, (len(batches) - step) / max(1, len(batches) - warm))
        for group in optimiser.param_groups:
            group["lr"] = rate
        # Each micro-batch's loss is its share of the mean over the batch's verdicts, so their size changes nothing.
        total = sum(sum(data.pairs[i].weights) for i in batch)
        for micro in data.micro_batches(batch):
            scores = data.scores(branch, micro)
            weights = torch.tensor([data.pairs[i].weights for i in micro], device=log_tie.device)
            loss, _ = preference_loss(scores[:, 0], scores[:, 1], weights, log_tie, total)
            torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        if not torch.isfinite(norm):
            raise MannersError(
                f"the reward model's gradient is not finite at step {step + 1} of {len(batches)}; lower"
                " reward.learning_rate, or look at the comparisons of that batch for broken text"
            )
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        advance(len(batch))
    branch.requires_grad_(False)
    return branch, len(batches)


def _curve(
    split: Split, parts: Sequence[Sequence[LabelledPair]], scores: Sequence[Tensor], seed: int
) -> tuple[CurvePoint, ...]:
    """Held-out accuracy of one member against the number of verdicts it learned from."""
    points = []
    for part, held in zip(parts, scores, strict=True):
        margins = np.asarray((held[:, 0] - held[:, 1]).double())
        verdicts = round(sum(sum(pair.counts) for pair in part))
        points.append(CurvePoint(verdicts, accuracy(margins, split.held_out, seed)))
    return tuple(points)
