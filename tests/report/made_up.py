"""The report as its tests call it: with facts as JSON has them, read into records as those of a workspace are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manners import report
from manners.facts import from_facts
from manners.report import ReportPaths
from manners.report.checks import Check
from manners.results import PolicyResult, ReportFacts, RewardResult
from manners.results.evaluation import EvaluationResult

KINDS: dict[str, type] = {"reward": RewardResult, "ppo": PolicyResult, "evaluation": EvaluationResult}


def read(facts: Mapping[str, Any]) -> ReportFacts:
    """Read facts, any of which may be absent."""
    stages: dict[str, object] = {
        name: from_facts(kind, facts[name], name) for name, kind in KINDS.items() if name in facts
    }
    head = {name: value for name, value in facts.items() if name not in KINDS}
    return from_facts(ReportFacts, {**head, "stages": stages}, "the facts")


def render(facts: Mapping[str, Any]) -> str:
    """Return the page."""
    return report.render(read(facts))


def build(facts: Mapping[str, Any], folder: Path) -> ReportPaths:
    """Write the page and its facts."""
    return report.build(read(facts), folder)


def checks(evaluation: Mapping[str, Any]) -> list[Check]:
    """Return the questions that an evaluation answers."""
    return report.checks(from_facts(EvaluationResult, evaluation, "evaluation"))


def rivals(reward: Mapping[str, Any]) -> list[Check]:
    """Return the rules that a reward model is compared with."""
    return report.rivals(from_facts(RewardResult, reward, "reward"))


def panels(ppo: Mapping[str, Any], start: str = "the initial model") -> list[tuple[str, str, str]]:
    """Return the small panels of a run."""
    return report.panels(from_facts(PolicyResult, ppo, "ppo"), start)
