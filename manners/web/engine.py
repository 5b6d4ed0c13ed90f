"""The web application's side of the model: a process of its own that writes, so that pages stay quick."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import signal
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue

from manners.logs import write_as_told
from manners.models.requests import (
    JOINED,
    MOST_UNREAD,
    Beside,
    Cancel,
    Done,
    EngineState,
    Event,
    Failed,
    GenerationRequest,
    GoOn,
    Heard,
    Load,
    Message,
    Phase,
    Rest,
    Said,
    Submit,
    joined,
)
from manners.settings import ModelSettings
from manners.web.spawned import spawned

NICENESS = 10
"""What the model's process gives way by: pages come first."""
BEAT = 0.04
"""Seconds between two pieces of one answer: what comes meanwhile is one piece, for each takes time from the pages."""
MOST_BEATS = 8
"""Beats between two pieces of a stream of many answers, at most: each piece then has some of all."""
RESTARTS = 3
"""How often the process is started again within `PATIENCE`."""
PATIENCE = 600.0
"""In seconds."""


@dataclass(eq=False)
class _Waiter:
    """Whoever waits for an answer."""

    key: int
    loop: asyncio.AbstractEventLoop
    missing: int
    """Answers that have not ended."""
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    rests: bool = False
    """Whether the model was told to write no more for now."""
    many: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where so much waits that it is a piece, or all that will ever come."""
    due: float = 0.0
    """When the next piece may be made of less."""

    def take(self, event: Event) -> None:
        """Let an event wait for whoever asked."""
        self.events.put_nowait(event)
        self.missing -= self.missing if isinstance(event, Failed) else isinstance(event, Done)
        if not self.missing or self.events.qsize() >= JOINED:
            self.many.set()

    async def next(self) -> list[Event]:
        """Return what has come, once there is anything: at once, and then once in a beat unless it is much."""
        come = [await self.events.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self.due):
                await self.many.wait()
        while len(come) < JOINED and not self.events.empty():
            come.append(self.events.get_nowait())
        if self.missing and self.events.qsize() < JOINED:
            self.many.clear()
        if self.events.empty():
            self.due = self.loop.time() + BEAT * min(MOST_BEATS, max(1, self.missing))
        return come


class Engine:
    """Answers requests through a process that holds the model; every method returns at once."""

    def __init__(
        self,
        workspace: Path,
        model: ModelSettings,
        version: str,
        seats: int = 16,
        threads: int | None = None,
        beside: Beside | None = None,
    ) -> None:
        """Take the workspace's folder, the model and the policy to begin with.

        `seats` answers are written side by side, and further ones wait; `threads` is for the model (None: one fewer
        than there are cores). A candidate answers `beside` that policy, until another one is loaded.
        """
        self._workspace = workspace
        self._model = model
        self._seats = seats
        self._threads = threads or max(1, (os.cpu_count() or 1) - 1)
        self._state = EngineState(Phase.LOADING, version)
        self._lock = threading.Lock()
        """Guards what follows, and that a request is known before it is sent."""
        self._waiters: dict[int, _Waiter] = {}
        self._outbox = SimpleQueue[Message | None]()
        """What is sent to the process by a thread, since a pipe may be full; None ends that thread."""
        self._wanted = version
        self._beside = beside
        self._process: BaseProcess | None = None
        self._stopping = False
        self._again = threading.Event()
        """Set where the process has failed and there is something to do after it: another policy to load, or to end."""
        self._keys = itertools.count()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def state(self) -> EngineState:
        """Whether requests are being answered, by which policy, and if not, why."""
        return self._state

    def start(self) -> None:
        """Start the process; the model loads while requests already wait."""
        atexit.register(self.stop)
        self._thread.start()

    def stop(self) -> None:
        """End the process; requests that run fail."""
        with self._lock:
            self._stopping = True
            self._again.set()
            if self._process is not None:
                self._process.kill()  # it keeps nothing
        if self._thread.is_alive():
            self._thread.join()

    def load(self, version: str) -> None:
        """Change to another policy once those answers that are being written, and read, are finished.

        `state.version` tells when that has happened; where it cannot be loaded, `state.reason` says why and the old
        one goes on. Where nothing could be loaded before, the process is started again with it. A candidate was one
        beside the old one: from now on there is none.
        """
        with self._lock:
            if version == self._wanted:
                return
            self._wanted = version
            if self._state.phase is Phase.FAILED:
                self._again.set()
            else:
                self._outbox.put(Load(version))
            gone, self._beside = self._beside, None
            self._state = replace(self._state, candidate=None)
        if gone is not None:
            print(no_more(gone.version, version), file=sys.stderr)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """Yield what is written as it is written, up to a `Done` for each answer or one `Failed`.

        What has come since whoever asks took the last of it comes joined, at least a beat later unless it is much; and
        each time others have their turn first, also where there is more. Whoever does not take it is not written for,
        until they do. Closing the iterator gives the seats back; leave it under `contextlib.aclosing`, which does so at
        once.
        """
        key = next(self._keys)
        waiter = _Waiter(key, asyncio.get_running_loop(), request.count)
        open_answers = request.count
        with self._lock:
            if self._state.phase is Phase.FAILED:
                waiter.take(Failed(f"the model is not running: {self._state.reason}"))
            else:
                self._waiters[key] = waiter
                self._outbox.put(Submit(key, request))
        try:
            while open_answers:
                for event in joined(await waiter.next()):
                    open_answers -= request.count if isinstance(event, Failed) else isinstance(event, Done)
                    yield event
                if waiter.rests and waiter.events.empty():
                    waiter.rests = False
                    self._outbox.put(GoOn(key))
                await asyncio.sleep(0)  # a queue that holds something gives way to nobody
        finally:
            with self._lock:
                if self._waiters.pop(key, None) is not None and open_answers:
                    self._outbox.put(Cancel(key))

    def _run(self) -> None:
        """Keep the process running."""
        starts = deque[float](maxlen=RESTARTS + 1)
        while True:
            starts.append(time.monotonic())
            ended = self._run_once()
            often = len(starts) == starts.maxlen and time.monotonic() - starts[0] < PATIENCE
            with self._lock:
                if self._state.phase is Phase.FAILED:  # it said itself why there is no model
                    state = self._state
                elif often or self._stopping:
                    if self._wanted != self._state.version:  # asked for during the last try
                        self._again.set()
                    state = EngineState(Phase.FAILED, self._state.version, ended)
                else:
                    state = EngineState(Phase.LOADING, self._wanted, f"{ended} and starts again")
                self._state = state
                waiters, self._waiters, self._outbox = self._waiters, {}, SimpleQueue()
            for waiter in waiters.values():
                self._hand_over(waiter.loop, [(waiter, Failed(state.reason))])
            if state.phase is Phase.FAILED:
                self._again.wait()
                with self._lock:
                    self._again.clear()
                    if self._stopping:
                        return
                    self._state = EngineState(Phase.LOADING, self._wanted)
                starts.clear()

    def _run_once(self) -> str:
        """Start the process, pass on what it says until it ends, and say how that was."""
        given = (self._workspace, self._model, self._wanted, self._seats, self._threads, self._beside)
        with self._lock:
            if self._stopping:
                return "the server is stopping"
            self._process, ours = spawned("manners model", _begin, *given)
            process, outbox = self._process, self._outbox
        sender = threading.Thread(target=_send, args=(ours, outbox), daemon=True)
        sender.start()
        with suppress(EOFError, OSError):
            while True:
                self._hear(ours.recv())
        process.join()
        outbox.put(None)
        sender.join()
        ours.close()
        return "the server is stopping" if self._stopping else f"the model's process ended ({_how(process.exitcode)})"

    def _hear(self, report: EngineState | Said) -> None:
        """Note the process's state, or hand events to those who wait for them."""
        if isinstance(report, EngineState):
            with self._lock:
                failed = self._beside is not None and report.phase is Phase.READY and report.candidate is None
                if failed:
                    self._beside = None
                if self._beside is None:  # it may not have heard yet that there is none any more
                    report = replace(report, candidate=None)
                first, self._state = self._state.phase is Phase.LOADING, report
                if report.phase is Phase.FAILED and self._wanted != report.version:  # asked for while that one loaded
                    self._again.set()
                elif report.reason and not (first and report.phase is Phase.READY):
                    # Another policy could not be loaded (what a process says first is of its candidate): it is not to
                    # be tried again after a restart.
                    self._wanted = report.version
            if failed:
                print(f"{report.reason}: nobody is asked about it", file=sys.stderr)
            return
        handed: defaultdict[asyncio.AbstractEventLoop, list[tuple[_Waiter, Event]]] = defaultdict(list)
        with self._lock:
            for key, event in report:
                if (waiter := self._waiters.get(key)) is not None:
                    handed[waiter.loop].append((waiter, event))
        for loop, those in handed.items():
            taken = self._hand_over(loop, those)
            while not taken.wait(1.0) and not loop.is_closed() and not self._stopping:
                pass  # it has much to do: so has the model, which hears of it by the next line
        self._outbox.put(Heard())

    def _hand_over(self, loop: asyncio.AbstractEventLoop, those: Sequence[tuple[_Waiter, Event]]) -> threading.Event:
        """Let a loop hand events to those who wait; return what is set once it has."""
        taken = threading.Event()

        def take() -> None:
            for waiter, event in those:
                waiter.take(event)
                if waiter.events.qsize() > MOST_UNREAD and not waiter.rests:
                    waiter.rests = True
                    self._outbox.put(Rest(waiter.key))
            taken.set()

        try:
            loop.call_soon_threadsafe(take)
        except RuntimeError:  # a loop that is closed waits for nothing
            taken.set()
        return taken


