"""What lets a loop go on for months: each minute it looks for what it waits for, and where it failed it says why."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from manners.errors import MannersError, Unavailable, described
from manners.loop import history
from manners.loop.session import Session, now
from manners.loop.waiting import Waiting
from manners.workspace import Workspace

LOOK = 60.0
"""Seconds between two looks at the store while something is waited for."""


def wait(session: Session, missing: Callable[[], Waiting | None], *, step: bool) -> Waiting | None:
    """Look until nothing is missing, and say each time what is, where it is another; or return it (`step`).

    Raises Unavailable where the store is away, or has let go of the run lock when it was started anew.
    """
    said = ""
    while lacks := missing():
        if step:
            return lacks
        if lacks.sentence != said:
            said = lacks.sentence
            print(f"{said} (Ctrl-C stops; `manners loop` goes on)", file=sys.stderr)
        time.sleep(LOOK)
        _refuse_lost(session)
    return None


def _refuse_lost(session: Session) -> None:
    """Raise Unavailable where a team's store does not know any more that this process may train."""
    if session.workspace.url is None:
        return  # a lock file is let go of by its process alone
    holder = session.store.trained_by()
    if holder is None or not holder.is_me:
        raise Unavailable("the right to train was lost with the connection to the database: it is to be taken again")


@contextmanager
def failure_kept(workspace: Workspace) -> Iterator[None]:
    """Keep why a loop fails in this block, where it does, for those who look on."""
    try:
        yield
    except Exception as error:
        with suppress(Exception):  # what cannot be kept is said all the same
            if begun := history.read_begun(workspace):
                why = str(error) if isinstance(error, MannersError) else f"a fault of manners: {described(error)}"
                history.write_begun(workspace, replace(begun, failed=why, failed_at=now()))
        raise
