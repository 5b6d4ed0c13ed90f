"""The loop with people: their verdicts teach, and their blind verdicts judge."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from manners.errors import MannersError
from manners.evaluate.compare import WHO
from manners.loop import asking, stages
from manners.loop.session import Session
from manners.models import versions
from manners.ppo.learner import Learner
from manners.settings import Settings
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict
from manners.workspace import Workspace
from tests.loop import tiny
from tests.ppo.scripted import keep

ANNA = Annotator("anna", AnnotatorKind.HUMAN)
BEN = Annotator("ben", AnnotatorKind.HUMAN)


@pytest.fixture(scope="module")
def taught(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A project in which Anna's verdicts have made a reward model and a policy."""
    session = tiny.project(tmp_path_factory.mktemp("people") / "project", model)
    stages.sample(session.workspace, session.settings, crowd=False, plan=False)
    answer(session, lambda c: Choice.LEFT if len(c.left.text) > len(c.right.text) else Choice.RIGHT)
    facts = stages.train_reward(session.workspace, session.settings, plan=False)
    assert facts["source"] == "human"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "offer", keep)
        stages.train_policy(session.workspace, session.settings, plan=False)
    return session


def answer(session: Session, choose: object) -> None:
    """Have Anna answer every comparison that she has not answered."""
    assert callable(choose)
    waiting: list[Comparison] = [c for c in session.store.comparisons() if not c.verdicts]
    session.store.add_verdicts([(c.id, Verdict(choose(c), ANNA)) for c in waiting if c.id is not None])


