"""Reporting: the facts of every stage that has run, on one page."""

from __future__ import annotations

from manners import __version__
from manners.loop.asking import asked_facts
from manners.loop.session import Facts, Session, machine, peak_memory
from manners.report import build


def report(session: Session) -> Facts:
    """Write report.html and report.json; return what a person wants to know first, and where to read on."""
    facts = collect(session)
    paths = build(facts, session.workspace.root)
    evaluation = facts.get("evaluation", {})
    return {
        "verdict": evaluation.get("verdict", "There is no evaluation yet: run `manners evaluate`."),
        "promoted": bool(evaluation.get("promoted", False)),
        "report": str(paths.html),
        "facts": str(paths.json),
    }


def collect(session: Session) -> Facts:
    """Gather the facts of all stages; those that have not run are absent."""
    stages = {name: session.read_facts(name) for name in ("sample", "reward", "ppo", "evaluation")}
    facts: Facts = {
        "seed": session.settings.seed,
        "manners_version": __version__,
        "machine": machine(),
        "model": _model(session),
        "seconds": {name: f["seconds"] for name, f in stages.items() if f is not None},
        "peak_memory_bytes": max([peak_memory(), *(f["peak_memory_bytes"] for f in stages.values() if f is not None)]),
    }
    asked, reward = asked_facts(session), stages["reward"] or {}
    if asked:
        left_out = (stages["sample"] or {}).get("left_out", {}) | reward.get("left_out", {})
        counts = {"trained_on": reward.get("trained_on", 0), "set_aside": reward.get("set_aside", 0)}
        facts["comparisons"] = asked | counts | {"left_out": left_out}
    for name in ("reward", "ppo", "evaluation"):
        if stages[name] is not None:
            facts[name] = {
                k: v for k, v in (stages[name] or {}).items() if k not in ("begun_with", "peak_memory_bytes")
            }
    return facts


def _model(session: Session) -> Facts:
    pretrained = session.pretrained
    return {
        "name": pretrained.name,
        "parameters": pretrained.parameters,
        "trainable_layers": session.settings.model.trainable_layers,
        "note": pretrained.note,
        "template_hash": pretrained.renderer.template_hash,
    }
