"""One self-contained HTML page about a run, figures included, and the same facts as JSON beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jinja2 import ChainableUndefined, PackageLoader, Template
from markupsafe import Markup

from manners.errors import MannersError
from manners.evaluate.promotion import HALF, called
from manners.facts import Facts, to_facts
from manners.markup import environment
from manners.report import plots
from manners.report.checks import checks, losses, rivals, standing
from manners.report.figures import figures, panels
from manners.report.versions import apart, promotion
from manners.report.words import difference, duration, ends, number, pair, relative_change, size
from manners.results import PolicyResult, ReportFacts, RewardResult, Said
from manners.results.evaluation import EvaluationResult
from manners.workspace import INITIAL, atomic_write

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """Where the report lies."""

    html: Path
    json: Path


def build(facts: ReportFacts, folder: Path) -> ReportPaths:
    """Write `report.html` and `report.json` into `folder`, each whole or not at all; docs/report.md lists the facts.

    Facts that are absent leave their section out, and the page says which command makes them. Raises `MannersError`
    where the folder cannot be written; an earlier report is then untouched.
    """
    paths = ReportPaths(folder / "report.html", folder / "report.json")
    texts = {paths.html: render(facts), paths.json: to_json(as_json(facts))}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            atomic_write(path, text)
    except OSError as error:
        raise MannersError(
            f"The report could not be written to {folder} ({error.strerror or error}): "
            "make room or choose another folder, then run `manners report` again; an earlier report is untouched."
        ) from error
    return paths


def as_json(facts: ReportFacts) -> Facts:
    """Return the facts as `report.json` holds them: the result of each stage stands beside the other parts."""
    found = to_facts(facts)
    results = found.pop("stages")
    del found["sections"]
    for name, result in results.items():
        seconds = (facts.seconds or {}).get(name)
        found[name] = result | ({} if seconds is None else {"seconds": seconds})
    return found


def to_json(facts: Mapping[str, Any]) -> str:
    """Return facts as JSON with sorted keys, floats to ten digits, and null for what is not finite."""
    return json.dumps(_plain(facts), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def render(facts: ReportFacts) -> str:
    """Return the page; it refers to nothing outside itself, and escapes every text that comes from the facts."""
    said = facts.comparisons or Said()
    reward = _result(facts, "reward", RewardResult)
    ppo = _result(facts, "ppo", PolicyResult)
    evaluation = _result(facts, "evaluation", EvaluationResult)
    start = evaluation.start or INITIAL
    kept_to = called(start, start) if evaluation.start else "the start version"
    shown = _plain(as_json(facts))
    return _template().render(
        facts=shown,
        figures={name: Markup(svg) for name, svg in figures(said, reward, evaluation).items()},
        panels=[(title, note, Markup(svg)) for title, note, svg in panels(ppo, kept_to)],
        standing=standing(pair(evaluation.win_rate, evaluation.interval), HALF),
        checks=checks(evaluation),
        losses=losses(evaluation.forgetting),
        rivals=rivals(reward),
        others=[
            (title, shown[name], losses(getattr(facts.stages[name], "forgetting", None)))
            for name, title in facts.sections.items()
            if name in facts.stages
        ],
        format_count=number,
        format_duration=duration,
        source=said.source,
        judged_by=evaluation.source or said.source,
        before=called(evaluation.against or INITIAL, start),
        start=called(start, start),
        promotion=promotion(evaluation, facts.current),
        apart=apart(reward, ppo, evaluation),
    )


def _result(facts: ReportFacts, name: str, kind: type[Result]) -> Result:
    """Return a stage's result; one without any fact where it has not run."""
    found = facts.stages.get(name)
    return found if isinstance(found, kind) else kind()


@cache
def _template() -> Template:
    """Return the page's template; what the facts lack is false in it, however deep it is looked for."""
    made = environment(PackageLoader("manners.report"), ChainableUndefined)
    texts = (plots.percent, ends, relative_change, difference, number, duration, size)
    made.filters |= {text.__name__: text for text in texts}
    return made.get_template("report.html.j2")


def _plain(value: Any) -> Any:
    """Return facts as JSON can hold them, the same on every run: numpy scalars unpacked, floats to ten digits."""
    if isinstance(value, Mapping):
        return {str(key): _plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value
