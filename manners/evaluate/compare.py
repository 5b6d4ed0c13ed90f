"""Two versions' answers to the same prompts: win rates, also at matched length and against best-of-n.

`before` and `after` hold, for each prompt in the same order, that version's answers, any number of at least one. A
preference says how far the first of two responses is preferred to the second: 1, 0.5 (alike) or 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manners.errors import MannersError
from manners.feedback.statistics import Decision, clustered_share, effective_number, numbered, percent
from manners.types import AnnotatorKind, Answer, Dialogue, Interval, Response, opening

Preference = Callable[[Dialogue, Response, Response], float]
Answers = Sequence[Sequence[Answer]]
"""Answers by prompt, as P lists."""

FEWEST_PROMPTS = 10
"""Below this many prompts (in effect) with pairs of matched length, nothing is said about matched length."""

WHO = {
    AnnotatorKind.HUMAN: "people",
    AnnotatorKind.AI: "an AI annotator",
    AnnotatorKind.SIMULATED: "simulated annotators",
}

NO_CHOICE = (
    "Best-of-n is not compared: it takes a reward model to choose by, and there is none; `manners reward` trains one on"
    " the same verdicts."
)


@dataclass(frozen=True, slots=True)
class Matched:
    """A win rate among pairs of answers of matched length."""

    interval: Interval
    pairs: int
    prompts: int
    """Prompts with at least one such pair."""
    effective_prompts: float
    """How many equally weighted prompts they are worth after balancing, those of one opening counting as one; 0 where
    balance cannot be had."""
    length_difference: float
    """Mean of after minus before among the pairs as weighted, in tokens: what matching left over."""

    @property
    def can_tell(self) -> bool:
        """Whether there are enough prompts for the interval to mean anything; it is [0, 1] otherwise."""
        return self.effective_prompts >= FEWEST_PROMPTS


def win_rate(before: Answers, after: Answers, preference: Preference, level: float = 0.95) -> Interval:
    """Return how often an answer of `after` is preferred to one of `before` to the same prompt; chance is 0.5.

    The mean over prompts of the mean over all pairs of one answer each; ties count half. Openings are the clusters of
    its interval (`clustered_share`), because the pairs of a prompt share its answers, and prompts of one opening what
    they are about. Exchanging the versions gives 1 - w, for a preference without side bias.
    """
    means = [
        np.mean([preference(a.prompt, a.response, b.response) for a, b in pairs]) for pairs in all_pairs(before, after)
    ]
    return clustered_share(means, openings(after), level=level)


def matched_win_rate(before: Answers, after: Answers, preference: Preference, tolerance: float) -> Matched:
    """Return the win rate among pairs whose lengths differ by at most `tolerance` of the longer, or by one token.

    Each prompt with such pairs counts once, as the mean over them. Within the tolerance one version may still tend to
    be the longer, so the pairs are then balanced: those with the longer `after` and those with the shorter one are
    given equal total weight, which makes a preference for mere length come to 0.5. Balance is unattainable where one
    of the two is absent; then, or below `FEWEST_PROMPTS` effective prompts (Kish), the interval is [0, 1]. The weights
    are held fixed in the interval by opening, which ignores what balancing gains and so tends to be wide.
    """
    first = openings(after)
    wins = []
    prompts = []
    shares = []
    differences = []
    for number, pairs in enumerate(all_pairs(before, after)):
        matched = [(a, b) for a, b in pairs if _lengths_match(a.length, b.length, tolerance)]
        for a, b in matched:
            wins.append(preference(a.prompt, a.response, b.response))
            prompts.append(number)
            shares.append(1 / len(matched))
            differences.append(a.length - b.length)
    gap = np.array(differences, float)
    weights = _balanced(np.array(shares), gap)
    groups = [first[number] for number in prompts]
    worth = effective_number(np.bincount(groups, weights)) if groups else 0.0
    if worth >= FEWEST_PROMPTS:
        interval = clustered_share(wins, groups, weights)
    else:
        interval = Interval(float(np.average(wins, weights=weights)) if worth else 0.5, 0.0, 1.0)
    left_over = float(np.average(gap, weights=weights)) if worth else 0.0
    return Matched(interval, len(wins), len(set(prompts)), worth, left_over)


def pick_best(scores: ArrayLike) -> NDArray[np.intp]:
    """Return for each prompt which of its answers the reward model scores highest: (P, K) -> (P,); ties: the first."""
    return np.asarray(_checked(scores).argmax(axis=1))


def best_of_n_win_rate(before: Answers, scores: ArrayLike, preference: Preference) -> Interval:
    """Return the win rate of best-of-n of a version over that version's own answers, with n = K - 1.

    scores: (P, K), the reward model's for the K answers `before` gave to each prompt. Each answer in turn is left out,
    and the best of the other K - 1 is compared with it: an independent draw, unlike the answers that were passed over,
    which lose by having been passed over. Raises MannersError where K < 2.
    """
    table = _checked(scores)
    count = table.shape[1]
    if count < 2:
        raise MannersError("Best-of-n needs at least 2 answers per prompt: set evaluate.samples to 2 or more.")
    means = np.zeros(len(table))
    for left_out in range(count):
        best = np.where(np.arange(count) == left_out, -np.inf, table).argmax(axis=1)
        for prompt, answers in enumerate(before):
            chosen, other = answers[best[prompt]], answers[left_out]
            means[prompt] += preference(chosen.prompt, chosen.response, other.response) / count
    return clustered_share(means, openings(before))


def head_to_head(before: Answers, scores: ArrayLike, after: Answers, preference: Preference) -> Interval:
    """Return the win rate of `after` over the best of the K answers of `before` by the reward model's scores (P, K).

    The two must have been drawn independently: an answer that was drawn with the random numbers of one that was passed
    over is much like it, and has lost already.
    What optimising the policy bought beyond choosing among the start version's answers, which needs no training:
    wholly above 0.5, PPO earned its keep. Gao, Schulman & Hilton 2023, "Scaling laws for reward model
    overoptimization", compare the two at equal KL; here the comparison is at the n that was drawn.
    """
    best = [[answers[i]] for answers, i in zip(before, pick_best(scores), strict=True)]
    return win_rate(best, after, preference)


def verdict_sentence(
    who: str,
    rate: Interval,
    prompts: int,
    matched: Matched,
    against_best: Interval | None,
    n: int,
    rival: str,
    method: str | None = "PPO",
    named: str = "the new version",
) -> str:
    """Return how the new version did against `rival`, in words a person can quote.

    The win rate comes first, then what qualifies it: `rate`, `matched` and `against_best` (`head_to_head`, best of `n`)
    are win rates of the new version, judged by `who`; None where no reward model could choose. `method` is what the
    version was trained by, None where best-of-n is no rival; `named` is what it is called. Whether it is promoted is
    another question (`promotion`).
    """
    word = {
        Decision.BETTER: "is better than",
        Decision.WORSE: "is worse than",
        Decision.CANNOT_TELL: "cannot be told apart from",
    }[Decision.of(rate)]
    parts = [
        f"Judged by {who} on {prompts} unused prompts, {named} {word} {rival}: it wins {percent(rate)}.",
        _matched_words(matched),
        *([] if method is None else [_best_of_n_words(against_best, n, method)]),
    ]
    return " ".join(parts)


def _matched_words(matched: Matched) -> str:
    if not matched.can_tell:
        return (
            f"At matched length it cannot be told: {matched.pairs} pairs of answers on {matched.prompts} prompts are of"
            " like length, too few or too one-sided."
        )
    return (
        f"At matched length it wins {percent(matched.interval)} of {matched.pairs} pairs on {matched.prompts} prompts."
    )


def _best_of_n_words(against_best: Interval | None, n: int, method: str) -> str:
    if against_best is None:
        return NO_CHOICE
    same = "the same reward model" if method == "PPO" else "the reward model"
    words = {
        Decision.BETTER: f"{method} beats best-of-{n} with {same}",
        Decision.WORSE: f"{method} does not beat best-of-{n} with {same}, which does better",
        Decision.CANNOT_TELL: f"{method} is not shown to beat best-of-{n} with {same}, which may do as well",
    }[Decision.of(against_best)]
    return f"{words}: {method} wins {percent(against_best)} head to head."


def all_pairs(before: Answers, after: Answers) -> list[list[tuple[Answer, Answer]]]:
    """Return, for each prompt, all pairs (answer of after, answer of before)."""
    pairs = [[(a, b) for a in new for b in old] for old, new in zip(before, after, strict=True)]
    for number, of_prompt in enumerate(pairs):
        if not of_prompt or any(a.prompt != b.prompt for a, b in of_prompt):
            raise ValueError(f"entry {number}: both versions must have answers, and to the same prompt")
    return pairs


def openings(answers: Answers) -> list[int]:
    """Return a number for each prompt, from 0 on, the same for those of one opening: they are not independent."""
    return openings_of(of_prompt[0] for of_prompt in answers)


def openings_of(answers: Iterable[Answer]) -> list[int]:
    """Return a number for each answer, from 0 on, the same for answers to prompts of one opening."""
    return numbered(opening(answer.prompt) for answer in answers)


def _checked(scores: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(scores, float)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise ValueError(f"scores must be finite and of shape (prompts, answers), got {table.shape}")
    return table


def _lengths_match(first: int, second: int, tolerance: float) -> bool:
    return abs(first - second) <= max(1.0, tolerance * max(first, second))


def _balanced(weights: NDArray[np.float64], gap: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights with those of positive and of negative gap scaled to equal totals; zeros if impossible."""
    longer, shorter = weights[gap > 0].sum(), weights[gap < 0].sum()
    if (longer == 0) != (shorter == 0):
        return np.zeros_like(weights)
    scale = np.ones_like(weights)
    if longer:
        scale[gap > 0] = (longer + shorter) / (2 * longer)
        scale[gap < 0] = (longer + shorter) / (2 * shorter)
    return weights * scale
