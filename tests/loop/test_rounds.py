"""Rounds one after the other: what they accumulate, where they begin, what they wait for, and kill -9 anywhere."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from manners.cli import main
from manners.data import questions
from manners.errors import MannersError
from manners.facts import Facts
from manners.feedback import crowd
from manners.loop import evaluate, history, rounds
from manners.loop.round import PPO
from manners.loop.rounds import Asked
from manners.loop.session import Session
from manners.loop.stage import execute
from manners.models import versions
from manners.ppo.learner import Learner
from manners.settings import DataSettings, LoopSettings, Settings
from manners.store import Outcome
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, PromptUse, Verdict
from manners.workspace import Workspace
from tests.loop import tiny
from tests.loop.test_restart import contents
from tests.ppo.scripted import keep

THREE = Asked(rounds=3, crowd=True)
PROMPTS = {use: some[: {PromptUse.TRAIN: 12, PromptUse.VALIDATE: 3}.get(use, 6)] for use, some in tiny.PROMPTS.items()}


def small(model: Path, **stages: Any) -> Settings:
    """The tiny settings, smaller; a round asks about 9 of 12 prompts."""
    chosen = tiny.settings(model, checkpoint_every=0.0)
    prose = model.parent / "prose.txt"
    prose.write_text("\n\n".join(f"In the year {n} the sea was calm, and bread was cheap." for n in range(60)))
    return replace(
        chosen,
        data=DataSettings(prose=str(prose)),
        reward=replace(chosen.reward, members=1, epochs=1),
        ppo=replace(chosen.ppo, updates=1, batch=8, epochs=1),
        evaluate=replace(chosen.evaluate, samples=1, bootstrap=100),
        sample=replace(chosen.sample, max_new_tokens=4),
        loop=LoopSettings(prompts=9),
        **stages,
    )


@pytest.fixture(scope="module", autouse=True)
def _everything_wins() -> Iterator[None]:
    """The last policy of a run is kept, better or not, and the gate asks for nothing: every round promotes.

    A model that babbles learns too little to be shown better in so few answers; what promotes is tested elsewhere.
    """
    few = questions()[:6]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(crowd.TASTES, tiny.FIGURES.name, tiny.FIGURES)
        patch.setattr(Learner, "offer", keep)
        # Half of the time of so small a round: forgetting is measured on fewer questions, and no report is drawn.
        patch.setattr(evaluate, "questions", lambda: few)
        patch.setattr(rounds, "report", lambda *_: None)
        yield


GATE = "\n".join(
    f'[evaluation.{name}]\nbetter = "{better}"\nthreshold = {end}\nrequired = false\nmargin = 0.0'
    for name, better, end in [
        ("win_rate", "above", -1.0),
        ("start", "above", -1.0),
        ("matched_length", "above", -1.0),
        ("perplexity", "below", 1000.0),
        ("collapse", "below", 2.0),
        ("variety", "above", -1.0),
    ]
).replace("start]", "start]\nfails = -1.0")


def project(root: Path, model: Path, *, promotes: bool = True) -> Workspace:
    session = tiny.project(root, model, PROMPTS)
    if promotes:
        (root / "gate.toml").write_text("version = 1\n" + GATE)
    session.store.close()
    return session.workspace


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A workspace with prompts in which nothing was done; not to be changed."""
    return project(tmp_path_factory.mktemp("fresh") / "loop", model).root


@pytest.fixture(scope="module")
def looped(tmp_path_factory: pytest.TempPathFactory, model: Path, fresh: Path) -> tuple[Path, Facts]:
    """The workspace of three rounds that were never stopped, and what came of them; not to be changed."""
    root = shutil.copytree(fresh, tmp_path_factory.mktemp("looped") / "loop")
    return root, rounds.play(Session(Workspace.open(root), small(model)), THREE)


def test_three_rounds_are_what_programs_are_told(looped: tuple[Path, Facts]) -> None:
    root, facts = looped
    told = facts["rounds"]
    assert [one["round"] for one in told] == [1, 2, 3]
    assert [one["policy"] for one in told] == ["policy-1", "policy-2", "policy-3"]
    assert [one["reward"] for one in told] == ["reward-1", "reward-2", "reward-3"]
    assert {one["outcome"] for one in told} == {"promoted"} and facts["current"] == "policy-3"
    assert all(one["interval"][0] <= one["win_rate"] <= one["interval"][1] for one in told)
    assert all(one["gate"]["verdict"] == "pass" and abs(one["kl"]) > 1e-6 for one in told)
    assert facts["waiting_for"] is None and "3 rounds are played" in facts["stopped"]
    session = Session(Workspace.open(root), Settings())
    assert [one.outcome for one in session.store.rounds()] == [Outcome.PROMOTED] * 3
    session.store.close()


