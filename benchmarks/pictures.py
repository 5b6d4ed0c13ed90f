"""Takes the pictures of the pages and the report that the docs show, in a real browser before a real server.

    make demo && .venv/bin/python -m benchmarks.pictures --workspace demo

A copy of a finished demo is served by its promoted policy; an annotator judges and chats, and an owner looks on.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro
from playwright.sync_api import Browser, Page, expect, sync_playwright

from benchmarks.publish import ROOT
from manners.store import Store
from manners.store.accounts import Accounts
from manners.types import AccountRole
from manners.workspace import Workspace
from tests.web.conftest import Place, enter, serve

PICTURES = ROOT / "docs" / "pictures"
SERVED = "\n[serve]\nchat_ask = 1.0\nmax_new_tokens = 60\n"
QUESTION = "How can I get a coffee stain out of a cotton shirt?"
MINUTES = 300_000
"""What a model on two cores may take for two answers, in milliseconds."""
WIDE, PHONE, SHEET = (1280, 900), (390, 844), (1000, 1500)


@dataclass(frozen=True)
class Options:
    """What to show."""

    workspace: Path = ROOT / "demo"
    """A finished demo; a copy of it is used."""


def main(options: Options) -> None:
    """Take them all."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        place = _place(options.workspace, Path(folder) / "workspace")
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        with _page(browser, (options.workspace / "report.html").absolute().as_uri(), SHEET) as page:
            _take(page, "report")
        with closing(place.store), closing(browser), serve(place.folder) as server:
            _of_an_annotator(place, browser, server.url)
            _of_an_owner(place, browser, server.url)


def _place(finished: Path, copy: Path) -> Place:
    """Copy a demo, open comparisons for people, and let an owner and an annotator in."""
    shutil.copytree(finished, copy)
    with (copy / "manners.toml").open("a", encoding="utf-8") as settings:
        settings.write(SERVED)
    program = "import sys; from manners.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "sample", "--again", "--limit", "8", "--workspace", str(copy)]
    subprocess.run(command, check=True)
    store = Store.open(Workspace.open(copy).database)
    accounts = Accounts(store)
    accounts.add("Olga", AccountRole.OWNER, None)
    accounts.add("Anna", AccountRole.ANNOTATOR, None)
    return Place(copy, store, accounts)


@contextmanager
def _page(browser: Browser, address: str, size: tuple[int, int] = WIDE) -> Iterator[Page]:
    """Open a page for somebody new, who comes by a link."""
    with closing(browser.new_context(viewport={"width": size[0], "height": size[1]})) as context:
        page = context.new_page()
        page.goto(address)
        yield page


def _take(page: Page, name: str, *, whole: bool = False) -> None:
    page.wait_for_timeout(500)  # for what still moves
    page.screenshot(path=PICTURES / f"{name}.png", full_page=whole)


def _of_an_annotator(place: Place, browser: Browser, url: str) -> None:
    with _page(browser, url + place.link("Anna")) as page:
        _take(page, "sign-in")
        enter(page)
        page.goto(f"{url}/label")
        expect(page.locator("#pair")).to_be_visible()
        _take(page, "label")
        page.wait_for_timeout(600)  # nobody judges sooner than they can look
        for key in ("1", "2"):
            page.keyboard.press(key)
            page.wait_for_timeout(1500)
        page.get_by_role("button", name="Report").click()
        _take(page, "report-a-pair")
        page.locator("#reporting").get_by_role("radio").first.check()
        page.locator("#reporting").get_by_role("button", name="Report").click()
        page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
        page.reload()
        expect(page.locator("#pair")).to_be_visible()
        _take(page, "label-phone")
        page.goto(f"{url}/chat")
        page.locator("#consent").get_by_role("button").click()
        page.locator("#words").fill(QUESTION)
        page.get_by_role("button", name="Send").click()
        expect(page.locator("#asking")).to_be_visible(timeout=MINUTES)
        _take(page, "chat-phone")
        page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})
        _take(page, "chat")
        page.goto(f"{url}/me")
        _take(page, "me")


def _of_an_owner(place: Place, browser: Browser, url: str) -> None:
    with _page(browser, url + place.link("Olga")) as page:
        enter(page)
        for name in ("dashboard", "rounds", "flags", "accounts", "log"):
            page.goto(f"{url}/{name}")
            _take(page, name, whole=name in ("dashboard", "rounds"))
        Workspace.open(place.folder).roll_back()  # so that a policy waits
        page.goto(f"{url}/review")
        _take(page, "review", whole=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
