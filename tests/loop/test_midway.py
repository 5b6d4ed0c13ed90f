"""What somebody does in the middle of a round: versions removed, promoted, taken back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update

from manners.checkpoint import Run
from manners.errors import MannersError
from manners.facts import Facts
from manners.feedback.judges import Judge
from manners.loop import coming, evaluate, history, rounds, waiting
from manners.loop.history import Begun
from manners.loop.round import EVALUATE, PPO, REWARD, SAMPLE
from manners.loop.session import Session
from manners.loop.stage import ROUND, Finished, Options, Stage, execute
from manners.store import Store
from manners.store.prompts import TOMBSTONE
from manners.store.records import to_messages
from manners.store.tables import PromptRow, WithdrawalRow
from manners.types import PromptUse
from manners.workspace import Workspace
from tests.loop.small_rounds import THREE, everything_wins, small, steady
from tests.loop.test_restart import Killed

ONE = replace(THREE, rounds=1)


@pytest.fixture(scope="module", autouse=True)
def _everything_wins() -> Iterator[None]:
    with everything_wins():
        yield


def removed(version: str) -> Callable[[Workspace], object]:
    """Remove a version's folder."""
    return lambda workspace: shutil.rmtree(workspace.models / version)


@pytest.mark.parametrize(
    ("version", "stage", "file"), [("reward-3", REWARD, "reward.json"), ("policy-3", PPO, "ppo.json")]
)
def test_what_a_round_has_made_and_somebody_removed_is_named(
    version: str, stage: Stage, file: str, looped: tuple[Path, Facts], model: Path, tmp_path: Path
) -> None:
    """The version before it is another round's: it would be taken for this one's."""
    root = shutil.copytree(looped[0], tmp_path / "loop")
    session = Session(Workspace.open(root), small(model)).at(3)
    coming.refuse_missing(session.workspace, session.turn or 0, REWARD, PPO)
    removed(version)(session.workspace)
    with pytest.raises(MannersError, match=rf"{version} was removed in the middle of round 3: .* or remove .*{file}"):
        coming.refuse_missing(session.workspace, session.turn or 0, REWARD, PPO)
    assert session.next_version_name(stage.name.replace("ppo", "policy")).endswith("-4"), "a name is given once"
    session.store.close()


def stopped_before(stage: Stage, root: Path, model: Path) -> Session:
    """Play three rounds up to a stage of the second; return a session that can go on."""
    really = rounds._do

    def do(one: Stage, session: Session, begun: Begun, options: Options | None = None) -> None:
        if one.name == stage.name and session.turn == 2:
            raise ZeroDivisionError
        really(one, session, begun, options)

    with closing(Session(Workspace.open(root), small(model)).store), pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "_do", do)
        with pytest.raises(ZeroDivisionError):
            rounds.play(Session(Workspace.open(root), small(model)), THREE)
    return Session(Workspace.open(root), small(model))


