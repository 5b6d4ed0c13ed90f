"""A stage's run in a process that trains along with another one (`loop.along`), whose the run is."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from manners import ranks
from manners.errors import MannersError
from manners.launched import Place
from manners.loop.along import Errand
from manners.loop.round import EVERY
from manners.loop.session import Session
from manners.loop.stage import execute
from manners.settings_load import from_dict
from manners.unfinished import unfinished
from manners.workspace import Workspace


def run(errand: Errand) -> None:
    """Run a stage; the lock is held by whoever sent this."""
    stage = next(one for one in EVERY if one.name == errand.stage)
    session = Session(
        Workspace.open(Path(errand.root)), from_dict(errand.settings), errand.turn, begun_by=errand.begun_by
    )
    execute(stage, session, resume=errand.resume, locked=True)
    ranks.leave()  # of a run that had finished before


def again(errand: Errand, tried: int) -> None:
    """Run it on another machine, and after the first time go on with what that has left."""
    os.chdir(errand.folder)
    left = tried > 0 and unfinished(Workspace.look_at(Path(errand.root)).runs / errand.stage)
    run(replace(errand, resume=True) if left else errand)


def main(asked: Mapping[str, Any]) -> None:
    """Be one of the others on this machine."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first one ends all
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    errand = Errand(**asked["errand"])
    try:
        ranks.join(Place(**asked["place"]), asked["meeting"], errand.device, Path(asked["comes"]).touch)
        ranks.compute_with(asked["threads"])
        run(errand)
    except MannersError as error:
        print(f"manners: {error}", file=sys.stderr)
        sys.exit(1)


def _end_with_the_first() -> None:
    """Wait for the end of the process that has started this one, and end."""
    os.read(sys.stdin.fileno(), 1)  # not by Python's own buffer, whose lock a thread must not hold at the end
    os._exit(1)
