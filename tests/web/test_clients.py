"""What clients of `/v1` do beside asking: they leave, begin answers, leave nothing to chance, and call from pages."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from starlette.testclient import TestClient

from manners.errors import MannersError, Unavailable
from manners.models.requests import Event, GenerationRequest
from manners.settings import ServeSettings, Settings
from manners.store.programs import Programs
from manners.types import Comparison
from manners.web.app import create_app
from manners.web.site import Site
from manners.web.upstream import Upstream
from manners.workspace import Workspace
from tests.web.conftest import Place
from tests.web.scripted import Scripted
from tests.web.test_openai import (
    BREAD,
    PATIENCE,
    Served,
    ask,
    front,
    hosting,
    listening,
    one_at_a_time,
    served,
    serving,
)

__all__ = ["front", "served"]


class Slow(Scripted):
    """Writes for minutes, and notes when it begins and when it is told to end."""

    begun: threading.Event
    ended: threading.Event

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        try:
            async with aclosing(super().generate(request)) as events:
                async for event in events:
                    self.begun.set()
                    yield event
        finally:
            self.ended.set()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_seats_within_a_second(alone: Place, stream: bool) -> None:
    engine = Slow(("word " * 10_000,), pause=0.02)
    engine.begun, engine.ended = threading.Event(), threading.Event()
    site = Site(Workspace.open(alone.folder), Settings(), alone.store, alone.accounts, True, "http://127.0.0.1", engine)
    body = json.dumps({"model": "manners", "messages": BREAD, "stream": stream}).encode()
    with listening(site) as url:
        with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as client:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            assert engine.begun.wait(PATIENCE)
        assert engine.ended.wait(1.0), "it goes on writing for nobody"


@pytest.mark.parametrize(
    ("error", "kind"),
    [(Unavailable("the database is away"), "server_error"), (MannersError("disabled"), "invalid_request_error")],
)
def test_a_stream_whose_comparison_cannot_be_stored_says_so(
    alone: Place, monkeypatch: pytest.MonkeyPatch, error: MannersError, kind: str
) -> None:
    """It has begun as one that is all right; broken off without a word, its client would wait for the pair."""

    def refuse(self: Programs, account: str, comparison: Comparison, user: str | None) -> str:
        raise error

    monkeypatch.setattr(Programs, "open", refuse)
    site = Site(
        Workspace.open(alone.folder), Settings(), alone.store, alone.accounts, True, "http://127.0.0.1", Scripted()
    )
    client = TestClient(create_app(site), "http://127.0.0.1")
    body = {"model": "manners", "messages": BREAD, "n": 2, "stream": True}
    answer = client.post("/v1/chat/completions", json=body, headers={"X-Ask-Preference": "1"})
    *_, last = answer.text.strip().split("\n\n")
    told = json.loads(last.removeprefix("data: "))["error"]
    assert (told["message"], told["type"]) == (str(error), kind)


def test_top_p_of_nothing_takes_the_likeliest_token(served: Served) -> None:
    greedy = ask(served, temperature=0).choices[0].message.content
    for seed in (1, 2):
        assert ask(served, top_p=0, temperature=2, seed=seed).choices[0].message.content == greedy


@pytest.mark.parametrize("content", [None, "", []])
def test_an_answer_begun_with_no_word_is_an_answer_to_be_begun(served: Served, content: Any) -> None:
    begun = ask(served, messages=[*BREAD, {"role": "assistant", "content": content}])
    assert begun.choices[0].message.content == ask(served).choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="content is missing"):
        ask(served, messages=[{"role": "user", "content": None}])


def test_an_answer_begun_with_words_is_continued(served: Served, front: Served) -> None:
    begun = [*BREAD, {"role": "assistant", "content": "First, the oven"}]
    one, other = (ask(client, messages=begun, temperature=0) for client in (served, front))
    plain = ask(served, temperature=0)
    assert one.choices[0].message.content == other.choices[0].message.content != plain.choices[0].message.content
    assert not one.choices[0].message.content.startswith("First")
    assert one.usage.prompt_tokens > plain.usage.prompt_tokens
    pieces = ask(served, messages=begun, temperature=0, stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == one.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="from their first word"):
        ask(served, messages=begun, n=2, extra_headers={"X-Ask-Preference": "1"})
    for wrong in (begun[1:], [*begun, begun[1]], [*begun, {"role": "system", "content": "x"}]):
        with pytest.raises(openai.BadRequestError, match="must be the user's"):
            ask(served, messages=wrong)


def test_an_answer_without_a_limit_has_what_is_left_of_the_context(served: Served) -> None:
    reply: Any = served.client.chat.completions.create(model="manners", messages=BREAD, temperature=0)
    limit, drawn = 256 - reply.usage.prompt_tokens, reply.usage.completion_tokens
    assert drawn == limit if reply.choices[0].finish_reason == "length" else 24 < drawn < limit


def test_another_server_is_told_what_is_begun_and_no_limit_where_there_is_none(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []
    begun: ChatCompletionMessageParam = {"role": "assistant", "content": "First, the oven"}
    with (
        hosting(one_at_a_time([["First."], ["Second."]], bodies)) as url,
        serving(tmp_path / "ws", Upstream(url), Settings()) as front,
    ):
        front.client.chat.completions.create(model="manners", messages=[*BREAD, begun])
        ask(front)
    assert [body.get("max_tokens") for body in bodies] == [None, 16]
    assert bodies[0]["messages"] == [*BREAD, begun] and bodies[1]["messages"] == BREAD
    told = ("continue_final_message", "add_generation_prompt")  # as vLLM has to be
    assert [[body.get(name) for name in told] for body in bodies] == [[True, False], [None, None]]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_say_the_bytes_of_what_was_written(served: Served, front: Served, stream: bool) -> None:
    for client in (served, front):
        asked = {"logprobs": True, "top_logprobs": 2, "temperature": 1.5, "max_tokens": 60, "stream": stream}
        found = ask(client, **asked)
        if stream:
            choices = [piece.choices[0] for piece in found if piece.choices]
            text = "".join(choice.delta.content or "" for choice in choices)
            told = [one for choice in choices if choice.logprobs for one in choice.logprobs.content]
        else:
            text, told = found.choices[0].message.content, found.choices[0].logprobs.content
        raw = b"".join(bytes(one.bytes) for one in told)
        assert raw.decode(errors="replace").replace("\0", "\ufffd") == text
        assert raw != text.encode(), "a model of noise draws parts of characters, or this shows nothing"


@pytest.mark.parametrize(
    ("allowed", "origin", "welcome"),
    [
        ("https://app.example.org https://b.example", "https://app.example.org", True),
        ("https://app.example.org https://b.example", "https://b.example", True),
        ("*", "https://anything.example", True),
        ("", "https://app.example.org", False),
        ("https://app.example.org", "https://app.example.org.evil.example", False),
        ("https://app.example.org", "http://app.example.org", False),
        ("https://app.example.org", "null", False),
    ],
)
def test_pages_of_named_sites_may_ask(alone: Place, allowed: str, origin: str, welcome: bool) -> None:
    settings = Settings(serve=ServeSettings(allow_origins=allowed))
    key = {"authorization": f"Bearer {alone.key('app')}"}
    site = Site(Workspace.open(alone.folder), settings, alone.store, alone.accounts, False, "http://x", Scripted())
    client = TestClient(create_app(site), "http://x")
    path, body = "/v1/chat/completions", {"model": "manners", "messages": BREAD}
    page = {"origin": origin, "sec-fetch-site": "cross-site"}
    asks_first = page | {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,x-stainless-os",
    }
    before = client.options(path, headers=asks_first)
    answer = client.post(path, json=body, headers=page | key)
    assert before.headers.get("access-control-allow-origin") == (origin if welcome else None)
    assert answer.headers.get("access-control-allow-origin") == (origin if welcome else None)
    assert answer.status_code == (200 if welcome else 403)
    if welcome:
        assert before.status_code == 204 and "x-stainless-os" in before.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        assert client.post(path, json=body, headers=page | key | {"cookie": "a=b"}).status_code == 403
    assert client.post("/chat/begin", json={}, headers=page | key).status_code == 403, "only /v1 is for other sites"


@pytest.mark.parametrize("left_on", [False, True])
def test_a_prefix_may_be_taken_off_by_the_proxy_or_not(alone: Place, left_on: bool) -> None:
    settings, workspace = Settings(), Workspace.open(alone.folder)
    site = Site(workspace, settings, alone.store, alone.accounts, True, "http://127.0.0.1/team/a", Scripted())
    client = TestClient(create_app(site), f"http://127.0.0.1{'/team/a' if left_on else ''}")
    assert client.get("/health").json() == {"status": "ok"}
    page = client.get("/label").text
    assert 'src="/team/a/static/label.js"' in page and client.get("/static/label.js").status_code == 200
    assert 'href="/team/a/label" aria-current="page"' in page
    answer = client.post("/v1/chat/completions", json={"model": "manners", "messages": BREAD})
    assert answer.json()["choices"][0]["message"]["content"] == "0: Gladly. "
    assert client.get("/team/b/label").status_code == 404
    assert client.get("/label/", follow_redirects=False).status_code == 404, "and nobody is led out of the prefix"
