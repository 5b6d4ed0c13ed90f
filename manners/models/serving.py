"""The process that holds the model while pages are served: takes messages, runs the batch, sends what was written.

Requests are laid out beside the batch (`preparing`), between its steps: a long dialogue makes nobody else wait for it.
Where what was written is not heard in time, the model waits.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue

from transformers import PreTrainedModel

from manners.errors import MannersError
from manners.logs import complain
from manners.models import versions
from manners.models.batch import Prepared, RunningBatch
from manners.models.beside import Pair
from manners.models.preparing import Preparing, Ready
from manners.models.pretrained import Pretrained
from manners.models.requests import (
    MOST_AHEAD,
    Beside,
    Cancel,
    EngineState,
    Event,
    Failed,
    GoOn,
    Heard,
    Load,
    Message,
    Phase,
    Report,
    Rest,
    Said,
    Submit,
)
from manners.models.whole import load
from manners.settings import ModelSettings
from manners.workspace import Workspace

TURN = 0.005
"""Seconds between two steps in which long dialogues are laid out."""
GRACE = 5.0
"""Seconds that another policy waits for readers who do not read; for those who do it waits to the end."""
UNREAD = "another policy answers now, and this answer was not read in time: ask again"


def serve(
    connection: Connection,
    workspace: Path,
    settings: ModelSettings,
    version: str,
    seats: int,
    beside: Beside | None = None,
) -> None:
    """Load the model, and answer until the other end of the connection is closed.

    A candidate (`beside`) shares the trunk, and is let go once another policy takes over; where it cannot be loaded the
    promoted policy answers alone, and the reason is told.
    """
    gc.freeze()  # what was imported stays, and is not looked through for garbage while people wait; no policy is in it
    inbox = SimpleQueue[Message | Ready]()
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    try:
        place = Workspace(workspace)
        pretrained = load(settings, place)
        policy = _policy(place, pretrained, version)
    except Exception as error:  # where there is no model, the reason is all that there is to tell
        connection.send(EngineState(Phase.FAILED, version, _reason(error)))
        return
    promoted = RunningBatch(policy, version, pretrained.trunk, pretrained.renderer, seats)
    candidate, reason = _candidate(place, pretrained, beside)
    batch = Pair(promoted, candidate)
    preparing = Preparing(pretrained.renderer, seats, inbox)
    connection.send(EngineState(Phase.READY, version, reason, batch.candidate))
    serving = Serving(connection.send, inbox, batch, preparing, partial(_policy, place, pretrained))
    while True:
        serving.cycle()


def _receive(connection: Connection, inbox: SimpleQueue[Message | Ready]) -> None:
    """Take messages at any time, also while the model is at work, so that nobody who sends one has to wait."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # whoever asked is gone, and there is nothing here to keep


