"""Proximal policy optimisation with a learned baseline and a KL penalty against the start version, on one page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from manners import ranks
from manners.checkpoint import Run
from manners.metrics import RunLog
from manners.models.branches import Branch, ScalarBranch, scalar_head
from manners.models.perplexity import PlainText
from manners.models.pretrained import Pretrained
from manners.models.trunk import States
from manners.ppo import camps, guard
from manners.ppo.course import Course, Material, Roles, ValueFunction, updates_over
from manners.ppo.curves import Metrics, Passes, rollout_metrics
from manners.ppo.guard import Act, Warned
from manners.ppo.learner import Learner, Validation, begin, minibatches
from manners.ppo.objective import adapt_coefficient
from manners.ppo.rollout import Drawer, Rollout, collect, measure, micro_batches
from manners.ppo.shares import sharing
from manners.ppo.terms import objective
from manners.progress import steps
from manners.reward.ensemble import RewardModel
from manners.settings import PPOSettings, SampleSettings
from manners.text import Batch

VALIDATION_ANSWERS = 2
"""To each validation prompt."""


@dataclass(frozen=True)
class PPOResult:
    """The best policy of a run, by the validation measure, and how the run went."""

    policy: Branch
    best_update: int
    episodes: int
    optimizer_steps: int
    kl: float
    """Of the best policy on the validation prompts, in nats per response."""
    seconds: float
    warned: tuple[Warned, ...]
    """The warnings that were acted upon, in order."""
    camps: tuple[float, ...] = ()
    """What the best policy's answers to the validation prompts are worth to each camp of annotators."""

    @property
    def stopped(self) -> str | None:
        """Why the run ended early, or None."""
        return next((w.sentence for w in self.warned if w.act is Act.STOP), None)


def train(
    settings: PPOSettings,
    sample: SampleSettings,
    seed: int,
    pretrained: Pretrained,
    reward: RewardModel,
    material: Material,
    log: RunLog,
    run: Run | None = None,
    start: Branch | None = None,
    begin_as: Branch | None = None,
    drawer: Drawer | None = None,
) -> PPOResult:
    """Fine-tune the policy branch against the reward model; return the version that did best on validation prompts.

    `start` is the reference of the KL penalty and of plain text (None: the initial model), and what the policy begins
    as, unless `begin_as` names another; forgetting is measured from the initial model. Best is not measured by the
    optimised reward: by the member kept out of it (where there is none, by the member that likes the policy least), on
    prompts that are not trained on, less the KL that it cost; see `Learner.offer`. A version whose perplexity on plain
    text rose beyond its limit is not kept. A run that is stopped, by a warning or by numbers that cannot be learnt
    from, returns its best version so far. Raises Unsound when that is still the first one because of the latter, and
    MannersError when a start-up check fails. With a `run`, checkpoints are written, and the work goes on from the one
    that it holds, if any. `drawer` draws the responses in other processes (`scale`); None draws them here.
    Source: Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020; plain text: Ouyang et al. 2022, eq. 2, here
    with the divergence from the start version in place of the likelihood of the text, or beside it (`ppo.terms`).
    """
    started = time.monotonic()
    initial = Branch(pretrained.trunk, trainable=False)
    reference = initial if start is None else start
    policy = Branch(pretrained.trunk, trainable=True)
    if begun := (begin_as or start or initial).own_tensors():  # the initial model has none: the policy is one already
        policy.load_tensors(begun)
    value_parts, value = _value_function(settings, pretrained, policy, reward)
    roles = Roles(policy, reference, value, reward, pretrained)
    prose = PlainText(reference, pretrained, material.prose)
    unseen = PlainText(initial, pretrained, material.validation_prose)
    drawer = drawer or sharing(roles, sample)
    updates = updates_over(settings, len(material.prompts))
    course = Course(settings, updates, begin_as is None, sample, seed, roles, material, prose, unseen, drawer)
    learner = begin(settings, seed, policy, value_parts)
    _go(course, learner, log, run)
    ranks.leave()
    best = learner.best
    policy.load_tensors(best.tensors)
    policy.requires_grad_(False)
    return PPOResult(
        policy=policy,
        best_update=best.update,
        episodes=learner.episodes,
        optimizer_steps=learner.optimizer_steps,
        kl=best.validation.kl,
        seconds=time.monotonic() - started if run is None else run.seconds,
        warned=tuple(learner.warned),
        camps=best.validation.camps,
    )


