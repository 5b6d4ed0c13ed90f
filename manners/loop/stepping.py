"""A step of the loop in a process of its own: begun by one process, and looked at and stopped by any.

    runs/step/step.json      which step it is, when it was begun and which process it is
    runs/step/log.txt        what it says on stderr; locked as long as it runs
    runs/step/result.json    what it says at its end, as `manners loop --json` does

The process inherits the lock with its stderr, so that whether it runs is known without its parent, which may have ended
or been started anew. It does nothing before step.json is written: none runs that nobody could stop. Nothing here loads
torch.
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
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import IO

from manners import holder
from manners.errors import MannersError
from manners.facts import from_facts, to_facts
from manners.holder import Holder
from manners.logs import FORMAT
from manners.loop.coming import ASKED, Step
from manners.loop.history import LOOP, Begun, read_begun
from manners.loop.starter import VARIABLE
from manners.terminal import in_one_line
from manners.workspace import Workspace, atomic_write

NICENESS = 15
"""What a step gives way by to those who are served: the model's process gives way by 10."""
FIRST = """\
import os, signal, sys
if not os.read(0, 1):  # whoever began it has ended, or could not write down which step it is
    sys.exit(1)
"""
"""What its process does before anything else: it waits until it is told to go on."""
CHILD = f"""\
{FIRST}
os.nice({NICENESS})
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever began it may have been told to pass over that
from manners.cli import main
sys.exit(main())
"""
"""What its process runs."""
UNDER_WAY = "a step of the loop is under way: wait for it to end, or stop it"
SAID = "manners: "
"""How the line begins in which a command says why it has failed."""
FAULT = "Traceback (most recent call last):"
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
    host: str = ""
    """The machine on which that is its number: a folder may be shared by several."""
    round: int = 0
    name: str = ""
    sentence: str = "a step that has just begun"
    begun_at: str = ""
    """UTC."""
    stopped_at: str = ""
    """When it was told to stop, in UTC; empty where it was not."""

    @property
    def process(self) -> str:
        """Which process it is, with its machine where that is another one."""
        return Holder(pid=self.pid, host="" if self.is_here else self.host).process

    @property
    def is_here(self) -> bool:
        """Whether its process is one of this machine."""
        return self.host in ("", holder.this_machine())

    @property
    def mark(self) -> str:
        """What tells it from others, as that of `Step`."""
        return f"{self.round} {self.name}"


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """A round that has ended, of what the loop says at its end."""

    policy: str
    outcome: str


@dataclass(frozen=True, kw_only=True)
class _Awaited:
    """What the loop waits for, of what it says at its end."""

    sentence: str


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What the loop says at its end (`result.json`)."""

    rounds: tuple[_Ended, ...]
    stopped: str
    waiting_for: _Awaited | None = None
    step: str = ""
    """Which stage was done, where it went no further."""


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
                    stdin=subprocess.PIPE,
                    stdout=result,
                    stderr=said,
                    env=_environment(account),
                    process_group=0,  # Ctrl-C is for the server; see `web.hashing` for why it is in no other session
                )
            threading.Thread(target=process.wait, daemon=True).start()  # so that nothing is left of it in the end
            _let_go(workspace, process, step)
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

    Raises MannersError where it does not run, or is not this server's to stop.
    """
    found = last(workspace)
    if found is None or not found.runs or found.taken.mark != mark or found.taken.pid <= 1:  # 1 would mean everybody
        raise MannersError("that step does not run any more: look at the page anew")
    taken = found.taken
    if not taken.is_here:  # where that number is another process's
        raise MannersError(f"that step runs on {taken.host}: stop it from a server there, or `kill -INT {taken.pid}`")
    try:
        os.killpg(taken.pid, signal.SIGINT)  # the number stays that of its group as long as anybody is in it
    except PermissionError:
        raise MannersError(f"process {taken.pid} is another user's: stop it as that one, by `kill -INT`") from None
    except ProcessLookupError:
        pass  # it has ended at this moment
    stopped = replace(taken, stopped_at=_now())
    if _read(workspace) == taken:  # and no other one was begun since
        with suppress(OSError, MannersError):  # a full disk keeps nobody from stopping what may have filled it
            _write(workspace, stopped)
    return stopped


