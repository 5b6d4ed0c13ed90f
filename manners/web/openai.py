"""`/v1`: the current policy for programs, as OpenAI's clients know it.

Source: OpenAI API reference, "Chat" and "Streaming". Ours on top: with the header `X-Ask-Preference: 1` two answers are
a comparison, whose verdict comes to `/v1/feedback` (`manners.web.programs`).
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, StreamingResponse
from starlette.responses import Response as HTTPResponse

from manners.errors import MannersError, Unavailable
from manners.models.requests import Done, Event, Failed, GenerationRequest, Phase, Token
from manners.store.programs import Programs
from manners.types import AskedHow, Comparison, Response, Sampling
from manners.web.auth import Chatter, refuse_if
from manners.web.gate import Gate
from manners.web.limits import STORED, Rate
from manners.web.shapes import MOST_ANSWERS, ChatRequest, envelope, finish, logprobs, problem, size_of, usage
from manners.web.site import Here, Site

TOO_LONG = "what is told of these tokens takes more than one may hold: stream it, or ask for fewer of them"
ALIAS = "manners"
"""The model's name for whoever always wants the promoted policy."""
RETRY_SECONDS = "5"

router = APIRouter(prefix="/v1", route_class=Gate)


@dataclass
class _Growing:
    """An answer as it grows."""

    text: str = ""
    reports: list[str] = field(default_factory=list)
    """On its tokens, as JSON, of an answer that is given at once; a stream has given them and keeps none."""
    done: Done | None = None


@router.get("/models")
async def models(visitor: Chatter, site: Here) -> Any:
    """List what can be asked: the current policy, under its name and under `manners`."""
    return {"object": "list", "data": [_model(name) for name in (ALIAS, site.engine.state.version)]}


@router.get("/models/{name}")
async def model(name: str, visitor: Chatter, site: Here) -> HTTPResponse:
    """Describe one model."""
    return JSONResponse(_model(name)) if _is_served(site, name) else _no_model(site, name)


@router.get("/health")
async def health(visitor: Chatter, site: Here) -> HTTPResponse:
    """Say whether requests are answered."""
    return _not_ready(site) or JSONResponse({"status": "ok"})


@router.post("/chat/completions")
async def chat_completions(
    request: Request,
    body: ChatRequest,
    visitor: Chatter,
    site: Here,
    x_ask_preference: Annotated[str, Header()] = "",
    x_ask_probability: Annotated[float, Header(gt=0, le=1, allow_inf_nan=False)] = 1.0,
) -> HTTPResponse:
    """Answer, at once or piece by piece."""
    asks = x_ask_preference == "1"
    if wrong := body.refused():
        return JSONResponse(problem(wrong[1], param=wrong[0]), 400)
    if asks and body.n != 2:
        return JSONResponse(problem("X-Ask-Preference compares two answers: set n to 2", param="n"), 400)
    if asks and body.begun:
        message = "X-Ask-Preference compares answers that are the model's from their first word: end with the user's"
        return JSONResponse(problem(message, param="messages"), 400)
    if not _is_served(site, body.model):
        return _no_model(site, body.model)
    if (waiting := _not_ready(site)) is not None:
        return waiting
    # A full bucket holds any one request: whoever waits as long as they are told gets their answers.
    rate = Rate(MOST_ANSWERS, site.settings.serve.answers_a_second)
    refuse_if(site.limits.take("answers", visitor.key, rate, float(body.n or 1)))
    if asks:  # a dialogue that two answers are compared on is stored
        refuse_if(site.limits.take("stored", visitor.key, STORED, size_of(body)))
    # Where two answers are compared nothing may tell who wrote them.
    shown = ALIAS if asks else body.model
    reply = _Reply(body, _generation(site, body, visitor.key, asks), f"chatcmpl-{secrets.token_hex(12)}", shown)
    ask = _Ask(site, visitor.key, x_ask_probability) if asks else None
    if body.stream:
        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(_stream(site, reply, ask), media_type="text/event-stream", headers=headers)
    return await _unless_left(request, _whole(request, site, reply, ask))


