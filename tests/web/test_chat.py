"""`/chat` in a browser: two answers, a choice, and on; and what becomes of what was said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect
from sqlalchemy import select
from starlette.testclient import TestClient

from manners.models.requests import EngineState, Phase
from manners.reward.labelled import LeftOut
from manners.reward.verdicts import label
from manners.settings import ServeSettings, Settings
from manners.store.chats import Chats
from manners.store.flags import undecided
from manners.store.records import VersionRecord
from manners.store.tables import MessageRow, PromptRow, ResponseRow, ThumbRow
from manners.types import DELETED, Annotator, AnnotatorKind, AskedHow, Choice, Response, VersionKind
from manners.web import chat
from manners.web.app import create_app
from manners.web.render import to_html
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.conftest import Held, Place, run
from tests.web.hostile import HOSTILE
from tests.web.scripted import Scripted
from tests.web.test_openai import listening

OpenPage = Callable[..., Page]
Open = Callable[..., str]


def site_of(place: Place, engine: Scripted, ask: float) -> Site:
    settings = replace(Settings(), serve=ServeSettings(chat_ask=ask))
    workspace = Workspace.open(place.folder)
    return Site(workspace, settings, place.store, place.accounts, True, "http://127.0.0.1", engine)


@dataclass(frozen=True)
class Talk:
    """A conversation without a browser."""

    client: TestClient
    key: str

    def say(self, text: str) -> list[dict[str, Any]]:
        """Say something, and return the events that come."""
        said = self.client.post(f"/chat/{self.key}/say", json={"text": text}).text
        return [json.loads(event.removeprefix("data: ")) for event in said.strip().split("\n\n")]


def talk(place: Place, engine: Scripted, ask: float = 0.0) -> Talk:
    client = TestClient(create_app(site_of(place, engine, ask)), "http://127.0.0.1")
    return Talk(client, client.post("/chat/begin", json={}).json()["key"])


@pytest.fixture
def serving(alone: Place) -> Iterator[Open]:
    """A function that serves the chat with an engine, and a share of turns that ask."""
    entered = []

    def start(engine: Scripted, ask: float) -> str:
        context = listening(site_of(alone, engine, ask))
        url = context.__enter__()
        entered.append(context)
        return url

    yield start
    for context in entered:
        context.__exit__(None, None, None)


def begin(page: Page) -> None:
    page.get_by_role("button", name="I agree, begin").click()
    expect(page.get_by_label("Your message")).to_be_visible()


def ready(page: Page) -> None:
    """Wait until two answers have been visible for long enough to be judged."""
    page.wait_for_selector("[data-choice=skip][aria-disabled=false]")


def say(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")


@pytest.mark.parametrize("seats", [1, 2])
def test_where_one_answer_is_written_at_a_time_nothing_is_asked(alone: Place, seats: int) -> None:
    engine = Scripted(("I bake.", "You bake."))
    site = site_of(alone, engine, 1.0)
    one = replace(site.settings, serve=replace(site.settings.serve, seats=seats))
    client = TestClient(create_app(replace(site, settings=one)), "http://127.0.0.1")
    Talk(client, client.post("/chat/begin", json={}).json()["key"]).say("How?")
    assert [request.count for request in engine.asked] == [seats]


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
    ready(page)
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
    people = {"source": "human"}
    alone.store.add_version(VersionRecord("reward-1", VersionKind.REWARD, "versions/reward-1", None, people, watermark))
    page.reload()
    expect(page.get_by_text("1 verdict from you. 1 of them could be used in reward model 1, to teach")).to_be_visible()
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


def test_a_model_that_loads_is_waited_for(serving: Open, open_page: OpenPage) -> None:
    engine = Scripted(state=EngineState(Phase.LOADING, "initial"))
    page = open_page(f"{serving(engine, 0.0)}/chat")
    expect(page.get_by_text("The model is being loaded")).to_be_visible()
    begin(page)
    say(page, "Hello")
    page.get_by_role("button", name="Report this answer").click()
    page.get_by_role("dialog").get_by_role("button", name="Report", exact=True).click()
    expect(page.get_by_role("dialog")).to_be_visible()  # nothing is chosen beforehand
    page.get_by_label("wrong").check()
    page.get_by_role("dialog").get_by_role("button", name="Report", exact=True).click()
    page.wait_for_timeout(1_200)  # the next look at the model leaves what was said
    expect(page.get_by_text("A reviewer will look at it. The model is being loaded")).to_be_visible()
    engine.state = EngineState(Phase.READY, "initial")
    expect(page.get_by_text("The model is being loaded")).to_have_count(0)


def test_another_conversation_is_not_deleted_by_the_second_click(serving: Open, open_page: OpenPage) -> None:
    page = open_page(f"{serving(Scripted(), 0.0)}/chat")
    begin(page)
    say(page, "The first")
    expect(page.locator(".after")).to_have_count(1)
    page.locator("#new").click()
    begin(page)
    page.get_by_role("button", name="Delete this conversation").click()
    expect(page.get_by_role("button", name="Really delete it")).to_be_visible()
    page.get_by_role("button", name="The first").click()
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.get_by_role("button", name="Delete this conversation")).to_be_visible()


def test_a_conversation_that_comes_late_does_not_replace_the_one_that_was_opened_after_it(
    alone: Place, serving: Open, open_page: OpenPage
) -> None:
    chats = Chats(alone.store)
    owner = Annotator("owner", AnnotatorKind.HUMAN)
    slow, quick = (chats.begin(owner) for _ in range(2))
    for key, text in ((slow, "The slow one"), (quick, "The quick one")):
        chats.say(owner, key, [], text, [Response(f"{text} answered", "initial")], 1.0)
    page = open_page(f"{serving(Scripted(), 0.0)}/chat")
    expect(page.locator(".turn.user")).to_have_text("The quick one")
    held: list[Route] = []
    page.route(f"**/chat/{slow}", lambda route: held.append(route))
    page.get_by_role("button", name="The slow one").click()
    page.get_by_role("button", name="The quick one").click()
    expect(page.get_by_label("Your message")).to_be_visible()
    with page.expect_response(f"**/chat/{slow}"):
        held[0].continue_()
    page.wait_for_timeout(100)
    expect(page.locator(".turn.user")).to_have_text("The quick one")


def test_a_choice_that_does_not_arrive_can_be_made_again(alone: Place, serving: Open, open_page: OpenPage) -> None:
    page = open_page(f"{serving(Scripted(), 1.0)}/chat")
    begin(page)
    say(page, "Hello")
    page.route("**/choose", lambda route: route.abort())
    page.get_by_role("button", name="Right 2").click()
    expect(page.get_by_text("Your choice was not stored")).to_be_visible()
    expect(page.get_by_text("Which answer is better?")).to_be_visible()
    page.unroute("**/choose")
    page.get_by_role("button", name="Right 2").click()
    expect(page.locator(".turn.assistant")).to_have_count(1)
    (comparison,) = alone.store.comparisons()
    assert [verdict.choice for verdict in comparison.verdicts] == [Choice.RIGHT]


def test_a_choice_that_lands_when_its_conversation_was_opened_again_is_asked_for_no_more(
    alone: Place, serving: Open, open_page: OpenPage
) -> None:
    page = open_page(f"{serving(Scripted(), 1.0)}/chat")
    begin(page)
    say(page, "First")
    ready(page)
    choice = Held(page, "**/choose")
    page.get_by_role("button", name="Right 2").click()
    choice.sent()
    page.locator("#new").click()
    begin(page)
    page.get_by_role("button", name="First").click()
    expect(page.get_by_text("Which answer is better?")).to_be_visible()
    choice.go()
    expect(page.locator(".turn.assistant")).to_have_count(1)
    expect(page.locator(".turn.assistant")).to_contain_text("1: Gladly.")
    expect(page.locator("#asking")).to_be_hidden()
    say(page, "Second")
    expect(page.locator(".turn.user")).to_have_text(["First", "Second"])
    (first, *_) = alone.store.comparisons()
    assert [verdict.choice for verdict in first.verdicts] == [Choice.RIGHT]


def test_a_skip_does_not_undo_what_was_chosen(alone: Place) -> None:
    """As from another tab, which does not know of it, and says something more."""
    one = talk(alone, Scripted(), 1.0)
    (done,) = [event for event in one.say("Hi") if event["kind"] == "done"]

    def choose(choice: str) -> str:
        chosen = {"comparison": done["comparison"], "choice": choice}
        return str(one.client.post(f"/chat/{one.key}/choose", json=chosen).json()["response"])

    assert choose("skip") == done["responses"][0]
    assert [choose(choice) for choice in ("right", "skip")] == [done["responses"][1]] * 2
    assert choose("left") == done["responses"][0], "who chooses anew is heard"
    (comparison,) = alone.store.comparisons()
    assert [verdict.choice for verdict in comparison.verdicts] == [Choice.SKIP, Choice.RIGHT, Choice.LEFT]


@pytest.mark.parametrize(("most", "asks"), [(1, 0.0), (3, 1.0)])
def test_one_account_has_only_so_many_answers_under_way(
    alone: Place, most: int, asks: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that asks has two of them, and two more are four."""
    monkeypatch.setattr(chat, "UNDER_WAY", most)
    engine = Scripted()
    one = talk(alone, engine, asks)
    other = one.client.post("/chat/begin", json={}).json()["key"]
    refused = list[tuple[int, str]]()

    def meanwhile() -> None:
        answer = TestClient(one.client.app, "http://127.0.0.1").post(f"/chat/{other}/say", json={"text": "Hi"})
        refused.append((answer.status_code, answer.json()["error"]["message"]))

    engine.meanwhile = meanwhile
    assert one.say("Hi")[-1]["kind"] == "done"
    assert refused == [(429, f"{most} answers are being written for you: wait for one of them, or stop it")]
    engine.meanwhile = lambda: None
    assert Talk(one.client, other).say("Hi")[-1]["kind"] == "done"


