"""A conversation outlives its page, its connection and its server: what was said is there, or can be sent again."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import httpx
import pytest
from fastapi import FastAPI, Request
from playwright.sync_api import APIResponse, Page, Response, Route, expect
from scipy.stats import kstest
from starlette.responses import StreamingResponse

from manners.settings import ServeSettings, Settings
from manners.store.chats import Chats
from manners.store.tokens import TokenUse
from manners.types import AccountRole, Annotator, AnnotatorKind, FinishReason, Role
from manners.types import Response as Reply
from manners.web.auth import REMEMBERED_SECONDS
from manners.web.chat import _drawn
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.conftest import Place, enter, serve
from tests.web.scripted import Scripted
from tests.web.test_chat import Open, begin, say, serving, site_of
from tests.web.test_label import judge, pages, pair, ready, shown, stored
from tests.web.test_openai import hosting, listening

__all__ = ["serving"]
OWNER = Annotator("owner", AnnotatorKind.HUMAN)


def slow(words: int = 60) -> Scripted:
    return Scripted((" ".join(f"word{number}" for number in range(words)),), pause=0.05)


def whole(page: Page, words: int) -> None:
    """Wait until the answer is complete, and assert that it is there once, with its question."""
    expect(page.locator(".after")).to_have_count(1, timeout=60_000)
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.locator(".turn.user")).to_have_text("Go on")
    said = page.locator(".turn.assistant .text").inner_text()
    assert said == "0: " + " ".join(f"word{number}" for number in range(words))
    expect(page.get_by_label("Your message")).to_have_value("")


def test_an_answer_goes_on_over_a_reload(serving: Open, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{serving(slow(), 0.0)}/chat")
    begin(page)
    say(page, "Go on")
    expect(page.get_by_text("word3 ")).to_be_visible()
    page.reload()
    expect(page.get_by_text("word3 ")).to_be_visible()  # what was written before is there again
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    whole(page, 60)


@pytest.mark.long
def test_an_answer_goes_on_while_another_conversation_is_read(serving: Open, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{serving(slow(), 0.0)}/chat")
    begin(page)
    say(page, "Go on")
    expect(page.get_by_text("word3 ")).to_be_visible()
    page.locator("#new").click()
    begin(page)
    expect(page.locator(".turn")).to_have_count(0)
    page.locator("#conversations button").last.click()
    whole(page, 60)


@pytest.mark.long
def test_an_answer_is_found_again_after_a_lost_connection(serving: Open, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{serving(slow(), 0.0)}/chat")
    begin(page)
    page.evaluate(
        """() => {
            const real = window.fetch;
            window.fetch = async (address, ...more) => {
                const answer = await real(address, ...more);
                if (!String(address).endsWith("/say")) return answer;
                const [kept, read] = answer.body.tee();
                const reader = kept.getReader();
                let left = 5;
                return new Response(new ReadableStream({
                    async pull(stream) {
                        if (!left--) { stream.error(new TypeError("network error")); return; }
                        const { value, done } = await reader.read();
                        if (done) stream.close(); else stream.enqueue(value);
                    },
                }));
            };
        }"""
    )
    say(page, "Go on")
    expect(page.get_by_text("The connection is lost")).to_be_visible()
    whole(page, 60)
    expect(page.get_by_text("The connection is lost")).to_have_count(0)


@pytest.mark.long
def test_the_conversation_that_was_open_comes_again(serving: Open, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{serving(slow(3), 0.0)}/chat")
    begin(page)
    say(page, "Go on")
    whole(page, 3)
    page.locator("#new").click()
    begin(page)
    expect(page.locator(".turn")).to_have_count(0)
    page.locator("#conversations button").last.click()
    whole(page, 3)
    page.reload()
    whole(page, 3)


def test_a_page_whose_first_requests_fail_asks_again(
    alone: Place, serving: Open, open_page: Callable[..., Page]
) -> None:
    key = Chats(alone.store).begin(OWNER)
    Chats(alone.store).say(OWNER, key, [], "Go on", [Reply("Gladly.", "initial")], 1.0)
    url = serving(slow(3), 0.0)
    page = open_page(f"{url}/health")
    wrong = {"all": 503}

    def fails(route: Route) -> None:
        status = wrong.get(route.request.url.rpartition("/")[2])
        if status is None:
            route.continue_()
        elif not status:
            route.abort()
        else:
            route.fulfill(status=status, json={"error": {"message": f"as {status} says"}})

    page.route("**/chat/*", fails)
    page.goto(f"{url}/chat")
    notice = page.locator("#notice")
    expect(notice).to_have_text("Your conversations are not here yet: as 503 says. Trying again.")
    wrong["all"] = 0
    expect(notice).to_contain_text("fetch")
    del wrong["all"]
    wrong[key] = 429
    expect(notice).to_have_text("Your conversations are not here yet: as 429 says. Trying again.")
    wrong.clear()
    expect(page.locator(".turn.user")).to_have_text("Go on")
    expect(page.get_by_label("Your message")).to_be_visible()
    expect(notice).to_be_empty()


def test_a_browser_that_keeps_nothing_sends_all_the_same(serving: Open, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{serving(slow(3), 0.0)}/chat")
    begin(page)
    page.evaluate(
        "() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; }"
    )
    say(page, "Go on")
    whole(page, 3)
    expect(page.locator("#notice")).to_contain_text("This browser keeps nothing more")


def test_enter_twice_sends_once(serving: Open, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{serving(slow(3), 1.0)}/chat")
    begin(page)
    say(page, "First")
    expect(page.locator("#asking")).to_be_visible()

    def slowly(route: Route) -> None:
        page.wait_for_timeout(300)
        route.continue_()

    page.route("**/choose", slowly)
    page.get_by_label("Your message").fill("Second")
    for _ in range(2):
        page.keyboard.press("Enter")
    expect(page.locator("#asking")).to_be_visible()
    expect(page.locator(".turn.user")).to_have_text(["First", "Second"])


def test_stop_keeps_what_was_written_as_stopped(alone: Place, serving: Open, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{serving(slow(2_000), 1.0)}/chat")
    begin(page)
    say(page, "Go on")
    expect(page.get_by_text("word3 ").first).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped here.")).to_be_visible()
    expect(page.locator("#asking")).to_be_hidden()
    page.reload()
    expect(page.get_by_text("Stopped here.")).to_be_visible()
    expect(page.get_by_text("word3 ").first).to_be_visible()
    assert alone.store.comparisons() == [], "what was stopped is compared with nothing"
    (chat,) = Chats(alone.store).all(OWNER)
    _, answer = Chats(alone.store).read(OWNER, chat.key)
    assert answer.finish_reason is FinishReason.UNKNOWN and "word1999" not in answer.text


def test_stop_before_the_first_word_gives_the_message_back(serving: Open, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{serving(Scripted(('late',), pause=30.0), 0.0)}/chat")
    begin(page)
    say(page, "Go on")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_label("Your message")).to_have_value("Go on")
    expect(page.locator(".turn")).to_have_count(0)


def test_stop_that_overtakes_its_message_stops_it(serving: Open, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{serving(Scripted(('late',), pause=30.0), 0.0)}/chat")
    begin(page)
    on_their_way: list[Route] = []
    page.route("**/say", lambda route: on_their_way.append(route))
    say(page, "Go on")
    with page.expect_response("**/stop") as first:
        page.get_by_role("button", name="Stop").click()
    assert first.value.json() == {"stopped": False} and len(on_their_way) == 1
    on_their_way[0].continue_()
    expect(page.get_by_label("Your message")).to_have_value("Go on")
    expect(page.locator(".turn")).to_have_count(0)


def test_who_leaves_in_mid_stream_finds_the_answer_stored(alone: Place) -> None:
    with listening(site_of(alone, slow(20), 0.0)) as url, httpx.Client(base_url=url, timeout=60) as client:
        key = client.post("/chat/begin", json={}).json()["key"]
        with client.stream("POST", f"/chat/{key}/say", json={"text": "Go on"}) as answer:
            next(answer.iter_lines())
        refused = client.post(f"/chat/{key}/say", json={"text": "And this"})
        assert refused.status_code == 400 and "wait for it, or stop it" in refused.json()["error"]["message"]
        said = client.get(f"/chat/{key}").json()
        assert said["ongoing"] == "Go on" and said["turns"] == []
        with client.stream("GET", f"/chat/{key}/ongoing") as again:
            events = [json.loads(line.removeprefix("data: ")) for line in again.iter_lines() if line]
        assert events[0]["kind"] == "begin" and events[-1]["kind"] == "done"
        text = "".join(event["text"] for event in events if event["kind"] == "piece")
        assert text.strip() == "0: " + " ".join(f"word{number}" for number in range(20))
        found = client.get(f"/chat/{key}").json()
        assert found["ongoing"] is None and len(found["turns"]) == 2


def test_a_message_that_is_sent_again_is_said_once(alone: Place) -> None:
    engine = slow(20)
    body = {"text": "Go on", "after": 0}
    with listening(site_of(alone, engine, 0.5)) as url, httpx.Client(base_url=url, timeout=60) as client:
        key = client.post("/chat/begin", json={}).json()["key"]
        with client.stream("POST", f"/chat/{key}/say", json=body) as answer:
            next(answer.iter_lines())
        again = client.post(f"/chat/{key}/say", json=body).text.strip().split("\n\n")
        assert json.loads(again[-1].removeprefix("data: "))["kind"] == "done"
        late = client.post(f"/chat/{key}/say", json=body)
        assert late.status_code == 409 and late.json()["error"]["code"] == "moved_on"
        assert len(client.get(f"/chat/{key}").json()["turns"]) == 2 and len(engine.asked) == 1


def test_the_same_words_at_the_same_place_are_answered_alike_and_others_are_not() -> None:
    draw = partial(_drawn, b"secret")
    drawn = [draw(f"key{n}", 0, "Hello") for n in range(2000)]
    assert drawn == [draw(f"key{n}", 0, "Hello") for n in range(2000)] and len(set(drawn)) == 2000
    assert len({draw("key", after, text) for after in (0, 2) for text in ("Hello", "hello", "Hello ")}) == 6
    assert all(0 <= seed < 2**31 and 0 <= lot < 1 for seed, lot, _ in drawn)
    assert kstest([lot for _, lot, _ in drawn], "uniform").pvalue > 1e-3, "a share of turns asks, as the setting says"


def test_nobody_else_reads_or_stops_it(place: Place) -> None:
    keys = {name: {"authorization": f"Bearer {place.key(name)}"} for name in ("anna", "ben")}
    workspace = Workspace.open(place.folder)
    site = Site(workspace, Settings(), place.store, place.accounts, False, "http://127.0.0.1", slow(40))
    with listening(site) as url, httpx.Client(base_url=url, timeout=60) as client:
        key = client.post("/chat/begin", json={}, headers=keys["anna"]).json()["key"]
        with client.stream("POST", f"/chat/{key}/say", json={"text": "Go on"}, headers=keys["anna"]) as answer:
            next(answer.iter_lines())
        refused = client.get(f"/chat/{key}/ongoing", headers=keys["ben"])
        assert refused.status_code == 400
        assert refused.json() == client.get("/chat/none/ongoing", headers=keys["ben"]).json(), "as where there is none"
        assert client.post(f"/chat/{key}/stop", json={}, headers=keys["ben"]).json() == {"stopped": False}
        assert client.post(f"/chat/{key}/stop", json={}, headers=keys["anna"]).json() == {"stopped": True}


def written(seed: int) -> str:
    """What `seeded` says to a request with this seed."""
    return " ".join(f"word{number * seed % 9973}" for number in range(60))


def seeded(seeds: list[int]) -> FastAPI:
    """A server of this interface that writes for six seconds, by the seed, and notes each that it is asked for."""
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"data": [{"id": "seeded"}]}

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> StreamingResponse:
        seed = (await request.json())["seed"]
        seeds.append(seed)

        async def words() -> AsyncIterator[str]:
            for word in re.findall(r"\S+\s?", written(seed)):
                yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': word}}]})}\n\n"
                await asyncio.sleep(0.1)
            yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {}, 'finish_reason': 'stop'}]})}\n\n"

        return StreamingResponse(words(), media_type="text/event-stream")

    return app


def backlog(page: Page, count: int) -> None:
    """Judge some pairs while no verdict reaches the server."""
    page.route("**/label/verdict", lambda route: route.abort())
    for _ in range(count):
        judge(page, lambda: page.keyboard.press("1"))
    expect(page.locator("#notice")).to_contain_text(f"{count} verdicts not stored yet")


@pytest.mark.long
def test_ten_kills_in_mid_stream_and_in_mid_backlog_lose_nothing(alone: Place, open_page: Callable[..., Page]) -> None:
    kills = 10
    alone.store.add_comparisons(pair(number) for number in range(4 * kills + 2))
    (alone.folder / "manners.toml").write_text(
        "[serve]\nshortest_view = 0\nrepeat_share = 0.0\noverlap = 1\nagree = 1\nchat_ask = 0.0\n"
    )
    seeds: list[int] = []
    with hosting(seeded(seeds)) as upstream, ExitStack() as servers, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        options = ("--upstream", f"{upstream}/v1", "--port", str(port))
        server = servers.enter_context(serve(alone.folder, *options))
        assert server.url.endswith(f":{port}")
        chat, label = open_page(f"{server.url}/chat"), open_page(f"{server.url}/label")
        begin(chat)
        again = list[str]()  # what a new server, which knows of no screen, has shown twice is judged once

        def noted(answer: Response) -> None:
            again.extend([answer.url] if answer.url.endswith("/verdict") and answer.status == 409 else [])

        label.on("response", noted)
        for turn in range(kills):
            backlog(label, 4)
            say(chat, f"Message {turn}")
            chat.wait_for_function("count => document.querySelectorAll('.turn').length > count", arg=2 * turn + 1)
            chat.wait_for_timeout(150 * turn)
            with label.expect_response("**/label/verdict"):
                label.unroute("**/label/verdict")
            server.kill()
            expect(chat.get_by_text("The connection is lost")).to_be_visible()
            expect(chat.locator(".turn.user").last).to_have_text(f"Message {turn}")
            chat.get_by_label("Your message").fill("half a thought")  # beside what is looked for
            server = servers.enter_context(serve(alone.folder, *options))
            stored(label)
            verdicts = [len(one.verdicts) for one in alone.store.comparisons()]
            assert sum(verdicts) == 4 * (turn + 1) - len(again) and max(verdicts) == 1 and len(again) <= turn + 1
            expect(chat.locator(".after")).to_have_count(turn + 1, timeout=60_000)
            expect(chat.get_by_label("Your message")).to_have_value("half a thought")
            (conversation,) = Chats(alone.store).all(OWNER)
            said = [(one.role, one.text) for one in Chats(alone.store).read(OWNER, conversation.key)]
            assert said[-2:] == [(Role.USER, f"Message {turn}"), (Role.ASSISTANT, written(seeds[-1]))]
            assert seeds[-2] == seeds[-1], "it is the same answer, drawn again"
            assert chat.locator(".turn.assistant .text").last.inner_text() == written(seeds[-1])
        assert len(said) == 2 * kills and len(set(seeds)) == kills


def test_who_is_signed_out_keeps_verdicts_and_words_and_reads_how_to_come_back(
    place: Place, open_page: Callable[..., Page]
) -> None:
    place.accounts.add("anna", AccountRole.ANNOTATOR, "correct horse")
    place.store.add_comparisons(pair(number) for number in range(6))
    back = "You are signed out: reload this page, and sign in by your password or a link of the owner's"
    workspace = Workspace.open(place.folder)
    settings = replace(Settings(), serve=ServeSettings(chat_ask=0.0))
    with listening(Site(workspace, settings, place.store, place.accounts, False, "http://127.0.0.1", slow(3))) as url:
        label = enter(open_page(url + place.link("anna")))
        shown(label)
        chat = label.context.new_page()
        chat.goto(f"{url}/chat")
        begin(chat)
        place.accounts.revoke_all("anna")
        label.wait_for_timeout(1000 * REMEMBERED_SECONDS + 100)
        say(chat, "Go on")
        expect(chat.get_by_text(f"No answer: {back[0].lower()}{back[1:]}. Your message is still here.")).to_be_visible()
        expect(chat.get_by_label("Your message")).to_have_value("Go on")
        label.bring_to_front()
        ready(label)
        label.keyboard.press("1")
        expect(label.locator("#notice")).to_contain_text(f"{back}. What you wrote stays here. 1 verdict waits")
        second = shown(label)
        label.get_by_label("Comment").fill("half a thought")
        label.reload()
        assert not place.store.comparisons()[0].verdicts
        expect(label.get_by_text("What you wrote and judged in this browser is still here.")).to_be_visible()
        label.get_by_label("Name").fill("anna")
        label.get_by_label("Password").fill("correct horse")
        label.get_by_role("button", name="Sign in").click()
        assert shown(label) == second
        expect(label.get_by_label("Comment")).to_have_value("half a thought")
        stored(label)
        assert sum(len(one.verdicts) for one in place.store.comparisons()) == 1
        chat.reload()
        expect(chat.get_by_label("Your message")).to_have_value("Go on")
        chat.get_by_role("button", name="Send").click()
        whole(chat, 3)


@pytest.mark.long
def test_a_reload_makes_no_second_invitation(place: Place, open_page: Callable[..., Page]) -> None:
    with pages(place) as url:
        page = enter(open_page(url + place.link("olga")))
        page.goto(f"{url}/accounts")
        page.get_by_role("button", name="Make a link").click()
        expect(page.get_by_text("A link for one annotator")).to_be_visible()
        page.reload()
        expect(page.get_by_role("button", name="Make a link")).to_be_visible()
        expect(page.get_by_text("A link for one annotator")).to_have_count(0)
    assert [token.use for token in place.accounts.tokens() if token.use is TokenUse.INVITATION] == [TokenUse.INVITATION]


@pytest.mark.long
def test_nothing_that_waits_is_sent_as_somebody_else(place: Place, open_page: Callable[..., Page]) -> None:
    for name in ("anna", "\u0431\u043e\u0440\u0438\u0441"):
        place.accounts.add(name, AccountRole.ANNOTATOR, "correct horse")
    place.store.add_comparisons(pair(number) for number in range(6))
    theirs = "somebody else has signed in on this browser: sign in as anna again, and reload this page"
    workspace = Workspace.open(place.folder)
    with listening(Site(workspace, Settings(), place.store, place.accounts, False, "http://127.0.0.1", slow(3))) as url:
        label = enter(open_page(url + place.link("anna")))
        shown(label)
        chat = label.context.new_page()
        chat.goto(f"{url}/chat")
        begin(chat)
        other = label.context.new_page()
        other.goto(url + place.link("\u0431\u043e\u0440\u0438\u0441"))
        enter(other)
        shown(other)
        label.bring_to_front()
        ready(label)
        label.keyboard.press("1")
        expect(label.locator("#notice")).to_contain_text(f"S{theirs[1:]}. What you wrote stays here. 1 verdict waits")
        say(chat, "Go on")
        expect(chat.get_by_text(f"No answer: {theirs}. Your message is still here.")).to_be_visible()
        other.bring_to_front()
        ready(other)
        other.keyboard.press("2")
        expect(other.locator("#progress")).to_contain_text("1 in all")
        given = [one for each in place.store.comparisons() for one in each.verdicts]
        assert [one.annotator.name for one in given] == ["\u0431\u043e\u0440\u0438\u0441"]
        other.get_by_role("button", name="Sign out").click()
        other.goto(url + place.link("anna"))
        enter(other)
        stored(label)
        given = [one for each in place.store.comparisons() for one in each.verdicts]
        assert sorted(one.annotator.name for one in given) == ["anna", "\u0431\u043e\u0440\u0438\u0441"]


@pytest.mark.long
def test_what_two_tabs_said_in_one_conversation_is_kept(serving: Open, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{serving(slow(3), 0.0)}/chat")
    begin(page)
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.get_by_label("Your message")).to_be_visible()
    page.context.set_offline(True)
    for tab, text in ((page, "First"), (other, "Second")):
        say(tab, text)
        expect(tab.get_by_text("The connection is lost.")).to_be_visible()
    page.close()
    other.context.set_offline(False)
    expect(other.locator(".after")).to_have_count(1, timeout=60_000)
    expect(other.locator(".turn.user")).to_have_text("First")
    expect(other.get_by_label("Your message")).to_have_value("Second")
    assert other.evaluate("Object.keys(localStorage).filter((name) => name.startsWith('manners-sent'))") == []


@pytest.mark.long
def test_no_draft_stays_of_a_conversation_that_is_deleted_elsewhere(
    serving: Open, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{serving(slow(3), 0.0)}/chat")
    begin(page)
    page.get_by_label("Your message").fill("half a thought")
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.get_by_label("Your message")).to_have_value("half a thought")
    for _ in range(2):
        other.locator("#delete").click()
    expect(other.get_by_text("Deleted.")).to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="I agree, begin")).to_be_visible()
    assert "half a thought" not in page.evaluate("JSON.stringify(localStorage)")


def test_no_message_stays_of_a_conversation_that_is_gone(serving: Open, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{serving(slow(3), 0.0)}/chat")
    begin(page)
    lenas = "manners-sent owner lena gone 0.5"  # of whoever is called so
    for name in ("manners-sent owner gone 0.5", lenas):
        message = json.dumps({"text": "my secret", "after": 0, "tries": 1, "at": 1})
        page.evaluate("([name, message]) => localStorage.setItem(name, message)", [name, message])
    page.reload()
    expect(page.get_by_label("Your message")).to_be_visible()
    assert page.evaluate("Object.keys(localStorage).filter((name) => name.startsWith('manners-sent'))") == [lenas]


@pytest.mark.long
def test_what_begins_in_another_tab_while_conversations_are_listed_is_not_forgotten(
    serving: Open, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{serving(slow(3), 0.0)}/chat")
    begin(page)
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.get_by_label("Your message")).to_be_visible()
    late: list[tuple[Route, APIResponse]] = []
    page.route("**/chat/all", lambda route: late.append((route, route.fetch())))
    page.reload()
    while not late:
        page.wait_for_timeout(20)
    other.locator("#new").click()
    begin(other)
    other.get_by_label("Your message").fill("half a thought")
    for route, answer in late:
        route.fulfill(response=answer)
    page.unroute("**/chat/all")
    expect(page.get_by_label("Your message")).to_be_visible()
    assert "half a thought" in other.evaluate("JSON.stringify(localStorage)")
