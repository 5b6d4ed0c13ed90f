"""Other processes that train along with a stage's own: started here, by torchrun, or by Ray Train.

    manners sft --processes 2                                      this process and another of this machine
    torchrun --nproc-per-node 2 --no-python manners sft            the same, started by PyTorch's own tool
    manners sft --processes 8 --ray-address HOST:PORT              under Ray Train, on the machines of a cluster

Each runs the stage as the first does, up to the last step (`ranks`): with the same settings, on the same verdicts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

import manners
from manners import ranks
from manners.checkpoint import Run
from manners.errors import MannersError
from manners.launched import Place, told
from manners.loop.session import Session
from manners.models.pretrained import pick_device
from manners.scale import training
from manners.unfinished import begun_with
from manners.workspace import clear_partials

if TYPE_CHECKING:
    from manners.loop.stage import Stage

LOOPBACK = {"linux": "lo", "darwin": "lo0"}
"""The interface by which processes of one machine talk, by system."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
FAREWELL = 5.0
"""Seconds for which one waits to hear why another process ended."""
BEFORE = "another process ended before it began"
CHILD = (
    "import json, sys; asked = json.load(open(sys.argv[1], encoding='utf-8')); sys.path[:] = asked['path'];"
    " from manners.loop.errand import main; main(asked)"
)
"""What another process runs: by the same search path as this one, with no folder put before it."""


@dataclass(frozen=True)
class Errand:
    """What another process is to run, in JSON's types."""

    root: str
    settings: Mapping[str, Any]
    stage: str
    resume: bool
    turn: int | None
    begun_by: str
    device: str
    folder: str
    """Where names of files in settings are looked for."""

    @classmethod
    def of(cls, stage: Stage, session: Session, resume: bool) -> Errand:
        """Describe a run of a stage."""
        return cls(
            root=str(session.workspace.root.resolve()),
            settings=asdict(session.settings),
            stage=stage.name,
            resume=resume,
            turn=session.turn,
            begun_by=session.started_by if stage.teaches else session.begun_by,
            device=pick_device(session.settings.model.device).type,
            folder=os.getcwd(),
        )


def versions() -> dict[str, str]:
    """Say which programs this process runs: others that train along must run the same."""
    return {"the version of manners": manners.__version__, "the version of torch": str(torch.__version__)}


def on_cluster(stage: Stage, session: Session, processes: int, address: str, resume: bool) -> None:
    """Have a stage's run made by processes of a Ray cluster, which share the workspace's folder with this one."""
    if told() is not None:
        raise MannersError("--ray-address has processes started: run the command without torchrun")
    runs = session.workspace.runs
    if not resume:
        Run(runs / stage.name, f"manners {stage.line(begun_with(runs / stage.name))}", {}, 0.0).begin_anew()
    errand = Errand.of(stage, session, resume)
    folder = runs / "ray"
    try:
        training.fit(address, processes, folder, errand.device == "cuda", partial(_there, errand))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _there(errand: Errand, tried: int) -> None:
    """Run an errand on another machine."""
    import_module("manners.loop.errand").again(errand, tried)


def follows() -> bool:
    """Whether this process trains along with another one, whose the run is."""
    at = told()
    return ranks.number() > 0 or (at is not None and at.number > 0)


@contextmanager
def along(stage: Stage, session: Session, processes: int, resume: bool) -> Iterator[None]:
    """Have others train along in this block, where they were asked for; where the block ends, so do they.

    Raises MannersError where torchrun has started a stage that is not shared.
    """
    at = told()
    if ranks.count() > 1 or (at is None and processes == 1):
        yield
        return
    with ExitStack() as held:
        if at is not None:
            if not stage.shared:
                raise MannersError(
                    f"`manners {stage.command}` is not shared by several processes: run it without torchrun"
                )
            if processes > 1:
                raise MannersError("torchrun has started the processes: leave --processes out")
            if at.number:
                held.enter_context(redirect_stderr(held.enter_context(open(os.devnull, "w", encoding="utf-8"))))
            ranks.join(at, device=pick_device(session.settings.model.device).type)
            held.callback(ranks.forsake)
        else:
            held.enter_context(_started(Errand.of(stage, session, resume), processes))
        yield
        ranks.leave()


