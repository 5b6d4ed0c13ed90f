"""Ray, started for one run or found at an address; the only module that imports it."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from manners.errors import MannersError

LOOPBACK = "127.0.0.1"
KNOCK_SECONDS = 20.0
"""For which a cluster may let one wait at its door."""
QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
LOCAL = {
    # Ray takes this machine's outer address for 127.0.0.1, and listens on all of them, unless it is told that there are
    # no other machines; it has this word for it on macOS and Windows, and reads it everywhere.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What Ray reads before it starts by itself."""
SOCKETS = "/tmp"
"""Where the folder of a run's sockets is: their names may have a hundred letters, and a workspace's is long enough."""


def check() -> None:
    """Raise MannersError where Ray is not installed; it is not imported, since it reads what `LOCAL` says only then."""
    if importlib.util.find_spec("ray") is None:
        raise MannersError(
            "--workers and --ray-address take Ray, which is not installed: run `pip install 'manners[scale]'`, or leave"
            " them out"
        )


@contextmanager
def running(address: str | None, cpus: int, store: int) -> Iterator[Any]:
    """Have Ray at hand: the cluster at an address, or one of this machine alone that ends with this process.

    Whoever reaches Ray's ports runs code as its user: those of its own are on loopback, behind a token that only this
    process and its children know. It has no dashboard and sends nothing home. `store` is what its object store may
    hold, in bytes. Raises MannersError where no cluster answers.
    """
    if address is None:
        os.environ.update(LOCAL)  # stays: Ray has read it, and its next start in this process must find the same
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    check()
    ray: Any = importlib.import_module("ray")
    folder = None if address else tempfile.mkdtemp(prefix="manners-", dir=SOCKETS)
    try:
        if address is None:
            _start(ray, cpus, store, folder)
        else:
            _join(ray, address)
        yield ray
    finally:
        ray.shutdown(wait_for_processes=True)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _start(ray: Any, cpus: int, store: int, folder: str | None) -> None:
    try:
        ray.init(
            "local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=store,
            _node_ip_address=LOOPBACK,
            _temp_dir=folder,
            **QUIET,
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise MannersError(
            f"Ray cannot be started here ({first_line(error)}); leave --workers out to do without"
        ) from error
    if (seen := ray.util.get_node_ip_address()) != LOOPBACK:
        raise MannersError(
            f"Ray would listen on {seen} and not on {LOOPBACK} alone, since this process had loaded it before; start"
            " the run in a process of its own"
        )


def _join(ray: Any, address: str) -> None:
    try:
        if address != "auto":  # Ray itself would knock for minutes where nobody is
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()
        ray.init(address, **QUIET)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise MannersError(
            f"no Ray cluster can be used at {address} ({first_line(error)}); check --ray-address, or leave it out to"
            " have workers on this machine"
        ) from error


def threads_each(cpus: Sequence[float], workers: int, gpus: Sequence[float] | None = None) -> int:
    """Return the most processors that every worker can have, on machines with so many; 0 where there are too few.

    With `gpus`, those of each machine, every worker also takes one of them.
    """
    most = int(max(cpus, default=0))
    seats = [workers] * len(cpus) if gpus is None else [int(n) for n in gpus]

    def room(each: int) -> int:
        return sum(min(int(n) // each, free) for n, free in zip(cpus, seats, strict=True))

    return next((each for each in range(most, 0, -1) if room(each) >= workers), 0)


def divided_among(ray: Any, count: int, option: str, on_gpu: bool) -> int:
    """Return the processors that each of `count` processes has on a cluster; `option` is what has asked for them.

    Raises MannersError where it has too few, or too few GPUs for one each: Ray would wait for more without a word.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = ([node.get(kind, 0) for node in nodes] for kind in ("CPU", "GPU"))
    each = threads_each(cpus, count, gpus if on_gpu else None)
    if not each:
        cards = f" and {sum(map(int, gpus))} GPUs, of which each takes one" if on_gpu else ""
        raise MannersError(
            f"--{option} is {count}, and the Ray cluster has {sum(map(int, cpus))} processors{cards}; ask for no more"
            f" {option} than that"
        )
    return each


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
