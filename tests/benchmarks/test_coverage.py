"""The short form of docs/coverage.md: intervals hold the truth about as often as they say, also on few prompts."""

from __future__ import annotations

import pytest

from benchmarks.evidence.coverage import covered, of_evaluation, of_people, of_queue, of_reward, of_training, table
from manners.feedback.statistics import FEWEST


@pytest.mark.long
def test_equal_versions_are_rarely_told_apart_on_few_prompts() -> None:
    """The plain percentile bootstrap did so in 52 % of studies at 2 prompts and in 19 % at 5."""
    for prompts, most in ((2, 0.15), (FEWEST, 0.12), (10, 0.12)):
        held, studies = covered(of_evaluation, prompts, 120)["win rate"]
        assert 1 - held / studies <= most, prompts


@pytest.mark.long
@pytest.mark.parametrize(
    ("world", "openings"), [(of_reward, 10), (of_people, 10), (of_people, 30), (of_evaluation, 30), (of_training, 30)]
)
def test_intervals_hold_the_truth(world, openings: int) -> None:  # type: ignore[no-untyped-def]
    for name, (held, studies) in covered(world, openings, 40).items():
        assert held / studies >= 0.85, name  # 95 % in 40 studies is below 85 % with a chance of 1 in 100


@pytest.mark.long
def test_the_naive_figure_of_a_queue_is_not_covered() -> None:
    found = covered(of_queue, 130, 40)
    weighted, naive = (found[f"accuracy, from a queue, {name}"][0] / 40 for name in ("weighted", "each once"))
    assert weighted >= 0.85 and naive < 0.75


def test_what_is_below_92_stands_out() -> None:
    rows = {"accuracy": {2: [91, 100], 30: [95, 100]}}
    assert table(rows).splitlines()[2] == "| accuracy | **91** | - | - | 95 | - |"
