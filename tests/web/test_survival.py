"""A conversation outlives its page, its connection and its server: what was said is there, or can be sent again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from fastapi import FastAPI
from playwright.sync_api import Page, expect
from starlette.responses import StreamingResponse

from manners.settings import Settings
from manners.store.chats import Chats
from manners.store.tokens import TokenUse
from manners.types import Annotator, AnnotatorKind, FinishReason
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.conftest import NOWHERE, Place, enter, serve
from tests.web.scripted import Scripted
from tests.web.test_chat import Open, begin, say, serving, site_of
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


def test_nobody_else_reads_or_stops_it(place: Place) -> None:
    keys = {name: {"authorization": f"Bearer {place.key(name)}"} for name in ("anna", "ben")}
    workspace = Workspace.open(place.folder)
    site = Site(workspace, Settings(), place.store, place.accounts, False, "http://127.0.0.1", slow(40))
    with listening(site) as url, httpx.Client(base_url=url, timeout=60) as client:
        key = client.post("/chat/begin", json={}, headers=keys["anna"]).json()["key"]
        with client.stream("POST", f"/chat/{key}/say", json={"text": "Go on"}, headers=keys["anna"]) as answer:
            next(answer.iter_lines())
        assert client.get(f"/chat/{key}/ongoing", headers=keys["ben"]).status_code == 404
        assert client.post(f"/chat/{key}/stop", json={}, headers=keys["ben"]).json() == {"stopped": False}
        assert client.post(f"/chat/{key}/stop", json={}, headers=keys["anna"]).json() == {"stopped": True}


def endless() -> FastAPI:
    """A server of this interface that writes for minutes."""
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"data": [{"id": "endless"}]}

    @app.post("/v1/chat/completions")
    async def completions() -> StreamingResponse:
        async def words() -> AsyncIterator[str]:
            for number in range(3_000):
                choice = {"index": 0, "delta": {"content": f"word{number} "}}
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(words(), media_type="text/event-stream")

    return app


@pytest.mark.long
def test_a_kill_in_mid_stream_loses_no_message(alone: Place, open_page: Callable[..., Page], times: int) -> None:
    drafts = "Object.entries(localStorage).filter(([key]) => key.startsWith('manners-draft')).map(([, text]) => text)"
    with hosting(endless()) as upstream:
        for turn in range(10 * times):
            options = ("--upstream", f"{upstream}/v1", "--set", "serve.chat_ask=0")
            with serve(alone.folder, *options) as server:
                page = open_page(f"{server.url}/chat")
                page.locator("#new").click()
                begin(page)
                say(page, f"Message {turn}")
                expect(page.get_by_text("word3 ")).to_be_visible(timeout=30_000)
                page.wait_for_timeout(50 * (turn % 10))
                server.kill()
                expect(page.get_by_text("The connection is lost")).to_be_visible()
                assert page.evaluate(drafts) == [f"Message {turn}"]
                expect(page.locator(".turn.user")).to_have_text(f"Message {turn}")


def test_a_reload_makes_no_second_invitation(place: Place, open_page: Callable[..., Page]) -> None:
    with serve(place.folder, "--upstream", NOWHERE) as server:
        page = enter(open_page(server.url + place.link("olga")))
        page.goto(f"{server.url}/accounts")
        page.get_by_role("button", name="Make a link").click()
        expect(page.get_by_text("A link for one annotator")).to_be_visible()
        page.reload()
        expect(page.get_by_role("button", name="Make a link")).to_be_visible()
        expect(page.get_by_text("A link for one annotator")).to_have_count(0)
    assert [token.use for token in place.accounts.tokens() if token.use is TokenUse.INVITATION] == [TokenUse.INVITATION]
