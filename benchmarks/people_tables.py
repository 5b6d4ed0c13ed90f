"""What `benchmarks.on_people` has found, as Markdown: what stands here changes words and intervals, and no run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from manners.audit.figures import mean as figure
from manners.feedback.statistics import Floats, clustered_mean, clustered_share
from manners.reward.baselines import accuracy, accuracy_gain, characters, longer_wins
from manners.reward.ceiling import ceiling
from manners.reward.labelled import LabelledPair
from manners.types import Interval

MEASURES = ("outside", "looks better", "drilled", "other probes", "turned", "length")
LOSS = 0.02
"""Share of other people's verdicts that what ships may lose to one member without any hardening."""
PLAIN, SHIPS = "one member", "mean of three"
Measured = Mapping[str, tuple[Floats, Sequence[str]]]
"""By measure what a model does on each case, and the conversation that the case is of."""


def people_table(found: Mapping[str, Any]) -> str:
    """Return how far people agree, as Markdown."""
    lines = [
        "| set | pairs | left out: an answer is empty | verdicts | people | two agree | Krippendorff's alpha"
        " | ceiling | the longer one is chosen |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        counts = [f"{one[key]:,}" for key in ("pairs", "empty", "verdicts", "people")]
        cells = [name, *counts, share(one["agree"]), number(one["alpha"]), _top(one["ceiling"]), share(one["longer"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def crowds_table(
    found: Mapping[tuple[str, str], Sequence[Any]], known: Mapping[str, Mapping[int, LabelledPair]]
) -> str:
    """Return what reward models make of people's verdicts, and whether they gain by camps of people, as Markdown.

    `found` are the runs by set and way, a run a seed in the same order for each way; `known` the pairs of each set that
    are learned from or set aside. A seed that is refused is left out of both sides of a difference, and counted.
    """
    lines = [
        "| set | trained | accuracy [95 %] | the longer one, on the same | ceiling of these pairs | over plain, points"
        " | nats a verdict, less plain | camps over one: gain in nats, by seed | camps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, arm), every in found.items():
        both = [
            (run, plain)
            for run, plain in zip(every, found[name, "plain"], strict=True)
            if not {"refused"} & {*run, *plain}
        ]
        why = "; ".join(dict.fromkeys(run["refused"] for run in every if "refused" in run))
        told = f"{arm} (refused on {len(every) - len(both)} of {len(every)} seeds: {why})" if why else arm
        if not both:
            lines.append(f"| {name} | {told} | | | | | | | |")
            continue
        runs, plains = zip(*both, strict=True)
        pairs = [known[name][number] for run in runs for number in run["held"]]
        mine, plain = (np.concatenate([run["margins"] for run in some]) for some in (runs, plains))
        cells = [name, told, share(three(accuracy(mine, pairs, 0)))]
        if arm == "plain":
            top = ceiling(list(known[name].values()), 0)
            cells += [
                share(three(longer_wins(characters(pairs), pairs, 0))),
                _top(None if top is None else (top.low, top.high)),
                "",
                "",
            ]
            cells += ["; ".join(number(run["gain"], 3) for run in runs), ", ".join(str(run["camps"]) for run in runs)]
        else:
            cells += ["", "", points(accuracy_gain(mine, plain, pairs, 0)), number(three(_nats(mine, plain, pairs)), 3)]
            cells += ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def hard_table(by_model: Mapping[str, Sequence[Measured]]) -> str:
    """Return what each hardening does, as Markdown: means over seeds, and in brackets the difference to one member."""
    lines = [
        "| reward model | people's verdicts on other conversations | worse answer longer and more formatted"
        " | probes of drilled kinds | other probes | choices turned by a form | twice the length, units |",
        "|---|---|---|---|---|---|---|",
    ]
    cases = (by_model[PLAIN][0][measure] for measure in MEASURES)
    counts = (f"{len(values)} ({len(set(groups))})" for values, groups in cases)
    lines.append(f"| *cases (conversations)* | {' | '.join(counts)} |")
    for name, seeds in by_model.items():
        cells = [name]
        for measure in MEASURES:
            mine, theirs, groups = _paired(seeds, by_model[PLAIN], measure)
            if measure == "length":
                written = number(three(figure(mine, groups, 0)))
            else:
                written = share(three(clustered_share(mine, groups)))
            if name != PLAIN:
                change = figure(mine - theirs, groups, 0)
                written += f" ({number(three(change)) if measure == 'length' else points(change)})"
            cells.append(written)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(_kept(name, by_model) for name in by_model if name != PLAIN)])


def _paired(some: Sequence[Measured], others: Sequence[Measured], measure: str) -> tuple[Floats, Floats, Sequence[str]]:
    """Return the means over seeds of what two models do on each case, and the conversations."""
    mine, theirs = (np.mean([one[measure][0] for one in seeds], axis=0) for seeds in (some, others))
    return mine, theirs, some[0][measure][1]


def _kept(name: str, by_model: Mapping[str, Sequence[Measured]]) -> str:
    """Say whether a model is below one member by `LOSS` on other people's verdicts, and by how much on each seed."""
    mine, theirs, groups = _paired(by_model[name], by_model[PLAIN], "outside")
    change = figure(mine - theirs, groups, 0)
    seeds = zip(by_model[name], by_model[PLAIN], strict=True)
    each = ", ".join(f"{100 * float(np.mean(one['outside'][0] - other['outside'][0])):+.1f}" for one, other in seeds)
    if change is None:
        told = "too few conversations to tell whether it is"
    elif change.low > -LOSS:
        told = "it is not"
    elif change.high < -LOSS:
        told = "**it is**"
    else:
        told = "it cannot be told whether it is"
    ships = ", which ships" if name == SHIPS else ""
    return (
        f"- {name}{ships}: {told} below one member by {100 * LOSS:.0f} points on other conversations (by seed {each})."
    )


def _nats(mine: Floats, plain: Floats, pairs: Sequence[LabelledPair]) -> Interval:
    """Return how many nats a decided verdict costs more by some margins than by others."""
    counts = np.array([pair.counts[:2] for pair in pairs])
    losses = [(counts * np.logaddexp(0, np.stack([-m, m], axis=1))).sum(axis=1) for m in (mine, plain)]
    decided = counts.sum(axis=1)
    kept = decided > 0
    apart = (losses[0] - losses[1])[kept] / decided[kept]
    return clustered_mean(apart, [p.group for p, k in zip(pairs, kept, strict=True) if k], decided[kept])


def three(one: Interval | None) -> list[float] | None:
    """Return an interval in JSON's types."""
    return None if one is None else [one.estimate, one.low, one.high]


def share(found: Sequence[float] | None) -> str:
    """Write a share in per cent."""
    return "-" if found is None else f"{found[0]:.1%} [{found[1]:.1%}, {found[2]:.1%}]"


def number(found: Sequence[float] | None, digits: int = 2) -> str:
    """Write a number with its sign."""
    return "-" if found is None else f"{found[0]:+.{digits}f} [{found[1]:+.{digits}f}, {found[2]:+.{digits}f}]"


def points(one: Interval | None) -> str:
    """Write a difference of shares in points."""
    return number(None if one is None else [100 * end for end in (one.estimate, one.low, one.high)], 1)


def _top(found: Sequence[float | None] | None) -> str:
    low, high = found or (None, None)
    return "-" if low is None or high is None else f"{low:.1%} to {high:.1%}"