def clear(workspace: Workspace) -> None:
    """Empty what a step has said. How one has ended was told by that, and is told no more; one at work says more."""
    with log(workspace).open("ab") as said:
        said.truncate(0)
        with suppress(BlockingIOError):
            fcntl.flock(said, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _signature(workspace).unlink(missing_ok=True)


def log(workspace: Workspace) -> Path:
    """Return where a step says what it does."""
    return workspace.runs / "step" / "log.txt"


def _let_go(workspace: Workspace, process: subprocess.Popen[bytes], step: Step) -> None:
    """Write down which step a process takes, and let it begin; where that cannot be written it ends by itself."""
    assert process.stdin is not None
    with process.stdin as word:
        about = Taken(round=step.round, name=step.name, sentence=step.sentence, begun_at=_now())
        _write(workspace, replace(about, pid=process.pid, host=holder.this_machine()))
        with suppress(BrokenPipeError):  # it has ended already
            os.write(word.fileno(), b"\n")


def _now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _lock(said: IO[bytes]) -> None:
    """Take the lock; raises MannersError where another step has it. Who looks at it shares it for an instant."""
    until = time.monotonic() + holder.INSTANT
    while True:
        try:
            fcntl.flock(said, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise MannersError(UNDER_WAY) from None
        time.sleep(0.01)


def _ended(workspace: Workspace, taken: Taken) -> Last:
    """Return how a step has ended."""
    # Libraries may have something to say after it.
    line = next((one for one in reversed(_lines(workspace)) if one.startswith(SAID)), "")
    if (result := _result(workspace)) is not None:
        return Last(taken=taken, state=State.DONE, said=_came_to(workspace, taken, result))
    if line and line != INTERRUPTED:
        return Last(taken=taken, state=State.FAILED, said=line.removeprefix(SAID))
    if fault := _fault(workspace, taken):
        return Last(taken=taken, state=State.FAILED, said=fault)
    kept = "the next step goes on from the last checkpoint, if there is one"
    if line or taken.stopped_at:
        return Last(taken=taken, state=State.STOPPED, said=f"it was stopped: {kept}")
    perhaps = "" if taken.is_here else f", or runs unseen from here on {taken.host}"
    why = f"its process has ended without a word{perhaps} ({log(workspace)} has what it said before)"
    return Last(taken=taken, state=State.KILLED, said=f"{why}: {kept}")


def _fault(workspace: Workspace, taken: Taken) -> str:
    """Return which fault of manners has ended a step, as its loop has kept it; empty where none has."""
    with suppress(MannersError):
        begun = read_begun(workspace)
        if begun is not None and begun.failed_at >= taken.begun_at and FAULT in _lines(workspace):
            return begun.failed
    return ""


def _came_to(workspace: Workspace, taken: Taken, result: _Result) -> str:
    """Say what came of a step that has done its work, by what the loop says at its end."""
    if waits := result.waiting_for:
        done = "it is done, and" if taken.name == ASKED else "it was too early for that:"
        return f"{done} the loop is {waits.sentence}"
    if 0 < taken.round <= len(result.rounds):
        ended = result.rounds[taken.round - 1]
        return f"{ended.policy} is {ended.outcome}. {result.stopped}".strip()
    if result.step not in ("", taken.name):
        return f"`{result.step}` was done in its place ({log(workspace)} says why)"
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


def _result(workspace: Workspace) -> _Result | None:
    """Return what a step has said at its end; None where it came to none, or failed with facts of its own."""
    file = _folder(workspace) / "result.json"
    with suppress(OSError, ValueError, MannersError):
        return from_facts(_Result, json.loads(file.read_text(encoding="utf-8")), str(file))
    return None


def _line(workspace: Workspace) -> str:
    """Return the last line of the log."""
    return next(reversed(_lines(workspace)), "")


def _lines(workspace: Workspace) -> list[str]:
    """Return the last lines of the log, without those that are empty."""
    with suppress(OSError), log(workspace).open("rb") as said:
        said.seek(max(0, said.seek(0, os.SEEK_END) - TAIL))
        lines = said.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
        return [in_one_line(one.strip())[:LONGEST] for one in lines if one.strip()]
    return []


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