def test_verdicts_accumulate_and_none_is_replaced(looped: tuple[Path, Facts]) -> None:
    """Each reward model has seen every verdict that was there: two of each comparison."""
    root, facts = looped
    session = Session(Workspace.open(root), Settings())
    authors: dict[str | None, list[Comparison]] = {}
    for comparison in session.store.comparisons():
        authors.setdefault(comparison.left.author, []).append(comparison)
    assert authors.keys() == {"initial", "policy-1", "policy-2"}, "each promoted policy was asked about"
    up_to, expected = 0, []
    for author in ("initial", "policy-1", "policy-2"):
        up_to += sum(len(one.verdicts) for one in authors[author])
        expected.append(up_to)
    assert [one["verdicts"] for one in facts["rounds"]] == expected
    for name, count in zip(("reward-1", "reward-2", "reward-3"), expected, strict=True):
        assert versions.describe(session.workspace, name).watermark == count
    session.store.close()


def test_fresh_prompts_come_first_and_known_ones_when_none_is_left(looped: tuple[Path, Facts]) -> None:
    """Of 12 prompts 9 are asked first, then the 3 that are left, then known ones of the policy of then."""
    root, _ = looped
    session = Session(Workspace.open(root), Settings())
    asked = {
        author: {c.prompt for c in session.store.comparisons() if c.left.author == author}
        for author in ("initial", "policy-1", "policy-2")
    }
    first, second, third = asked.values()
    assert 0 < len(first) <= 9 and 0 < len(second) <= 3 and not first & second
    assert third and third <= first | second
    session.store.close()


def test_each_policy_grows_on_the_promoted_one_with_its_kl_to_the_initial_model(
    looped: tuple[Path, Facts], model: Path
) -> None:
    """The KL of round 3, computed anew from the two models' log-probabilities of the answers that were judged."""
    root, _ = looped
    workspace = Workspace.open(root)
    described = [versions.describe(workspace, f"policy-{n}") for n in (1, 2, 3)]
    assert [(one.parent, one.start) for one in described] == [
        ("initial", "initial"),
        ("policy-1", "initial"),
        ("policy-2", "initial"),
    ]
    # Weights: what round 3 began as is nearer to policy-3 than the initial model is, by construction of small steps.
    session = Session(workspace, small(model))
    branches = [
        versions.load_policy(workspace, name, session.pretrained) for name in ("initial", "policy-2", "policy-3")
    ]
    initial, before, after = (torch.cat([p.flatten() for p in b.parameters()]) for b in branches)
    assert (after - before).norm() < (after - initial).norm()