def _go(course: Course, learner: Learner, log: RunLog, run: Run | None) -> None:
    """Make all updates that are left, or those until a warning stops the run, with versions offered on the way."""
    settings, updates = course.settings, course.updates
    if run is not None and "learner" in run.state:
        learner.restore(run.state.pop("learner"), course.material.prompts)
    else:
        found = _validate(course)
        learner.offer(0, found, settings.forgetting_limit)
        log.write(0, found.metrics())
    each = course.sample.max_new_tokens + settings.epochs * settings.batch
    with steps("PPO", updates * each) as advance:
        advance(learner.update * each)
        while learner.update < updates and not learner.stopped:
            update = learner.update + 1
            try:
                metrics = _update(course, learner, update, log.points, advance)
            except guard.Unsound as error:
                if learner.best.update == 0:
                    raise
                learner.heed([Warned(update, "unsound", Act.STOP, str(error))])
            if learner.stopped:
                break
            if update % settings.validate_every == 0 or update == updates:
                found = _validate(course)
                metrics |= found.metrics()
                learner.offer(update, found, settings.forgetting_limit)
            log.write(update, metrics)
            if run is not None and run.due:
                run.save({"curves": log.position(), "learner": learner.state()})
    if run is not None:
        run.save({"curves": log.position(), "learner": learner.state()})


def _update(
    course: Course, learner: Learner, update: int, history: Sequence[Metrics], advance: Callable[[int], None]
) -> Metrics:
    """Draw a batch of episodes, and learn from it unless a warning stops the run; return its point of the curves."""
    settings = course.settings
    # 1. Responses, scores, KL penalty, advantages.
    started = time.monotonic()
    asked = learner.next_prompts(course.material.prompts, math.ceil(settings.batch / settings.answers))
    chosen = [prompt for prompt in asked for _ in range(settings.answers)][: settings.batch]
    known = course.roles.reward.camps
    rollout = collect(
        course.roles,
        chosen,
        settings,
        course.sample,
        learner.coefficient,
        learner.generator,
        on_step=lambda _: advance(1),
        served=None if known is None else camps.weights(known, learner.gains, settings.worst_camp),
        drawer=course.drawer,
    )
    guard.check_scores(rollout, update)
    guard.check_drift(rollout, update, course.roles.pretrained.trunk.whole.dtype)
    metrics = ranks.agreed(rollout_metrics(rollout, course.roles.pretrained.renderer))
    if update == 1:
        metrics |= guard.check_first_rollout(rollout, course.roles, course.sample.temperature, course.from_reference)
    # 2. Warnings: nothing, or half the step from here on, or the end.
    learner.heed(guard.look([*history, metrics], update, learner.warned, settings))
    if learner.stopped:
        return metrics
    rolled_out = time.monotonic()
    # 3. Several passes over the batch, in random minibatches.
    rate = learner.training.schedule(update, course.updates, learner.step_factor)
    passes = Passes()
    for rows in minibatches(settings, learner.generator):
        _step(course, rollout, rows, learner, passes, update)
        advance(len(rows))
    learner.update = update
    learner.episodes += settings.batch
    learner.gains = camps.remembered(learner.gains, camps.gains(rollout.scored))
    # 4. Adaptive coefficient, if a target is set.
    if settings.kl_target is not None:
        learner.coefficient = adapt_coefficient(
            learner.coefficient, metrics["objective/kl"], settings.kl_target, settings.batch, settings.kl_horizon
        )
    metrics |= passes.metrics() | {"objective/kl_coefficient": learner.coefficient, "lr": rate}
    metrics |= {"time/rollout": rolled_out - started, "time/optimise": time.monotonic() - rolled_out}
    return metrics | {"episode": learner.episodes, "optimizer_steps": learner.optimizer_steps}


