"""A step of the loop in a process of its own: begun by one process, and looked at and stopped by any.

    runs/step/step.json      which step it is, when it was begun and which process it is
    runs/step/log.txt        what it says on stderr; locked as long as it runs
    runs/step/result.json    what it says at its end, as `manners loop --json` does

The process inherits the lock with its stderr, so that whether it runs is known without its parent, which may have ended
or been started anew. Nothing here loads torch.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from manners import holder
from manners.errors import MannersError
from manners.facts import from_facts, to_facts
from manners.logs import FORMAT
from manners.loop.coming import Step
from manners.loop.history import LOOP, Begun
from manners.loop.starter import VARIABLE
from manners.terminal import in_one_line
from manners.workspace import INSTANT, Workspace, atomic_write

NICENESS = 15
"""What a step gives way by to those who are served: the model's process gives way by 10."""
CHILD = f"""\
import os, signal, sys
os.nice({NICENESS})
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever began it may have been told to pass over that
from manners.cli import main
sys.exit(main())
"""
"""What its process runs."""
SAID = "manners: "
"""How the line begins in which a command says why it has failed."""
INTERRUPTED = f"{SAID}interrupted."
TAIL = 8192
"""Bytes of the log in which its last line is looked for."""
LONGEST = 500
"""Characters of a line that are shown."""


class State(StrEnum):
    """How a step stands."""

    RUNNING = "running"
    STOPPING = "stopping"
    """It was told to stop, and has not yet."""
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    KILLED = "killed"
    """It has ended without a word."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A step that was begun (`step.json`)."""

    stage: str = LOOP
    """As whoever holds a lock signs, with `pid`."""
    pid: int = 0
    round: int = 0
    name: str = ""
    sentence: str = "a step that has just begun"
    begun_at: str = ""
    """UTC."""
    stopped_at: str = ""
    """When it was told to stop, in UTC; empty where it was not."""

    @property
    def mark(self) -> str:
        """What tells it from others, as that of `Step`."""
        return f"{self.round} {self.name}"


@dataclass(frozen=True, kw_only=True)
class Last:
    """The step that was begun last, as it stands."""

    taken: Taken
    state: State
    said: str
    """What it has said last while it runs, and in a sentence how it ended."""

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.state in (State.RUNNING, State.STOPPING)


def begin(workspace: Workspace, step: Step, begun: Begun, account: str | None) -> None:
    """Take a step of a loop in a process of its own, in the name of an account, if there is one.

    It outlasts whoever calls this. Raises MannersError where another step runs, or the process cannot be started.
    """
    folder = _folder(workspace)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with log(workspace).open("ab") as said:
            _lock(said)
            _signature(workspace).unlink(missing_ok=True)  # the process of an older step is nobody's to stop
            said.truncate(0)
            with (folder / "result.json").open("wb") as result:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", CHILD, *_words(workspace, begun)],
                    stdin=subprocess.DEVNULL,
                    stdout=result,
                    stderr=said,
                    env=_environment(account),
                    process_group=0,  # Ctrl-C is for the server; see `web.hashing` for why it is in no other session
                )
            threading.Thread(target=process.wait, daemon=True).start()  # so that nothing is left of it in the end
            now = datetime.now(UTC).isoformat(timespec="seconds")
            taken = Taken(pid=process.pid, round=step.round, name=step.name, sentence=step.sentence, begun_at=now)
            _write(workspace, taken)
    except OSError as error:
        raise MannersError(
            f"no step can be begun in {folder} ({error.strerror}): see to its disk and rights"
        ) from error


def last(workspace: Workspace) -> Last | None:
    """Return how the step stands that was begun last; None where none was."""
    runs = holder.of_file(log(workspace), _signature(workspace)) is not None
    taken = _read(workspace)
    if runs:
        taken = taken or Taken()
        state = State.STOPPING if taken.stopped_at else State.RUNNING
        return Last(taken=taken, state=state, said=_line(workspace))
    return _ended(workspace, taken) if taken is not None else None


