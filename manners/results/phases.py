"""What learning from examples, and two phases side by side, found out; see `manners.results`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from manners.results.evaluation import Forgetting, MatchedRate, RegressedRate
from manners.types import Interval


@dataclass(frozen=True, kw_only=True)
class AnsweredExample:
    """A prompt that was set aside, with what stood there and what the model writes before and after."""

    prompt: str | None = None
    example: str | None = None
    """The answer in the example."""
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True, kw_only=True)
class SFTResult:
    """What was learned from examples."""

    version: str | None = None
    """The version that came of it: `model.name` makes it the initial model."""
    source: str | None = None
    """The file of examples, or `store`."""
    dialogues: int | None = None
    """Dialogues that were trained on."""
    set_aside: int | None = None
    """Dialogues that measure."""
    turns: int | None = None
    """Assistant turns that were trained on."""
    tokens: int | None = None
    """Tokens that the loss was taken on, over all passes: those of assistant turns, with the token that ends each."""
    loss_before: float | None = None
    """Mean loss of the next token on the dialogues set aside, in nats, of the initial model."""
    loss_after: float | None = None
    """The same, of the version."""
    loss_change: Interval | None = None
    """After - before, on the same tokens; the interval is over opening turns."""
    loss_before_interval: Interval | None = None
    loss_after_interval: Interval | None = None
    accuracy_before: Interval | None = None
    """Share of these tokens that were the likeliest to the initial model."""
    accuracy_after: Interval | None = None
    accuracy_change: Interval | None = None
    losses: tuple[float, ...] | None = None
    """Loss on the dialogues set aside after each pass."""
    advice: str | None = None
    """What the losses after each pass say of `sft.epochs`, where they say anything."""
    epochs: int | None = None
    optimizer_steps: int | None = None
    tokens_per_second: float | None = None
    """While training, prompts included."""
    left_out: Mapping[str, int] | None = None
    """Dialogues and turns that were not learned from, by reason."""
    first_left_out: str | None = None
    """The first of them, with its number."""
    apart: int | None = None
    """Assistant turns that the template writes otherwise once something follows: each was learned in a row of its own,
    as it is asked for."""
    template: str | None = None
    """`chatml` where the model had no chat template and was given that one."""
    examples: tuple[AnsweredExample, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class PhasesExample:
    """An answer of each to the same prompt."""

    prompt: str | None = None
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True, kw_only=True)
class PhasesResult:
    """Two phases of a model on the same prompts and the same plain text; `before` is `against`.

    Changes are after - before, paired. What is counted in tokens is in those of `against`: two phases need not have
    them in common.
    """

    version: str | None = None
    against: str | None = None
    prompts: int | None = None
    prompts_skipped: int | None = None
    """Prompts for evaluation that one of the two has no room for, or does not lay out."""
    samples: int | None = None
    """Answers of each to a prompt."""
    source: str | None = None
    """Who judged: the kind of annotator whose verdicts are in this project, or `none` where nobody has yet."""
    raters: int | None = None
    """How many annotators' word it is."""
    win_rate: Interval | None = None
    """How often an answer of `version` is preferred to one of `against`; chance is 0.5."""
    noisy: Interval | None = None
    """The same by the simulated annotators with all their noise."""
    outcome: str | None = None
    """`better`, `worse` or `cannot_tell`."""
    matched: MatchedRate | None = None
    """The win rate among pairs of like length, in tokens of `against`."""
    regressed: RegressedRate | None = None
    """The win rate that a regression on the difference in length gives at none."""
    length_before: float | None = None
    """Mean length of an answer, in characters."""
    length_after: float | None = None
    length_change: Interval | None = None
    finished_before: float | None = None
    """Share of answers that were ended, and not cut off."""
    finished_after: float | None = None
    finished_change: Interval | None = None
    bits_per_byte_before: float | None = None
    """On plain text, in bits for each byte of it (UTF-8)."""
    bits_per_byte_after: float | None = None
    bits_per_byte_change: Interval | None = None
    paragraphs: int | None = None
    """Paragraphs of plain text that both read whole."""
    forgetting: Forgetting | None = None
    """What was lost on the way from `against` to `version`."""
    verdict: str | None = None
    examples: tuple[PhasesExample, ...] | None = None
