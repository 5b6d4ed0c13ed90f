"""A run that was stopped anywhere goes on, and ends to the bit as one that never was."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import insert

from manners import metrics
from manners.checkpoint import Run, unfinished
from manners.errors import MannersError
from manners.facts import Facts
from manners.feedback import crowd
from manners.loop import ppo, prompts, round, stages
from manners.loop import session as session_module
from manners.loop.session import Session
from manners.models import versions
from manners.reward import stored
from manners.settings import DPOSettings, Settings, SFTSettings
from manners.store import Store
from manners.store.tables import WithdrawalRow
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, PromptUse, Response, Verdict
from manners.workspace import Workspace
from tests.loop import calls, tiny

Stage = Callable[[Session, bool], Facts]
STAGES: dict[str, Stage] = {
    "sft": lambda session, resume: calls.learn_from_examples(session, resume=resume),
    "sample": lambda session, resume: calls.sample(session, crowd=True, resume=resume),
    "reward": lambda session, resume: calls.train_reward(session, resume=resume),
    "ppo": lambda session, resume: calls.train_policy(session, resume=resume),
    "evaluation": lambda session, resume: calls.evaluate(session, resume=resume),
    "phases": lambda session, resume: calls.compare_phases(session, resume=resume),
    "dpo": lambda session, resume: calls.learn_directly(session, resume=resume),
    "audit": lambda session, resume: calls.audit(session, resume=resume),
    "behaviour": lambda session, resume: calls.audit_policy(session, resume=resume),
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing is meant to catch it."""


@pytest.fixture(scope="module", autouse=True)
def _small_world(finished: Path) -> Iterator[None]:
    """The taste for figures, and parts of ten prompts (but not in the demo that all share)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(crowd.TASTES, tiny.FIGURES.name, tiny.FIGURES)
        patch.setattr(prompts, "PART", 10)
        yield


@pytest.fixture(scope="module")
def settings(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A checkpoint at every occasion."""
    file = tmp_path_factory.mktemp("examples") / "talks.jsonl"
    rows = [{"prompt": f"sun {number}?", "response": "Yes, thank you."} for number in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    examples = SFTSettings(examples=str(file), batch=4, set_aside=0.2)
    direct = DPOSettings(beta=0.5, passes=1, batch=8, learning_rate=0.003, kl_stop=1000.0, validation_prompts=4)
    chosen = tiny.settings(model, checkpoint_every=0.0, sft=examples, dpo=direct)
    ppo = replace(chosen.ppo, batch=8, minibatch=4, epochs=1, kl_target=1.0)
    reward = replace(chosen.reward, members=1, epochs=1, curve=True)
    audit = replace(chosen.audit, cases=5, tokens=2)
    return replace(chosen, ppo=ppo, reward=reward, audit=audit)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, model: Path, settings: Settings) -> dict[str, Path]:
    """The workspace before each stage, and at the end (""), of a round that was never stopped."""
    root = tmp_path_factory.mktemp("played")
    tiny.project(root / "now", model)
    for name, stage in STAGES.items():
        shutil.copytree(root / "now", root / name)
        stage(Session(Workspace.open(root / "now"), settings), False)
    return {name: root / name for name in STAGES} | {"": root / "now"}


def after(played: dict[str, Path], stage: str) -> dict[str, Any]:
    """What the workspace holds when a stage has ended."""
    names = [*STAGES, ""]
    return contents(played[names[names.index(stage) + 1]])


def contents(root: Path) -> dict[str, Any]:
    """All that a workspace holds, but for what a clock decides."""
    found: dict[str, Any] = {}
    for file in sorted(root.rglob("*")):
        name = str(file.relative_to(root))
        if file.suffix == ".safetensors":
            found[name] = file.read_bytes()
        elif file.suffix == ".json":
            found[name] = tiny.steady(json.loads(file.read_text(encoding="utf-8")))
        elif file.name == "metrics.jsonl":
            found[name] = tiny.steady([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])
        elif file.is_dir():
            found[name] = None
    store = Store.open(root / "store.db")
    found["comparisons"] = [
        replace(c, verdicts=tuple(replace(v, created_at=None) for v in c.verdicts)) for c in store.comparisons()
    ]
    found["versions"] = [(v.name, v.path, v.watermark, tiny.steady(v.metrics)) for v in store.versions()]
    found["rounds"] = [(r.policy, r.reward, r.outcome, tiny.steady(r.metrics)) for r in store.rounds()]
    store.close()
    return found


