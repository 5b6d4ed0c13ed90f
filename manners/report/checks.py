"""The questions that the report answers, each with yes, no, or cannot tell."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from manners.evaluate import forgetting
from manners.evaluate.promotion import HALF, called
from manners.report.words import difference, interval, number, pair, points, relative_change, with_interval
from manners.results import RewardResult
from manners.results.evaluation import BestOfN, EvaluationResult, Forgetting, Reason
from manners.types import Interval


class Standing(StrEnum):
    """What an interval says about a question; `Cannot tell` is an answer."""

    YES = "yes"
    UNCLEAR = "cannot tell"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Check:
    """One question to settle before shipping, with its answer and the figures that it rests on."""

    question: str
    standing: Standing
    evidence: str


def standing(value: Interval | None, reference: float) -> Standing:
    """Return whether `value` is above `reference`: yes or no only where the whole interval agrees."""
    if value is None or not value.excludes(reference):
        return Standing.UNCLEAR
    return Standing.YES if value.low > reference else Standing.NO


def checks(evaluation: EvaluationResult) -> list[Check]:
    """Return what decided about the policy, and what else should hold before it is shipped; unmeasured is left out."""
    found = [_reason(evaluation, reason) for reason in evaluation.reasons or ()]
    ours = pair(evaluation.win_rate, evaluation.interval)
    rival = evaluation.best_of_n or BestOfN()
    question = f"Better than best of {rival.n}?"
    if direct := interval(rival.head_to_head):
        found.append(Check(question, standing(direct, HALF), f"{with_interval(direct)} head to head"))
    elif ours and (theirs := interval(rival.win_rate)):
        found.append(Check(question, _apart(ours, theirs), f"{with_interval(ours)} against {with_interval(theirs)}"))
    content = evaluation.content_before, evaluation.content_after, evaluation.content_change
    if (check := _not_down("Content not worse?", *content)) is not None:
        found.append(check)
    return found


def _reason(evaluation: EvaluationResult, reason: Reason) -> Check:
    """Return a part of the rule for promotion as a question."""
    against, start = evaluation.against or "", evaluation.start or ""
    margin = f"{100 * (reason.margin or 0):g} %"
    question = {
        "win_rate": f"Better than {called(against, start)}?",
        "start": f"Above {margin} against {called(start, start)}?",
        "matched_length": "Better at equal length?",
        "perplexity": f"Perplexity on plain text at most {margin} up?",
        "collapse": f"Most common answer at most {margin} of all?",
        "variety": f"Variety above {margin} of what it was?",
        "judge": "May this judge promote?",
    }.get(reason.check, reason.check.replace("_", " "))
    value = interval({"estimate": reason.value, "low": reason.low, "high": reason.high})
    evidence = relative_change(value) if reason.check == "perplexity" else with_interval(value)
    return Check(question, STANDINGS.get(reason.verdict, Standing.UNCLEAR), evidence)


def losses(lost: Forgetting | None) -> list[Check]:
    """Return what may have been lost beside what was learnt: whether each stayed within its margin."""
    return [
        Check(
            f"{capitalised(forgetting.WORDS.get(c.check, c.check.replace('_', ' ')))}: kept?",
            LOSSES.get(c.verdict, Standing.UNCLEAR),
            f"{number(c.before)} \N{RIGHTWARDS ARROW} {number(c.after)}, "
            f"{relative_change(c.change) if c.check == 'perplexity' else difference(c.change)}",
        )
        for c in (lost or Forgetting()).checks or ()
    ]


def capitalised(words: str) -> str:
    """Return words as they begin a sentence."""
    return words[:1].upper() + words[1:]


LOSSES = {forgetting.WITHIN: Standing.YES, forgetting.WORSE: Standing.NO}
STANDINGS = {"yes": Standing.YES, "no": Standing.NO}


def rivals(reward: RewardResult) -> list[Check]:
    """Return, for each rule that needs no model, whether the reward model agrees with more of the same verdicts."""
    gains = {name: interval(value) for name, value in (reward.gains or {}).items()}
    return [
        Check(BASELINES.get(name, name.replace("_", " ")), standing(gain, 0.0), points(gain))
        for name, gain in gains.items()
        if gain
    ]


BASELINES = {
    "longer_wins": "Longer wins",
    "shorter_wins": "Shorter wins",
    "length_and_finish": "Length and finish flag",
    "always_left": "Always left",
}


def _apart(ours: Interval | None, theirs: Interval) -> Standing:
    """Return whether ours is higher: yes or no only where the two intervals do not touch (a strict reading)."""
    if ours is None or (ours.low <= theirs.high and theirs.low <= ours.high):
        return Standing.UNCLEAR
    return Standing.YES if ours.low > theirs.high else Standing.NO


def _not_down(question: str, before: float | None, after: float | None, change: Interval | None) -> Check | None:
    """Return whether a mean did not fall: by the interval of its change, or, where that is lacking, by the means."""
    if before is None or after is None:
        return None
    evidence = f"{number(before)} \N{RIGHTWARDS ARROW} {number(after)}"
    if known := interval(change):
        return Check(question, standing(known, 0.0), f"{evidence}, {difference(known)}")
    return Check(question, Standing.YES if after >= before else Standing.NO, evidence)