@pytest.mark.long
@pytest.mark.parametrize(
    ("before", "happens", "start"),
    [
        (EVALUATE, lambda workspace: workspace.promote("policy-2"), "policy-1"),
        (EVALUATE, lambda workspace: workspace.roll_back(), "policy-1"),
        (PPO, lambda workspace: workspace.roll_back(), "initial"),
        (SAMPLE, lambda workspace: workspace.roll_back(), "initial"),
        (PPO, removed("reward-1"), "policy-1"),  # an old one is nobody's any more
    ],
)
def test_a_promotion_or_a_way_back_in_mid_round_is_gone_on_from(
    before: Stage, happens: Callable[[Workspace], object], start: str, fresh: Path, model: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(fresh, tmp_path / "loop")
    session = stopped_before(before, root, model)
    happens(session.workspace)
    facts = rounds.play(session, replace(THREE, rounds=2))
    assert [one["policy"] for one in facts["rounds"]] == ["policy-1", "policy-2"]
    assert facts["current"] == "policy-2" and not waiting.waits_for(
        session.workspace, history.Reading(session.store), session.settings
    )
    parents = {version.name: version for version in session.store.versions()}
    assert parents.keys() == {"reward-1", "policy-1", "reward-2", "policy-2"}
    described = (session.workspace.models / "policy-2" / "version.json").read_text(encoding="utf-8")
    assert f'"parent": "{start}"' in described


@pytest.mark.long
def test_a_way_back_in_the_middle_of_an_evaluation_has_it_made_anew_against_what_is_current(
    fresh: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was begun against policy-1, and ends where nothing is decided by that."""
    root = shutil.copytree(fresh, tmp_path / "loop")
    session = stopped_before(EVALUATE, root, model)
    really, seen = evaluate._judge, list[str]()

    def judge(of: Session, inputs: evaluate.EvaluationInputs) -> Judge:
        seen.append(inputs.against)
        if len(seen) == 1:
            of.workspace.roll_back()
        return really(of, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "_judge", judge)
        facts = rounds.play(session, replace(THREE, rounds=2))
    assert seen == ["policy-1", "initial"] and facts["current"] == "policy-2"
    assert [one["policy"] for one in facts["rounds"]] == ["policy-1", "policy-2"]
    assert "policy-2 was compared with policy-1, and would replace initial now: once more" in capsys.readouterr().err


def test_what_a_round_says_it_has_made_and_a_restored_record_does_not_know_is_named(
    looped: tuple[Path, Facts], model: Path, tmp_path: Path
) -> None:
    """The newest that the record knows is there, and is another round's."""
    root = shutil.copytree(looped[0], tmp_path / "loop")
    session = Session(Workspace.open(root), small(model)).at(3)
    facts = session.read_facts(REWARD.name) or {}
    session.save_facts(REWARD.name, facts | {"version": "reward-4"})
    with pytest.raises(MannersError, match=r"reward-4 was removed in the middle of round 3: .* or remove .*reward"):
        coming.refuse_missing(session.workspace, session.turn or 0, REWARD, PPO)
    session.store.close()


def taken_back(store: Store) -> None:
    """Take a verdict back."""
    with store.write() as connection:
        connection.execute(insert(WithdrawalRow), {"verdict_id": 7, "created_at": datetime.now(UTC)})


def deleted(store: Store) -> None:
    """Delete the words of a prompt that is trained on."""
    first = store.prompts(PromptUse.TRAIN)[0].id
    with store.write() as connection:
        values = {"turns": to_messages(TOMBSTONE)}
        connection.execute(update(PromptRow).where(PromptRow.id == first).values(values))


def killed(root: Path, model: Path, owner: object, name: str, instead: Callable[..., Any]) -> Session:
    """Play up to where something else kills it; return a session that can go on."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, instead)
        rounds.play(Session(Workspace.open(root), small(model)), THREE)
    return Session(Workspace.open(root), small(model))


@pytest.mark.parametrize(
    ("stage", "happens"), [(REWARD, taken_back), pytest.param(PPO, deleted, marks=pytest.mark.long)]
)
def test_what_is_deleted_while_a_stage_is_stopped_has_it_begun_anew_and_nobody_has_to_come(
    stage: Stage,
    happens: Callable[[Store], None],
    fresh: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It ends as a round does in which that was gone before the stage began."""
    save = Run.save

    def before(one: Stage, *rest: Any, **options: Any) -> Finished:
        if one is stage:
            raise Killed
        return execute(one, *rest, **options)

    def within(run: Run, more: Mapping[str, Any] = {}) -> None:
        save(run, more)
        if run.folder.name == stage.name:
            raise Killed

    ended = []
    for name, owner, place, instead in (("a", rounds, "execute", before), ("b", Run, "save", within)):
        root = shutil.copytree(fresh, tmp_path / name)
        session = killed(root, model, owner, place, instead)
        happens(session.store)
        capsys.readouterr()
        assert len(rounds.play(session, ONE)["rounds"]) == 1
        anew = f"{stage.command} begins anew: something that it was begun with was deleted or changed"
        assert (anew in capsys.readouterr().err) == (name == "b")
        ended.append(steady(root))
    assert ended[0] == ended[1]


@pytest.mark.long
def test_ppo_goes_on_as_what_it_was_begun_as_whatever_is_promoted_meanwhile(
    fresh: Path, model: Path, tmp_path: Path
) -> None:
    root, save = shutil.copytree(fresh, tmp_path / "loop"), Run.save

    def within(run: Run, more: Mapping[str, Any] = {}) -> None:
        save(run, more)
        if (run.folder.name, run.begun_with[ROUND]) == (PPO.name, 2):
            raise Killed

    session = killed(root, model, Run, "save", within)
    session.workspace.roll_back()
    facts = rounds.play(session, replace(THREE, rounds=2))
    assert [one["policy"] for one in facts["rounds"]] == ["policy-1", "policy-2"]
    described = (root / "models" / "policy-2" / "version.json").read_text(encoding="utf-8")
    assert '"parent": "policy-1"' in described


@pytest.mark.long
def test_a_reward_model_that_was_removed_is_trained_anew_under_another_name(
    fresh: Path, model: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(fresh, tmp_path / "loop")
    session = stopped_before(PPO, root, model)
    removed("reward-2")(session.workspace)
    with pytest.raises(MannersError, match=r"reward-2 was removed in the middle of round 2"):
        rounds.play(session, THREE)
    (root / "runs" / "reward.json").unlink()
    facts = rounds.play(session, replace(THREE, rounds=2))
    assert [one["reward"] for one in facts["rounds"]] == ["reward-1", "reward-3"]
