"""A loop that is taken step by step: each step is what was said before it, and all of them are what a loop is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manners.cli import main
from manners.errors import MannersError
from manners.facts import Facts, to_facts
from manners.loop import coming, history, rounds, waiting
from manners.loop.history import Begun, Reading
from manners.loop.rounds import Asked
from manners.loop.session import Session
from manners.loop.stage import Stage
from manners.models.described import Version
from manners.results.judge import JUDGED_BY
from manners.settings import LoopSettings, Settings
from manners.store import Store
from manners.store.records import Outcome, Round, VersionRecord
from manners.types import (
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
from tests.loop.small_rounds import everything_wins, small, steady
from tests.loop.test_rounds import judges


@pytest.fixture(scope="module", autouse=True)
def _everything_wins() -> Iterator[None]:
    with everything_wins():
        yield


def step(session: Session, rounds_: int, crowd: bool) -> tuple[str, Facts]:
    """Take one step; return what was said to come, and what came of it."""
    seen = Reading(session.store)
    begun = replace(coming.loop(session.workspace, seen), crowd=crowd)
    found = coming.step(session.workspace, seen, session.settings, begun)
    return found.mark, rounds.play(session, Asked(rounds=rounds_, crowd=crowd, one=True))


def done(root: Path) -> set[str]:
    """Stages that have done their part, each with its round."""
    found = set()
    for name in ("sample", "reward", "ppo", "evaluation"):
        if (file := root / "runs" / f"{name}.json").exists():
            found.add(f"{json.loads(file.read_text(encoding='utf-8'))['begun_with']['the round']} {name}")
    return found


@pytest.mark.long
def test_step_by_step_it_ends_as_a_loop_that_was_never_stopped(
    looped: tuple[Path, Facts], fresh: Path, model: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(fresh, tmp_path / "loop")
    marks, before, facts = [], set[str](), Facts()
    while not facts.get("stopped"):
        session = Session(Workspace.open(root), small(model))
        mark, facts = step(session, 3, True)
        session.store.close()
        assert done(root) - before == {mark}, "it was said what would be done, and that alone was"
        before = done(root)
        marks.append(mark)
    stages = ("sample", "reward", "ppo", "evaluation")
    assert marks == [f"{number} {stage}" for number in (1, 2, 3) for stage in stages]
    assert "3 rounds are played" in facts["stopped"]
    assert steady(root) == steady(looped[0])


def by_hand(session: Session) -> None:
    """A policy that DPO might have made in the middle of a round, newer than the round's own."""
    policy = shutil.copytree(session.workspace.models / "policy-1", session.workspace.models / "policy-2")
    said = json.loads((policy / "version.json").read_text(encoding="utf-8")) | {"name": "policy-2"}
    said["metrics"]["method"] = "dpo"
    (policy / "version.json").write_text(json.dumps(said), encoding="utf-8")
    session.store.add_version(VersionRecord("policy-2", VersionKind.POLICY, "models/policy-2", None, {}, 0))


