"""The same requests to every phase of a model: what it answers, how much of it was asked for, and who likes it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import stories

from manners.evaluate.compare import win_rate
from manners.facts import Facts, to_facts
from manners.feedback.crowd import Taste, recruit, true_score
from manners.feedback.judges import TasteJudge
from manners.feedback.statistics import cluster_bootstrap, clustered_share, percent
from manners.loop.phases import answers_of
from manners.loop.session import Session
from manners.loop.stage import Finished
from manners.results import PolicyResult, RewardResult
from manners.results.evaluation import EvaluationResult
from manners.results.phases import SFTResult
from manners.results.pretrain import PretrainResult
from manners.settings import Settings
from manners.types import Answer, Dialogue, FinishReason, Interval, Response
from manners.workspace import atomic_write

Asked = Mapping[Dialogue, Mapping[str, str]]
"""Requests, each with the parameters that it names."""
PHASES = ("pretrain", "sft", "ppo")
SHOWN = 8
"""Requests whose answers are shown: every so many, the first answer of each."""


@dataclass(frozen=True)
class Answered:
    """What a phase answers."""

    version: str
    answers: list[list[Answer]]
    """By request."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Phase:
    """How a phase answers, and what it taught; changes are since the phase before, paired by request."""

    version: str
    carried: Interval
    """Share of what a request names that the answers carry (`stories.carries`)."""
    carried_by_chance: float
    """The same of answers to another request: what a story carries without having been asked."""
    carried_change: Interval | None = None
    taste: Interval
    """What the simulated crowd likes, in units of its taste: noiseless, and never looked at while training."""
    taste_change: Interval | None = None
    win_rate: Interval | None = None
    """How often that taste prefers an answer to one of the phase before; a half is no difference."""
    finished: Interval
    """Share of answers that were ended, and not cut off."""
    words: float
    """Of an answer, on average."""


def answered(session: Session, version: str, prompts: Sequence[Dialogue], folder: Path) -> Answered:
    """Return what a version answers; drawn once, and kept in the folder."""
    file = folder / f"{version}.json"
    if not file.exists():
        started = time.monotonic()
        drawn = answers_of(session, version, prompts)
        rows = [[{"text": a.response.text, "finish_reason": str(a.response.finish_reason)} for a in s] for s in drawn]
        folder.mkdir(exist_ok=True)
        atomic_write(file, json.dumps({"seconds": time.monotonic() - started, "answers": rows}) + "\n")
    kept = json.loads(file.read_text(encoding="utf-8"))
    answers = [
        [Answer(prompt, Response(one["text"], version, FinishReason(one["finish_reason"])), (), ()) for one in some]
        for prompt, some in zip(prompts, kept["answers"], strict=True)
    ]
    return Answered(version, answers, kept["seconds"])


def measured(asked: Asked, found: Sequence[Answered], settings: Settings) -> list[Phase]:
    """Measure phases, in their order, each beside the one before it."""
    return [_measured(asked, one, before, settings) for before, one in zip([None, *found], found, strict=False)]


def _measured(asked: Asked, one: Answered, before: Answered | None, settings: Settings) -> Phase:
    judge = TasteJudge(recruit(settings.crowd, settings.seed))
    carries, likes = carried(asked, one), liked(judge.taste, one)
    since: Facts = {}
    if before is not None:
        since = {
            "carried_change": _change(carried(asked, before), carries, settings),
            "taste_change": _change(liked(judge.taste, before), likes, settings),
            "win_rate": win_rate(before.answers, one.answers, judge.prefers),
        }
    return Phase(
        version=one.version,
        carried=clustered_share(carries, range(len(asked))),
        carried_by_chance=float(np.mean(carried(asked, one, another=True))),
        taste=_interval(likes, settings),
        finished=clustered_share(_by_request(one, lambda a: float(a.finished)), range(len(asked))),
        words=float(np.mean(_by_request(one, lambda a: float(len(a.response.text.split()))))),
        **since,
    )


def carried(asked: Asked, one: Answered, another: bool = False) -> list[float]:
    """Return by request the share of what it names that the answers to it carry, or what those to `another` do.

    The other one is the next in the list, whose answers know nothing of this request.
    """
    names = list(asked.values())
    answers = one.answers[1:] + one.answers[:1] if another else one.answers
    return [
        float(np.mean([stories.carries(a.response.text, wanted) for a in some]))
        for wanted, some in zip(names, answers, strict=True)
    ]


def liked(taste: Taste, one: Answered) -> list[float]:
    """Return by request what a taste makes of the answers, on average."""
    return _by_request(one, lambda a: true_score(taste, a.prompt, a.response).total)


def _by_request(one: Answered, measure: Callable[[Answer], float]) -> list[float]:
    return [float(np.mean([measure(a) for a in some])) for some in one.answers]


def _change(before: Sequence[float], after: Sequence[float], settings: Settings) -> Interval:
    return _interval([new - old for old, new in zip(before, after, strict=True)], settings)


def _interval(values: Sequence[float], settings: Settings) -> Interval:
    return cluster_bootstrap(values, range(len(values)), settings.evaluate.bootstrap, settings.seed)


