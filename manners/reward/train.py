"""Train the reward model on single verdicts, and measure it on groups of comparisons it never saw."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from manners import ranks
from manners.checkpoint import Run
from manners.errors import MannersError
from manners.models.branches import ScalarBranch, set_trainable
from manners.models.pretrained import Pretrained
from manners.models.trunk import Trunk
from manners.progress import steps
from manners.results import Shortened
from manners.reward.assisted import Assisted, assisted
from manners.reward.augment import Texts, augmented
from manners.reward.baselines import CurvePoint, accuracy
from manners.reward.ensemble import RewardModel
from manners.reward.groups import Split, divided, subset
from manners.reward.labelled import Labelled, LabelledPair
from manners.reward.length import WEIGHT, Pulls, log_lengths, pulls, ruler
from manners.reward.loss import preference_loss
from manners.reward.noise import softened
from manners.reward.pairs import ReadPairs, read, shortened
from manners.reward.passes import Job, Plan, planned
from manners.reward.steps import STEP, units
from manners.reward.verdicts import label
from manners.settings import RewardSettings, ServeSettings
from manners.training import Loss, Term, Training
from manners.types import Annotator, Comparison
from manners.workspace import scratch_folder

CURVE_SHARES = (0.25, 0.5)
"""Shares of the training verdicts at which the learning curve is measured, beside all of them: with as many steps, so
that each costs what a member costs."""


@dataclass(frozen=True)
class Trained:
    """A reward model with what its report needs."""

    reward: RewardModel
    labelled: Labelled
    split: Split
    margins: Float[Tensor, " pairs"]
    """Score left - score right of the held-out pairs, raw, mean over members: not yet scaled to weigh alike."""
    member_scores: Float[Tensor, "K pairs 2"]
    """Raw scores of both sides of the held-out pairs, by member."""
    curve: tuple[CurvePoint, ...]
    tried: tuple[tuple[int, float], ...]
    """Passes that the scout made, and its loss on the slice of the training groups that it did not learn from."""
    passes: int
    """Passes that every member made."""
    steps: int
    """Optimiser steps of a member."""
    optimizer_steps: int
    """Of all that was trained."""
    pairs_per_second: float
    shortened: Shortened
    """What did not fit into the context, of the distinct responses with their prompts."""
    assisted: Assisted
    """What a judge added to the pairs that were trained on."""
    made: Assisted
    """What was made of them beside (`reward.augment`)."""


def train(
    settings: RewardSettings,
    seed: int,
    pretrained: Pretrained,
    comparisons: Sequence[Comparison],
    run: Run | None = None,
    scratch: Path | None = None,
    judges: AbstractSet[Annotator] = frozenset(),
    serve: ServeSettings | None = None,
    texts: Texts | None = None,
) -> Trained:
    """Train an ensemble of reward branches and score the pairs that were set aside.

    With a `run`, checkpoints are written, and the work goes on from the one that it holds, if any. The trunk's states
    are kept meanwhile in a folder beside `scratch`, or in the system's folder for such things. The verdicts of `judges`
    are trained on where people have none, and measure nothing; nor does what `texts` makes of answers, which
    `reward.augment` asks for. By `serve` the queue gives comparisons out (`reward.drawing`). Raises MannersError when
    there is nothing to learn from (see `reward.verdicts`), or no room for the states.
    """
    # 1. Single verdicts, counted; what differs where the model reads it; whole groups set aside; perhaps a random part.
    # What is trained on may be weighed by how often people are wrong.
    counted = label(comparisons, settings.annotators, settings.user_share, settings.account_share, serve)
    labelled, rendered = read(pretrained.renderer, counted)
    split = divided(labelled.pairs, settings, seed)
    split = replace(split, train=softened(split.train, settings))
    more = assisted(pretrained.renderer, comparisons, labelled, split, judges, settings.human_share)
    made = augmented(pretrained.renderer, (*split.train, *more.pairs), settings.augment, seed, texts)
    learned, rendered = (*split.train, *more.pairs, *made.pairs), rendered | more.rendered | made.rendered
    with folder_beside(scratch) as folder:
        # 2. The trunk, once for every sequence, for all epochs and members.
        learn = ReadPairs(pretrained, learned, rendered, Path(folder) / "train", "reading pairs")
        held = ReadPairs(pretrained, split.held_out, rendered, Path(folder) / "held-out", "reading pairs set aside")
        # 3. A scout learns from a part of the pairs, for more and more passes, until the rest says that it is enough.
        # 4. Members: the same pairs in another order, from another head; measured on what was set aside.
        parts = [subset(learned, share, seed) for share in CURVE_SHARES] if settings.curve else []
        plan = planned(settings, learned, parts, seed)
        done = _train_members(settings, pretrained, learn, held, plan, run, Path(folder))
    scores = torch.stack(done.held_scores[: settings.members])
    mean = scores.mean(dim=0)
    curve = _curve(split, [*parts, learned], [*done.held_scores[settings.members :], done.held_scores[0]], seed)
    witness = None if done.scout is None else RewardModel((done.scout,), (0.0,), (1.0,))
    reward = RewardModel(tuple(done.members), (0.0,) * len(done.members), (1.0,) * len(done.members), witness)
    return Trained(
        reward,
        labelled,
        split,
        margins=mean[:, 0] - mean[:, 1],
        member_scores=scores,
        curve=curve,
        tried=tuple(done.tried),
        passes=plan.settled(done.tried),
        steps=done.steps,
        optimizer_steps=done.optimizer_steps,
        pairs_per_second=done.pairs / max(done.seconds, 1e-9),
        shortened=shortened([*learn.rendered, *held.rendered]),
        assisted=more,
        made=made,
    )


def folder_beside(scratch: Path | None) -> AbstractContextManager[str | Path]:
    """Return a folder for the trunk's states that is gone afterwards."""
    return tempfile.TemporaryDirectory() if scratch is None else scratch_folder(scratch)