def test_with_people_a_step_opens_what_they_judge_and_the_next_one_decides(
    fresh: Path, model: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(fresh, tmp_path / "loop")
    chosen = small(model)
    chosen = replace(chosen, loop=replace(chosen.loop, verdicts=12, judgements=10))
    session = Session(Workspace.open(root), chosen)
    session.store.add_prompts(tiny.prompts(18, "hill"), PromptUse.EVALUATE, "test")

    def waits() -> Any:
        return waiting.waits_for(session.workspace, Reading(session.store), chosen)

    assert step(session, 1, False)[0] == "1 sample"
    assert waits().what == "verdicts"
    assert step(session, 1, False)[1]["waiting_for"]["have"] == 0, "a step too soon says what it waits for"
    judges(session, 9, AskedHow.RANDOM)
    assert waits() is None
    assert step(session, 1, False)[0] == "1 reward"
    assert step(session, 1, False)[0] == "1 ppo" and not session.store.comparisons(AskedHow.EVALUATION)
    by_hand(session)
    mark, facts = step(session, 1, False)
    assert (mark, facts["waiting_for"]["what"]) == ("1 asked", "judgements") and waits().what == "judgements"
    assert "judge policy-1" in waits().sentence
    judges(session, 10, AskedHow.EVALUATION)
    mark, facts = step(session, 1, False)
    assert mark == "1 evaluation" and "1 round is played" in facts["stopped"]
    assert [one["policy"] for one in facts["rounds"]] == ["policy-1"], "the round's own, whatever came by hand"
    session.store.close()


@pytest.mark.long
def test_a_round_that_has_found_nothing_better_ends_with_a_step(fresh: Path, model: Path, tmp_path: Path) -> None:
    root = shutil.copytree(fresh, tmp_path / "loop")
    session = Session(Workspace.open(root), small(model))
    for mark in ("1 sample", "1 reward", "1 ppo"):
        assert step(session, 1, True)[0] == mark
    by_hand(session)
    file = root / "models" / "policy-1" / "version.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    described["metrics"]["best_update"] = 0
    file.write_text(json.dumps(described), encoding="utf-8")
    mark, facts = step(session, 1, True)
    assert mark == "1 unjudged" and facts["rounds"][0]["outcome"] == "rejected"
    assert facts["rounds"][0]["policy"] == "policy-1"
    session.store.close()


# The record alone


@pytest.fixture
def record(tmp_path: Path, empty_file: Path) -> Iterator[tuple[Workspace, Store]]:
    """A workspace in which nothing was done."""
    workspace = Workspace.create(tmp_path / "work")
    shutil.copyfile(empty_file, workspace.database)
    with closing(Store.open(workspace.database)) as store:
        yield workspace, store


DAY = "2030-01-31T12:00:00+00:00"


def compared(left: str, right: str, how: AskedHow, given: bool = False) -> Comparison:
    """A comparison, with a person's verdict or without one."""
    verdicts = (Verdict(Choice.LEFT, Annotator("olga", AnnotatorKind.HUMAN)),) if given else ()
    sides = Response(f"of {left}", left), Response("of the other one", right)
    return Comparison((Turn(Role.USER, "why?"),), *sides, how, 1.0, verdicts)


def version(workspace: Workspace, store: Store, name: str, kind: VersionKind) -> None:
    """A version that people's verdicts have taught, without weights."""
    (workspace.models / name).mkdir()
    about = Version(name, kind, "tiny", "", 1, "", "float32", DAY, metrics={"source": "human"})
    (workspace.models / name / "version.json").write_text(json.dumps(to_facts(about)), encoding="utf-8")
    store.add_version(VersionRecord(name, kind, f"models/{name}", None, {}, 0))


def next_of(workspace: Workspace, store: Store, settings: Settings | None = None) -> coming.Step:
    seen = Reading(store)
    return coming.step(workspace, seen, settings or Settings(), coming.loop(workspace, seen))


def test_where_no_loop_was_begun_a_step_begins_one_of_one_round(record: tuple[Workspace, Store]) -> None:
    workspace, store = record
    begun = coming.loop(workspace, Reading(store))
    assert (begun.rounds, begun.crowd, begun.when) == (1, False, "") and begun.created_at
    found = next_of(workspace, store, Settings(loop=LoopSettings(prompts=30)))
    assert (found.round, found.name, found.sentence) == (1, "sample", "ask: initial answers up to 30 prompts")


def test_a_loop_goes_on_as_it_was_begun_and_one_that_has_played_all_with_a_round_more(
    looped: tuple[Path, Facts], tmp_path: Path
) -> None:
    workspace = Workspace.open(shutil.copytree(looped[0], tmp_path / "loop"))
    with closing(Store.open(workspace.database)) as store:
        seen, before = Reading(store), history.read_begun(workspace)
        assert before is not None and before.stopped
        begun = coming.loop(workspace, seen)
        assert (begun.rounds, begun.crowd, begun.stopped) == (4, True, "") and begun.created_at >= before.created_at
        assert not coming.over(workspace, seen, begun, LoopSettings())
        used_up = coming.over(workspace, seen, begun, LoopSettings(most_verdicts=3))
        assert "loop.most_verdicts is used up" in used_up
        history.write_begun(workspace, replace(before, rounds=9, when="03:00", crowd=False))
        begun = coming.loop(workspace, seen)
        assert (begun.rounds, begun.when, begun.created_at) == (9, "03:00", before.created_at), "a budget goes on"
        assert coming.step(workspace, seen, Settings(), begun).mark == "4 sample"


def test_what_was_stopped_is_gone_on_with(record: tuple[Workspace, Store]) -> None:
    workspace, store = record
    checkpoint = workspace.runs / "sample" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text(json.dumps({"begun_with": {"the round": 1}}), encoding="utf-8")
    history.write_begun(workspace, Begun(rounds=2, crowd=True, created_at="2030-01-31T12:00:00+00:00"))
    found = next_of(workspace, store)
    assert found.sentence.startswith("go on with what was stopped: ask: initial answers")
    assert found.sentence.endswith("and the simulated crowd compares the answers")


def test_the_judge_is_a_step_where_it_may_train(record: tuple[Workspace, Store]) -> None:
    workspace, store = record
    (workspace.runs / "sample.json").write_text(json.dumps({"begun_with": {"the round": 1}}), encoding="utf-8")
    assert next_of(workspace, store).name == "reward"
    chosen = Settings()
    chosen = replace(chosen, reward=replace(chosen.reward, annotators="human+ai"))
    assert next_of(workspace, store, chosen).name == "reward", "no judge was asked yet"
    (workspace.runs / "judge.json").write_text(json.dumps({"begun_with": {JUDGED_BY: "initial"}}), encoding="utf-8")
    assert next_of(workspace, store, chosen).name == "judge"
    elsewhere = replace(chosen, judge=replace(chosen.judge, url="http://127.0.0.1:9/v1"))
    assert next_of(workspace, store, elsewhere).name == "reward", "settings name another one than was asked"


def test_a_judge_that_fails_has_the_next_stage_done_in_its_place(
    record: tuple[Workspace, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, store = record

    def execute(stage: Stage, *_: object, **__: object) -> None:
        if stage.name == "judge":
            raise MannersError("nobody answers")

    monkeypatch.setattr(rounds, "execute", execute)
    monkeypatch.setattr(Session, "lay_out_as", lambda *_: None)
    for name, facts in (("sample", {"the round": 1}), ("judge", {JUDGED_BY: "initial"})):
        (workspace.runs / f"{name}.json").write_text(json.dumps({"begun_with": facts}), encoding="utf-8")
    history.write_begun(workspace, Begun(rounds=1, crowd=True, created_at=DAY, lays_out=False))
    store.add_comparisons([compared("initial", "initial", AskedHow.RANDOM, given=True)])
    chosen = Settings()
    session = Session(workspace, replace(chosen, reward=replace(chosen.reward, annotators="human+ai")))
    mark, facts = step(session, 1, True)
    assert (mark, facts["step"]) == ("1 judge", "reward"), "which the page says"
    session.store.close()


def test_a_loop_that_was_cut_short_in_the_middle_of_a_round_waits_on(record: tuple[Workspace, Store]) -> None:
    """`manners loop --rounds 1` ends one of more rounds; the round at work still waits for its verdicts."""
    workspace, store = record
    for name, kind in (("reward-1", VersionKind.REWARD), ("policy-1", VersionKind.POLICY)):
        version(workspace, store, name, kind)
    store.add_round(Round("policy-1", "reward-1", Outcome.REJECTED, {}))
    (workspace.runs / "sample.json").write_text(json.dumps({"begun_with": {"the round": 2}}), encoding="utf-8")
    store.add_comparisons([compared("initial", "initial", AskedHow.RANDOM)])
    history.write_begun(workspace, Begun(rounds=1, created_at=DAY, stopped="1 round is played."))
    seen = Reading(store)
    assert waiting.waits_for(workspace, seen, Settings()) is None, "the loop has ended"
    waits = coming.waits(workspace, seen, Settings(), coming.loop(workspace, seen))
    assert waits is not None and waits.what == "verdicts"


def test_what_is_to_be_done_before_people_judge_is_no_waiting(record: tuple[Workspace, Store]) -> None:
    workspace, store = record
    for name in ("sample", "reward", "ppo"):
        (workspace.runs / f"{name}.json").write_text(json.dumps({"begun_with": {"the round": 1}}), encoding="utf-8")
    for name, kind in (("reward-1", VersionKind.REWARD), ("policy-1", VersionKind.POLICY)):
        version(workspace, store, name, kind)
    history.write_begun(workspace, Begun(rounds=1, created_at=DAY))

    def coming_now() -> tuple[str, bool]:
        seen = Reading(store)
        begun = coming.loop(workspace, seen)
        return next_of(workspace, store).name, coming.waits(workspace, seen, Settings(), begun) is not None

    assert coming_now() == ("asked", False)
    store.add_comparisons([compared("policy-1", "initial", AskedHow.EVALUATION)])
    assert coming_now() == ("evaluation", True)
    version(workspace, store, "policy-2", VersionKind.POLICY)
    workspace.promote("policy-2")
    (workspace.models / "policy-2" / "version.json").rename(workspace.root / "kept")  # the newest is policy-1 still
    assert coming_now() == ("asked", False), "nobody was asked about it and the one that is current now"
    workspace.roll_back()
    (workspace.root / "gate.toml").write_text(
        'version = 1\n[reward.probe]\nrequired = true\nbetter = "within"\nthreshold = 0.0\nmargin = 1.0\nwhy = "so"\n',
        encoding="utf-8",
    )
    assert coming_now() == ("audit", False), "it is audited first, also where comparisons were opened by hand"


def test_what_the_loop_would_refuse_is_said_in_place_of_a_step(record: tuple[Workspace, Store]) -> None:
    workspace, store = record
    checkpoint = workspace.runs / "ppo" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text(json.dumps({"begun_with": {"seed": 0}}), encoding="utf-8")
    with pytest.raises(MannersError, match="unfinished run that is of no round of the loop: go on with `manners ppo"):
        next_of(workspace, store)
    shutil.rmtree(checkpoint)
    for name, made in (("sample", {}), ("reward", {"version": "reward-2"}), ("ppo", {"version": "policy-2"})):
        facts = {"begun_with": {"the round": 1}} | made
        (workspace.runs / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")
    version(workspace, store, "reward-1", VersionKind.REWARD)
    version(workspace, store, "policy-1", VersionKind.POLICY)
    with pytest.raises(MannersError, match="reward-2 was removed in the middle of round 1"):
        next_of(workspace, store)
    version(workspace, store, "reward-2", VersionKind.REWARD)
    with pytest.raises(MannersError, match="policy-2 was removed in the middle of round 1"):
        next_of(workspace, store)
    version(workspace, store, "policy-2", VersionKind.POLICY)
    assert next_of(workspace, store).sentence.endswith("comparisons of policy-2 are opened for people")


def test_what_is_not_said_is_as_the_loop_was_begun_that_was_stopped(record: tuple[Workspace, Store]) -> None:
    workspace, store = record

    def asked(**said: Any) -> tuple[int, bool, str]:
        session = Session(workspace, Settings())
        found = rounds._asked(session, Asked(**said))
        session.store.close()
        return found.rounds, found.crowd, found.when

    assert asked() == (1, False, "")
    history.write_begun(workspace, Begun(rounds=5, when="03:00", created_at=DAY))
    assert asked() == (5, False, "03:00") and asked(rounds=8) == (8, False, "03:00")
    assert asked(when="9 new verdicts") == (5, False, "9 new verdicts") and asked(when="") == (5, False, "")
    assert asked(crowd=True) == (5, True, "")
    history.write_begun(workspace, Begun(rounds=5, crowd=True, created_at=DAY, stopped="loop.hours is used up."))
    assert asked() == (5, True, "") and asked(when="") == (5, False, "")
    for name, kind in (("reward-1", VersionKind.REWARD), ("policy-1", VersionKind.POLICY)):
        version(workspace, store, name, kind)
    store.add_round(Round("policy-1", "reward-1", Outcome.REJECTED, {}))
    history.write_begun(workspace, Begun(rounds=1, crowd=True, created_at=DAY, stopped="1 round is played."))
    assert asked() == (1, False, ""), "all are played, and nothing more is"
    (workspace.runs / "sample.json").write_text(json.dumps({"begun_with": {"the round": 2}}), encoding="utf-8")
    assert asked() == (2, True, ""), "it was cut short: the round at work is played to its end"


def test_the_command_alone_goes_on_with_the_loop_as_it_was_begun(
    fresh: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(fresh, tmp_path / "loop")
    session = Session(Workspace.open(root), small(model))
    rounds.play(session, Asked(rounds=3, crowd=True, one=True))
    begun = history.read_begun(session.workspace)
    assert "going on" not in capsys.readouterr().err
    assert rounds.play(session, Asked(one=True))["step"] == "reward"
    assert history.read_begun(session.workspace) == begun
    assert "going on as it was begun: `manners loop --rounds 3 --crowd`" in capsys.readouterr().err
    session.store.close()


def test_the_command_asks_for_what_it_says_alone(
    record: tuple[Workspace, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list[Asked]()

    def play(_: Session, asked: Asked) -> Facts:
        found.append(asked)
        return {}

    monkeypatch.setattr(rounds, "play", play)
    for words in ([], ["--rounds", "2", "--when", ""]):
        assert main(["loop", *words, "--workspace", str(record[0].root)]) == 0
    assert found == [Asked(), Asked(rounds=2, when="")]


def test_where_nothing_can_be_learned_it_says_how_more_comparisons_are_opened(
    record: tuple[Workspace, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round has asked: prompts alone would change nothing in it."""
    workspace, _ = record
    monkeypatch.setattr(Session, "lay_out_as", lambda *_: None)
    (workspace.runs / "sample.json").write_text(json.dumps({"begun_with": {"the round": 1}}), encoding="utf-8")
    history.write_begun(workspace, Begun(rounds=1, created_at=DAY, lays_out=False))
    session = Session(workspace, Settings())
    with pytest.raises(MannersError, match="FILE` and `manners sample`, which opens comparisons of them"):
        rounds.play(session, Asked(rounds=1, step=True))
    session.store.close()