def test_what_is_sent_twice_at_once_is_said_once(alone: Place) -> None:
    """As by a page that is loaded anew while its message is on its way."""
    engine = Scripted(pause=0.2)
    app = create_app(site_of(alone, engine, 0.0))

    async def twice() -> list[str]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            key = (await client.post("/chat/begin", json={})).json()["key"]
            said = (client.post(f"/chat/{key}/say", json={"text": "Hi", "after": 0}) for _ in range(2))
            return [answer.text.strip().rpartition("data: ")[2] for answer in await asyncio.gather(*said)]

    one, other = run(twice())
    assert one == other and json.loads(one)["kind"] == "done"
    assert len(engine.asked) == 1


def skipping(page: Page) -> Held:
    """Say something more where a choice is asked for, and hold back the skip that it waits for."""
    begin(page)
    say(page, "First")
    expect(page.locator("#asking")).to_be_visible()
    choice = Held(page, "**/choose")
    say(page, "Second")
    choice.sent()
    return choice


def test_what_is_typed_while_a_skip_is_stored_stays_in_the_box(serving: Open, open_page: OpenPage) -> None:
    page = open_page(f"{serving(Scripted(), 1.0)}/chat")
    choice = skipping(page)
    page.get_by_label("Your message").press_sequentially(", or a third thought")
    choice.go()
    expect(page.locator(".turn.user")).to_have_text(["First", "Second"])
    expect(page.get_by_label("Your message")).to_have_value(", or a third thought")