@contextmanager
def _started(errand: Errand, processes: int) -> Iterator[None]:
    """Start the others on this machine, meet them, and end them; they meet by a file, and talk by loopback alone."""
    threads = max(1, torch.get_num_threads() // processes)
    with tempfile.TemporaryDirectory(prefix="manners-") as name, _loopback():
        others = Others(Path(name), processes)
        try:
            for number in range(1, processes):
                others.start(errand, number, threads)
            place = Place(0, processes, 0, processes)
            others.until_they_come()
            others.while_they_live(lambda: ranks.join(place, others.meeting, errand.device))
            ranks.compute_with(threads)
            yield
            others.wait()
        except ranks.Lost as lost:
            raise (others.why() or MannersError(str(lost))) from lost
        finally:
            ranks.forsake()
            others.end()
            clear_partials(Path(errand.root))


@contextmanager
def _loopback() -> Iterator[None]:
    """Have gloo and NCCL talk by the loopback interface in this block, of this process and of those it starts."""
    before = {name: os.environ.get(name) for name in INTERFACES}
    if sys.platform in LOOPBACK:
        os.environ.update(dict.fromkeys(INTERFACES, LOOPBACK[sys.platform]))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class Others:
    """The processes of this machine that train along with this one."""

    def __init__(self, folder: Path, count: int) -> None:
        """Begin without any; what they are told and what they say goes to a folder."""
        self.folder = folder
        self.count = count
        self.running: list[subprocess.Popen[bytes]] = []

    @property
    def meeting(self) -> str:
        """Where all meet."""
        return (self.folder / "meeting").as_uri()

    def comes(self, number: int) -> Path:
        """Return the file by which one says that it has all it needs and comes to meet."""
        return self.folder / f"comes-{number}"

    def start(self, errand: Errand, number: int, threads: int) -> None:
        """Start one; it ends with this process, whose end it hears on its standard input."""
        place = Place(number, self.count, number, self.count)
        asked = {
            "path": [str(Path(one).resolve()) for one in sys.path],
            "errand": asdict(errand),
            "place": asdict(place),
            "comes": str(self.comes(number)),
            "meeting": self.meeting,
            "threads": threads,
        }
        task = self.folder / f"errand-{number}.json"
        task.write_text(json.dumps(asked), encoding="utf-8")
        with (self.folder / f"said-{number}").open("wb") as said:
            self.running.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-c", CHILD, str(task)],
                    stdin=subprocess.PIPE,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,
                )
            )

    def until_they_come(self) -> None:
        """Wait until all come to meet: whoever waits for them by torch and in vain can meet nobody after that."""
        while not self.gone and not all(self.comes(number).exists() for number in range(1, self.count)):
            time.sleep(0.05)
        if self.gone:
            raise ranks.Lost(BEFORE)

    @property
    def gone(self) -> bool:
        """Whether one has ended."""
        return any(other.poll() is not None for other in self.running)

    def while_they_live(self, work: Callable[[], None]) -> None:
        """Do some work that waits for them, and give it up where one of them ends, or on Ctrl-C."""
        raised = list[BaseException]()

        def doing() -> None:
            try:
                work()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=doing, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            if self.gone:
                thread.join(1.0)  # it may have come through all the same
                if thread.is_alive():
                    raise ranks.Lost(BEFORE)
        if raised:
            raise raised[0]

    def wait(self) -> None:
        """Wait until all have ended."""
        for other in self.running:
            other.wait()

    def end(self) -> None:
        """End those that have not ended."""
        for other in self.running:
            other.kill()
            other.wait()
            _close(other.stdin)

    def why(self) -> MannersError | None:
        """Say why the first of those that failed has ended; None where none has."""
        until = time.monotonic() + FAREWELL
        while time.monotonic() < until and all(other.poll() is None for other in self.running):
            time.sleep(0.05)
        for number, other in enumerate(self.running, start=1):
            if other.poll():
                said = (self.folder / f"said-{number}").read_text(encoding="utf-8", errors="replace")
                ended = _ended(other.returncode, said.strip().splitlines())
                return MannersError(
                    f"process {number + 1} of {self.count} that trained along was lost ({ended}); go on with --resume"
                )
        return None


def _ended(code: int, said: Sequence[str]) -> str:
    """Say how a process ended, by its exit code and what it said last."""
    if code < 0:
        with suppress(ValueError):
            return f"it was ended by {signal.Signals(-code).name}"
    return said[-1].removeprefix("manners: ") if said else f"it ended with {code}"


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        stream.close()