def stop(workspace: Workspace, mark: str) -> Taken:
    """Interrupt a step that runs, as Ctrl-C does: what it has done so far is gone on from.

    Raises MannersError where it does not run.
    """
    found = last(workspace)
    if found is None or not found.runs or found.taken.mark != mark or not found.taken.pid:
        raise MannersError("that step does not run any more: look at the page anew")
    stopped = replace(found.taken, stopped_at=datetime.now(UTC).isoformat(timespec="seconds"))
    _write(workspace, stopped)
    with suppress(ProcessLookupError):  # it has ended at this moment
        os.killpg(stopped.pid, signal.SIGINT)  # the number stays that of its group as long as anybody is in it
    return stopped


def log(workspace: Workspace) -> Path:
    """Return where a step says what it does."""
    return workspace.runs / "step" / "log.txt"


def _lock(said: IO[bytes]) -> None:
    """Take the lock; raises MannersError where another step has it. Who looks at it shares it for an instant."""
    until = time.monotonic() + INSTANT
    while True:
        try:
            fcntl.flock(said, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise MannersError("a step of the loop is under way: wait for it to end, or stop it") from None
        time.sleep(0.01)


def _ended(workspace: Workspace, taken: Taken) -> Last:
    """Return how a step has ended."""
    line = _line(workspace)
    if (result := _result(workspace)) is not None:
        return Last(taken=taken, state=State.DONE, said=_came_to(taken, result))
    if line.startswith(SAID) and line != INTERRUPTED:
        return Last(taken=taken, state=State.FAILED, said=line.removeprefix(SAID))
    kept = "the next step goes on from the last checkpoint, if there is one"
    if line == INTERRUPTED or taken.stopped_at:
        return Last(taken=taken, state=State.STOPPED, said=f"it was stopped: {kept}")
    why = f"its process has ended without a word ({log(workspace)} has what it said before)"
    return Last(taken=taken, state=State.KILLED, said=f"{why}: {kept}")


def _came_to(taken: Taken, result: Mapping[str, Any]) -> str:
    """Say what came of a step that has done its work, by what the loop says at its end."""
    if waits := result.get("waiting_for"):
        return f"it is done, and the loop is {waits['sentence']}"
    ended = result.get("rounds", [])
    if len(ended) >= taken.round:
        return f"{ended[taken.round - 1]['policy']} is {ended[taken.round - 1]['outcome']}. {result['stopped']}".strip()
    return "it is done"


def _folder(workspace: Workspace) -> Path:
    return workspace.runs / "step"


def _signature(workspace: Workspace) -> Path:
    return _folder(workspace) / "step.json"


def _write(workspace: Workspace, taken: Taken) -> None:
    atomic_write(_signature(workspace), json.dumps(to_facts(taken), indent=1) + "\n")


def _read(workspace: Workspace) -> Taken | None:
    """Return which step was begun last; None where none was, or nobody can tell."""
    file = _signature(workspace)
    with suppress(OSError, ValueError, MannersError):
        return from_facts(Taken, json.loads(file.read_text(encoding="utf-8")), str(file))
    return None


def _result(workspace: Workspace) -> dict[str, Any] | None:
    """Return what a step has said at its end; None where it came to none."""
    with suppress(OSError, ValueError):
        found = json.loads((_folder(workspace) / "result.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else None
    return None


def _line(workspace: Workspace) -> str:
    """Return the last line of the log."""
    with suppress(OSError), log(workspace).open("rb") as said:
        said.seek(max(0, said.seek(0, os.SEEK_END) - TAIL))
        lines = said.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
        return in_one_line(next((one.strip() for one in reversed(lines) if one.strip()), ""))[:LONGEST]
    return ""


def _words(workspace: Workspace, begun: Begun) -> list[str]:
    """Return what the command is told: to take one step of a loop, with the settings of the workspace."""
    crowd, when = ["--crowd"] if begun.crowd else [], ["--when", begun.when] if begun.when else []
    root = ["--workspace", str(workspace.root.absolute())]
    return ["loop", "--rounds", str(begun.rounds), *crowd, *when, "--one-step", "--json", *root]


def _environment(account: str | None) -> dict[str, str]:
    """Return what the process finds: our modules where ours were found, its log as text, and whose run it is."""
    found = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found.pop(FORMAT, None)
    return found | ({} if account is None else {VARIABLE: account})
