"""What members like best of several answers, and how suspicious that is: by hand, and whatever is added to a prompt."""

from __future__ import annotations

import numpy as np
import pytest

from manners.reward.suspicion import liked


def test_by_hand() -> None:
    """Means 1, 2, 3: the last is liked best, beside the middle one; the members' margins are 4, 1 and -2."""
    scores = np.array([[1.0, 0.0, 4.0], [1.0, 2.0, 3.0], [1.0, 4.0, 2.0]])
    assert liked(scores) == (2, 1, 1.0 - -2.0)


@pytest.mark.parametrize(
    ("row", "best", "ordinary"), [([5.0, 1.0], 0, 1), ([0, 3, 1, 2], 1, 2), ([0, 3, 1, 2, 9], 4, 3)]
)
def test_the_ordinary_answer_is_the_median_and_never_the_best(row: list[float], best: int, ordinary: int) -> None:
    assert liked(np.array([row])) == (best, ordinary, 0.0), "a single member is not in doubt"


def test_a_shift_of_each_member_on_a_prompt_changes_nothing_that_is_doubted() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.normal(size=(4, 16))
        moved = scores + rng.normal(size=(4, 1)) * 5
        assert liked(moved)[:2] == liked(scores)[:2] and liked(moved)[2] == pytest.approx(liked(scores)[2])
        assert liked(scores * 2)[2] == pytest.approx(2 * liked(scores)[2]) and liked(scores)[2] >= 0
