"""`/v1` as programs meet it: through OpenAI's own client, a real port, and a real model (a tiny one)."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI, Request
from openai.types.chat import ChatCompletionMessageParam
from sqlalchemy import select
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp

from manners.models.requests import Phase
from manners.settings import ModelSettings, ServeSettings, Settings
from manners.store import Store
from manners.store.accounts import Accounts
from manners.store.tables import RequestRow
from manners.store.tokens import TokenUse
from manners.types import AccountRole, Annotator, AnnotatorKind, AskedHow, Choice, Comparison
from manners.web.app import create_app
from manners.web.engine import Engine
from manners.web.generation import Generator
from manners.web.site import Site
from manners.web.upstream import Upstream
from manners.workspace import INITIAL, Workspace
from tests.worlds import save_tiny

PATIENCE = 600.0
BREAD: list[ChatCompletionMessageParam] = [{"role": "user", "content": "how do I bake bread?"}]


@dataclass(frozen=True)
class Served:
    """A server that answers, and what it keeps."""

    url: str
    key: str
    store: Store
    engine: Generator
    client: openai.OpenAI

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        authorized = {"authorization": f"Bearer {self.key}"} | headers
        return httpx.post(f"{self.url}/v1/{path}", json=body, headers=authorized, timeout=PATIENCE)


@contextmanager
def listening(site: Site) -> Iterator[str]:
    """Serve a site on a free port of this machine."""
    with hosting(create_app(site)) as url:
        yield url


@contextmanager
def hosting(app: ASGIApp) -> Iterator[str]:
    """Serve an application on a free port of this machine."""
    taken = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        taken.close()


@contextmanager
def serving(folder: Path, engine: Generator, settings: Settings) -> Iterator[Served]:
    workspace = Workspace.open(folder) if folder.exists() else Workspace.create(folder)
    store = Store.open_or_create(workspace.database)
    accounts = Accounts(store)
    accounts.add("app", AccountRole.ANNOTATOR, "correct horse")
    key = accounts.issue(TokenUse.KEY, "app")
    engine.start()
    try:
        with listening(Site(workspace, settings, store, accounts, False, "http://127.0.0.1", engine)) as url:
            end = time.monotonic() + PATIENCE
            while engine.state.phase is not Phase.READY:
                assert time.monotonic() < end, engine.state
                time.sleep(0.02)
            with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=PATIENCE) as client:
                yield Served(url, key, store, engine, client)
    finally:
        engine.stop()
        store.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("openai")
    model = ModelSettings(name=str(save_tiny(folder / "model")), trainable_layers=2, device="cpu", context=256)
    settings = Settings(model=model, serve=ServeSettings(max_new_tokens=24, answers_a_second=1000.0))
    workspace = Workspace.create(folder / "ws")
    Store.create(workspace.database).close()
    with serving(workspace.root, Engine(workspace.root, model, INITIAL, seats=8, threads=1), settings) as one:
        yield one


def ask(served: Served, **more: Any) -> Any:
    asked: dict[str, Any] = {"model": "manners", "messages": BREAD, "max_tokens": 16, "seed": 3} | more
    return served.client.chat.completions.create(**asked)


@pytest.mark.long
def test_an_answer_at_once_and_in_pieces_is_the_same(served: Served) -> None:
    whole = ask(served)
    assert whole.object == "chat.completion" and whole.choices[0].message.role == "assistant"
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    pieces = list(ask(served, stream=True, stream_options={"include_usage": True}))
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text == whole.choices[0].message.content
    assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] == whole.choices[0].finish_reason
    assert pieces[-1].usage == whole.usage and not pieces[-1].choices
    assert all(piece.usage is None for piece in pieces[:-1])


def test_n_answers_differ_and_a_seed_repeats_them(served: Served) -> None:
    first, again = ask(served, n=2), ask(served, n=2)
    assert [c.index for c in first.choices] == [0, 1]
    said = [c.message.content for c in first.choices]
    assert said[0] != said[1] and said == [c.message.content for c in again.choices]
    pieces: dict[int, str] = {0: "", 1: ""}
    for piece in ask(served, n=2, stream=True):
        for choice in piece.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert [pieces[0], pieces[1]] == said


def test_lengths_stops_and_logprobs_hold_what_they_say(served: Served) -> None:
    short = ask(served, max_tokens=2, temperature=0)
    assert short.usage.completion_tokens == 2 and short.choices[0].finish_reason == "length"
    whole = ask(served, max_tokens=16).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    stopped = ask(served, max_tokens=16, stop=[stop]).choices[0]
    assert stopped.message.content == whole[: whole.index(stop)] and stopped.finish_reason == "stop"
    told = ask(served, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(told) == 4
    for token in told:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert math.isclose(token.logprob, token.top_logprobs[0].logprob)  # temperature 0 takes the likeliest
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1 + 1e-6
    assert ask(served, max_tokens=4).choices[0].logprobs is None


def test_models_are_listed_under_their_name_and_ours(served: Served) -> None:
    assert [model.id for model in served.client.models.list()] == ["manners", "initial"]
    assert served.client.models.retrieve("initial").owned_by == "manners"
    with pytest.raises(openai.NotFoundError) as missing:
        served.client.models.retrieve("gpt-9")
    assert missing.value.code == "model_not_found"
    health = httpx.get(f"{served.url}/v1/health", headers={"authorization": f"Bearer {served.key}"})
    assert health.json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("more", "param", "says"),
    [
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "assistant", "content": "hello"}]}, "messages", "must be the user's"),
        ({"messages": [{"role": "tool", "content": "hello"}]}, "messages.0.role", "'system'"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "not supported"),
        ({"presence_penalty": 1}, "presence_penalty", "not supported"),
        ({"top_logprobs": 2}, "top_logprobs", "goes with logprobs"),
        ({"n": 129}, "n", "less than or equal to 128"),
        ({"messages": [{"role": "user", "content": "bread " * 600}], "max_tokens": 200}, None, "model.context"),
    ],
)
def test_mistakes_have_the_form_that_clients_know(
    served: Served, more: dict[str, Any], param: str | None, says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(served, **more)
    body = wrong.value.body
    assert isinstance(body, dict) and set(body) == {"message", "type", "param", "code"}
    assert body["type"] == "invalid_request_error" and body["param"] == param and says in body["message"]


def test_an_unknown_model_and_a_wrong_key_are_told_apart(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="ask for manners"):
        ask(served, model="gpt-9")
    with pytest.raises(openai.AuthenticationError) as refused:
        served.client.with_options(api_key="nonsense").chat.completions.create(model="manners", messages=BREAD)
    assert refused.value.code == "invalid_api_key"


def test_sixteen_streams_at_once_get_what_each_gets_alone(served: Served) -> None:
    def stream(seed: int) -> str:
        return "".join(p.choices[0].delta.content or "" for p in ask(served, seed=seed, stream=True))

    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(stream, range(16)))
    assert len(set(together)) > 8
    assert [stream(seed) for seed in range(0, 16, 5)] == together[::5]


def stored(served: Served) -> list[Comparison]:
    return served.store.comparisons(AskedHow.API)


@pytest.mark.parametrize("streamed", [False, True])
def test_two_answers_open_a_comparison_and_feedback_answers_it(served: Served, streamed: bool) -> None:
    before = len(stored(served))
    headers = {"X-Ask-Preference": "1", "X-Ask-Probability": "0.25"}
    if streamed:
        *pieces, last = list(ask(served, n=2, stream=True, extra_headers=headers, model="initial", user="u1"))
        pair = last.model_extra["x_pair"]
        models = {p.model for p in [*pieces, last]}
    else:
        reply = ask(served, n=2, extra_headers=headers, model="initial", user="u1")
        pair = reply.model_extra["x_pair"]
        models = {reply.model}
    assert models == {"manners"}  # nothing says who wrote them
    assert len(stored(served)) == before + 1 and not stored(served)[-1].verdicts
    with served.store.read() as connection:
        whose = connection.execute(select(RequestRow.user).where(RequestRow.key == pair["pair_id"])).scalar_one()
    assert whose == "u1", "so that the words can go with them"
    body = {"pair_id": pair["pair_id"], "choice": "right", "user": "u1", "reasons": ["clear"], "strength": 2}
    assert served.post("feedback", body).json() == {
        "object": "feedback",
        "pair_id": pair["pair_id"],
        "choice": "right",
    }
    comparison = stored(served)[-1]
    (verdict,) = comparison.verdicts
    assert verdict.annotator == Annotator("app:u1", AnnotatorKind.HUMAN, 1), "a user of the account whose key it is"
    assert verdict.choice is Choice.RIGHT
    assert (verdict.strength, verdict.reasons) == (2, ("clear",))
    assert comparison.ask_probability == 0.25 and comparison.left.author == comparison.right.author == "initial"
    again = ask(served, n=2)
    assert [comparison.left.text, comparison.right.text] == [c.message.content for c in again.choices]


def test_feedback_on_a_pair_that_is_not_there_is_refused(served: Served) -> None:
    answer = served.post("feedback", {"pair_id": "pair_nonsense", "choice": "left"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "pair_not_found"
    wrong = served.post("feedback", {"pair_id": "pair_nonsense", "choice": "middle"})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "choice"
    with pytest.raises(openai.BadRequestError, match="set n to 2"):
        ask(served, extra_headers={"X-Ask-Preference": "1"})


REPORT = {
    "prompt": [{"role": "user", "content": "Which bread is quick?"}],
    "left": {"text": "Soda bread.", "model": "theirs-1"},
    "right": {"text": "Sourdough.", "model": "theirs-2"},
    "choice": "left",
    "ask_probability": 0.1,
    "user": "u7",
}


def test_a_choice_made_elsewhere_is_stored_once_under_its_key(served: Served) -> None:
    before = len(stored(served))
    first = served.post("comparisons", REPORT, **{"idempotency-key": "k1"})
    again = served.post("comparisons", REPORT, **{"idempotency-key": "k1"})
    assert (first.status_code, again.status_code) == (201, 200) and first.json() == again.json()
    other = served.post("comparisons", REPORT | {"choice": "right"}, **{"idempotency-key": "k1"})
    assert other.status_code == 409 and other.json()["error"]["code"] == "idempotency_key_reused"
    assert len(stored(served)) == before + 1
    comparison = stored(served)[-1]
    assert (comparison.left.author, comparison.right.author) == ("theirs-1", "theirs-2")
    assert comparison.ask_probability == 0.1 and comparison.verdicts[0].annotator.name == "app:u7"


def test_a_key_sent_many_times_at_once_is_one_comparison(served: Served) -> None:
    before = len(stored(served))
    with ThreadPoolExecutor(8) as threads:
        codes = list(
            threads.map(
                lambda _: served.post("comparisons", REPORT, **{"idempotency-key": "k2"}).status_code, range(16)
            )
        )
    assert sorted(codes) == [200] * 15 + [201] and len(stored(served)) == before + 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"left": {"text": "Sourdough. "}}, "say the same"),
        ({"left": {"text": " "}}, "has no word"),
        ({"created_at": "2030-01-31T12:00:00"}, "time zone"),
        ({"created_at": "9999-12-31T23:59:59Z"}, "ahead of the clock"),
        ({"created_at": "0001-01-01T00:00:00Z"}, "before 1970"),
        ({"prompt": [{"role": "assistant", "content": "hello"}]}, "must be the user's"),
        ({"ask_probability": 0}, "greater than 0"),
        ({"comment": "a\0b"}, "pattern"),
    ],
)
def test_what_is_reported_wrongly_is_refused(served: Served, changed: dict[str, Any], says: str) -> None:
    answer = served.post("comparisons", REPORT | changed)
    assert answer.status_code == 400 and says in answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def front(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose answers come from the other one."""
    engine = Upstream(served.url, key=served.key)
    with serving(tmp_path_factory.mktemp("front") / "ws", engine, Settings()) as one:
        yield one