@pytest.mark.parametrize("back", [False, True])
def test_what_waits_for_its_skip_is_said_into_no_other_conversation(
    serving: Open, open_page: OpenPage, back: bool
) -> None:
    engine = Scripted()
    page = open_page(f"{serving(engine, 1.0)}/chat")
    choice = skipping(page)
    page.locator("#new").click()
    begin(page)
    expect(page.get_by_label("Your message")).to_have_value("")
    if back:
        page.get_by_role("button", name="First").click()
        expect(page.locator(".turn.user")).to_have_text("First")
    with page.expect_response("**/choose"):
        choice.go()
    page.get_by_role("button", name="First").click()
    expect(page.locator(".turn.user")).to_have_text("First")
    expect(page.get_by_label("Your message")).to_have_value("Second")
    assert [request.prompt[-1].text for request in engine.asked] == ["First"]


@pytest.mark.parametrize("lost", [False, True])
def test_a_message_that_overtakes_a_choice_waits_for_it(serving: Open, open_page: OpenPage, lost: bool) -> None:
    engine = Scripted()
    page = open_page(f"{serving(engine, 1.0)}/chat")
    begin(page)
    say(page, "First")
    ready(page)
    order = list[str]()
    page.on("request", lambda sent: order.extend(["said"] if sent.url.endswith("/say") else []))
    page.on("response", lambda answer: order.extend(["chosen"] if answer.url.endswith("/choose") else []))
    choice = Held(page, "**/choose")
    page.get_by_role("button", name="Right 2").click()
    choice.sent()
    say(page, "Second")
    choice.go(lost=lost)
    if lost:
        expect(page.locator("#notice")).to_contain_text("Your choice was not stored")
        expect(page.get_by_text("Which answer is better?")).to_be_visible()
        expect(page.get_by_label("Your message")).to_have_value("Second")
        assert order == []
        return
    expect(page.locator(".turn.user")).to_have_text(["First", "Second"])
    expect(page.locator("#asking")).to_be_visible()
    assert order == ["chosen", "said"] and engine.asked[1].prompt[1].text == "1: Gladly. "
    expect(page.get_by_label("Your message")).to_have_value("")