@dataclass
class _Done:
    """Branches trained so far. Those of the learning curve leave their scores only."""

    tried: list[tuple[int, float]] = field(default_factory=list)
    """Passes of the scout, and its loss on the slice."""
    scout: ScalarBranch | None = None
    """As it was where it did best: the witness."""
    members: list[ScalarBranch] = field(default_factory=list)
    held_scores: list[Tensor] = field(default_factory=list)
    steps: int = 0
    optimizer_steps: int = 0
    pairs: int = 0
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        members = [dict(member.own_tensors()) for member in self.members]
        scout = None if self.scout is None else dict(self.scout.own_tensors())
        counts = {"steps": self.optimizer_steps, "each": self.steps, "pairs": self.pairs, "seconds": self.seconds}
        return {"tried": self.tried, "scout": scout, "members": members, "held": self.held_scores, **counts}

    def restore(self, state: dict[str, Any], trunk: Trunk) -> None:
        """Become what `state` was made from; those of before there was a scout lack what came with it."""
        self.tried = state.get("tried", [])
        self.members = [_frozen(tensors, trunk) for tensors in state["members"]]
        self.scout = _frozen(state["scout"], trunk) if state.get("scout") else None
        self.held_scores = state["held"]
        self.steps, self.pairs = state.get("each", 0), state.get("pairs", 0)
        self.optimizer_steps, self.seconds = state["steps"], state["seconds"]


def _frozen(tensors: dict[str, Tensor], trunk: Trunk) -> ScalarBranch:
    branch = ScalarBranch(trunk, None)
    branch.load_tensors(tensors)
    branch.requires_grad_(False)
    return branch


