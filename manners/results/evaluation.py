"""What an evaluation found out, as `manners.results` holds it of the other stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from manners.facts import NULL
from manners.types import Interval


@dataclass(frozen=True, kw_only=True)
class MatchedRate:
    """The win rate among pairs of answers of matched length."""

    estimate: float
    low: float
    high: float
    pairs: int | None = None
    prompts: int | None = None
    """Prompts with at least one such pair."""
    effective_prompts: float | None = None
    """How many equally weighted prompts they are worth."""
    length_difference: float | None = None
    """Mean of after minus before as weighted, in tokens."""

    @property
    def rate(self) -> Interval:
        """The win rate."""
        return Interval(self.estimate, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class RegressedRate:
    """The win rate at equal length by a logistic regression of all pairs' outcomes on their difference in length."""

    estimate: float
    low: float
    high: float
    slope: float | None = None
    """Logits that a new answer gains by being half as long again as the old one."""
    shorter: int | None = None
    """Openings of prompts with a pair whose new answer is no longer than the old one."""
    longer: int | None = None
    """Openings of prompts with a pair whose new answer is no shorter."""

    @property
    def rate(self) -> Interval:
        """The win rate."""
        return Interval(self.estimate, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """What the reward model buys without training: the best of n answers of the start version."""

    n: int | None = None
    head_to_head: Interval | None = None
    """Win rate of the policy over the best of n; decides the question where it is known."""
    sentence: str | None = None
    win_rate: Interval | None = None
    """Of the best of `win_rate_n` answers over another answer of the start version."""
    win_rate_n: int | None = None


@dataclass(frozen=True, kw_only=True)
class PartChange:
    """A part of the hidden taste, before and after."""

    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class BesideExample:
    """Answers of both versions to one prompt, as the report shows them."""

    prompt: str | None = None
    before: str | None = None
    after: str | None = None
    score_before: float | None = None
    score_after: float | None = None


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One of the questions that decide about a promotion, with the figure that answers it."""

    check: str
    """`win_rate` (over `against`), `start` (over the start version, where that is another), `matched_length`,
    `perplexity`, `collapse` (share of the most common answer), `variety` (distinct-2 as a share of that of `against`),
    `judge` (there where its word promotes nothing)."""
    value: float | None = field(default=None, metadata=NULL)
    """The estimate; null where there is none."""
    low: float | None = field(default=None, metadata=NULL)
    high: float | None = field(default=None, metadata=NULL)
    margin: float | None = field(default=None, metadata=NULL)
    """What the interval is held against."""
    verdict: str
    """`yes`, `no` or `cannot_tell`: a `no` blocks, `cannot_tell` only for `win_rate` and what `gate.toml` requires."""


@dataclass(frozen=True, kw_only=True)
class ForgettingCheck:
    """One way in which a version may have got worse, before and after."""

    check: str
    """`perplexity`; `questions`, and `questions_` with a family: the mean probability of the right answer;
    `distinct_2`; `self_similarity`: how alike two answers to a prompt are."""
    before: float | None = None
    after: float | None = None
    change: Interval | None = None
    """After less before; of perplexity relative."""
    margin: float | None = None
    """What it may get worse by, in its own unit; of perplexity in nats a token."""
    p: float | None = None
    """That it is worse by more than the margin, corrected for the number of checks (Holm)."""
    verdict: str
    """`worse`, `within` or `cannot_tell`."""


@dataclass(frozen=True, kw_only=True)
class ShareRight:
    """How often the right answer of a family of questions is the likeliest."""

    before: float
    after: float
    chance: float
    questions: int | None = None


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """What was lost beside what was learnt: text and questions since the initial model, variety since the start."""

    outcome: str | None = None
    """`forgotten`, `not_shown` or `cannot_tell`."""
    sentence: str | None = None
    checks: tuple[ForgettingCheck, ...] | None = None
    questions: Mapping[str, ShareRight] | None = None
    """By family."""
    questions_left_out: int | None = None
    """Questions that do not fit into the context."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """A policy against another version, on prompts that nothing was trained on or chosen by.

    Of each measure there is its value `_before` (of the other version; perplexity: of the initial model) and `_after`,
    and the interval of its `_change` where known: relative for perplexity (0.02 is 2 % up), a difference otherwise.
    """

    prompts: int | None = None
    prompts_skipped: int | None = None
    """Prompts for evaluation that leave no room for a response."""
    prompts_shortened: int | None = None
    """Of `prompts`, those that lose whole turns."""
    samples: int | None = None
    """Answers of each version to a prompt."""
    kl: float | None = None
    """Of the policy to the start version, in nats per response."""
    perplexity_text: str | None = None
    """The file of plain text that it was measured on; absent where that is the text which ships."""
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    perplexity_change: Interval | None = None
    forgetting: Forgetting | None = None
    examples: tuple[BesideExample, ...] | None = None
    worst: tuple[BesideExample, ...] | None = None
    """The answers that were liked least against the other version's, worst first: by the judge, where it can be asked
    about any two, then by the reward model; absent where neither has an opinion."""
    length_before: float | None = None
    """In tokens."""
    length_after: float | None = None
    finished_before: float | None = None
    """Share of answers that the version ended itself."""
    finished_after: float | None = None
    distinct_2_before: float | None = None
    """Different token pairs as a share of all."""
    distinct_2_after: float | None = None
    most_common_answer_before: float | None = None
    """Share of the answers that read like the most common one."""
    most_common_answer_after: float | None = None
    length_change: Interval | None = None
    finished_change: Interval | None = None
    distinct_2_change: Interval | None = None
    score_before: float | None = None
    """Mean score by the reward model that the policy was trained against, or by the newest; absent without any."""
    score_after: float | None = None
    version: str | None = None
    against: str | None = None
    """The version that it was compared with: the current one, unless another was named."""
    start: str | None = None
    """The version that both started from, which `kl` and best-of-n refer to."""
    source: str | None = None
    """Who judged: `simulated`, `human`, `ai`, or `none` yet."""
    raters: int | None = None
    """How many judged: annotators whose verdicts count; 1 for a hidden taste."""
    win_rate: float | None = None
    """Over `against`."""
    interval: tuple[float, float] | None = None
    """Of `win_rate`."""
    noisy: Interval | None = None
    """What `win_rate` would be by the simulated annotators' noisy verdicts, where their noiseless taste judged."""
    matched: MatchedRate | None = None
    regressed: RegressedRate | None = None
    best_of_n: BestOfN | None = None
    verdict: str | None = None
    """The outcome in one sentence."""
    promoted: bool | None = field(default=None, metadata=NULL)
    """Null where it was compared with another version than the current one, so that nothing was decided."""
    attempt: int | None = None
    """Which try this was for the place of `against`: later ones ask for more."""
    drawn: str | None = None
    """A name for the answers that were judged: other answers of the same policy are another try. Absent where people
    judge."""
    reasons: tuple[Reason, ...] | None = None
    """What decided about `promoted`."""
    outcome: str | None = None
    """`better`, `worse` or `cannot_tell`."""
    taste_parts: Mapping[str, PartChange] | None = None
    taste_before: float | None = None
    """What the simulated crowd likes."""
    taste_after: float | None = None
    taste_change: Interval | None = None
    content_before: float | None = None
    """The part of it that has nothing to do with length or finishing."""
    content_after: float | None = None
    content_change: Interval | None = None
