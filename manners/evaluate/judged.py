"""What a judge's preferences between two versions come to: one path, whoever judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from manners.evaluate import ask, compare
from manners.evaluate.length import win_rate_at_equal_length
from manners.evaluate.text_measures import PerplexityChange
from manners.feedback.crowd import Taste, true_score
from manners.feedback.judges import Judge
from manners.feedback.statistics import Decision, cluster_bootstrap
from manners.results import BestOfN, MatchedRate, PartChange, RegressedRate
from manners.settings import EvaluateSettings
from manners.types import Answer, Dialogue, Interval, Response
from manners.workspace import INITIAL

NOBODY = "Nobody has compared the two versions yet: open blind comparisons with `manners evaluate --ask N`."


@dataclass(frozen=True)
class Answered:
    """A version's answers to the evaluation prompts, by prompt, with the reward model's scores."""

    version: str
    answers: list[list[Answer]]
    scores: list[list[float]]
    kl: float
    """Of the version to the start version, in nats per response."""

    @property
    def flat(self) -> list[Answer]:
        """All answers."""
        return [a for of_prompt in self.answers for a in of_prompt]


@dataclass(frozen=True)
class Judgement:
    """What a judge says about two versions; the fields are those of `EvaluationResult`."""

    source: str
    verdict: str
    promoted: bool
    win_rate: float | None = None
    interval: tuple[float, float] | None = None
    outcome: str | None = None
    matched: MatchedRate | None = None
    regressed: RegressedRate | None = None
    best_of_n: BestOfN | None = None
    raters: int | None = None


def judged(
    judge: Judge,
    before: Answered,
    after: Answered,
    perplexity: PerplexityChange,
    settings: EvaluateSettings,
) -> Judgement:
    """Return what a judge makes of two versions: of all their answers, or, where it has a record, of what it was asked.

    A record grows while it is looked at, so it is read by a rule that may be looked at any time (`evaluate.ask`).
    """
    if judge.on_record is None:
        return _of_answers(judge, before, after, perplexity, settings)
    if not judge.on_record:
        return Judgement(judge.source, NOBODY, promoted=False)
    outcome = ask.read_outcome(judge.on_record, before.version, after.version, kind=judge.kind)
    return Judgement(
        judge.source,
        outcome.sentence,
        promoted=judge.may_promote and outcome.decision is Decision.BETTER,
        win_rate=outcome.interval.estimate,
        interval=(outcome.interval.low, outcome.interval.high),
        outcome=str(outcome.decision),
        raters=len(outcome.raters),
    )


def _of_answers(
    judge: Judge,
    before: Answered,
    after: Answered,
    perplexity: PerplexityChange,
    settings: EvaluateSettings,
) -> Judgement:
    """Judge every pair of answers: the win rate, at matched length, and against best-of-n."""

    def preference(prompt: Dialogue, a: Response, b: Response) -> float:
        found = judge.prefers(prompt, a, b)
        assert found is not None, "a judge without a record can be asked about anything"
        return found

    rate = compare.win_rate(before.answers, after.answers, preference)
    matched = compare.matched_win_rate(before.answers, after.answers, preference, settings.length_tolerance)
    regressed = win_rate_at_equal_length(before.answers, after.answers, preference)
    best = compare.head_to_head(before.answers, before.scores, after.answers, preference)
    count = settings.samples
    alone = compare.best_of_n_win_rate(before.answers, before.scores, preference) if count > 1 else None
    rival = "the initial model" if before.version == INITIAL else f"the start version, {before.version}"
    conclusion = compare.verdict_sentence(
        judge.kind, rate, len(before.answers), matched, best, count, perplexity, rival
    )
    return Judgement(
        judge.source,
        conclusion.sentence,
        promoted=judge.may_promote and conclusion.promoted,
        win_rate=rate.estimate,
        interval=(rate.low, rate.high),
        outcome=str(conclusion.outcome),
        matched=MatchedRate(
            **asdict(matched.interval),
            pairs=matched.pairs,
            prompts=matched.prompts,
            effective_prompts=matched.effective_prompts,
            length_difference=matched.length_difference,
        ),
        regressed=RegressedRate(
            **asdict(regressed.interval),
            slope=regressed.slope,
            shorter=regressed.shorter,
            longer=regressed.longer,
        ),
        best_of_n=BestOfN(
            n=count,
            head_to_head=best,
            sentence=_best_sentence(best, count, rival),
            win_rate=alone,
            win_rate_n=None if alone is None else count - 1,
        ),
    )


def _best_sentence(best: Interval, n: int, rival: str) -> str:
    outcome = {
        Decision.BETTER: "PPO beats",
        Decision.WORSE: "PPO does worse than",
        Decision.CANNOT_TELL: "it cannot be told whether PPO beats",
    }[Decision.of(best)]
    return f"Head to head, {outcome} the best of {n} answers of {rival} by the same reward model."


def taste_facts(taste: Taste, before: Answered, after: Answered, resamples: int, seed: int) -> dict[str, Any]:
    """Return means of the hidden taste and its parts, before and after, with the interval of the paired change.

    By the names of `EvaluationResult`.
    """
    seen = [
        [[true_score(taste, a.prompt, a.response) for a in of_prompt] for of_prompt in version.answers]
        for version in (before, after)
    ]

    def mean(when: int, part: Callable[[Any], float]) -> float:
        return float(np.mean([part(t) for of_prompt in seen[when] for t in of_prompt]))

    found: dict[str, Any] = {}
    parts: dict[str, PartChange] = {}
    for name, part in (("taste", attrgetter("total")), ("content", attrgetter("content"))):
        by_prompt = [
            float(np.mean([part(t) for t in new]) - np.mean([part(t) for t in old]))
            for old, new in zip(*seen, strict=True)
        ]
        found |= {
            f"{name}_before": mean(0, part),
            f"{name}_after": mean(1, part),
            f"{name}_change": cluster_bootstrap(by_prompt, range(len(by_prompt)), resamples, seed),
        }
    for name in ("finished", "brevity", "kindness", "relevance", "plainness"):
        part = attrgetter(name)
        parts[name] = PartChange(before=mean(0, part), after=mean(1, part))
    return found | {"taste_parts": parts}
