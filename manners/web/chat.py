"""`/chat`: talk to the current policy; now and then two answers come, and the page asks which is better."""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, StreamingResponse
from starlette.responses import Response as HTTPResponse

from manners.errors import MannersError
from manners.loop.erase import sweep
from manners.models.requests import Done, Failed, GenerationRequest, Phase
from manners.store import deletions
from manners.store.audit import Event
from manners.store.chats import Chats, Said, dialogue
from manners.store.flags import FlagReason
from manners.store.redaction import Redacted
from manners.types import Choice, Response, Sampling
from manners.web.auth import Chatter, Exporter, Visitor, refuse_if
from manners.web.gate import Gate
from manners.web.identity import Neutral, names_of
from manners.web.limits import DELETIONS, GENERATIONS
from manners.web.render import to_html
from manners.web.shapes import Number, Text
from manners.web.site import Here, Site, noted

_rng = random.SystemRandom()

router = APIRouter(route_class=Gate)


class Words(BaseModel):
    """What somebody says."""

    text: Annotated[Text, Field(min_length=1, max_length=100_000)]


class Chosen(BaseModel):
    """Which of two answers is better."""

    comparison: Number
    choice: Choice
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] | None = None


class Thumb(BaseModel):
    """A thumb on one answer."""

    response: Number
    value: Literal[-1, 0, 1]


class Complaint(BaseModel):
    """A report on one answer."""

    response: Number
    reason: FlagReason
    note: Annotated[Text, Field(max_length=10_000)] = ""


@router.get("/chat")
async def page(request: Request, visitor: Chatter, site: Here) -> HTTPResponse:
    """Show the page."""
    effect = await to_thread.run_sync(Chats(site.store).effect, visitor.annotator)
    return site.page(request, "chat.html.j2", reasons=list(FlagReason), effect=effect)


@router.get("/chat/state")
async def state(visitor: Chatter, site: Here) -> HTTPResponse:
    """Say whether somebody answers."""
    now = site.engine.state
    return JSONResponse({"phase": now.phase, "reason": now.reason if now.phase is not Phase.READY else ""})


@router.get("/chat/all")
async def conversations(visitor: Chatter, site: Here) -> HTTPResponse:
    """List one's own conversations."""
    found = await to_thread.run_sync(Chats(site.store).all, visitor.annotator)
    return JSONResponse({"conversations": [{"key": one.key, "title": one.title} for one in found]})


@router.get("/chat/export")
async def export(request: Request, visitor: Exporter, site: Here) -> HTTPResponse:
    """Give all of one's own conversations as a file."""

    def collect() -> list[dict[str, Any]]:
        chats = Chats(site.store)
        found = []
        for one in chats.all(visitor.annotator):
            said = chats.read(visitor.annotator, one.key)
            turns = [{"role": turn.role, "content": turn.text, "thumb": turn.thumb} for turn in said]
            found.append({"key": one.key, "created_at": one.created_at.isoformat(), "turns": turns})
        return found

    body = {"conversations": await to_thread.run_sync(collect)}
    await noted(request, Event.EXPORTED, "conversations")
    return JSONResponse(body, headers={"content-disposition": 'attachment; filename="conversations.json"'})


@router.post("/chat/begin")
async def begin(visitor: Chatter, site: Here) -> HTTPResponse:
    """Begin a conversation; whoever sends this has agreed to its being kept."""
    return JSONResponse(
        {"key": await to_thread.run_sync(Chats(site.store).begin, visitor.annotator, limiter=site.limits.writing)}
    )


@router.post("/chat/thumb")
async def thumb(body: Thumb, visitor: Chatter, site: Here) -> HTTPResponse:
    """Take a thumb on one answer: no comparison, and never counted as one."""
    await to_thread.run_sync(
        Chats(site.store).thumb, visitor.annotator, body.response, body.value, limiter=site.limits.writing
    )
    return JSONResponse({"value": body.value})


@router.post("/chat/report")
async def report(body: Complaint, visitor: Chatter, site: Here) -> HTTPResponse:
    """Report one answer to the reviewers."""
    flag = partial(Chats(site.store).flag, visitor.annotator, body.response, body.reason, body.note)
    await to_thread.run_sync(flag, limiter=site.limits.writing)
    return JSONResponse({"reported": body.response})


@router.get("/chat/{key}")
async def read(key: str, visitor: Chatter, site: Here) -> HTTPResponse:
    """Give what was said in a conversation."""

    def render() -> list[dict[str, Any]]:
        said = Chats(site.store).read(visitor.annotator, key)
        return [
            {"role": one.role, "html": to_html(one.text), "response": one.response, "thumb": one.thumb} for one in said
        ]

    return JSONResponse({"turns": await to_thread.run_sync(render)})


