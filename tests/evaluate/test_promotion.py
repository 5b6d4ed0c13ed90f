"""The one rule for promotion: what each part of it says, and what blocks, whoever judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manners.audit import gate
from manners.audit.rules import EVALUATION, rules
from manners.evaluate import judged as judging
from manners.evaluate.judged import Answered, Compared, Judgement
from manners.evaluate.promotion import Evidence, checks, level, promoted, promotion_words, reasons
from manners.evaluate.text_measures import PerplexityChange, text_measures
from manners.feedback.judges import Judge, VerdictJudge
from manners.feedback.statistics import Decision
from manners.settings import EvaluateSettings
from manners.types import (
    JUDGE,
    Annotator,
    AnnotatorKind,
    Answer,
    AskedHow,
    Bet,
    Choice,
    Comparison,
    Dialogue,
    Interval,
    Response,
    Role,
    Turn,
    Verdict,
)
from manners.workspace import Workspace
from tests.audit.test_audit_gate import version

Make = Callable[..., Answer]

BETTER, UNSURE, WORSE = Interval(0.6, 0.51, 0.7), Interval(0.5, 0.4, 0.6), Interval(0.4, 0.3, 0.49)
SOUND = Evidence(
    win_rate=BETTER,
    start=BETTER,
    replaces_start=False,
    matched=BETTER,
    perplexity=Interval(0.01, 0.0, 0.02),
    alike=Interval(0.02, 0.01, 0.03),
    alike_before=0.01,
    variety=Interval(0.9, 0.8, 1.0),
    may_promote=True,
)
KEPT = PerplexityChange(20.0, 20.2, Interval(0.01, 0.0, 0.02))
FORGOT = PerplexityChange(20.0, 24.0, Interval(0.2, 0.18, 0.22))
SETTINGS = EvaluateSettings(samples=1, bootstrap=200)


@pytest.mark.parametrize(
    ("field", "value", "check", "verdict", "goes"),
    [
        ("win_rate", BETTER, "win_rate", "yes", True),
        ("win_rate", UNSURE, "win_rate", "cannot_tell", False),
        ("win_rate", Interval(0.6, 0.5, 0.7), "win_rate", "cannot_tell", False),
        ("win_rate", WORSE, "win_rate", "no", False),
        ("win_rate", None, "win_rate", "cannot_tell", False),
        ("start", Interval(0.47, 0.451, 0.49), "start", "yes", True),
        ("start", Interval(0.47, 0.45, 0.49), "start", "no", False),
        ("start", UNSURE, "start", "cannot_tell", True),
        ("start", None, "start", "cannot_tell", True),
        ("matched", UNSURE, "matched_length", "cannot_tell", True),
        ("matched", None, "matched_length", "cannot_tell", True),
        ("matched", WORSE, "matched_length", "no", False),
        ("perplexity", Interval(0.04, 0.03, 0.05), "perplexity", "yes", True),
        ("perplexity", Interval(0.05, 0.04, 0.06), "perplexity", "cannot_tell", True),
        ("perplexity", Interval(0.07, 0.051, 0.09), "perplexity", "no", False),
        ("alike", Interval(0.6, 0.4, 0.7), "collapse", "cannot_tell", True),
        ("alike", Interval(0.9, 0.8, 0.95), "collapse", "no", False),
        ("variety", Interval(0.3, 0.2, 0.4), "variety", "yes", True),
        ("variety", Interval(0.05, 0.02, 0.08), "variety", "no", False),
        ("variety", None, "variety", "cannot_tell", True),
        ("may_promote", False, "judge", "no", False),
    ],
)
def test_each_part_of_the_rule(field: str, value: Any, check: str, verdict: str, goes: bool) -> None:
    found = reasons(replace(SOUND, **{field: value}))
    assert {reason.check: reason.verdict for reason in found if reason.verdict != "yes"}.get(check, "yes") == verdict
    assert promoted(found) is goes
    said = promotion_words(found, "policy-1", "initial")
    assert said == "Promoted." if goes else said.startswith("Not promoted: ") and said.count(";") == 0


def test_everything_that_blocks_is_said_and_one_comparison_is_one_reason() -> None:
    found = reasons(replace(SOUND, win_rate=UNSURE, start=WORSE, matched=WORSE, perplexity=Interval(0.2, 0.1, 0.3)))
    assert promotion_words(found, "policy-1", "initial") == (
        "Not promoted: it is not shown to be better than policy-1; it is shown to be worse than the initial model;"
        " at matched length it is shown to be worse; perplexity on plain text rises by more than the 5 % allowed."
    )
    assert "start" not in {reason.check for reason in reasons(replace(SOUND, start=None, replaces_start=True))}


def test_what_said_the_same_to_most_already_has_not_collapsed() -> None:
    asked_for_yes_or_no = replace(SOUND, alike=Interval(0.7, 0.65, 0.75), alike_before=0.8)
    assert promoted(reasons(asked_for_yes_or_no))


@dataclass(frozen=True)
class Marks:
    """A judge of everything that prefers the answer with more exclamation marks."""

    kind: AnnotatorKind = AnnotatorKind.SIMULATED
    source: str = "simulated"
    may_promote: bool = True
    raters: int = 1
    on_record: None = None
    noisy: Judge | None = None

    def prefers(self, prompt: Dialogue, a: Response, b: Response) -> float:
        first, second = (text.text.count("!") for text in (a, b))
        return 0.5 if first == second else float(first > second)


def judged(judge: Judge, compared: Compared, settings: EvaluateSettings, seed: int) -> Judgement:
    texts = text_measures(compared.against.answers, compared.policy.answers, settings.bootstrap, seed)
    return judging.judged(judge, compared, texts, settings)


def answered(answer: Make, version: str, texts: Sequence[str], prompts: int = 40) -> Answered:
    """Return a version that gives each of these texts to every prompt, with its number before it."""
    answers = [[answer(f"p{i}", f"{i} {text}", version) for text in texts] for i in range(prompts)]
    return Answered(version, answers, [[0.0 for _ in texts]] * prompts, 0.0)


def three(answer: Make, perplexity: PerplexityChange, start: str, against: str, policy: str) -> Compared:
    """Return a policy beside the current version and the start version, each by its answer to every prompt."""
    return Compared(
        answered(answer, "initial", [start]),
        answered(answer, "policy-1", [against]),
        answered(answer, "policy-2", [policy]),
        perplexity,
    )


def test_what_failed_before_is_said_though_nothing_fails_now() -> None:
    found = reasons(SOUND)
    assert promotion_words(found, "policy-1", "initial", gate=("collapse", "ties")) == (
        "Not promoted: share of the most common answer failed in an earlier evaluation, and is not shown to pass on as"
        " much now; the audit's check ties blocks."
    )
    now = reasons(replace(SOUND, alike=Interval(0.9, 0.8, 0.95)))
    said = promotion_words(now, "policy-1", "initial", gate=("collapse",))
    assert said == "Not promoted: it gives one and the same answer too often."


def test_on_how_much_each_check_is_measured(answer: Make) -> None:
    """What people say grows, and is counted by no number; the rest is measured on as much whoever judges."""
    compared = three(answer, replace(KEPT, paragraphs=7), "no", "yes!", "yes!!")
    texts = {"perplexity": 7, "collapse": 40, "variety": 40}
    assert judging.measured_on(VerdictJudge(()), compared) == texts
    judged_too = judging.measured_on(Marks(), compared)
    assert judged_too == texts | {"win_rate": 40, "start": 40, "matched_length": 40}
    kept = checks(reasons(SOUND), rules(), texts, SOUND.alike_before)
    assert {check.name: check.n for check in kept} == dict.fromkeys(judged_too) | texts


def test_a_later_try_says_by_which_interval_it_is_judged(tmp_path: Path) -> None:
    """The third for a place is held to 99.2 %: 2.64 standard errors on either side, where it is 1.96 at 95 %."""
    evidence = replace(SOUND, win_rate=Interval(0.6, 0.6 - 2.64 * 0.05, 0.6 + 2.64 * 0.05))
    found = {check.name: check for check in checks(reasons(evidence), rules(), {}, SOUND.alike_before, level(3))}
    rate = found.pop("win_rate")
    assert "60.0 % (99.17 % interval 46.8 to 73.2)" in rate.sentence and rate.level == level(3)
    assert rate.detectable == pytest.approx((2.64 + 0.84) * 0.05)
    assert all("(95 % interval" in check.sentence and check.level is None for check in found.values() if check.value)
    workspace = Workspace.create(tmp_path / "project")
    version(workspace, "policy-1")
    gate.keep(workspace, "policy-1", EVALUATION, [rate], "initial")
    (workspace.root / "gate.toml").write_text("version = 1\n[evaluation.win_rate]\nthreshold = 0.55\n")
    again = gate.standing(workspace, "policy-1").checks[0]
    assert again.threshold == 0.55 and (again.level, again.detectable) == (rate.level, rate.detectable)


def test_worse_than_the_current_version_is_not_promoted_though_better_than_the_start(answer: Make) -> None:
    """Before, the win rate over the start version alone decided, and is 100 % here."""
    compared = three(answer, KEPT, "no", "yes!!", "yes!")
    judgement = judged(Marks(), compared, SETTINGS, 0)
    assert {r.check: r.verdict for r in judgement.reasons} == {
        "win_rate": "no",
        "start": "yes",
        "matched_length": "cannot_tell",
        "perplexity": "yes",
        "collapse": "yes",
        "variety": "yes",
    }
    assert judgement.win_rate == 0 and not promoted(judgement.reasons)
    old_way = judged(Marks(), replace(compared, against=compared.start), SETTINGS, 0)
    assert old_way.win_rate == 1 and promoted(old_way.reasons)
    turned = judged(Marks(), three(answer, KEPT, "no", "yes!", "yes!!"), SETTINGS, 0)
    assert promoted(turned.reasons)
    assert (
        "the new version is better than policy-1" in turned.verdict
        and "Against the initial model the new" in turned.verdict
    )


def test_better_than_a_bad_current_version_and_worse_than_the_start_is_not_promoted(answer: Make) -> None:
    judgement = judged(Marks(), three(answer, KEPT, "yes!!", "no", "yes!"), SETTINGS, 0)
    assert judgement.win_rate == 1
    assert [r.verdict for r in judgement.reasons[:2]] == ["yes", "no"] and not promoted(judgement.reasons)


def test_the_noiseless_judge_says_so_and_names_the_noisy_rate_beside_its_own(answer: Make) -> None:
    compared = three(answer, KEPT, "no", "yes!", "yes!!")
    judgement = judged(Marks(noisy=Undecided()), compared, SETTINGS, 0)
    assert judgement.noisy and judgement.noisy.estimate == 0.75
    assert judgement.verdict.startswith("Judged by the taste of simulated annotators without its noise on 40 unused")
    assert "By their verdicts, with all their noise, the new version wins 75.0 %" in judgement.verdict
    plain = judged(Marks(), compared, SETTINGS, 0)
    assert plain.noisy is None and plain.verdict.startswith("Judged by simulated annotators on 40 unused prompts")


@dataclass(frozen=True)
class Undecided(Marks):
    """The same, right in three of four cases."""

    def prefers(self, prompt: Dialogue, a: Response, b: Response) -> float:
        return 0.25 + super().prefers(prompt, a, b) / 2


def asked(rng: np.random.Generator, before: str, wins: float, count: int, long: bool = False) -> list[Comparison]:
    """Return comparisons of policy-2 with a version, which policy-2 wins with this chance."""
    anna = Annotator("anna", AnnotatorKind.HUMAN)
    found = []
    for number in range(count):
        old, new = Response(f"{number} old", before), Response(f"{number} new" + " words" * 5 * long, "policy-2")
        left, right = (old, new) if rng.random() < 0.5 else (new, old)
        better = new if rng.random() < wins else old
        verdict = Verdict(Choice.LEFT if better is left else Choice.RIGHT, anna)
        bet = Bet(AnnotatorKind.HUMAN, 1.0 if better is left else -1.0, 1)
        prompt = (Turn(Role.USER, f"{before} {number}"),)
        found.append(Comparison(prompt, left, right, AskedHow.EVALUATION, 1.0, (verdict,), bets=(bet,)))
    return found


@pytest.mark.parametrize("seed", range(10))
def test_people_do_not_promote_what_forgot_its_language(answer: Make, seed: int) -> None:
    """Their bet alone decided before: ten of ten such policies were promoted."""
    record = tuple(asked(np.random.default_rng(seed), "initial", 0.9, 60))
    judge = VerdictJudge(record)
    for perplexity, goes in ((KEPT, True), (FORGOT, False)):
        start = answered(answer, "initial", ["old"])
        compared = Compared(start, start, answered(answer, "policy-2", ["new"]), perplexity)
        judgement = judged(judge, compared, SETTINGS, seed)
        assert judgement.outcome == Decision.BETTER
        assert promoted(judgement.reasons) is goes
    assert "Perplexity on plain text changes by +20.0 %" in judgement.verdict


def test_people_are_read_about_both_versions_and_at_matched_length(answer: Make) -> None:
    rng = np.random.default_rng(0)
    compared = three(answer, KEPT, "old", "old", "new")
    better = asked(rng, "policy-1", 1.0, 30)
    both = judged(VerdictJudge((*better, *asked(rng, "initial", 0.0, 30))), compared, SETTINGS, 0)
    assert [(r.check, r.verdict) for r in both.reasons[:3]] == [
        ("win_rate", "yes"),
        ("start", "no"),
        ("matched_length", "yes"),
    ]
    assert not promoted(both.reasons)
    assert "policy-2 is better than policy-1" in both.verdict and "policy-2 is worse than initial" in both.verdict
    few = judged(VerdictJudge((*better, *asked(rng, "initial", 0.5, 4))), compared, SETTINGS, 0)
    assert few.reasons[1].verdict == "cannot_tell" and promoted(few.reasons), "a guard blocks only what is shown"
    none = judged(VerdictJudge(tuple(asked(rng, "initial", 1.0, 30))), compared, SETTINGS, 0)
    assert none.win_rate is None and not promoted(none.reasons) and "Nobody has compared the two" in none.verdict


def test_people_who_like_length_alone_promote_nothing(answer: Make) -> None:
    """Ninety long answers win, and thirty of the old length lose."""
    rng = np.random.default_rng(0)
    record = [*asked(rng, "initial", 1.0, 90, long=True), *asked(rng, "initial", 0.0, 30)]
    start = answered(answer, "initial", ["old"])
    judgement = judged(
        VerdictJudge(tuple(record)), Compared(start, start, answered(answer, "policy-2", ["new"]), KEPT), SETTINGS, 0
    )
    assert judgement.outcome == Decision.BETTER and judgement.matched and judgement.matched.pairs == 30
    assert {r.check: r.verdict for r in judgement.reasons}["matched_length"] == "no"
    assert not promoted(judgement.reasons)


def test_a_policy_that_says_one_thing_to_everyone_is_not_promoted(answer: Make) -> None:
    start = answered(answer, "initial", ["old"])
    same = [[answer(f"p{i}", "yes!", "policy-2")] for i in range(40)]
    judgement = judged(
        Marks(), Compared(start, start, Answered("policy-2", same, [[0.0]] * 40, 0.0), KEPT), SETTINGS, 0
    )
    assert judgement.win_rate == 1 and not promoted(judgement.reasons)
    assert {r.check: r.verdict for r in judgement.reasons}["collapse"] == "no"


def test_an_ai_annotators_word_promotes_nothing(answer: Make) -> None:
    record = [
        replace(
            c,
            verdicts=(replace(c.verdicts[0], annotator=Annotator("opus", AnnotatorKind.AI)),),
            bets=(replace(c.bets[0], kind=AnnotatorKind.AI),),
        )
        for c in asked(np.random.default_rng(0), "initial", 1.0, 60)
    ]
    start = answered(answer, "initial", ["old"])
    compared = Compared(start, start, answered(answer, "policy-2", ["new"]), KEPT)
    judgement = judged(VerdictJudge(tuple(record), AnnotatorKind.AI, may_promote=False), compared, SETTINGS, 0)
    assert judgement.outcome == Decision.BETTER and judgement.reasons[-1].check == "judge"
    assert not promoted(judgement.reasons)
    assert "by the verdicts of the AI annotator opus" in judgement.verdict


def test_a_judges_word_stands_beside_peoples_corrected_and_decides_nothing(answer: Make) -> None:
    judge = Annotator(f"{JUDGE}m#1", AnnotatorKind.AI)
    said = Verdict(Choice.LEFT, judge, comment="P(left) 0.9")
    record = asked(np.random.default_rng(0), "initial", 0.5, 60)
    start = answered(answer, "initial", ["old"])
    compared = Compared(start, start, answered(answer, "policy-2", ["new"]), KEPT)
    alone = judged(VerdictJudge(tuple(record)), compared, SETTINGS, 0)
    beside = [replace(one, verdicts=(*one.verdicts, said)) for one in record]
    both = judged(VerdictJudge(tuple(beside)), compared, SETTINGS, 0)
    assert (both.win_rate, both.interval, both.reasons) == (alone.win_rate, alone.interval, alone.reasons)
    assert (
        "By judge:m#1, the win rate of policy-2 over initial, at one look: " in both.verdict
        and "By judge" not in alone.verdict
    )
