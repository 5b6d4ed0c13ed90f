"""Next-token training: rows in, steps out, measured and sampled as it goes; the run goes on from any of its steps."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from manners import ranks
from manners.checkpoint import Run
from manners.errors import MannersError
from manners.metrics import RunLog
from manners.pretrain.dial import Recipe
from manners.pretrain.forward import loss
from manners.pretrain.measure import HeldOut, Measured, measured, sample
from manners.pretrain.model import groups
from manners.pretrain.rows import Rows
from manners.progress import steps
from manners.training import Loss, Term, Training

MICRO_TOKENS = 4096
"""Tokens of one forward and backward on a CPU: what it keeps stays near the processor."""
GPU_MICRO_TOKENS = 32_768
SAMPLED = 64
"""Tokens of a sample on the way."""
POINTS = 1000
"""Points of a curve at most."""


@dataclass(frozen=True)
class Course:
    """What stays the same in a run."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe
    rows: Rows
    quick: HeldOut
    """What the model is measured on along the way."""
    replay: Rows | None = None
    replay_share: float = 0.0
    max_grad_norm: float = 1.0
    measures: int = 10
    seed: int = 0

    @property
    def at_once(self) -> int:
        """Rows of one forward and backward."""
        most = MICRO_TOKENS if self.model.device.type == "cpu" else GPU_MICRO_TOKENS
        return max(1, most // self.recipe.row)

    def measures_at(self, step: int) -> bool:
        """Whether the model is measured behind a step: `measures` times, evenly, and at the end."""
        count = min(self.measures, self.recipe.steps)
        return step * count // self.recipe.steps > (step - 1) * count // self.recipe.steps


@dataclass(frozen=True)
class Taught:
    """How training went."""

    curves: dict[str, list[Any]]
    samples: tuple[tuple[int, str], ...]
    """What the model said of itself behind a step."""
    seconds: float
    """Of the steps alone, not of what was measured between them."""
    muon_seconds: float | None
    """Of them in Muon; None on a GPU."""


class Learner:
    """What changes in a run, and stands in its checkpoints."""

    def __init__(self, course: Course) -> None:
        """Begin at the beginning."""
        self.course = course
        parameters = list(course.model.parameters())
        divided = groups(course.model, course.recipe)
        self.training = Training(parameters, 1.0, course.max_grad_norm, groups=divided)
        self.step = 0
        self.seconds = self.muon_seconds = 0.0
        self.samples: list[tuple[int, str]] = []

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        replay = self.course.replay
        return {
            "step": self.step,
            "seconds": self.seconds,
            "muon_seconds": self.muon_seconds,
            "samples": list(self.samples),
            "rows": self.course.rows.state(),
            "replay": None if replay is None else replay.state(),
            **self.training.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what `state` was made from, to the bit."""
        self.step, self.samples = state["step"], [tuple(one) for one in state["samples"]]
        self.seconds, self.muon_seconds = state["seconds"], state["muon_seconds"]
        self.course.rows.restore(state["rows"])
        if self.course.replay is not None:
            self.course.replay.restore(state["replay"])
        self.training.restore(state)


def train(course: Course, run: Run, log_folder: Path) -> Taught:
    """Train a model in place; with a checkpoint in the run, from there on.

    Raises MannersError where a gradient is not finite.
    """
    recipe = course.recipe
    learner = Learner(course)
    saved: dict[str, Any] = run.state.pop("learner", {})
    keep = run.state.pop("curves", 0)
    if saved:
        learner.restore(saved)
    forward = _compiled(course.model)
    every = max(1, recipe.steps // POINTS)
    with RunLog(log_folder, keep) as log, steps("learning to write (tokens)", recipe.tokens) as advance:
        advance(learner.step * recipe.batch)
        while learner.step < recipe.steps:
            started = time.perf_counter()
            found = _step(learner, forward)
            loud = learner.step % every == 0 or learner.step == recipe.steps
            point = {name: float(value) for name, value in ranks.summed(found).items()} if loud else {}
            learner.seconds += time.perf_counter() - started
            point |= _look(learner) if course.measures_at(learner.step) else {}
            if point:
                rate, tokens = recipe.share(learner.step) * recipe.matrix_rate, learner.step * recipe.batch
                log.write(learner.step, point | {"lr": rate, "tokens": tokens, "time/seconds": learner.seconds})
            advance(recipe.batch)
            if run.due and learner.step < recipe.steps:
                run.save({"curves": log.position(), "learner": learner.state()})
        run.save({"curves": log.position(), "learner": learner.state()})
        points = log.points
    ranks.leave()
    names = dict.fromkeys(name for point in points for name in point)
    muon = learner.training.muon
    return Taught(
        curves={name: [point.get(name) for point in points] for name in names},
        samples=tuple(learner.samples),
        seconds=learner.seconds,
        muon_seconds=None if muon is None or muon.seconds is None else learner.muon_seconds,
    )


def _step(learner: Learner, forward: PreTrainedModel) -> dict[str, Tensor]:
    """Take one step; return what its last rows looked like."""
    course, recipe = learner.course, learner.course.recipe
    number = learner.step + 1
    rows = batch(course, number).to(course.model.device)
    loss_sum = torch.zeros((), device=rows.device)
    mine = ranks.share(rows)
    for some in torch.split(mine, course.at_once) if len(mine) else ():
        found = learner.training.learn([_term(forward, some)], some[:, 1:].numel(), rows[:, 1:].numel())
        loss_sum = loss_sum + found["loss/next_token_avg"] * len(some) / len(rows)
    learner.training.set(recipe.share(number))
    muon = learner.training.muon
    before = 0.0 if muon is None else muon.seconds or 0.0
    learner.training.step(
        MannersError(
            f"the gradient is not finite at step {number} of {recipe.steps}; lower pretrain.rate, or look in the text"
            " for what is no language"
        )
    )
    if muon is not None and muon.seconds is not None:
        learner.muon_seconds += muon.seconds - before
    learner.step = number
    return {"loss/next_token_avg": loss_sum}


def _term(model: PreTrainedModel, rows: Int[Tensor, "B T1"]) -> Term:
    def next_token() -> Loss:
        targets = rows[:, 1:]
        return loss(model, rows, targets) / targets.numel(), {}

    return Term("next_token", 1.0, "model", next_token)


def batch(course: Course, number: int) -> Int[Tensor, "B T1"]:
    """Return the rows of a step, from 1: those of the text, and the share of it that is replayed."""
    recipe = course.recipe
    replayed = 0
    if course.replay is not None:
        share = course.replay_share * recipe.rows
        replayed = int(number * share) - int((number - 1) * share)
    fresh = recipe.rows - replayed
    parts = [torch.from_numpy(course.rows.next(fresh))] if fresh else []
    if course.replay is not None and replayed:
        parts.append(torch.from_numpy(course.replay.next(replayed)))
    return torch.cat(parts)


def _look(learner: Learner) -> dict[str, float]:
    """Measure the model on a part of what is set aside, and let it say something."""
    course = learner.course
    found: Measured = measured(course.model, course.quick, course.at_once)
    [text] = sample(course.model, course.tokenizer, course.seed + learner.step, 1, min(SAMPLED, course.recipe.row - 1))
    learner.samples.append((learner.step, text))
    done = learner.step / course.recipe.steps
    print(f"{done:.0%}, {found.bits:.3f} bits a byte set aside: {' '.join(text.split())}", file=sys.stderr)
    return {"held_out/bits_per_byte": found.bits, "held_out/loss": found.nats}


def _compiled(model: PreTrainedModel) -> Any:
    """Return the model as it is run: compiled on a GPU."""
    if model.device.type != "cuda":
        return model
    compiled: Callable[..., Any] = torch.compile(model)
    return compiled
