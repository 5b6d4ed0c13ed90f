"""The facts of the reward model's report, where margins and verdicts are known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from manners.reward.baselines import CurvePoint
from manners.reward.labelled import Counts, LabelledPair
from manners.reward.verdicts import label
from manners.types import Interval
from tests.reward.as_facts import curve_facts, measure
from tests.reward.planted import comparisons


def pairs(count: int, agreement: float = 0.9) -> tuple[LabelledPair, ...]:
    return label(comparisons(count, agreement)).pairs


def polite_margins(of: tuple[LabelledPair, ...]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([2.0 if "thank" in pair.left.text else -2.0 for pair in of])


def test_a_good_model_beats_the_rules() -> None:
    held_out = pairs(60)
    facts = measure(polite_margins(held_out), (), held_out, seed=0)
    agree = sum(p.counts.left if "thank" in p.left.text else p.counts.right for p in held_out) / 180
    assert facts["accuracy"] == pytest.approx(agree)
    low, high = facts["interval"]
    assert 0.5 < low < agree < high
    assert facts["chance"] == 0.5
    assert facts["set_aside_pairs"] == 60
    # The polite side is the longer one, so "longer wins" knows as much: no gain over it, and the sentence says so.
    assert facts["baselines"]["longer_wins"]["estimate"] == pytest.approx(agree, abs=0.1)
    assert facts["baselines"]["shorter_wins"]["estimate"] == pytest.approx(1 - agree, abs=0.1)
    assert facts["gains"]["always_left"]["low"] > 0
    assert "not shown to beat the best trivial rule, longer wins" in facts["sentence"]
    assert "length_and_finish" not in facts["baselines"]
    assert facts["length_correlation"]["estimate"] > 0.5
    json.dumps(facts, allow_nan=False)


def wordy(pair: LabelledPair) -> LabelledPair:
    """The same pair with a longer response on the side that does not say thank you."""
    side = "right" if "thank" in pair.left.text else "left"
    response = getattr(pair, side)
    return replace(pair, **{side: replace(response, text=f"{response.text} and so on and so on")})


def test_the_sentence_names_the_rule_that_is_beaten() -> None:
    held_out = tuple(wordy(pair) if n % 2 else pair for n, pair in enumerate(pairs(100)))
    facts = measure(polite_margins(held_out), (), held_out, seed=0)
    assert "which it beats" in facts["sentence"]


@pytest.mark.long
def test_the_ruler_is_fitted_on_what_was_trained_on() -> None:
    train, held_out = pairs(60)[:40], pairs(60)[40:]
    facts = measure(polite_margins(held_out), train, held_out, seed=0)
    assert facts["length_only"] == facts["baselines"]["length_and_finish"]["estimate"] > 0.6
    # Each of three annotators is right on 90 %, on every pair: the upper bound is the truth.
    assert facts["ceiling"]["high"] == pytest.approx(0.9, abs=0.06)
    assert facts["ceiling"]["low"] < facts["ceiling"]["fit"] < facts["ceiling"]["high"]
    assert [row["level"] for row in facts["by_agreement"]]


def test_margins_that_know_nothing() -> None:
    held_out = pairs(80)
    facts = measure(np.random.default_rng(0).normal(size=80), (), held_out, seed=0)
    low, high = facts["interval"]
    assert low < 0.5 < high
    assert "do not optimise against it before it does" in facts["sentence"]
    assert facts["ece"] < facts["ece_before"], "calibration takes the confidence away"
    assert facts["temperature"] > 3


def test_a_single_opening_claims_nothing_of_others() -> None:
    held_out = tuple(replace(pair, group="one") for pair in pairs(5))
    facts = measure(polite_margins(held_out), pairs(20), held_out, seed=0)
    assert (facts["ece"], facts["ece_by_luck"], facts["reliability"]) == (None, None, [])
    assert facts["ece_before"] >= 0 and facts["temperature"] > 0
    assert facts["interval"] == [0.0, 1.0]
    assert all((gain["low"], gain["high"]) == (-1.0, 1.0) for gain in facts["gains"].values())
    assert all((level["low"], level["high"]) == (0.0, 1.0) for level in facts["by_agreement"])
    assert (facts["length_correlation"]["low"], facts["length_correlation"]["high"]) == (-1.0, 1.0)
    assert "too few to tell" in facts["sentence"]
    json.dumps(facts, allow_nan=False)


def test_a_handful_of_openings_is_too_few_to_tell() -> None:
    held_out = tuple(replace(pair, group=pair.group if n > 60 else str(n % 4)) for n, pair in enumerate(pairs(40)))
    facts = measure(polite_margins(held_out), (), held_out, seed=0)
    assert facts["gains"]["always_left"]["low"] > 0 and "too few to tell" in facts["sentence"]
    assert "which it beats" not in facts["sentence"]


def test_what_a_queue_drew_weighs_for_how_it_was_drawn() -> None:
    """Half of the verdicts are on hard pairs that were drawn for that, and weigh a tenth."""
    held_out = []
    for n, one in enumerate(pairs(60, agreement=1.0)):
        hard = n % 2 == 0
        counts = Counts(one.counts.right, one.counts.left, 0.0) if hard else one.counts
        weight = 0.1 if hard else 1.0
        held_out.append(replace(one, counts=counts, drawn=Counts(*(weight * count for count in counts))))
    facts = measure(polite_margins(tuple(held_out)), (), held_out, seed=0)
    assert facts["accuracy"] == pytest.approx(1.0 / 1.1)
    # (90 + 9)^2 / (90 + 0.9): 180 verdicts, of which half hardly count.
    assert (facts["verdicts"], facts["effective_n"]) == (180, pytest.approx(99**2 / 90.9))
    assert "180 verdicts, weighted for how their comparisons were drawn, are worth 108" in facts["sentence"]
    assert facts["ceiling"]["low"] == 1.0


def test_the_curve_says_what_doubling_buys() -> None:
    points = [CurvePoint(100 * 2**n, Interval(0.6 + 0.05 * n, 0.59 + 0.05 * n, 0.61 + 0.05 * n)) for n in range(3)]
    facts = curve_facts(points, (0.25, 0.5, 1.0))
    assert [(row["share"], row["verdicts"]) for row in facts["curve"]] == [(0.25, 100), (0.5, 200), (1.0, 400)]
    assert "5.0" in facts["doubling"]
    assert curve_facts(points[:1], (1.0,))["doubling"].startswith("Not measured")
