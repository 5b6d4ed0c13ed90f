"""Reward training: the ensemble learns from all verdicts, is measured on what was set aside, and is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from manners.checkpoint import Run
from manners.errors import MannersError
from manners.feedback.admission import without_judges
from manners.loop import camps, reference
from manners.loop.keep import keep
from manners.loop.learning import TEXTS, learnt, to_learn
from manners.loop.plan import Part, Plan, make_plan
from manners.loop.reference import Reference
from manners.loop.session import Session
from manners.loop.stage import Options
from manners.loop.verdicts import QUEUE, VerdictInputs, serving, verdict_inputs
from manners.models.cost import drawing_bytes, own_bytes, rows_at_once, step_bytes
from manners.models.packing import pack
from manners.models.trunk import Trunk
from manners.results import RewardResult
from manners.reward import measure
from manners.reward.ensemble import RewardModel, score_rendered
from manners.reward.groups import Split, divided
from manners.reward.pairs import read, render_compared
from manners.reward.train import CURVE_SHARES, Trained
from manners.reward.train import train as train_members
from manners.reward.verdicts import label
from manners.settings import RewardSettings
from manners.text import Rendered
from manners.training import training_bytes
from manners.types import MEASURES, Comparison, VersionKind
from manners.workspace import INITIAL

DISAGREEMENT = "disagreement"
"""Name of the facts that tell the queue where the members of the newest reward model differ."""


@dataclass(frozen=True)
class Unit:
    """What the unit of scores rests on."""

    prompts: int
    answers: int
    between: float
    """Share of the variance of scores that lies between prompts, and is in no unit."""


def inputs(session: Session, _: Options, begun: Mapping[str, Any]) -> VerdictInputs:
    """Take the record as it is now, or as it was when the run that goes on was begun."""
    found = verdict_inputs(session, begun, "reward")
    return replace(found, decides={**found.decides, **serving(session, begun, *QUEUE)})


def plan(session: Session, inputs: VerdictInputs | None = None) -> Plan:
    """Memory and forward-backward work of reward training; raises MannersError when there is nothing to learn from.

    It learns from the comparisons of a run, or from all there are.
    """
    settings = session.settings.reward
    branches = settings.members + settings.curve * len(CURVE_SHARES)
    found = to_learn(session, inputs, settings.batch, settings.epochs, branches, settings.augment)
    learning = memory_parts(session.pretrained.trunk, settings, found.prompt, found.response)
    drawing = [learning[0], *_drawing(session, found.split)]
    parts = max(learning, drawing, key=lambda some: sum(part.size for part in some))
    return make_plan(session, "reward", found.work, parts, found.disk)


def memory_parts(trunk: Trunk, settings: RewardSettings, prompt: int, response: int) -> list[Part]:
    """What training takes beside the model, where the longest exchange has so many tokens."""
    members = settings.branches + settings.curve * len(CURVE_SHARES)
    together = pack([Rendered((0,) * prompt, (0,) * response)] * 2, trunk.compute.shares_prompts, 0)
    rows = min(settings.batch * len(together.ids), rows_at_once(trunk, together.ids.shape[1]))
    step = step_bytes(trunk, together, rows)
    own = own_bytes(trunk, head=False)
    return [
        Part("members", members * own, "reward.members"),
        Part("gradient_and_adam", training_bytes(own, trunk.whole.dtype), "model.trainable_layers"),
        Part("forward_and_backward", step, "model.context"),
    ]


def _drawing(session: Session, split: Split) -> list[Part]:
    """Memory of drawing the reference answers, when training is over."""
    trunk, sample = session.pretrained.trunk, session.settings.sample
    prompts = reference.prompts_of(session, split)
    longest = max(len(session.pretrained.renderer.prompt_ids(prompt, sample.max_new_tokens)[0]) for prompt in prompts)
    each = reference.answers_each(prompts)
    distinct = min(-(-sample.batch // each), len(prompts))
    drawn = drawing_bytes(trunk, distinct * each, distinct, longest, sample.max_new_tokens)
    start = [] if session.start == INITIAL else [own_bytes(trunk, head=True)]
    return [
        Part("drawing_responses", drawn, "sample.batch"),
        *(Part("start_version", size, "model.trainable_layers") for size in start),
    ]


def run(session: Session, run: Run, inputs: VerdictInputs) -> RewardResult:
    """Train the ensemble on all verdicts, measure it on what was set aside, normalise it, and keep it as a version."""
    # 1. Members, trained on single verdicts; whole groups of comparisons are set aside.
    settings = session.settings
    name = run.state.setdefault("version", session.next_version_name(VersionKind.REWARD))
    scratch = session.workspace.runs / "trunk-states"
    given = inputs.comparisons, run, scratch, inputs.judges, settings.serve, TEXTS
    trained = train_members(settings.reward, settings.seed, session.pretrained, *given)
    # 2. Scores in units of what the start version's answers to one prompt differ by.
    drawn = reference.draw(session, session.start, trained.split, inputs.upto)
    reward, unit = _normalised(session, trained, drawn)
    # 3. Accuracy, calibration and rivals on what was set aside; whether annotators want different things.
    reward, told = camps.tell_apart(session, trained, reward, drawn, inputs.comparisons)
    result = replace(_result(session, trained, reward, unit, name), camps=told)
    # 4. A version, and what the queue asks about next.
    keep(session, name, reward, result, inputs.watermark)
    spread = disagreement(session, reward, inputs.comparisons)
    session.save_facts(DISAGREEMENT, {"version": name, "spread": spread})
    return result


def _result(session: Session, trained: Trained, reward: RewardModel, unit: Unit, name: str) -> RewardResult:
    """Measure the trained members on what was set aside."""
    settings = session.settings
    margins = reward.margins(trained.member_scores.double())
    worth = np.asarray(margins.mean(dim=0)) * reward.unit
    measured = measure.measure(worth, trained.split.train, trained.split.held_out, settings.seed)
    curve = measure.curve_facts(trained.curve, (*CURVE_SHARES, 1.0)) if settings.reward.curve else {}
    return RewardResult(
        **vars(measured),
        **curve,
        **learnt(trained, name),
        made=len(trained.made.pairs) if settings.reward.augment else None,
        members=settings.reward.members,
        steps=trained.steps,
        ensemble_spread=float(margins.std(dim=0, correction=0).mean()),
        unit_log_odds=reward.unit / measured.temperature if measured.temperature else None,
        reference_prompts=unit.prompts,
        reference_answers=unit.answers,
        between_prompts=unit.between,
    )


def _normalised(session: Session, trained: Trained, drawn: Reference) -> tuple[RewardModel, Unit]:
    """Put scores into units of what the start version's answers to one prompt differ by, and say what these rest on."""
    raw = score_rendered(trained.reward, session.pretrained, drawn.rendered)
    reward = trained.reward.normalised_on(raw, drawn.places)
    if reward.witness is not None:
        alone = score_rendered(reward.witness, session.pretrained, drawn.rendered)
        reward = replace(reward, witness=reward.witness.normalised_on(alone, drawn.places))
    spread = float((raw / torch.tensor(reward.scales).unsqueeze(1)).mean(dim=0).std())
    return reward, Unit(len(set(drawn.places)), len(raw[0]), max(0.0, 1 - 1 / max(spread, 1e-6) ** 2))


