"""What each stage found out: one frozen record a stage, which `manners.facts` writes as JSON.

`report.json` is made of these; its table of keys in docs/report.md is generated from the strings under the fields. An
interval is at 95 %; shares are between 0 and 1. A fact that is not known is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator

from manners.facts import NULL
from manners.results.camps import CampsResult, Served
from manners.results.ceiling import Ceiling
from manners.types import Interval


@dataclass(frozen=True, kw_only=True)
class SampleResult:
    """What was answered, and what was opened for annotators."""

    policy: str | None = None
    """The version that answered."""
    prompts: int | None = None
    """Prompts with at least two different answers."""
    comparisons: int | None = None
    """Comparisons that were opened."""
    left_out: Mapping[str, int] | None = None
    """Prompts that were not asked about, by reason."""
    prompts_shortened: int | None = None
    """Prompts that were asked about without their first turns."""
    prompts_known: int | None = None
    """In a round of the loop: prompts that had been asked about before, for want of fresh ones."""
    responses: int | None = None
    finished: float | None = None
    """Share of the responses that the policy ended itself."""


@dataclass(frozen=True, kw_only=True)
class AdversarialResult:
    """What a reward model likes too much, and was opened for annotators."""

    policy: str | None = None
    """The version that answered."""
    reward: str | None = None
    """The reward model that chose."""
    prompts: int | None = None
    """Prompts that were answered, and got at least two different answers."""
    responses: int | None = None
    """Different answers that were scored."""
    comparisons: int | None = None
    """Comparisons that were opened: one answer that it likes best, and an ordinary one."""
    members_differ: int | None = None
    """Of these, those where the members differ by more than one unit about the answer that is liked."""
    signs: Mapping[str, int] | None = None
    """Of these, those whose liked answer shows what the ordinary one does not, by its name."""
    suspicion: tuple[float, float] | None = None
    """The largest and the smallest among them, in units of what answers to one prompt differ by."""
    left_out: Mapping[str, int] | None = None
    """Prompts that were not asked about, by reason."""


@dataclass(frozen=True, kw_only=True)
class SaidExample:
    """One of the comparisons, as the report shows it."""

    prompt: str | None = None
    left: str | None = None
    right: str | None = None
    verdict: str | None = field(default=None, metadata=NULL)
    """The first one; null where nobody has said anything."""
    annotator: str | None = field(default=None, metadata=NULL)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What was asked, and what annotators said."""

    total: int | None = None
    """Comparisons, those of evaluations apart."""
    asked: Mapping[str, int] | None = None
    """Comparisons, by how they came to be asked; nothing is measured on those that are `adversarial`."""
    source: str | None = None
    """Whose verdicts these are: `simulated`, `human`, `ai`, `mixed`, or `none`."""
    prompts: int | None = None
    verdicts: Mapping[str, int] | None = None
    """By choice, of the sides as shown."""
    annotators: int | None = None
    left_rate: Interval | None = None
    """How often the side shown on the left won among verdicts that chose one; absent where kinds of annotators are
    mixed."""
    examples: tuple[SaidExample, ...] | None = None
    agreement: Interval | None = None
    """Chance that two annotators of a comparison chose the same side, by the first two who chose one and were asked
    fairly: a third is often asked because they differ."""
    judged: int | None = None
    """Verdicts of AI judges (`manners judge`), which stand in none of the figures above."""
    trained_on: int | None = None
    """Comparisons that the reward model learned from."""
    set_aside: int | None = None
    """Comparisons that measure it."""
    left_out: Mapping[str, int] | None = None
    """What is not learned from, by reason."""