@pytest.mark.long
def test_the_reference_of_the_kl_is_the_initial_model_in_every_round(
    looped: tuple[Path, Facts], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round 4 with a step of nothing: its policy is policy-3, so its KL at the start is that of policy-3, not 0."""
    root = shutil.copytree(looped[0], tmp_path / "loop")
    chosen = small(model)
    still = replace(chosen, ppo=replace(chosen.ppo, learning_rate=0.0))
    facts = rounds.play(Session(Workspace.open(root), still), replace(THREE, rounds=4))
    third, fourth = facts["rounds"][2:]
    assert fourth["kl"] == pytest.approx(third["kl"], rel=1e-4)
    assert third["kl"] > 1e-3


def test_the_same_command_again_plays_nothing_more(looped: tuple[Path, Facts], model: Path, tmp_path: Path) -> None:
    root = shutil.copytree(looped[0], tmp_path / "loop")
    before = contents(root)
    again = rounds.play(Session(Workspace.open(root), small(model)), THREE)
    assert again["rounds"] == looped[1]["rounds"]
    assert _steady(contents(root)) == _steady(before)


def _steady(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in ("runs/loop.json", "report.json")}


def run(*words: str | Path) -> int:
    return main(["loop", *map(str, words)])


def test_a_second_loop_says_who_holds_the_lock(
    looped: tuple[Path, Facts], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(looped[0], tmp_path / "loop")
    with Workspace.open(root).run_lock("loop"):
        assert run("--rounds", "9", "--crowd", "--workspace", root) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"`loop`, process {os.getpid()}, is training in {root}" in said


def test_the_command_and_the_status_say_the_same(
    looped: tuple[Path, Facts], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row's keys are those that programs are promised."""
    root = shutil.copytree(looped[0], tmp_path / "loop")
    assert run("--rounds", "3", "--crowd", "--json", "--workspace", root) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.keys() >= {"rounds", "waiting_for"}
    promised = {"round", "policy", "reward", "verdicts", "win_rate", "interval", "kl", "gate", "outcome"}
    assert all(promised <= row.keys() for row in told["rounds"])
    assert main(["status", "--json", "--workspace", str(root)]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["loop"]["rounds"] == told["rounds"] and status["loop"]["waiting_for"] is None
    assert status["loop"]["to_play"] == 0


def test_a_stage_that_was_begun_by_hand_is_not_taken_for_the_loops(
    looped: tuple[Path, Facts], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(looped[0], tmp_path / "loop")
    session = Session(Workspace.open(root), small(model))
    monkeypatch.setattr(versions, "save", _dies)
    with pytest.raises(ZeroDivisionError):
        execute(PPO, session)
    with pytest.raises(MannersError, match=r"of no round of the loop: go on with `manners ppo --resume`"):
        rounds.play(session, replace(THREE, rounds=4))
    with pytest.raises(MannersError, match=r"of no round of the loop"):
        execute(PPO, session.at(4), resume=True)


def _dies(*_: object) -> None:
    raise ZeroDivisionError


def judges(session: Session, count: int, how: AskedHow) -> None:
    """Somebody gives verdicts on so many comparisons that have none, always for the longer answer."""
    who = [Annotator(name, AnnotatorKind.HUMAN) for name in ("anna", "ben", "cleo")]
    waiting = [c for c in session.store.comparisons(how) if not c.verdicts][:count]
    given = []
    for one in waiting:
        choice = Choice.LEFT if len(one.left.text) >= len(one.right.text) else Choice.RIGHT
        given += [(one.id or 0, Verdict(choice, person)) for person in who]
    session.store.add_verdicts(given)


def test_with_people_it_waits_for_verdicts_and_for_their_judgement(
    fresh: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step by step: 12 new verdicts, then the policy's comparisons; what it waits for is what the status says."""
    root = shutil.copytree(fresh, tmp_path / "loop")
    chosen = small(model)
    chosen = replace(chosen, loop=replace(chosen.loop, verdicts=12, judgements=10))
    session = Session(Workspace.open(root), chosen)
    session.store.add_prompts(tiny.prompts(18, "hill"), PromptUse.EVALUATE, "test")

    def step() -> Facts:
        return rounds.play(session, Asked(rounds=1, step=True))

    def status() -> Any:
        return history.facts(session.workspace, session.store, chosen)["waiting_for"]

    waiting = step()["waiting_for"]
    assert (waiting["what"], waiting["have"], waiting["need"]) == ("verdicts", 0, 12)
    assert "0 of 12 new ones" in waiting["sentence"] and status() == waiting
    judges(session, 2, AskedHow.RANDOM)
    assert step()["waiting_for"]["have"] == 6
    opened = session.store.comparisons()
    judges(session, 9, AskedHow.RANDOM)
    waiting = step()["waiting_for"]
    assert (waiting["what"], waiting["have"], waiting["need"]) == ("judgements", 0, 10)
    assert status() == waiting
    assert len(session.store.comparisons(AskedHow.EVALUATION)) == 10
    assert step()["waiting_for"] == waiting, "they are opened once"
    assert len(session.store.comparisons()) == len(opened) + 10
    judges(session, 10, AskedHow.EVALUATION)
    ended = step()
    assert ended["waiting_for"] is None and len(ended["rounds"]) == 1
    assert ended["rounds"][0]["verdicts"] == 3 * len(session.store.comparisons(AskedHow.RANDOM))
    assert session.store.rounds()[0].metrics["source"] == "human"


def in_a_process(root: Path, settings: Settings) -> int:
    """Play on, in a process of its own; return its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            rounds.play(Session(Workspace.open(root), settings), THREE)
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> bool:
    """Whether a process has ended; it must not have failed."""
    done, status = os.waitpid(child, os.WNOHANG)
    assert not done or status == 0
    return bool(done)


def killed_at(draw: random.Random, root: Path, settings: Settings, most: float, kills: int) -> int:
    """Kill a loop at random moments, and let it end at last; return how many kills have hit it."""
    hit = 0
    for _ in range(kills):
        child, end = in_a_process(root, settings), time.monotonic() + draw.uniform(0, most)
        while time.monotonic() < end and not (over := ended(child)):
            time.sleep(0.001)
        if over:
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        hit += 1
    child = in_a_process(root, settings)
    _, status = os.waitpid(child, 0)
    assert status == 0
    return hit


def test_killed_at_a_random_moment_it_ends_with_the_same_policies(
    looped: tuple[Path, Facts], fresh: Path, model: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(fresh, tmp_path / "loop")
    killed_at(random.Random(), root, small(model), 1.5, 1)
    assert _steady(contents(root)) == _steady(contents(looped[0]))


@pytest.mark.long
def test_killed_again_and_again_it_ends_with_the_same_policies(
    looped: tuple[Path, Facts], fresh: Path, model: Path, tmp_path: Path, times: int
) -> None:
    draw, hit = random.Random(5), 0
    for number in range(3 * times):
        root = shutil.copytree(fresh, tmp_path / str(number))
        hit += killed_at(draw, root, small(model), 1.5, 5)
        assert _steady(contents(root)) == _steady(contents(looped[0]))
        shutil.rmtree(root)
    assert hit >= 6
