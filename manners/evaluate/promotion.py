"""Whether a version takes the current one's place: what an evaluation found, held against the rules of the gate.

It has to be shown better than the version that it replaces: what cannot be told there blocks. The other checks are
guards against a win that is worth nothing, and block only what is shown to fail, for few comparisons cannot tell. Both
are so by `gate.toml` (`audit.rules`), where a workspace may ask for more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from manners.audit.review import NAME
from manners.audit.rules import CONFIDENCE, EVALUATION, Rule, Rules, held, rules
from manners.feedback.statistics import percent
from manners.results.audit import CANNOT_TELL as UNTOLD
from manners.results.audit import FAIL, PASS, Check
from manners.results.evaluation import Reason
from manners.types import Interval
from manners.workspace import INITIAL

HALF = 0.5
"""The win rate of two versions that are equally good."""

LUCK = 0.05
"""Chance at most that one of all policies which are tried for a place is promoted though none is better."""

YES, NO, CANNOT_TELL = "yes", "no", "cannot_tell"
WORDS = {PASS: YES, FAIL: NO, UNTOLD: CANNOT_TELL}
"""Verdicts of the gate, as a reason says them."""


def level(attempt: int) -> float:
    """Return the level of the interval that has to lie above one half, of the n-th policy tried for one place.

    1 - 2 LUCK / (n (n + 1)): 0.95 for the first, 0.983 for the second, 0.992 for the third. An interval of that level
    is above one half by luck with half the rest, and LUCK / (n (n + 1)) over all n adds up to LUCK. So trying until it
    works does not work: of rounds without end in which nothing gets better, one in twenty such series promotes.
    Another current version is another place, with a count of its own. Source: Bonferroni over a series, as in
    Demets & Lan 1994, "Interim analysis: the alpha spending function approach", with policies in the place of looks.
    """
    if attempt < 1:
        raise ValueError(f"attempts are counted from 1, got {attempt}")
    return 1 - 2 * LUCK / (attempt * (attempt + 1))


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the rule looks at; None where nothing was asked."""

    win_rate: Interval | None
    """Over the version that would be replaced, at `level`."""
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


def reasons(evidence: Evidence, asked: Rules | None = None) -> tuple[Reason, ...]:
    """Return what each part of the rule says, by where the interval lies; where neither is so, it cannot be told.

    By the `gate.toml` that ships, if no other is given:

    | check | yes | no |
    |---|---|---|
    | `win_rate`, `matched_length` | above 0.5 | below 0.5 |
    | `start` | above 0.45 | below 0.5, and not above 0.45 |
    | `perplexity` | at most 0.05 | above it |
    | `collapse` | at most 0.5, or what it was before | above it |
    | `variety` | above 0.1 | below it |
    """
    asked = asked or rules()

    def found(check: str, value: Interval | None, least: float = 0.0) -> Reason:
        rule = asked.of(EVALUATION, check)
        rule = replace(rule, threshold=max(rule.threshold, least))
        ends = (None, None, None) if value is None else (value.estimate, value.low, value.high)
        said = dict(zip(("value", "low", "high"), ends, strict=True))
        return Reason(check=check, **said, margin=rule.border, verdict=WORDS[rule.verdict(value)])

    return (
        found("win_rate", evidence.win_rate),
        *(() if evidence.replaces_start else (found("start", evidence.start),)),
        found("matched_length", evidence.matched),
        found("perplexity", evidence.perplexity),
        found("collapse", evidence.alike, evidence.alike_before),
        found("variety", evidence.variety),
        *(() if evidence.may_promote else (Reason(check="judge", verdict=NO),)),
    )


def checks(
    found: Sequence[Reason], asked: Rules, n: Mapping[str, int], alike_before: float, level: float = CONFIDENCE
) -> tuple[Check, ...]:
    """Return an evaluation's reasons as the gate keeps them; n says by name on how much they were measured.

    `alike_before` is the version before's share of its most common answer; `level` is that of the win rate's interval.
    """
    before, at = {"collapse": alike_before}, {"win_rate": level}
    return tuple(
        _check(
            reason,
            asked.of(EVALUATION, reason.check),
            n.get(reason.check),
            before.get(reason.check),
            at.get(reason.check, CONFIDENCE),
        )
        for reason in found
    )


