"""PPO: the policy learns from the newest reward model; the best version is kept, and only evaluation promotes it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from manners import metrics
from manners.checkpoint import PROMPTS, Run
from manners.errors import MannersError
from manners.facts import Facts
from manners.loop.keep import keep
from manners.loop.options import PPOOptions
from manners.loop.plan import Part, Plan, make_plan
from manners.loop.prompts import Prose, answerable, as_begun, draw_prompts, fitting, prompt_lengths, prose, until
from manners.loop.session import Session, digest
from manners.loop.stage import Inputs
from manners.loop.verdicts import serving
from manners.models import versions
from manners.models.cost import drawing_bytes, own_bytes, rows_at_once, states_bytes, step_bytes
from manners.models.trunk import Trunk
from manners.models.whole import is_version
from manners.ppo.course import Material, updates_over
from manners.ppo.rollout import Drawer
from manners.ppo.train import VALIDATION_ANSWERS, PPOResult
from manners.ppo.train import train as train_ppo
from manners.results import PolicyResult
from manners.results.camps import Served
from manners.reward import stored
from manners.reward.ensemble import RewardModel
from manners.scale import cluster
from manners.scale.cost import store_bytes, worker_bytes
from manners.scale.crew import Terms, crew
from manners.scale.workers import Parts
from manners.settings import PPOSettings, Settings
from manners.text import Rendered, collate
from manners.training import training_bytes
from manners.types import PromptUse, VersionKind
from manners.workspace import INITIAL

BEGUN_AS = "the policy that it begins as"
"""What `Inputs.decides` calls it."""
REWARD_MODEL = "the reward model"


@dataclass(frozen=True, kw_only=True)
class PolicyInputs(Inputs):
    """What a policy learns from."""

    reward_name: str
    reward: RewardModel
    prompts: list[tuple[int, ...]]
    validation: list[tuple[int, ...]]
    """By which the best version is chosen."""
    prose: Prose
    skipped: int
    """Prompts of either kind that leave no room for a response."""
    shortened: int
    """Prompts of either kind that lose whole turns."""
    begin_as: str
    """The version that the policy begins as."""
    terms: Terms | None = None
    """Of those who draw and score; None draws in this process. How the run ends does not hang on it."""


def inputs(session: Session, options: PPOOptions, begun: Mapping[str, Any]) -> PolicyInputs:
    """Take the newest reward model and the prompts; raises MannersError where any of them is missing.

    A run that goes on has the reward model and the prompts of when it was begun, and begins as what it was begun as:
    what came since is for the next.
    """
    if options.workers is not None:
        cluster.check()
    if not begun:  # a run that was begun so goes on so
        refuse_apart(session.settings.ppo)
    reward_name = _reward_model(session, begun)
    reward = stored.load_reward(session.workspace, reward_name, session.pretrained)
    if session.settings.ppo.worst_camp and reward.camps is None:
        raise MannersError(
            f"ppo.worst_camp is {session.settings.ppo.worst_camp:g}, and {reward_name} tells no camps of annotators"
            " apart: set it to 0, or train a reward model with reward.camps = 2, which may find that there are none"
        )
    upto = as_begun(session, begun)
    uses = PromptUse.TRAIN, PromptUse.VALIDATE
    asked, watched = (fitting(session, use, answerable(session, use, upto)) for use in uses)
    prompts = list(asked.ids.values())
    drawn = draw_prompts(watched.prompts, session.settings.ppo.validation_prompts, session.settings.seed)
    validation = [watched.ids[prompt] for prompt in drawn]
    if not prompts or not validation:
        raise MannersError(
            f"PPO needs prompts to train on ({len(prompts)} there) and others to choose the best version by"
            f" ({len(validation)} there); `manners prompts import FILE --use train`, or `--use validate`, adds some"
        )
    begin_as = session.start if session.settings.ppo.start == "initial" else session.workspace.current_policy()
    begin_as = begun.get(BEGUN_AS, session.start) if begun else begin_as
    text = prose(session)
    decides = {
        REWARD_MODEL: reward_name,
        PROMPTS: digest((prompts, validation)),
        **until(upto),
        **serving(session, begun, "share_chats"),
        **text.decides,
        **({} if begin_as == session.start else {BEGUN_AS: begin_as}),
    }
    return PolicyInputs(
        decides=decides,
        reward_name=reward_name,
        reward=reward,
        prompts=prompts,
        validation=validation,
        prose=text,
        skipped=asked.too_long + watched.too_long,
        shortened=len(asked.shortened) + len(watched.shortened),
        begin_as=begin_as,
        terms=None if options.workers is None else Terms(options.workers, options.ray_address),
    )


def plan(session: Session, inputs: PolicyInputs | None = None) -> Plan:
    """Memory and steps of PPO."""
    ppo = session.settings.ppo
    if inputs is None:
        refuse_apart(ppo)
    prompts = prompt_lengths(session, PromptUse.TRAIN, PromptUse.VALIDATE)
    updates = updates_over(ppo, len(inputs.prompts) if inputs else prompts.counts[PromptUse.TRAIN].fit)
    work: Facts = {
        "episodes": updates * ppo.batch,
        "optimizer_steps": updates * ppo.epochs * -(-ppo.batch // ppo.minibatch),
        "prompts": prompts.facts,
    }
    rows = rows_drawn(ppo, prompts.counts[PromptUse.VALIDATE].fit)
    distinct = min(rows, max(count.fit for count in prompts.counts.values()))
    trunk = session.pretrained.trunk
    terms = inputs.terms if inputs else None
    needed = memory_parts(trunk, session.settings, rows, distinct, prompts.longest, drawn_here=terms is None)
    if terms:
        share = math.ceil(rows / terms.workers)
        beside = int(session.start != INITIAL)
        each = worker_bytes(trunk, session.settings, share, min(share, distinct), prompts.longest, beside)
        work["each_worker_bytes"] = each
        if terms.address is None and trunk.device.type == "cpu":
            store = store_bytes(trunk, session.settings, rows, prompts.longest)
            needed += [Part("workers", terms.workers * each, "--workers"), Part("object_store", store, "ppo.batch")]
    branch = own_bytes(trunk, head=True)
    if session.start != INITIAL:
        needed.append(Part("start_version", branch, "model.trainable_layers"))
    if inputs and inputs.begin_as != session.start:
        needed.append(Part("policy_begun_as", branch, "model.trainable_layers"))
    return make_plan(session, "ppo", work, needed)


def _reward_model(session: Session, begun: Mapping[str, Any]) -> str:
    """Return the newest reward model, or the one of the run that goes on; raises MannersError where that is gone."""
    workspace = session.workspace
    name = str(begun.get(REWARD_MODEL) or versions.latest(workspace, VersionKind.REWARD))
    if begun and name not in versions.names(workspace, VersionKind.REWARD):
        raise MannersError(
            f"the unfinished run in {workspace.runs / 'ppo'} was begun with {name}, which is not in {workspace.models}"
            " any more: put it back from a backup, or remove the run's folder to begin anew with the newest one"
        )
    return name


def refuse_apart(ppo: PPOSettings) -> None:
    """Raise MannersError for settings that do not go together."""
    if ppo.kl_target is not None and ppo.kl_coefficient == 0:
        raise MannersError(
            "ppo.kl_target adapts ppo.kl_coefficient by a factor, and that is 0: set ppo.kl_coefficient above 0, or"
            " leave ppo.kl_target out"
        )
    if ppo.answers > 1 and ppo.batch % ppo.answers == 1:
        raise MannersError(
            f"with ppo.batch = {ppo.batch} and ppo.answers = {ppo.answers} one prompt of a rollout gets a single"
            " answer, and no other to measure it against: make ppo.batch a multiple of ppo.answers"
        )


def rows_drawn(ppo: PPOSettings, validation: int) -> int:
    """Return how many responses are drawn at a time, at most."""
    return max(ppo.batch, VALIDATION_ANSWERS * min(ppo.validation_prompts, validation))


def memory_parts(
    trunk: Trunk, settings: Settings, rows: int, distinct: int, longest: int, *, drawn_here: bool = True
) -> list[Part]:
    """What a run takes beside the model, from the start version: `rows` are drawn to `distinct` prompts at a time.

    Of drawing responses and training on them, which alternate, the larger counts; drawing not, where workers do it.
    """
    ppo = settings.ppo
    new_tokens = settings.sample.max_new_tokens
    branch = own_bytes(trunk, head=True)
    scalar = own_bytes(trunk, head=False)
    trained = branch + (ppo.value == "separate") * scalar
    # Of two sequences one is padded: attention may keep more then.
    widths = longest, max(1, longest - 1)
    padded = collate([Rendered((0,) * width, (0,) * new_tokens) for width in widths], 0)
    at_once = min(ppo.minibatch, rows_at_once(trunk, padded.ids.shape[1]))
    step = step_bytes(trunk, padded, at_once, drawn=True)
    training = Part("forward_and_backward", step, "sample.max_new_tokens")
    drawn = drawing_bytes(trunk, rows, distinct, longest, new_tokens)
    lower = "ppo.batch" if rows <= ppo.batch else "ppo.validation_prompts"
    drawing = Part("drawing_responses", drawn, lower)
    return [
        Part("policy_and_value", trained, "model.trainable_layers"),
        Part("gradient_and_adam", training_bytes(trained, trunk.whole.dtype), "model.trainable_layers"),
        Part("best_version_kept", branch, "model.trainable_layers"),
        Part("reward_members", settings.reward.branches * scalar, "reward.members"),
        Part("rollout_states", states_bytes(trunk, rows * (longest + new_tokens)), lower),
        max(drawing, training, key=lambda part: part.size) if drawn_here else training,
    ]


def run(session: Session, run: Run, inputs: PolicyInputs) -> PolicyResult:
    """Run PPO against the reward model and keep the best policy as a version."""
    settings = session.settings
    name = run.state.setdefault("version", session.next_version_name(VersionKind.POLICY))
    held_to, unseen = (inputs.prose.by_use[use] for use in (PromptUse.TRAIN, PromptUse.VALIDATE))
    material = Material(inputs.prompts, inputs.validation, held_to, unseen)
    start, begin_as = (
        None if version == known else versions.load_policy(session.workspace, version, session.pretrained)
        for version, known in ((session.start, INITIAL), (inputs.begin_as, session.start))
    )
    curves = metrics.RunLog(session.workspace.runs / name, run.state.get("curves", 0))
    with curves as log, _drawer(session, inputs) as drawer:
        found = train_ppo(
            settings.ppo,
            settings.sample,
            settings.seed,
            session.pretrained,
            inputs.reward,
            material,
            log,
            run,
            start,
            begin_as,
            drawer,
        )
    result = _result(found, log.points, name, inputs)
    keep(session, name, found.policy, result, parent=inputs.begin_as)
    return result


@contextmanager
def _drawer(session: Session, inputs: PolicyInputs) -> Iterator[Drawer | None]:
    """Have what draws responses elsewhere at hand, where that is asked for."""
    if inputs.terms is None:
        yield None
        return
    pretrained, settings = session.pretrained, session.settings
    longest = max(map(len, (*inputs.prompts, *inputs.validation)))
    store = store_bytes(pretrained.trunk, settings, rows_drawn(settings.ppo, len(inputs.validation)), longest)
    with crew(inputs.terms, _parts(session, inputs.reward_name), pretrained, inputs.validation[0], store) as found:
        yield found.draw


def _parts(session: Session, reward: str) -> Parts:
    """Say what workers load: as this process did, whatever folder they begin in."""
    workspace, pretrained = session.workspace, session.pretrained
    chosen = pretrained.chosen or session.settings.model
    folder = Path(chosen.name).expanduser()
    if folder.exists() and not is_version(workspace, chosen.name):
        chosen = replace(chosen, name=str(folder.resolve()))
    lays_out = pretrained.trunk.compute.lays_out
    return Parts(workspace.root.resolve(), chosen, session.settings.sample, session.start, reward, lays_out)


def _result(found: PPOResult, points: list[dict[str, Any]], name: str, inputs: PolicyInputs) -> PolicyResult:
    return PolicyResult(
        episodes=found.episodes,
        optimizer_steps=found.optimizer_steps,
        kl=found.kl,
        episodes_per_second=found.episodes / max(found.seconds, 1e-9),
        stopped=found.stopped,
        best_update=found.best_update,
        curves=_curves(points),
        warnings=tuple(str(warned) for warned in found.warned),
        version=name,
        reward=inputs.reward_name,
        begun_as=inputs.begin_as,
        prompts=len(inputs.prompts),
        prompts_skipped=inputs.skipped,
        prompts_shortened=inputs.shortened,
        served=_served(found, points, inputs.reward) or None,
    )


def _served(found: PPOResult, points: list[dict[str, Any]], reward: RewardModel) -> tuple[Served, ...]:
    """Return what each camp of annotators had before, and has of the version that is kept."""
    if reward.camps is None or not found.camps:
        return ()
    first = next(point for point in points if "validate/camp_1" in point)
    return tuple(
        Served(share=share, before=first[f"validate/camp_{number}"], after=after)
        for number, (share, after) in enumerate(zip(reward.camps.shares.tolist(), found.camps, strict=True), 1)
    )


def _curves(points: list[dict[str, Any]]) -> dict[str, tuple[int | float | None, ...]]:
    """Turn points, each with its metrics, into metrics, each with its values; null where a point lacks one."""
    updates = [p for p in points if "episode" in p]
    validated = [p for p in points if "validate/measure" in p]
    names = sorted({name for p in updates for name in p if not name.startswith("validate/")} - {"step"})
    curves = {name: tuple(p.get(name) for p in updates) for name in names}
    return curves | {
        "update": tuple(p["step"] for p in updates),
        "validate/update": tuple(p["step"] for p in validated),
        "validate/score": tuple(p["validate/measure"] for p in validated),
    }
