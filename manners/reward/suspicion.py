"""How suspicious it is what a reward model likes best of several answers: how far one of its members does not."""

from __future__ import annotations

from typing import NamedTuple

from manners.reward.labelled import Floats


class Liked(NamedTuple):
    """The answer of several to one prompt that is liked best, and an ordinary one."""

    best: int
    """Its place: the largest mean score."""
    ordinary: int
    """The place of the median by mean score; of an even number, of the lower of the two in the middle."""
    suspicion: float
    """Mean over members of the margin between the two, less the lowest member's; 0 of a single member."""


def liked(scores: Floats) -> Liked:
    """Return what the members like best of N answers, from their normalised scores (K, N), with N of 2 or more.

    s = mean_k m_k - min_k m_k with m_k = score_k(best) - score_k(ordinary), in units of what answers to one prompt
    differ by. Margins, because scores are free up to a shift of each prompt, and of each member's there. It is large
    where the reward rests on some members alone: for a policy it is enough that the mean is fooled.
    """
    mean = scores.mean(axis=0)
    order = mean.argsort(kind="stable")
    best, ordinary = int(order[-1]), int(order[(len(order) - 1) // 2])
    margins = scores[:, best] - scores[:, ordinary]
    return Liked(best, ordinary, float(margins.mean() - margins.min()))
