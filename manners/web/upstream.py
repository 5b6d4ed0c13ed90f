"""Answers that another server writes, such as vLLM: any that speaks OpenAI's chat completions.

Source: OpenAI API reference, "Chat" and "Streaming".
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import httpx

from manners import connecting
from manners.errors import MannersError
from manners.models.requests import (
    Done,
    DrawnToken,
    EngineState,
    Event,
    Failed,
    GenerationRequest,
    Phase,
    Token,
    TokenLogprob,
)
from manners.types import FinishReason, Role

LOOK_EVERY = 5.0
"""Seconds between two looks whether the server is there."""
PATIENCE = httpx.Timeout(10.0, read=300.0)
"""Seconds to connect, and between two pieces of an answer: a busy server lets requests wait."""


@dataclass
class _Answers:
    """What is known of answers that are being written."""

    reasons: dict[int, FinishReason] = field(default_factory=dict)
    drawn: dict[int, int] = field(default_factory=dict)
    """Pieces of each: as many tokens, where the server does not count them."""
    prompt_tokens: int = 0


class Upstream:
    """A server elsewhere that answers in place of our own model."""

    def __init__(self, url: str, model: str | None = None, key: str = "") -> None:
        """Take the address, with or without `/v1`; the model to ask for (None: the first one that is listed).

        Raises MannersError where it is no address, or nothing can be reached as the environment says.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise MannersError(f"{url} is no address of a server: write it like http://127.0.0.1:8001/v1")
        base = url.rstrip("/")
        self._url = base if base.endswith("/v1") else f"{base}/v1"
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        connecting.client(httpx.Client).close()  # later ones would fail in a thread that nobody hears
        self._model = model
        self._state = EngineState(Phase.LOADING, model or "upstream")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="upstream", daemon=True)

    @property
    def state(self) -> EngineState:
        """Whether the server answers, and the model asked for."""
        return self._state

    def start(self) -> None:
        """Begin to look whether the server is there."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def load(self, version: str) -> None:
        """Do nothing: which model it serves is for that server to say."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """Yield what the server writes as it comes, up to a `Done` for each answer or one `Failed`.

        A server that writes one answer, however many are asked for, is asked again for each of the others.
        """
        done = set[int]()
        while self._state.phase is Phase.LOADING and not self._state.reason and not self._stopping.is_set():
            await asyncio.sleep(0.05)  # nobody has looked yet, and which model to ask is not known
        try:
            async with httpx.AsyncClient(headers=self._headers, timeout=PATIENCE) as client:
                for first in range(request.count):
                    if first in done:
                        continue
                    # With the same seed it would write the same once more.
                    one = replace(request, count=1, seed=request.seed + first)
                    async with aclosing(self._ask(client, one if first else request, first)) as events:
                        async for event in events:
                            yield event
                            if isinstance(event, Failed):
                                return
                            if isinstance(event, Done):
                                done.add(event.index)
                    if first not in done:
                        yield Failed(f"the server at {self._url} gave too few answers: ask for one at a time")
                        return
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            yield Failed(f"the server at {self._url} did not answer to the end ({_named(error)})")

    async def _ask(self, client: httpx.AsyncClient, request: GenerationRequest, first: int) -> AsyncGenerator[Event]:
        """Yield what the server writes to one request, whose answers count from `first`; no more than it asks for."""
        body = self._body(request)
        async with client.stream("POST", f"{self._url}/chat/completions", json=body) as response:
            if response.status_code != 200:
                said = _said(await response.aread())
                yield Failed(f"the server at {self._url} refused: {said}", 400 <= response.status_code < 429)
                return
            async for event in _events(response.aiter_lines(), self._state.version):
                if isinstance(event, Failed):
                    yield event
                elif event.index < request.count:
                    yield replace(event, index=first + event.index)

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._state.version,
            "messages": [{"role": turn.role.value, "content": turn.text} for turn in request.prompt],
            "n": request.count,
            "seed": request.seed,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if not request.open_ended:
            body["max_tokens"] = request.max_tokens
        if request.begun:  # vLLM must be told that it is to be continued
            body["messages"].append({"role": Role.ASSISTANT.value, "content": request.begun})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        if request.stop:
            body["stop"] = list(request.stop)
        if request.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.logprobs}
        return body

    def _watch(self) -> None:
        with httpx.Client(headers=self._headers, timeout=LOOK_EVERY) as client:
            while True:
                self._state = self._look(client)
                if self._stopping.wait(LOOK_EVERY):
                    return

    def _look(self, client: httpx.Client) -> EngineState:
        try:
            answer = client.get(f"{self._url}/models")
            answer.raise_for_status()
            listed = [str(one["id"]) for one in answer.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            return EngineState(
                Phase.LOADING, self._state.version, f"the server at {self._url} is silent ({_named(error)})"
            )
        model = self._model or next(iter(listed), None)
        if model not in listed:
            wanted = f"lists no model {model}" if model else "lists no model at all"
            return EngineState(Phase.LOADING, self._state.version, f"the server at {self._url} {wanted}")
        return EngineState(Phase.READY, model)


async def _events(lines: AsyncIterator[str], version: str) -> AsyncIterator[Event]:
    """Yield the events of a stream; the answers' ends come last, since only then the tokens are counted."""
    answers = _Answers()
    counted: int | None = None
    async for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        piece = json.loads(data)
        if "error" in piece:
            refused = isinstance(piece["error"], dict) and piece["error"].get("type") == "invalid_request_error"
            yield Failed(f"the server that writes the answers says: {_message(piece)}", refused)
            return
        if usage := piece.get("usage"):
            answers.prompt_tokens = int(usage["prompt_tokens"])
            counted = int(usage["completion_tokens"])
        for choice in piece["choices"]:
            for token in _tokens(choice, answers):
                yield token
    if not answers.reasons or answers.drawn.keys() - answers.reasons.keys():
        yield Failed("the server that writes the answers broke off")
        return
    for index, reason in sorted(answers.reasons.items()):
        drawn = answers.drawn.get(index, 0)
        exact = counted if counted is not None and len(answers.reasons) == 1 else drawn
        yield Done(index, reason, answers.prompt_tokens, exact, version)


def _tokens(choice: dict[str, Any], answers: _Answers) -> Iterator[Token]:
    """Yield what a piece adds to an answer, and note if it ends there."""
    index = int(choice["index"])
    text = choice.get("delta", {}).get("content") or ""
    told = choice.get("logprobs") or {}
    drawn = tuple(map(_drawn, told.get("content") or ()))
    if text or drawn:
        answers.drawn[index] = answers.drawn.get(index, 0) + (len(drawn) or 1)
        yield Token(index, text, drawn)
    if reason := choice.get("finish_reason"):
        answers.reasons[index] = FinishReason.LENGTH if reason == "length" else FinishReason.STOP


def _drawn(token: dict[str, Any]) -> DrawnToken:
    return DrawnToken(_logprob(token), tuple(map(_logprob, token.get("top_logprobs") or ())))


def _logprob(token: dict[str, Any]) -> TokenLogprob:
    told = token.get("bytes")
    return TokenLogprob(token["token"], token["logprob"], token["token"].encode() if told is None else bytes(told))


def _said(body: bytes) -> str:
    try:
        return _message(json.loads(body))
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


def _message(body: dict[str, Any]) -> str:
    error = body["error"]
    return str(error["message"] if isinstance(error, dict) else error)


def _named(error: Exception) -> str:
    return str(error) or type(error).__name__