@router.post("/chat/{key}/say")
async def say(key: str, body: Words, visitor: Chatter, site: Here) -> HTTPResponse:
    """Answer, piece by piece; what is said is kept with its answer once that is complete."""
    said = await to_thread.run_sync(Chats(site.store).read, visitor.annotator, key)
    settings = site.settings.serve
    temperature = site.settings.sample.temperature  # what people judge is drawn as what is trained on
    count = 2 if _rng.random() < settings.chat_ask else 1
    refuse_if(site.limits.take("generations", visitor.key, GENERATIONS, float(count)))
    prompt = dialogue(said, body.text)
    wanted = GenerationRequest(
        prompt, settings.max_new_tokens, secrets.randbits(31), count, temperature, account=visitor.key
    )
    exchange = _Exchange(site, visitor, key, said, body.text, wanted)
    return StreamingResponse(_stream(exchange), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


@router.post("/chat/{key}/choose")
async def choose(key: str, body: Chosen, visitor: Chatter, site: Here) -> HTTPResponse:
    """Take the verdict on two answers; the chosen one goes on."""
    take = partial(Chats(site.store).choose, visitor.annotator, key, body.comparison, body.choice, body.seconds)
    return JSONResponse({"response": await to_thread.run_sync(take, limiter=site.limits.writing)})


@router.post("/chat/{key}/delete")
async def delete(request: Request, key: str, visitor: Chatter, site: Here) -> HTTPResponse:
    """Forget a conversation; says which versions had learned from it."""

    def forget() -> Redacted:
        chats = Chats(site.store)
        chats.read(visitor.annotator, key)  # nobody notes down what is not theirs
        deletions.note(site.workspace.root, key)
        deleted = chats.delete(visitor.annotator, key)
        for comparison in deleted.comparisons:
            site.desk.hold_back(comparison, True)
        return deleted

    refuse_if(site.limits.take("deletions", visitor.key, DELETIONS))
    deleted = await to_thread.run_sync(forget, limiter=site.limits.writing)
    await to_thread.run_sync(_leave_nothing, site, deleted, limiter=site.limits.writing)
    await noted(request, Event.CONVERSATION_DELETED)
    return JSONResponse({"deleted": key, "learned_by": deleted.versions})


def _leave_nothing(site: Site, deleted: Redacted) -> None:
    """Take what was deleted out of files, and of the database itself; a large one is written anew when serving ends."""
    sweep(site.workspace, deleted.texts)
    if site.store.is_small:
        site.store.clear_traces()


@dataclass(frozen=True)
class _Exchange:
    """One exchange that is going on."""

    site: Site
    visitor: Visitor
    key: str
    said: Sequence[Said]
    """What was said before, as the answer's writer reads it."""
    text: str
    wanted: GenerationRequest


async def _stream(exchange: _Exchange) -> AsyncIterator[str]:
    """Give pieces as they come, and at the end the answers as they are stored."""
    count = exchange.wanted.count
    yield _event("begin", sides=count)
    names = [*names_of(exchange.site.settings.model.name), *names_of(exchange.site.engine.state.version)]
    neutral = [Neutral(names) for _ in range(count)]
    texts = [""] * count
    done = dict[int, Done]()
    async with aclosing(exchange.site.engine.generate(exchange.wanted)) as events:
        async for event in events:
            if isinstance(event, Failed):
                yield _event("failed", message=event.message)
                return
            if isinstance(event, Done):
                done[event.index] = event
                piece = neutral[event.index].rest()
            else:
                piece = neutral[event.index].feed(event.text)
            texts[event.index] += piece
            if piece:
                yield _event("piece", side=event.index, text=piece)
    try:
        kept = await to_thread.run_sync(_keep, exchange, texts, done, limiter=exchange.site.limits.writing)
    except MannersError as error:  # somebody else went on with this conversation, or deleted it
        yield _event("failed", message=str(error))
        return
    yield _event("done", **kept)


def _keep(exchange: _Exchange, texts: Sequence[str], done: Mapping[int, Done]) -> dict[str, Any]:
    """Store an exchange, and return it as the page shows it. Raises MannersError where the conversation moved on."""
    sampling = Sampling(exchange.wanted.temperature, exchange.wanted.max_tokens, exchange.wanted.seed)
    answers = [Response(text, done[i].version, done[i].finish_reason, sampling) for i, text in enumerate(texts)]
    probability = exchange.site.settings.serve.chat_ask if len(answers) == 2 else 1.0
    chats = Chats(exchange.site.store)
    who = exchange.visitor.annotator
    comparison, responses = chats.say(who, exchange.key, exchange.said, exchange.text, answers, probability)
    html = [to_html(text) for text in texts[: len(responses)]]
    return {"comparison": comparison, "responses": responses, "html": html, "asked": to_html(exchange.text)}


def _event(kind: str, **more: Any) -> str:
    return f"data: {json.dumps({'kind': kind} | more)}\n\n"