def dying_at(patch: pytest.MonkeyPatch, count: int) -> None:
    """Make write number `count` of this process its end, before it is done.

    What is renamed into place is what becomes visible; the rest are lines of curves and transactions.
    """
    written: list[int] = []

    def deadly(write: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*given: Any) -> Any:
            written.append(1)
            if len(written) == count:
                raise Killed
            return write(*given)

        return instead

    for owner, name in ((Path, "rename"), (Path, "replace"), (metrics.RunLog, "write"), (Store, "write")):
        patch.setattr(owner, name, deadly(getattr(owner, name)))


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_a_failure_at_any_write_changes_nothing(
    stage: str, played: dict[str, Path], settings: Settings, tmp_path: Path, times: int
) -> None:
    """At every write in `make soak`; else at every third, from one of the first three on."""
    apart = max(1, 3 // times)
    expected, count, reached = after(played, stage), list(STAGES).index(stage) % apart + 1 - apart, True
    while reached:
        count += apart
        root = shutil.copytree(played[stage], tmp_path / str(count))
        with pytest.MonkeyPatch.context() as patch:
            dying_at(patch, count)
            try:
                STAGES[stage](Session(Workspace.open(root), settings), False)
                reached = False
            except Killed:
                pass
        STAGES[stage](Session(Workspace.open(root), settings), True)
        assert contents(root) == expected, f"killed at write {count}"
        shutil.rmtree(root)
    assert count > 5


def in_a_process(stage: str, root: Path, settings: Settings) -> int:
    """Run a stage as far as it is not done yet, in a process of its own; return its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            STAGES[stage](Session(Workspace.open(root), settings), True)
            code = 0
        finally:
            os._exit(code)
    return child


def half_there(root: Path) -> bool:
    """Whether a checkpoint is being written; what goes while it is looked at is none."""
    with suppress(FileNotFoundError):
        return any(root.glob("runs/*/.checkpoint-*.partial"))
    return False


def killed_after(child: int, seconds: float, root: Path, writing: bool) -> bool:
    """Kill a process after some time, or at the checkpoint that it begins to write then; False if it ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end or (writing and not half_there(root)):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0
            return False
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_a_process_killed_again_and_again_ends_the_same(
    stage: str, played: dict[str, Path], settings: Settings, tmp_path: Path, times: int
) -> None:
    draw, expected = random.Random(4), after(played, stage)

    def ended(root: Path) -> None:
        assert contents(root) == expected
        shutil.rmtree(root)
        shutil.copytree(played[stage], root)

    begin = time.monotonic()
    root = shutil.copytree(played[stage], tmp_path / "killed")
    assert os.waitpid(in_a_process(stage, root, settings), 0)[1] == 0
    takes = time.monotonic() - begin
    kills = half_written = 0
    ended(root)
    while kills < 5 * times or half_written < 2 * times:
        writing = kills % 3 == 2 or kills > 5 * times
        if killed_after(in_a_process(stage, root, settings), draw.uniform(0, takes / 2), root, writing):
            kills += 1
            half_written += half_there(root)
            assert kills < 60 * times, "hardly a kill hits a checkpoint that is being written"
        else:
            ended(root)
    assert os.waitpid(in_a_process(stage, root, settings), 0)[1] == 0
    assert contents(root) == expected


@pytest.fixture
def stopped(played: dict[str, Path], settings: Settings, tmp_path: Path) -> Workspace:
    """A workspace whose PPO run was stopped after its training, just before the version was written."""
    root = shutil.copytree(played["ppo"], tmp_path / "stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(versions, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            calls.train_policy(Session(Workspace.open(root), settings))
    return Workspace.open(root)


@pytest.mark.long
def test_what_differs_is_named_and_nothing_is_lost(
    stopped: Workspace, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stages.status(stopped)["next"] == "manners ppo --resume"
    kept = torch.load(unfinished(stopped.runs / "ppo")[-1] / "state.pt", weights_only=True)
    assert kept["weights are laid out for decoding"] is False
    with pytest.raises(MannersError, match=r"unfinished run: go on with `manners ppo --resume`, or remove that folder"):
        stages.train_policy(stopped, settings, plan=False)
    other = replace(settings, ppo=replace(settings.ppo, clip=0.3))
    with pytest.raises(MannersError, match=r"begun with ppo\.clip = 0\.2, and now it is 0\.3"):
        stages.train_policy(stopped, other, plan=False, resume=True)
    (stopped.runs / "policy-1" / "metrics.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(MannersError, match=r"metrics\.jsonl is shorter than when the run was stopped"):
        stages.train_policy(stopped, settings, plan=False, resume=True)
    shutil.rmtree(stopped.runs / "ppo")
    capsys.readouterr()
    assert stages.train_policy(stopped, settings, plan=False, resume=True)["version"] == "policy-1"
    assert "no run is unfinished, so one begins" in capsys.readouterr().err
    assert stages.train_policy(stopped, settings, plan=False, resume=True)["version"] == "policy-1"
    assert "this run has finished; leave out --resume to begin another" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["state.pt", "checkpoint.json"])
def test_after_a_checkpoint_was_damaged_it_ends_as_if_it_had_never_been_stopped(
    file: str, stopped: Workspace, settings: Settings, played: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """From the one before it: what was done after that is done again."""
    older, newest = unfinished(stopped.runs / "ppo")
    content = (newest / file).read_bytes()
    (newest / file).write_bytes(content[: len(content) // 2])
    calls.train_policy(Session(stopped, settings), resume=True)
    assert contents(stopped.root) == after(played, "ppo")
    said = capsys.readouterr().err
    assert f"{newest} is damaged (" in said and f"going on from {older.name}" in said


def test_another_model_is_refused(stopped: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Session(stopped, settings).pretrained
    swapped = replace(loaded, trunk=replace(loaded.trunk, hash="0123456789abcdef"))
    monkeypatch.setattr(session_module, "load", lambda *_: swapped)
    monkeypatch.setattr(stored, "load_reward", lambda *_: None)
    with pytest.raises(MannersError, match=r"begun with the model's trunk = .*, and now it is 0123456789abcdef"):
        calls.train_policy(Session(stopped, settings), resume=True)


def learned(root: Path) -> dict[str, Any]:
    """What a reward run leaves, whatever the store holds."""
    return {name: found for name, found in contents(root).items() if name.startswith(("models", "runs"))}


@pytest.fixture
def half_trained(played: dict[str, Path], settings: Settings, tmp_path: Path) -> Session:
    """A workspace whose reward run was killed at its fourth write."""
    root = shutil.copytree(played["reward"], tmp_path / "half")
    with pytest.MonkeyPatch.context() as patch:
        dying_at(patch, 4)
        with pytest.raises(Killed):
            calls.train_reward(Session(Workspace.open(root), settings))
    return Session(Workspace.open(root), settings)


def killed_at_a_checkpoint(stage: str, root: Path, settings: Settings, number: int) -> Session:
    """Kill a run just after it has written so many checkpoints; return what goes on with it."""
    really, written = Run.save, list[int]()

    def save(run: Run, more: Mapping[str, Any] = {}) -> None:
        really(run, more)
        written.append(1)
        if len(written) == number:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", save)
        with pytest.raises(Killed):
            STAGES[stage](Session(Workspace.open(root), settings), False)
    assert unfinished(root / "runs" / stage)
    return Session(Workspace.open(root), settings)


@pytest.mark.parametrize(
    "stage",
    [
        "reward",
        "ppo",
        "evaluation",
        "sft",
        *(pytest.param(stage, marks=pytest.mark.long) for stage in ("dpo", "phases", "audit")),
    ],
)
def test_what_comes_while_a_run_is_stopped_is_for_the_next(
    stage: str, played: dict[str, Path], settings: Settings, tmp_path: Path
) -> None:
    """Prompts of each use, and a candidate compared on a prompt that is trained on, which is answered no more then.

    A prompt of an example of `sft` is kept for evaluation by then, and on another one a candidate was compared.
    """
    root = shutil.copytree(played[stage], tmp_path / "killed")
    session = killed_at_a_checkpoint(stage, root, settings, 1)
    for use, some in tiny.PROMPTS.items():
        session.store.add_prompts(tiny.prompts(len(some), f"late {use}"), use, "test")
    an_example, another = tiny.prompts(2, "sun")
    session.store.add_prompts([an_example], PromptUse.EVALUATE, "test")
    left, right = Response("a", "one"), Response("b", "another")
    tried = [Comparison(one, left, right, AskedHow.CANDIDATE) for one in (tiny.PROMPTS[PromptUse.TRAIN][0], another)]
    session.store.add_comparisons(tried)
    STAGES[stage](session, True)
    expected = after(played, stage)
    assert learned(root) == {name: one for name, one in expected.items() if name.startswith(("models", "runs"))}
    assert contents(root)["rounds"] == expected["rounds"]


@pytest.mark.long
def test_who_labels_while_a_run_is_stopped_is_heard_by_the_next(half_trained: Session, played: dict[str, Path]) -> None:
    root, store = half_trained.workspace.root, half_trained.store
    late = Verdict(Choice.TIE, Annotator("late", AnnotatorKind.SIMULATED))
    asked = store.comparisons()[0]
    store.add_comparisons([replace(asked, left=asked.right, right=asked.left, verdicts=(late,), id=None)])
    store.add_verdicts([(1, late), (2, late)])
    facts = calls.train_reward(half_trained, resume=True)
    assert learned(root) == {n: c for n, c in after(played, "reward").items() if n.startswith(("models", "runs"))}
    assert versions.describe(half_trained.workspace, "reward-1").watermark == 48 == store.watermark() - 3
    assert stages.status(half_trained.workspace)["verdicts_not_yet_learned_from"] == 3
    again = calls.train_reward(half_trained)
    assert again["version"] == "reward-2"
    total = again["trained_on"] + again["set_aside"]
    assert total == facts["trained_on"] + facts["set_aside"], "the pair turned round is the same comparison"


def test_a_verdict_that_was_taken_back_meanwhile_is_another_run(half_trained: Session) -> None:
    with half_trained.store.write() as connection:
        connection.execute(insert(WithdrawalRow), {"verdict_id": 7, "created_at": datetime.now(UTC)})
    with pytest.raises(
        MannersError,
        match=r"runs/reward was begun with 48 verdicts on 24 comparisons \(\w+\), and of what was there then 47"
        r" verdicts on 24 comparisons \(\w+\) are left as they were: .*; remove that folder to begin anew",
    ):
        calls.train_reward(half_trained, resume=True)
    shutil.rmtree(half_trained.workspace.runs / "reward")
    assert calls.train_reward(half_trained, resume=True)["version"] == "reward-1"


def test_a_setting_that_chooses_other_verdicts_is_named_as_such(half_trained: Session) -> None:
    chosen = replace(half_trained.settings.reward, annotators="simulated")
    other = replace(half_trained, settings=replace(half_trained.settings, reward=chosen))
    with pytest.raises(MannersError, match=r"begun with reward\.annotators = None, and now it is simulated"):
        calls.train_reward(other, resume=True)


def test_trunk_states_of_a_killed_run_are_cleared_away(
    played: dict[str, Path], settings: Settings, tmp_path: Path
) -> None:
    root = shutil.copytree(played["reward"], tmp_path / "killed")
    child = in_a_process("reward", root, settings)
    while not (left := list(root.glob("runs/.trunk-states.*.partial/held-out"))):
        assert os.waitpid(child, os.WNOHANG)[0] == 0, "it ended before it was killed"
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert left[0].is_file()
    Workspace.open(root)
    assert not left[0].parent.exists()


def test_a_demo_goes_on_with_the_first_stage_that_is_not_done(
    model: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(round, "demo_prompts", lambda: tiny.PROMPTS)
    monkeypatch.setattr(prompts, "PART", 192)
    chosen = tiny.settings(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "train_ppo", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            round.demo(tmp_path / "demo", chosen)
    round.demo(tmp_path / "demo", chosen, resume=True)
    said = capsys.readouterr().err
    assert "manners reward: this run has finished" in said
    assert "manners ppo: no run is unfinished, so one begins" in said
    assert contents(tmp_path / "demo") == contents(finished)
    assert not (tmp_path / "demo.previous").exists()
