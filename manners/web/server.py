"""`manners serve`: finds a port, says where to look in one line, and serves until it is told to stop."""

from __future__ import annotations

import errno
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

import uvicorn
from filelock import FileLock, Timeout

from manners.errors import MannersError
from manners.settings import Settings
from manners.store import Store
from manners.store.accounts import Accounts, TokenUse
from manners.types import AccountRole
from manners.web.address import remember
from manners.web.app import create_app
from manners.web.engine import Engine
from manners.web.generation import Generator
from manners.web.site import Site
from manners.web.upstream import Upstream
from manners.workspace import Workspace

TRIES = 20
"""Ports tried one after another."""
LOOK_EVERY = 2.0
"""Seconds between two looks at which policy is promoted."""
KEEP_ALIVE = 75
"""Seconds that a connection without requests stays open: longer than proxies keep theirs (nginx: 60), or one of them
sends a request into a connection that is being closed."""


def serve(
    workspace: Workspace,
    store: Store,
    settings: Settings,
    *,
    host: str,
    base_url: str | None,
    open_browser: bool,
    upstream: Upstream | None = None,
) -> None:
    """Serve a workspace until interrupted; answers come from its own policy, or from another server.

    Raises MannersError where no port is free, where another server serves it, where others than this machine could
    come in although there are no accounts, and where there are accounts but no owner.
    """
    accounts = Accounts(store)
    owner = _first_owner(accounts)
    reached = {"--host": host} | ({} if base_url is None else {"--base-url": _host_of(base_url)})
    for option, name in reached.items():
        if owner is None and not _is_loopback(name):
            raise MannersError(
                f"{name} lets others in, and there are no accounts: make one with `manners accounts add NAME`, or"
                f" leave out {option}"
            )
    with _only_server(workspace), _listen(host, settings.serve.port) as listening:
        address = f"http://{_shown(host)}:{listening.getsockname()[1]}"
        engine = upstream or Engine(workspace.root, settings.model, workspace.current_policy(), settings.serve.seats)
        site = Site(workspace, settings, store, accounts, owner is None, (base_url or address).rstrip("/"), engine)
        remember(workspace, site.base_url)
        link = "/" if owner is None else f"/sign-in/{accounts.issue(TokenUse.SIGN_IN, owner)}"
        print(f"manners is at {site.base_url}{link} (Ctrl-C stops it)", file=sys.stderr)
        if open_browser:
            webbrowser.open(f"{site.base_url}{link}")
        config = uvicorn.Config(create_app(site), log_level="warning", access_log=False, timeout_keep_alive=KEEP_ALIVE)
        server = uvicorn.Server(config)
        engine.start()
        ended = threading.Event()
        threading.Thread(target=follow_promotions, args=(workspace, engine, ended), daemon=True).start()
        try:
            server.run(sockets=[listening])
        finally:
            ended.set()
            engine.stop()


def _first_owner(accounts: Accounts) -> str | None:
    """Return the name of an account that may do everything; None where there are no accounts at all.

    Raises MannersError where there are accounts and no owner: whoever comes must not be taken for one.
    """
    found = accounts.all()
    owners = [account.name for account in found if account.role is AccountRole.OWNER and not account.disabled]
    if found and not owners:
        raise MannersError("there are accounts, but no owner: make one with `manners accounts add NAME --role owner`")
    return owners[0] if owners else None


def _host_of(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise MannersError(f"--base-url {url} cannot be read: write it as https://labels.example.org")
    return parts.hostname


def follow_promotions(workspace: Workspace, engine: Generator, ended: threading.Event) -> None:
    """Serve whatever policy is promoted, also by another process, until the event is set."""
    seen = workspace.current_policy()
    while not ended.wait(LOOK_EVERY):
        # While the file that says so is damaged, the policy that was promoted before goes on.
        with suppress(MannersError):
            if (current := workspace.current_policy()) != seen:
                seen = current
                engine.load(current)


@contextmanager
def _only_server(workspace: Workspace) -> Iterator[None]:
    """Hold the right to serve a workspace: the queue of what is asked next lives in one process."""
    lock = FileLock(workspace.root / "serve.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise MannersError(f"{workspace.root} is being served already: stop that server, or use it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens at the port, or at the next one that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for tried in range(port, port + TRIES if port else 1):
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, tried))
            listening.listen(512)
        except OSError as error:
            listening.close()
            if error.errno != errno.EADDRINUSE:
                raise MannersError(
                    f"cannot listen at {host}:{tried} ({error.strerror}); name another --host"
                ) from error
            continue
        if tried != port:
            print(f"port {port} is in use, so this is port {listening.getsockname()[1]}", file=sys.stderr)
        with listening:
            yield listening
        return
    raise MannersError(f"ports {port} to {port + TRIES - 1} are all in use: name another with --port")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(host: str) -> str:
    """Return the name under which this machine can reach a host that is listened at."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
