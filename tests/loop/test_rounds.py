"""Rounds one after the other: what they accumulate, where they begin, what they wait for, and what ends them."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from manners.cli import main
from manners.errors import MannersError
from manners.evaluate import ask, promotion
from manners.facts import Facts
from manners.loop import asking, history, rounds, stages
from manners.loop import waiting as awaits
from manners.loop.options import PPOOptions, SampleOptions
from manners.loop.round import PPO, SAMPLE, STAGES
from manners.loop.rounds import Asked
from manners.loop.session import Session
from manners.loop.stage import ROUND, execute
from manners.models import versions
from manners.settings import LoopSettings, Settings
from manners.store import Outcome, Store
from manners.store.accounts import Accounts
from manners.store.records import Round, VersionRecord
from manners.types import (
    LOCAL,
    AccountRole,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    PromptUse,
    Response,
    Role,
    Turn,
    Verdict,
    VersionKind,
)
from manners.workspace import Workspace
from tests.loop import tiny
from tests.loop.small_rounds import THREE, everything_wins, small, steady
from tests.loop.test_restart import contents

NAMES = [stage.name for stage in STAGES]


@pytest.fixture(scope="module", autouse=True)
def _everything_wins() -> Iterator[None]:
    with everything_wins():
        yield


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
    looped: tuple[Path, Facts], model: Path, tmp_path: Path
) -> None:
    """Round 4 with a step of nothing: its policy is policy-3, so its KL at the start is that of policy-3, not 0."""
    root = shutil.copytree(looped[0], tmp_path / "loop")
    chosen = small(model)
    still = replace(chosen, ppo=replace(chosen.ppo, learning_rate=0.0))
    facts = rounds.play(Session(Workspace.open(root), still), replace(THREE, rounds=4))
    assert [one["policy"] for one in facts["rounds"][2:]] == ["policy-3", "policy-4"]
    third, fourth = (versions.describe(Workspace.open(root), f"policy-{n}").metrics["kl"] for n in (3, 4))
    assert fourth == pytest.approx(third, rel=1e-4) and abs(third) > 1e-6
    trained = json.loads((root / "runs" / "ppo.json").read_text(encoding="utf-8"))
    # PPO's own penalty: exactly 0 if it were measured against what the policy began as, since it does not move.
    assert trained["begun_as"] == "policy-3" and all(abs(kl) > 1e-6 for kl in trained["curves"]["objective/kl"])


def test_the_same_command_again_plays_nothing_more(looped: tuple[Path, Facts], model: Path, tmp_path: Path) -> None:
    root = shutil.copytree(looped[0], tmp_path / "loop")
    before = steady(root)
    again = rounds.play(Session(Workspace.open(root), small(model)), THREE)
    assert again["rounds"] == looped[1]["rounds"]
    assert steady(root) == before


def run(*words: str | Path) -> int:
    return main(["loop", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--workers", "2", "--processes", "2"], "--workers draw for one process that learns"),
        (["--processes", "0"], "--processes N takes a number from 1 on"),
        (["--ray-address", "auto"], "--ray-address says where processes are: name their number"),
    ],
)
def test_processes_that_there_cannot_be_are_refused(
    words: list[str], says: str, fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words, "--workspace", fresh) == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize("plan", [[], ["--plan"]], ids=["play", "plan"])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--workers", "2"], "take Ray, which is not installed: run `pip install"),
        (["--processes", "2", "--ray-address", "auto"], "take Ray, which is not installed: run `pip install"),
        (["--set", "ppo.kl_target=6", "--set", "ppo.kl_coefficient=0"], "ppo.kl_target adapts ppo.kl_coefficient"),
    ],
)
def test_what_ppo_would_refuse_is_refused_before_a_round_has_cost_anything(
    words: list[str],
    plan: list[str],
    says: str,
    fresh: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    root = shutil.copytree(fresh, tmp_path / "loop")
    assert run("--crowd", *words, *plan, "--workspace", root) == 1 and says in capsys.readouterr().err
    assert not list(root.glob("runs/sample*"))


def test_a_round_whose_ppo_has_begun_goes_on_with_its_settings(fresh: Path, model: Path, tmp_path: Path) -> None:
    root = shutil.copytree(fresh, tmp_path / "loop")
    chosen = replace(small(model), ppo=replace(small(model).ppo, answers=3, batch=4))
    session = Session(Workspace.open(root), chosen).at(1)
    with pytest.raises(MannersError, match=r"make ppo\.batch a multiple of ppo\.answers"):
        rounds._refuse_apart(session)
    (checkpoint := root / "runs" / "ppo" / "checkpoint-1").mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text(json.dumps({"begun_with": {ROUND: 1}}), encoding="utf-8")
    rounds._refuse_apart(session)


@pytest.mark.long
def test_processes_train_as_one_in_the_stages_that_are_shared(
    fresh: Path, looped: tuple[Path, Facts], model: Path, tmp_path: Path
) -> None:
    """Up to rounding the versions of the round are those of one process; a loop that goes on needs no others."""
    root = shutil.copytree(fresh, tmp_path / "loop")
    two = Asked(rounds=1, crowd=True, along=PPOOptions(processes=2))
    rounds.play(Session(Workspace.open(root), small(model)), two)
    told = {name: json.loads((root / "runs" / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES}
    assert {name: facts["processes"] for name, facts in told.items()} == {
        "sample": 1,
        "reward": 2,
        "ppo": 2,
        "evaluation": 1,
    }
    for file in ("reward-1/branch-0.safetensors", "policy-1/branch-0.safetensors"):
        ours, theirs = (load_file(one / "models" / file) for one in (root, looped[0]))
        assert max(float((tensor - theirs[name]).abs().max()) for name, tensor in ours.items()) < 1e-5
    facts = rounds.play(Session(Workspace.open(root), small(model)), replace(THREE, rounds=2))
    assert len(facts["rounds"]) == 2


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
    (root / "runs" / "loop.json").write_text("{", encoding="utf-8")
    assert main(["status", "--json", "--workspace", str(root)]) == 0
    assert "loop.json is damaged" in json.loads(capsys.readouterr().out)["damaged"][0]
    assert run("--rounds", "3", "--crowd", "--workspace", root) == 1
    assert "remove it, and run `manners loop` again" in capsys.readouterr().err


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


def test_who_samples_by_hand_while_a_round_waits_changes_nothing_of_what_it_waits_for(
    fresh: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it runs, after it was killed, and when it is done, twice; the round asks once, and the next one again."""
    root = shutil.copytree(fresh, tmp_path / "loop")
    chosen = small(model)
    session = Session(Workspace.open(root), replace(chosen, loop=replace(chosen.loop, verdicts=12, judgements=10)))
    session.store.add_prompts(tiny.prompts(18, "hill"), PromptUse.EVALUATE, "test")

    def stands() -> tuple[str, str | None]:
        lacks = rounds.play(session, Asked(rounds=1, step=True))["waiting_for"]
        return lacks["what"], awaits.before(session.workspace, session.store.rounds())

    assert stands() == ("verdicts", "reward")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Store, "merge_comparisons", _dies)
        execute(SAMPLE, session, SampleOptions(limit=2))
    assert awaits.before(session.workspace, session.store.rounds()) == "reward"
    before = len(session.store.comparisons())
    execute(SAMPLE, session, SampleOptions(limit=2), resume=True)
    execute(SAMPLE, session, SampleOptions(limit=1))
    there = len(session.store.comparisons())
    assert there > before and stands() == ("verdicts", "reward")
    assert len(session.store.comparisons()) == there, "nobody is asked again"
    assert history.is_done(session.workspace, "sample", 1) and not history.is_done(session.workspace, "sample", 2)


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
        return awaits.facts(session.workspace, history.Reading(session.store), chosen)["waiting_for"]

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
    judges(session, 7, AskedHow.EVALUATION)
    assert step()["waiting_for"]["have"] == 7
    # Nobody is here but the owner, who passes one over, and gives one verdict where two are asked for.
    last = [one.id or 0 for one in session.store.comparisons(AskedHow.EVALUATION) if not one.verdicts]
    owner = Annotator(LOCAL, AnnotatorKind.HUMAN)
    given = zip(last, (Choice.SKIP, Choice.LEFT, Choice.LEFT), strict=True)
    session.store.add_verdicts([(one, Verdict(choice, owner)) for one, choice in given])
    ended = step()
    assert sorted(len(one.bets) for one in session.store.comparisons(AskedHow.EVALUATION)) == [0] + 9 * [1]
    assert ended["waiting_for"] is None and len(ended["rounds"]) == 1
    assert ended["rounds"][0]["verdicts"] == 3 * len(session.store.comparisons(AskedHow.RANDOM))
    assert session.store.rounds()[0].metrics["source"] == "human"


