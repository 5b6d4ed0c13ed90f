"""What checks found out, and what the gate makes of them: one record a check, whoever measured it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from manners.facts import NULL
from manners.types import Interval

PASS, FAIL, CANNOT_TELL = "pass", "fail", "cannot_tell"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One figure, held against what is asked of it."""

    name: str
    """As `gate.toml` has it, or with the slice behind it (`probe_empty`)."""
    value: float | None = field(default=None, metadata=NULL)
    """The estimate; null where nothing was measured."""
    low: float | None = field(default=None, metadata=NULL)
    high: float | None = field(default=None, metadata=NULL)
    threshold: float | None = field(default=None, metadata=NULL)
    """What would be right."""
    margin: float | None = field(default=None, metadata=NULL)
    """How far from it the figure may lie."""
    before: float | None = None
    """Of `collapse` in an evaluation: what it was of the version before, which is let through where that is more."""
    level: float | None = None
    """Of the interval, where it is not 0.95: of `win_rate`, once a policy is not the first to be tried for a place."""
    verdict: str = CANNOT_TELL
    """`pass`, `fail`, or `cannot_tell` where the interval lies on both sides or nothing was measured."""
    required: bool = False
    """Whether `cannot_tell` blocks too."""
    n: int | None = field(default=None, metadata=NULL)
    """What was measured independently: prompts, paragraphs, openings, questions."""
    detectable: float | None = field(default=None, metadata=NULL)
    """The smallest distance from the border that as much data finds in 8 of 10 tries."""
    sentence: str = ""
    """All of it in words."""

    @property
    def interval(self) -> Interval | None:
        """The figure with its interval."""
        if self.value is None or self.low is None or self.high is None:
            return None
        return Interval(self.value, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What some checks come to."""

    verdict: str = CANNOT_TELL
    """`fail` where any check fails, `cannot_tell` where a required one cannot be told, `pass` otherwise."""
    failed: tuple[str, ...] = ()
    cannot_tell: tuple[str, ...] = ()
    """Required checks that cannot be told: they block as those that fail do."""

    @property
    def blocks(self) -> bool:
        """Whether nothing goes through."""
        return self.verdict != PASS


@dataclass(frozen=True, kw_only=True)
class Override:
    """A version that was promoted although the gate said no."""

    reason: str
    created_at: str
    """UTC."""
    by: str
    """The account, by its number; `this machine` for whoever works on it."""
    against: tuple[str, ...]
    """The checks that blocked."""


APPROVED, REJECTED = "approved", "rejected"


@dataclass(frozen=True, kw_only=True)
class Review:
    """What somebody decided who read the report and the answers of a version."""

    decision: str
    """`approved` or `rejected`."""
    reason: str
    created_at: str
    """UTC."""
    by: str
    """The account, by its number; `this machine` for whoever works on it."""
    against: str
    """The version that it would have replaced."""
    report: str | None = field(default=None, metadata=NULL)
    """SHA-256 of report.json as it was read; null where there was none about this version, as a rejection may be."""
    gate: Gate = field(default_factory=Gate)
    """Where it stood before the gate then."""
    read: Mapping[str, int] = field(default_factory=dict)
    """Of the pairs that were read blind, how often which answer was called better: `this`, `other`, `alike`."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Checks as they were measured at one time."""

    created_at: str = ""
    """UTC."""
    against: str | None = field(default=None, metadata=NULL)
    """The version that the measured one was compared with; null where it stands for itself."""
    gate_version: int | None = field(default=None, metadata=NULL)
    """Of the `gate.toml` by which they were held."""
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True, kw_only=True)
class People:
    """Whose verdicts were there when a version was made: counts and agreement, and nobody's name."""

    kinds: tuple[str, ...] = ()
    """`human`, `ai`, `simulated`."""
    annotators: int = 0
    comparisons: int = 0
    verdicts: Mapping[str, int] = field(default_factory=dict)
    """By choice, of the sides as shown."""
    agreement: Interval | None = None
    """Chance that two annotators of a comparison chose the same side."""
    judged: int | None = None
    """Verdicts of AI judges (`manners judge`), which stand in none of the figures above."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What people said of a version in the chat, where one of the two was a candidate: evidence, and no check."""

    version: str = ""
    """The newer of the two."""
    against: str = ""
    comparisons: int = 0
    """Times that a person was shown an answer of each."""
    unanswered: int = 0
    """Of these, those without a choice."""
    reported: int = 0
    """Beside these, those left out, about which a report was upheld."""
    people: int = 0
    """Accounts that chose, whatever they are called; by name where there are none."""
    people_for: int = 0
    """Of them, those who chose it more often than the other."""
    people_against: int = 0
    wins: int = 0
    losses: int = 0
    ties: int = 0
    """Ties, and both bad."""
    win_rate: Interval | None = field(default=None, metadata=NULL)
    """Ties as halves, the mean of the people's own rates, with a 95 % interval; null for fewer than two of them."""
    decision: str = CANNOT_TELL
    """`better`, `worse` or `cannot_tell`, by the rule that may be looked at any time, to which each person is one bet:
    the first of their choices that prefers a version."""
    decided_share: Interval | None = field(default=None, metadata=NULL)
    """Share of these bets that it won, with that rule's interval, which holds at every look."""
    sentence: str = ""
    """All of it in words."""

    def saying(self, sentence: str) -> Tried:
        """Return the same with its sentence."""
        return replace(self, sentence=sentence)


