"""Supervised fine-tuning: a branch learns to write the assistant's turns of dialogues, token by token."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manners import ranks
from manners.checkpoint import Run
from manners.errors import MannersError
from manners.models.branches import Branch, set_trainable
from manners.models.pretrained import Pretrained
from manners.progress import steps
from manners.reward.groups import uniform
from manners.reward.steps import STEP, units
from manners.settings import SFTSettings
from manners.sft.data import ReadExamples, batches
from manners.sft.examples import LaidOut, Learned
from manners.sft.measure import Reading, reading
from manners.training import Loss, Term, Training
from manners.types import opening


@dataclass(frozen=True)
class Split:
    """Sequences to train on and sequences to measure with; no opening is on both sides."""

    train: tuple[Learned, ...]
    held_out: tuple[Learned, ...]
    past_limit: int = 0
    """Dialogues that could be trained on, and are not, for `sft.limit`."""


@dataclass(frozen=True)
class Trained:
    """A branch with what its report needs."""

    branch: Branch
    before: Reading
    after: Reading
    """Of the sequences that were set aside."""
    losses: tuple[float, ...]
    """On them after each pass."""
    optimizer_steps: int
    tokens: int
    """Tokens that the loss was taken on, over all passes."""
    tokens_per_second: float
    """All tokens of the sequences counted, those of prompts too."""
    lower: str
    """What to set for smaller steps."""


def split(laid: LaidOut, settings: SFTSettings, seed: int) -> Split:
    """Hold out about `sft.set_aside` of the openings, drawn by a seeded hash, with all their dialogues.

    Whether an opening is held out depends on its words and the seed alone. At least two are, so that there is an
    interval, and at least one is left. Raises MannersError where there are fewer than three.
    """
    openings = [opening(example.dialogue) for example in laid.examples]
    order = sorted(set(openings), key=lambda text: uniform("sft", seed, text))
    if len(order) < 3:
        raise MannersError(
            f"the {len(openings)} dialogues begin in {len(order)} ways, and 3 are needed: two are set aside to measure"
            " with; add dialogues with other first turns"
        )
    wanted = sum(uniform("sft", seed, text) < settings.set_aside for text in order)
    held = set(order[: min(max(wanted, 2), len(order) - 1)])
    learn = [number for number, text in enumerate(openings) if text not in held]
    if settings.limit is not None and settings.limit < len(learn):
        learn = sorted(random.Random(seed).sample(learn, settings.limit))
    chosen = set(learn)
    aside = {number for number, text in enumerate(openings) if text in held}
    return Split(
        tuple(one for one in laid.sequences if one.example in chosen),
        tuple(one for one in laid.sequences if one.example in aside),
        len(openings) - len(aside) - len(chosen),
    )


def train(
    settings: SFTSettings, seed: int, pretrained: Pretrained, parts: Split, run: Run | None, folder: Path
) -> Trained:
    """Train a branch on some sequences, and measure it on others before, after each pass and at the end.

    The trunk's states are kept in `folder`. With a `run`, checkpoints are written, and the work goes on from the one
    that it holds, if any.
    """
    # 1. The trunk, once for every sequence, for all passes.
    learn = ReadExamples(pretrained, parts.train, folder / "train", "reading examples")
    held = ReadExamples(pretrained, parts.held_out, folder / "held-out", "reading examples set aside")
    # 2. A copy of the upper part, and the batches of all passes.
    learner = Learner(settings, seed, pretrained, parts.train)
    before = reading(Branch(pretrained.trunk, trainable=False), held)
    # 3. Steps on the mean loss over a batch's learned tokens; after each pass, the loss on what was set aside.
    saved = {} if run is None else run.state.pop("training", {})
    if saved:
        learner.restore(saved)
    _run(learner, learn, held, run, folder)
    learner.branch.requires_grad_(False)
    after = reading(learner.branch, held)
    passed = settings.epochs * sum(len(one.ids) for one in parts.train)
    return Trained(
        branch=learner.branch,
        before=before,
        after=after,
        losses=(*learner.losses, after.loss),
        optimizer_steps=len(learner.batches),
        tokens=settings.epochs * sum(one.learned for one in parts.train),
        tokens_per_second=passed / max(learner.seconds, 1e-9),
        lower=learner.training.lower("sft.learning_rate"),
    )


class Learner:
    """A branch on its way."""

    def __init__(self, settings: SFTSettings, seed: int, pretrained: Pretrained, sequences: Sequence[Learned]) -> None:
        """Copy the upper part, and lay out the batches of all passes, which follow from the seed."""
        self.branch = Branch(pretrained.trunk, trainable=True)
        rate = settings.learning_rate
        own = units(self.branch) if rate is None else None
        peak = STEP if rate is None else rate
        self.training = Training(set_trainable([self.branch]), peak, max_norm=1.0, units=own)
        groups: dict[int, list[int]] = {}
        for index, sequence in enumerate(sequences):
            groups.setdefault(sequence.example, []).append(index)
        order = random.Random(seed)
        passes = [batches(list(groups.values()), settings.batch, order) for _ in range(settings.epochs)]
        self.batches = [batch for one in passes for batch in one]
        self.each = len(passes[0])
        self.step = 0
        self.losses: list[float] = []
        """On what was set aside, after each pass but the last."""
        self.seconds = 0.0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold; the order of the batches follows from the seed."""
        return {"step": self.step, "losses": self.losses, "seconds": self.seconds, **self.training.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Become what `state` was made from, to the bit."""
        self.training.restore(state)
        self.step, self.losses, self.seconds = state["step"], state["losses"], state["seconds"]


def _run(learner: Learner, learn: ReadExamples, held: ReadExamples, run: Run | None, folder: Path) -> None:
    count = sum(len(batch) for batch in learner.batches)
    with steps("learning from examples", count) as advance:
        advance(sum(len(batch) for batch in learner.batches[: learner.step]))
        while learner.step < len(learner.batches):
            started = time.monotonic()
            advance(_step(learner, learn))
            learner.seconds += time.monotonic() - started
            if learner.step % learner.each == 0 and learner.step < len(learner.batches):
                learner.losses.append(reading(learner.branch, held).loss)
            if run is not None and run.due:
                run.save({"training": learner.state()})
                os.utime(folder)  # for another machine that opens the workspace, somebody is still at work here
    if run is not None:
        run.save({"training": learner.state()})
    ranks.leave()


def _step(learner: Learner, data: ReadExamples) -> int:
    """Take one optimiser step; return the number of sequences in its batch."""
    batch = learner.batches[learner.step]
    number, last = learner.step + 1, len(learner.batches)
    learner.training.schedule(number, last)
    total = sum(data.sequences[i].learned for i in batch)
    for micro in data.micro_batches(ranks.share(batch)):
        learner.training.learn(objective(learner.branch, data, micro, total))
    learner.training.step(
        MannersError(
            f"the gradient is not finite at step {number} of {last} of learning from examples;"
            f" {learner.training.lower('sft.learning_rate')}, or look at the dialogues of that batch for broken text"
        )
    )
    learner.step = number
    return len(batch)


def objective(branch: Branch, data: ReadExamples, micro: Sequence[int], total: int) -> tuple[Term, ...]:
    """Return the terms of the loss on some sequences of a batch that has `total` learned tokens.

    -sum of log p(token | what stands before it) over learned tokens / total, in nats: a share of the batch's mean.
    """

    def likelihood() -> Loss:
        logprobs, _ = branch.read(*data.states(branch, micro))
        return -logprobs.sum() / total, {}

    return (Term("likelihood", 1.0, "branch", likelihood),)
