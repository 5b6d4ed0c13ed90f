"""How often the interval of a win rate holds the truth, where answers to one prompt resemble each other.

`python -m tests.evaluate.test_coverage [STUDIES] [PROMPTS ...]` prints the table of docs/evaluate.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest

from manners.feedback.statistics import clustered_share, wilson
from manners.types import Interval

Rates = np.ndarray
WORLDS = {(gain, spread): NormalDist().cdf(gain / (2 + spread**2) ** 0.5) for gain in (0.0, 0.7) for spread in (0.5, 2)}
"""Gain of the new version over prompts, spread of that gain, and the win rate: that of a normal variable above 0."""
COUNTS = (2, 5, 10, 30, 130)


def rates(rng: np.random.Generator, prompts: int, gain: float, spread: float) -> Rates:
    """Return each prompt's win rate among the 16 pairs of four answers a side, whose quality is drawn anew."""
    shift = rng.normal(gain, spread, prompts)[:, None, None]
    won: Rates = rng.normal(0, 1, (prompts, 4, 1)) + shift > rng.normal(0, 1, (prompts, 1, 4))
    return np.asarray(won.mean(axis=(1, 2)))


def ours(values: Rates) -> Interval:
    return clustered_share(values, np.arange(len(values)))


def balanced(values: Rates) -> Interval:
    """Weights that differ, and say nothing of the values, as those of pairs that were balanced do."""
    weights = np.random.default_rng(int(1e6 * values.sum())).choice([0.5, 1.0, 2.0], len(values))
    return clustered_share(values, np.arange(len(values)), weights)


def resampling(values: Rates) -> Interval:
    """The plain percentile bootstrap, by prompt, and Wilson's where nothing varies: what stood here before."""
    if np.ptp(values) == 0:
        return wilson(float(values.sum()), len(values))
    drawn = np.random.default_rng(0).integers(len(values), size=(400, len(values)))
    return Interval(float(values.mean()), *(float(q) for q in np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))))


def coverage(by: Callable[[Rates], Interval], prompts: int, gain: float, spread: float, studies: int) -> float:
    rng = np.random.default_rng([prompts, int(10 * gain), int(10 * spread)])
    truth = WORLDS[gain, spread]
    return float(np.mean([not by(rates(rng, prompts, gain, spread)).excludes(truth) for _ in range(studies)]))


@pytest.mark.parametrize(("gain", "spread"), WORLDS)
@pytest.mark.parametrize("prompts", COUNTS[:3])
def test_the_interval_of_few_prompts_covers(prompts: int, gain: float, spread: float) -> None:
    assert coverage(ours, prompts, gain, spread, 400) >= 0.92


@pytest.mark.parametrize(("prompts", "false"), [(2, 0.3), (5, 0.1)])
def test_what_was_shown_before_did_not(prompts: int, false: float) -> None:
    """The planted fault: of equal versions that answer 2 prompts one in three was called different."""
    assert 1 - coverage(resampling, prompts, 0.0, 0.5, 300) > false


@pytest.mark.long
@pytest.mark.parametrize(("gain", "spread"), WORLDS)
@pytest.mark.parametrize("prompts", COUNTS[::2])
@pytest.mark.parametrize("by", [ours, balanced])
def test_the_interval_covers_in_many_studies(
    by: Callable[[Rates], Interval], prompts: int, gain: float, spread: float
) -> None:
    assert coverage(by, prompts, gain, spread, 2000) >= 0.92


def main() -> None:
    """Print coverage over all worlds (lowest first) and false decisions, of the interval and of resampling."""
    studies, *counts = [int(text) for text in sys.argv[1:]] or [2000]
    for prompts in counts or COUNTS:
        cells = []
        for by in (ours, balanced, resampling):
            held = {world: 100 * coverage(by, prompts, *world, studies) for world in WORLDS}
            false = 100 - min(share for (gain, _), share in held.items() if not gain)
            cells.append(f"{min(held.values()):.1f} to {max(held.values()):.1f} %, false {false:.1f} %")
        print(f"| {prompts} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
