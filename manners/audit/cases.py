"""Answers that were reported, asked for again: whether a policy gives them once more, and what it gives instead.

What is wrong with an answer a machine does not know; it knows whether it is the same, and what the reward model makes
of another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from manners.audit.figures import Figure, change, number
from manners.types import Interval


def figures(reported: Sequence[str], said: Sequence[str], was: Sequence[float], now: Sequence[float]) -> list[Figure]:
    """Return what the answers `said` to the prompts of reported ones come to; scores of both, or none without a model.

    That an answer is given again is no sample: it is so of these, and the interval is a point. Of nothing nothing is
    said: a check that passes because there was no case would be worth as much as one that was made.
    """
    if not reported:
        return []
    again = [_plain(old) == _plain(new) for old, new in zip(reported, said, strict=True)]
    share = float(np.mean(again))
    found = f"Of {len(again)} answers that were reported and kept away, {sum(again)} are given again, word for word."
    same = Figure("cases", Interval(share, share, share), len(again), found)
    gain = change(was, now)
    scored = "There is no reward model that could compare the answers given now with those that were reported."
    if len(was):
        scored = f"{len(was)} reported answers are there, of fewer than 5: too few to tell."
    if gain:
        scored = (
            f"By the reward model, which does not know what was wrong with {len(was)} reported answers, those given now"
            f" to the same prompts score {number(gain)} units beside them."
        )
    return [same, Figure("cases_score", gain, len(was), scored)]


def _plain(text: str) -> str:
    """Return a text without regard to case and white space."""
    return " ".join(text.split()).casefold()
