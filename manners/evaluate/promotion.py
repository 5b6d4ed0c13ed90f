"""Whether a version takes the current one's place: one rule, whoever judges, and a reason for each part of it.

It has to be shown better than the version that it replaces: what cannot be told there blocks. The other checks are
guards against a win that is worth nothing, and block only what is shown to fail, for few comparisons cannot tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manners.results.evaluation import Reason
from manners.types import Interval
from manners.workspace import INITIAL

HALF = 0.5
"""The win rate of two versions that are equally good."""
BESIDE_START = 0.45
"""Small steps, each better than the one before by some judge's taste, must not lead below where learning started."""
MOST_PERPLEXITY = 0.05
"""Rise of perplexity on plain text, as a share, that is no forgetting yet."""
MOST_ALIKE = 0.5
"""Share of all answers that may be the same text, or what it is for the version before where that is more."""
LEAST_VARIETY = 0.1
"""Of the version before's distinct-2: a manner of speaking keeps a half, a handful of sayings less than this."""

YES, NO, CANNOT_TELL = "yes", "no", "cannot_tell"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the rule looks at; None where nothing was asked."""

    win_rate: Interval | None
    """Over the version that would be replaced."""
    start: Interval | None
    """Over the start version."""
    replaces_start: bool
    """Whether the two are one, so that there is one comparison."""
    matched: Interval | None
    """Over the version that would be replaced, among answers of like length."""
    perplexity: Interval
    """Relative change on plain text since the initial model."""
    alike: Interval
    """Share of the most common answer."""
    alike_before: float
    variety: Interval | None
    """Distinct-2 as a share of that of the version before."""
    may_promote: bool
    """Whether the judge's word promotes at all."""


def reasons(evidence: Evidence) -> tuple[Reason, ...]:
    """Return what each part of the rule says, by where the interval lies; where neither is so, it cannot be told.

    | check | yes | no |
    |---|---|---|
    | `win_rate`, `matched_length` | above 0.5 | below 0.5 |
    | `start` | above 0.45 | below 0.5, and not above 0.45 |
    | `perplexity` | at most 0.05 | above it |
    | `collapse` | at most 0.5, or what it was before | above it |
    | `variety` | above 0.1 | below it |
    """
    found = [_above("win_rate", evidence.win_rate, HALF)]
    if not evidence.replaces_start:
        found.append(_above("start", evidence.start, BESIDE_START, fails_below=HALF))
    found += [
        _above("matched_length", evidence.matched, HALF),
        _at_most("perplexity", evidence.perplexity, MOST_PERPLEXITY),
        _at_most("collapse", evidence.alike, max(MOST_ALIKE, evidence.alike_before)),
        _above("variety", evidence.variety, LEAST_VARIETY),
    ]
    if not evidence.may_promote:
        found.append(Reason(check="judge", verdict=NO))
    return tuple(found)


def promoted(found: Sequence[Reason]) -> bool:
    """Return whether the version is promoted: it is shown to be better, and no guard is shown to fail."""
    return found[0].verdict == YES and all(reason.verdict != NO for reason in found)


def promotion_words(found: Sequence[Reason], against: str, start: str) -> str:
    """Say whether it is promoted, and if not, everything that blocks it."""
    if promoted(found):
        return "Promoted."
    words = {
        "win_rate": f"it is not shown to be better than {called(against, start)}",
        "start": f"it is shown to be worse than {called(start, start)}",
        "matched_length": "at matched length it is shown to be worse",
        "perplexity": f"perplexity on plain text rises by more than the {100 * MOST_PERPLEXITY:g} % allowed",
        "collapse": "it gives one and the same answer too often",
        "variety": "its answers have lost their variety",
        "judge": "an AI annotator's word alone promotes nothing",
    }
    blocks = [reason for reason in found if reason.verdict == NO or (reason is found[0] and reason.verdict != YES)]
    return f"Not promoted: {'; '.join(words[reason.check] for reason in blocks)}."


def perplexity_words(change: Interval) -> str:
    """Say how perplexity on plain text changed."""
    return (
        f"Perplexity on plain text changes by {100 * change.estimate:+.1f} % (95 % interval {100 * change.low:+.1f} to "
        f"{100 * change.high:+.1f})."
    )


def called(version: str, start: str) -> str:
    """Return a version as it stands in a sentence, given where learning started."""
    if version == INITIAL:
        return "the initial model"
    return f"the start version, {version}" if version == start else version


def _above(check: str, value: Interval | None, margin: float, fails_below: float | None = None) -> Reason:
    if value is None:
        return Reason(check=check, margin=margin, verdict=CANNOT_TELL)
    fails = value.high < (margin if fails_below is None else fails_below)
    return _reason(check, value, margin, holds=value.low > margin, fails=fails)


def _at_most(check: str, value: Interval, margin: float) -> Reason:
    return _reason(check, value, margin, holds=value.high <= margin, fails=value.low > margin)


def _reason(check: str, value: Interval, margin: float, holds: bool, fails: bool) -> Reason:
    verdict = YES if holds else NO if fails else CANNOT_TELL
    return Reason(check=check, value=value.estimate, low=value.low, high=value.high, margin=margin, verdict=verdict)
