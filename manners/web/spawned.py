"""Processes of the server's own: each is told what to do through a pipe, and ends when that does."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess


def spawned(name: str, target: Callable[..., None], *given: object) -> tuple[BaseProcess, Connection]:
    """Start a process that does `target(its end of a pipe, *given)`; return it, and our end.

    Ctrl-C reaches all processes of a terminal, and is for the server: this one inherits a mask against it.
    """
    resource_tracker.ensure_running()  # it comes with the first process, and would lift the mask
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=target, args=(its, *given), name=name, daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        its.close()
    return process, ours