@dataclass(frozen=True)
class _Reply:
    """What is being answered, and how the answer is headed."""

    body: ChatRequest
    generation: GenerationRequest
    identity: str
    model: str


@dataclass(frozen=True)
class _Ask:
    """Two answers that somebody is asked to compare."""

    site: Site
    account: str
    probability: float

    async def open(self, reply: _Reply, choices: dict[int, _Growing]) -> dict[str, Any]:
        """Store the comparison, in the order of the choices, and say how its verdict is to be sent.

        Both are draws from one distribution, so their order is random as it is.
        """
        wanted = reply.generation
        sampling = Sampling(wanted.temperature, wanted.max_tokens, wanted.seed)
        left, right = (
            Response(choice.text, choice.done.version, choice.done.finish_reason, sampling)
            for choice in (choices[0], choices[1])
            if choice.done is not None
        )
        comparison = Comparison(wanted.prompt, left, right, AskedHow.API, self.probability)
        pair = await to_thread.run_sync(
            Programs(self.site.store).open,
            self.account,
            comparison,
            reply.body.user or None,
            limiter=self.site.limits.writing,
        )
        return {"x_pair": {"pair_id": pair, "order": [0, 1]}}


async def _unless_left(request: Request, answering: Coroutine[Any, Any, HTTPResponse]) -> HTTPResponse:
    """Return the answer; once nobody waits for it any more, end it, which gives its seats back.

    Raises ClientDisconnect. A streamed answer is ended by its response.
    """
    work = asyncio.ensure_future(answering)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        for task in (work, left):
            task.cancel()
        await asyncio.wait({work, left})


