"""Steps from the page with a real server, the real command and a tiny model: to the end, stopped, over a restart."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from manners.loop import stepping
from manners.loop.session import Session
from manners.models import versions
from manners.settings import Settings
from manners.store import Store
from manners.types import AskedHow, PromptUse, VersionKind
from manners.unfinished import unfinished
from manners.workspace import Workspace
from tests.loop import tiny
from tests.loop.small_rounds import PROMPTS
from tests.loop.test_rounds import judges
from tests.web.conftest import NOWHERE, PATIENCE, serve

pytestmark = pytest.mark.long
FIRST = f"""
from manners.loop import stepping
stepping.CHILD = stepping.CHILD.replace("os.nice({stepping.NICENESS})", "os.nice(0)")
"""
"""A step gives way to nobody here: on a busy machine it would not come to its end."""
MANY = 400
"""Updates: more than a PPO that is interrupted after its first checkpoint gets to."""


@pytest.fixture
def root(model: Path, tmp_path: Path) -> Iterator[Path]:
    """A project whose settings are in its file; whatever runs in it is ended."""
    session = tiny.project(tmp_path / "loop", model, PROMPTS)
    session.store.add_prompts(tiny.prompts(18, "hill"), PromptUse.EVALUATE, "test")
    session.store.close()
    chosen = tiny.settings(model)
    chosen = replace(
        chosen,
        reward=replace(chosen.reward, members=1, epochs=1),
        ppo=replace(chosen.ppo, updates=MANY, batch=8, epochs=1, learning_rate=1e-6, kl_stop=1e4),
    )
    loop = "[loop]\nprompts = 9\nverdicts = 12\njudgements = 10\n"
    session.workspace.toml.write_text("checkpoint_every = 0.0\n" + tiny.toml(chosen) + loop, encoding="utf-8")
    yield session.workspace.root
    if (last := stepping.last(session.workspace)) is not None and last.runs:
        os.killpg(last.taken.pid, signal.SIGKILL)


def until(url: str, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Wait until something holds of what the page says, and return that."""
    end = time.monotonic() + 5 * PATIENCE
    while not holds(facts := httpx.get(f"{url}/rounds.json", timeout=PATIENCE).json()):
        assert time.monotonic() < end, facts
        time.sleep(0.3)
    return dict(facts)


def post(url: str, what: str, mark: str) -> httpx.Response:
    return httpx.post(f"{url}/rounds/{what}", data={"shown": mark}, timeout=PATIENCE)


def take(url: str, mark: str) -> dict[str, Any]:
    """Take a step to its end."""
    assert post(url, "step", mark).status_code == 303
    return until(url, ended)


def ended(facts: dict[str, Any]) -> bool:
    return not facts["last_step"]["runs"]


def test_a_round_is_played_from_the_page_as_far_as_somebody_goes_on(root: Path) -> None:
    workspace = Workspace.open(root)
    with ExitStack() as served, closing(Store.open(workspace.database)) as store:
        session = Session(workspace, Settings())
        vars(session)["store"] = store
        server = served.enter_context(serve(root, "--upstream", NOWHERE, first=FIRST))
        url = server.url

        # 1. It asks, and waits for people.
        facts = take(url, "1 sample")
        assert facts["last_step"]["state"] == "done" and store.comparisons(AskedHow.RANDOM), facts
        opened = len(store.comparisons(AskedHow.RANDOM))  # by the one person who is here, one verdict each
        assert facts["no_step"] == f"there is nothing to do but to wait for {min(12, opened)} more verdicts"
        judges(session, 9, AskedHow.RANDOM)

        # 2. The server is killed while it learns, and the next one finds it.
        assert post(url, "step", "1 reward").status_code == 303
        begun = until(url, lambda facts: facts["last_step"]["state"] == "running")["last_step"]
        server.kill()
        server = served.enter_context(serve(root, "--upstream", NOWHERE, first=FIRST))
        url = server.url
        last = until(url, ended)["last_step"]
        assert all(last[name] == begun[name] for name in ("mark", "sentence", "begun_at"))
        assert (last["state"], last["said"]) == ("done", "it is done")
        assert versions.names(workspace, VersionKind.REWARD) == ["reward-1"]

        # 3. PPO is stopped, and gone on with; nothing else is begun beside it.
        assert post(url, "step", "1 ppo").status_code == 303
        until(url, lambda facts: unfinished(workspace.runs / "ppo") or ended(facts))
        assert post(url, "step", "1 ppo").status_code == 400
        assert post(url, "stop", "1 ppo").status_code == 303
        facts = until(url, ended)
        assert facts["last_step"]["state"] == "stopped" and unfinished(workspace.runs / "ppo"), facts
        assert facts["next_step"]["sentence"].startswith("go on with what was stopped: teach: PPO")
        assert not versions.names(workspace, VersionKind.POLICY)
        assert post(url, "step", "1 ppo").status_code == 303
        until(url, lambda facts: "going on after" in stepping.log(workspace).read_text(encoding="utf-8"))
        # 4. What trains outlives its server, which is told to end as a person does.
        os.kill(server.process.pid, signal.SIGINT)
        server.process.wait(PATIENCE)
        running = stepping.last(workspace)
        assert running is not None and running.runs, running
        stepping.stop(workspace, "1 ppo")
        end = time.monotonic() + PATIENCE
        while (running := stepping.last(workspace)) is not None and running.runs:
            assert time.monotonic() < end, running
            time.sleep(0.05)
        assert json.loads((workspace.runs / "loop.json").read_text(encoding="utf-8"))["rounds"] == 1


def test_a_stage_that_fails_says_on_the_page_what_the_command_would(root: Path) -> None:
    workspace = Workspace.open(root)
    workspace.toml.write_text(workspace.toml.read_text(encoding="utf-8").replace("judgements = 10", "judgements = 500"))
    with serve(root, "--upstream", NOWHERE, first=FIRST) as server:
        facts = take(server.url, "1 sample")
        assert facts["last_step"]["state"] == "failed" and facts["state"] == "failed"
        assert facts["last_step"]["said"] == facts["failed"]
        assert "nobody could judge round 1: loop.judgements asks people about 500" in facts["failed"]
