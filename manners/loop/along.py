"""Other processes that train along with a stage's own: started here, by torchrun, or by Ray Train.

    manners sft --processes 2                                this process and another of this machine
    torchrun --nproc-per-node 2 -m manners sft               the same, started by PyTorch's own tool
    manners sft --processes 8 --ray-address HOST:PORT        under Ray Train, on the machines of a cluster

Each runs the stage as the first does, up to the last step (`ranks`): with the same settings, on the same verdicts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from manners import ranks
from manners.errors import MannersError
from manners.loop.session import Session
from manners.models.pretrained import pick_device
from manners.ranks import Place
from manners.scale import training
from manners.settings_load import from_dict
from manners.unfinished import unfinished
from manners.workspace import Workspace, scratch_folder

if TYPE_CHECKING:
    from manners.loop.stage import Stage

LOOPBACK = {"linux": "lo", "darwin": "lo0"}
"""The interface by which processes of one machine talk, by system."""
MEETING = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True)
class Errand:
    """What another process is to run, in JSON's types."""

    root: str
    settings: Mapping[str, Any]
    stage: str
    resume: bool
    turn: int | None

    @classmethod
    def of(cls, stage: Stage, session: Session, resume: bool) -> Errand:
        """Describe a run of a stage."""
        return cls(str(session.workspace.root), asdict(session.settings), stage.name, resume, session.turn)

    def again(self, tried: int) -> None:
        """Run it, and after the first time go on with what that has left."""
        left = tried > 0 and unfinished(Workspace.look_at(Path(self.root)).runs / self.stage)
        (replace(self, resume=True) if left else self).run()

    def run(self) -> None:
        """Run it; the lock is held by whoever sent it."""
        from manners.loop.round import EVERY
        from manners.loop.stage import execute

        stage = next(one for one in EVERY if one.name == self.stage)
        session = Session(Workspace.open(Path(self.root)), from_dict(self.settings), self.turn)
        execute(stage, session, resume=self.resume, locked=True)


def on_cluster(stage: Stage, session: Session, processes: int, address: str, resume: bool) -> None:
    """Have a stage's run made by processes of a Ray cluster, which share the workspace's folder with this one."""
    errand = Errand.of(stage, session, resume)
    errand = replace(errand, root=str(session.workspace.root.resolve()))
    on_gpu = pick_device(session.settings.model.device).type == "cuda"
    with scratch_folder(session.workspace.runs / "ray") as folder:
        training.fit(address, processes, folder, on_gpu, errand.again)


def follows() -> bool:
    """Whether this process trains along with another one, whose the run is."""
    told = ranks.told()
    return ranks.number() > 0 or (told is not None and told.number > 0)


@contextmanager
def along(stage: Stage, session: Session, processes: int, resume: bool) -> Iterator[None]:
    """Have others train along in this block, where they were asked for; where the block ends, so do they.

    Raises MannersError where torchrun has started a stage that does not train.
    """
    told = ranks.told()
    if ranks.count() > 1 or (told is None and processes == 1):
        yield
        return
    with ExitStack() as held:
        if told is not None:
            if not stage.shared:
                raise MannersError(
                    f"`manners {stage.command}` is not shared by several processes: run it without torchrun"
                )
            if told.number:
                held.enter_context(redirect_stderr(held.enter_context(open(os.devnull, "w", encoding="utf-8"))))
            ranks.join(told)
            held.callback(ranks.forsake)
        else:
            held.enter_context(_started(Errand.of(stage, session, resume), processes))
        yield
        ranks.leave()


@contextmanager
def _started(errand: Errand, processes: int) -> Iterator[None]:
    """Start the others on this machine, meet them, and end them; they meet by a file, and talk by loopback alone."""
    with tempfile.TemporaryDirectory(prefix="manners-") as name:
        folder = Path(name)
        meeting = (folder / "meeting").as_uri()
        before = os.environ.get(MEETING)
        os.environ[MEETING] = LOOPBACK.get(sys.platform, before or "")
        threads = torch.get_num_threads()
        others = [_start(errand, Place(number, processes, number, processes), folder) for number in range(1, processes)]
        try:
            ranks.join(Place(0, processes, 0, processes), meeting)
            yield
            for other in others:
                other.wait()
        except MannersError as error:
            raise MannersError(_why(others, folder) or str(error)) from error
        finally:
            ranks.forsake()
            torch.set_num_threads(threads)
            for other in others:
                other.kill()
                other.wait()
            os.environ.pop(MEETING)
            if before is not None:
                os.environ[MEETING] = before


def _start(errand: Errand, at: Place, folder: Path) -> subprocess.Popen[bytes]:
    """Start one of the others; what it says goes to a file."""
    task = folder / f"errand-{at.number}.json"
    task.write_text(json.dumps({"errand": asdict(errand), "place": asdict(at)}), encoding="utf-8")
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    with (folder / f"said-{at.number}").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "manners.loop.along", str(task)],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def _why(others: list[subprocess.Popen[bytes]], folder: Path) -> str | None:
    """Say what the first of those that failed said last; None where none has."""
    for number, other in enumerate(others, start=1):
        try:
            code = other.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue
        if code:
            said = (folder / f"said-{number}").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = said[-1].removeprefix("manners: ") if said else f"it ended with {code}"
            return (
                f"process {number + 1} of {len(others) + 1} that trained along was lost ({last}); go on with --resume"
            )
    return None


def main() -> None:
    """Be one of the others."""
    task = Path(sys.argv[1])
    asked = json.loads(task.read_text(encoding="utf-8"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first one ends all
    try:
        ranks.join(Place(**asked["place"]), (task.parent / "meeting").as_uri())
        Errand(**asked["errand"]).run()
    except MannersError as error:
        print(f"manners: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
