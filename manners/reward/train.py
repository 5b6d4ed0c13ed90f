"""Train the reward model on single verdicts, and measure it on groups of comparisons it never saw."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from manners.checkpoint import Run
from manners.errors import MannersError
from manners.models.branches import ScalarBranch, set_trainable
from manners.models.pretrained import Pretrained
from manners.models.trunk import Trunk
from manners.progress import steps
from manners.results import Shortened
from manners.reward.baselines import CurvePoint, accuracy
from manners.reward.ensemble import RewardModel
from manners.reward.groups import Split, divided, subset
from manners.reward.labelled import Labelled, LabelledPair
from manners.reward.loss import preference_loss
from manners.reward.pairs import ReadPairs, read, shortened
from manners.reward.verdicts import label
from manners.settings import RewardSettings
from manners.training import Loss, Term, Training
from manners.types import Comparison
from manners.workspace import scratch_folder

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
    shortened: Shortened
    """What did not fit into the context, of the distinct responses with their prompts."""


def train(
    settings: RewardSettings,
    seed: int,
    pretrained: Pretrained,
    comparisons: Sequence[Comparison],
    run: Run | None = None,
    scratch: Path | None = None,
) -> Trained:
    """Train an ensemble of reward branches and score the pairs that were set aside.

    With a `run`, checkpoints are written, and the work goes on from the one that it holds, if any. The trunk's states
    are kept meanwhile in a folder beside `scratch`, or in the system's folder for such things. Raises MannersError when
    there is nothing to learn from (see `reward.verdicts`), or no room for the states.
    """
    # 1. Single verdicts, counted; what differs where the model reads it; whole groups set aside; perhaps a random part.
    counted = label(comparisons, settings.annotators, settings.user_share)
    labelled, rendered = read(pretrained.renderer, counted)
    split = divided(labelled.pairs, settings, seed)
    with _folder(scratch) as folder:
        # 2. The trunk, once for every sequence, for all epochs and members.
        learn = ReadPairs(pretrained, split.train, rendered, Path(folder) / "train", "reading pairs")
        held = ReadPairs(pretrained, split.held_out, rendered, Path(folder) / "held-out", "reading pairs set aside")
        # 3. Members: the same pairs in another order, from another head; measured on what was set aside.
        parts = [subset(split.train, share, seed) for share in CURVE_SHARES] if settings.curve else []
        place = {id(pair): i for i, pair in enumerate(split.train)}
        jobs = [_Job(seed * 1000 + k, list(range(len(split.train)))) for k in range(settings.members)]
        jobs += [_Job(seed * 1000, [place[id(pair)] for pair in part]) for part in parts]
        done = _train_members(settings, pretrained, learn, held, jobs, run, Path(folder))
    scores = torch.stack(done.held_scores[: settings.members])
    mean = scores.mean(dim=0)
    curve = _curve(split, [*parts, split.train], [*done.held_scores[settings.members :], done.held_scores[0]], seed)
    reward = RewardModel(tuple(done.members), (0.0,) * len(done.members), 1.0)
    passes = settings.epochs * sum(len(job.which) for job in jobs)
    margins = mean[:, 0] - mean[:, 1]
    speed = passes / max(done.seconds, 1e-9)
    cut = shortened([*learn.rendered, *held.rendered])
    return Trained(reward, labelled, split, margins, scores, curve, done.optimizer_steps, speed, cut)


def _folder(scratch: Path | None) -> AbstractContextManager[str | Path]:
    """Return a folder for the trunk's states that is gone afterwards."""
    return tempfile.TemporaryDirectory() if scratch is None else scratch_folder(scratch)


@dataclass(frozen=True)
class _Job:
    """A branch to be trained: the seed of its head and order, and which pairs it learns from."""

    seed: int
    which: list[int]


