"""What a judge's preferences between two versions come to: one path, whoever judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from manners.audit.rules import Rules
from manners.evaluate import ask, by_judge, compare, promotion
from manners.evaluate.ask import AskOutcome
from manners.evaluate.length import win_rate_at_equal_length
from manners.evaluate.promotion import Evidence, called
from manners.evaluate.text_measures import PerplexityChange, TextMeasures
from manners.feedback.crowd import Taste, true_score
from manners.feedback.judges import Judge
from manners.feedback.statistics import Decision, cluster_bootstrap, percent
from manners.results.evaluation import BestOfN, MatchedRate, PartChange, Reason, RegressedRate
from manners.settings import EvaluateSettings
from manners.types import Answer, Comparison, Dialogue, Interval, Response

NOBODY = "Nobody has compared the two versions yet: open blind comparisons with `{} --ask N`."

PARTS = ("finished", "brevity", "kindness", "relevance", "plainness")
"""Parts of a taste that are shown of every one; others where they weigh something."""


@dataclass(frozen=True)
class Answered:
    """A version's answers to the evaluation prompts, by prompt, with the reward model's scores."""

    version: str
    answers: list[list[Answer]]
    scores: list[list[float]]
    """Not a number where there was no reward model."""
    kl: float
    """Of the version to the start version, in nats per response."""

    @property
    def scored(self) -> bool:
        """Whether a reward model has scored the answers."""
        return not np.isnan(self.scores).any()


@dataclass(frozen=True)
class Compared:
    """A policy, and what it is compared with."""

    start: Answered
    against: Answered
    """The version that the policy would replace; it may be the start version itself, and is asked about once then."""
    policy: Answered
    perplexity: PerplexityChange | None = None
    """Of the policy since the initial model; two phases are read in another way."""
    method: str | None = "PPO"
    """What the policy was trained by; None of a phase, which has no rival in best-of-n."""
    named: str = "the new version"
    """What it is called in a sentence."""
    command: str = "manners evaluate"
    """What compares the two, and asks people to."""

    @property
    def one(self) -> bool:
        """Whether there is but one comparison."""
        return self.against.version == self.start.version

    @property
    def drawn(self) -> tuple[tuple[Dialogue, str], ...]:
        """What these two said: with another seed, or to other prompts, it is something else."""
        answers = [a for version in (self.against, self.policy) for some in version.answers for a in some]
        return tuple((a.prompt, a.response.text) for a in answers)


@dataclass(frozen=True)
class Judgement:
    """What a judge says about a policy; the fields are those of `EvaluationResult`."""

    source: str
    raters: int
    verdict: str
    reasons: tuple[Reason, ...]
    win_rate: float | None = None
    interval: tuple[float, float] | None = None
    noisy: Interval | None = None
    outcome: str | None = None
    matched: MatchedRate | None = None
    regressed: RegressedRate | None = None
    best_of_n: BestOfN | None = None


@dataclass(frozen=True)
class Rates:
    """A judge's word on each comparison, as the one rule for promotion needs it, with all that is shown of it."""

    sentence: str
    raters: int
    win_rate: Interval | None = None
    held: Interval | None = None
    """The same at the level that promotion asks for."""
    start: Interval | None = None
    noisy: Interval | None = None
    matched: MatchedRate | None = None
    regressed: RegressedRate | None = None
    best_of_n: BestOfN | None = None
    outcome: Decision | None = None


