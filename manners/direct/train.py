"""Direct preference optimisation: the policy learns from single verdicts, without a reward model, on one page."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from manners import ranks
from manners.checkpoint import Run
from manners.direct.learner import Course, Done, Learner, Referred, Speaker, means
from manners.direct.watch import Look, Watch, too_far
from manners.errors import MannersError
from manners.metrics import RunLog
from manners.models.branches import Branch
from manners.models.pretrained import Pretrained
from manners.ppo.guard import KL_TOLERANCE
from manners.progress import steps
from manners.results import Shortened
from manners.reward.assisted import Assisted, assisted
from manners.reward.groups import Split, divided, slice_off
from manners.reward.labelled import Labelled
from manners.reward.pairs import ReadPairs, read, sayable, shortened, sides_said, unended
from manners.reward.passes import SLICE, candidates
from manners.reward.train import folder_beside
from manners.reward.verdicts import label
from manners.settings import Settings
from manners.training import Loss, Term
from manners.types import Annotator, Comparison

LOOKS = 4
"""How often the policy is looked at after its start, the last time at its end."""


@dataclass(frozen=True)
class Material:
    """What is learnt from, and what is asked on the way."""

    comparisons: Sequence[Comparison]
    prompts: Sequence[tuple[int, ...]]
    """Token ids of prompts whose fresh answers say how far the policy has gone."""
    judges: frozenset[Annotator] = frozenset()
    """Admitted ones, whose verdicts are learnt from where people have none."""


@dataclass(frozen=True)
class Trained:
    """A policy with what its report needs."""

    policy: Branch
    labelled: Labelled
    split: Split
    margins: Float[Tensor, " pairs"]
    """Log-odds that the policy gives to the left side of each pair that was set aside."""
    before: dict[str, float]
    """Means over the verdicts set aside, before any step: `loss`, and what `loss.dpo` counts."""
    after: dict[str, float]
    """The same of the policy."""
    tried: tuple[tuple[int, float], ...]
    """Passes that the scout made, and its loss on the slice of the training groups that it did not learn from."""
    passes: int
    optimizer_steps: int
    """All that were taken: those of the scout, and those after the policy that is kept."""
    tokens: int
    """Tokens that the policy has learnt from, of all passes."""
    pairs_per_second: float
    looks: tuple[Look, ...]
    kept: Look
    """The one at the policy that is kept."""
    stopped: str | None
    """Why the run ended early, or None."""
    shortened: Shortened
    assisted: Assisted
    """What a judge added to the pairs that were trained on."""


def train(
    settings: Settings,
    pretrained: Pretrained,
    material: Material,
    log: RunLog,
    run: Run | None = None,
    start: Branch | None = None,
    scratch: Path | None = None,
) -> Trained:
    """Train a policy branch on verdicts, and measure it on the groups that reward training sets aside too.

    `start` is the reference, and what the policy begins as (None: the initial model). With a `run`, checkpoints are
    written, and the work goes on from the one that it holds, if any. A run whose policy goes too far from the reference
    (`dpo.kl_stop`) is stopped, and the policy is as it was when it was last looked at. Raises MannersError where there
    is nothing to learn from (see `reward.verdicts`), or a start-up check fails.
    """
    # 1. Single verdicts, as the reward model counts and reads them, on what can be said; the same groups set aside.
    chosen = settings.reward
    shares = chosen.user_share, chosen.account_share
    counted = label(material.comparisons, chosen.annotators, *shares, settings.serve)
    labelled, rendered = read(pretrained.renderer, counted)
    shut_out = pretrained.trunk.vocabulary.shut_out
    split = divided(labelled.pairs, chosen, settings.seed)
    labelled = sayable(labelled, rendered, shut_out)
    split = sides_said(split, rendered, shut_out)
    beside = material.judges, chosen.human_share, shut_out
    more = assisted(pretrained.renderer, material.comparisons, labelled, split, *beside)
    rendered = unended(pretrained.renderer, rendered | more.rendered)
    reference = Branch(pretrained.trunk, trainable=False) if start is None else start
    with folder_beside(scratch) as folder:
        # 2. The trunk, once for every sequence; the reference, once for every response.
        by_reference = Speaker(reference, settings.sample.temperature)
        learn, held = (
            Referred.of(ReadPairs(pretrained, pairs, rendered, Path(folder) / name, title), by_reference)
            for pairs, name, title in (
                ((*split.train, *more.pairs), "train", "reading pairs"),
                (split.held_out, "held-out", "reading pairs set aside"),
            )
        )
        watch = Watch(reference, pretrained, material.prompts, settings.sample, settings.seed)
        course = Course(settings, pretrained, learn, held, watch, start)
        # 3. A scout learns from a part of the pairs, for more and more passes, until the rest says that it is enough.
        # 4. The policy learns from all of them, for as many.
        done, policy, passes = _learn_all(course, run, log, Path(folder))
        before, _ = held.measured(by_reference, settings.dpo.beta)
        after, margins = held.measured(policy.speaker, settings.dpo.beta)
    return Trained(
        policy=policy.branch,
        labelled=labelled,
        split=split,
        margins=margins,
        before=before,
        after=after,
        tried=tuple(done.tried),
        passes=passes,
        optimizer_steps=done.optimizer_steps,
        tokens=round(learn.pairs.tokens * passes * done.kept.step / len(policy.batches)),
        pairs_per_second=done.pairs / max(done.seconds, 1e-9),
        looks=tuple(done.looks),
        kept=done.kept,
        stopped=done.stopped,
        shortened=shortened([*learn.pairs.rendered, *held.pairs.rendered]),
        assisted=more,
    )


@dataclass(frozen=True)
class _Going:
    """Where a run is written down while it goes on."""

    run: Run | None
    log: RunLog
    folder: Path
    advance: Callable[[int], None]

    def save(self, done: Done, now: Learner | None, *, always: bool = False) -> None:
        """Write a checkpoint if it is time for one."""
        if self.run is not None and (always or self.run.due):
            training = {"done": done.state(), "now": None if now is None else now.state()}
            self.run.save({"curves": self.log.position(), "training": training})
            os.utime(self.folder)  # for another machine that opens the workspace, somebody is still at work here


def _learn_all(course: Course, run: Run | None, log: RunLog, folder: Path) -> tuple[Done, Learner, int]:
    """Try passes with scouts, then train the policy; return it with the passes that it has made."""
    settings, pairs = course.settings, course.learn.pairs.pairs
    fit, off = slice_off(pairs, SLICE, settings.seed)
    off = [i for i in off if sum(pairs[i].counts)] or off  # people say when it is enough
    rule = replace(settings.reward, epochs=settings.dpo.passes)
    tries = candidates(rule, len(pairs)) if off else ()
    done = Done()
    saved: dict[str, Any] = {} if run is None else run.state.pop("training", {})
    if saved:
        done.restore(saved["done"])
    most = sum(tries) * len(fit) + max(tries, default=settings.dpo.passes or 1) * len(pairs)
    with steps("DPO", most) as advance:
        going = _Going(run, log, folder, advance)
        advance(done.pairs)
        while (losses := [loss for _, loss in done.tried])[-1:] == sorted(losses)[:1] and len(losses) < len(tries):
            scout = _resumed(Learner(course, fit, tries[len(losses)], settings.seed * 1000 + 1), saved)
            while scout.step < len(scout.batches):
                _step(course, scout, done, going)
                going.save(done, scout)
            done.tried.append((tries[len(losses)], ranks.agreed(_loss_on(course, scout, off))))
        passes = min(done.tried, key=lambda one: one[1])[0] if done.tried else settings.dpo.passes or 1
        policy = _resumed(Learner(course, range(len(pairs)), passes, settings.seed * 1000), saved)
        _learn_watched(course, policy, done, going)
        going.save(done, policy, always=True)
    ranks.leave()
    policy.branch.load_tensors(done.sound)
    policy.branch.requires_grad_(False)
    return done, policy, passes


def _resumed(learner: Learner, saved: dict[str, Any]) -> Learner:
    """Take up what a checkpoint holds of the branch that was in training, once."""
    if saved.get("now"):
        learner.restore(saved.pop("now"))
    return learner


def _learn_watched(course: Course, policy: Learner, done: Done, going: _Going) -> None:
    """Train the policy, and look at what it answers before, on the way and at its end, until it goes too far."""
    last = len(policy.batches)
    due = {round(number * last / LOOKS) for number in range(1, LOOKS + 1)}
    if not done.looks:
        _check_start(course, policy)
        _look(course, policy, done)
        going.save(done, policy)
    while policy.step < last and not done.stopped:
        point = _step(course, policy, done, going)
        if policy.step in due:
            point |= _look(course, policy, done)
        going.log.write(policy.step, point)
        going.save(done, policy)


def _look(course: Course, policy: Learner, done: Done) -> dict[str, float]:
    """Look at what the policy answers now, and keep it unless it has gone too far; return what goes to the curves."""
    look = Look(**ranks.agreed(asdict(course.watch.look(policy.step, policy.branch))))
    done.looks.append(look)
    done.stopped = too_far(look, done.looks[0], course.settings.dpo.kl_stop)
    if done.stopped is None:
        done.sound = {name: tensor.clone() for name, tensor in policy.branch.own_tensors().items()}
    return {
        "objective/kl": mean(look.kl),
        "response/length": mean(look.lengths),
        "response/finished": look.finished,
    }


def _step(course: Course, learner: Learner, done: Done, going: _Going) -> dict[str, float]:
    """Take one optimiser step, and return its point of the curves."""
    started = time.monotonic()
    batch, number, last = learner.batches[learner.step], learner.step + 1, len(learner.batches)
    rate = learner.training.schedule(number, last)
    total = course.learn.pairs.weight(batch)
    found: dict[str, Tensor] = {}
    for micro in course.learn.pairs.micro_batches(ranks.share(batch)):
        for name, value in learner.training.learn(objective(course, learner, micro, total)).items():
            found[name] = found[name] + value if name in found else value
    found = ranks.summed(found)
    learner.training.step(
        MannersError(
            f"the policy's gradient is not finite at step {number} of {last};"
            f" {learner.training.lower('dpo.learning_rate')}, or look at the comparisons of that batch for broken text"
        ),
        weight=total / (len(batch) * learner.usual),
    )
    learner.step = number
    done.optimizer_steps += 1
    done.pairs += len(batch)
    done.seconds += time.monotonic() - started
    going.advance(len(batch))
    return means(float(found["loss/dpo_avg"]), found) | {"lr": rate}


def objective(course: Course, learner: Learner, micro: Sequence[int], total: float) -> tuple[Term, ...]:
    """Return the terms of a policy's loss on some pairs of a batch whose verdicts weigh `total`.

    Their losses are shares of the mean over the batch's verdicts: sums over these pairs, divided by `total`.
    """

    def direct() -> Loss:
        return course.learn.loss(learner.speaker, micro, course.settings.dpo.beta, total)

    return (Term("dpo", 1.0, "policy", direct),)


@torch.no_grad()
def _loss_on(course: Course, learner: Learner, which: Sequence[int]) -> float:
    """Return a policy's loss on some pairs, in nats a verdict."""
    pairs, beta = course.learn.pairs, course.settings.dpo.beta
    total = pairs.weight(which)
    return sum(float(course.learn.loss(learner.speaker, m, beta, total)[0]) for m in pairs.micro_batches(which))


@torch.no_grad()
def _check_start(course: Course, policy: Learner) -> None:
    """Prove before any step that the policy says of the first batch what the reference says; see also `Watch.look`."""
    learn = course.learn
    first = learn.pairs.micro_batches(policy.batches[0])[0]
    tokens = torch.tensor([[len(learn.pairs.rendered[i].response_ids) for i in learn.pairs.sides[p]] for p in first])
    gap = learn.pairs.scores(policy.speaker, first).cpu() - learn.reference[first]
    off = float((gap / tokens).abs().max())
    if not off <= KL_TOLERANCE:
        raise MannersError(
            f"start-up check failed: before any training the policy's log-probability of a response is off the"
            f" reference's by {off:.2g} nats a token; a token's probability depends on the other rows of its batch, or"
            " the policy does not begin as the reference"
        )
