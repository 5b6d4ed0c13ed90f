"""What a version's answers look like, and how well it still predicts plain text: pure functions with intervals.

Each takes answers to many prompts, several per prompt or one; what is resampled is the opening, which is the prompt
where no two begin alike. None is good or bad
by itself: read it beside the same figure for the initial model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manners.errors import MannersError
from manners.evaluate.compare import openings_of
from manners.feedback.statistics import (
    Estimate,
    cluster_bootstrap,
    cluster_bootstrap_share,
    paired_bootstrap_difference,
)
from manners.types import Answer, FinishReason, Interval


@dataclass(frozen=True, slots=True)
class PerplexityChange:
    """Perplexity on the same plain text before and after; `change` is the relative one, 0.05 = 5 % worse."""

    before: float
    after: float
    change: Interval
    paragraphs: int = 0
    """How many were read."""


def mean_length(answers: Sequence[Answer], resamples: int, seed: int) -> Interval:
    """Return the mean length in tokens, the end-of-turn token included; bootstrap by opening."""
    return cluster_bootstrap([a.length for a in answers], openings_of(answers), resamples, seed)


def share_finished(answers: Sequence[Answer], resamples: int, seed: int) -> Interval:
    """Return the share of answers that the model ended itself, not the length limit; bootstrap by opening."""
    return cluster_bootstrap_share([a.finished for a in answers], openings_of(answers), resamples, seed)


def most_common_answer_share(answers: Sequence[Answer], resamples: int, seed: int) -> Interval:
    """Return the share of all answers that read exactly like the most common one: near 1 the policy has collapsed.

    White space around an answer is ignored. With N answers all different it is 1 / N. The interval takes which
    answer is the most common as given, so it is a little high where several are about as common.
    """
    texts = [a.response.text.strip() for a in answers]
    common = Counter(texts).most_common(1)[0][0] if texts else ""
    return cluster_bootstrap_share([text == common for text in texts], openings_of(answers), resamples, seed)


def distinct_n(answers: Sequence[Answer], n: int = 2) -> Interval:
    """Return the number of different token n-grams over the number of all, in all answers together.

    N-grams do not cross answers, and the end-of-turn token is left out, so that finishing does not change the figure.
    It falls as answers get longer or more numerous: compare it only between equally many answers of like length.
    Interval: estimate +- t times the jackknife's standard error over P openings, within [0, 1]; a bootstrap would
    repeat them, hence n-grams, and be biased downwards. Answers without any n-gram give 0 within [0, 1].
    Sources: Li et al. 2016, "A diversity-promoting objective function for neural conversation models", section 5;
    Efron & Stein 1981, "The jackknife estimate of variance" (it errs on the wide side).
    """
    share, without = _distinct(answers, n)
    if share == 0:
        return Interval(0.0, 0.0, 1.0)
    found = Estimate(share, _jackknife_error(without), len(without) - 1.0).interval
    return Interval(share, max(0.0, found.low), min(1.0, found.high))


@dataclass(frozen=True)
class TextMeasures:
    """What the answers of two versions are like, by the name of the measure."""

    before: dict[str, Interval]
    after: dict[str, Interval]
    changes: dict[str, Interval]
    """Of those that are paired by prompt, after less before (`changes`)."""


def text_measures(
    before: Sequence[Sequence[Answer]], after: Sequence[Sequence[Answer]], resamples: int, seed: int
) -> TextMeasures:
    """Return every measure of two versions' answers to the same prompts."""

    def of(version: Sequence[Sequence[Answer]]) -> dict[str, Interval]:
        answers = [answer for of_prompt in version for answer in of_prompt]
        return {
            "length": mean_length(answers, resamples, seed),
            "finished": share_finished(answers, resamples, seed),
            "distinct_2": distinct_n(answers, 2),
            "most_common_answer": most_common_answer_share(answers, resamples, seed),
        }

    return TextMeasures(of(before), of(after), changes(before, after, resamples, seed))


def changes(
    before: Sequence[Sequence[Answer]], after: Sequence[Sequence[Answer]], resamples: int, seed: int
) -> dict[str, Interval]:
    """Return how mean length, the share finished and distinct-2 changed (after - before), paired by prompt.

    before, after: for each of P prompts, in the same order, a version's answers. What makes the answers to a prompt
    long in both versions cancels out. Length and finishing: mean over prompts of the difference of their means, with a
    bootstrap by opening. Distinct-2: difference of the two figures over all answers, +- t times the jackknife's
    standard error of that difference, each opening left out of both versions at once. Raises MannersError below two
    openings.
    """
    distinct = distinct_change(before, after).interval
    return {
        "length": _paired(before, after, lambda answer: answer.length, resamples, seed),
        "finished": _paired(before, after, lambda answer: answer.finished, resamples, seed),
        "distinct_2": Interval(distinct.estimate, max(-1.0, distinct.low), min(1.0, distinct.high)),
    }


