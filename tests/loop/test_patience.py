"""What a loop does for months: it outlives a store that is away, and says what became of it when it does not."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from manners.errors import MannersError, Unavailable
from manners.facts import Facts
from manners.holder import Holder
from manners.loop import history, rounds, stages, waiting
from manners.loop.history import Begun, State
from manners.loop.patience import LOOK
from manners.loop.rounds import Asked
from manners.loop.session import Session
from manners.store import Store
from manners.types import AskedHow, PromptUse
from manners.workspace import Workspace
from tests.loop import tiny
from tests.loop.small_rounds import THREE, everything_wins, small
from tests.loop.test_rounds import judges
from tests.postgres import Server


@pytest.fixture(scope="module", autouse=True)
def _everything_wins() -> Iterator[None]:
    with everything_wins():
        yield


def with_people(session: Session) -> Session:
    """Have people asked for 12 verdicts, and for 10 judgements."""
    chosen = replace(session.settings, loop=replace(session.settings.loop, verdicts=12, judgements=10))
    session.store.add_prompts(tiny.prompts(14, "hill"), PromptUse.EVALUATE, "test")
    return Session(session.workspace, chosen)


class Night:
    """What happens in the minutes of a wait, one after the other."""

    def __init__(self, patch: pytest.MonkeyPatch, *minutes: Callable[[], object]) -> None:
        self.minutes = list(minutes)
        self.really = time.sleep
        patch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        if seconds == LOOK:
            self.minutes.pop(0)()
        else:  # a part of something else
            self.really(seconds)


def both(first: Callable[[], object], second: Callable[[], object]) -> Callable[[], object]:
    """Return what does one thing after the other."""

    def do() -> None:
        first()
        second()

    return do


def test_a_look_that_the_store_refuses_is_tried_again_and_said_once(
    fresh: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store is away for two minutes while verdicts are waited for, and for one while judgements are."""
    root = shutil.copytree(fresh, tmp_path / "loop")
    session = with_people(Session(Workspace.open(root), small(model)))
    really, away = Store.comparisons, list[str]()

    def comparisons(self: Store, *given: Any, **named: Any) -> Any:
        if away:
            raise Unavailable(away[0])
        return really(self, *given, **named)

    seen = list[State]()

    def looks() -> None:
        seen.append(waiting.stands(session.workspace, session.store))

    def back(how: AskedHow) -> None:
        away.clear()
        judges(session, 10, how)

    monkeypatch.setattr(Store, "comparisons", comparisons)
    night = Night(
        monkeypatch,
        both(looks, partial(away.append, "The database is away; look.")),
        looks,
        partial(back, AskedHow.RANDOM),
        both(looks, partial(away.append, "It is away again.")),
        partial(back, AskedHow.EVALUATION),
    )
    facts = rounds.play(session, Asked(rounds=1))
    assert not night.minutes and len(facts["rounds"]) == 1 and facts["waiting_for"] is None
    said = capsys.readouterr().err
    assert said.count("The database is away; look. (the loop tries again each minute)") == 1
    assert said.count("It is away again.") == 1
    assert seen == [State.WAITING, State.FAILED, State.WAITING]
    assert waiting.stands(session.workspace, session.store) is State.ENDED


def test_what_ends_a_loop_is_kept_and_said_until_it_goes_on(
    fresh: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(fresh, tmp_path / "loop")
    session = Session(Workspace.open(root), small(model))

    def told() -> Any:
        return stages.status(session.workspace)["loop"]

    assert told()["state"] == "none"
    failing: list[Exception] = [MannersError("the disk is full: make room"), ZeroDivisionError("somebody's words")]
    for error, why in zip(
        failing, ("the disk is full: make room", "a fault of manners: ZeroDivisionError at"), strict=True
    ):

        def fails(*_: object, error: Exception = error) -> None:
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rounds, "_do", fails)
            with pytest.raises(type(error)):
                rounds.play(session, THREE)
        assert told()["state"] == "failed" and told()["failed"].startswith(why) and told()["failed_at"]
        assert "words" not in told()["failed"] and told()["stopped"] == ""
    for refused in (Asked(rounds=1, crowd=True, step=True), THREE):
        monkeypatch.setattr(rounds, "_play", lambda *_, **__: pytest.fail("it is refused"))
        with session.run_lock("ppo"), pytest.raises(MannersError, match="is training in"):
            rounds.play(session, refused)
    assert told()["failed"], "what was refused the lock has nothing to say of it"
    monkeypatch.setattr(rounds, "_play", lambda *_, **__: {})
    rounds.play(session, THREE)
    assert (told()["state"], told()["failed"], told()["failed_at"]) == ("idle", "", "")


