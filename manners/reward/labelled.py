"""Comparisons with their verdicts counted: what the reward model learns from, and what it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from manners.store.never import Never
from manners.types import Annotator, AnnotatorKind, Choice, Comparison, Dialogue, Response, Verdict

Floats = NDArray[np.float64]

BOTH_BAD_RULE = (
    "`both_bad` counts as a tie in the loss, since it prefers neither response; what it says about both of them "
    "cannot enter a loss that only sees differences, so it is also counted apart."
)
STRENGTH_RULE = (
    "A verdict of strength 1, 2 or 3 weighs 0.5, 1 or 1.5 in the loss, and 1 where no strength was asked: a slight "
    "preference is the one that the next annotator reverses most easily. Accuracy, calibration and the ceiling count "
    "every verdict once."
)


class Counts(NamedTuple):
    """How many verdicts (or what weight of them) chose the left response, the right one, or neither."""

    left: float
    right: float
    tie: float

    @property
    def decided(self) -> float:
        """The part that chose a side."""
        return self.left + self.right


class Voice(NamedTuple):
    """One annotator's verdict on a pair."""

    who: Annotator
    choice: Choice
    weight: float
    """What it weighs in the loss."""
    fair: bool = True
    """Whether it may tell how far people agree: no queue drew it in one of the ways of `statistics.CHOSEN`."""


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """One comparison with its verdicts counted."""

    comparison_id: int | None
    prompt: Dialogue
    left: Response
    right: Response
    counts: Counts
    """Every verdict once: what calibration is measured on, and accuracy and ceiling but for `drawn`."""
    weights: Counts
    """Verdicts weighted by strength (`STRENGTH_RULE`): what the loss learns from."""
    both_bad: int
    """How many of the ties were `both_bad`."""
    group: str
    """What is set aside as one, see `groups`."""
    shown_left: float | None = None
    """How many verdicts chose the side shown on the left; None where the sides were shown as they stand."""
    drawn: Counts | None = field(default=None, repr=False)
    """Verdicts weighted for how they were drawn (`reward.drawing`); None where each weighs 1."""
    drawn_left: float | None = field(default=None, repr=False)
    """`shown_left`, weighted likewise; None where each weighs 1."""
    unknown: int = field(default=0, repr=False)
    """Decided verdicts that weigh nothing in measurements: drawn by disagreement, before the pool was on record."""
    made: bool = field(default=False, repr=False)
    """Whether nobody has judged it: it was made of answers at hand (`reward.augment`)."""
    voices: tuple[Voice, ...] = field(default=(), repr=False)
    """Who said what, which `weights` are made of."""

    @property
    def measured(self) -> Counts:
        """What accuracy, its rivals and the ceiling are measured on."""
        return self.counts if self.drawn is None else self.drawn

    @property
    def measured_left(self) -> float:
        """What weight of verdicts chose the side that was shown on the left: a rival that accuracy has."""
        if self.shown_left is None:
            return self.measured.left
        return self.shown_left if self.drawn_left is None else self.drawn_left

    @property
    def measures(self) -> bool:
        """Whether something may be measured on it: not where a reward model chose it, nor where nobody has judged."""
        return any(self.counts)

    def unmeasured(self, weights: Counts) -> LabelledPair:
        """Return the pair as it is trained on by these weights, and nothing is measured on it."""
        none = Counts(0.0, 0.0, 0.0)
        bare = replace(self, shown_left=None, drawn=None, drawn_left=None, voices=())
        return replace(bare, counts=none, weights=weights, both_bad=0)


class LeftOut(StrEnum):
    """Why a comparison is not learnt from; the values are what the report prints."""

    EVALUATION = Never.EVALUATION.value
    CANDIDATE = Never.CANDIDATE.value
    GOLD = Never.GOLD.value
    DELETED = Never.DELETED.value
    REPORTED = Never.REPORTED.value
    KEPT = Never.KEPT.value
    EMPTY = "an empty response"
    IDENTICAL = "identical responses"
    REFUSED = "a prompt that the chat template refuses"
    ALIKE = "responses alike in what the model reads of them"
    UNSAYABLE = "a response with something that the model has no token for"
    NO_VERDICT = "no verdict"
    OTHER_KIND = "only verdicts of another kind of annotator"
    JUDGE = "only verdicts of a judge that does not train"
    SKIPPED = "only skips"
    OUTLYING = "only verdicts of users who were set aside"
    ASIDE = "chosen by a reward model, about a prompt that is set aside"
    CHOSEN = "chosen by a reward model, on which nothing is measured"


@dataclass(frozen=True, slots=True)
class Labelled:
    """The pairs that can be learnt from, and how many comparisons were left out, by reason."""

    pairs: tuple[LabelledPair, ...]
    left_out: dict[LeftOut, int]
    kind: AnnotatorKind
    """Whose verdicts these are."""
    limited: int = 0
    """How many users had their weight cut to the share that one may have."""
    outlying: int = 0
    """How many users of the chat or of another program were set aside (`outlying`)."""


@dataclass(frozen=True, slots=True)
class Sorted:
    """The comparisons that can be learnt from, each with the verdicts that count, and what was left out and why."""

    usable: tuple[tuple[Comparison, tuple[Verdict, ...]], ...]
    left_out: Counter[LeftOut]
    outlying: frozenset[Annotator]


def counts_array(pairs: Sequence[LabelledPair]) -> Floats:
    """Return the unweighted counts as (pairs, 3): left, right, tie."""
    return np.array([pair.counts for pair in pairs], dtype=np.float64).reshape(-1, 3)


def sums_by_group(groups: Sequence[str], *values: Floats) -> Floats:
    """Return (groups, values): each value summed within each group."""
    group: NDArray[np.int64]
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    return np.stack([np.bincount(group, value, minlength=len(names)) for value in values], axis=1)


def weights_of(voices: Sequence[Voice]) -> Counts:
    """Return what the verdicts on a pair weigh: `both_bad` counts as a tie, as it prefers neither."""

    def weight(*choices: Choice) -> float:
        return sum(voice.weight for voice in voices if voice.choice in choices)

    return Counts(weight(Choice.LEFT), weight(Choice.RIGHT), weight(Choice.TIE, Choice.BOTH_BAD))
