"""What the dashboard says, as plain data: the page and its `.json` show the same."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing, suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from manners.audit import gate
from manners.audit.rules import EVALUATION
from manners.errors import MannersError
from manners.facts import to_facts
from manners.feedback import agreement, davidson
from manners.feedback.admission import without_judges
from manners.loop import admitted, tried
from manners.reward.labelled import LeftOut, Sorted
from manners.reward.verdicts import authored, pooled, sort_out
from manners.settings import Settings
from manners.store import gold, views
from manners.store.records import VersionRecord
from manners.store.store import Store
from manners.types import Annotator, AnnotatorKind, AskedHow, Comparison, VersionKind
from manners.workspace import INITIAL, Workspace

CURVES = ("objective/scores", "objective/kl", "response/length", "val/explained_variance")
"""What of a run is drawn."""


def of_database(database: str, settings: Settings) -> dict[str, Any]:
    """Return the findings in a database: what a process of its own can do."""
    with closing(Store.open(database)) as store:
        return findings(store, settings)


def findings(store: Store, settings: Settings) -> dict[str, Any]:
    """Return everything that is computed from verdicts; kinds of annotators are never added up."""
    asked = store.comparisons()
    comparisons = pooled(asked)
    known = {one.comparison: one.choice for one in gold.known(store)}
    kinds = present(comparisons)
    # Whether a judge's verdicts train is settled when something is trained: here none of them is to be learnt from.
    learnable = without_judges(comparisons)
    sorted_out = {kind: sort_out(learnable, kind) for kind in kinds}
    aside = {user for found in sorted_out.values() for user in found.outlying}
    fair = without(comparisons, aside)
    versus = without(pooled(asked, authored), aside)
    on_page = seen(store)
    versions = store.versions(VersionKind.REWARD)
    return {
        "verdicts": verdicts_by_day(asked),
        "sources": sources(asked),
        "set_aside": {kind: sorted(one.name for one in found.outlying) for kind, found in sorted_out.items()},
        "funnel": {
            kind: {"asked": len(comparisons)}
            | (on_page if kind is AnnotatorKind.HUMAN else {})
            | funnel(found)
            | used(versions, kind)
            for kind, found in sorted_out.items()
        },
        "agreement": {kind: _agreement(fair, kind, settings.seed) for kind in kinds},
        "annotators": {kind: [_habit(one) for one in agreement.habits(comparisons, kind, known)] for kind in kinds},
        "wins": {kind: _wins(versus, kind, settings.seed) for kind in kinds},
        "tried": [to_facts(one) for one in tried.read(store, asked)],
    }


def without(comparisons: Sequence[Comparison], aside: AbstractSet[Annotator]) -> list[Comparison]:
    """Leave out what measures annotators, what a model chose, and what users who were set aside said on their own."""
    return [
        replace(one, verdicts=tuple(v for v in one.verdicts if v.annotator not in aside or not one.volunteered(v)))
        if aside
        else one
        for one in comparisons
        if one.asked_how not in (AskedHow.GOLD, AskedHow.ADVERSARIAL)
    ]


def present(comparisons: Sequence[Comparison]) -> list[AnnotatorKind]:
    """Return the kinds of annotators that have given verdicts."""
    found = {verdict.annotator.kind for comparison in comparisons for verdict in comparison.verdicts}
    return [kind for kind in AnnotatorKind if kind in found]


def verdicts_by_day(comparisons: Sequence[Comparison]) -> dict[str, dict[str, int]]:
    """Return by kind of annotator how many verdicts came on each day (UTC)."""
    days: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for comparison in comparisons:
        for verdict in comparison.verdicts:
            when = verdict.created_at
            days[verdict.annotator.kind][when.date().isoformat() if when else "unknown"] += 1
    return {kind: dict(sorted(found.items())) for kind, found in days.items()}


def sources(comparisons: Sequence[Comparison]) -> dict[str, dict[str, int]]:
    """Return by kind of annotator how the comparisons of their verdicts came to be asked."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for comparison in comparisons:
        for verdict in comparison.verdicts:
            found[verdict.annotator.kind][comparison.asked_how] += 1
    return {kind: dict(counts) for kind, counts in found.items()}


def seen(store: Store) -> dict[str, int]:
    """Return how many comparisons the labelling page has shown, and how many of these nobody has answered there."""
    with store.read() as connection:
        shown, answered = views.count_shown(connection)
    if not shown:
        return {}
    return {"shown on the labelling page": shown, "shown there and not answered": shown - answered}


