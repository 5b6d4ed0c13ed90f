"""Verdicts that may be wrong: how often, as people contradict each other, and what that changes in training.

What is measured counts every verdict once, whatever is set here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from manners.errors import MannersError
from manners.feedback.agreement import reliability
from manners.reward.labelled import Counts, LabelledPair, Voice, weights_of
from manners.settings import RewardSettings
from manners.types import Annotator, Choice

FEWEST_PAIRS = 20
"""With verdicts of several people that chose a side: of fewer nothing is said about all others."""
FEWEST_VERDICTS = 10
"""Of a person, on pairs that others have judged: who has given fewer is taken for as reliable as the rest."""
LEAST = 0.05
"""Of what a verdict weighs: some of whoever clicks at random, so that no pair is without weight."""


def softened(pairs: Sequence[LabelledPair], settings: RewardSettings) -> tuple[LabelledPair, ...]:
    """Return pairs that are trained on as `reward.reliability` and `reward.smoothing` weigh their verdicts.

    Raises MannersError where one of them is set and too few pairs have verdicts of several people to go by.
    """
    if settings.reliability:
        pairs = by_reliability(pairs)
    if settings.smoothing:
        pairs = smoothed(pairs, flip_rate(pairs))
    return tuple(pairs)


def flip_rate(pairs: Sequence[LabelledPair]) -> float:
    """Return how often a verdict that chose a side is wrong, were all wrong alike: (1 - root(2 A - 1)) / 2.

    A is the chance that two people who chose a side of a pair chose the same, which two verdicts that are wrong with
    probability e do with (1 - e)^2 + e^2. Of each pair the first two tell it (`_first_two`): where asking stops at
    agreement there is a third verdict just because they differ. Where people differ in taste that counts as error too:
    it is the most that may be wrong. At most 1/2. Raises MannersError as `softened`.
    """
    several = [two for pair in pairs if len(two := _first_two(pair)) == 2]
    if len(several) < FEWEST_PAIRS:
        raise _too_few("smoothing", len(several))
    agreement = sum(one.choice is other.choice for one, other in several) / len(several)
    return (1 - math.sqrt(max(0.0, 2 * agreement - 1))) / 2


def _first_two(pair: LabelledPair) -> tuple[Voice, ...]:
    """Return the first two verdicts that chose a side, as far as they measure fairly: `statistics.first_two`."""
    sided = [voice for voice in pair.voices if voice.choice in (Choice.LEFT, Choice.RIGHT)]
    return tuple(voice for voice in sided[:2] if voice.fair)


def smoothed(pairs: Sequence[LabelledPair], rate: float) -> tuple[LabelledPair, ...]:
    """Return pairs of whose verdicts so large a share counts for the other side: a target of 1 - rate, not of 1."""

    def soft(weights: Counts) -> Counts:
        left, right, tie = weights
        return Counts((1 - rate) * left + rate * right, rate * left + (1 - rate) * right, tie)

    return tuple(replace(pair, weights=soft(pair.weights)) for pair in pairs)


def by_reliability(pairs: Sequence[LabelledPair]) -> tuple[LabelledPair, ...]:
    """Return pairs whose verdicts weigh 2 r - 1 as much, r being how reliable whoever gave them is, by `trust`.

    A verdict that is right with probability r says 2 r - 1 times as much about which side is better: all at 1, nothing
    at 1/2 (the derivative of its log-likelihood where both scores are the same). Together they weigh what they did.
    """
    known = trust(pairs)
    usual = sum(known.values()) / len(known)
    anew = [
        weights_of([voice._replace(weight=voice.weight * known.get(voice.who, usual)) for voice in pair.voices])
        for pair in pairs
    ]
    factor = sum(sum(pair.weights) for pair in pairs) / sum(map(sum, anew))
    return tuple(
        replace(pair, weights=Counts(*(factor * w for w in weights))) for pair, weights in zip(pairs, anew, strict=True)
    )


def trust(pairs: Sequence[LabelledPair]) -> dict[Annotator, float]:
    """Return 2 r - 1, and `LEAST` at least, of each annotator with verdicts enough that others have judged too.

    r is `agreement.reliability`, by the verdicts on these pairs alone: what is set aside has no part in it, nor what a
    reward model chose. Raises MannersError as `softened`.
    """
    rows = [row for pair in pairs if pair.measures and len(row := _choices(pair)) > 1]
    given = Counter(who for row in rows for who in row)
    known = {who: max(LEAST, 2 * r - 1) for who, r in reliability(rows).items() if given[who] >= FEWEST_VERDICTS}
    if len(rows) < FEWEST_PAIRS or not known:
        raise _too_few("reliability", len(rows))
    return known


def _choices(pair: LabelledPair) -> dict[Annotator, Choice]:
    """Return who chose what, as agreement counts it: `both_bad` as a tie."""
    said = {voice.who: voice.choice for voice in pair.voices if voice.choice is not Choice.SKIP}
    return {who: Choice.TIE if choice is Choice.BOTH_BAD else choice for who, choice in said.items()}


def _too_few(setting: str, pairs: int) -> MannersError:
    chosen = ", a side by each of the first two, none of them drawn by disagreement"
    people = f", and somebody with {FEWEST_VERDICTS} such verdicts"
    return MannersError(
        f"reward.{setting} goes by how far people agree: it takes {FEWEST_PAIRS} comparisons that several of them have"
        f" judged{chosen if setting == 'smoothing' else people}, but {pairs} of those that are learned from are such;"
        f" have more of them judged twice (serve.overlap), or set reward.{setting}=false"
    )