def test_people_judge_what_people_taught_and_come_before_an_ai_annotator(
    taught: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, settings = taught.workspace, taught.settings
    assert stages.status(workspace)["next"] == "manners evaluate"
    facts = stages.evaluate(workspace, settings, ask=None, plan=False)
    assert "Nobody has compared the two versions yet" in facts["verdict"]
    assert (facts["source"], facts["promoted"]) == ("none", False)
    assert not facts.keys() & {"win_rate", "taste_before"}, "there is no hidden taste to look at"
    assert taught.store.rounds() == [], "a round ends with a judgement"

    with pytest.raises(MannersError, match="ask for at least"):
        stages.evaluate(workspace, settings, ask=2, plan=False)
    opened = stages.evaluate(workspace, settings, ask=10, plan=False)
    assert opened["opened"] == 10
    assert 0.5 < opened["detectable_win_rate"] <= 1
    assert opened["sentence"].startswith("10 decided comparisons find a difference in 8 of 10 tries")
    asked = taught.store.comparisons(AskedHow.EVALUATION)
    assert {frozenset((c.left.author, c.right.author)) for c in asked} == {frozenset(("initial", "policy-1"))}
    assert len({c.left.author for c in asked}) == 2, "sides are drawn by coin"

    facts = stages.evaluate(workspace, settings, ask=None, plan=False)
    assert facts["outcome"] == "cannot_tell"
    assert facts["interval"] == [0.0, 1.0]
    assert stages.status(workspace)["next"].startswith(
        "manners serve, for people to judge the 10 comparisons of policy-1 that lack verdicts"
    )

    for_new = {c.id: Choice.LEFT if c.left.author == "policy-1" else Choice.RIGHT for c in asked}
    answer(taught, lambda c: for_new[c.id])
    facts = stages.evaluate(workspace, settings, ask=None, plan=False)
    assert (facts["outcome"], facts["raters"]) == ("cannot_tell", 0), "two verdicts each are asked for"
    assert "10 of the unanswered have too few verdicts so far" in facts["verdict"]
    assert "10 comparisons of policy-1 that lack" in stages.status(workspace)["next"], "one verdict each of two"

    _refused_it_closes_nothing(taught)
    _of_another_study(taught)
    facts = stages.evaluate(workspace, settings, ask=None, plan=False, close=True)
    assert [c.bets for c in _of_another_study(taught)] == [()], "that waits for more verdicts still"
    low, high = facts["interval"]
    assert 0.5 < low < facts["win_rate"] == high == 1
    assert (facts["source"], facts["promoted"], facts["raters"]) == ("human", True, 1)
    assert "by the verdicts of one person" in facts["verdict"]
    assert taught.workspace.current_policy() == "policy-1"
    assert stages.status(workspace)["next"] == "manners report"
    rounds = len(taught.store.rounds())

    # Ben comes after all bets are placed: nothing changes but the words that say so.
    taught.store.add_verdicts([(key, Verdict(choice.swapped(), BEN)) for key, choice in for_new.items() if key])
    again = stages.evaluate(workspace, settings, ask=None, plan=False)
    assert [again[key] for key in ("interval", "win_rate", "promoted", "raters")] == [
        facts[key] for key in ("interval", "win_rate", "promoted", "raters")
    ]
    assert "10 verdicts came after their comparison was counted" in again["verdict"]
    assert {r.policy for r in taught.store.rounds()[rounds - 1 :]} == {"policy-1"}

    stages.report(workspace, settings)
    report = tiny.read_report(workspace.root)
    assert report["comparisons"]["source"] == "human"
    assert report["comparisons"]["total"] == 24, "an evaluation is not taught from"
    assert stages.train_reward(workspace, settings, plan=True)["comparisons"] == 24

    _an_ai_annotator_has_no_say(taught, monkeypatch)


def _refused_it_closes_nothing(taught: Session) -> None:
    """Bets are for good: none is placed where another process trains, nor where a run is to be gone on with first."""
    unfinished = taught.workspace.runs / "evaluation" / "checkpoint-1"
    with taught.workspace.run_lock("ppo"), pytest.raises(MannersError, match="is training in"):
        stages.evaluate(taught.workspace, taught.settings, ask=None, plan=False, close=True)
    unfinished.mkdir(parents=True)
    (unfinished / "checkpoint.json").write_text("{}", encoding="utf-8")
    with pytest.raises(MannersError, match="holds an unfinished run"):
        stages.evaluate(taught.workspace, taught.settings, ask=None, plan=False, close=True)
    shutil.rmtree(unfinished.parent)
    assert not any(one.bets for one in taught.store.comparisons(AskedHow.EVALUATION))


def _of_another_study(taught: Session) -> list[Comparison]:
    """Return a comparison of the policy with a version that it is not evaluated against; Anna alone has answered."""
    prompt = (Turn(Role.USER, "What is kept for another study?"),)
    left, right = (Response(text, author) for text, author in (("This.", "policy-1"), ("That.", "dpo-1")))
    once = replace(Comparison(prompt, left, right, AskedHow.EVALUATION), verdicts=(Verdict(Choice.LEFT, ANNA),))
    taught.store.merge_comparisons([once])
    return [c for c in taught.store.comparisons(AskedHow.EVALUATION) if c.prompt == prompt]


def test_who_closes_a_study_closes_no_other(model: Path, tmp_path: Path) -> None:
    session = tiny.project(tmp_path / "project", model)
    prompts = [(Turn(Role.USER, f"Which is better, {i}?"),) for i in range(3)]
    pairs = ("sft-1", "initial"), ("sft-2", "sft-1"), ("initial", "sft-1")
    studies = [
        replace(
            Comparison(prompt, Response("Yes.", left), Response("No.", right), AskedHow.EVALUATION),
            verdicts=(Verdict(Choice.RIGHT, ANNA),),
        )
        for prompt, (left, right) in zip(prompts, pairs, strict=True)
    ]
    session.store.merge_comparisons(studies)
    asking.close(session, "sft-1", "initial")
    placed = {c.prompt: [bet.stake for bet in c.bets] for c in session.store.comparisons()}
    assert [placed[prompt] for prompt in prompts] == [[-1.0], [], [-1.0]], "Anna likes the right one"
    asking.close(session, "sft-1", "sft-2")
    assert all(len(c.bets) == 1 for c in session.store.comparisons())


def _an_ai_annotator_has_no_say(taught: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same project, had the model been taught by an AI annotator, who dislikes the new version everywhere."""
    known = versions.describe

    def describe(workspace: Workspace, name: str) -> versions.Version:
        found = known(workspace, name)
        return replace(found, metrics={**found.metrics, "source": "ai"})

    monkeypatch.setattr(versions, "describe", describe)
    model = Annotator("judge-x", AnnotatorKind.AI)
    asked = taught.store.comparisons(AskedHow.EVALUATION)
    liked = [(c.id, Choice.RIGHT if c.left.author == "policy-1" else Choice.LEFT) for c in asked]
    taught.store.add_verdicts([(key, Verdict(choice, model)) for key, choice in liked if key])
    facts = stages.evaluate(taught.workspace, taught.settings, ask=None, plan=False)
    assert (facts["source"], facts["outcome"], facts["raters"]) == ("human", "better", 1)
    assert "by the verdicts of one person, policy-1 wins 10 of 10" in facts["verdict"]
    assert f"10 verdicts of {WHO[AnnotatorKind.AI]} are left out" in facts["verdict"]
    assert facts["promoted"] is True, "what an AI annotator thinks has no say beside people"


@pytest.mark.parametrize(("tried", "least"), [(1, 13), (2, 16), (3, 18)])
def test_the_number_that_is_advised_can_be_asked_for(
    copy: Workspace, settings: Settings, tried: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter is with the start version; of the rest 10, 12 and 14 are the fewest that can show anything."""
    second = shutil.copytree(copy.models / "policy-1", copy.models / "policy-2")
    file = second / "version.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"name": "policy-2"}), encoding="utf-8")
    copy.promote("policy-1")
    monkeypatch.setattr(asking, "attempt", lambda *_: tried)
    monkeypatch.setattr(asking, "evaluation_prompts", lambda _: 1 / 0)
    session = Session(copy, settings)
    for count in (2, 10, least - 1):
        with pytest.raises(MannersError, match=f"ask for at least {least}$"):
            asking.open_for_people(session, count)
    with pytest.raises(ZeroDivisionError):
        asking.open_for_people(session, least)