@dataclass(frozen=True, kw_only=True)
class CheckRecord:
    """All that is kept of a version's checks, in its folder (`checks.json`)."""

    measured: Mapping[str, Kept] = field(default_factory=dict)
    """By what measured them: `evaluation`, `reward`, `policy`."""
    people: People | None = None
    """None for a version of before this was kept."""
    overrides: tuple[Override, ...] = ()
    reviews: tuple[Review, ...] = ()
    """Oldest first; none is ever changed, but for words that were deleted."""
    started_by: str | None = None
    """Who started the run that made it: `account N`, or `this machine` where no account was named; None where that was
    not yet kept."""
    tried: tuple[Tried, ...] = ()
    """Beside which versions it stood in the chat."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Accuracy on a part of the outside pairs, beside the rule that prefers the longer answer."""

    name: str
    pairs: int
    accuracy: Interval
    longer: Interval
    """Accuracy of preferring the longer answer, on the same pairs."""
    confidence: float | None = None
    """Of a level of agreement: how likely it holds the answer that it prefers to be chosen there, on average."""
    calibrated: float | None = None
    """Of a level of agreement: the accuracy that it would have there were each verdict drawn by its probabilities."""


@dataclass(frozen=True, kw_only=True)
class AuditExample:
    """A case that the reward model got most wrong."""

    check: str
    prompt: str
    better: str
    """The answer that should score higher, or as high."""
    worse: str
    score_better: float
    """In units of what two answers usually differ by; of `group_AXIS`, above an answer that names nobody."""
    score_worse: float


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What a reward model likes."""

    version: str | None = None
    against: str | None = field(default=None, metadata=NULL)
    """Null: a reward model is measured by itself."""
    checks: tuple[Check, ...] | None = None
    gate: Gate | None = None
    """What the checks come to: of a file these, else with those that failed before and are not shown to pass."""
    sentence: str | None = None
    """The outcome in words."""
    source: str | None = None
    """Where the pairs come from that it is measured on: a file, or what was set aside."""
    pairs: int | None = None
    """Outside pairs."""
    changed: int | None = None
    """Of them, those that were also written in other forms and probed."""
    known_prompts: int | None = None
    """Pairs of a file about openings that have verdicts here; what it is known to have learned from is left out."""
    unit: float | None = None
    """Root mean square of its margins on the outside pairs, in units of the reward: what slopes are told in."""
    policy: str | None = None
    """Whose samples the members were compared on."""
    exchanges: int | None = None
    """Answers that were scored."""
    shortened: int | None = None
    """Of them, those that did not fit into the context."""
    left_out: Mapping[str, int] | None = None
    """Comparisons that were not used, by reason."""
    slices: tuple[Slice, ...] | None = None
    examples: tuple[AuditExample, ...] | None = None
    """The worst cases of each check."""


@dataclass(frozen=True, kw_only=True)
class BehaviourExample:
    """A case in which a policy got worse by one of the checks, or moved farthest."""

    check: str
    prompt: str
    before: str
    """What it was compared with answers, or holds for likely."""
    after: str


@dataclass(frozen=True, kw_only=True)
class Amplification:
    """How far the policy moved in a feature of its answers, beside what people's choices favoured."""

    feature: str
    """`refusal`, `reservation`, `length` or `format`."""
    change: Interval | None = None
    """Mean of its answers less that of the version compared with, to the same prompts."""
    chosen: Interval | None = None
    """Mean of what people chose less that of both answers together, in the comparisons it was taught by; null where
    there are too few."""
    share: float | None = field(default=None, metadata=NULL)
    """Of the change, what the choices alone account for; null where the one or the other cannot be told from none."""
    sentence: str = ""


@dataclass(frozen=True, kw_only=True)
class BehaviourResult:
    """How a policy behaves, beside an earlier version."""

    version: str | None = None
    against: str | None = None
    """The version that it is compared with; the initial model, unless another was named."""
    checks: tuple[Check, ...] | None = None
    """Changes from the one to the other. What fails does so after Holm's correction for their number."""
    gate: Gate | None = None
    """What the checks come to; beside the initial model with those that failed before and are not shown to pass."""
    sentence: str | None = None
    """The outcome in words."""
    languages: tuple[str, ...] | None = None
    """What the prompts, questions and rules are in: of others nothing is said."""
    asked: Mapping[str, int] | None = None
    """Prompts and questions of each kind, drawn by the seed."""
    there: Mapping[str, int] | None = None
    """How many of each kind there are, in the pack that ships and in the published sets that were found."""
    left_out: Mapping[str, int] | None = None
    """Those that did not fit into the context, and rows of a set that could not be used, by kind."""
    reward: str | None = field(default=None, metadata=NULL)
    """The reward model whose scores of answers about groups were compared; null where there is none."""
    amplification: tuple[Amplification, ...] | None = None
    """What changed in the answers, beside what people's choices favoured."""
    source: str | None = field(default=None, metadata=NULL)
    """Which version's training comparisons those choices are from; null where they are not there."""
    examples: tuple[BehaviourExample, ...] | None = None
    """The worst cases of each check."""