@dataclass
class _Done:
    """Branches trained so far. Those of the learning curve leave their scores only."""

    members: list[ScalarBranch] = field(default_factory=list)
    held_scores: list[Tensor] = field(default_factory=list)
    optimizer_steps: int = 0
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        members = [dict(member.own_tensors()) for member in self.members]
        return {"members": members, "held": self.held_scores, "steps": self.optimizer_steps, "seconds": self.seconds}

    def restore(self, state: dict[str, Any], trunk: Trunk) -> None:
        """Become what `state` was made from."""
        for tensors in state["members"]:
            self.members.append(ScalarBranch(trunk, None))
            self.members[-1].load_tensors(tensors)
            self.members[-1].requires_grad_(False)
        self.held_scores = state["held"]
        self.optimizer_steps = state["steps"]
        self.seconds = state["seconds"]


class Member:
    """One branch and the tie parameter on their way, on the Davidson loss."""

    def __init__(self, settings: RewardSettings, job: _Job, pretrained: Pretrained, data: ReadPairs) -> None:
        """Copy the branch, draw its head, and lay out the batches of all passes."""
        self.branch = ScalarBranch(pretrained.trunk, torch.Generator().manual_seed(job.seed))
        self.log_tie = nn.Parameter(torch.zeros((), device=pretrained.trunk.device))
        parameters = [*set_trainable([self.branch]), self.log_tie]
        self.training = Training(parameters, settings.learning_rate, max_norm=1.0)
        order = random.Random(job.seed)
        self.batches = [b for _ in range(settings.epochs) for b in data.batches(job.which, settings.batch, order)]
        self.step = 0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold; the order of the batches follows from the seed."""
        return {"step": self.step, **self.training.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Become what `state` was made from, to the bit."""
        self.training.restore(state)
        self.step = state["step"]


def _train_members(
    settings: RewardSettings,
    pretrained: Pretrained,
    learn: ReadPairs,
    held: ReadPairs,
    jobs: list[_Job],
    run: Run | None,
    folder: Path,
) -> _Done:
    """Train one branch a job, and score what was set aside with each."""
    done = _Done()
    saved: dict[str, Any] = {} if run is None else run.state.pop("training", {})
    if saved:
        done.restore(saved["done"], pretrained.trunk)
    with steps("training the reward model", settings.epochs * sum(len(job.which) for job in jobs)) as advance:
        advance(settings.epochs * sum(len(job.which) for job in jobs[: len(done.held_scores)]))
        for job in jobs[len(done.held_scores) :]:
            member = Member(settings, job, pretrained, learn)
            if saved.get("now"):
                member.restore(saved.pop("now"))
                advance(sum(len(batch) for batch in member.batches[: member.step]))
            while member.step < len(member.batches):
                started = time.monotonic()
                advance(_step(member, learn))
                done.seconds += time.monotonic() - started
                if run is not None and run.due:
                    run.save({"training": {"done": done.state(), "now": member.state()}})
                    os.utime(folder)  # for another machine that opens the workspace, somebody is still at work here
            member.branch.requires_grad_(False)
            if len(done.members) < settings.members:
                done.members.append(member.branch)
            done.held_scores.append(held.all_scores(member.branch))
            done.optimizer_steps += len(member.batches)
    if run is not None:
        run.save({"training": {"done": done.state(), "now": None}})
    return done


def _step(member: Member, data: ReadPairs) -> int:
    """Take one optimiser step; return the number of pairs in its batch."""
    batch = member.batches[member.step]
    number = member.step + 1
    last = len(member.batches)
    member.training.schedule(number, last)
    total = sum(sum(data.pairs[i].weights) for i in batch)
    for micro in data.micro_batches(batch):
        member.training.learn(objective(member, data, micro, total))
    member.training.step(
        MannersError(
            f"the reward model's gradient is not finite at step {number} of {last}; lower reward.learning_rate, or look"
            " at the comparisons of that batch for broken text"
        )
    )
    member.step = number
    return len(batch)


def objective(member: Member, data: ReadPairs, micro: Sequence[int], total: float) -> tuple[Term, ...]:
    """Return the terms of a member's loss on some pairs of a batch whose verdicts weigh `total`.

    Their losses are shares of the mean over the batch's verdicts: sums over these pairs, divided by `total`.
    """

    def preference() -> Loss:
        scores = data.scores(member.branch, micro)
        weights = torch.tensor([data.pairs[i].weights for i in micro], device=scores.device)
        return preference_loss(scores[:, 0], scores[:, 1], weights, member.log_tie, total)

    return (Term("preference", 1.0, "member", preference),)


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