def test_what_teaches_nothing_is_not_waited_for(tmp_path: Path) -> None:
    """A skip, and what a judge says, who may be admitted or not."""
    people, judge = Annotator("anna", AnnotatorKind.HUMAN), Annotator("judge:m#1", AnnotatorKind.AI)
    prompt = (Turn(Role.USER, "Why?"),)
    given = (Verdict(Choice.LEFT, people), Verdict(Choice.SKIP, people), Verdict(Choice.LEFT, judge))
    some = Comparison(prompt, Response("a", "x"), Response("b", "x"), AskedHow.RANDOM, 1.0, given)
    workspace = Workspace.create(tmp_path / "work")
    with closing(Store.create(workspace.database)) as store:
        store.add_comparisons([some, replace(some, right=Response("c", "x"), verdicts=given[2:])])
        assert history.counted(store.comparisons()) == 1
        assert awaits.look(workspace, history.Reading(store), Settings()).wanting == 2


@pytest.fixture
def opened(new_workspace: Callable[[Path], Workspace], tmp_path: Path) -> Iterator[tuple[Workspace, Store]]:
    """A workspace of nobody's accounts, in which three comparisons were opened."""
    workspace = new_workspace(tmp_path / "work")
    prompts = [(Turn(Role.USER, f"Why {n}?"),) for n in range(3)]
    some = [Comparison(p, Response("a", "x"), Response("b", "x"), AskedHow.RANDOM, 1.0, ()) for p in prompts]
    with closing(Store.open(workspace.database)) as store:
        store.add_comparisons(some)
        yield workspace, store


