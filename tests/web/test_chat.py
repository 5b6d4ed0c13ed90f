"""`/chat` in a browser: two answers, a choice, and on; and what becomes of what was said."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from sqlalchemy import select

from manners.models.requests import EngineState, Phase
from manners.reward.data import LeftOut, label
from manners.settings import ServeSettings, Settings
from manners.store.flags import undecided
from manners.store.records import Version
from manners.store.tables import MessageRow, PromptRow, ResponseRow, ThumbRow
from manners.types import DELETED, AskedHow, Choice, VersionKind
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.conftest import Place
from tests.web.hostile import HOSTILE
from tests.web.scripted import Scripted
from tests.web.test_openai import listening

OpenPage = Callable[..., Page]
Open = Callable[..., str]


@pytest.fixture
def serving(alone: Place) -> Iterator[Open]:
    """A function that serves the chat with an engine, and a share of turns that ask."""
    entered = []

    def start(engine: Scripted, ask: float) -> str:
        settings = replace(Settings(), serve=ServeSettings(chat_ask=ask))
        workspace = Workspace.open(alone.folder)
        site = Site(workspace, settings, alone.store, alone.accounts, True, "http://127.0.0.1", engine)
        context = listening(site)
        url = context.__enter__()
        entered.append(context)
        return url

    yield start
    for context in entered:
        context.__exit__(None, None, None)


def begin(page: Page) -> None:
    page.get_by_role("button", name="I agree, begin").click()
    expect(page.get_by_label("Your message")).to_be_visible()


def say(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")


def test_two_answers_one_is_chosen_and_the_conversation_goes_on(
    alone: Place, serving: Open, open_page: OpenPage
) -> None:
    engine = Scripted(("I am ChatGPT and I **bake**.", "Then knead it."))
    page = open_page(f"{serving(engine, 1.0)}/chat")
    begin(page)
    say(page, "How do I bake?")
    expect(page.get_by_text("Which answer is better?")).to_be_visible()
    expect(page.locator(".two .turn")).to_have_count(2)
    assert "ChatGPT" not in page.content() and "initial" not in page.locator("#turns").inner_html()
    expect(page.locator(".two strong").first).to_have_text("bake")
    page.locator("#turns").focus()
    page.keyboard.press("2")
    expect(page.locator(".turn.assistant")).to_have_count(1)
    expect(page.locator(".turn.assistant")).to_contain_text("1: I am [model]")
    say(page, "And then?")
    expect(page.locator(".two .turn")).to_have_count(2)
    page.get_by_role("button", name="Skip").click()
    expect(page.locator(".turn.assistant")).to_have_count(2)
    page.reload()
    expect(page.locator(".turn")).to_have_count(4)
    assert [turn.text for turn in engine.asked[1].prompt] == [
        "How do I bake?",
        "1: I am [model] and I **bake**. ",
        "And then?",
    ]
    first, second = alone.store.comparisons(AskedHow.CHAT)
    assert first.ask_probability == 1.0 and first.left.author == "initial"
    assert [v.choice for v in first.verdicts] == [Choice.RIGHT] and first.verdicts[0].annotator.name == "owner"
    assert [v.choice for v in second.verdicts] == [Choice.SKIP]


def test_one_answer_with_thumbs_and_a_report(alone: Place, serving: Open, open_page: OpenPage) -> None:
    page = open_page(f"{serving(Scripted(), 0.0)}/chat")
    begin(page)
    say(page, "Hello")
    page.get_by_role("button", name="Good answer").click()
    expect(page.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Bad answer").click()
    expect(page.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Report this answer").click()
    page.get_by_label("wrong").check()
    page.get_by_role("dialog").get_by_role("button", name="Report", exact=True).click()
    expect(page.get_by_text("A reviewer will look at it")).to_be_visible()
    (flag,) = undecided(alone.store)
    assert (flag.reason, flag.comparison, flag.texts) == ("wrong", None, ("0: Gladly. ",))
    with alone.store.read() as connection:
        assert list(connection.execute(select(ThumbRow.value).order_by(ThumbRow.id)).scalars()) == [1, -1]
    assert alone.store.comparisons() == [], "a thumb is no comparison"
    page.reload()
    expect(page.get_by_role("button", name="Bad answer")).to_have_attribute("aria-pressed", "true")


def test_a_deleted_conversation_leaves_events_and_no_words(alone: Place, serving: Open, open_page: OpenPage) -> None:
    page = open_page(f"{serving(Scripted(('My answer.',)), 1.0)}/chat")
    begin(page)
    say(page, "My secret")
    page.get_by_role("button", name="Left 1").click()
    expect(page.locator(".turn.assistant")).to_have_count(1)
    watermark = alone.store.watermark()
    alone.store.add_version(Version("reward-1", VersionKind.REWARD, "versions/reward-1", None, {}, watermark))
    page.reload()
    expect(page.get_by_text(re.compile("1 verdict from you. 1 of them went into reward model 1"))).to_be_visible()
    page.get_by_role("button", name="Delete this conversation").click()
    page.get_by_role("button", name="Really delete it").click()
    expect(page.get_by_text("had learned from it already: reward-1")).to_be_visible()
    with alone.store.read() as connection:
        kept = [str(connection.execute(select(column)).all()) for column in (MessageRow.text, PromptRow.turns)]
        kept.append(str(connection.execute(select(ResponseRow.text)).all()))
    assert all("secret" not in text and "My answer" not in text and DELETED in text for text in kept)
    (comparison,) = alone.store.comparisons()
    assert comparison.verdicts[0].choice is Choice.LEFT
    with pytest.raises(Exception, match=str(LeftOut.DELETED)):
        label([comparison])


def test_stopping_keeps_the_words_and_nothing_else(alone: Place, serving: Open, open_page: OpenPage) -> None:
    page = open_page(f"{serving(Scripted(('word ' * 2_000,), pause=0.02), 0.0)}/chat")
    begin(page)
    say(page, "Go on")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_label("Your message")).to_have_value("Go on")
    with alone.store.read() as connection:
        assert connection.execute(select(MessageRow.id)).all() == []


def test_a_model_that_loads_is_waited_for(serving: Open, open_page: OpenPage) -> None:
    engine = Scripted(state=EngineState(Phase.LOADING, "initial"))
    page = open_page(f"{serving(engine, 0.0)}/chat")
    expect(page.get_by_text("The model is being loaded")).to_be_visible()
    engine.state = EngineState(Phase.READY, "initial")
    expect(page.get_by_text("The model is being loaded")).to_have_count(0)


def test_hostile_answers_run_nothing(serving: Open, open_page: OpenPage) -> None:
    light = tuple(text.replace("\0", "") for text in HOSTILE if len(text) < 9_000)
    page = open_page(f"{serving(Scripted(light), 0.0)}/chat")
    begin(page)
    for number, text in enumerate(light[::3]):
        say(page, text.strip() or "x")
        expect(page.locator(".after")).to_have_count(number + 1)
        page.wait_for_timeout(550)  # an account has two answers a second
    assert page.evaluate("window.hacked") is None
    assert page.locator("#turns :is(script, iframe, img, svg, object, form, style)").count() == 0


@pytest.mark.parametrize("dark", [False, True])
def test_a_screen_reader_finds_nothing_serious(serving: Open, open_page: OpenPage, dark: bool) -> None:
    page = open_page(f"{serving(Scripted(), 1.0)}/chat", dark=dark)
    begin(page)
    say(page, "Hello")
    expect(page.get_by_text("Which answer is better?")).to_be_visible()
    found = Axe().run(page).response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


def test_nobody_reads_or_changes_what_is_not_theirs(alone: Place) -> None:
    from starlette.testclient import TestClient

    from manners.web.app import create_app

    keys = {name: alone.key(name) for name in ("anna", "ben")}
    site = Site(Workspace.open(alone.folder), Settings(), alone.store, alone.accounts, False, "http://x", Scripted())
    client = TestClient(create_app(site))
    anna, ben = ({"authorization": f"Bearer {key}"} for key in keys.values())
    key = client.post("/chat/begin", json={}, headers=anna).json()["key"]
    client.post(f"/chat/{key}/say", json={"text": "Hello"}, headers=anna)
    response = client.get(f"/chat/{key}", headers=anna).json()["turns"][1]["response"]
    for path, body in (
        (key, None),
        (f"{key}/say", {"text": "x"}),
        (f"{key}/delete", {}),
        (f"{key}/choose", {"comparison": 1, "choice": "left"}),
        ("thumb", {"response": response, "value": 1}),
        ("report", {"response": response, "reason": "wrong"}),
    ):
        method = "GET" if body is None else "POST"
        assert client.request(method, f"/chat/{path}", json=body, headers=ben).status_code == 400, path
    assert client.get("/chat/export", headers=ben).json() == {"conversations": []}
