"""Reporting: the results of every stage that has run, on one page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from manners import __version__
from manners.facts import Facts
from manners.feedback.statistics import pair_agreement, wilson
from manners.loop.round import EVALUATE, REWARD, SAMPLE, STAGES
from manners.loop.session import Session, machine, peak_memory
from manners.loop.stage import Finished, finished
from manners.report import build
from manners.results import ModelFacts, ReportFacts, RewardResult, Said, SaidExample, SampleResult
from manners.types import AskedHow, Choice, Comparison, latest_verdicts

EXAMPLES = 6
"""Comparisons that the report shows."""
RESAMPLES = 2000
"""Behind the interval of the annotators' agreement."""


def report(session: Session) -> Facts:
    """Write report.html and report.json; return what a person wants to know first, and where to read on."""
    done = results(session)
    paths = build(collect(session, done), session.workspace.root)
    evaluation = done[EVALUATE.name].result if EVALUATE.name in done else None
    return {
        "verdict": evaluation.verdict if evaluation else "There is no evaluation yet: run `manners evaluate`.",
        "promoted": bool(evaluation and evaluation.promoted),
        "report": str(paths.html),
        "facts": str(paths.json),
    }


def results(session: Session) -> dict[str, Finished]:
    """Return what every stage that has run came to, in order."""
    found = {stage.name: finished(stage, session) for stage in STAGES}
    return {name: done for name, done in found.items() if done is not None}


def collect(session: Session, done: dict[str, Finished]) -> ReportFacts:
    """Gather the facts of all stages; those that have not run are absent."""
    pretrained = session.pretrained
    said = what_was_said(session)
    if said is not None:
        reward = done[REWARD.name].result if REWARD.name in done else RewardResult()
        sampled = done[SAMPLE.name].result if SAMPLE.name in done else SampleResult()
        said = replace(
            said,
            trained_on=reward.trained_on or 0,
            set_aside=reward.set_aside or 0,
            left_out={**(sampled.left_out or {}), **(reward.left_out or {})},
        )
    return ReportFacts(
        seed=session.settings.seed,
        manners_version=__version__,
        machine=machine(),
        model=ModelFacts(
            name=pretrained.name,
            parameters=pretrained.parameters,
            trainable_layers=session.settings.model.trainable_layers,
            note=pretrained.note,
            template_hash=pretrained.renderer.template_hash,
        ),
        seconds={name: one.seconds for name, one in done.items()},
        peak_memory_bytes=max([peak_memory(), *(one.peak_memory_bytes for one in done.values())]),
        comparisons=said,
        stages={name: one.result for name, one in done.items() if name != SAMPLE.name},
        sections={stage.name: stage.section for stage in STAGES if stage.section},
    )


def what_was_said(session: Session) -> Said | None:
    """Return what was asked and what annotators said; None if nothing was asked."""
    comparisons = [c for c in session.store.comparisons() if c.asked_how is not AskedHow.EVALUATION]
    if not comparisons:
        return None
    verdicts = [latest_verdicts(c.verdicts) for c in comparisons]
    choices = [v.choice for given in verdicts for v in given]
    kinds = sorted({str(v.annotator.kind) for given in verdicts for v in given})
    left = choices.count(Choice.LEFT)
    agreement = None
    if len(kinds) == 1:
        several = [given for given in verdicts if sum(v.choice in (Choice.LEFT, Choice.RIGHT) for v in given) > 1]
        if len(several) > 1:
            agreement = pair_agreement(several, RESAMPLES, session.settings.seed)
    return Said(
        total=len(comparisons),
        source=kinds[0] if len(kinds) == 1 else "mixed" if kinds else "none",
        prompts=len({c.prompt for c in comparisons}),
        verdicts={str(choice): choices.count(choice) for choice in Choice},
        annotators=len({v.annotator for given in verdicts for v in given}),
        left_rate=wilson(left, left + choices.count(Choice.RIGHT)),
        examples=tuple(_examples(comparisons[:EXAMPLES])),
        agreement=agreement,
    )


def _examples(comparisons: Iterable[Comparison]) -> Iterable[SaidExample]:
    for comparison in comparisons:
        first = comparison.verdicts[0] if comparison.verdicts else None
        yield SaidExample(
            prompt=comparison.prompt[-1].text,
            left=comparison.left.text,
            right=comparison.right.text,
            verdict=str(first.choice) if first else None,
            annotator=first.annotator.name if first else None,
        )