async def _left(request: Request) -> None:
    """Return once the client has left; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(request: Request, site: Site, reply: _Reply, ask: _Ask | None) -> HTTPResponse:
    """Collect the answers, and give them together.

    Reports on tokens are many times as long as these: they are held as what they are sent as, and against the limit of
    whoever asked, until they are read.
    """
    choices: dict[int, _Growing] = defaultdict(_Growing)
    async for event in _events(site, reply):
        if isinstance(event, Failed):
            return _failed(event)
        _collect(choices[event.index], event)
        if isinstance(event, Token) and reply.body.logprobs:
            report = ", ".join(json.dumps(one) for one in logprobs(event.logprobs)["content"])
            site.limits.hold(request.scope, reply.generation.account, len(report), TOO_LONG)
            choices[event.index].reports += [report] if report else []
    listed = [
        {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "finish_reason": finish(choice.done.finish_reason),
            "logprobs": _place_of(reply, index) if reply.body.logprobs else None,
        }
        for index, choice in sorted(choices.items())
        if choice.done is not None
    ]
    pair = await ask.open(reply, choices) if ask else {}
    body = envelope("chat.completion", reply.identity, reply.model, listed, usage=_usage(choices), **pair)
    if not reply.body.logprobs:
        return JSONResponse(body)
    return StreamingResponse(_filled(reply, json.dumps(body), choices), media_type="application/json")


def _place_of(reply: _Reply, index: int) -> str:
    """Return what stands where the reports on an answer come: nobody knows it before, and no answer holds it."""
    return f"{reply.identity} {index}"


async def _filled(reply: _Reply, body: str, choices: Mapping[int, _Growing]) -> AsyncIterator[str]:
    """Give a body with its reports, a little at a time: what is not read yet is not written on."""
    for index, choice in sorted(choices.items()):
        before, place, body = body.partition(json.dumps(_place_of(reply, index)))
        yield before
        if place:
            yield '{"content": ['
            for number, report in enumerate(choice.reports):
                yield f", {report}" if number else report
            yield '], "refusal": null}'
    yield body


async def _stream(site: Site, reply: _Reply, ask: _Ask | None) -> AsyncIterator[str]:
    """Give the answers piece by piece, as server-sent events."""
    choices: dict[int, _Growing] = {index: _Growing() for index in range(reply.generation.count)}
    for index in choices:
        yield _piece(reply, index, {"role": "assistant", "content": ""})
    async for event in _events(site, reply):
        if isinstance(event, Failed):
            yield _broken(event.message, event.refused)
            return
        _collect(choices[event.index], event)
        if isinstance(event, Token):
            reported = logprobs(event.logprobs) if reply.body.logprobs else None
            yield _piece(reply, event.index, {"content": event.text}, logprobs=reported)
        else:
            yield _piece(reply, event.index, {}, finish_reason=finish(event.finish_reason))
    try:
        pair = await ask.open(reply, choices) if ask else {}
    except MannersError as error:  # the header of an answer that is all right has been sent
        yield _broken(str(error), not isinstance(error, Unavailable))
        return
    counted = reply.body.stream_options is not None and reply.body.stream_options.include_usage
    if counted or pair:
        tail = pair | ({"usage": _usage(choices)} if counted else {})
        yield _data(envelope("chat.completion.chunk", reply.identity, reply.model, [], **tail))
    yield "data: [DONE]\n\n"


async def _events(site: Site, reply: _Reply) -> AsyncGenerator[Event]:
    """Yield what is written; whoever leaves early gives the seats back."""
    wanted = reply.generation
    async with aclosing(site.figures.counted(site.engine.generate(wanted), wanted.count)) as events:
        async for event in events:
            yield event


def _collect(choice: _Growing, event: Token | Done) -> None:
    if isinstance(event, Token):
        choice.text += event.text
    else:
        choice.done = event


def _generation(site: Site, body: ChatRequest, account: str, asks: bool) -> GenerationRequest:
    """Return the request as the engine takes it; raises MannersError where it cannot be one.

    What people judge (`asks`) has a limit, which is on record.
    """
    limit = body.max_completion_tokens or body.max_tokens
    return GenerationRequest(
        prompt=body.prompt,
        max_tokens=limit or site.settings.serve.max_new_tokens,
        seed=secrets.randbits(31) if body.seed is None else body.seed,
        count=body.n or 1,
        temperature=0.0 if body.top_p == 0 else 1.0 if body.temperature is None else body.temperature,
        top_p=body.top_p or 1.0,
        stop=body.stops,
        account=account,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        begun=body.begun,
        open_ended=limit is None and not asks,
    )


def _piece(reply: _Reply, index: int, delta: dict[str, Any], **more: Any) -> str:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} | more
    return _data(envelope("chat.completion.chunk", reply.identity, reply.model, [choice]))


def _broken(message: str, refused: bool) -> str:
    """Return the piece that ends a stream of which no more comes."""
    return _data(problem(message, "invalid_request_error" if refused else "server_error"))


def _data(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _usage(choices: dict[int, _Growing]) -> dict[str, int]:
    done = [choice.done for choice in choices.values() if choice.done is not None]
    return usage(done[0].prompt_tokens if done else 0, sum(d.completion_tokens for d in done))


def _failed(event: Failed) -> HTTPResponse:
    if event.refused:
        return JSONResponse(problem(event.message), 400)
    return JSONResponse(problem(event.message, "server_error"), 503, {"retry-after": RETRY_SECONDS})


def _is_served(site: Site, name: str) -> bool:
    return name in (ALIAS, site.engine.state.version)


def _no_model(site: Site, name: str) -> HTTPResponse:
    message = f"there is no model {name} here: ask for {ALIAS}, or for {site.engine.state.version}"
    return JSONResponse(problem(message, param="model", code="model_not_found"), 404)


def _not_ready(site: Site) -> HTTPResponse | None:
    """Return why nothing can be answered now; None where it can."""
    state = site.engine.state
    if state.phase is Phase.READY:
        return None
    message = "Loading model" if state.phase is Phase.LOADING else state.reason
    body = {"error": {"message": message, "type": "unavailable_error", "param": None, "code": 503}}
    return JSONResponse(body, 503, {"retry-after": RETRY_SECONDS})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "manners"}