@dataclass(frozen=True, kw_only=True)
class LevelAccuracy:
    """Accuracy on the pairs of one level of agreement."""

    level: str
    """How far the verdicts on a pair agree."""
    n: int
    """Pairs."""
    estimate: float
    low: float
    high: float

    @property
    def rate(self) -> Interval:
        """The accuracy."""
        return Interval(self.estimate, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Verdicts to which the model gave about the same confidence: what it promised and what came."""

    predicted: float
    observed: float
    low: float
    high: float
    """95 % Wilson interval of `observed`."""
    n: float
    """Verdicts in the bin."""


@dataclass(frozen=True, kw_only=True)
class LearningPoint:
    """Accuracy of a member that learned from a part of the verdicts."""

    share: float
    verdicts: int
    estimate: float
    low: float
    high: float

    @property
    def rate(self) -> Interval:
        """The accuracy."""
        return Interval(self.estimate, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a reward model is worth on pairs that it did not learn from."""

    accuracy: float | None = None
    """Share of decided verdicts that it agrees with."""
    interval: tuple[float, float] | None = None
    """Of `accuracy`."""
    verdicts: int | None = None
    """Decided verdicts that `accuracy` is measured on."""
    effective_n: float | None = None
    """How many equally weighted verdicts they are worth: each weighs for how its comparison was drawn."""
    unknown_draws: int | None = None
    """Those of them that weigh nothing: drawn by disagreement before it was recorded among how many."""
    chance: float | None = None
    baselines: Mapping[str, Interval] | None = None
    """Accuracy of rules that need no model."""
    gains: Mapping[str, Interval] | None = None
    """By how much it exceeds each of them, paired by group."""
    length_only: float | None = None
    """Accuracy of length and finish flag, or else of the best rule."""
    ceiling: Ceiling | None = field(default=None, metadata=NULL)
    """Accuracy that disagreement leaves possible; null where too few pairs have several verdicts."""
    by_agreement: tuple[LevelAccuracy, ...] | None = None
    ece_before: float | None = None
    """Expected calibration error before a temperature was fitted."""
    ece: float | None = field(default=None, metadata=NULL)
    """The same after it, out of fold; null where there is one group only."""
    ece_by_luck: Interval | None = field(default=None, metadata=NULL)
    """What a perfectly calibrated model would show on as many verdicts, which are alike within an opening."""
    temperature: float | None = None
    tie_parameter: float | None = None
    """Davidson's nu."""
    reliability: tuple[ReliabilityBin, ...] | None = None
    length_correlation: Interval | None = None
    """Of margins with differences of length, in characters."""
    both_bad_rule: str | None = None
    strength_rule: str | None = None
    sentence: str | None = None
    """The outcome in words a person can quote."""
    set_aside_pairs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Shortened:
    """What did not fit into the context, of responses with their prompts."""

    count: int
    """Responses that had to be cut, or lost a part of their prompt."""
    share: float | None = None
    """Of all responses; absent where an older version counted."""
    tokens: int | None = None
    """What was dropped of them and of their prompts, in all."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """What `score --fast` does to scores: the first rows, scored with exact products and with rounded ones."""

    rows: int
    off_mean: float | None = None
    """By how much scores are off on average, in units of what the start version's answers to a prompt differ by."""
    off_largest: float | None = None
    times_as_fast: float | None = None
    """Time with exact products over time with rounded ones, one run each."""


def _counted(value: Any) -> Any:
    """Return what an older version wrote, a count alone, as the record of today."""
    return Shortened(count=value) if isinstance(value, int) else value


@dataclass(frozen=True, kw_only=True)
class Learnt(Measured):
    """What learning from verdicts came to, by way of a reward model or without one."""

    version: str | None = None
    trained_on: int | None = None
    """Comparisons."""
    adversarial: int | None = None
    """Those of them that a reward model chose (`manners sample --adversarial`): nothing is measured on them."""
    judged: int | None = None
    """Comparisons beside them that only an admitted judge has judged; they are trained on, and measure nothing."""
    judge_weight: float | None = None
    """Share of the weight of all verdicts trained on that the judge's have; the rest is people's."""
    set_aside: int | None = None
    """Comparisons: reward training and DPO set the same aside."""
    divided: int | None = None
    """Comparisons of openings or users that hold more than is to be set aside, and were divided by prompt."""
    source: str | None = None
    """Kind of annotator whose verdicts it learned from."""
    left_out: Mapping[str, int] | None = None
    """Comparisons that were not learned from, by reason."""
    users_limited: int | None = None
    """Users whose weight was cut to `reward.user_share`, or with that of their account to `reward.account_share`."""
    users_outlying: int | None = None
    """Users who were set aside."""
    shortened: Annotated[Shortened | None, BeforeValidator(_counted)] = None
    """Among the responses that were compared."""
    passes: int | None = None
    """Passes over the comparisons that every member makes, or the policy if nothing stops it."""
    tried: Mapping[str, float] | None = None
    """By the passes of a scout, its loss on the training groups that it did not learn from, in nats a verdict."""
    steps: int | None = None
    """Optimiser steps of every member, or of the policy that is kept."""
    optimizer_steps: int | None = None
    """Of all that was trained: with the scout, and the learning curve."""
    pairs_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class RewardResult(Learnt):
    """A reward model that was trained, and how good it is."""

    curve: tuple[LearningPoint, ...] | None = None
    """Accuracy against the number of verdicts."""
    doubling: str | None = None
    """What twice as many verdicts would buy."""
    made: int | None = None
    """Pairs that it learned from beside, made of answers and judged by nobody (`reward.augment`)."""
    members: int | None = None
    ensemble_spread: float | None = None
    """Mean over held-out pairs of the standard deviation of the members' margins, in units."""
    unit_log_odds: float | None = None
    """What a unit of score is worth: the log-odds, calibrated, that an answer is preferred which scores one higher."""
    reference_prompts: int | None = None
    """Prompts that the start version answered to measure the unit."""
    reference_answers: int | None = None
    """Its answers to all of them."""
    between_prompts: float | None = None
    """Share of the variance of their scores that lies between prompts: no comparison bears on it, and no unit."""
    camps: CampsResult | None = None
    """Absent where annotators are not to be told apart (`reward.camps`)."""


@dataclass(frozen=True, kw_only=True)
class FileResult(Measured):
    """A reward model measured on a file of comparisons from outside."""

    version: str | None = None
    file: str | None = None
    pairs: int | None = None
    known_prompts: int | None = None
    """Pairs about prompts of this workspace."""
    shortened: Shortened | None = None
    left_out: Mapping[str, int] | None = None
    skipped: Mapping[str, int] | None = None
    """Bad rows, by reason."""
    unused: tuple[str, ...] | None = None
    """Fields of the file that nothing was read from."""
    notes: tuple[str, ...] | None = None
    """What was guessed about the file, and what somebody should look at in it."""


@dataclass(frozen=True, kw_only=True)
class PolicyResult:
    """A policy that PPO trained, and how the run went."""

    episodes: int | None = None
    optimizer_steps: int | None = None
    kl: float | None = None
    """Of the kept version to the start version on the validation prompts, in nats per response."""
    episodes_per_second: float | None = None
    stopped: str | None = field(default=None, metadata=NULL)
    """Why the run ended early; null where it did not."""
    best_update: int | None = None
    """The update whose policy was kept; 0 is the version that the run began as."""
    curves: Mapping[str, tuple[int | float | None, ...]] | None = None
    """By metric, a value an update; `update` and `validate/update` are the horizontal axes."""
    warnings: tuple[str, ...] | None = None
    version: str | None = None
    reward: str | None = None
    """The reward model that it was trained against."""
    begun_as: str | None = None
    """The version that the policy began as."""
    prompts: int | None = None
    """Training prompts."""
    prompts_skipped: int | None = None
    """Prompts for training and validation that leave no room for a response."""
    prompts_shortened: int | None = None
    """Prompts for training and validation that lose whole turns."""
    served: tuple[Served, ...] | None = None
    """Whom it serves, where camps of annotators are told apart: on the validation prompts, the largest camp first."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the figures were computed on."""

    cpu: str | None = None
    cores: int | None = None
    torch: str | None = None
    """Its version."""
    gpu: str | None = None
    """Its name, if one was used."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The model that was taught."""

    name: str | None = None
    parameters: int | None = None
    trainable_layers: int | str | None = None
    note: str | None = field(default=None, metadata=NULL)
    """What is special about its weights or its template."""
    template_hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """Everything on the page of a run."""

    seed: int | None = None
    manners_version: str | None = None
    machine: Machine | None = None
    model: ModelFacts | None = None
    seconds: Mapping[str, float] | None = None
    """Of each stage that has run."""
    peak_memory_bytes: int | None = None
    """Most that any stage took: on the GPU, if one was used."""
    current: str | None = None
    """The version that answered when the report was written: the policy promoted last, or the start version."""
    comparisons: Said | None = None
    stages: Mapping[str, object] = field(default_factory=dict)
    """The result of each stage that has run, by name; written beside the other parts, with its `seconds`."""
    sections: Mapping[str, str] = field(default_factory=dict)
    """By stage, the heading of a section for those without a place of their own on the page; not written."""
    trusted_notes: tuple[str, ...] | None = None
    """What the figures take on trust."""
