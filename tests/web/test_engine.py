"""The real process behind the engine: it answers, survives what happens to it, and ends with its parent."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from manners.cli import main
from manners.models import versions
from manners.models.answer import answer
from manners.models.branches import Branch
from manners.models.pretrained import Pretrained, load
from manners.models.requests import Beside, Done, EngineState, Event, Failed, GenerationRequest, Phase, Token
from manners.settings import ModelSettings, SampleSettings, ServeSettings, Settings
from manners.types import AskedHow, Dialogue, Role, Turn, VersionKind
from manners.web import engine as engine_module
from manners.web import server
from manners.web.app import create_app
from manners.web.candidate import Trial
from manners.web.engine import Engine
from manners.web.site import Site
from manners.workspace import INITIAL, Workspace
from tests.web.conftest import Place, run
from tests.web.scripted import Scripted
from tests.worlds import save_tiny

PATIENCE = 600.0
"""Seconds: a process that imports torch takes a few, more on a busy machine."""


def said(text: str) -> Dialogue:
    return (Turn(Role.USER, text),)


REQUEST = GenerationRequest(said("how do I bake bread? ¿Cómo? 🎉"), 24, seed=7, count=3)
ENDLESS = GenerationRequest(said("the weather"), 200, seed=2, temperature=0.0)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, ModelSettings]:
    folder = tmp_path_factory.mktemp("engine")
    settings = ModelSettings(name=str(save_tiny(folder / "model")), trainable_layers=2, device="cpu", context=256)
    return Workspace.create(folder / "workspace"), settings


@pytest.fixture(scope="module")
def pretrained(place: tuple[Workspace, ModelSettings]) -> Pretrained:
    """The same model in this process, and a version of it on disk that differs."""
    workspace, settings = place
    loaded = load(settings)
    branch = Branch(loaded.trunk, trainable=True)
    for parameter in branch.own_tensors().values():
        parameter.mul_(1.3)
    trunk = loaded.trunk
    template = loaded.renderer.template_hash
    version = versions.Version(
        "policy-1", VersionKind.POLICY, loaded.name, trunk.hash, trunk.cut, template, "float32", "today"
    )
    versions.save(workspace, version, [branch])
    return loaded


@pytest.fixture(scope="module")
def engine(place: tuple[Workspace, ModelSettings]) -> Iterator[Engine]:
    workspace, settings = place
    one = Engine(workspace.root, settings, INITIAL, seats=4, threads=1)
    one.start()
    assert phase(one) is Phase.LOADING, "nobody who starts it waits for the model"
    yield one
    one.stop()
    assert phase(one) is Phase.FAILED


def phase(engine: Engine) -> Phase:
    return engine.state.phase


def ends(engine: Engine, kill: Callable[[], None]) -> None:
    before = engine._process
    kill()
    until(lambda: engine._process is not before or phase(engine) is Phase.FAILED)


async def collect(engine: Engine, request: GenerationRequest) -> list[Event]:
    return [event async for event in engine.generate(request)]


def texts(events: list[Event]) -> dict[int, str]:
    joined: dict[int, str] = {}
    for event in events:
        if isinstance(event, Token):
            joined[event.index] = joined.get(event.index, "") + event.text
    return joined


def expected_texts(pretrained: Pretrained, policy: Branch, request: GenerationRequest) -> dict[int, str]:
    settings = SampleSettings(temperature=request.temperature, max_new_tokens=request.max_tokens)
    (drawn,) = answer(policy, pretrained, [request.prompt], request.count, settings, request.seed, "anyone")
    return {number: a.response.text for number, a in enumerate(drawn.answers) if a.response.text}


@pytest.mark.long
def test_requests_wait_for_the_model_and_get_what_sampling_gets(engine: Engine, pretrained: Pretrained) -> None:
    async def several() -> list[list[Event]]:
        return await asyncio.gather(*(collect(engine, replace(REQUEST, seed=seed)) for seed in range(5)))

    policy = versions.load_policy(Workspace(Path("unused")), INITIAL, pretrained)
    for seed, events in enumerate(run(several())):
        assert texts(events) == expected_texts(pretrained, policy, replace(REQUEST, seed=seed))
        done = [event for event in events if isinstance(event, Done)]
        assert sorted(event.index for event in done) == [0, 1, 2]
        assert {event.version for event in done} == {"initial"}
    assert engine.state == replace(engine.state, phase=Phase.READY, version="initial", reason="")


@pytest.mark.long
def test_what_cannot_be_answered_fails_alone_and_is_told_apart(engine: Engine) -> None:
    async def both() -> tuple[list[Event], list[Event]]:
        bad = replace(REQUEST, prompt=said("bread " * 300))
        return await asyncio.gather(collect(engine, bad), collect(engine, REQUEST))

    (failed,), fine = run(both())
    assert isinstance(failed, Failed) and failed.refused and "model.context" in failed.message
    assert sum(isinstance(event, Done) for event in fine) == 3


def test_leaving_gives_the_seats_back(engine: Engine) -> None:
    async def leave_and_ask() -> list[Event]:
        for _ in range(8):  # twice as many as there are seats
            async with aclosing(engine.generate(ENDLESS)) as events:
                assert isinstance(await anext(events), Token)
        return await collect(engine, replace(REQUEST, count=4, max_tokens=2))  # which needs all of them

    assert sum(isinstance(event, Done) for event in run(leave_and_ask())) == 4
    assert not engine._waiters


def test_another_policy_takes_over_between_answers(
    engine: Engine, pretrained: Pretrained, place: tuple[Workspace, ModelSettings]
) -> None:
    workspace, _ = place
    policy = versions.load_policy(workspace, "policy-1", pretrained)

    async def change() -> tuple[list[Event], list[Event]]:
        async with aclosing(engine.generate(ENDLESS)) as events:
            first = [await anext(events)]
            engine.load("policy-1")
            after = asyncio.create_task(collect(engine, REQUEST))
            first += [event async for event in events]
        return first, await after

    before, after = run(change())
    assert isinstance(before[-1], Done) and before[-1].version == "initial"
    assert isinstance(after[-1], Done) and after[-1].version == "policy-1"
    assert texts(after) == expected_texts(pretrained, policy, REQUEST)
    assert engine.state.version == "policy-1"

    engine.load("policy-9")
    until(lambda: engine.state.reason != "")
    assert engine.state.phase is Phase.READY and engine.state.version == "policy-1"
    assert "no version policy-9" in engine.state.reason
    engine.load("initial")
    until(lambda: engine.state.version == "initial" and not engine.state.reason)


@pytest.mark.long
def test_a_candidate_answers_beside_it_until_another_policy_is_promoted(
    place: tuple[Workspace, ModelSettings],
    pretrained: Pretrained,
    alone: Place,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Through the chat: the words are what each version alone would say, on the side that the record names."""
    workspace, settings = place
    trial = Trial("policy-1", INITIAL, 1.0)
    engine = Engine(workspace.root, settings, INITIAL, seats=4, threads=1, beside=trial.beside(4))
    serving = replace(Settings(), model=settings, serve=ServeSettings(chat_ask=0.0, max_new_tokens=24))
    site = Site(workspace, serving, alone.store, alone.accounts, True, "http://127.0.0.1", engine, trial=trial)
    client = TestClient(create_app(site), "http://127.0.0.1")
    key = client.post("/chat/begin", json={}).json()["key"]
    engine.start()
    try:
        until(lambda: phase(engine) is Phase.READY)
        assert engine.state.candidate == "policy-1"
        assert client.post(f"/chat/{key}/say", json={"text": "the weather"}).status_code == 200
        [one] = alone.store.comparisons(AskedHow.CANDIDATE)
        sides = {one.left.author: one.left, one.right.author: one.right}
        assert sides.keys() == {INITIAL, "policy-1"}
        for side, response in enumerate((one.left, one.right)):
            policy = versions.load_policy(workspace, response.author, pretrained)
            assert response.sampling is not None
            drawn = response.sampling
            request = GenerationRequest(one.prompt, 24, drawn.seed, 2, drawn.temperature)
            assert response.text == expected_texts(pretrained, policy, request).get(side, "")
        engine.load("policy-1")
        assert "policy-1 is no candidate any more, for it was promoted" in capsys.readouterr().err
        assert not trial.stands(engine.state)
        until(lambda: engine.state.version == "policy-1")
        assert engine.state.candidate is None
        client.post(f"/chat/{key}/say", json={"text": "and tomorrow?"})
        assert len(alone.store.comparisons()) == 1
    finally:
        engine.stop()