def funnel(found: Sorted) -> dict[str, int]:
    """Return how many comparisons are left out, for every reason, and how many can be learnt from."""
    steps = {f"left out: {reason}": found.left_out[reason] for reason in LeftOut if found.left_out[reason]}
    return steps | {"can be learnt from": len(found.usable)}


def used(versions: Sequence[VersionRecord], kind: AnnotatorKind) -> dict[str, int]:
    """Return what the newest reward model that learned from a kind of annotator was trained on and measured with."""
    newest = next((one for one in reversed(versions) if one.metrics.get("source") == kind), None)
    if newest is None:
        return {}
    counts = {f"taught {newest.name}": "trained_on", f"set aside to measure {newest.name}": "set_aside"}
    return {step: int(newest.metrics[name]) for step, name in counts.items() if name in newest.metrics}


def curves(workspace: Workspace) -> dict[str, dict[str, list[list[float]]]]:
    """Return of each run, newest first, its curves as [step, value]."""
    found = {}
    files = sorted(workspace.runs.glob("*/metrics.jsonl"), key=lambda file: -file.stat().st_mtime)
    for file in files[:3]:
        points = list(_points(file))
        found[file.parent.name] = {
            name: [[p["step"], p[name]] for p in points if _is_number(p.get(name))] for name in CURVES
        }
    return found


def _points(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the points of a run's curves; a line that is not whole, or damaged, is none."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            point = json.loads(line)
            if isinstance(point, dict) and _is_number(point.get("step")):
                yield point


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def versions(store: Store, workspace: Workspace) -> list[dict[str, Any]]:
    """Return the versions, newest first, which policy is promoted, and where the others stand before the gate."""
    current = workspace.current_policy()

    def facts(name: str, kind: VersionKind, parent: str | None, made: datetime | None) -> dict[str, Any]:
        when = made.strftime("%Y-%m-%d %H:%M") if made else ""
        asked = kind is VersionKind.POLICY and name != current
        stands = standing(workspace, name) if asked else None
        return {"name": name, "kind": kind, "parent": parent, "at": when, "current": name == current, "gate": stands}

    known = [facts(one.name, one.kind, one.parent, one.created_at) for one in reversed(store.versions())]
    return [*known, facts(INITIAL, VersionKind.POLICY, None, None)]


def judge(workspace: Workspace) -> dict[str, Any] | None:
    """Return how the AI judge stood when it was last asked, in words too; None where none was asked."""
    try:
        found = admitted.last(workspace)
    except MannersError as error:
        return {"judge": None, "admitted": False, "sentence": str(error)}
    if found is None or found.judge is None:
        return None
    return {"judge": found.judge, "admitted": bool(found.admitted), "sentence": found.sentence}


def standing(workspace: Workspace, policy: str) -> dict[str, Any]:
    """Return where a policy stands before the gate; `against` is None where it cannot be promoted at all.

    Going back to what was served before is no promotion, and asks no gate.
    """
    try:
        if gate.goes_back(workspace, policy):
            current = workspace.current_policy()
            return {"against": current, "back": True, "evaluated": False, "blocks": False, "objections": []}
        found = gate.standing(workspace, policy)
        measured = gate.read(workspace, policy).measured.get(EVALUATION)
    except MannersError as error:
        return {"against": None, "back": False, "evaluated": False, "blocks": True, "objections": [str(error)]}
    names = {*found.gate.failed, *found.gate.cannot_tell}
    return {
        "against": found.against,
        "back": False,
        "evaluated": measured is not None and measured.against == found.against,
        "blocks": found.gate.blocks,
        "objections": [check.sentence for check in found.checks if check.name in names],
    }


def _agreement(comparisons: Sequence[Comparison], kind: AnnotatorKind, seed: int) -> dict[str, Any]:
    alpha = agreement.alpha(comparisons, kind, seed)
    pairs = agreement.pairwise(comparisons, kind, seed)
    return {
        "alpha": None if alpha is None else asdict(alpha),
        "pairwise": None if pairs is None else asdict(pairs),
        "left": asdict(agreement.left_share(comparisons, kind)),
    }


def _habit(one: agreement.Habits) -> dict[str, Any]:
    return asdict(one) | {"annotator": one.annotator.name, "account": one.annotator.account}


def _wins(comparisons: Sequence[Comparison], kind: AnnotatorKind, seed: int) -> dict[str, Any] | None:
    found = davidson.judgements(comparisons, kind)
    if not found:
        return None
    names = Counter(name for one in found for name in (one.left, one.right))
    anchor = INITIAL if INITIAL in names else min(names, key=lambda name: (-names[name], name))
    rated = asdict(davidson.rate(found, anchor, seed))
    if not math.isfinite(rated["length"]["low"]):
        rated["length"] = None
    return rated
