"""A policy has to beat the version that it would replace; other comparisons are measured, and decide nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from manners.audit import gate
from manners.audit.rules import EVALUATION, REWARD, held, rules
from manners.data import plain_text
from manners.errors import Blocked, MannersError, UsageError
from manners.feedback.judges import TasteJudge
from manners.loop import asking, rounds, stages
from manners.loop.asking import TooFew
from manners.loop.history import Begun, attempt
from manners.loop.options import EvaluateOptions
from manners.loop.session import Session
from manners.ppo.learner import Learner
from manners.settings import Settings
from manners.store import Outcome
from manners.types import (
    Annotator,
    AnnotatorKind,
    Answer,
    AskedHow,
    Choice,
    Dialogue,
    Interval,
    PromptUse,
    Response,
    Verdict,
)
from manners.workspace import Workspace
from tests.loop import tiny
from tests.ppo.scripted import keep

ANNA = Annotator("anna", AnnotatorKind.HUMAN)


@pytest.fixture(scope="module")
def twice(model: Path, moved_on: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two policies that differ from the initial model, of which the first is the current one."""
    root = shutil.copytree(moved_on, tmp_path_factory.mktemp("twice") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "offer", keep)
        workspace = Workspace.open(root)
        workspace.promote("policy-1")
        stages.train_policy(workspace, tiny.settings(model, seed=4), plan=False)
    return root


@pytest.fixture
def settings(model: Path) -> Settings:
    return tiny.settings(model)


@pytest.fixture
def second(twice: Path, tmp_path: Path) -> Workspace:
    """A copy of it."""
    return Workspace.open(shutil.copytree(twice, tmp_path / "second"))


