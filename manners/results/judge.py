"""What a judge was asked, how it stands beside people, and whether its verdicts may train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from manners.facts import NULL
from manners.results.audit import Check
from manners.types import Interval

JUDGED_BY = "the version that judges"
"""What says in the facts of a run which version of the workspace judged; none where a server did."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """How the judge stands on the answers of one version: what drifts is seen here."""

    version: str
    """The newer of the two writers, by name."""
    asked: int
    flips: Interval | None = None
    """Share without a verdict."""
    checked: int
    """With several people's verdicts and its own."""
    with_people: Interval | None = None
    """Chance that it and a person choose the same side."""
    among_people: Interval | None = None
    """Chance that two people do, on the same comparisons."""
    apart: Interval | None = None
    """The first less the second."""


@dataclass(frozen=True, kw_only=True)
class JudgedRate:
    """The win rate of a version over another as people would give it, by a judge and a part that people checked."""

    version: str
    against: str
    judge: str
    corrected: Interval | None = None
    human: Interval | None = None
    """By the checked part alone."""
    raw: float | None = None
    """The judge's own figure: not one to go by."""
    saved: int | None = None
    """How many more openings people would have to judge for as narrow an interval without the judge."""
    checked: int
    """Openings of which people judged something."""
    judged: int
    """Openings that the judge alone has judged."""
    left_out: int
    """Comparisons that a person was given because the reward model's members disagree."""
    skipped: int
    """Comparisons that people have only skipped; each counts one half."""
    sentence: str


@dataclass(frozen=True, kw_only=True)
class JudgeResult:
    """A judge beside people."""

    admitted: bool | None = None
    """Whether its verdicts may train beside people's (`reward.annotators = human+ai`)."""
    agreement: Interval | None = field(default=None, metadata=NULL)
    """Chance that it and a person choose the same side; null where too few people judged the same."""
    human_agreement: Interval | None = field(default=None, metadata=NULL)
    """Chance that two people do, on the same comparisons."""
    flip_rate: Interval | None = field(default=None, metadata=NULL)
    """Share of comparisons on which it has no verdict: the two orders disagree, or an answer could not be read."""
    length_slope: Interval | None = field(default=None, metadata=NULL)
    """How much more than people it prefers an answer of twice the length."""
    own_preference: Interval | None = field(default=None, metadata=NULL)
    """How much more than people it prefers answers of its own model; null where there are none."""
    own: tuple[str, ...] | None = None
    """Authors whose answers are of its own model."""
    judge: str | None = None
    """The name of the annotator, which hangs on model, principles and wording."""
    source: str | None = None
    """How its verdicts were read: `probabilities`, or so many `sampled` ones each."""
    sentence: str | None = None
    """The outcome in words."""
    checks: tuple[Check, ...] | None = None
    failed: tuple[str, ...] | None = None
    cannot_tell: tuple[str, ...] | None = None
    """Checks that too little is known for: it is not admitted either."""
    checked: int | None = None
    """Comparisons with several people's verdicts and one of its own."""
    needed: int | None = field(default=None, metadata=NULL)
    """Human verdicts after which a judge that agrees with people as they do, and is moved by nothing else, is admitted
    in 8 of 10 tries; null where no number is enough, since answers are equally long."""
    there: int | None = None
    """Human verdicts that can be used for it: drawn at random, the first two on a comparison."""
    asked: int | None = None
    """Comparisons that it was asked about in this run."""
    verdicts: int | None = None
    """Verdicts of this run that choose a side."""
    without_verdict: Mapping[str, int] | None = None
    """Comparisons of this run without a verdict, by reason."""
    waiting: int | None = None
    """Comparisons that it was not asked about: it is not admitted, or `judge.most` or a budget ended the run."""
    left_out: Mapping[str, int] | None = None
    """Comparisons that no judge is asked about, by reason."""
    temperature: float | None = field(default=None, metadata=NULL)
    """By which its log-odds are divided to be people's; null below 100 human verdicts."""
    requests: int | None = None
    tokens: int | None = None
    stopped: str | None = field(default=None, metadata=NULL)
    """Why the run ended early; null where it did not."""
    turned: Mapping[str, tuple[int, int]] | None = None
    """By probe: verdicts that it turned, and how many were tried."""
    panel: tuple[Panel, ...] | None = None
    win_rates: tuple[JudgedRate, ...] | None = None
    """Of the newest policy over each version that people were asked to compare it with (`--evaluation`)."""