def facts(phases: Sequence[Phase], done: Mapping[str, Finished], taste: Taste) -> dict[str, Facts]:
    """Return for each phase its measures, its own figures, and in one sentence what it taught."""
    results = {name: one.result for name, one in done.items()}
    wrote, learnt, judged, won = (results[name] for name in ("pretrain", "sft", "reward", "evaluation"))
    own = (
        (_of_writing(wrote), writing_taught(wrote)),
        (_of_answering(learnt), answering_taught(phases[0], phases[1])),
        (_of_the_round(judged, results["ppo"], won), crowd_taught(phases[1], phases[2], won, taste)),
    )
    return {
        name: to_facts(phase) | figures | {"taught": sentence}
        for name, phase, (figures, sentence) in zip(PHASES, phases, own, strict=True)
    }


def _of_writing(wrote: PretrainResult) -> Facts:
    names = "parameters vocabulary tokens passes loss_before loss_after bits_per_byte gzip_bits_per_byte"
    return {name: getattr(wrote, name) for name in f"{names} ngram_bits_per_byte measured_bytes".split()}


def _of_answering(learnt: SFTResult) -> Facts:
    found = to_facts(learnt)
    names = "dialogues set_aside tokens loss_before loss_after loss_change accuracy_before accuracy_after left_out"
    return {name: found[name] for name in names.split() if name in found}


def _of_the_round(judged: RewardResult, trained: PolicyResult, won: EvaluationResult) -> Facts:
    found = {
        "comparisons": (judged.trained_on or 0) + (judged.set_aside or 0),
        "reward_accuracy": judged.accuracy,
        "reward_accuracy_interval": judged.interval,
        "episodes": trained.episodes,
        "stopped": trained.stopped,
        "best_update": trained.best_update,
        "kl": won.kl,
        "verdict": won.verdict,
        "promoted": won.promoted,
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def writing_taught(wrote: PretrainResult) -> str:
    """Say what pre-training taught."""
    bits, gzip, ngram = (x or 0.0 for x in (wrote.bits_per_byte, wrote.gzip_bits_per_byte, wrote.ngram_bits_per_byte))
    beside = f"{bits:.3f} bits a byte of stories that it never saw, a 5-gram of bytes {ngram:.3f}, gzip -9 {gzip:.3f}"
    if bits < min(gzip, ngram):
        return f"Pre-training taught it to write: it needs {beside}."
    return f"Pre-training is not shown to have taught it to write better than what needs no network: it needs {beside}."


def answering_taught(before: Phase, after: Phase) -> str:
    """Say what learning from pairs taught."""
    figures = (
        f"its stories carry {percent(after.carried)} of what a request names, {percent(before.carried)} before, and"
        f" {100 * after.carried_by_chance:.1f} % of what another request names"
    )
    if after.carried_change is not None and after.carried_change.low > 0:
        return f"Learning from pairs taught it to answer what it is asked: {figures}."
    return f"Learning from pairs is not shown to have taught it to answer what it is asked: {figures}."


def crowd_taught(before: Phase, after: Phase, won: EvaluationResult, taste: Taste) -> str:
    """Say what the crowd's comparisons taught, by way of a reward model and PPO."""
    change = after.taste_change
    if change is None or change.low <= 0:
        return (
            "The crowd's comparisons are not shown to have taught it what the crowd likes: its taste goes from"
            f" {before.taste.estimate:.2f} to {after.taste.estimate:.2f}{_signed(change)}."
        )
    return (
        f"The crowd's comparisons taught it what the crowd likes{_above_all(won, taste)}: its taste rises from"
        f" {before.taste.estimate:.2f} to {after.taste.estimate:.2f}{_signed(change)}."
    )


def _signed(change: Interval | None) -> str:
    if change is None:
        return ""
    return f" ({change.estimate:+.2f}, 95 % interval {change.low:+.2f} to {change.high:+.2f})"


def _above_all(won: EvaluationResult, taste: Taste) -> str:
    """Name the part of the taste that rose most, as the taste weighs it, by the round's own evaluation."""
    parts = (won.taste_parts or {}).items()
    rose = {name: getattr(taste.weights, name) * (part.after - part.before) for name, part in parts}
    most = max(rose, key=rose.__getitem__, default="")
    return f", above all {NAMES.get(most, most)}" if most and rose[most] > 0 else ""


NAMES = {"finished": "to come to an end", "asked": "what was asked for", "moral": "a moral", "plainness": "plain text"}
"""Parts of the taste, where their own names say too little."""


def shown(asked: Asked, found: Sequence[Answered]) -> list[Facts]:
    """Return some requests with the first answer of each phase, and what of the request it carries."""
    step = max(1, len(asked) // SHOWN)
    rows = list(enumerate(asked.items()))[::step][:SHOWN]
    return [
        {
            "prompt": prompt[-1].text,
            "parameters": dict(wanted),
            "answers": {name: _shown(one.answers[place][0], wanted) for name, one in zip(PHASES, found, strict=True)},
        }
        for place, (prompt, wanted) in rows
    ]


def _shown(one: Answer, wanted: Mapping[str, str]) -> Facts:
    text = one.response.text
    missing = [value for name, value in wanted.items() if not stories.carries(text, {name: value})]
    return {"text": text, "finished": one.finished, "missing": missing}