def test_another_server_can_write_the_answers(served: Served, front: Served) -> None:
    assert [model.id for model in front.client.models.list()] == ["manners", "manners"]
    ours, theirs = ask(front, n=2), ask(served, n=2)
    assert [c.message.content for c in ours.choices] == [c.message.content for c in theirs.choices]
    assert [c.finish_reason for c in ours.choices] == [c.finish_reason for c in theirs.choices]
    one, other = ask(front, logprobs=True, top_logprobs=2), ask(served, logprobs=True, top_logprobs=2)
    assert one.usage == other.usage and one.choices[0].logprobs == other.choices[0].logprobs
    with pytest.raises(openai.BadRequestError, match=r"model\.context"):
        ask(front, messages=[{"role": "user", "content": "bread " * 600}], max_tokens=200)


def one_at_a_time(says: Sequence[Sequence[str]], bodies: list[dict[str, Any]]) -> FastAPI:
    """An engine that knows no `n`: to each request it says the next of these answers, mostly one."""
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"data": [{"id": "acme-1"}]}

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> StreamingResponse:
        said = says[len(bodies)]
        bodies.append(await request.json())
        choices = [{"index": i, "delta": {"content": text}, "finish_reason": "stop"} for i, text in enumerate(said)]
        pieces = [f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices]
        return StreamingResponse(iter([*pieces, "data: [DONE]\n\n"]), media_type="text/event-stream")

    return app


def test_an_engine_that_gives_one_answer_is_asked_again_with_another_seed(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []
    with (
        hosting(one_at_a_time([["First."], ["Second.", "Too many."], ["Alone."], []], bodies)) as url,
        serving(tmp_path / "ws", Upstream(url), Settings()) as front,
    ):
        reply = ask(front, n=2, extra_headers={"X-Ask-Preference": "1"})
        assert [c.message.content for c in reply.choices] == ["First.", "Second."]
        assert [(body["n"], body["seed"]) for body in bodies] == [(2, 3), (1, 4)]
        (comparison,) = stored(front)
        assert (comparison.left.text, comparison.right.text) == ("First.", "Second.")
        with pytest.raises(openai.InternalServerError, match="broke off"):
            ask(front, n=2)
        assert len(stored(front)) == 1


def test_a_server_that_is_away_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    engine = Upstream(f"http://127.0.0.1:{port}")
    engine.start()
    try:
        end = time.monotonic() + PATIENCE
        while not engine.state.reason:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert engine.state.phase is Phase.LOADING and f"127.0.0.1:{port}/v1 is silent" in engine.state.reason
    finally:
        engine.stop()
