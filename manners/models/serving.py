"""The process that holds the model while pages are served: takes messages, runs the batch, sends what was written.

Requests are laid out by a thread beside the batch (`preparing`): a long dialogue makes nobody else wait.
"""

from __future__ import annotations

import copy
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
from manners.models.preparing import Preparing, Ready
from manners.models.pretrained import Pretrained
from manners.models.requests import Cancel, EngineState, Failed, Load, Message, Phase, Submit
from manners.models.whole import load
from manners.settings import ModelSettings
from manners.workspace import Workspace


def serve(connection: Connection, workspace: Path, settings: ModelSettings, version: str, seats: int) -> None:
    """Load the model, and answer until the other end of the connection is closed.

    Another policy (`Load`) takes over between two requests: rows that run finish under the old one, and those that
    come wait until they have, so that no answer has two authors.
    """
    inbox = SimpleQueue[Message | Ready]()
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    try:
        place = Workspace(workspace)
        pretrained = load(settings, place)
        policy = _policy(place, version, pretrained)
    except Exception as error:  # where there is no model, the reason is all that there is to tell
        connection.send(EngineState(Phase.FAILED, version, _reason(error)))
        return
    batch = RunningBatch(policy, version, pretrained.trunk, pretrained.renderer, seats)
    # Its tokenizer is a copy, since one must not be used by two threads at once.
    preparing = Preparing(copy.deepcopy(pretrained.renderer), seats, inbox)
    connection.send(EngineState(Phase.READY, version))
    wanted: str | None = None
    while True:
        for message in _messages(inbox, wait=batch.idle and wanted is None):
            match message:
                case Submit():
                    preparing.take(message)
                case Cancel():
                    preparing.cancel(message.key)
                    batch.cancel(message.key)
                case Load():
                    wanted = message.version
                case Ready():
                    _enter(batch, preparing, message, connection)
        if wanted is not None and not batch.begun:
            connection.send(_change_policy(batch, place, wanted, pretrained))
            wanted = None
        if events := batch.step(admit=wanted is None):
            connection.send(events)


def _receive(connection: Connection, inbox: SimpleQueue[Message | Ready]) -> None:
    """Take messages at any time, also while the model is at work, so that nobody who sends one has to wait."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # whoever asked is gone, and there is nothing here to keep


def _messages(inbox: SimpleQueue[Message | Ready], wait: bool) -> list[Message | Ready]:
    """Take all messages that have come; wait for one where there is nothing else to do."""
    messages = [inbox.get()] if wait else []
    try:
        while True:
            messages.append(inbox.get_nowait())
    except Empty:
        return messages


def _enter(batch: RunningBatch, preparing: Preparing, ready: Ready, connection: Connection) -> None:
    """Let a request that is laid out wait for its turn; what cannot be answered is said at once."""
    if not preparing.is_wanted(ready.key):
        return
    if isinstance(ready.outcome, Prepared):
        batch.admit(ready.key, ready.outcome)
    else:
        connection.send(((ready.key, Failed(_reason(ready.outcome), refused=True)),))


def _policy(workspace: Workspace, version: str, pretrained: Pretrained) -> PreTrainedModel:
    return versions.load_policy(workspace, version, pretrained).assembled(pretrained.trunk)


def _change_policy(batch: RunningBatch, workspace: Workspace, version: str, pretrained: Pretrained) -> EngineState:
    """Give the batch another policy; where that cannot be loaded, the old one stays and the reason is told."""
    try:
        batch.take_policy(_policy(workspace, version, pretrained), version)
    except Exception as error:
        return EngineState(Phase.READY, batch.version, _reason(error))
    return EngineState(Phase.READY, version)


def _reason(error: Exception) -> str:
    """Return a user's mistake as it is told, and anything else with its kind; the log says where it arose."""
    if isinstance(error, MannersError):
        return str(error)
    complain(error)
    return f"{type(error).__name__}: {error}"
