"""What is worked out in a process of its own: it answers as a call does, gives way, and its end is nobody's loss."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import floordiv
from pathlib import Path

import pytest

from manners.errors import MannersError, Unavailable
from manners.settings import Settings
from manners.web.apart import NICENESS, Apart
from manners.web.findings import of_database


@pytest.fixture
def apart() -> Iterator[Apart]:
    apart = Apart()
    yield apart
    apart.stop()


def test_it_is_another_process_which_gives_way(apart: Apart) -> None:
    (pid, _), (nice, _) = apart.work(os.getpid), apart.work(os.nice, 0)
    assert pid != os.getpid() and nice == min(19, os.nice(0) + NICENESS)


def test_it_says_how_long_a_core_was_at_it_and_not_how_long_that_took(apart: Apart) -> None:
    _, slept = apart.work(time.sleep, 0.5)
    _, worked = apart.work(sum, range(10_000_000))
    assert slept < 0.1 < worked


def test_errors_are_told_and_the_process_goes_on(
    apart: Apart, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pid, _ = apart.work(os.getpid)
    with pytest.raises(MannersError, match="There is no store at"):
        apart.work(of_database, f"sqlite:///{tmp_path}/none.db", Settings())
    with pytest.raises(MannersError, match=r"could not be worked out \(ZeroDivisionError\)"):
        apart.work(floordiv, 1, 0)
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert apart.work(os.getpid)[0] == pid


def test_killed_while_it_rests_another_one_answers(apart: Apart) -> None:
    pid, _ = apart.work(os.getpid)
    os.kill(pid, signal.SIGKILL)
    assert apart.work(os.getpid)[0] not in (pid, os.getpid())


def test_what_kills_it_twice_is_given_up(apart: Apart) -> None:
    with pytest.raises(Unavailable, match="has ended"):
        apart.work(os._exit, 1)
    assert apart.work(floordiv, 6, 2)[0] == 3


def test_ctrl_c_is_for_the_server(apart: Apart) -> None:
    pid, _ = apart.work(os.getpid)
    os.kill(pid, signal.SIGINT)
    assert apart.work(os.getpid)[0] == pid


def test_it_ends_when_nobody_asks(tmp_path: Path) -> None:
    apart = Apart(idle=0.05)
    pid, _ = apart.work(os.getpid)
    assert apart._process is not None
    apart._process.join()
    assert apart._process.exitcode == 0 and apart.work(os.getpid)[0] != pid
    apart.stop()


def test_many_who_ask_at_once_get_each_their_own(apart: Apart) -> None:
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(apart.work, floordiv, number, 1) for number in range(40)]
    assert [one.result()[0] for one in asked] == list(range(40))