@pytest.fixture
def taste(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the taste prefer answers by who wrote them: the first of these names most."""

    def liked(*authors: str) -> None:
        def prefers(_: TasteJudge, prompt: Dialogue, a: Response, b: Response) -> float:
            first, second = (authors.index(response.author) for response in (a, b))
            return 0.5 if first == second else float(first < second)

        monkeypatch.setattr(TasteJudge, "prefers", prefers)

    return liked


def test_worse_than_the_current_policy_is_not_promoted(
    second: Workspace, settings: Settings, taste: Callable[..., None]
) -> None:
    """Before, only the win rate over the start version counted, which is 100 % here."""
    taste("policy-1", "policy-2", "initial")
    facts = stages.evaluate(second, settings, ask=None, plan=False)
    assert (facts["against"], facts["start"], facts["win_rate"], facts["promoted"]) == ("policy-1", "initial", 0, False)
    assert set(facts["reasons"][0]) == {"check", "value", "low", "high", "margin", "verdict"}
    found = {reason["check"]: reason for reason in facts["reasons"]}
    assert found["win_rate"]["verdict"] == "no" and found["start"]["verdict"] == "yes" and found["start"]["value"] == 1
    assert facts["verdict"].count("Not promoted: it is not shown to be better than policy-1") == 1
    assert second.current_policy() == "policy-1"
    ended = Session(second, settings).store.rounds()[-1]
    assert (ended.policy, str(ended.outcome)) == ("policy-2", "rejected")


def test_an_audit_that_fails_is_no_way_round_for_the_loop(
    second: Workspace, settings: Settings, taste: Callable[..., None]
) -> None:
    """Better than the current policy, and taught by a reward model that was shown to pay for length."""
    taste("policy-2", "policy-1", "initial")
    rule = rules().of(REWARD, "length_slope")
    gate.keep(second, "reward-1", REWARD, [held("length_slope", rule, Interval(0.9, 0.7, 1.1), 60, "Length pays.")])
    facts = stages.evaluate(second, settings, ask=None, plan=False)
    assert facts["outcome"] == "better" and facts["promoted"] is False and second.current_policy() == "policy-1"
    assert "Not promoted: the audit's check length_slope blocks." in facts["verdict"]
    kept = gate.read(second, "policy-2").measured["evaluation"]
    assert kept.against == "policy-1" and [c.verdict for c in kept.checks if c.name == "win_rate"] == ["pass"]
    with pytest.raises(Blocked, match="fails: length_slope"):
        stages.models_promote(second, "policy-2")


def test_an_evaluation_on_fewer_prompts_is_no_way_round_what_failed(
    second: Workspace, settings: Settings, taste: Callable[..., None]
) -> None:
    """Better than the current policy, and shown on 500 prompts to say one thing to most."""
    taste("policy-2", "policy-1", "initial")
    rule = rules().of(EVALUATION, "collapse")
    failed = held("collapse", rule, Interval(0.9, 0.8, 0.95), 500, "Most common answer.")
    gate.keep(second, "policy-2", EVALUATION, [failed], "policy-1")
    facts = stages.evaluate(second, settings, ask=None, plan=False)
    assert facts["outcome"] == "better" and facts["promoted"] is False and second.current_policy() == "policy-1"
    assert "Not promoted: share of the most common answer failed in an earlier evaluation" in facts["verdict"]
    kept = {check.name: check for check in gate.read(second, "policy-2").measured[EVALUATION].checks}
    assert kept["collapse"] == failed
    counts = [kept[name].n for name in ("win_rate", "variety", "perplexity")]
    assert counts == [12, 12, len(plain_text(PromptUse.EVALUATE))]


def test_another_seed_is_another_try_and_the_same_one_is_not(
    second: Workspace, settings: Settings, taste: Callable[..., None]
) -> None:
    taste("policy-1", "policy-2", "initial")
    tried = [replace(settings, seed=seed) for seed in (settings.seed, 11, settings.seed)]
    first, other, again = (stages.evaluate(second, one, ask=None, plan=False) for one in tried)
    assert [facts["attempt"] for facts in (first, other, again)] == [1, 2, 1]
    assert "This is try 2 for the place of policy-1" in other["verdict"] and "This is try" not in first["verdict"]
    assert [again[name] for name in ("drawn", "reasons")] == [first[name] for name in ("drawn", "reasons")]
    assert other["drawn"] != first["drawn"]


@pytest.mark.long
def test_another_version_is_compared_with_and_nothing_decided(
    second: Workspace, settings: Settings, taste: Callable[..., None]
) -> None:
    taste("policy-1", "policy-2", "initial")
    rounds = len(Session(second, settings).store.rounds())
    facts = stages.evaluate(second, settings, ask=None, plan=False, against="initial")
    assert (facts["against"], facts["win_rate"], facts["promoted"]) == ("initial", 1, None)
    assert "start" not in {reason["check"] for reason in facts["reasons"]}, "the two comparisons are one"
    assert facts["verdict"].endswith("the version that it would replace, policy-1.")
    assert second.current_policy() == "policy-1" and len(Session(second, settings).store.rounds()) == rounds
    assert stages.status(second)["next"] == "manners evaluate"
    page = Path(stages.report(second, settings)["report"]).read_text(encoding="utf-8")
    assert "Win rate over the initial model" in page
    stages.evaluate(second, settings, ask=None, plan=False)
    assert stages.status(second)["next"] != "manners evaluate"
    page = Path(stages.report(second, settings)["report"]).read_text(encoding="utf-8")
    assert "Win rate over policy-1" in page and "Better than policy-1?" in page


def test_better_than_the_current_policy_is_promoted_and_compared_with_it_ever_after(
    second: Workspace, settings: Settings, taste: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taste("policy-2", "policy-1", "initial")
    killed = Workspace.open(shutil.copytree(second.root, tmp_path / "killed"))
    first = stages.evaluate(second, settings, ask=None, plan=False)
    assert first["promoted"] and second.current_policy() == "policy-2"
    again = stages.evaluate(second, settings, ask=None, plan=False)
    assert again["against"] == "policy-1" and tiny.steady(again) == tiny.steady(first)
    assert second.promoted() == ["policy-1", "policy-2"]

    with monkeypatch.context() as patch:
        patch.setattr(Session, "save_facts", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stages.evaluate(killed, settings, ask=None, plan=False)
    assert killed.current_policy() == "policy-2", "killed after it was promoted"
    resumed = stages.evaluate(killed, settings, ask=None, plan=False, resume=True)
    assert tiny.steady(resumed) == tiny.steady(first)
    assert len(Session(killed, settings).store.rounds()) == 2


def test_a_run_goes_on_with_the_version_that_it_was_begun_with(
    second: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Session, "save_facts", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stages.evaluate(second, settings, ask=None, plan=False, against="initial")
    with pytest.raises(MannersError, match=r"begun with the version compared with = None, and now it is policy-1"):
        stages.evaluate(second, settings, ask=None, plan=False, against="policy-1", resume=True)
    assert stages.evaluate(second, settings, ask=None, plan=False, resume=True)["against"] == "initial"


def test_what_it_cannot_be_compared_with(second: Workspace, settings: Settings) -> None:
    for name, says in (
        ("policy-2", "compare it with another version than itself"),
        ("policy-9", "there is no version policy-9"),
        ("reward-1", "reward-1 is a reward version where a policy version is needed"),
    ):
        with pytest.raises(MannersError, match=says):
            stages.evaluate(second, settings, ask=None, plan=False, against=name)
    with pytest.raises(UsageError, match="does not go with --reward"):
        EvaluateOptions(against="initial", reward="reward-1", comparisons=Path("x")).check(plan=False, resume=False)


def taught_by_people(workspace: Workspace) -> None:
    described = workspace.models / "reward-1" / "version.json"
    facts = json.loads(described.read_text(encoding="utf-8"))
    facts["metrics"]["source"] = "human"
    described.write_text(json.dumps(facts), encoding="utf-8")


def test_in_a_round_people_judge_it_against_what_it_would_replace_also_where_that_changes_meanwhile(
    second: Workspace, settings: Settings
) -> None:
    taught_by_people(second)
    session = Session(second, replace(settings, loop=replace(settings.loop, judgements=24))).at(1)
    session.store.add_prompts(tiny.prompts(60, "tea"), PromptUse.EVALUATE, "test")

    def opened() -> tuple[int, int]:
        waiting = rounds._judged_by_people(session, Begun(rounds=1), step=True)
        assert waiting is not None and waiting.what == "judgements"
        pairs = [{c.left.author, c.right.author} for c in session.store.comparisons(AskedHow.EVALUATION)]
        assert waiting.need == pairs.count({second.current_policy(), "policy-2"}) + (
            pairs.count({"initial", "policy-2"}) if second.current_policy() != "initial" else 0
        )
        return pairs.count({"policy-1", "policy-2"}), pairs.count({"initial", "policy-2"})

    assert opened() == opened() == (18, 6)
    second.roll_back()
    assert opened() == opened() == (18, 30), "against what is current now, all that are asked for"


def test_people_are_asked_about_both_and_a_guard_can_block(second: Workspace, settings: Settings) -> None:
    taught_by_people(second)
    session = Session(second, settings)
    session.store.add_prompts(tiny.prompts(60, "tea"), PromptUse.EVALUATE, "test")
    with pytest.raises(MannersError, match=r"of 9 comparisons 2 are with the start version, and 7 comparisons cannot"):
        stages.evaluate(second, settings, ask=9, plan=False)
    opened = stages.evaluate(second, settings, ask=48, plan=False)
    assert (opened["opened"], opened["against"], opened["with_start"], opened["n"]) == (48, "policy-1", 12, 36)
    asked = session.store.comparisons(AskedHow.EVALUATION)
    assert len({c.prompt for c in asked}) == 48
    pairs = [{c.left.author, c.right.author} for c in asked]
    assert (pairs.count({"policy-1", "policy-2"}), pairs.count({"initial", "policy-2"})) == (36, 12)

    order = ["initial", "policy-2", "policy-1"]
    for comparison in asked:
        left = order.index(comparison.left.author) < order.index(comparison.right.author)
        assert comparison.id is not None
        session.store.add_verdicts([(comparison.id, Verdict(Choice.LEFT if left else Choice.RIGHT, ANNA))])
    facts = stages.evaluate(second, settings, ask=None, plan=False, close=True)
    assert [(r["check"], r["verdict"]) for r in facts["reasons"][:2]] == [("win_rate", "yes"), ("start", "no")]
    assert facts["outcome"] == "better" and facts["promoted"] is False and facts["raters"] == 1
    assert "it is shown to be worse than the initial model" in facts["verdict"]
    assert second.current_policy() == "policy-1"


def different(count: int) -> Callable[[Session, str, Sequence[Dialogue]], list[Answer]]:
    """Have all versions say the same, but for the first so many prompts."""

    def answers(_: Session, version: str, prompts: Sequence[Dialogue]) -> list[Answer]:
        texts = [version if place < count else "The same." for place in range(len(prompts))]
        return [Answer(prompt, Response(text, version), (), ()) for prompt, text in zip(prompts, texts, strict=True)]

    return answers


@pytest.fixture
def judged_by_people(second: Workspace, settings: Settings) -> Session:
    """policy-2 is to be judged against policy-1 on 24 of 72 prompts, a quarter of them against the start."""
    taught_by_people(second)
    session = Session(second, replace(settings, loop=replace(settings.loop, judgements=24))).at(1)
    session.store.add_prompts(tiny.prompts(60, "tea"), PromptUse.EVALUATE, "test")
    return session


@pytest.mark.parametrize("count", [11, 21, 30])
def test_where_two_say_the_same_to_some_prompts_people_judge_the_others(
    count: int, judged_by_people: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = judged_by_people
    monkeypatch.setattr(asking, "_of_policy", different(count))
    for _ in range(2):  # a process that is started again opens no more
        waiting = rounds._judged_by_people(session, Begun(rounds=1), step=True)
        opened = session.store.comparisons(AskedHow.EVALUATION)
        with_the_other = [one for one in opened if {one.left.author, one.right.author} == {"policy-1", "policy-2"}]
        assert len(with_the_other) == min(18, count) and len(opened) == min(24, count)
        assert waiting is not None and waiting.need == len(opened)
        assert all(one.left.text != one.right.text for one in opened)


def test_where_two_say_the_same_to_nearly_all_the_round_is_over(
    judged_by_people: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three differ of 72: nobody could show anything by these, and more prompts would not help."""
    session = judged_by_people
    monkeypatch.setattr(asking, "_of_policy", different(3))
    before = len(session.store.rounds())
    assert rounds._judge(session, Begun(rounds=1), step=False) is None
    assert not session.store.comparisons(AskedHow.EVALUATION)
    ended = session.store.rounds()[-1]
    assert len(session.store.rounds()) == before + 1 and ended.outcome is Outcome.REJECTED
    assert "policy-2 and policy-1 answer 3 of 72 prompts differently" in ended.metrics["verdict"]
    assert attempt(session.store.rounds(), "policy-3", "policy-1") == 1, "it was no try"


def test_where_prompts_have_run_out_it_says_how_to_get_more(
    judged_by_people: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = judged_by_people.settings
    many = Session(judged_by_people.workspace, replace(chosen, loop=replace(chosen.loop, judgements=80))).at(1)
    monkeypatch.setattr(asking, "_of_policy", different(3))
    with pytest.raises(
        TooFew, match=r"answer 3 of 72 prompts differently .*: import more with `manners prompts import"
    ):
        rounds._judge(many, Begun(rounds=1), step=False)
    assert not many.store.comparisons(AskedHow.EVALUATION)