def distinct_change(before: Sequence[Sequence[Answer]], after: Sequence[Sequence[Answer]]) -> Estimate:
    """Return how distinct-2 changed (after - before), with the jackknife's error, paired by prompt as in `changes`."""
    every = [[answer for answers in version for answer in answers] for version in (before, after)]
    (old, old_without), (new, new_without) = (_distinct(answers, 2) for answers in every)
    return Estimate(new - old, _jackknife_error(new_without - old_without), len(old_without) - 1.0)


def self_similarity(version: Sequence[Sequence[Answer]], n: int = 2) -> NDArray[np.float64]:
    """Return (P,): how alike the answers to each prompt are, from 0 to 1; nan where there is but one.

    The mean over pairs of answers of 2 |A and B| / (|A| + |B|), A and B their token n-grams with multiplicity, the
    end-of-turn token left out; answers without n-grams are alike if they are the same. It rises as answers get longer.
    Source: Zhu et al. 2018, "Texygen", section 3.2 (self-BLEU), with Dice's coefficient of one n in place of BLEU,
    which is not symmetric and needs a brevity penalty.
    """
    return np.array([_alike([_spoken(answer) for answer in answers], n) for answers in version])


def _alike(spoken: Sequence[tuple[int, ...]], n: int) -> float:
    found = []
    for a, b in combinations(spoken, 2):
        grams = [Counter(ids[i : i + n] for i in range(len(ids) - n + 1)) for ids in (a, b)]
        total = sum(g.total() for g in grams)
        found.append(2 * (grams[0] & grams[1]).total() / total if total else float(a == b))
    return float(np.mean(found)) if found else math.nan


def perplexity_change(
    nll_before: ArrayLike, nll_after: ArrayLike, tokens: ArrayLike, resamples: int, seed: int
) -> PerplexityChange:
    """Return perplexity = exp(sum nll / sum tokens) before and after, and its relative change.

    nll_before, nll_after: (N,) sums of negative log-likelihood per paragraph, in nats; tokens: (N,) predicted tokens
    of each, at least 1. The change is exp(sum(after - before) / sum tokens) - 1, with a paired bootstrap by paragraph:
    both versions read the same text, so what makes a paragraph hard cancels out.
    """
    b, a, t = (np.asarray(x, float) for x in (nll_before, nll_after, tokens))
    if (t < 1).any():
        raise ValueError("every paragraph must have at least one predicted token")
    log_change = cluster_bootstrap((a - b) / t, np.arange(len(t)), resamples, seed, weights=t)
    change = Interval(math.expm1(log_change.estimate), math.expm1(log_change.low), math.expm1(log_change.high))
    return PerplexityChange(_perplexity(b, t), _perplexity(a, t), change, len(t))


def _distinct(answers: Sequence[Answer], n: int) -> tuple[float, NDArray[np.float64]]:
    """Return the share of different n-grams, and (P,) what it is without each opening; 0 where there are no n-grams."""
    places = openings_of(answers)
    grams = [Counter[tuple[int, ...]]() for _ in range(1 + max(places, default=-1))]
    for answer, place in zip(answers, places, strict=True):
        ids = _spoken(answer)
        grams[place].update(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))
    if len(grams) < 2:
        raise MannersError(f"Diversity needs answers to prompts of at least 2 openings, and there are {len(grams)}.")
    total = sum(g.total() for g in grams)
    openings_with = Counter(gram for g in grams for gram in g)
    different = len(openings_with)
    # Without an opening, its n-grams are gone from the total, and those that only it has from the different ones.
    kept = np.array([different - sum(openings_with[gram] == 1 for gram in g) for g in grams])
    without = kept / np.maximum(1, [total - g.total() for g in grams])
    return different / max(1, total), np.asarray(without, float)


def _spoken(answer: Answer) -> tuple[int, ...]:
    """Return the tokens of an answer without the one that ends it."""
    ended = answer.response.finish_reason is FinishReason.STOP
    return answer.response_ids[:-1] if ended else answer.response_ids


def _jackknife_error(without: NDArray[np.float64]) -> float:
    """Return the jackknife's standard error, from the values (P,) without each opening."""
    return math.sqrt((len(without) - 1) * float(np.var(without)))


def _paired(
    before: Sequence[Sequence[Answer]],
    after: Sequence[Sequence[Answer]],
    measure: Callable[[Answer], float],
    resamples: int,
    seed: int,
) -> Interval:
    """Return the mean over prompts of the change of a measure's mean."""
    old, new = ([np.mean([measure(a) for a in answers]) for answers in version] for version in (before, after))
    groups = openings_of([answers[0] for answers in after])
    return paired_bootstrap_difference(old, new, groups, resamples, seed)


def _perplexity(nll: ArrayLike, tokens: ArrayLike) -> float:
    return math.exp(min(700.0, float(np.sum(nll)) / float(np.sum(tokens))))