class Serving:
    """A batch between the messages that come and the reports that go.

    Another policy (`Load`) takes over between two requests: rows that run finish under the old one, and those that come
    wait until they have, so that no answer has two authors. Where all that is half written rests, since it is not read,
    the other policy waits no longer than `GRACE`.
    """

    def __init__(
        self,
        send: Callable[[Report], None],
        inbox: SimpleQueue[Message | Ready],
        batch: Pair,
        preparing: Preparing,
        policy: Callable[[str], PreTrainedModel],
    ) -> None:
        """Take where reports go, where messages come, who writes, who lays out, and what loads a policy by its name."""
        self._send = send
        self._inbox = inbox
        self._batch = batch
        self._preparing = preparing
        self._policy = policy
        self._wanted: str | None = None
        """Another policy, until it has taken over."""
        self._due = 0.0
        """When it waits no longer for what is not read."""
        self._ahead = 0
        """Reports of events that nobody has heard yet."""

    def cycle(self) -> None:
        """Take what has come, draw a token for every row, tell what was written, and read it."""
        said = self._hear()
        if self._wanted is not None:
            said += self._take_over(self._wanted)
        for ready in self._preparing.at_once():
            said += self._enter(ready)
        if self._ahead < MOST_AHEAD:
            said += self._batch.step(self._wanted is None, self._tell)
        self._tell(said)
        # The longest part of a cycle comes last: who comes meanwhile is heard after it, and has the very next token.
        self._tell(self._batch.read())
        self._preparing.go_on_for(TURN)

    def _tell(self, said: Sequence[tuple[int, Event]]) -> None:
        """Report what was written or failed, if anything."""
        if said:
            self._send(tuple(said))
            self._ahead += 1

    def _hear(self) -> list[tuple[int, Event]]:
        """Do as the messages say that have come; return what is said to them at once."""
        said = list[tuple[int, Event]]()
        for message in self._messages():
            match message:
                case Heard():
                    self._ahead -= 1
                case Load():
                    self._wanted, self._due = message.version, time.monotonic() + GRACE
                case Ready():
                    said += self._enter(message)
                case Submit():
                    self._preparing.take(message)
                case Cancel():
                    self._preparing.cancel(message.key)
                    self._batch.cancel(message.key)
                case Rest():
                    self._batch.rest(message.key)
                case GoOn():
                    self._batch.go_on(message.key)
        return said

    def _messages(self) -> list[Message | Ready]:
        """Take all messages that have come; wait for one where nothing else is to be done but to lay long ones out."""
        messages = list[Message | Ready]()
        admit = self._wanted is None
        idle = self._batch.idle(admit) and self._preparing.idle and (admit or self._batch.begun)
        if idle or self._ahead >= MOST_AHEAD:
            self._preparing.go_on(True)
            with suppress(Empty):
                messages.append(self._inbox.get(timeout=self._patience))
            self._preparing.go_on(False)
        with suppress(Empty):
            while True:
                messages.append(self._inbox.get_nowait())
        return messages

    @property
    def _patience(self) -> float | None:
        """Seconds until something is to be done although no message comes; None where nothing will be."""
        if self._wanted is None or self._ahead >= MOST_AHEAD:
            return None
        return max(0.0, self._due - time.monotonic())

    def _enter(self, ready: Ready) -> Said:
        """Let a request that is laid out wait for its turn; return what is said where it cannot be answered."""
        if not self._preparing.is_wanted(ready.key):
            return ()
        if isinstance(ready.outcome, Prepared):
            self._batch.admit(ready.key, ready.outcome)
            return ()
        return ((ready.key, Failed(_reason(ready.outcome), refused=True)),)

    def _take_over(self, version: str) -> Said:
        """Let another policy answer as soon as it may; return what is said to those for whom it does not wait."""
        said = self._batch.end_resting(UNREAD) if time.monotonic() >= self._due else ()
        if not self._batch.begun:
            self._send(self._change_policy(version))
            self._wanted = None
        return said

    def _change_policy(self, version: str) -> EngineState:
        """Give the batch another policy; where that cannot be loaded, the old one stays and the reason is told."""
        try:
            self._batch.take_policy(self._policy(version), version)
        except Exception as error:
            return EngineState(Phase.READY, self._batch.version, _reason(error), self._batch.candidate)
        return EngineState(Phase.READY, version)


def _policy(workspace: Workspace, pretrained: Pretrained, version: str) -> PreTrainedModel:
    return versions.load_policy(workspace, version, pretrained).assembled(pretrained.trunk)


def _candidate(workspace: Workspace, pretrained: Pretrained, beside: Beside | None) -> tuple[RunningBatch | None, str]:
    """Return the batch of a candidate, or why it cannot be loaded."""
    if beside is None:
        return None, ""
    try:
        policy = _policy(workspace, pretrained, beside.version)
    except Exception as error:
        return None, f"the candidate {beside.version} cannot be loaded: {_reason(error)}"
    return RunningBatch(policy, beside.version, pretrained.trunk, pretrained.renderer, beside.seats), ""


def _reason(error: Exception) -> str:
    """Return a user's mistake as it is told, and anything else with its kind; the log says where it arose."""
    if isinstance(error, MannersError):
        return str(error)
    complain(error)
    return f"{type(error).__name__}: {error}"