def disagreement(session: Session, reward: RewardModel, comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Measure how far the members differ about each comparison that nobody has judged yet, by the comparison's number.

    It is the standard deviation over members of the normalised margin: what to ask people about next. What one of this
    tool's judges has said leaves a comparison for people to judge.
    """
    template = session.pretrained.renderer.template
    waiting = [c for c in without_judges(comparisons) if not c.verdicts and c.asked_how not in MEASURES]
    waiting = [c for c in waiting if not template.objection(c.prompt)]
    exchanges = [(c.prompt, side) for c in waiting for side in (c.left, c.right)]
    if not exchanges:
        return {}
    rendered = render_compared(session.pretrained.renderer, exchanges)
    members = score_rendered(reward, session.pretrained, [rendered[exchange] for exchange in exchanges])
    spread = (members[:, 0::2] - members[:, 1::2]).std(dim=0, correction=0)
    return {str(c.id): round(float(value), 4) for c, value in zip(waiting, spread, strict=True)}


def reference_answers(session: Session, start: str, watermark: int | None) -> list[Rendered]:
    """Return answers of the start version to reference prompts of a reward model that learned up to a watermark.

    None where the store does not hold any more what was learned from.
    """
    settings = session.settings.reward
    try:
        counted = label(
            session.store.comparisons(as_of=watermark), settings.annotators, settings.user_share, settings.account_share
        )
        labelled, _ = read(session.pretrained.renderer, counted)
        split = divided(labelled.pairs, settings, session.settings.seed)
        return reference.draw(session, start, split).rendered
    except MannersError:
        return []