def judged(
    judge: Judge,
    compared: Compared,
    texts: TextMeasures,
    settings: EvaluateSettings,
    asked: Rules | None = None,
    level: float = 0.95,
) -> Judgement:
    """Return what a judge makes of a policy: of all its answers, or, where it has a record, of what it was asked.

    `texts` are the measures of the policy's answers beside those of the version that it would replace.
    Whoever judges, the same guards stand beside its word, and the same rules say what they come to (`promotion`):
    those that are `asked`, or those that ship. The win rate is held against them at `level` (`promotion.level`).
    """
    rates = rated(judge, compared, settings, level)
    perplexity = compared.perplexity
    assert perplexity is not None, "a policy has been read beside the initial model"
    varied = texts.before["distinct_2"].estimate
    reasons = promotion.reasons(
        Evidence(
            win_rate=rates.held,
            start=rates.start,
            replaces_start=compared.one,
            matched=rates.matched.rate if rates.matched else None,
            perplexity=perplexity.change,
            alike=texts.after["most_common_answer"],
            alike_before=texts.before["most_common_answer"].estimate,
            variety=_share_left(varied, texts.changes["distinct_2"]) if varied else None,
            may_promote=judge.may_promote,
        ),
        asked,
    )
    rate = rates.win_rate
    return Judgement(
        judge.source,
        rates.raters,
        f"{rates.sentence} {promotion.perplexity_words(perplexity.change)}",
        reasons,
        win_rate=rate.estimate if rate else None,
        interval=(rate.low, rate.high) if rate else None,
        noisy=rates.noisy,
        outcome=str(rates.outcome) if rates.outcome else None,
        matched=rates.matched,
        regressed=rates.regressed,
        best_of_n=rates.best_of_n,
    )


def rated(judge: Judge, compared: Compared, settings: EvaluateSettings, level: float = 0.95) -> Rates:
    """Return a judge's word alone, without guards and rule: of all answers, or of its record where it has one."""
    return (_of_answers if judge.on_record is None else _of_record)(judge, compared, settings, level)


def measured_on(judge: Judge, compared: Compared) -> dict[str, int]:
    """Return on how much each check of an evaluation is measured: prompts, and paragraphs of plain text.

    Of what a judge with a record says it is not said: the record grows, and its newest word is the whole one.
    """
    assert compared.perplexity is not None, "a policy has been read beside the initial model"
    prompts = len(compared.policy.answers)
    found = {"perplexity": compared.perplexity.paragraphs, "collapse": prompts, "variety": prompts}
    if judge.on_record is None:
        found |= dict.fromkeys(("win_rate", "start", "matched_length"), prompts)
    return found


def _share_left(before: float, change: Interval) -> Interval:
    """Return what is left of a figure as a share of what it was."""
    return Interval(*(1 + part / before for part in (change.estimate, change.low, change.high)))


def _of_answers(judge: Judge, compared: Compared, settings: EvaluateSettings, level: float) -> Rates:
    """Judge every pair of answers: the win rates, at matched length, and against best-of-n of the start version."""
    started = called(compared.start.version, compared.start.version)
    replaced = called(compared.against.version, compared.start.version)
    start, against, policy = (v.answers for v in (compared.start, compared.against, compared.policy))
    scores = compared.start.scores
    preference = _preference(judge)
    rate = compare.win_rate(against, policy, preference)
    matched = compare.matched_win_rate(against, policy, preference, settings.length_tolerance)
    regressed = win_rate_at_equal_length(against, policy, preference)
    count = settings.samples
    best = alone = None
    if compared.start.scored:
        best = compare.head_to_head(start, scores, policy, preference)
        alone = compare.best_of_n_win_rate(start, scores, preference) if count > 1 else None
    who = compare.WHO[judge.kind]
    if judge.noisy:
        who = f"the taste of {who} without its noise"
    sentence = compare.verdict_sentence(
        who, rate, len(policy), matched, best, count, replaced, compared.method, compared.named
    )
    noisy = over_start = None
    if judge.noisy:
        noisy = compare.win_rate(against, policy, _preference(judge.noisy))
        sentence += f" By their verdicts, with all their noise, {compared.named} wins {percent(noisy)}."
    if not compared.one:
        over_start = compare.win_rate(start, policy, preference)
        sentence += f" Against {started} the new version wins {percent(over_start)}."
    return Rates(
        sentence,
        judge.raters,
        win_rate=rate,
        held=compare.win_rate(against, policy, preference, level),
        start=over_start,
        noisy=noisy,
        outcome=Decision.of(rate),
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
        best_of_n=None
        if compared.method is None
        else BestOfN(
            n=count,
            head_to_head=best,
            sentence=_best_sentence(best, count, started, compared.method),
            win_rate=alone,
            win_rate_n=None if alone is None else count - 1,
        ),
    )


