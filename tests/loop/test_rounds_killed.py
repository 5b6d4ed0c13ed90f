"""kill -9 anywhere in a loop: it ends with the same policies, bit for bit, as one that was never stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from manners.facts import Facts
from manners.loop import rounds
from manners.loop.session import Session
from manners.settings import Settings
from manners.workspace import Workspace
from tests.loop.small_rounds import THREE, everything_wins, project, small, steady
from tests.loop.test_processes import COMMAND, ENVIRONMENT
from tests.loop.test_restart import Killed, dying_at


@pytest.fixture(scope="module", autouse=True)
def _everything_wins() -> Iterator[None]:
    with everything_wins():
        yield


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


@pytest.mark.long
def test_killed_at_a_random_moment_it_ends_with_the_same_policies(
    looped: tuple[Path, Facts], fresh: Path, model: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(fresh, tmp_path / "loop")
    killed_at(random.Random(), root, small(model), 1.5, 1)
    assert steady(root) == steady(looped[0])


@pytest.mark.long
def test_killed_again_and_again_it_ends_with_the_same_policies(
    looped: tuple[Path, Facts], fresh: Path, model: Path, tmp_path: Path, times: int
) -> None:
    draw, hit = random.Random(5), 0
    for number in range(3 * times):
        root = shutil.copytree(fresh, tmp_path / str(number))
        hit += killed_at(draw, root, small(model), 1.5, 5)
        assert steady(root) == steady(looped[0])
        shutil.rmtree(root)
    assert hit >= 6


@pytest.mark.long
def test_a_failure_at_any_write_loses_nothing(
    looped: tuple[Path, Facts], fresh: Path, model: Path, tmp_path: Path
) -> None:
    """Every seventh write of three rounds is the end of a process, at its middle, one after the other."""
    expected = steady(looped[0])
    root = shutil.copytree(fresh, tmp_path / "loop")
    count, died, over = 0, 0, False
    while not over:
        count = count % 11 + 5
        with pytest.MonkeyPatch.context() as patch:
            dying_at(patch, count)
            try:
                rounds.play(Session(Workspace.open(root), small(model)), THREE)
                over = True
            except Killed:
                died += 1
    assert died > 10 and steady(root) == expected


@pytest.mark.long
def test_the_command_killed_goes_on_and_writes_its_report(model: Path, tmp_path: Path) -> None:
    """The real process, by the commands alone: killed three times, then two rounds and a report."""
    workspace = project(tmp_path / "loop", model)
    chosen = [*("--rounds", "2", "--crowd", "--json", "--workspace", str(workspace.root))]
    for setting in ("ppo.updates=1", "evaluate.samples=1", "reward.members=1", "crowd.taste=random", "loop.prompts=8"):
        chosen += ["--set", setting]
    command = [sys.executable, "-c", COMMAND, "loop", *chosen]
    for seconds in (6.0, 9.0, 12.0):
        with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.kill()
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert [one["round"] for one in told["rounds"]] == [1, 2] and told["waiting_for"] is None
    assert workspace.report_html.is_file()
