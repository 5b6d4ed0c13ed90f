"""Whoever says which of two responses is better, as evaluation meets them: one shape for all kinds of annotator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from manners.feedback.crowd import Crowd, Taste, choice_probabilities, true_preference, true_score
from manners.types import AnnotatorKind, Choice, Comparison, Dialogue, Response, latest_verdicts

PREFERS_LEFT = {Choice.LEFT: 1.0, Choice.RIGHT: 0.0, Choice.TIE: 0.5, Choice.BOTH_BAD: 0.5}
"""What a verdict says for the left response; a skip says nothing."""


class Judge(Protocol):
    """Says how likely it prefers one response to another."""

    @property
    def kind(self) -> AnnotatorKind:
        """What sort of annotator it is: whose verdicts these are in every sentence, table and plot."""

    @property
    def source(self) -> str:
        """What the report calls its verdicts; `none` where it has given none yet."""

    @property
    def may_promote(self) -> bool:
        """Whether a policy may be promoted on its word."""

    @property
    def raters(self) -> int:
        """How many annotators' word it is."""

    @property
    def on_record(self) -> Sequence[Comparison] | None:
        """The comparisons that it was asked; None where it can be asked about any two responses at any time."""

    @property
    def noisy(self) -> Judge | None:
        """The same annotators with their noise, whose rate stands beside that of a judge without; None for others."""

    def prefers(self, prompt: Dialogue, a: Response, b: Response) -> float | None:
        """Return the probability that it prefers `a` to `b`, a tie counting half; None where it cannot say."""


@dataclass(frozen=True)
class TasteJudge:
    """The crowd's hidden taste, without its noise: for the final evaluation only."""

    crowd: Crowd
    kind: AnnotatorKind = AnnotatorKind.SIMULATED
    source: str = "simulated"
    may_promote: bool = True
    raters: int = 1
    on_record: None = None

    @property
    def taste(self) -> Taste:
        """What all of the crowd like."""
        return self.crowd.taste

    @property
    def noisy(self) -> Judge:
        """The crowd as it gives verdicts."""
        return CrowdJudge(self.crowd)

    def prefers(self, prompt: Dialogue, a: Response, b: Response) -> float:
        """Return 1, 0, or 0.5 where the two are about as good."""
        return true_preference(self.taste, prompt, a, b)


@dataclass(frozen=True)
class CrowdJudge:
    """The verdicts that the simulated annotators would give, with their noise, lapses and ties."""

    crowd: Crowd
    kind: AnnotatorKind = AnnotatorKind.SIMULATED
    source: str = "simulated"
    may_promote: bool = True
    on_record: None = None
    noisy: None = None

    @property
    def raters(self) -> int:
        """All of them."""
        return len(self.crowd.annotators)

    def prefers(self, prompt: Dialogue, a: Response, b: Response) -> float:
        """Return the mean over annotators and both orders of P(a) + P(tie) / 2; two bad responses are a tie."""
        scores = [true_score(self.crowd.taste, prompt, one).total for one in (a, b)]
        chances = []
        for person in self.crowd.annotators:
            if max(scores) < self.crowd.taste.bad_below + person.strictness:
                chances.append(0.5)
                continue
            first, _, tie = choice_probabilities(person, scores[0], scores[1])
            _, second, tied = choice_probabilities(person, scores[1], scores[0])
            chances.append((first + tie / 2 + second + tied / 2) / 2)
        return float(np.mean(chances))


@dataclass(frozen=True)
class VerdictJudge:
    """Annotators of one kind by the verdicts that they have given on these comparisons."""

    comparisons: tuple[Comparison, ...]
    kind: AnnotatorKind = AnnotatorKind.HUMAN
    may_promote: bool = True
    noisy: None = None

    @property
    def source(self) -> str:
        """Their kind, or `none` where nothing was asked."""
        return str(self.kind) if self.comparisons else "none"

    @property
    def raters(self) -> int:
        """Those who said something other than that they skip it."""
        given = (v for c in self.comparisons for v in latest_verdicts(c.verdicts) if v.choice is not Choice.SKIP)
        return len({v.annotator for v in given if v.annotator.kind is self.kind})

    @property
    def on_record(self) -> Sequence[Comparison]:
        """What was asked of them."""
        return self.comparisons

    def prefers(self, prompt: Dialogue, a: Response, b: Response) -> float | None:
        """Return the share of their verdicts on these two texts for `a`; None where there are none."""
        said = []
        for comparison in self.comparisons:
            texts = (comparison.left.text, comparison.right.text)
            if comparison.prompt != prompt or texts not in ((a.text, b.text), (b.text, a.text)):
                continue
            verdicts = latest_verdicts(v for v in comparison.verdicts if v.annotator.kind is self.kind)
            shares = [PREFERS_LEFT[v.choice] for v in verdicts if v.choice is not Choice.SKIP]
            said += shares if texts == (a.text, b.text) else [1 - share for share in shares]
        return float(np.mean(said)) if said else None
