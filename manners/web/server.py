"""`manners serve`: finds a port, says where to look in one line, and serves until it is told to stop."""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI
from filelock import FileLock, Timeout

from manners.errors import MannersError
from manners.holder import SERVE_LOCK
from manners.logs import Counted
from manners.loop import tried
from manners.settings import Settings
from manners.settings_load import to_dict
from manners.store import Store, audit
from manners.store.accounts import Accounts
from manners.store.records import digest
from manners.store.tokens import TokenUse
from manners.terminal import beneath
from manners.types import AccountRole
from manners.upkeep import schedule
from manners.web.address import remember
from manners.web.apart import APART
from manners.web.app import create_app
from manners.web.candidate import Trial
from manners.web.connections import BACKLOG, IDLE_SECONDS, LARGEST_HEADER, Connection, open_more_files
from manners.web.engine import Engine
from manners.web.generation import Generator
from manners.web.hashing import Aside
from manners.web.remembered import has_accounts, remember_accounts
from manners.web.site import Site
from manners.web.upstream import Upstream
from manners.workspace import Workspace

TRIES = 20
"""Ports tried one after another."""
LOOK_EVERY = 2.0
"""Seconds between two looks at which policy is promoted."""
ENDING_SECONDS = 10
"""Of grace for answers that are being written when the server is told to stop."""
SWITCH = 0.0005
"""Seconds for which a thread that reckons keeps Python's lock while others want it, a tenth of what is usual: whoever
answers requests gives the lock up at each read and write, some fifteen times until a first piece is sent."""


def serve(
    workspace: Workspace,
    store: Store,
    settings: Settings,
    *,
    host: str,
    base_url: str | None,
    open_browser: bool,
    upstream: Upstream | None = None,
    trial: Trial | None = None,
) -> None:
    """Serve a workspace until interrupted; answers come from its own policy, or from another server.

    A `trial` puts a candidate beside the policy in the chat.

    Raises MannersError where no port is free, where another server serves it, where others than this machine, or other
    sites' pages, could come in although there are no accounts, where there are accounts but no owner, and where there
    were some once.
    """
    hashing = Aside()
    accounts = Accounts(store, hashing)
    owner = _first_owner(accounts, workspace)
    reached = {"--host": host} | ({} if base_url is None else {"--base-url": _host_of(base_url)})
    if owner is None:
        _refuse_others(reached, settings.serve.allow_origins)
    lock, listens = _only_server(workspace), _listen(host, settings.serve.port)
    with lock, listens as listening, _on_record(store, settings, trial):
        address = f"http://{_shown(host)}:{listening.getsockname()[1]}"
        seats = settings.serve.seats
        version = trial.against if trial else workspace.current_policy()
        engine = upstream or Engine(
            workspace.root,
            settings.model,
            version,
            seats,
            beside=trial.beside(seats) if trial else None,
        )
        local, proxied = owner is None, base_url is not None or bool(os.environ.get("FORWARDED_ALLOW_IPS"))
        base = (base_url or address).rstrip("/")
        site = Site(workspace, settings, store, accounts, local, base, engine, proxied=proxied, trial=trial)
        remember(workspace, site.base_url)
        if warning := _readable(host, site.base_url):
            print(warning, file=sys.stderr)
        server = uvicorn_of(create_app(site), proxied)
        _ = site.desk  # reads all that is open: made on first use, it would let all others wait
        engine.start()
        ended = threading.Event()
        _keep_tried(workspace, store)
        threading.Thread(target=follow_promotions, args=(workspace, engine, ended, version), daemon=True).start()
        threading.Thread(target=schedule.follow, args=(workspace, settings.backup, ended), daemon=True).start()
        try:
            # Not before all is ready: an interrupt that comes while it is made may be lost in a destructor.
            print(_where(site, owner), file=sys.stderr)
            if open_browser:  # without a link that signs in: others see the command lines of this machine
                webbrowser.open(f"{site.base_url}/")
            gc.freeze()  # what is there stays: to look through it for garbage takes a tenth of a second each time
            sys.setswitchinterval(SWITCH)
            server.run(sockets=[listening])
        finally:
            ended.set()
            engine.stop()
            _keep_tried(workspace, store)
            hashing.stop()
            APART.stop()


def _keep_tried(workspace: Workspace, store: Store) -> None:
    """Bring the cards of candidates up to date; where one cannot be, it is said, and the server goes on."""
    try:
        tried.keep(workspace, store)
    except MannersError as error:
        print(f"a candidate's card is as it was: {error}", file=sys.stderr)


