"""Passwords are hashed in a process of its own, which gives way to pages and to the model, and addresses take turns.

A hash takes 64 MB and a fifth of a second of a core, and whoever guesses at passwords asks for many. In a thread of the
server they would have the server's own share of the cores; and a thread that gives way would keep Python's lock from
all others, once it has it and no core. Source: RFC 9106, section 4, for what a hash is to take.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from manners.errors import Unavailable
from manners.models.waiting import Waiting

NICENESS = 15
"""What it gives way by: the model's process gives way by 10."""


class Aside:
    """Hashes passwords in the process, which is started when the first one comes; safe to use from many threads."""

    def __init__(self) -> None:
        """Begin without a process."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def hash(self, password: str) -> str:
        """Return the hash of a password; raises Unavailable."""
        return self._ask([password])

    def verify(self, hashed: str, password: str) -> bool:
        """Return whether a hash is a password's; raises Unavailable."""
        return self._ask([hashed, password]) == "yes"

    def stop(self) -> None:
        """End the process, also in the middle of a hash."""
        if (process := self._process) is not None:
            process.kill()

    def _ask(self, texts: list[str]) -> str:
        with self._lock:
            if self._process is None:
                # In a group of its own: Ctrl-C is for the server, and it ends when its input does, however that came.
                # Not in a session of its own: where a system shares its time by sessions it would give way to nobody.
                command = [sys.executable, "-P", "-m", "manners.web.hashing"]
                pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
                found = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # where ours was found
                self._process = subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, stderr=quiet, env=found, text=True, process_group=0
                )
            process = self._process
            assert process.stdin is not None and process.stdout is not None
            with suppress(BrokenPipeError):
                print(json.dumps(texts), file=process.stdin, flush=True)
            if not (said := process.stdout.readline()):
                self._end()
                raise Unavailable("the process that hashes passwords has ended: try again in a moment")
            return str(json.loads(said))

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()  # it keeps nothing
            self._process.communicate()
            self._process = None


class Line:
    """Whoever waits for a hash, by where they are: one at a time, and each in turn, however many somebody sends."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._waiting = Waiting[asyncio.Future[None]]()
        self._busy = False

    @asynccontextmanager
    async def turn(self, who: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it until the block ends."""
        if self._busy:
            mine = asyncio.get_running_loop().create_future()
            self._waiting.add(who, mine)
            try:
                await mine
            except asyncio.CancelledError:
                self._waiting.drop(lambda one: one is mine)
                if not mine.cancelled():  # it was given the turn, and left at that moment
                    self._pass_on()
                raise
        self._busy = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        self._busy = False
        while not self._busy and (turn := self._waiting.first({})) is not None:
            one = self._waiting.take(turn[0])
            if not one.cancelled():
                one.set_result(None)
                self._busy = True


def _main() -> None:
    """Hash what is asked for, a line each, until nobody asks any more."""
    os.nice(NICENESS)
    hasher = PasswordHasher()
    for line in sys.stdin:
        match json.loads(line):
            case [password]:
                said = hasher.hash(password)
            case [hashed, password]:
                try:
                    said = "yes" if hasher.verify(hashed, password) else "no"
                except (InvalidHashError, VerificationError, UnicodeError):
                    said = "no"
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    _main()
