"""What a reward model is worth, on pairs that were set aside: the facts of its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from manners.feedback.statistics import FEWEST
from manners.results import LearningPoint, LevelAccuracy, Measured
from manners.reward.baselines import (
    CurvePoint,
    accuracy,
    accuracy_gain,
    always_left,
    by_agreement,
    characters,
    doubling_sentence,
    gain_over_always_left,
    length_and_finish,
    length_correlation,
    longer_wins,
    openings,
    shorter_wins,
)
from manners.reward.calibrate import (
    Calibration,
    chance_calibration_error,
    confidence,
    cross_calibrated,
    expected_calibration_error,
    fit_temperature,
    reliability,
    verdict_probabilities,
)
from manners.reward.ceiling import ceiling
from manners.reward.drawing import effective_verdicts
from manners.reward.labelled import BOTH_BAD_RULE, STRENGTH_RULE, Floats, LabelledPair, counts_array
from manners.types import Interval


def measure(
    margins: Floats,
    train: Sequence[LabelledPair],
    held_out: Sequence[LabelledPair],
    seed: int,
    where: str = "verdicts set aside",
) -> Measured:
    """Measure raw margins (score left - score right) on held-out pairs: accuracy, baselines, calibration, length.

    `train` is what the regression on length and finish flag is fitted on; without any, that baseline is left out.
    Lengths are in characters. Every figure has an interval. Calibration out of fold is None where there is one group.
    """
    lengths = characters(held_out)
    accurate = accuracy(margins, held_out, seed)
    rivals = {
        "longer_wins": longer_wins(lengths, held_out, seed),
        "shorter_wins": shorter_wins(lengths, held_out, seed),
        "always_left": always_left(held_out, seed),
    }
    gains = {
        "longer_wins": accuracy_gain(margins, lengths[:, 0] - lengths[:, 1], held_out, seed),
        "shorter_wins": accuracy_gain(margins, lengths[:, 1] - lengths[:, 0], held_out, seed),
        "always_left": gain_over_always_left(margins, held_out, seed),
    }
    if train:
        ruler = length_and_finish(train, characters(train), held_out, lengths)
        rivals["length_and_finish"] = accuracy(ruler, held_out, seed)
        gains["length_and_finish"] = accuracy_gain(margins, ruler, held_out, seed)
    verdicts = round(sum(pair.counts.decided for pair in held_out))
    worth = effective_verdicts(held_out)
    few = openings(held_out) < FEWEST
    best = max(rivals, key=lambda name: rivals[name].estimate)
    return Measured(
        accuracy=accurate.estimate,
        interval=(accurate.low, accurate.high),
        verdicts=verdicts,
        effective_n=worth,
        unknown_draws=sum(pair.unknown for pair in held_out),
        chance=0.5,
        baselines=rivals,
        gains=gains,
        length_only=rivals.get("length_and_finish", max(rivals.values(), key=lambda r: r.estimate)).estimate,
        ceiling=ceiling([*train, *held_out], seed),
        by_agreement=tuple(
            LevelAccuracy(level=str(r.level), n=r.n, **asdict(r.accuracy))
            for r in by_agreement(margins, held_out, seed)
        ),
        **_calibration(margins, held_out, seed),
        length_correlation=length_correlation(
            margins, lengths[:, 0] - lengths[:, 1], [pair.group for pair in held_out], seed
        ),
        both_bad_rule=BOTH_BAD_RULE,
        strength_rule=STRENGTH_RULE,
        sentence=_sentence(where, accurate, best, rivals[best], gains[best], _drawn(verdicts, worth), few),
        set_aside_pairs=len(held_out),
    )


def _calibration(margins: Floats, pairs: Sequence[LabelledPair], seed: int) -> dict[str, Any]:
    """Expected calibration error before temperature and after it, the latter out of fold and so from two groups on.

    By the names of `Measured`.
    """
    counts = counts_array(pairs)
    groups = [pair.group for pair in pairs]
    before = confidence(verdict_probabilities(margins, Calibration()), counts)
    fitted = fit_temperature(margins, counts)
    facts: dict[str, Any] = {
        "ece_before": expected_calibration_error(*before),
        "ece": None,
        "ece_by_luck": None,
        "temperature": fitted.temperature,
        "tie_parameter": float(np.exp(fitted.log_tie)),
        "reliability": (),
    }
    if len(set(groups)) < 2:
        return facts
    after = confidence(cross_calibrated(margins, counts, groups, seed=seed), counts)
    return facts | {
        "ece": expected_calibration_error(*after),
        "ece_by_luck": chance_calibration_error(*after, groups, seed=seed),
        "reliability": tuple(reliability(*after)),
    }


def curve_facts(points: Sequence[CurvePoint], shares: Sequence[float]) -> dict[str, Any]:
    """Return accuracy against the number of verdicts, and what twice as many would buy, named as in `RewardResult`."""
    curve = tuple(
        LearningPoint(share=share, verdicts=p.verdicts, **asdict(p.accuracy))
        for share, p in zip(shares, points, strict=True)
    )
    doubling = doubling_sentence(points) if len(points) > 1 else "Not measured: reward.curve is off."
    return {"curve": curve, "doubling": doubling}


def _drawn(verdicts: int, worth: float) -> str:
    """Say what the verdicts are worth, where they are weighted for how their comparisons were drawn."""
    if worth > verdicts - 0.5:
        return ""
    return f"; {verdicts} verdicts, weighted for how their comparisons were drawn, are worth {worth:.0f}"


def _sentence(where: str, accurate: Interval, best: str, rate: Interval, gain: Interval, drawn: str, few: bool) -> str:
    name = best.replace("_", " ")
    start = (
        f"On {where} it agrees with {100 * accurate.estimate:.1f} %"
        f" (95 % interval {100 * accurate.low:.1f} to {100 * accurate.high:.1f}{drawn});"
    )
    if few:
        return (
            f"{start} that is on fewer than {FEWEST} openings, too few to tell: do not optimise against it before more"
            " are set aside."
        )
    if gain.low > 0:
        return f"{start} the best trivial rule, {name}, agrees with {100 * rate.estimate:.1f} %, which it beats."
    return (
        f"{start} it is not shown to beat the best trivial rule, {name} ({100 * rate.estimate:.1f} %):"
        " do not optimise against it before it does."
    )