class Member:
    """One branch and the tie parameter on their way, on the Davidson loss."""

    def __init__(self, settings: RewardSettings, job: Job, pretrained: Pretrained, data: ReadPairs) -> None:
        """Copy the branch, draw its head, and lay out the batches of all passes."""
        self.branch = ScalarBranch(pretrained.trunk, torch.Generator().manual_seed(job.seed))
        self.ruler = ruler(data, job.which) if settings.length_head else None
        self.log_tie = nn.Parameter(torch.zeros((), device=pretrained.trunk.device))
        parameters = [*set_trainable([self.branch]), self.log_tie]
        rate = settings.learning_rate
        own = [*units(self.branch), 1.0] if rate is None else None
        self.training = Training(parameters, STEP if rate is None else rate, max_norm=1.0, units=own)
        order = random.Random(job.seed)
        self.usual = data.usual(job.which)
        self.batches = [b for _ in range(job.passes) for b in data.batches(job.which, settings.batch, order)]
        self.step = 0

    def pulls(self, data: ReadPairs, batch: Sequence[int]) -> Pulls | None:
        """Return how the margins of a batch are pulled off length; None where length has no head of its own."""
        return None if self.ruler is None else pulls(self.branch, data, batch)

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
    plan: Plan,
    run: Run | None,
    folder: Path,
) -> _Done:
    """Train one branch a job, and score what was set aside with each."""
    done = _Done()
    saved: dict[str, Any] = {} if run is None else run.state.pop("training", {})
    if saved:
        done.restore(saved["done"], pretrained.trunk)
    with steps("training the reward model", plan.most) as advance:
        advance(done.pairs)
        while (job := plan.next(done.tried, len(done.held_scores))) is not None:
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
            _finish(done, plan, job, member, settings, learn, held)
    if run is not None:
        run.save({"training": {"done": done.state(), "now": None}})
    ranks.leave()
    return done


def _finish(
    done: _Done, plan: Plan, job: Job, member: Member, settings: RewardSettings, learn: ReadPairs, held: ReadPairs
) -> None:
    """Take what a trained branch leaves."""
    member.branch.requires_grad_(False)
    done.optimizer_steps += len(member.batches)
    done.pairs += sum(len(batch) for batch in member.batches)
    if job.seed == plan.scout.seed:
        done.tried.append((job.passes, ranks.agreed(_loss(member, learn, plan.slice))))
        if job.passes == plan.settled(done.tried):
            done.scout = member.branch
        return
    if len(done.members) < settings.members:
        done.members.append(member.branch)
        done.steps = len(member.batches)
    done.held_scores.append(held.all_scores(member.branch))


@torch.no_grad()
def _loss(member: Member, data: ReadPairs, which: Sequence[int]) -> float:
    """Return a member's loss on some pairs, in nats a verdict."""
    total = data.weight(which)
    parts = [term for micro in data.micro_batches(which) for term in objective(member, data, micro, total)]
    return sum(float(term.loss()[0]) for term in parts)


def _step(member: Member, data: ReadPairs) -> int:
    """Take one optimiser step; return the number of pairs in its batch."""
    batch = member.batches[member.step]
    number = member.step + 1
    last = len(member.batches)
    member.training.schedule(number, last)
    total = data.weight(batch)
    by = member.pulls(data, batch)
    for micro in data.micro_batches(ranks.share(batch)):
        member.training.learn(objective(member, data, micro, total, by))
    member.training.step(
        MannersError(
            f"the reward model's gradient is not finite at step {number} of {last};"
            f" {member.training.lower('reward.learning_rate')}, or look at the comparisons of that batch for broken"
            " text"
        ),
        weight=total / (len(batch) * member.usual),
    )
    member.step = number
    return len(batch)


def objective(
    member: Member, data: ReadPairs, micro: Sequence[int], total: float, by: Pulls | None = None
) -> tuple[Term, ...]:
    """Return the terms of a member's loss on some pairs of a batch whose verdicts weigh `total`.

    Their losses are shares of the mean over the batch's verdicts: sums over these pairs, divided by `total`. `by` says
    how the batch's margins are pulled off length (`reward.length`); without it that is left out.
    """

    @cache
    def scores() -> Tensor:
        return data.scores(member.branch, micro)

    def preference() -> Loss:
        left, right = scores().unbind(dim=1)
        if member.ruler is not None:
            left = left + torch.from_numpy(member.ruler * log_lengths(data, micro)).to(left)
        weights = torch.tensor([data.pairs[i].weights for i in micro], device=left.device)
        return preference_loss(left, right, weights, member.log_tie, total)

    def length() -> Loss:
        pulled = torch.tensor([(by or {}).get(i, 0.0) for i in micro]).to(scores())
        return (pulled * (scores()[:, 0] - scores()[:, 1])).sum(), {}

    found = (Term("preference", 1.0, "member", preference),)
    return found if by is None else (*found, Term("length", WEIGHT, "member", length))


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
