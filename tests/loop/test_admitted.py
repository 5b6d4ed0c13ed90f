"""Whose verdicts train, by the record as it is when something is trained."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from manners.facts import to_facts
from manners.loop import stages
from manners.loop.admitted import admitted
from manners.loop.judging import choose
from manners.loop.round import DPO, REWARD
from manners.loop.session import Session
from manners.loop.stage import Stage
from manners.results.judge import JudgeResult
from manners.settings import DPOSettings, RewardSettings, Settings
from manners.types import JUDGE, Annotator, AnnotatorKind, AskedHow, Choice, Comparison, PromptUse, Verdict
from manners.workspace import Workspace
from tests.loop import judging, tiny

WHO = Annotator(f"{JUDGE}planted", AnnotatorKind.AI)
TURNED = {"injections": (0, 64), "flattery": (0, 64)}


def judged(some: Sequence[Comparison], right: float) -> list[Comparison]:
    """Let a judge find the better side so often."""
    found = []
    for number, one in enumerate(some):
        better = Choice.LEFT if "good" in one.left.text else Choice.RIGHT
        said = better if random.Random(f"{number} {right}").random() < right else better.swapped()
        found.append(replace(one, id=one.id or number + 1, verdicts=(*one.verdicts, Verdict(said, WHO))))
    return found


def session(root: Path, result: JudgeResult | None, chosen: Settings | None = None) -> Session:
    opened = Session(Workspace.create(root), chosen or Settings())
    if result is not None:
        opened.save_facts("judge", to_facts(result))
    return opened


def test_a_judge_is_admitted_by_the_record_and_loses_it_by_fresh_verdicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = session(tmp_path / "w", JudgeResult(judge=WHO.name, turned=TURNED, own=("nobody",)))
    good = judged(judging.comparisons(500), 0.97)
    assert admitted(opened, good) == {WHO}
    assert "its verdicts train beside people's" in capsys.readouterr().err
    drifted = judged([replace(c, id=1000 + n) for n, c in enumerate(judging.comparisons(300, start=1000))], 0.6)
    assert admitted(opened, [*good, *drifted]) == frozenset()
    said = capsys.readouterr().err
    assert "do not train" in said and "drift" in said


def measuring(one: Comparison) -> Comparison:
    return replace(one, asked_how=AskedHow.EVALUATION)


def kept(one: Comparison) -> Comparison:
    return replace(one, kept=True)


def reported(one: Comparison) -> Comparison:
    return replace(one, reported=True)


def as_it_is(one: Comparison) -> Comparison:
    return one


@pytest.mark.parametrize("what", [measuring, kept, reported, as_it_is])
def test_who_trains_is_decided_by_what_the_command_may_ask_about(
    tmp_path: Path, what: Callable[[Comparison], Comparison]
) -> None:
    """The judge is good on all that the command asks about, and errs on the rest, where it would be refused."""
    opened = session(tmp_path / "w", JudgeResult(judge=WHO.name, turned=TURNED, own=()))
    good = judged(judging.comparisons(500), 0.97)
    prompts = judging.comparisons(300, start=1000)
    if what is as_it_is:  # but what nobody but somebody in a chat has said
        opened.store.add_prompts([one.prompt for one in prompts], PromptUse.TRAIN, "chat")
    rest = judged([replace(what(one), id=1000 + n) for n, one in enumerate(prompts)], 0.6)
    assert admitted(opened, [*good, *rest]) == {WHO}
    asked = choose(rest, WHO, 600, 600, opened.store.only_in_chats())
    assert not asked.checked and not asked.rest


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, "no judge was asked yet"),
        (JudgeResult(), "no judge was asked yet"),
        (JudgeResult(judge=f"{JUDGE}another", turned=TURNED), "too little is known for agreement"),
        (JudgeResult(judge=WHO.name, turned={"injections": (40, 64)}), "it fails injections"),
        (JudgeResult(judge=WHO.name, turned={}), "injections, flattery"),  # a budget ended before it was tried
        (JudgeResult(judge=WHO.name, turned={"injections": (0, 64)}), "flattery"),
    ],
)
def test_who_does_not_train_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], result: JudgeResult | None, said: str
) -> None:
    opened = session(tmp_path / "w", result)
    assert admitted(opened, judged(judging.comparisons(300), 0.97)) == frozenset()
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("stage", [REWARD, DPO])
def test_the_plan_tells_of_what_an_admitted_judge_adds(tmp_path: Path, model: Path, stage: Stage) -> None:
    """By hand: one pass over people's pairs and the judge's, in batches of 32."""
    reward = RewardSettings(members=1, epochs=1, batch=32, learning_rate=0.003, curve=False, annotators="human+ai")
    chosen = tiny.settings(model, reward=reward, dpo=DPOSettings(passes=1, batch=32, learning_rate=0.003))
    opened = session(tmp_path / "w", JudgeResult(judge=WHO.name, turned=TURNED, own=()), chosen)
    people = judged(judging.comparisons(400), 0.98)
    alone = judged(judging.comparisons(60, people=0, start=2000), 0.98)
    opened.store.add_comparisons([replace(c, id=None) for c in (*people, *alone)])
    plan = stages.perform(opened.workspace, chosen, stage, plan=True)
    learned = plan["trained_on"] + 60
    assert (plan["judged"], plan["pair_passes"], plan["optimizer_steps"]) == (60, learned, math.ceil(learned / 32))
    by_people = replace(chosen, reward=replace(reward, annotators=None))
    plain = stages.perform(opened.workspace, by_people, stage, plan=True)
    assert "judged" not in plain and plain["pair_passes"] == plain["trained_on"] == plan["trained_on"]


@pytest.mark.long
def test_what_is_trained_says_what_a_judge_added(tmp_path: Path, model: Path) -> None:
    reward = RewardSettings(members=1, epochs=1, batch=32, learning_rate=0.003, curve=False, annotators="human+ai")
    chosen = tiny.settings(model, reward=reward)
    opened = session(tmp_path / "w", JudgeResult(judge=WHO.name, turned=TURNED, own=()), chosen)
    people = judged(judging.comparisons(400), 0.98)
    alone = judged(judging.comparisons(60, people=0, start=2000), 0.98)
    opened.store.add_comparisons([replace(c, id=None) for c in (*people, *alone)])
    facts = stages.perform(opened.workspace, chosen, REWARD)
    assert facts["judged"] == 60 and 0 < facts["judge_weight"] < 0.2 and facts["source"] == "human"
    assert facts["trained_on"] + facts["set_aside"] == 400 and facts["verdicts"] <= 2 * facts["set_aside"]
    assert not any("judge" in reason for reason in facts["left_out"])
    by_people = replace(chosen, reward=replace(reward, annotators=None))
    plain = stages.perform(opened.workspace, by_people, REWARD)
    assert "judged" not in plain and plain["set_aside"] == facts["set_aside"]
    assert plain["left_out"] == {"only verdicts of a judge that does not train": 60}
    said = tiny.read_report(Path(stages.report(opened.workspace, chosen)["facts"]).parent)["comparisons"]
    assert said["judged"] == 460 and said["source"] == "human" and said["annotators"] == 2
    page = opened.workspace.report_html.read_text(encoding="utf-8")
    assert "460 verdicts of AI judges" in page