def test_who_goes_on_in_another_window_is_told_and_nothing_is_mixed_up(alone: Place) -> None:
    engine = Scripted()
    one = talk(alone, engine)
    chats = Chats(alone.store)
    owner = Annotator("owner", AnnotatorKind.HUMAN)
    engine.meanwhile = lambda: chats.say(owner, one.key, [], "Me first", [Response("Yes.", "initial")], 1.0)
    *_, last = one.say("Hello")
    moved = "the conversation has moved on: open it again and send your message once more"
    assert last == {"kind": "failed", "message": moved}
    assert [said.text for said in chats.read(owner, one.key)] == ["Me first", "Yes."]
    engine.meanwhile = lambda: chats.delete(owner, one.key)
    assert one.say("Hello")[-1]["message"] == "there is no such conversation of yours: begin a new one"


def test_the_name_of_an_upstreams_model_is_hidden(alone: Place) -> None:
    engine = Scripted(("I am Secret-13B of acme.",), EngineState(Phase.READY, "acme/secret-13b"))
    events = talk(alone, engine).say("Hello")
    assert "".join(e["text"] for e in events if e["kind"] == "piece") == "0: I am [model] of acme. "


def test_markdown_is_rendered_beside_the_loop_that_serves(alone: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def rendered(text: str) -> str:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return to_html(text)

    monkeypatch.setattr(chat, "to_html", rendered)
    one = talk(alone, Scripted())
    assert one.say("Hello")[-1]["asked"] == to_html("Hello")
    assert len(one.client.get(f"/chat/{one.key}").json()["turns"]) == 2


@pytest.mark.long
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


def test_nobody_reads_or_changes_what_is_not_theirs(alone: Place) -> None:
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
        (f"{key}/choose", {"comparison": "1-0", "choice": "left"}),
        ("thumb", {"response": response, "value": 1}),
        ("report", {"response": response, "reason": "wrong"}),
    ):
        method = "GET" if body is None else "POST"
        assert client.request(method, f"/chat/{path}", json=body, headers=ben).status_code == 400, path
    assert client.get("/chat/export", headers=ben).json() == {"conversations": []}
