"""DPO: the policy learns from the verdicts themselves; it is kept as any policy is, and only evaluation promotes it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from manners import metrics
from manners.checkpoint import PROMPTS, Run
from manners.direct.train import Material, Trained
from manners.direct.train import train as train_policy
from manners.direct.watch import ANSWERS
from manners.errors import MannersError
from manners.feedback.statistics import cluster_bootstrap
from manners.loop.keep import keep
from manners.loop.learning import labelled_of, learnt, split_of, to_learn
from manners.loop.plan import Part, Plan, make_plan
from manners.loop.prompts import answerable, draw_prompts, fitting, short_enough
from manners.loop.session import Session, digest
from manners.loop.stage import Options
from manners.loop.verdicts import QUEUE, VerdictInputs, serving, verdict_inputs
from manners.models import versions
from manners.models.branches import HEAD_CHUNK
from manners.models.cost import drawing_bytes, head_bytes, own_bytes, rows_at_once, step_bytes
from manners.models.packing import pack
from manners.models.trunk import Trunk
from manners.results import Measured
from manners.results.direct import DirectResult
from manners.reward import measure
from manners.reward.groups import Split
from manners.settings import Settings
from manners.store import Newest
from manners.text import Rendered
from manners.training import training_bytes
from manners.types import Interval, PromptUse, VersionKind
from manners.workspace import INITIAL


@dataclass(frozen=True)
class Asked:
    """Prompts that a policy is looked at with."""

    ids: list[tuple[int, ...]]
    set_aside: bool
    """Whether they are of pairs set aside, since there are none for validation."""


@dataclass(frozen=True, kw_only=True)
class DirectInputs(VerdictInputs):
    """What a policy learns from."""

    asked: Asked


def inputs(session: Session, _: Options, begun: Mapping[str, Any]) -> DirectInputs:
    """Take the record as it is now, or as it was when the run that goes on was begun, and the prompts to look with.

    Raises MannersError where there is nothing to learn from, or no prompt leaves room for an answer.
    """
    found = verdict_inputs(session, begun, "dpo")
    asked = _asked(session, split_of(session, labelled_of(session, found.comparisons)), found.upto)
    decides = {**found.decides, **serving(session, begun, *QUEUE), PROMPTS: digest(asked.ids)}
    return DirectInputs(**vars(found) | {"decides": decides, "asked": asked})


def _asked(session: Session, split: Split, upto: Newest | None = None) -> Asked:
    """Return the prompts to look with: for validation, or else those of pairs set aside; drawn by the seed."""
    count, seed = session.settings.dpo.validation_prompts, session.settings.seed
    validation = fitting(session, PromptUse.VALIDATE, answerable(session, PromptUse.VALIDATE, upto)).ids
    known = validation or short_enough(session, [pair.prompt for pair in split.held_out]).ids
    if not known:
        raise MannersError(
            "no prompt for validation is there, and none of the pairs set aside leaves room for an answer of"
            " sample.max_new_tokens, so that nobody would see how far the policy goes; `manners prompts import FILE"
            " --use validate` adds some"
        )
    chosen = draw_prompts(list(known), count, seed)
    return Asked([known[prompt] for prompt in chosen], not validation)


def plan(session: Session, inputs: DirectInputs | None = None) -> Plan:
    """Memory and forward-backward work of DPO; raises MannersError when there is nothing to learn from."""
    settings, trunk = session.settings, session.pretrained.trunk
    found = to_learn(session, inputs, settings.dpo.batch, settings.dpo.passes)
    asked = inputs.asked if inputs else _asked(session, found.split)
    needed = memory_parts(trunk, settings, found.prompt, found.response, len(asked.ids), max(map(len, asked.ids)))
    if session.start != INITIAL:
        needed.append(Part("start_version", own_bytes(trunk, head=True), "model.trainable_layers"))
    return make_plan(session, "dpo", {**found.work, "prompts": len(asked.ids)}, needed, found.disk)


def memory_parts(trunk: Trunk, settings: Settings, prompt: int, response: int, asked: int, longest: int) -> list[Part]:
    """What training takes beside the model, where the longest exchange has so many tokens.

    Of learning from pairs and answering `asked` prompts of at most `longest` tokens, which alternate, the larger
    counts.
    """
    together = pack([Rendered((0,) * prompt, (0,) * response)] * 2, trunk.compute.shares_prompts, 0)
    rows = min(settings.dpo.batch * len(together.ids), rows_at_once(trunk, together.ids.shape[1]))
    predicted = rows * 2 * response // len(together.ids)
    step = step_bytes(trunk, together, rows) + -(-predicted // HEAD_CHUNK) * head_bytes(trunk)
    drawn = drawing_bytes(trunk, asked * ANSWERS, asked, longest, settings.sample.max_new_tokens)
    branch = own_bytes(trunk, head=True)
    return [
        Part("policy", branch, "model.trainable_layers"),
        Part("gradient_and_adam", training_bytes(branch, trunk.whole.dtype), "model.trainable_layers"),
        Part("last_look_kept", branch, "model.trainable_layers"),
        max(
            Part("forward_and_backward", step, "model.context"),
            Part("drawing_responses", drawn, "dpo.validation_prompts"),
            key=lambda part: part.size,
        ),
    ]


def run(session: Session, run: Run, inputs: DirectInputs) -> DirectResult:
    """Train the policy on all verdicts, measure it on what was set aside, and keep it as a version."""
    name = run.state.setdefault("version", session.next_version_name(VersionKind.POLICY))
    start = None
    if session.start != INITIAL:
        start = versions.load_policy(session.workspace, session.start, session.pretrained)
    if inputs.asked.set_aside:
        print("no prompts for validation: the policy is looked at with those of pairs set aside", file=sys.stderr)
    scratch = session.workspace.runs / "trunk-states"
    material = Material(inputs.comparisons, inputs.asked.ids, inputs.judges)
    with metrics.RunLog(session.workspace.runs / name, run.state.get("curves", 0)) as log:
        trained = train_policy(session.settings, session.pretrained, material, log, run, start, scratch)
    result = _result(session, trained, inputs, name)
    keep(session, name, trained.policy, result, inputs.watermark, parent=session.start)
    return result


def _result(session: Session, trained: Trained, inputs: DirectInputs, name: str) -> DirectResult:
    """Measure the policy on what was set aside, and by its fresh answers."""
    settings = session.settings
    split, first, last = trained.split, trained.looks[0], trained.kept
    margins = np.asarray(trained.margins.double())
    measured = measure.measure(margins, split.train, split.held_out, settings.seed)
    return DirectResult(
        **vars(measured) | {"sentence": _sentence(measured, trained)},
        **learnt(trained, name),
        method="dpo",
        begun_as=session.start,
        tokens=trained.tokens,
        loss_before=trained.before["loss"],
        loss_after=trained.after["loss"],
        reward_chosen=trained.after["rewards/chosen"],
        reward_rejected=trained.after["rewards/rejected"],
        steps=last.step,
        prompts=len(inputs.asked.ids),
        prompts_set_aside=inputs.asked.set_aside,
        kl=_mean(last.kl, settings),
        kl_by_step={str(look.step): mean(look.kl) for look in trained.looks},
        length_before=mean(first.lengths),
        length_after=mean(last.lengths),
        length_change=_mean([a - b for a, b in zip(last.lengths, first.lengths, strict=True)], settings),
        finished_before=first.finished,
        finished_after=last.finished,
        stopped=trained.stopped,
    )


def _mean(values: Sequence[float], settings: Settings) -> Interval | None:
    """Return the mean over prompts with its interval; None where a single prompt shows no spread."""
    if len(values) < 2:
        return None
    return cluster_bootstrap(values, range(len(values)), settings.evaluate.bootstrap, settings.seed)


def _sentence(measured: Measured, trained: Trained) -> str:
    """Say what the policy prefers of the pairs set aside, in words a person can quote; a judge says more of answers."""
    assert measured.accuracy is not None and measured.interval is not None and measured.baselines and measured.gains
    best = max(measured.baselines, key=lambda name: (measured.baselines or {})[name].estimate)
    low, high = measured.interval
    beaten = "which it beats" if measured.gains[best].low > 0 else "which it is not shown to beat"
    return (
        f"On verdicts set aside the policy's own preference agrees with {100 * measured.accuracy:.1f} % (95 % interval"
        f" {100 * low:.1f} to {100 * high:.1f}); the best trivial rule, {best.replace('_', ' ')}, agrees with"
        f" {100 * measured.baselines[best].estimate:.1f} %, {beaten}. Whether its answers are better is for"
        " `manners evaluate` to say."
    )