def _check(reason: Reason, rule: Rule, n: int | None, before: float | None, level: float) -> Check:
    what = SENTENCES.get(reason.check, reason.check)
    if reason.check == "judge":
        told = held("judge", rule, None, None, what)
        return replace(told, verdict=FAIL, sentence=what)
    value = None
    if reason.value is not None and reason.low is not None and reason.high is not None:
        value = Interval(reason.value, reason.low, reason.high)
    if before is not None:
        rule = replace(rule, threshold=max(rule.threshold, before))
    figure = "nothing was measured." if value is None else f"{percent(value, level)}."
    return replace(held(reason.check, rule, value, n, f"{what}: {figure}", level), before=before)


SENTENCES = {
    "win_rate": "Win rate over the version that it would replace",
    "start": "Win rate over the start version",
    "matched_length": "Win rate at matched length",
    "perplexity": "Relative change of perplexity on plain text since the initial model",
    "collapse": "Share of the most common answer",
    "variety": "Distinct-2 as a share of what it was",
    "judge": "An AI annotator's word alone promotes nothing.",
}


OTHERS = {NAME: "no reviewer has approved it (`/review`)"}
"""What is said of checks that are neither an evaluation's nor an audit's."""


def promoted(found: Sequence[Reason]) -> bool:
    """Return whether an evaluation lets a version through: what is required is shown, and no guard is shown to fail.

    By what ships; `audit.gate` decides, which knows the workspace's rules and the other checks of a version.
    """
    asked = rules()
    return not any(_blocks(reason, asked) for reason in found)


def _blocks(reason: Reason, asked: Rules) -> bool:
    return reason.verdict == NO or (reason.verdict != YES and asked.of(EVALUATION, reason.check).required)


def promotion_words(
    found: Sequence[Reason], against: str, start: str, asked: Rules | None = None, gate: Sequence[str] = ()
) -> str:
    """Say whether it is promoted, and if not, everything that blocks it; `gate` names all by which the gate does."""
    asked = asked or rules()
    blocks = [reason for reason in found if _blocks(reason, asked)]
    others = [name for name in gate if name not in {reason.check for reason in blocks}]
    if not blocks and not others:
        return "Promoted."
    most = asked.of(EVALUATION, "perplexity").border
    words = {
        "win_rate": f"it is not shown to be better than {called(against, start)}",
        "start": f"it is shown to be worse than {called(start, start)}",
        "matched_length": "at matched length it is shown to be worse",
        "perplexity": f"perplexity on plain text rises by more than the {100 * most:g} % allowed",
        "collapse": "it gives one and the same answer too often",
        "variety": "its answers have lost their variety",
        "judge": "an AI annotator's word alone promotes nothing",
    }
    said = [words[r.check] if r.verdict == NO or r.check == "win_rate" else _untold(r.check) for r in blocks]
    said += [_other(name) for name in others]
    return f"Not promoted: {'; '.join(said)}."


def attempt_words(found: Sequence[Reason], attempt: int, place: str) -> str:
    """Say by which interval a policy is judged where it is not the first try for a place; nothing of the first."""
    rate = next((reason for reason in found if reason.check == "win_rate"), None)
    if attempt == 1 or rate is None or rate.low is None or rate.high is None:
        return ""
    return (
        f"This is try {attempt} for the place of {place}, and trying again is a way to win by luck: the"
        f" {100 * level(attempt):.4g} % interval counts, {100 * rate.low:.1f} to {100 * rate.high:.1f}. "
    )


def _other(name: str) -> str:
    """Say that a check blocks which does not by what was measured now."""
    if name in SENTENCES:
        return f"{SENTENCES[name].lower()} failed in an earlier evaluation, and is not shown to pass on as much now"
    return OTHERS.get(name, f"the audit's check {name} blocks")


def _untold(check: str) -> str:
    return f"{SENTENCES[check].lower()} is required, and cannot be told"


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
