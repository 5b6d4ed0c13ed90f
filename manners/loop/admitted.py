"""Which judge's verdicts may train now: the last one asked, held against people's verdicts as they are by now."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from manners.facts import from_facts
from manners.feedback.admission import admission, cases
from manners.loop import kept
from manners.loop.judging import chosen_of, tried
from manners.results.judge import JudgeResult
from manners.reward.verdicts import pooled
from manners.types import Annotator, AnnotatorKind, Comparison, latest_of
from manners.workspace import Workspace

if TYPE_CHECKING:
    from manners.loop.session import Session


def last(workspace: Workspace) -> JudgeResult | None:
    """Return what the last run of `manners judge` came to; None where there is none."""
    facts = kept.read_facts(workspace, "judge")
    return None if facts is None else from_facts(JudgeResult, facts, str(kept.facts_file(workspace, "judge")))


def admitted(session: Session, comparisons: Sequence[Comparison]) -> frozenset[Annotator]:
    """Return the judge whose verdicts train, if any, and say on stderr which and why.

    It is measured anew each time, on the newest `judge.checked` comparisons that several people and it have judged, of
    those that the command would ask about: what people have said since may cost it its admission, and nothing that is
    kept for evaluation decides who trains. What its probes turned is of its last run.
    """
    before = last(session.workspace)
    if before is None or before.judge is None:
        print(
            "reward.annotators is human+ai, and no judge was asked yet (manners judge): people alone", file=sys.stderr
        )
        return frozenset()
    judge = Annotator(before.judge, AnnotatorKind.AI)
    judged = [one for one in pooled(comparisons) if latest_of(one, judge) is not None]
    held = cases(chosen_of(session, judged, judge).checked, judge, frozenset(before.own or ()))
    found = admission(held, tried(before.turned or {}))
    why = [f"it fails {', '.join(found.failed)}"] if found.failed else []
    why += [f"too little is known for {', '.join(found.cannot_tell)}"] if found.cannot_tell else []
    stands = "its verdicts train beside people's" if found.admitted else f"its verdicts do not train: {'; '.join(why)}"
    print(f"{judge.name} on {found.checked} comparisons that people have judged too: {stands}", file=sys.stderr)
    return frozenset({judge}) if found.admitted else frozenset()