@pytest.mark.long
def test_a_candidate_that_cannot_be_loaded_is_told_and_the_other_answers_alone(
    place: tuple[Workspace, ModelSettings], pretrained: Pretrained, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, settings = place
    trial = Trial("policy-9", INITIAL, 0.5)
    engine = Engine(workspace.root, settings, INITIAL, seats=4, threads=1, beside=trial.beside(4))
    engine.start()
    try:
        events = run(collect(engine, replace(REQUEST, count=2, candidate=1)))
        assert [event.version for event in events if isinstance(event, Done)] == [INITIAL, INITIAL]
        assert engine.state.phase is Phase.READY and not trial.stands(engine.state)
        assert "the candidate policy-9 cannot be loaded: there is no version policy-9" in engine.state.reason
        assert engine.state.reason in trial.sentence(engine.state, workspace)
        assert "cannot be loaded" in capsys.readouterr().err
    finally:
        engine.stop()


def test_what_another_process_promotes_is_served(
    place: tuple[Workspace, ModelSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = place
    monkeypatch.setattr(server, "LOOK_EVERY", 0.01)
    scripted = Scripted()
    ended = threading.Event()
    following = threading.Thread(target=server.follow_promotions, args=(workspace, scripted, ended, INITIAL))
    following.start()
    try:
        for version in ("policy-1", "policy-2"):
            workspace.promote(version)
            until(lambda version=version: scripted.state.version == version)  # type: ignore[misc]
        workspace.roll_back()
        until(lambda: scripted.state.version == "policy-1")
        workspace.roll_back()
    finally:
        ended.set()
        following.join()


@pytest.mark.long
def test_a_rollback_lets_what_runs_end_on_its_version_and_gives_the_rest_to_the_other(
    engine: Engine,
    pretrained: Pretrained,  # which puts policy-1 there
    place: tuple[Workspace, ModelSettings],
    empty_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the command, in the middle of an answer, beside a server that follows what is promoted."""
    workspace, _ = place
    shutil.copyfile(empty_file, workspace.database)
    monkeypatch.setattr(server, "LOOK_EVERY", 0.01)
    workspace.promote("policy-1")
    engine.load("policy-1")
    until(lambda: engine.state.version == "policy-1" and phase(engine) is Phase.READY)
    whole = run(collect(engine, ENDLESS))
    ended = threading.Event()
    following = threading.Thread(target=server.follow_promotions, args=(workspace, engine, ended, "policy-1"))
    following.start()

    async def in_the_middle() -> tuple[list[Event], list[Event]]:
        events: list[Event] = []
        async with aclosing(engine.generate(ENDLESS)) as written:
            async for event in written:
                if not events:
                    line = ["models", "rollback", "--workspace", str(workspace.root)]
                    assert await asyncio.to_thread(main, line) == 0
                events.append(event)
        return events, await collect(engine, ENDLESS)

    try:
        first, other_whole = run(in_the_middle())
    finally:
        ended.set()
        following.join()
    [done], [other] = ([event for event in some if isinstance(event, Done)] for some in (first, other_whole))
    assert (done.version, other.version) == ("policy-1", "initial")
    assert texts(first) == texts(whole) and texts(other_whole) != texts(whole)
    assert workspace.current_policy() == INITIAL and engine.state.version == INITIAL


@pytest.mark.long
def test_a_killed_process_fails_those_who_wait_and_is_started_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill() -> None:
        assert engine._process is not None and engine._process.pid is not None
        os.kill(engine._process.pid, signal.SIGKILL)

    async def killed() -> list[Event]:
        events: list[Event] = []
        async for event in engine.generate(ENDLESS):
            if not events:
                kill()
            events.append(event)
        return events

    *_, failed = run(killed())
    assert isinstance(failed, Failed) and "SIGKILL" in failed.message and not failed.refused
    assert phase(engine) is Phase.LOADING and "starts again" in engine.state.reason
    again = run(collect(engine, REQUEST))
    assert sum(isinstance(event, Done) for event in again) == 3 and phase(engine) is Phase.READY
    for _ in range(engine_module.RESTARTS):
        ends(engine, kill)
    until(lambda: engine.state.phase is Phase.FAILED)
    (refused,) = run(collect(engine, REQUEST))
    assert isinstance(refused, Failed) and "SIGKILL" in refused.message


@pytest.mark.long
def test_a_model_that_cannot_be_loaded_is_told_with_its_reason(place: tuple[Workspace, ModelSettings]) -> None:
    workspace, settings = place
    engine = Engine(workspace.root, replace(settings, name=str(workspace.root)), INITIAL)
    engine.start()
    (failed,) = run(collect(engine, REQUEST))
    assert isinstance(failed, Failed) and "without config.json" in failed.message
    assert engine.state.phase is Phase.FAILED and "without config.json" in engine.state.reason
    engine.stop()


@pytest.mark.long
@pytest.mark.parametrize("when", ["once it has failed", "while it loads"])
def test_another_policy_is_served_where_the_first_cannot_be_loaded(
    place: tuple[Workspace, ModelSettings], when: str
) -> None:
    workspace, settings = place
    engine = Engine(workspace.root, settings, "policy-9", seats=4, threads=1)
    engine.start()
    if when == "once it has failed":
        until(lambda: engine.state.phase is Phase.FAILED)
        assert "policy-9" in engine.state.reason
    engine.load(INITIAL)
    until(lambda: engine.state.phase is Phase.READY)
    assert (engine.state.version, engine.state.reason) == (INITIAL, "")
    assert sum(isinstance(event, Done) for event in run(collect(engine, REQUEST))) == 3
    engine.stop()
    assert phase(engine) is Phase.FAILED and not engine._thread.is_alive()


def test_what_a_process_says_of_its_candidate_undoes_no_promotion(tmp_path: Path) -> None:
    """Another policy is promoted while the first and a damaged candidate are being loaded."""
    engine = Engine(tmp_path, ModelSettings(), INITIAL, beside=Beside("policy-9", 2))
    engine.load("policy-2")
    engine._hear(EngineState(Phase.READY, INITIAL, "policy-9 cannot be loaded"))
    engine._hear(EngineState(Phase.READY, "policy-2"))
    asked = engine._outbox.qsize()
    engine.load(INITIAL)
    assert engine._outbox.qsize() == asked + 1, "a way back is one"
    engine._hear(EngineState(Phase.READY, "policy-2", "initial cannot be loaded"))
    engine.load("policy-2")
    assert engine._outbox.qsize() == asked + 1, "it answers already, as the other could not be loaded"


def test_what_is_promoted_during_the_last_try_of_a_failing_policy_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, tried = Engine(tmp_path, ModelSettings(), "policy-2"), list[str]()

    def run_once() -> str:
        tried.append(engine._wanted)
        if len(tried) == engine_module.RESTARTS + 1:
            engine.load(INITIAL)
        if engine._wanted != "policy-2" and tried[-1] == INITIAL:
            engine._stopping = True
            engine._again.set()
        return "killed"

    monkeypatch.setattr(engine, "_run_once", run_once)
    engine._thread.start()
    engine._thread.join(30)
    assert tried == ["policy-2"] * (engine_module.RESTARTS + 1) + [INITIAL]


PARENT = """
import asyncio, signal, sys, time
from pathlib import Path
from manners.web.engine import Engine
from manners.settings import ModelSettings
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
    model = ModelSettings(name=sys.argv[2], trainable_layers=2, device="cpu", context=256)
    engine = Engine(Path(sys.argv[1]), model, "initial")
    engine.start()
    while engine.state.phase == "loading":
        time.sleep(0.02)
    assert "torch" not in sys.modules
    try:
        print(engine._process.pid, flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        sys.exit(3)
"""


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_the_process_ends_with_its_parent_and_says_nothing(
    how: str, place: tuple[Workspace, ModelSettings], tmp_path: Path
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    command = [sys.executable, str(script), str(place[0].root), place[1].name]
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        child = int(parent.stdout.readline())
        if how == "killed":
            parent.kill()
        else:
            os.killpg(parent.pid, signal.SIGINT)  # as Ctrl-C does: to all processes of the terminal
        assert parent.wait(PATIENCE) == (-signal.SIGKILL if how == "killed" else 3)
        until(lambda: not alive(child))
        assert parent.stderr.read() == ""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # an orphan that nobody waits for stays listed as a zombie
    return not stat.exists() or stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


def test_the_engine_does_not_load_torch() -> None:
    code = "import sys, manners.web.engine; sys.exit('torch' in sys.modules)"
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": paths})