def test_at_the_beginning_and_step_by_step_a_store_that_is_away_is_an_error(
    fresh: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(Workspace.open(shutil.copytree(fresh, tmp_path / "loop")), small(model))

    def away(*_: object, **__: object) -> Facts:
        raise Unavailable("away")

    Night(monkeypatch)
    for name, asked in (("_begin", THREE), ("_play", replace(THREE, step=True))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rounds, name, away)
            with pytest.raises(Unavailable):
                rounds.play(session, asked)


LOOP, OTHER = Holder("loop", 4711), Holder("ppo", 4711)


@pytest.mark.parametrize(
    ("begun", "holder", "waits", "expected"),
    [
        (None, None, False, State.NONE),
        (None, OTHER, False, State.NONE),
        (Begun(rounds=2), LOOP, False, State.RUNNING),
        (Begun(rounds=2), LOOP, True, State.WAITING),
        (Begun(rounds=2), OTHER, True, State.IDLE),  # it was killed, and somebody trains by hand
        (Begun(rounds=2), Holder(), True, State.IDLE),
        (Begun(rounds=2), None, True, State.IDLE),
        (Begun(rounds=2, failed="No."), None, True, State.FAILED),
        (Begun(rounds=2, failed="No."), LOOP, True, State.WAITING),
        (Begun(rounds=2, stopped="Played."), None, False, State.ENDED),
    ],
)
def test_how_a_loop_stands_by_hand(begun: Begun | None, holder: Holder | None, waits: bool, expected: State) -> None:
    assert history.state(begun, holder, waits) is expected


def test_a_process_is_found_while_it_holds_the_lock_and_nobody_is_kept_from_it(tmp_path: Path) -> None:
    """Looked for without a pause, while the lock is taken again and again."""
    workspace, over = Workspace.create(tmp_path / "work"), threading.Event()
    assert workspace.trained_by() is None

    def looks() -> None:
        while not over.is_set():
            workspace.trained_by()

    thread = threading.Thread(target=looks)
    thread.start()
    try:
        for _ in range(200):
            with workspace.run_lock("loop"):
                found = workspace.trained_by()
                assert found == Holder("loop", os.getpid()) and found.is_me
    finally:
        over.set()
        thread.join()
    assert workspace.trained_by() is None


@pytest.mark.long
def test_a_server_that_is_started_anew_costs_a_minute(
    server: Server, fresh: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the run lock with it: the loop takes that again before it goes on, and says who it is."""
    with server.database() as url:
        session = Session(Workspace.create(tmp_path / "team", url), small(model))
        with closing(Store.open(fresh / "store.db")) as store:
            for prompt in store.prompts():
                session.store.add_prompts([prompt.dialogue], prompt.use, "test")
        shutil.copyfile(fresh / "gate.toml", session.workspace.root / "gate.toml")
        session = with_people(session)
        seen = list[Holder | None]()

        def looks() -> None:
            with suppress(Unavailable):
                seen.append(session.store.trained_by())

        night = Night(
            monkeypatch,
            looks,
            both(partial(server.control, "restart", "-m", "fast"), looks),  # between two looks
            looks,  # without the lock, which is taken again
            looks,
            both(partial(server.control, "stop", "-m", "fast"), looks),
            both(partial(server.control, "start"), looks),
            both(looks, partial(judges, session, 10, AskedHow.RANDOM)),
            both(looks, partial(judges, session, 10, AskedHow.EVALUATION)),
        )
        facts = rounds.play(session, Asked(rounds=1))
        assert not night.minutes and len(facts["rounds"]) == 1
        assert [holder is not None and holder.is_me for holder in seen] == [True, False, False, True, False, True, True]
        assert session.store.trained_by() is None
        session.store.close()
