"""The report: what each phase taught, its measures, and the same requests answered by each, on one page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader, Template
from markupsafe import Markup

from manners.facts import Facts
from manners.report import duration, number, plots, to_json, with_interval
from manners.report.plots import Row
from manners.results import PolicyResult
from manners.results.pretrain import PretrainResult
from manners.types import Interval
from manners.workspace import atomic_write

TITLES = {"pretrain": "Pre-training", "sft": "Learning from pairs", "ppo": "The crowd, a reward model, PPO"}


def write(folder: Path, facts: Facts, wrote: PretrainResult, trained: PolicyResult) -> Path:
    """Write `report.json` and `report.html` into the folder, each whole or not at all; return the page's path."""
    atomic_write(folder / "report.json", to_json(facts))
    page = folder / "report.html"
    atomic_write(page, render(facts, figures(facts, wrote, trained)))
    return page


def render(facts: Facts, drawn: Mapping[str, str]) -> str:
    """Return the page; it refers to nothing outside itself, and escapes every text that comes from the facts."""
    return _template().render(facts=facts, titles=TITLES, figures={name: Markup(svg) for name, svg in drawn.items()})


def figures(facts: Facts, wrote: PretrainResult, trained: PolicyResult) -> dict[str, str]:
    """Draw what the requests' share carried came to, and how the two runs went."""
    phases = facts["phases"]
    values = {TITLES[name]: Interval(**phase["carried"]) for name, phase in phases.items()}
    chance = phases["ppo"]["carried_by_chance"]
    told = "; ".join(f"{title} {with_interval(value)}" for title, value in values.items())
    rows = [Row(title, value, title == TITLES["ppo"]) for title, value in values.items()]
    line = f"of another request, {plots.percent(chance)}"
    drawn = {"carried": plots.dot_whiskers("carried", f"Share carried: {told}.", rows, chance, line)}
    learning, climbing = wrote.curves or {}, trained.curves or {}
    measured = zip(learning["tokens"], learning["held_out/bits_per_byte"], strict=True)
    tokens, bits = (list(column) for column in zip(*(row for row in measured if None not in row), strict=True))
    alt = f"Bits a byte of stories set aside: from {bits[0]:.2f} to {bits[-1]:.2f}."
    drawn["bits"] = plots.curve("bits", alt, [count / 1e6 for count in tokens], bits, None)
    score = climbing.get("validate/score") or ()
    if known := [value for value in score if value is not None]:
        alt = f"Score on validation requests: from {known[0]:.2f} to {known[-1]:.2f}."
        drawn["score"] = plots.curve("score", alt, climbing["validate/update"], score, trained.best_update)
    return drawn


def _plus(value: Mapping[str, float] | None) -> str:
    """Return a change with its interval."""
    if not value:
        return "\N{EN DASH}"
    estimate, low, high = (f"{value[end]:+.2f}".replace("-", "\N{MINUS SIGN}") for end in ("estimate", "low", "high"))
    return f"{estimate} ({low} to {high})"


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=ChainableUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    texts: dict[str, Any] = {"percent": plots.percent, "number": number, "duration": duration}
    environment.filters |= texts | {"with_interval": with_interval, "plus": _plus}
    return environment.get_template("report.html.j2")
