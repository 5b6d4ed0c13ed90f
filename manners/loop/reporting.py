"""Reporting: the results of every stage that has run, on one page."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from manners import __version__
from manners.errors import MannersError
from manners.facts import Facts
from manners.feedback.admission import judge_verdicts, without_judges
from manners.feedback.agreement import left_share
from manners.feedback.statistics import pair_agreement
from manners.loop.session import Session, machine, peak_memory
from manners.loop.stage import Finished, Stage, finished
from manners.report import build
from manners.results import ModelFacts, ReportFacts, RewardResult, Said, SaidExample, SampleResult
from manners.results.evaluation import EvaluationResult
from manners.reward.verdicts import pooled
from manners.types import DELETED, VERSUS, VOLUNTEERED, AskedHow, Choice, Comparison, Dialogue, latest_verdicts

Result = TypeVar("Result")

QUOTED = ("examples", "worst")
"""Fields of a result that quote prompts and answers."""
THEIRS = VOLUNTEERED | {AskedHow.CANDIDATE}
"""Comparisons whose answers were given to somebody in a chat, or to a user of another program."""
EXAMPLES = 6
"""Comparisons that the report shows."""
RESAMPLES = 2000
"""Behind the interval of the annotators' agreement."""


def report(session: Session, stages: Sequence[Stage]) -> Facts:
    """Write report.html and report.json; return what a person wants to know first, and where to read on.

    They go into the workspace or, where that can only be read, into the current folder.
    """
    done = results(session, stages)
    facts = collect(session, done)
    sections = {stage.name: stage.section for stage in stages if stage.section}
    root = session.workspace.root
    paths = build(replace(facts, sections=sections), root if os.access(root, os.W_OK) else Path.cwd())
    evaluation = _result(done, EvaluationResult)
    return {
        "verdict": evaluation.verdict or "There is no evaluation yet: run `manners evaluate`.",
        "promoted": bool(evaluation.promoted),
        "current": facts.current,
        "report": str(paths.html),
        "facts": str(paths.json),
    }


def results(session: Session, stages: Sequence[Stage]) -> dict[str, Finished]:
    """Return what every stage that has run came to, by name and in order."""
    found = {stage.name: finished(stage, session.workspace) for stage in stages}
    return {name: done for name, done in found.items() if done is not None}


def _result(done: Mapping[str, Finished], kind: type[Result]) -> Result:
    """Return the result of a kind; one without any fact where that stage has not run."""
    return next((one.result for one in done.values() if isinstance(one.result, kind)), kind())


def collect(session: Session, done: Mapping[str, Finished]) -> ReportFacts:
    """Gather the facts of all stages; those that have not run are absent."""
    pretrained = session.pretrained
    said, private = what_was_said(session), _private_words(session)
    if said is not None:
        reward = _result(done, RewardResult)
        sampled = _result(done, SampleResult)
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
        seconds={name: one.costs.seconds for name, one in done.items()},
        peak_memory_bytes=max([peak_memory(), *(one.costs.peak_memory_bytes for one in done.values())]),
        current=session.workspace.current_policy(),
        comparisons=said,
        stages={
            name: _quotable(one.result, private)
            for name, one in done.items()
            if not isinstance(one.result, SampleResult)
        },
    )


def _private(session: Session) -> frozenset[Dialogue]:
    """Return the prompts that no report may quote: those of chats and programs alone, unless chats are shared."""
    return frozenset() if session.settings.serve.share_chats else session.store.only_in_chats(programs=True)


def _private_words(session: Session) -> frozenset[str]:
    """Return what no report may quote: the last words of private prompts, and answers to them or in `THEIRS`."""
    if session.settings.serve.share_chats:
        return frozenset()
    prompts = _private(session)
    read = session.store.comparisons
    asked = read() if prompts else [c for how in sorted(THEIRS) for c in read(how)]
    theirs = [c for c in asked if c.asked_how in THEIRS or c.prompt in prompts]
    answers = {side.text for comparison in theirs for side in (comparison.left, comparison.right)}
    return frozenset({prompt[-1].text for prompt in prompts} | answers) - {""}


def _quotable(result: Any, private: frozenset[str]) -> Any:
    """Return a stage's result without the examples that quote `THEIRS`: it may be from before these were private.

    By each of their texts: a probe of an audit is an answer to another prompt than the one that it is shown with.
    """
    quoted = {name: found for name in QUOTED if (found := getattr(result, name, None))}
    kept = {name: tuple(one for one in found if private.isdisjoint(_texts(one))) for name, found in quoted.items()}
    return replace(result, **kept) if private and kept else result


def _texts(example: Any) -> Iterable[str]:
    return (text for field in fields(example) if isinstance(text := getattr(example, field.name), str))


def what_was_said(session: Session) -> Said | None:
    """Return what was asked and what annotators said, of the sides as shown; None if nothing was asked."""
    everything = session.store.comparisons()
    comparisons = pooled(c for c in without_judges(everything) if c.asked_how not in VERSUS)
    if not comparisons:
        return None
    verdicts = [latest_verdicts(c.verdicts) for c in comparisons]
    choices = [v.shown_choice for given in verdicts for v in given]
    kinds = sorted({v.annotator.kind for given in verdicts for v in given})
    agreement = left_rate = None
    if len(kinds) == 1:
        fair = [c for c in comparisons if not c.by_model]
        left_rate = left_share(fair, kinds[0])
        with suppress(MannersError):  # fewer than two comparisons have two verdicts that count
            agreement = pair_agreement([c.verdicts for c in fair], RESAMPLES, session.settings.seed)
    return Said(
        total=len(comparisons),
        asked=dict(sorted(Counter(str(c.asked_how) for c in comparisons).items())),
        source=str(kinds[0]) if len(kinds) == 1 else "mixed" if kinds else "none",
        prompts=len({c.prompt for c in comparisons}),
        verdicts={str(choice): choices.count(choice) for choice in Choice},
        annotators=len({v.annotator for given in verdicts for v in given}),
        left_rate=left_rate,
        examples=tuple(_examples(_of_each_prompt(_shown(session, comparisons))[:EXAMPLES])),
        agreement=agreement,
        judged=judge_verdicts(everything) or None,
    )


def _shown(session: Session, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons that a report may quote: nothing deleted, and nothing of `THEIRS` unless it is shared."""
    shared = session.settings.serve.share_chats
    private = _private(session)
    return [
        c
        for c in comparisons
        if (shared or c.asked_how not in THEIRS)
        and c.prompt not in private
        and DELETED not in (c.left.text, c.right.text)
    ]


def _of_each_prompt(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Return the first comparison of each prompt: four answers to one make six."""
    first = dict[Dialogue, Comparison]()
    for comparison in comparisons:
        first.setdefault(comparison.prompt, comparison)
    return list(first.values())


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
