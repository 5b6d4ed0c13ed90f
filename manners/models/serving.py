"""The process that holds the model while pages are served: takes messages, runs the batch, sends what was written.

Requests are laid out beside the batch (`preparing`), between its steps: a long dialogue makes nobody else wait for it.
Where what was written is not heard in time, the model waits.
"""

from __future__ import annotations

import gc
import os
import threading
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
    Rest,
    Submit,
)
from manners.models.whole import load
from manners.settings import ModelSettings
from manners.workspace import Workspace

TURN = 0.005
"""Seconds between two steps in which long dialogues are laid out."""


def serve(
    connection: Connection,
    workspace: Path,
    settings: ModelSettings,
    version: str,
    seats: int,
    beside: Beside | None = None,
) -> None:
    """Load the model, and answer until the other end of the connection is closed.

    Another policy (`Load`) takes over between two requests: rows that run finish under the old one, and those that
    come wait until they have, so that no answer has two authors. A candidate (`beside`) shares the trunk, and is let go
    then; where it cannot be loaded the promoted policy answers alone, and the reason is told.
    """
    gc.freeze()  # what was imported stays, and is not looked through for garbage while people wait; no policy is in it
    inbox = SimpleQueue[Message | Ready]()
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    try:
        place = Workspace(workspace)
        pretrained = load(settings, place)
        policy = _policy(place, version, pretrained)
    except Exception as error:  # where there is no model, the reason is all that there is to tell
        connection.send(EngineState(Phase.FAILED, version, _reason(error)))
        return
    promoted = RunningBatch(policy, version, pretrained.trunk, pretrained.renderer, seats)
    candidate, reason = _candidate(place, beside, pretrained)
    batch = Pair(promoted, candidate)
    preparing = Preparing(pretrained.renderer, seats, inbox)
    connection.send(EngineState(Phase.READY, version, reason, batch.candidate))
    wanted: str | None = None
    ahead = 0
    while True:
        said = list[tuple[int, Event]]()
        admit = wanted is None
        idle = batch.idle(admit) and preparing.idle and (admit or batch.begun)
        for message in _messages(inbox, preparing, wait=idle or ahead >= MOST_AHEAD):
            match message:
                case Heard():
                    ahead -= 1
                case Load():
                    wanted = message.version
                case Ready():
                    said += _enter(batch, preparing, message)
                case Submit() | Cancel() | Rest() | GoOn():
                    _note(batch, preparing, message)
        if wanted is not None and not batch.begun:
            connection.send(_change_policy(batch, place, wanted, pretrained))
            wanted = None
        for ready in preparing.at_once():
            said += _enter(batch, preparing, ready)
        if ahead < MOST_AHEAD:
            said += batch.step(wanted is None)
        if said:
            connection.send(tuple(said))
            ahead += 1
        preparing.go_on_for(TURN)


def _receive(connection: Connection, inbox: SimpleQueue[Message | Ready]) -> None:
    """Take messages at any time, also while the model is at work, so that nobody who sends one has to wait."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # whoever asked is gone, and there is nothing here to keep


def _messages(inbox: SimpleQueue[Message | Ready], preparing: Preparing, wait: bool) -> list[Message | Ready]:
    """Take all messages that have come; wait for one where there is nothing else to do but to lay long ones out."""
    messages = list[Message | Ready]()
    if wait:
        preparing.go_on(True)
        messages.append(inbox.get())
        preparing.go_on(False)
    try:
        while True:
            messages.append(inbox.get_nowait())
    except Empty:
        return messages


def _note(batch: Pair, preparing: Preparing, message: Submit | Cancel | Rest | GoOn) -> None:
    """Note who wants to be answered, or does not any more, or not now."""
    match message:
        case Submit():
            preparing.take(message)
        case Cancel():
            preparing.cancel(message.key)
            batch.cancel(message.key)
        case Rest():
            batch.rest(message.key)
        case GoOn():
            batch.go_on(message.key)


def _enter(batch: Pair, preparing: Preparing, ready: Ready) -> tuple[tuple[int, Event], ...]:
    """Let a request that is laid out wait for its turn; return what is said where it cannot be answered."""
    if not preparing.is_wanted(ready.key):
        return ()
    if isinstance(ready.outcome, Prepared):
        batch.admit(ready.key, ready.outcome)
        return ()
    return ((ready.key, Failed(_reason(ready.outcome), refused=True)),)


def _policy(workspace: Workspace, version: str, pretrained: Pretrained) -> PreTrainedModel:
    return versions.load_policy(workspace, version, pretrained).assembled(pretrained.trunk)


def _candidate(workspace: Workspace, beside: Beside | None, pretrained: Pretrained) -> tuple[RunningBatch | None, str]:
    """Return the batch of a candidate, or why it cannot be loaded."""
    if beside is None:
        return None, ""
    try:
        policy = _policy(workspace, beside.version, pretrained)
    except Exception as error:
        return None, f"the candidate {beside.version} cannot be loaded: {_reason(error)}"
    return RunningBatch(policy, beside.version, pretrained.trunk, pretrained.renderer, beside.seats), ""


def _change_policy(batch: Pair, workspace: Workspace, version: str, pretrained: Pretrained) -> EngineState:
    """Give the batch another policy; where that cannot be loaded, the old one stays and the reason is told."""
    try:
        batch.take_policy(_policy(workspace, version, pretrained), version)
    except Exception as error:
        return EngineState(Phase.READY, batch.version, _reason(error), batch.candidate)
    return EngineState(Phase.READY, version)


def _reason(error: Exception) -> str:
    """Return a user's mistake as it is told, and anything else with its kind; the log says where it arose."""
    if isinstance(error, MannersError):
        return str(error)
    complain(error)
    return f"{type(error).__name__}: {error}"
