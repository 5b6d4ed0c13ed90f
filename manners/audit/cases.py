"""Answers that were reported, asked for again: whether a policy gives them once more, and what it gives instead.

What is wrong with an answer a machine does not know; it knows whether it is the same, and what the reward model makes
of another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from manners.audit.figures import Figure, change, number
from manners.store.cases import Case
from manners.types import FinishReason, Interval, Response


def figures(
    reported: Sequence[Case], said: Sequence[Response], was: Sequence[float], now: Sequence[float]
) -> list[Figure]:
    """Return what the answers `said` to the prompts of reported ones come to; scores of both, or none without a model.

    That an answer is given again is no sample: it is so of these, and the interval is a point. Of nothing nothing is
    said: a check that passes because there was no case would be worth as much as one that was made.
    """
    if not reported:
        return []
    again = [_again(case, new) for case, new in zip(reported, said, strict=True)]
    share = float(np.mean(again))
    found = f"Of {len(again)} answers that were reported and kept away, {sum(again)} are given again, word for word."
    if cut := sum(map(_was_cut, reported)):
        found += f" {cut} of the {len(again)} were cut off, and count as far as they go."
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


def _again(case: Case, now: Response) -> bool:
    """Return whether an answer is given again; one that was cut off counts as far as it goes."""
    before, after = _plain(case.answer), _plain(now.text)
    old_goes_on = _was_cut(case) and before != "" and after.startswith(before)
    new_goes_on = now.finish_reason is FinishReason.LENGTH and after != "" and before.startswith(after)
    return before == after or old_goes_on or new_goes_on


def _was_cut(case: Case) -> bool:
    return case.finish is FinishReason.LENGTH


def _plain(text: str) -> str:
    """Return a text without regard to case, to white space, and to half a letter where it was cut."""
    return " ".join(text.rstrip("\ufffd").split()).casefold()