def _send(connection: Connection, outbox: SimpleQueue[Message | None]) -> None:
    """Send until None comes or nobody listens."""
    with suppress(OSError):
        while (message := outbox.get()) is not None:
            connection.send(message)


def _how(exitcode: int | None) -> str:
    """Describe the end of a process."""
    if exitcode is None or exitcode >= 0:
        return f"exit code {exitcode}"
    hint = ", which is also what happens when memory runs out" if -exitcode == signal.SIGKILL else ""
    return f"{signal.Signals(-exitcode).name}{hint}"


def no_more(candidate: str, promoted: str) -> str:
    """Say that a candidate is none any more, since another policy than the one beside it was promoted, or it itself."""
    why = "it was promoted" if candidate == promoted else f"{promoted} answers now"
    return f"{candidate} is no candidate any more, for {why}: nobody is asked about it"


def _begin(
    connection: Connection,
    workspace: Path,
    model: ModelSettings,
    version: str,
    seats: int,
    threads: int,
    beside: Beside | None,
) -> None:
    """Run in the process: give way to pages, and only then load what is heavy."""
    os.nice(NICENESS)
    write_as_told()
    import torch

    from manners.models.serving import serve

    torch.set_num_threads(threads)
    serve(connection, workspace, model, version, seats, beside)
