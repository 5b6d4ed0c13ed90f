"""What the dashboard says, as plain data: the page and its `.json` show the same."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from manners.feedback import agreement, davidson
from manners.feedback.statistics import wilson
from manners.reward.data import LeftOut, sort_out
from manners.settings import Settings
from manners.store import gold
from manners.store.records import Version
from manners.store.store import Store
from manners.types import AnnotatorKind, Choice, Comparison, VersionKind
from manners.workspace import INITIAL, Workspace

CURVES = ("objective/scores", "objective/kl", "response/length", "val/explained_variance")
"""What of a run is drawn."""


def findings(store: Store, workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Return everything that is computed from verdicts; kinds of annotators are never added up."""
    comparisons = store.comparisons()
    known = {one.comparison: one.choice for one in gold.known(store)}
    seed = settings.seed
    return {
        "verdicts": verdicts_by_day(comparisons),
        "sources": sources(comparisons),
        "set_aside": {
            kind: sorted(one.name for one in sort_out(comparisons, kind).outlying) for kind in present(comparisons)
        },
        "funnel": {kind: funnel(comparisons, kind) for kind in present(comparisons)},
        "agreement": {kind: _agreement(comparisons, kind, seed) for kind in present(comparisons)},
        "annotators": {
            kind: [_habit(one) for one in agreement.habits(comparisons, kind, known)] for kind in present(comparisons)
        },
        "wins": {kind: _wins(comparisons, kind, seed) for kind in present(comparisons)},
    }


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


def funnel(comparisons: Sequence[Comparison], kind: AnnotatorKind) -> dict[str, int]:
    """Return from asked to used in training, with every reason for leaving out."""
    found = sort_out(comparisons, kind)
    steps = {"asked": len(comparisons)}
    steps |= {f"left out: {reason}": found.left_out[reason] for reason in LeftOut if found.left_out[reason]}
    return steps | {"can be learnt from": len(found.usable)}


def curves(workspace: Workspace) -> dict[str, dict[str, list[list[float]]]]:
    """Return of each run, newest first, its curves as [step, value]."""
    found = {}
    files = sorted(workspace.runs.glob("*/metrics.jsonl"), key=lambda file: -file.stat().st_mtime)
    for file in files[:3]:
        lines = file.read_text(encoding="utf-8").splitlines()
        points = [json.loads(line) for line in lines if line.endswith("}")]
        found[file.parent.name] = {
            name: [[p["step"], p[name]] for p in points if isinstance(p.get(name), int | float)] for name in CURVES
        }
    return found


def versions(store: Store, workspace: Workspace) -> list[dict[str, Any]]:
    """Return the versions, newest first, and which policy is promoted."""
    current = workspace.current_policy()

    def facts(one: Version) -> dict[str, Any]:
        when = one.created_at.strftime("%Y-%m-%d %H:%M") if one.created_at else ""
        return {"name": one.name, "kind": one.kind, "parent": one.parent, "at": when, "current": one.name == current}

    initial = {"name": INITIAL, "kind": VersionKind.POLICY, "parent": None, "at": "", "current": current == INITIAL}
    return [*(facts(one) for one in reversed(store.versions())), initial]


def _agreement(comparisons: Sequence[Comparison], kind: AnnotatorKind, seed: int) -> dict[str, Any]:
    lefts = agreement.left_picks(comparisons, kind).total()
    sided = sum(
        v.choice in (Choice.LEFT, Choice.RIGHT) for c in comparisons for v in c.verdicts if v.annotator.kind is kind
    )
    alpha, pairs = agreement.alpha(comparisons, kind, seed), agreement.pairwise(comparisons, kind, seed)
    return {
        "alpha": None if alpha is None else asdict(alpha),
        "pairwise": None if pairs is None else asdict(pairs),
        "left": asdict(wilson(lefts, sided)),
    }


def _habit(one: agreement.Habits) -> dict[str, Any]:
    return asdict(one) | {"annotator": one.annotator.name}


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