def waiting(workspace: Workspace, store: Store, when: str = "") -> awaits.Waiting | None:
    """Return what a loop of three rounds that has asked waits for."""
    begun = history.Begun(rounds=3, when=when)
    return awaits.for_verdicts(workspace, history.Reading(store), Settings(), begun)


def say(store: Store, count: int, *people: Annotator, how: AskedHow = AskedHow.RANDOM) -> None:
    """Each of these people judges the first comparisons."""
    numbers = [one.id or 0 for one in store.comparisons(how)[:count]]
    store.add_verdicts([(number, Verdict(Choice.LEFT, person)) for number in numbers for person in people])


def test_it_says_that_fewer_verdicts_can_come_than_it_waits_for(opened: tuple[Workspace, Store]) -> None:
    """One person gives one verdict on each of three comparisons, which would take two: three of 200, and no more."""
    workspace, store = opened
    owner = Annotator(LOCAL, AnnotatorKind.HUMAN)
    say(store, 1, owner)
    found = waiting(workspace, store)
    assert found and (found.have, found.need, found.at_most) == (1, 200, 3)
    assert "can get 2 at most, so that the round goes on with 3: for more, raise" in found.sentence
    say(store, 3, owner)
    assert waiting(workspace, store) is None, "nobody is here who could give another"
    Accounts(store).add("anna", AccountRole.ANNOTATOR, "a long password")
    Accounts(store).add("vera", AccountRole.VIEWER, "a long password")
    found = waiting(workspace, store)
    assert found and (found.have, found.at_most) == (4, 7), "anna can judge all three; who only looks on, none"


def test_it_says_nothing_of_the_kind_where_enough_can_come(opened: tuple[Workspace, Store]) -> None:
    workspace, store = opened
    found = waiting(workspace, store, "3 new verdicts")
    assert found and found.at_most == 3 and "at most" not in found.sentence


def given(store: Store, moment: str) -> None:
    """Anna judges all three comparisons at a moment in UTC, not always for the same side."""
    who = Annotator("anna", AnnotatorKind.HUMAN)
    at = datetime.fromisoformat(f"{moment}:00+00:00")
    for one, choice in zip(store.comparisons(), (Choice.LEFT, Choice.RIGHT, Choice.LEFT), strict=True):
        store.add_verdicts([(one.id or 0, Verdict(choice, who, created_at=at))])


