"""A step's process, with a small program in place of the loop: begun, stopped and told of in adversity."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from manners.errors import MannersError
from manners.holder import this_machine
from manners.loop import erase, history, stepping
from manners.loop.coming import ASKED, Step
from manners.loop.history import Begun
from manners.loop.stepping import Last, State
from manners.workspace import Workspace

SAMPLE = Step(round=1, name="sample", sentence="ask")
WORKS = f"""\
{stepping.FIRST}
import time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
(Path(sys.argv[-1]) / "works").touch()
time.sleep(600)
"""
DONE: dict[str, Any] = {"rounds": [], "waiting_for": None, "current": "initial", "stopped": ""}
PATIENCE = 60.0


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A workspace whose steps do nothing for ten minutes; whatever runs in it is ended."""
    monkeypatch.setattr(stepping, "CHILD", WORKS)
    made = Workspace.create(tmp_path / "work")
    yield made
    monkeypatch.undo()
    if (found := stepping.last(made)) is not None and found.runs and found.taken.pid > 1:
        os.killpg(found.taken.pid, signal.SIGKILL)


def begin(workspace: Workspace) -> None:
    stepping.begin(workspace, SAMPLE, Begun(rounds=1), None)
    until(lambda: (workspace.root / "works").exists())


def until(holds: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def runs(workspace: Workspace) -> bool:
    return (found := stepping.last(workspace)) is not None and found.runs


def full(*_: object) -> NoReturn:
    raise MannersError("no space left on the disk to write it")


@pytest.mark.parametrize("error", [MannersError("no space left on the disk"), PermissionError(13, "Permission denied")])
def test_where_it_cannot_be_written_which_step_it_is_none_is_taken(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(stepping, "_write", fails)
    with pytest.raises(MannersError, match=r"no space left|no step can be begun in .*Permission denied"):
        stepping.begin(workspace, SAMPLE, Begun(rounds=1), None)
    until(lambda: not runs(workspace))
    assert stepping.last(workspace) is None and not (workspace.root / "works").exists()


def test_a_server_killed_as_it_begins_a_step_leaves_none_that_nobody_could_stop(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stepping, "_write", lambda *_: os._exit(9))
        if (pid := os.fork()) == 0:
            stepping.begin(workspace, SAMPLE, Begun(rounds=1), None)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    until(lambda: not runs(workspace))
    assert not (workspace.root / "works").exists()
    begin(workspace)
    assert runs(workspace)


def test_a_full_disk_keeps_nobody_from_stopping_a_step(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(workspace)
    monkeypatch.setattr(stepping, "_write", full)
    assert stepping.stop(workspace, "1 sample").stopped_at
    until(lambda: not runs(workspace))


def test_one_that_was_begun_meanwhile_is_not_written_over_by_who_stops_the_one_before(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(workspace)
    stop = os.killpg

    def ends_and_another_begins(pid: int, number: int) -> None:
        stop(pid, number)
        until(lambda: not runs(workspace))
        stepping.begin(workspace, Step(round=1, name="reward", sentence="learn"), Begun(rounds=1), None)

    monkeypatch.setattr(os, "killpg", ends_and_another_begins)
    stepping.stop(workspace, "1 sample")
    found = stepping.last(workspace)
    assert found is not None and (found.taken.mark, found.state) == ("1 reward", State.RUNNING)


@pytest.mark.parametrize(
    ("said", "why"),
    [({"host": "elsewhere"}, "that step runs on elsewhere: stop it from a server there"), ({"pid": 1}, "does not run")],
)
def test_no_process_is_ended_whose_number_is_another_ones_here(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], why: str
) -> None:
    """On a disk that machines share the lock is seen by all of them, and a number means another process on each."""
    begin(workspace)
    file = workspace.runs / "step" / "step.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["host"] == this_machine()
    file.write_text(json.dumps(written | said), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", lambda *_: pytest.fail("it was ended"))
        with pytest.raises(MannersError, match=why):
            stepping.stop(workspace, "1 sample")
    file.write_text(json.dumps(written), encoding="utf-8")


def test_another_users_process_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> NoReturn:
        raise PermissionError(1, "Operation not permitted")

    begin(workspace)
    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", refused)
        with pytest.raises(MannersError, match=r"process \d+ is another user's"):
            stepping.stop(workspace, "1 sample")


# How it ended, from files alone


def ended(workspace: Workspace, log: str, result: object, **taken: object) -> Last:
    folder = workspace.runs / "step"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step.json").write_text(json.dumps({"round": 1, "name": "sample", "pid": 1} | taken), encoding="utf-8")
    (folder / "log.txt").write_text(log, encoding="utf-8")
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    found = stepping.last(workspace)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "result",
    [
        {},
        [],
        {"rounds": 3, "stopped": ""},
        {"rounds": [{}], "stopped": ""},
        DONE | {"waiting_for": "people"},
        {"version": "policy-1", "checks": [], "gate": {"verdict": "fail"}},  # what a refusal prints as its facts
    ],
)
def test_what_is_no_result_of_a_loop_is_no_end(workspace: Workspace, result: object) -> None:
    assert ended(workspace, "drawing responses: 3/9\n", result).state is State.KILLED
    found = ended(workspace, "manners: the gate does not let policy-1 through\n", result)
    assert (found.state, found.said) == (State.FAILED, "the gate does not let policy-1 through")


def test_a_step_of_no_round_came_to_no_rounds_end(workspace: Workspace) -> None:
    for number in (0, -1):
        assert ended(workspace, "", DONE, round=number).said == "it is done"


def test_what_a_library_says_after_it_is_not_taken_for_a_kill(workspace: Workspace) -> None:
    after = (
        "resource_tracker: There appear to be 1 leaked semaphore objects to clean up at shutdown\n  warnings.warn(\n"
    )
    found = ended(workspace, f"manners: there are no prompts\n{after}", None)
    assert (found.state, found.said) == (State.FAILED, "there are no prompts")
    assert ended(workspace, f"manners: interrupted.\n{after}", None).state is State.STOPPED


def test_of_one_that_ran_on_another_machine_it_is_not_said_that_it_was_killed(workspace: Workspace) -> None:
    assert "runs unseen" not in ended(workspace, "drawing\n", None, host=this_machine()).said
    assert "or runs unseen from here on elsewhere" in ended(workspace, "drawing\n", None, host="elsewhere").said


def test_a_fault_of_ours_is_no_kill(workspace: Workspace) -> None:
    log, then = "Traceback (most recent call last):\n  ...\nKeyError: 'x'\n", "2030-01-31T12:00:00+00:00"
    history.write_begun(workspace, Begun(rounds=1, failed="a fault of manners: KeyError", failed_at=then))
    found = ended(workspace, log, None, begun_at="2030-01-31T11:00:00+00:00")
    assert (found.state, found.said) == (State.FAILED, "a fault of manners: KeyError")
    assert ended(workspace, log, None, begun_at="2030-01-31T13:00:00+00:00").state is State.KILLED, "that was before"
    assert ended(workspace, "drawing\n", None, begun_at="2030-01-31T11:00:00+00:00").state is State.KILLED


def test_it_is_done_only_if_it_did_what_it_was_begun_for(workspace: Workspace) -> None:
    waits = DONE | {"waiting_for": {"what": "verdicts", "sentence": "waiting for verdicts: 3 of 9 new ones are there"}}
    learn = ended(workspace, "", waits, name="reward")
    assert learn.said == "it was too early for that: the loop is waiting for verdicts: 3 of 9 new ones are there"
    assert ended(workspace, "", waits, name=ASKED).said.startswith("it is done, and the loop is waiting")
    failed = ended(workspace, "round 1 goes on without the judge: away\n", DONE | {"step": "reward"}, name="judge")
    assert failed.said.startswith("`reward` was done in its place (")
    assert ended(workspace, "", DONE | {"step": "reward"}, name="reward").said == "it is done"


@pytest.mark.parametrize("text", ["it rained\nin Bergen,\tall day", "She said: It rained in Bergen all day. And then?"])
def test_of_one_whose_words_were_deleted_nothing_false_is_said(workspace: Workspace, text: str) -> None:
    """A log has a text on one line, or an excerpt of it."""
    log = "manners: `it rained in Bergen, all day` is longer than the context\n"
    assert ended(workspace, log, None).state is State.FAILED
    assert erase.sweep(workspace, ["something else"]).files == () and stepping.log(workspace).read_text("utf-8") == log
    assert erase.sweep(workspace, [text]).files == ("log.txt",)
    assert stepping.last(workspace) is None and stepping.log(workspace).read_bytes() == b""