def uvicorn_of(app: FastAPI, proxied: bool = False) -> uvicorn.Server:
    """Return a server of the application: with limits on connections, and log lines that are not repeated."""
    open_more_files()
    config = uvicorn.Config(
        app,
        proxy_headers=proxied,  # anybody on this machine could be anybody else, as far as the log and limits know
        http=Connection,
        ws="none",
        log_level="warning",
        access_log=False,
        backlog=BACKLOG,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=ENDING_SECONDS,
        h11_max_incomplete_event_size=LARGEST_HEADER,
        timeout_notify=1,
    )
    server = uvicorn.Server(config)

    async def look() -> None:
        for connection in list(server.server_state.connections):
            if isinstance(connection, Connection):
                connection.look()

    config.callback_notify = look
    for name in ("uvicorn.error", "asyncio", "manners.web"):
        logging.getLogger(name).addFilter(Counted())
    return server


def _where(site: Site, owner: str | None) -> str:
    """Return the line that says where the server is, on a terminal with a link that signs the first owner in.

    A line that goes into a file is read by others, and for longer than the link should be known.
    """
    ends = "(Ctrl-C stops it)"
    if owner is None:
        return f"manners is at {site.base_url}/ {ends}"
    if beneath(sys.stderr).isatty():
        return f"manners is at {site.base_url}/sign-in/{site.accounts.issue(TokenUse.SIGN_IN, owner)} {ends}"
    return f"manners is at {site.base_url}/ {ends}; `manners accounts link {owner}` makes a link that signs {owner} in"


def _readable(host: str, base_url: str) -> str | None:
    """Return a warning where what is sent, passwords too, can be read on the way; None where it stays here."""
    if _is_loopback(host) and (base_url.startswith("https:") or _is_loopback(_host_of(base_url))):
        return None
    what = f"listens at {host}" if not _is_loopback(host) else f"is reached at {base_url}"
    return (
        f"warning: manners {what} by HTTP, so that others in the network can read passwords and answers on the way: "
        "let it listen at 127.0.0.1 only, put a proxy that speaks HTTPS before it, and name that with --base-url"
    )


def _first_owner(accounts: Accounts, workspace: Workspace) -> str | None:
    """Return the name of an account that may do everything; None where there are no accounts, and never were any.

    Raises MannersError where there are accounts and no owner, or where the workspace remembers accounts that its
    database has not: whoever comes must not be taken for one.
    """
    found = accounts.all()
    if found:
        remember_accounts(workspace)
    elif has_accounts(workspace):
        raise MannersError(
            f"there were accounts here, and {workspace.database} has none, so that everybody would be owner: put the"
            " database back from a copy, or begin anew with `manners accounts add NAME`"
        )
    owners = [account.name for account in found if account.role is AccountRole.OWNER and not account.disabled]
    if found and not owners:
        raise MannersError("there are accounts, but no owner: make one with `manners accounts add NAME --role owner`")
    return owners[0] if owners else None


def _refuse_others(reached: Mapping[str, str], allow_origins: str) -> None:
    """Raise MannersError where others could come in although there are no accounts: each of them would be the owner."""
    for option, name in reached.items():
        if not _is_loopback(name):
            raise MannersError(
                f"{name} lets others in, and there are no accounts: make one with `manners accounts add NAME`, or"
                f" leave out {option}"
            )
    if allow_origins.strip():
        raise MannersError(
            "serve.allow_origins lets pages of other sites ask with a key, and without accounts there are none: make an"
            " account with `manners accounts add NAME`, or leave the setting empty"
        )


def _host_of(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise MannersError(f"--base-url {url} cannot be read: write it as https://labels.example.org")
    return parts.hostname


def follow_promotions(workspace: Workspace, engine: Generator, ended: threading.Event, seen: str) -> None:
    """Serve whatever policy is promoted, also by another process, until the event is set.

    `seen` is the version that the engine was given: another one may have been promoted since.
    """
    while not ended.wait(LOOK_EVERY):
        # While the file that says so is damaged, the policy that was promoted before goes on.
        with suppress(MannersError):
            if (current := workspace.current_policy()) != seen:
                seen = current
                engine.load(current)


@contextmanager
def _only_server(workspace: Workspace) -> Iterator[None]:
    """Hold the right to serve a workspace: the queue of what is asked next lives in one process."""
    lock = FileLock(workspace.root / SERVE_LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise MannersError(f"{workspace.root} is being served already: stop that server, or use it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _on_record(store: Store, settings: Settings, trial: Trial | None) -> Iterator[None]:
    """Put on record what is served; before and after, nothing stays in the database of what was deleted.

    One that is refused must not: the candidate of the last one to be on record is kept from `manners models prune`.
    """
    store.clear_traces()  # where the last server was killed before it could
    audit.settings_changed(store, digest(to_dict(settings))[:16])
    audit.record(store, audit.Deed(audit.Event.SERVED, about=f"candidate {trial.version}" if trial else ""))
    try:
        yield
    finally:
        store.clear_traces()  # of what was deleted meanwhile


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens at the port, or at the next one that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for one in range(port, port + TRIES if port else 1):
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, one))
            listening.listen(512)
        except OSError as error:
            listening.close()
            if error.errno != errno.EADDRINUSE:
                raise MannersError(f"cannot listen at {host}:{one} ({error.strerror}); name another --host") from error
            continue
        if one != port:
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
