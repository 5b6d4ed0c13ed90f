"""Every page, wide and narrow, light and dark: nothing that axe calls serious, and no number beside the screen."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from manners.settings import ServeSettings, Settings
from manners.store.chats import Chats
from manners.store.flags import FlagReason
from manners.store.tokens import TokenUse
from manners.types import AccountRole, Annotator, AnnotatorKind, AskedHow, Comparison, Response, Role, Turn
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.conftest import Place, enter
from tests.web.scripted import Scripted
from tests.web.test_dashboard import fill, version
from tests.web.test_label import RICH
from tests.web.test_openai import listening

NUMBERS = """() => {
    const ELSEWHERE = ".text, div.plain, .visually-hidden, #conversations, script";
    const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const node = walk.currentNode, range = document.createRange();
        if (!/\\d/.test(node.data) || node.parentElement.closest(ELSEWHERE)) continue;
        range.selectNodeContents(node);
        let left = 0, right = innerWidth;
        for (let one = node.parentElement; one; one = one.parentElement) {
            if (getComputedStyle(one).overflowX === "visible") continue;
            const box = one.getBoundingClientRect();
            [left, right] = [Math.max(left, box.left), Math.min(right, box.right)];
        }
        for (const box of range.getClientRects())
            if (box.width && (box.left < left - 1 || box.right > right + 1)) found.push(node.data.trim());
    }
    return found;
}"""
"""Texts with a digit of which a part is cut off at a side, of the window or of what scrolls."""


def furnish(place: Place) -> str:
    """Fill a workspace so that every page has something of each kind, and return an invitation."""
    fill(place)
    olga, anna = (one.id for one in (place.accounts.all()[0], place.accounts.add("anna", AccountRole.ANNOTATOR)))
    assert olga is not None and anna is not None
    who = Annotator("olga", AnnotatorKind.HUMAN, olga)
    earlier = tuple(
        turn for n in range(4) for turn in (Turn(Role.USER, f"Question {n}? " * 9), Turn(Role.ASSISTANT, "Yes. " * 40))
    )
    asked = (*earlier, Turn(Role.USER, "And the last question?"))
    place.store.add_comparisons([Comparison(asked, Response(RICH, "a"), Response("No. 42", "b"), AskedHow.RANDOM)])
    chats = Chats(place.store)
    for number in range(12):
        key = chats.begin(who)
        chats.say(who, key, [], f"Question number {number}", [Response(f"{RICH} {number}\n\n" * 6, "initial")], 1.0)
    response = chats.read(who, key)[1].response
    assert response is not None
    chats.flag(who, response, FlagReason.WRONG, "see line 12345")
    place.accounts.issue(TokenUse.KEY, "anna", label="an application of 2030")
    workspace = Workspace.open(place.folder)
    version(workspace, "policy-1")
    curve = [json.dumps({"step": step, "objective/kl": step / 7, "objective/scores": -step}) for step in range(9)]
    (workspace.runs / "ppo-1").mkdir(parents=True)
    (workspace.runs / "ppo-1" / "metrics.jsonl").write_text("\n".join(curve), encoding="utf-8")
    return place.accounts.issue(TokenUse.INVITATION, role=AccountRole.ANNOTATOR)


def sound(page: Page, where: str) -> None:
    """Assert that a page can be read: by a screen reader, and on its screen."""
    found = Axe().run(page).response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == [], where
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), where
    assert page.evaluate(NUMBERS) == [], where


@pytest.mark.parametrize("new_store", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("width", "dark"),
    [
        (390, True),
        pytest.param(1280, False, marks=pytest.mark.long),
        pytest.param(1280, True, marks=pytest.mark.long),
        pytest.param(390, False, marks=pytest.mark.long),
    ],
)
def test_every_page_is_sound(place: Place, open_page: Callable[..., Page], width: int, dark: bool) -> None:
    invitation = furnish(place)
    settings = Settings(serve=ServeSettings(chat_ask=1.0, agree=2, retire_after=2))
    workspace, engine = Workspace.open(place.folder), Scripted((RICH,))
    with listening(Site(workspace, settings, place.store, place.accounts, False, "http://127.0.0.1", engine)) as url:
        page = open_page(f"{url}/join/{invitation}", dark=dark, width=width)
        sound(page, "join")
        page.goto(f"{url}/sign-in")
        sound(page, "sign in")
        page.goto(url + place.link("olga"))
        sound(page, "a link")
        enter(page)
        page.wait_for_selector("#pair:not([hidden])")
        question = page.get_by_text("And the last question?")
        if width > 700:
            expect(question).to_be_in_viewport()
        sound(page, "label")
        page.keyboard.press("?")
        sound(page, "guidelines")
        page.goto(f"{url}/chat")
        expect(page.locator(".turn")).to_have_count(2)
        past, words = page.locator(".past").bounding_box(), page.get_by_label("Your message").bounding_box()
        assert past is not None and words is not None and 0 < words["y"] < 800
        assert (0 <= past["y"] < 800) if width > 700 else past["y"] > words["y"], "it stays; or comes second"
        sound(page, "chat")
        page.locator("#new").click()
        page.get_by_role("button", name="I agree, begin").click()
        page.get_by_label("Your message").fill("And now?")
        page.get_by_label("Your message").press("Enter")
        page.wait_for_selector("[data-choice=skip][aria-disabled=false]")
        sound(page, "two answers")
        for path in ("accounts", "me", "log", "flags", "review", "nothing", "dashboard"):
            page.goto(f"{url}/{path}")
            sound(page, path)
        promote = page.get_by_role("button", name="Promote policy-1", exact=True)
        expect(promote).to_be_hidden()
        page.get_by_label("Promote policy-1 …").click()
        expect(promote).to_be_visible()
        sound(page, "promotion")
