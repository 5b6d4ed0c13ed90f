"""Passwords: hashed aside, in turns, and never lost with the process that does it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from manners.errors import Unavailable
from manners.web.hashing import NICENESS, Aside, Line
from manners.web.limits import Limits
from tests.conftest import HASHER
from tests.web.conftest import run


@pytest.fixture
def aside() -> Iterator[Aside]:
    one = Aside()
    yield one
    one.stop()
    with one._lock:
        one._end()


def test_it_says_what_the_library_says_and_gives_way(aside: Aside) -> None:
    hashed = HASHER.hash("correct hörse")
    assert aside.verify(hashed, "correct hörse")
    assert not aside.verify(hashed, "wrong") and not aside.verify("no hash", "wrong")
    assert not aside.verify(hashed, "\ud800\n") and aside.verify(HASHER.hash("two\nlines"), "two\nlines")
    assert aside._process is not None
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, aside._process.pid) == min(19, ours + NICENESS)
    assert os.getsid(aside._process.pid) == os.getsid(0), "where sessions share the processor, to nobody in another one"
    assert os.getpgid(aside._process.pid) != os.getpgid(0), "Ctrl-C is for the server alone"


@pytest.mark.long
def test_what_it_hashes_is_as_strong_as_everywhere(aside: Aside) -> None:
    hashed = aside.hash("correct horse")
    assert PasswordHasher().verify(hashed, "correct horse") and not PasswordHasher().check_needs_rehash(hashed)


def test_a_process_that_ends_is_told_and_started_again(aside: Aside) -> None:
    hashed = HASHER.hash("correct horse")
    assert aside.verify(hashed, "correct horse")
    assert aside._process is not None
    aside._process.kill()
    with pytest.raises(Unavailable, match="try again"):
        aside.verify(hashed, "correct horse")
    assert aside.verify(hashed, "correct horse")


def test_it_ends_with_whoever_asks(aside: Aside) -> None:
    aside.verify(HASHER.hash("correct horse"), "wrong")
    assert aside._process is not None and aside._process.stdin is not None
    aside._process.stdin.close()  # as the system does where the server was killed
    assert aside._process.wait(20) == 0
    aside._process.stdin = None


def test_whoever_waits_behind_many_of_one_address_waits_for_one() -> None:
    async def behind() -> list[str]:
        line, order = Line(), list[str]()

        async def hashed(who: str) -> None:
            async with line.turn(who):
                order.append(who)

        async with line.turn("guesser"):
            waiting = [asyncio.ensure_future(hashed("guesser")) for _ in range(50)]
            await asyncio.sleep(0)
            waiting.append(asyncio.ensure_future(hashed("anna")))
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        return order

    assert run(behind()).index("anna") <= 1


@pytest.mark.parametrize("when", ["waiting", "called"])
def test_who_leaves_leaves_the_turn_to_others(when: str) -> None:
    async def leave() -> list[str]:
        line, order = Line(), list[str]()

        async def hashed(who: str) -> None:
            async with line.turn(who):
                order.append(who)

        async with line.turn("first"):
            leaving, staying = (asyncio.ensure_future(hashed(who)) for who in ("anna", "ben"))
            await asyncio.sleep(0)
            if when == "waiting":
                leaving.cancel()
        if when == "called":
            leaving.cancel()  # its turn has come, and it has not heard of it
        await asyncio.gather(leaving, staying, return_exceptions=True)
        async with line.turn("last"):
            order.append("last")
        return order

    assert run(leave()) == ["ben", "last"]


def test_nothing_is_hashed_for_whoever_has_left() -> None:
    async def leave() -> list[str]:
        limits, hashed, left = Limits(), list[str](), asyncio.Event()

        async def receive() -> Message:
            await left.wait()
            return {"type": "http.disconnect"}

        def asked(who: str) -> asyncio.Task[None]:
            request = Request({"type": "http", "headers": []}, receive)
            return asyncio.create_task(limits.hashed(request, who, lambda: hashed.append(who)))

        await asked("stays")
        async with limits.line.turn("first"):
            leaving = asked("leaves")
            await asyncio.sleep(0)
            left.set()
        with pytest.raises(ClientDisconnect):
            await leaving
        return hashed

    assert run(leave()) == ["stays"]
