"""How far a policy moved in what its answers look like, beside what people's choices favoured.

A policy that moves farther than the choices do amplifies them; one that moves where the choices are even has learnt it
elsewhere, of the reward model's errors or of chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from manners.audit.figures import change, changed_share, mean, number
from manners.audit.forms import marks
from manners.audit.material import preferred
from manners.audit.refusal import refuses, warns
from manners.results.audit import Amplification
from manners.reward.labelled import LabelledPair
from manners.types import Interval


def doublings(answer: str) -> float:
    """Return the binary logarithm of the number of words, and one more."""
    return float(np.log2(1 + len(answer.split())))


FEATURES: Mapping[str, tuple[Callable[[str], float], str]] = MappingProxyType(
    {
        "refusal": (lambda answer: float(refuses(answer)), "refuse more often (as a share of all)"),
        "reservation": (lambda answer: float(warns(answer)), "have reservations more often (as a share of all)"),
        "length": (doublings, "are longer (in doublings of their words)"),
        "format": (lambda answer: float(marks(answer)), "have more marks of format and lines"),
    }
)
"""What is looked at in an answer, and how it is said."""
SHARES = frozenset({"refusal", "reservation"})
"""What an answer does or does not."""


def amplification(
    before: Sequence[str], after: Sequence[str], learned: Sequence[LabelledPair], seed: int
) -> tuple[Amplification, ...]:
    """Return each feature's change from `before` to `after`, answers to the same prompts, beside that of the choices.

    Of the pairs that it was taught by, those count in which more verdicts chose one side. What the choices favour is
    the mean of the chosen answers less that of both: where a policy would come to that only ever wrote the chosen ones.
    How much of a change that accounts for is said where both are told from none.
    """
    chosen = [(pair, liked) for pair in learned if (liked := preferred(pair)) is not None]
    found = []
    for feature, (of, words) in FEATURES.items():
        by = changed_share if feature in SHARES else change
        moved = by([of(answer) for answer in before], [of(answer) for answer in after])
        gains = [of(liked.text) - (of(pair.left.text) + of(pair.right.text)) / 2 for pair, liked in chosen]
        favoured = mean(np.array(gains, np.float64), [pair.group for pair, _ in chosen], seed) if chosen else None
        found.append(_told(feature, words, moved, favoured))
    return tuple(found)


def _told(feature: str, words: str, moved: Interval | None, favoured: Interval | None) -> Amplification:
    """Say what changed, what was chosen, and how much of the one is in the other."""
    share = None
    if moved and favoured and moved.excludes(0.0) and favoured.excludes(0.0):
        share = favoured.estimate / moved.estimate
    said = f"Its answers {words} by {number(moved)} than before" if moved else "There are too few answers to compare"
    said += (
        f"; those that people chose, by {number(favoured)} than both answers of a pair together."
        if favoured
        else "; there are too few comparisons that it was taught by to say what people chose."
    )
    if share is not None:
        said += f" The choices account for {share:.0%} of the change." if share > 0 else " The choices point elsewhere."
    elif moved and not moved.excludes(0.0):
        said += " The change cannot be told from none."
    elif moved and favoured:
        said += " The choices are not shown to favour it or the opposite."
    return Amplification(feature=feature, change=moved, chosen=favoured, share=share, sentence=said)