def _value_function(
    settings: PPOSettings, pretrained: Pretrained, policy: Branch, reward: RewardModel
) -> tuple[list[nn.Module], ValueFunction]:
    """Make the baseline: a zero head on the policy's branch, or a branch of its own, started from a reward member.

    Where a prompt has one answer, that begins as the member's score; where it has several, what is to be predicted is
    how much better an answer is than the others, and the branch keeps the member's layers under a head of zero.
    """
    if settings.value == "shared":
        head = scalar_head(pretrained.trunk, None)

        def shared(_: States, hidden: Float[Tensor, "B T1 D"], __: Batch) -> Float[Tensor, "B T"]:
            values: Tensor = head(hidden[:, :-1].float()).squeeze(-1)
            return values

        return [head], shared
    branch = ScalarBranch(pretrained.trunk, None)
    branch.load_tensors(reward.members[0].own_tensors())
    known = 1 / reward.scales[0] if settings.answers == 1 else 0.0
    with torch.no_grad():
        branch.scalar.weight.mul_(known)

    def separate(states: States, _: Float[Tensor, "B T1 D"], batch: Batch) -> Float[Tensor, "B T"]:
        return branch.values(states, batch) - reward.shifts[0] * known

    return [branch], separate


def _step(course: Course, rollout: Rollout, rows: list[int], learner: Learner, passes: Passes, update: int) -> None:
    """Take one optimiser step on a minibatch; raises Unsound, and takes none, where it cannot be learnt from."""
    training = learner.training
    number = learner.optimizer_steps
    first = passes.tokens == 0
    total = int(rollout.batch.keep[rows].sum())
    learned = []
    for micro in micro_batches(rollout.batch, ranks.share(rows)):
        episodes = rollout.episodes(micro)
        tokens = int(episodes.keep.sum())
        terms = [term for term in objective(course, episodes, number) if not term.once]
        learned.append((tokens, training.learn(terms, tokens, total)))
    for tokens, seen in ranks.all_of(learned):
        passes.add(tokens, seen, first)
    guard.check_first_ratio(passes.first_ratio()[0], update, course.roles.pretrained.trunk.whole.dtype)
    once = [term for term in objective(course, rollout.episodes(rows[:1]), number) if term.once]
    passes.add_step(ranks.summed(training.learn(once)))
    training.step(
        guard.Unsound(
            f"the loss or its gradient is not finite at update {update}, episodes {sorted(rows)[:8]} of the batch;"
            f" {training.lower('ppo.learning_rate')}"
        )
    )
    learner.optimizer_steps += 1


def _validate(course: Course) -> Validation:
    """Measure the policy on the validation prompts, always with the same random numbers, and on plain text."""
    settings = course.settings
    prompts = course.material.validation[: settings.validation_prompts]
    generator = torch.Generator().manual_seed(course.seed + 1)
    drawn = [prompt for prompt in prompts for _ in range(VALIDATION_ANSWERS)]
    rollout = collect(
        course.roles, drawn, settings, course.sample, settings.kl_coefficient, generator, drawer=course.drawer
    )
    kl = rollout.kl.sum(dim=1)
    members, witness = rollout.scored.members, course.roles.reward.witness
    if witness is None:
        judge = members[members.mean(dim=1).argmin()]
    else:
        judge = measure(rollout.draws, witness, (), course.sample.temperature, shared=True)[0].mean
    gained = camps.gains(rollout.scored)
    if (known := course.roles.reward.camps) is not None:
        judge = judge + camps.liked_more(rollout.scored, camps.weights(known, gained, settings.worst_camp))
    measures = (judge - rollout.penalties - settings.kl_coefficient * kl).view(len(prompts), -1).mean(dim=1)
    found = Validation(
        measures=tuple(measures.tolist()),
        mean=float(members.mean()),
        pessimistic=float(judge.mean()),
        kl=float(kl.mean()),
        forgotten=course.unseen.rise(course.roles.policy),
        camps=tuple(gained),
    )
    return Validation(**ranks.agreed(asdict(found)))
