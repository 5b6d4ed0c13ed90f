"""Forgetting and collapse: what a stage may have cost beside what it was for, by many checks and one decision.

Each check asks whether something got worse by more than a margin, and answers with a paired interval and a one-sided
p-value; the p-values are corrected for their number (Holm). Before and after may be any two versions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from manners.data import Question
from manners.errors import MannersError
from manners.evaluate.text_measures import distinct_change, distinct_n, self_similarity
from manners.feedback.statistics import FEWEST, Estimate, holm, mean_estimate
from manners.results.evaluation import Forgetting, ForgettingCheck, ShareRight
from manners.types import Answer, Interval

PERPLEXITY = 0.05
"""Rise of perplexity on plain text, as a share, that is no forgetting yet: as for a promotion."""
QUESTIONS = 0.05
"""Fall of the mean probability of the right answer that is none."""
VARIETY = 0.5
"""Share of distinct-2 that may go: a manner of speaking keeps a half."""
ALIKE = 0.25
"""Rise of the likeness of two answers to a prompt that is no collapse."""
LEVEL = 0.05

WORSE, WITHIN, CANNOT_TELL = "worse", "within", "cannot_tell"
FORGOTTEN, NOT_SHOWN = "forgotten", "not_shown"


@dataclass(frozen=True)
class Reading:
    """What a version makes of plain text and of questions (`evaluate.reading`)."""

    nll: Sequence[float]
    """Of each paragraph, in nats."""
    tokens: Sequence[int]
    """Predicted in each."""
    answers: Sequence[Sequence[float] | None]
    """Log-likelihood of each answer to each question, the right one first; None for a question that did not fit."""


@dataclass(frozen=True)
class _Measured:
    """A figure before and after; `loss` is how much worse it got, in the unit of the margin."""

    check: str
    before: float
    after: float
    change: Interval
    loss: Estimate
    margin: float
    items: int
    """Paragraphs, questions, prompts, or openings of prompts: what its interval counts."""


def forgetting(
    before: Reading,
    after: Reading,
    asked: Sequence[Question],
    said_before: Sequence[Sequence[Answer]] = (),
    said_after: Sequence[Sequence[Answer]] = (),
) -> Forgetting:
    """Return every check of a version against an earlier one, and what they come to.

    said: answers of both to the same prompts, in the same order, two or more to each; none where nothing was drawn, and
    the sampled checks are left out. A check is `worse` where its corrected p-value is at most 5 %, `within` where the
    whole interval of its loss is at most the margin, `cannot_tell` otherwise or with fewer than five items. Forgotten
    is what any check shows; where none does, it is not shown if all lie within, and else cannot be told.
    """
    found = [_perplexity(before, after), *_questions(before, after, asked)]
    if said_before:
        found += _sampled(said_before, said_after)
    corrected = holm([m.loss.p_above(m.margin) if m.items >= FEWEST else 1.0 for m in found])
    checks = tuple(_check(m, p) for m, p in zip(found, corrected, strict=True))
    outcome = CANNOT_TELL
    if any(check.verdict == WORSE for check in checks):
        outcome = FORGOTTEN
    elif all(check.verdict == WITHIN for check in checks):
        outcome = NOT_SHOWN
    return Forgetting(
        outcome=outcome,
        sentence=_sentence(outcome, checks),
        checks=checks,
        questions=_shares_right(before, after, asked),
        questions_left_out=sum(scores is None for scores in before.answers),
    )


def _check(measured: _Measured, corrected: float) -> ForgettingCheck:
    verdict = CANNOT_TELL
    if measured.items >= FEWEST:
        inside = measured.loss.interval.high <= measured.margin
        verdict = WORSE if corrected <= LEVEL else WITHIN if inside else CANNOT_TELL
    return ForgettingCheck(
        check=measured.check,
        before=measured.before,
        after=measured.after,
        change=measured.change,
        margin=measured.margin,
        p=corrected,
        verdict=verdict,
    )


def _perplexity(before: Reading, after: Reading) -> _Measured:
    """Nats a token on plain text, paired by paragraph; shown as perplexity, its change as a share of it."""
    if len(before.nll) != len(after.nll) or len(before.nll) < 2:
        raise MannersError(
            f"forgetting needs the same plain text twice, two paragraphs of it; {len(before.nll)} are there"
        )
    b, a, tokens = (np.asarray(x, float) for x in (before.nll, after.nll, before.tokens))
    loss = mean_estimate((a - b) / tokens, tokens)
    change = Interval(*(math.expm1(min(700.0, end)) for end in _ends(loss.interval)))
    was, became = (math.exp(min(700.0, float(x.sum() / tokens.sum()))) for x in (b, a))
    return _Measured("perplexity", was, became, change, loss, math.log1p(PERPLEXITY), len(b))


def _questions(before: Reading, after: Reading, asked: Sequence[Question]) -> list[_Measured]:
    """Probability of the right answer among those offered: all families together, each weighing the same, and each."""
    families = np.array([q.family for q, fits in zip(asked, before.answers, strict=True) if fits is not None])
    was, became = (_right(reading) for reading in (before, after))
    names, index, sizes = np.unique(families, return_inverse=True, return_counts=True)
    chosen = [("questions", np.ones(len(was), bool), 1 / sizes[index])] if len(names) > 1 else []
    chosen += [(f"questions_{name}", families == name, np.ones(len(was))) for name in names]
    found = []
    for check, members, weights in chosen:
        if members.sum() < 2:
            continue
        w = weights[members]
        loss = mean_estimate((was - became)[members], w)
        old, new = (float(x[members] @ w / w.sum()) for x in (was, became))
        found.append(_Measured(check, old, new, _turned(loss.interval), loss, QUESTIONS, int(members.sum())))
    return found


def _right(reading: Reading) -> NDArray[np.float64]:
    """Return (Q,): the probability of the right answer among those offered, for every question that fits."""
    return np.array([softmax(scores)[0] for scores in reading.answers if scores is not None])


def _sampled(before: Sequence[Sequence[Answer]], after: Sequence[Sequence[Answer]]) -> list[_Measured]:
    """Variety of all answers together, and likeness of those to one prompt."""
    was, became = (distinct_n([a for answers in version for a in answers], 2).estimate for version in (before, after))
    change = distinct_change(before, after)
    fall = Estimate(-change.value, change.error, change.freedom)
    found = [_Measured("distinct_2", was, became, change.interval, fall, VARIETY * was, round(change.freedom) + 1)]
    old, new = self_similarity(before), self_similarity(after)
    several = ~np.isnan(old) & ~np.isnan(new)
    if several.sum() >= 2:
        rise = mean_estimate((new - old)[several])
        means = float(old[several].mean()), float(new[several].mean())
        found.append(_Measured("self_similarity", *means, rise.interval, rise, ALIKE, int(several.sum())))
    return found


def _shares_right(before: Reading, after: Reading, asked: Sequence[Question]) -> dict[str, ShareRight]:
    """Return how often the right answer is the likeliest, by family, beside chance."""
    both = zip(asked, before.answers, after.answers, strict=True)
    rows = [(q, [_first(old), _first(new)]) for q, old, new in both if old is not None and new is not None]
    found = {}
    for family in dict.fromkeys(q.family for q, _ in rows):
        of_family = [(q, right) for q, right in rows if q.family == family]
        found[family] = ShareRight(
            questions=len(of_family),
            before=float(np.mean([right[0] for _, right in of_family])),
            after=float(np.mean([right[1] for _, right in of_family])),
            chance=float(np.mean([1 / len(q.answers) for q, _ in of_family])),
        )
    return found


def _first(scores: Sequence[float]) -> bool:
    """Return whether the first answer is likelier than each of the others."""
    return scores[0] > max(scores[1:])


def _sentence(outcome: str, checks: Sequence[ForgettingCheck]) -> str:
    """Say what the checks come to, and by which."""
    if outcome == FORGOTTEN:
        return f"Something was forgotten, or variety lost: {_named(checks, WORSE)} got worse by more than the margin."
    if outcome == NOT_SHOWN:
        return f"No forgetting is shown: all {len(checks)} checks lie within their margins."
    return f"Whether something was forgotten cannot be told: {_named(checks, CANNOT_TELL)} may have got worse."


def _named(checks: Sequence[ForgettingCheck], verdict: str) -> str:
    return ", ".join(WORDS.get(c.check, c.check.replace("_", " ")) for c in checks if c.verdict == verdict)


WORDS = {
    "perplexity": "perplexity on plain text",
    "questions": "the questions together",
    "questions_agreement": "questions on agreement",
    "questions_facts": "questions on facts",
    "questions_arithmetic": "questions on arithmetic",
    "questions_copying": "questions on copying",
    "distinct_2": "variety (distinct-2)",
    "self_similarity": "the likeness of answers to one prompt",
}


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


def _turned(interval: Interval) -> Interval:
    """Return the interval of the negative."""
    return Interval(-interval.estimate, -interval.high, -interval.low)
