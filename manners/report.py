"""One self-contained HTML page about a run, figures included, and the same facts as JSON beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChainableUndefined, Environment, PackageLoader, Template
from markupsafe import Markup

from manners import report_plots as plots
from manners.errors import MannersError
from manners.evaluate.compare import MOST_PERPLEXITY
from manners.report_plots import Row
from manners.types import Interval
from manners.workspace import atomic_write

HALF = 0.5
"""The win rate of two policies that are equally good."""

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """Where the report lies."""

    html: Path
    json: Path


class Standing(StrEnum):
    """What an interval says about a question; `Cannot tell` is an answer."""

    YES = "yes"
    UNCLEAR = "cannot tell"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Check:
    """One question to settle before shipping, with its answer and the figures that it rests on."""

    question: str
    standing: Standing
    evidence: str


def build(facts: dict[str, Any], folder: Path) -> ReportPaths:
    """Write `report.html` and `report.json` into `folder`, each whole or not at all; docs/report.md lists the facts.

    Facts that are absent leave their section out, and the page says which command makes them. Raises `MannersError`
    where the folder cannot be written; an earlier report is then untouched.
    """
    paths = ReportPaths(folder / "report.html", folder / "report.json")
    texts = {paths.html: render(facts), paths.json: to_json(facts)}
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


def to_json(facts: Facts) -> str:
    """Return the facts as JSON with sorted keys, floats to ten digits, and null for what is not finite."""
    return json.dumps(_plain(facts), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def render(facts: Facts) -> str:
    """Return the page; it refers to nothing outside itself, and escapes every text that comes from the facts."""
    facts = _plain(facts)
    evaluation = facts.get("evaluation") or {}
    return _template().render(
        facts=facts,
        figures={name: Markup(svg) for name, svg in figures(facts).items()},
        panels=[(title, note, Markup(svg)) for title, note, svg in panels(facts.get("ppo") or {})],
        standing=standing(_pair(evaluation, "win_rate"), HALF),
        checks=checks(evaluation),
        rivals=rivals(facts.get("reward") or {}),
        format_count=number,
        format_duration=duration,
        source=(facts.get("comparisons") or {}).get("source"),
        judged_by=evaluation.get("source") or (facts.get("comparisons") or {}).get("source"),
    )


@cache
def _template() -> Template:
    """Return the page's template; what the facts lack is false in it, however deep it is looked for."""
    environment = Environment(loader=PackageLoader("manners"), autoescape=True, undefined=ChainableUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    texts = (plots.percent, ends, relative_change, difference, number, duration, size)
    environment.filters |= {text.__name__: text for text in texts}
    return environment.get_template("report.html.j2")


def standing(value: Interval | None, reference: float) -> Standing:
    """Return whether `value` is above `reference`: yes or no only where the whole interval agrees."""
    if value is None or not value.excludes(reference):
        return Standing.UNCLEAR
    return Standing.YES if value.low > reference else Standing.NO


def checks(evaluation: Facts) -> list[Check]:
    """Return what else should hold before a policy with a good win rate is shipped; unmeasured ones are left out."""
    found = []
    if matched := _interval(evaluation.get("matched")):
        found.append(Check("Better at equal length?", standing(matched, HALF), with_interval(matched)))
    ours, rival = _pair(evaluation, "win_rate"), evaluation.get("best_of_n") or {}
    question = f"Better than best of {rival.get('n')}?"
    if direct := _interval(rival.get("head_to_head")):
        found.append(Check(question, standing(direct, HALF), f"{with_interval(direct)} head to head"))
    elif ours and (theirs := _interval(rival.get("win_rate"))):
        found.append(Check(question, _apart(ours, theirs), f"{with_interval(ours)} against {with_interval(theirs)}"))
    if (check := _not_down("Content not worse?", "content", evaluation)) is not None:
        found.append(check)
    if change := _interval(evaluation.get("perplexity_change")):
        below = Interval(-change.estimate, -change.high, -change.low)
        question = f"Perplexity on plain text at most {100 * MOST_PERPLEXITY:g} % up?"
        found.append(Check(question, standing(below, -MOST_PERPLEXITY), relative_change(change)))
    return found


def rivals(reward: Facts) -> list[Check]:
    """Return, for each rule that needs no model, whether the reward model's accuracy lies wholly above the rule's."""
    accuracy = _pair(reward, "accuracy")
    baselines = {name: _interval(value) for name, value in (reward.get("baselines") or {}).items()}
    return [
        Check(BASELINES.get(name, name.replace("_", " ")), _apart(accuracy, value), with_interval(value))
        for name, value in baselines.items()
        if accuracy and value
    ]


BASELINES = {
    "longer_wins": "Longer wins",
    "shorter_wins": "Shorter wins",
    "length_and_finish": "Length and finish flag",
    "always_left": "Always left",
}


def figures(facts: Facts) -> dict[str, str]:
    """Return every figure whose facts are there, by name, as SVG."""
    evaluation, reward = facts.get("evaluation") or {}, facts.get("reward") or {}
    best = evaluation.get("best_of_n") or {}
    rates = {
        "Policy": _pair(evaluation, "win_rate"),
        "Policy, at equal length": _interval(evaluation.get("matched")),
        f"Best of {best.get('win_rate_n', best.get('n'))}": _interval(best.get("win_rate")),
    }
    models = {
        "Reward model": _pair(reward, "accuracy"),
        **{BASELINES.get(k, k): _interval(v) for k, v in (reward.get("baselines") or {}).items()},
        "Ceiling from disagreement": _interval(reward.get("ceiling")),
    }
    levels = {f"{row['level']} (n = {row['n']})": _interval(row) for row in reward.get("by_agreement") or ()}
    left = {"Left was preferred": _interval((facts.get("comparisons") or {}).get("left_rate"))}
    won = "Win rate over the initial model"
    drawn = {
        "verdict": _whiskers("verdict", won, {"Policy": rates["Policy"]}, "no difference", "Policy"),
        "rates": _whiskers("rates", won, rates, "no difference", "Policy"),
        "accuracy": _whiskers("accuracy", "Held-out accuracy", models, "chance", "Reward model"),
        "agreement": _whiskers("agreement", "Held-out accuracy by agreement", levels, "chance"),
        "left": _whiskers("left", "Side bias", left, "no side bias"),
        "reliability": _reliability(reward),
        "learning": _learning(reward),
        "taste": _taste(evaluation),
    }
    return {name: svg for name, svg in drawn.items() if svg}


PANELS = (
    ("objective/scores", "update", "Score", "by the reward model, normalised"),
    ("validate/score", "validate/update", "Score on validation prompts", "prompts that PPO never trains on"),
    ("objective/kl", "update", "KL from the initial model", "nats per response"),
    ("response/length", "update", "Response length", "tokens"),
    ("response/finished", "update", "Share finished", "ended by the policy itself"),
    ("response/distinct_2", "update", "Variety", "distinct-2"),
    ("val/explained_variance", "update", "Value fit", "explained variance of the returns"),
    ("policy/clipfrac_avg", "update", "Clipped ratios", "share of tokens"),
    ("reward/ensemble_std", "update", "Ensemble spread", "how far its members disagree"),
)
"""Metric, its horizontal axis, title and unit of each small panel, in the order shown."""


def panels(ppo: Facts) -> list[tuple[str, str, str]]:
    """Return title, unit and SVG of each metric that was recorded."""
    curves, best = ppo.get("curves") or {}, ppo.get("best_update")
    drawn = []
    for metric, across, title, unit in PANELS:
        values = curves.get(metric) or ()
        known = [value for value in values if value is not None]
        if known:
            alt = f"{title} ({unit}) by PPO update: from {number(known[0])} to {number(known[-1])}."
            drawn.append((title, unit, plots.curve(metric, alt, curves[across], values, best)))
    return drawn


def with_interval(value: Interval | Facts | None) -> str:
    """Return a share with its 95 % interval as text: `71.3 % (68.2 to 74.1 %)`."""
    known = value if isinstance(value, Interval) else _interval(value)
    return "not measured" if known is None else f"{plots.percent(known.estimate)} ({plots.span(known)})"


def ends(value: Facts | None) -> str:
    """Return the ends of an interval of shares alone, where the estimate stands beside it: `68.2 to 74.1 %`."""
    known = _interval(value)
    return "not measured" if known is None else plots.span(known)


def relative_change(value: Interval | Facts | None) -> str:
    """Return a relative change with its 95 % interval as text: `+1.2 % (-0.3 to +2.7 %)`, with true minus signs."""
    known = value if isinstance(value, Interval) else _interval(value)
    if known is None:
        return "\N{EN DASH}"
    estimate, low, high = (_signed(100 * share, 1) for share in (known.estimate, known.low, known.high))
    return f"{estimate}\N{NO-BREAK SPACE}% ({low} to {high}\N{NO-BREAK SPACE}%)"


def difference(value: Facts | None) -> str:
    """Return a difference of two means with its 95 % interval as text: `+0.186 (+0.150 to +0.221)`."""
    known = _interval(value)
    if known is None:
        return "\N{EN DASH}"
    estimate, low, high = (_signed(end, 3) for end in (known.estimate, known.low, known.high))
    return f"{estimate} ({low} to {high})"


def _signed(value: float, digits: int) -> str:
    """Return a number with its sign."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def number(value: object) -> str:
    """Return a count in full, any other number to about three digits, and a dash for what is not there."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if not isinstance(value, float) or not math.isfinite(value):
        return "\N{EN DASH}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: object) -> str:
    """Return a time in seconds as text: `3 min 20 s`."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "\N{EN DASH}"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def size(count: object) -> str:
    """Return a number of bytes in decimal units: `3.2 GB`."""
    if not isinstance(count, int | float):
        return "\N{EN DASH}"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _whiskers(name: str, subject: str, values: Mapping[str, Interval | None], against: str, strong: str = "") -> str:
    """Draw the intervals that are known against one half, the row called `strong` emphasised."""
    known = {label: value for label, value in values.items() if value is not None}
    rows = [Row(label, value, emphasised=label == strong) for label, value in known.items()]
    told = "; ".join(f"{label} {with_interval(value)}" for label, value in known.items())
    line = f"{against}, {100 * HALF:.0f} %"
    return plots.dot_whiskers(name, f"{subject}: {told}. The line is at {line}.", rows, HALF, line) if rows else ""


def _reliability(reward: Facts) -> str:
    rows = reward.get("reliability") or ()
    points = [
        (row["predicted"], Interval(row["observed"], row["low"], row["high"]))
        for row in rows
        if all(_finite(row.get(key)) for key in ("predicted", "observed", "low", "high"))
    ]
    told = "; ".join(f"predicted {plots.percent(p)}, observed {with_interval(value)}" for p, value in points)
    return plots.reliability("reliability", f"Reliability diagram: {told}.", points) if points else ""


def _learning(reward: Facts) -> str:
    points = [(row["verdicts"], value) for row in reward.get("curve") or () if (value := _interval(row))]
    told = "; ".join(f"{count:,} verdicts: {with_interval(value)}" for count, value in points)
    alt = f"Held-out accuracy against the number of verdicts: {told}."
    return plots.learning_curve("learning", alt, points, reward.get("chance", HALF)) if points else ""


def _taste(evaluation: Facts) -> str:
    parts = [
        (name.replace("_", " "), part["before"], part["after"])
        for name, part in (evaluation.get("taste_parts") or {}).items()
        if _finite(part.get("before")) and _finite(part.get("after"))
    ]
    told = "; ".join(f"{name} from {number(before)} to {number(after)}" for name, before, after in parts)
    return plots.before_after("taste", f"Parts of the hidden taste: {told}.", parts) if parts else ""


def _apart(ours: Interval | None, theirs: Interval) -> Standing:
    """Return whether ours is higher: yes or no only where the two intervals do not touch (a strict reading)."""
    if ours is None or (ours.low <= theirs.high and theirs.low <= ours.high):
        return Standing.UNCLEAR
    return Standing.YES if ours.low > theirs.high else Standing.NO


def _not_down(question: str, key: str, evaluation: Facts) -> Check | None:
    """Return whether a mean did not fall: by the interval of its change, or, where that is lacking, by the means."""
    before, after = evaluation.get(f"{key}_before"), evaluation.get(f"{key}_after")
    if not isinstance(before, float) or not isinstance(after, float):
        return None
    evidence = f"{number(before)} \N{RIGHTWARDS ARROW} {number(after)}"
    if change := _interval(evaluation.get(f"{key}_change")):
        return Check(question, standing(change, 0.0), f"{evidence}, {difference(evaluation[f'{key}_change'])}")
    return Check(question, Standing.YES if after >= before else Standing.NO, evidence)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _interval(value: Facts | None) -> Interval | None:
    """Read `{estimate, low, high}`; None unless all three are finite."""
    ends: list[Any] = [(value or {}).get(key) for key in ("estimate", "low", "high")]
    known = [float(end) for end in ends if _finite(end)]
    return Interval(*known) if len(known) == len(ends) else None


def _pair(facts: Facts, key: str) -> Interval | None:
    """Read an estimate under `key` with its ends under `interval`."""
    low, high = facts.get("interval") or (None, None)
    return _interval({"estimate": facts.get(key), "low": low, "high": high})


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