def test_a_clock_that_was_set_back_is_said(opened: tuple[Workspace, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop was begun in what is the future now: a time of day would be waited for until then."""
    workspace, store = opened
    say(store, 1, Annotator("anna", AnnotatorKind.HUMAN))
    begun = history.Begun(rounds=1, when="03:00", created_at=(datetime.now(UTC) + timedelta(days=40)).isoformat())
    history.write_begun(workspace, begun)
    found = waiting(workspace, store, "03:00")
    assert found and "this machine's clock is behind the record" in found.sentence
    history.write_begun(workspace, replace(begun, created_at=datetime.now(UTC).isoformat()))
    found = waiting(workspace, store, "03:00")
    assert found and "clock" not in found.sentence


def waits_at(
    now: str, zone: str, opened: tuple[Workspace, Store], when: str, monkeypatch: pytest.MonkeyPatch
) -> awaits.Waiting | None:
    """What a loop waits for at a moment in UTC, on a machine in a time zone."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        monkeypatch.setattr(awaits, "datetime", at(now))
        return waiting(*opened, when)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("begun", "now", "goes_on"),
    [
        ("2026-03-28T22:00", "2026-03-29T00:59", False),  # 23:00 the day before; 01:59, and the clock jumps to 03:00
        ("2026-03-28T22:00", "2026-03-29T01:00", True),  # 03:00: 02:30 was left out that night, and has passed
        ("2026-10-24T21:00", "2026-10-25T00:29", False),  # 02:29 in summer
        ("2026-10-24T21:00", "2026-10-25T00:30", True),  # 02:30 in summer
        (
            "2026-10-25T00:40",
            "2026-10-25T01:35",
            False,
        ),  # from 02:40 in summer to 02:35 in winter
        ("2026-10-25T00:40", "2026-10-26T01:30", True),
    ],
)
def test_the_night_in_which_clocks_are_changed(
    begun: str, now: str, goes_on: bool, opened: tuple[Workspace, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--when 02:30` in Berlin, moments in UTC."""
    workspace, store = opened
    given(store, begun)
    history.write_begun(workspace, history.Begun(rounds=1, when="02:30", created_at=f"{begun}:00+00:00"))
    found = waits_at(now, "Europe/Berlin", opened, "02:30", monkeypatch)
    assert (found is None) is goes_on
    assert found is None or "behind" not in found.sentence


@pytest.mark.parametrize(
    ("judged", "now", "goes_on"),
    [
        ("2026-11-30T20:00", "2026-12-01T02:59", False),
        ("2026-11-30T20:00", "2026-12-01T03:00", True),
        ("2026-12-01T09:12", "2026-12-01T09:13", False),  # nothing was there in the night
        ("2026-12-01T09:12", "2026-12-02T02:59", False),
        ("2026-12-01T09:12", "2026-12-02T03:00", True),
        ("2026-12-01T09:12", "2026-12-05T17:00", True),  # the machine was off since
        ("2026-12-09T09:00", "2026-12-02T04:00", False),  # given while the clock was a week ahead
    ],
)
def test_a_night_without_a_verdict_is_no_moment_to_learn(
    judged: str, now: str, goes_on: bool, opened: tuple[Workspace, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun on a Monday morning, to learn at three in the night: what comes on Tuesday waits for Wednesday's."""
    workspace, store = opened
    given(store, judged)
    history.write_begun(workspace, history.Begun(rounds=1, when="03:00", created_at="2026-11-30T10:00:00+00:00"))
    found = waits_at(now, "UTC", opened, "03:00", monkeypatch)
    assert (found is None) is goes_on
    assert found is None or ("which has 2026-12-09 09:00 already" in found.sentence) is (judged > now)


def test_what_teaches_nothing_yet_is_waited_beyond(opened: tuple[Workspace, Store]) -> None:
    """One verdict, or several for one side, cannot be learned from: it says why, and waits for another one."""
    workspace, store = opened
    first, second, _ = [one.id or 0 for one in store.comparisons()]
    anna, ben = (Annotator(name, AnnotatorKind.HUMAN) for name in ("anna", "ben"))
    store.add_verdicts([(first, Verdict(Choice.LEFT, anna))])
    found = waiting(workspace, store, "1 new verdict")
    assert found and (found.what, found.have, found.need) == ("verdicts", 1, 2)
    assert "all 1 verdicts that choose a side say `left`" in found.sentence
    store.add_verdicts([(first, Verdict(Choice.RIGHT, ben))])
    found = waiting(workspace, store, "1 new verdict")
    assert found and found.need == 3 and "are about one prompt, so none can be set aside" in found.sentence
    store.add_verdicts([(second, Verdict(Choice.RIGHT, anna))])
    assert waiting(workspace, store, "1 new verdict") is None


def test_a_loop_whose_verdicts_all_say_one_side_goes_on_waiting(fresh: Path, model: Path, tmp_path: Path) -> None:
    root = shutil.copytree(fresh, tmp_path / "loop")
    chosen = small(model)
    session = Session(Workspace.open(root), replace(chosen, loop=replace(chosen.loop, judgements=10)))
    session.store.add_prompts(tiny.prompts(4, "hill"), PromptUse.EVALUATE, "test")
    asked = Asked(rounds=1, when="2 new verdicts", step=True)
    assert rounds.play(session, asked)["waiting_for"]["have"] == 0
    say(session.store, 3, Annotator("anna", AnnotatorKind.HUMAN))
    told = rounds.play(session, asked)["waiting_for"]
    assert (told["what"], told["have"], told["need"]) == ("verdicts", 3, 4)
    assert "nothing can be learned yet (all 3 verdicts" in told["sentence"]


def at(moment: str) -> type[datetime]:
    """A clock that stands still."""

    class Still(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.fromisoformat(f"{moment}:00+00:00").astimezone(tz)

    return Still


def test_the_record_is_read_once_for_all_that_is_said_of_the_loop(
    looped: tuple[Path, Facts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(looped[0], tmp_path / "loop")
    read = list[AskedHow | None]()
    really = Store.comparisons

    def counted(self: Store, how: AskedHow | None = None, **kwargs: Any) -> list[Comparison]:
        read.append(how)
        return really(self, how, **kwargs)

    monkeypatch.setattr(Store, "comparisons", counted)
    history.write_begun(Workspace.open(root), history.Begun(rounds=4, crowd=False))
    assert stages.status(Workspace.open(root))["loop"]["to_play"] == 1
    assert read == [None]


def test_what_nobody_learns_from_is_not_said_to_be_learned_from_later(opened: tuple[Workspace, Store]) -> None:
    """A skip, a judge's verdict, and a judgement of a policy."""
    workspace, store = opened
    anna = Annotator("anna", AnnotatorKind.HUMAN)
    one = store.comparisons()[0]
    judged = replace(one, id=None, right=Response("c", "y"), asked_how=AskedHow.EVALUATION)
    [evaluation] = store.add_comparisons([judged])
    first, second, *_ = [c.id or 0 for c in store.comparisons()]
    store.add_verdicts([(first, Verdict(Choice.SKIP, anna)), (evaluation, Verdict(Choice.LEFT, anna))])
    store.add_verdicts([(second, Verdict(Choice.LEFT, Annotator("judge:m#1", AnnotatorKind.AI)))])
    assert stages.status(workspace)["verdicts_not_yet_learned_from"] == 0
    store.add_verdicts([(second, Verdict(Choice.TIE, anna))])
    assert stages.status(workspace)["verdicts_not_yet_learned_from"] == 1


def test_a_round_that_nobody_could_judge_is_not_begun(fresh: Path, model: Path, tmp_path: Path) -> None:
    """Six evaluation prompts for sixty judgements: said before anything is drawn or trained; a crowd needs none."""
    root = shutil.copytree(fresh, tmp_path / "loop")
    session = Session(Workspace.open(root), small(model))
    with pytest.raises(MannersError, match=r"loop.judgements asks people about 60 evaluation prompts, and 6 are left"):
        rounds.play(session, Asked(rounds=1))
    assert not session.store.comparisons() and not (root / "runs" / "sample.json").exists()
    rounds._refuse_unjudged(session.at(1), history.Begun(crowd=True))


def test_a_round_that_too_few_would_judge_is_not_begun(fresh: Path, model: Path, tmp_path: Path) -> None:
    """Ten judgements may promote the first policy, and not the tenth that is tried for one place, which takes 18."""
    root = shutil.copytree(fresh, tmp_path / "loop")
    chosen = small(model)
    session = Session(Workspace.open(root), replace(chosen, loop=replace(chosen.loop, judgements=10)))
    session.store.add_prompts([(Turn(Role.USER, f"What is {n}?"),) for n in range(30)], PromptUse.EVALUATE, "test")
    rounds._refuse_unjudged(session.at(1), history.Begun())
    for number in range(1, 10):
        for name, kind in ((f"reward-{number}", VersionKind.REWARD), (f"policy-{number}", VersionKind.POLICY)):
            session.store.add_version(VersionRecord(name, kind, f"models/{name}", None, {}, 0))
        session.store.add_round(Round(f"policy-{number}", f"reward-{number}", Outcome.REJECTED, {}))
    with pytest.raises(MannersError, match=r"loop.judgements = 10 not even .* can be promoted; 18 are the fewest"):
        rounds._refuse_unjudged(session.at(10), history.Begun())
    ask.plan(18, promotion.level(10))
    with pytest.raises(MannersError, match="ask for at least 18"):
        ask.plan(17, promotion.level(10))
    session.workspace.promote("policy-1")
    assert asking.fewest(session) == 24, "six of them with the start version"


def test_a_budget_of_hours_is_the_loops_not_the_commands(
    looped: tuple[Path, Facts], model: Path, tmp_path: Path
) -> None:
    """Ended by its hours it stays ended, however often it is asked for; when all rounds were played, another begins."""
    root = shutil.copytree(looped[0], tmp_path / "loop")
    workspace = Workspace.open(root)
    long_ago = (datetime.now(UTC) - timedelta(hours=3)).isoformat(timespec="seconds")
    history.write_begun(workspace, history.Begun(rounds=9, crowd=True, created_at=long_ago))
    chosen = small(model)
    chosen = replace(chosen, loop=replace(chosen.loop, hours=2.0))
    for _ in range(2):
        ended = rounds.play(Session(workspace, chosen), replace(THREE, rounds=9))
        assert ended["stopped"].startswith(f"loop.hours is used up: the loop was begun {long_ago}")
        assert len(ended["rounds"]) == 3
    history.write_begun(workspace, history.Begun(rounds=3, created_at=long_ago, stopped="3 rounds are played."))
    assert rounds.play(Session(workspace, chosen), THREE)["stopped"].startswith("3 rounds are played")
    begun = history.read_begun(workspace)
    assert begun is not None and begun.created_at > long_ago


def test_a_moment_that_is_none_is_named_with_its_file(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "work")
    history.write_begun(workspace, history.Begun(rounds=2, created_at="soon"))
    with pytest.raises(MannersError, match=r"loop\.json is damaged .*run `manners loop` again"):
        history.read_begun(workspace)


LIMITS = LoopSettings(most_verdicts=100, hours=2.0, kl=5.0)
BEGUN = history.Begun(rounds=3, created_at="2030-01-31T12:00:00+00:00")


def ended_round(number: int, kl: float, outcome: Outcome = Outcome.PROMOTED) -> history.Played:
    return history.Played(
        round=number, policy=f"policy-{number}", reward=f"reward-{number}", verdicts=9, kl=kl, outcome=str(outcome)
    )


ONE = [ended_round(1, 4.0)]
FAR = [ended_round(1, 4.0), ended_round(2, 6.0, Outcome.REJECTED)]


@pytest.mark.parametrize(
    ("rounds_", "verdicts", "hours", "current", "limits", "said"),
    [
        ([], 0, 0.0, "initial", LIMITS, ""),
        (ONE, 99, 1.9, "policy-1", LIMITS, ""),
        (ONE, 100, 0.0, "policy-1", LIMITS, "loop.most_verdicts is used up: 100 verdicts of 100"),
        (ONE, 9, 2.0, "policy-1", LIMITS, "loop.hours is used up: the loop was begun 2030-01-31T12:00:00"),
        (FAR, 9, 0.0, "policy-1", LIMITS, ""),  # what was rejected is not where the loop stands
        (FAR, 9, 0.0, "policy-2", LIMITS, "loop.kl is used up: policy-2 is 6 nats per response"),
        (FAR, 9, 0.0, "initial", LIMITS, ""),  # rolled back
        (FAR, 10**6, 10.0**4, "policy-2", LoopSettings(), ""),  # no limit is the default
        ([*FAR, ended_round(3, 1.0)], 0, 0.0, "policy-3", LIMITS, "3 rounds are played; more with a larger --rounds"),
        ([*FAR, ended_round(3, 1.0), ended_round(4, 1.0)], 0, 0.0, "policy-3", LIMITS, "4 rounds are played"),
    ],
)
def test_what_ends_a_loop_by_hand(
    rounds_: list[history.Played], verdicts: int, hours: float, current: str, limits: LoopSettings, said: str
) -> None:
    moment = datetime(2030, 1, 31, 12, tzinfo=UTC) + timedelta(hours=hours)
    found = history.over(rounds_, BEGUN, limits, verdicts=verdicts, current=current, moment=moment)
    assert found.startswith(said) if said else not found
    assert found.count(". ") == 0, "one sentence"


def test_a_budget_stops_before_a_round_and_is_said(
    looped: tuple[Path, Facts], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(looped[0], tmp_path / "loop")
    words = ("--rounds", "9", "--crowd", "--json", "--workspace", root)
    assert run(*words, "--set", "loop.most_verdicts=10") == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["rounds"]) == 3 and told["stopped"].startswith("loop.most_verdicts is used up")
    assert main(["status", "--json", "--workspace", str(root)]) == 0
    assert json.loads(capsys.readouterr().out)["loop"]["stopped"] == told["stopped"]


def test_a_plan_says_what_is_left_and_does_nothing(
    looped: tuple[Path, Facts], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(looped[0], tmp_path / "loop")
    before = contents(root)
    assert run("--rounds", "5", "--crowd", "--plan", "--json", "--workspace", root) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["rounds_to_play"], plan["fresh_prompts"]) == (2, 0)
    assert plan["memory_needed_bytes"] > 0 and plan["seconds"] == pytest.approx(2 * plan["seconds_a_round"])
    assert [one["stage"] for one in plan["stages"]] == ["sample", "reward", "ppo", "evaluate"]
    assert contents(root) == before


@pytest.mark.parametrize(
    "words", [["--rounds", "0"], ["--rounds", "-1"], ["--when", "tomorrow"], ["--when", "03:00", "--crowd"]]
)
def test_what_cannot_be_asked_for_is_refused_in_a_sentence(
    words: list[str], looped: tuple[Path, Facts], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words, "--workspace", looped[0]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("manners: --") and "Traceback" not in said


def test_a_wait_is_said_once_and_can_be_interrupted(
    fresh: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three looks at a store in which nothing happens; then somebody presses Ctrl-C, and a step goes on from there."""
    root = shutil.copytree(fresh, tmp_path / "loop")
    chosen = small(model)
    session = Session(Workspace.open(root), replace(chosen, loop=replace(chosen.loop, judgements=10)))
    session.store.add_prompts(tiny.prompts(4, "hill"), PromptUse.EVALUATE, "test")
    slept = list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        rounds.play(session, Asked(rounds=1, when="20 new verdicts"))
    assert slept == [60.0] * 3
    assert capsys.readouterr().err.count("waiting for verdicts: 0 of 20") == 1
    there = len(session.store.comparisons())
    assert history.command(session.workspace) == 'manners loop --rounds 1 --when "20 new verdicts"'
    waiting = rounds.play(session, Asked(rounds=1, when="20 new verdicts", step=True))["waiting_for"]
    assert waiting["need"] == 20 and len(session.store.comparisons()) == there


@pytest.mark.long
def test_a_rejected_round_is_followed_by_one_on_other_answers(
    fresh: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With no fresh prompt left and the same policy again, known prompts get other answers, and verdicts grow."""
    root = shutil.copytree(fresh, tmp_path / "loop")
    (root / "gate.toml").unlink()
    chosen = small(model)
    chosen = replace(chosen, ppo=replace(chosen.ppo, learning_rate=0.0), loop=replace(chosen.loop, prompts=12))
    facts = rounds.play(Session(Workspace.open(root), chosen), Asked(rounds=2, crowd=True))
    first, second = facts["rounds"]
    assert (first["outcome"], second["outcome"], facts["current"]) == ("rejected", "rejected", "initial")
    assert second["verdicts"] > first["verdicts"]
    said = capsys.readouterr().err
    assert "round 1 asks about 12 of 12 prompts that nobody was asked about" in said
    assert "known prompts once more, for other answers of initial: no fresh one is left" in said
    session = Session(Workspace.open(root), chosen)
    assert [one.metrics["attempt"] for one in session.store.rounds()] == [1, 2]
    assert "This is try 2 for the place of the initial model" in session.store.rounds()[1].metrics["verdict"]
    assert {versions.describe(session.workspace, n).parent for n in ("policy-1", "policy-2")} == {"initial"}