def _preference(judge: Judge) -> compare.Preference:
    """Return what a judge prefers, where it can be asked about anything."""

    def preference(prompt: Dialogue, a: Response, b: Response) -> float:
        found = judge.prefers(prompt, a, b)
        assert found is not None, "a judge without a record can be asked about anything"
        return found

    return preference


def _of_record(judge: Judge, compared: Compared, settings: EvaluateSettings, level: float) -> Rates:
    """Read what annotators were asked, about the version to be replaced and about the start version.

    A record grows while it is looked at, so it is read by a rule that may be looked at any time (`evaluate.ask`); so
    are those of its comparisons whose texts are of like length, which nobody's verdict chooses.
    """
    version = compared.policy.version

    def among(other: Answered, tolerance: float | None = None, at: float = 0.95) -> AskOutcome | None:
        found = [c for c in judge.on_record or () if {c.left.author, c.right.author} == {other.version, version}]
        if tolerance is not None:
            found = [c for c in found if _alike(c, tolerance)]
        if not found:
            return None
        return ask.read_outcome(found, other.version, version, at, judge.kind, compared.command)

    outcome, held = among(compared.against), among(compared.against, at=level)
    matched = among(compared.against, settings.length_tolerance)
    start = None if compared.one else among(compared.start)
    sentences = [
        outcome.sentence if outcome else NOBODY.format(compared.command),
        start.sentence if start else "",
        f"Among texts of like length: {matched.sentence}" if matched else "",
        *by_judge.said(judge.on_record or (), version),
    ]
    return Rates(
        " ".join(filter(None, sentences)),
        len(outcome.raters) if outcome else 0,
        win_rate=outcome.interval if outcome else None,
        held=held.interval if held else None,
        start=start.interval if start else None,
        outcome=outcome.decision if outcome else None,
        matched=MatchedRate(**asdict(matched.interval), pairs=matched.wins + matched.losses) if matched else None,
    )


def _alike(comparison: Comparison, tolerance: float) -> bool:
    """Return whether the two texts are of like length, as annotators see it: in characters."""
    first, second = len(comparison.left.text), len(comparison.right.text)
    return abs(first - second) <= tolerance * max(first, second)


def _best_sentence(best: Interval | None, n: int, rival: str, method: str) -> str:
    if best is None:
        return compare.NO_CHOICE
    outcome = {
        Decision.BETTER: f"{method} beats",
        Decision.WORSE: f"{method} does worse than",
        Decision.CANNOT_TELL: f"it cannot be told whether {method} beats",
    }[Decision.of(best)]
    return f"Head to head, {outcome} the best of {n} answers of {rival} by the same reward model."


def liked_least(before: Answered, after: Answered, judge: Judge, count: int) -> list[tuple[int, int]] | None:
    """Return where the policy's answers were liked least against the other version's: prompt and answer, worst first.

    By the judge, where it can be asked about any two, then by how far the reward model scores them apart; one answer a
    prompt, and none that says the same as the other version's. None where neither has an opinion.
    """
    asked = _preference(judge) if judge.on_record is None else None
    scored = before.scored and after.scored
    if asked is None and not scored:
        return None

    def lost(i: int, j: int) -> tuple[float, float]:
        old, new = before.answers[i][j], after.answers[i][j]
        lead = before.scores[i][j] - after.scores[i][j] if scored else 0.0
        return (asked(old.prompt, old.response, new.response) if asked else 0.0), lead

    def differ(i: int, j: int) -> bool:
        texts = {answers[i][j].response.text.strip() for answers in (before.answers, after.answers)}
        return len(texts) == 2

    places = [[(i, j) for j in range(len(some)) if differ(i, j)] for i, some in enumerate(after.answers)]
    worst = [max(some, key=lambda place: lost(*place)) for some in places if some]
    return sorted(worst, key=lambda place: lost(*place), reverse=True)[:count]


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
            f"{name}_change": cluster_bootstrap(by_prompt, compare.openings(after.answers), resamples, seed),
        }
    for name in PARTS + tuple(name for name in ("figures", "asked", "moral") if getattr(taste.weights, name)):
        part = attrgetter(name)
        parts[name] = PartChange(before=mean(0, part), after=mean(1, part))
    return found | {"taste_parts": parts}
