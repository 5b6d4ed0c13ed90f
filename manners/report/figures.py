"""The report's figures: each drawn from a result, where the facts for it are there."""

from __future__ import annotations

from collections.abc import Mapping

from manners.evaluate.promotion import HALF, called
from manners.report import plots
from manners.report.checks import BASELINES
from manners.report.plots import Row
from manners.report.words import finite, interval, number, pair, with_interval
from manners.results import PolicyResult, RewardResult, Said
from manners.results.ceiling import Ceiling
from manners.results.evaluation import BestOfN, EvaluationResult
from manners.types import Interval
from manners.workspace import INITIAL


def figures(said: Said, reward: RewardResult, evaluation: EvaluationResult) -> dict[str, str]:
    """Return every figure whose facts are there, by name, as SVG."""
    best = evaluation.best_of_n or BestOfN()
    matched, regressed = (None if one is None else one.rate for one in (evaluation.matched, evaluation.regressed))
    rates = {
        "Policy": pair(evaluation.win_rate, evaluation.interval),
        "Policy, by noisy verdicts": interval(evaluation.noisy),
        "Policy, at equal length": interval(matched),
        "Policy, by regression": interval(regressed),
        f"Best of {best.n if best.win_rate_n is None else best.win_rate_n}": interval(best.win_rate),
    }
    models = {
        "Reward model": pair(reward.accuracy, reward.interval),
        **{BASELINES.get(k, k): interval(v) for k, v in (reward.baselines or {}).items()},
        **_ceiling(reward.ceiling or Ceiling()),
    }
    levels = {f"{row.level} (n = {row.n})": interval(row.rate) for row in reward.by_agreement or ()}
    left = {"Left was preferred": interval(said.left_rate)}
    won = f"Win rate over {called(evaluation.against or INITIAL, evaluation.start or INITIAL)}"
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
    ("objective/kl", "update", "KL from {start}", "nats per response"),
    ("response/length", "update", "Response length", "tokens"),
    ("response/finished", "update", "Share finished", "ended by the policy itself"),
    ("response/distinct_2", "update", "Variety", "distinct-2"),
    ("val/explained_variance", "update", "Value fit", "explained variance of the returns"),
    ("policy/clipfrac_avg", "update", "Clipped ratios", "share of tokens"),
    ("reward/ensemble_std", "update", "Ensemble spread", "how far its members disagree"),
)
"""Metric, its horizontal axis, title and unit of each small panel, in the order shown."""


def panels(ppo: PolicyResult, start: str) -> list[tuple[str, str, str]]:
    """Return title, unit and SVG of each metric that was recorded; `start` is what the start version is called."""
    curves = ppo.curves or {}
    drawn = []
    for metric, across, named, unit in PANELS:
        title = named.format(start=start)
        values = curves.get(metric) or ()
        known = [value for value in values if value is not None]
        if known:
            alt = f"{title} ({unit}) by PPO update: from {number(known[0])} to {number(known[-1])}."
            drawn.append((title, unit, plots.curve(metric, alt, curves[across], values, ppo.best_update)))
    return drawn


def _whiskers(name: str, subject: str, values: Mapping[str, Interval | None], against: str, strong: str = "") -> str:
    """Draw the intervals that are known against one half, the row called `strong` emphasised."""
    known = {label: value for label, value in values.items() if value is not None}
    rows = [Row(label, value, emphasised=label == strong) for label, value in known.items()]
    told = "; ".join(f"{label} {with_interval(value)}" for label, value in known.items())
    line = f"{against}, {100 * HALF:.0f} %"
    return plots.dot_whiskers(name, f"{subject}: {told}. The line is at {line}.", rows, HALF, line) if rows else ""


def _ceiling(ceiling: Ceiling) -> dict[str, Interval | None]:
    """Return the bounds of the ceiling, each with its interval: no single figure is known."""
    return {
        "Ceiling, at least": pair(ceiling.low, ceiling.low_interval),
        "Ceiling, at most": pair(ceiling.high, ceiling.high_interval),
    }


def _reliability(reward: RewardResult) -> str:
    points = [
        (row.predicted, Interval(row.observed, row.low, row.high))
        for row in reward.reliability or ()
        if all(map(finite, (row.predicted, row.observed, row.low, row.high)))
    ]
    told = "; ".join(f"predicted {plots.percent(p)}, observed {with_interval(value)}" for p, value in points)
    return plots.reliability("reliability", f"Reliability diagram: {told}.", points) if points else ""


def _learning(reward: RewardResult) -> str:
    points = [(row.verdicts, value) for row in reward.curve or () if (value := interval(row.rate))]
    told = "; ".join(f"{count:,} verdicts: {with_interval(value)}" for count, value in points)
    alt = f"Held-out accuracy against the number of verdicts: {told}."
    return (
        plots.learning_curve("learning", alt, points, HALF if reward.chance is None else reward.chance)
        if points
        else ""
    )


def _taste(evaluation: EvaluationResult) -> str:
    parts = [
        (name.replace("_", " "), part.before, part.after)
        for name, part in (evaluation.taste_parts or {}).items()
        if finite(part.before) and finite(part.after)
    ]
    was = called(evaluation.against or INITIAL, evaluation.start or INITIAL)
    policy = evaluation.version or "policy"
    told = "; ".join(f"{name} from {number(before)} to {number(after)}" for name, before, after in parts)
    alt = f"Parts of the hidden taste, {was} and {policy}: {told}."
    return plots.before_after("taste", alt, parts, was, policy) if parts else ""
