"""A server on a real port, and a real browser before it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

import httpx
import pytest
from playwright.sync_api import Browser, Dialog, Page, Route, expect, sync_playwright

from manners.logs import Counted
from manners.store import Store
from manners.store.accounts import Accounts
from manners.store.tokens import Scope, Terms, TokenUse
from manners.types import AccountRole
from manners.workspace import Workspace
from tests.conftest import lack

Found = TypeVar("Found")
PATIENCE = 300.0
expect.set_options(timeout=1000 * PATIENCE)  # five seconds say how busy the machine is
NOWHERE = "http://127.0.0.1:9/v1"
"""Nobody answers there: pages that need no model are served without one."""


@dataclass
class Server:
    """`manners serve` in a process of its own."""

    folder: Path
    process: subprocess.Popen[str]
    url: str
    seconds: float
    """From the start of the process to the line that says where it is."""

    def kill(self) -> None:
        """End it as a power cut would."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def serve(folder: Path, *options: str, stderr: TextIO | None = None, first: str = "") -> Iterator[Server]:
    """Run `manners serve` until the block ends, on a free port unless told which; its log goes on to `stderr`.

    `first` is what its process is to do before anything else.
    """
    code = f"{first}\nfrom manners.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--workspace", str(folder)]
    command += [*(() if "--port" in options else ("--port", "0")), *options]
    begun = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while (found := re.search(r"manners is at (http://[^/]+)", said)) is None:
        line = process.stderr.readline()
        assert line, said
        said += line
    seconds = time.monotonic() - begun
    said_by_it, log = process.stderr, stderr or sys.stderr
    passing_on = threading.Thread(target=lambda: shutil.copyfileobj(said_by_it, log), daemon=True)
    passing_on.start()
    try:
        yield Server(folder, process, found[1], seconds)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)
        passing_on.join()
        said_by_it.close()


@dataclass
class Place:
    """A workspace that can be served, with its store."""

    folder: Path
    store: Store
    accounts: Accounts

    def key(self, name: str, role: AccountRole = AccountRole.ANNOTATOR, scopes: Iterable[Scope] = Scope) -> str:
        """Make an account and a key for it, which is good for all that the account may do."""
        self.accounts.add(name, role, None)
        return self.accounts.issue(TokenUse.KEY, name, terms=Terms(scopes=tuple(scopes)))

    def link(self, name: str) -> str:
        """Make the end of a link that signs an account in."""
        return f"/sign-in/{self.accounts.issue(TokenUse.SIGN_IN, name)}"


@pytest.fixture
def place(new_store: Callable[[], str], tmp_path: Path) -> Iterator[Place]:
    """A workspace with an owner, on SQLite and on PostgreSQL."""
    empty = new_store()
    workspace = Workspace.create(tmp_path / "ws", empty if "postgresql" in empty else None)
    if isinstance(workspace.database, Path):
        shutil.move(empty, workspace.database)
    with closing(Store.open(workspace.database)) as store:
        accounts = Accounts(store)
        accounts.add("olga", AccountRole.OWNER, "correct horse")
        yield Place(workspace.root, store, accounts)


@pytest.fixture
def alone(new_workspace: Callable[[Path], Workspace], tmp_path: Path) -> Iterator[Place]:
    """A workspace on SQLite without accounts: whoever is at this machine is its owner."""
    workspace = new_workspace(tmp_path / "alone")
    with closing(Store.open(workspace.database)) as store:
        yield Place(workspace.root, store, Accounts(store))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The system's browser."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        lack("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """A function that opens a page for somebody new; what runs or fails in it that must not, fails the test."""
    with ExitStack() as opened:
        wrong: list[str] = []

        def seen(dialog: Dialog) -> None:
            wrong.append(f"dialog {dialog.message}")
            dialog.dismiss()

        def open_one(url: str, *, dark: bool = False, width: int = 1280, height: int = 800) -> Page:
            context = chromium.new_context(
                color_scheme="dark" if dark else "light", viewport={"width": width, "height": height}
            )
            opened.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(1000 * PATIENCE)
            page.on("dialog", seen)
            page.on("pageerror", lambda error: wrong.append(f"script error {error}"))
            page.on("request", lambda request: wrong.extend([] if ours(request.url, url) else [request.url]))
            page.goto(url)
            return page

        yield open_one
        assert not wrong, wrong


def enter(page: Page) -> Page:
    """Press the button of a page that a sign-in link has opened."""
    page.get_by_role("button", name=re.compile("Sign in as")).click()
    return page


class Held:
    """Requests of a page to some address, which do not arrive before they are let go."""

    def __init__(self, page: Page, path: str) -> None:
        """Hold back what is sent from now on."""
        self._page = page
        self._path = path
        self._routes: list[Route] = []
        page.route(path, lambda route: self._routes.append(route))

    def sent(self) -> None:
        """Wait until one has been sent."""
        end = time.monotonic() + PATIENCE
        while not self._routes:
            assert time.monotonic() < end, f"nothing is sent to {self._path}"
            self._page.wait_for_timeout(20)

    def go(self, *, lost: bool = False) -> None:
        """Let what was sent arrive, or be lost, and hold back nothing more."""
        self.sent()
        for route in self._routes:
            if lost:
                route.abort()
            else:
                route.continue_()
        self._page.unroute(self._path)


def ours(address: str, url: str) -> bool:
    """Whether a request goes to the server itself."""
    host = re.match(r"https?://[^/]+", url)
    return host is not None and address.startswith((host[0], "data:", "about:", "blob:"))


def run(coroutine: Coroutine[Any, Any, Found]) -> Found:
    """Run a coroutine in a thread of its own: in the tests' thread the browser may have a loop that runs."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def healthy(url: str) -> bool:
    """Whether a server answers."""
    return bool(json.loads(httpx.get(f"{url}/health").text)["status"] == "ok")


@pytest.fixture
def heard() -> Iterator[io.StringIO]:
    """All that any logger says at any level, with tracebacks, and however often: a server that ran before counts.

    The filters of those who write to the log stay, but for the one that counts.
    """
    said = io.StringIO()
    root = logging.getLogger()
    handler = logging.StreamHandler(said)
    known = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    levels = {logger: (logger.level, logger.disabled) for logger in [root, *known]}
    filters = {logger: logger.filters for logger in levels}
    for logger in levels:
        logger.filters = [one for one in logger.filters if not isinstance(one, Counted)]
        logger.setLevel(1)
        logger.disabled = False
    root.addHandler(handler)
    yield said
    root.removeHandler(handler)
    for logger, (level, disabled) in levels.items():
        logger.setLevel(level)
        logger.disabled = disabled
        logger.filters = filters[logger]
