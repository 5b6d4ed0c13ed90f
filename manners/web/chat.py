"""`/chat`: talk to the current policy; now and then two answers come, and the page asks which is better."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, StreamingResponse
from starlette.responses import Response as HTTPResponse

from manners.loop.erase import sweep
from manners.models.requests import GenerationRequest, Phase
from manners.store import deletions
from manners.store.audit import Event
from manners.store.chats import Chats, NoSuchChat, Summary, dialogue
from manners.store.flags import FlagReason
from manners.store.redaction import Redacted
from manners.types import Choice, Role
from manners.web.answering import answer, ending
from manners.web.auth import Chatter, Exporter, refuse_if
from manners.web.candidate import question
from manners.web.draws import drawn
from manners.web.faults import log
from manners.web.gate import Gate
from manners.web.limits import BEGUN, CLEARINGS, DELETIONS, EXPORTS, GENERATIONS, REPORTS, RETRY, STORED, UNDER_WAY
from manners.web.ongoing import Exchange, Ongoing, follow
from manners.web.render import to_html
from manners.web.shapes import MOST_MESSAGES, Number, Text, Token, problem, size_of
from manners.web.shield import LARGEST_BODY
from manners.web.site import Here, Site, noted

FULL = f"a conversation takes {MOST_MESSAGES:,} messages and {LARGEST_BODY / 1e6:.0f} MB at most: begin a new one"

router = APIRouter(route_class=Gate)


class Words(BaseModel):
    """What somebody says."""

    text: Annotated[Text, Field(min_length=1, max_length=100_000)]
    after: Number | None = None
    """How many turns there were when it was said; None where that is not known."""


class Chosen(BaseModel):
    """Which of two answers is better."""

    comparison: Token
    choice: Choice
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] | None = None


class Thumb(BaseModel):
    """A thumb on one answer."""

    response: Token
    value: Literal[-1, 0, 1]


class Complaint(BaseModel):
    """A report on one answer."""

    response: Token
    reason: FlagReason
    note: Annotated[Text, Field(max_length=10_000)] = ""


@router.get("/chat")
async def page(request: Request, visitor: Chatter, site: Here) -> HTTPResponse:
    """Show the page."""
    effect = await to_thread.run_sync(Chats(site.store).effect, visitor.annotator)
    shortest = site.settings.serve.shortest_view
    return site.page(request, "chat.html.j2", reasons=list(FlagReason), effect=effect, shortest=shortest)


@router.get("/chat/state")
async def state(visitor: Chatter, site: Here) -> HTTPResponse:
    """Say whether somebody answers."""
    now = site.engine.state
    return JSONResponse({"phase": now.phase, "reason": now.reason if now.phase is not Phase.READY else ""})


@router.get("/chat/all")
async def conversations(visitor: Chatter, site: Here) -> HTTPResponse:
    """List one's own conversations."""

    def listed() -> HTTPResponse:
        found = Chats(site.store).all(visitor.annotator)
        return JSONResponse({"conversations": [{"key": one.key, "title": one.title} for one in found]})

    return await to_thread.run_sync(listed)


@router.get("/chat/export")
async def export(request: Request, visitor: Exporter, site: Here) -> HTTPResponse:
    """Give all of one's own conversations as a file; each is read once those before it are."""
    refuse_if(site.limits.take("exports", visitor.key, EXPORTS))
    site.limits.hold(request.scope, visitor.key, LARGEST_BODY)
    chats = Chats(site.store)
    found = await to_thread.run_sync(chats.all, visitor.annotator)

    def told(one: Summary) -> str:
        said = chats.read(visitor.annotator, one.key)
        turns = [{"role": turn.role, "content": turn.text, "thumb": turn.thumb} for turn in said]
        whole = {"key": one.key, "created_at": one.created_at.isoformat(), "turns": turns}
        return json.dumps(whole, ensure_ascii=False)

    async def pieces() -> AsyncIterator[str]:
        yield '{"conversations": ['
        before = ""
        for one in found:
            with suppress(NoSuchChat):  # it is deleted meanwhile
                yield before + await to_thread.run_sync(told, one)
                before = ", "
        yield "]}"

    await noted(request, Event.EXPORTED, "conversations")
    headers = {"content-disposition": 'attachment; filename="conversations.json"'}
    return StreamingResponse(pieces(), media_type="application/json", headers=headers)


@router.post("/chat/begin")
async def begin(visitor: Chatter, site: Here) -> HTTPResponse:
    """Begin a conversation; whoever sends this has agreed to its being kept."""
    refuse_if(site.limits.take("conversations", visitor.key, BEGUN))
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
    refuse_if(site.limits.take("reports", visitor.key, REPORTS))
    refuse_if(site.limits.take("stored", visitor.key, STORED, size_of(body)))
    flag = partial(Chats(site.store).flag, visitor.annotator, body.response, body.reason, body.note)
    await to_thread.run_sync(flag, limiter=site.limits.writing)
    return JSONResponse({"reported": body.response})


@router.get("/chat/{key}")
async def read(key: str, visitor: Chatter, site: Here) -> HTTPResponse:
    """Give what was said in a conversation, and the two answers between which a choice is to be made."""

    def render() -> dict[str, Any]:
        chats = Chats(site.store)
        said = chats.read(visitor.annotator, key)
        waiting = chats.waiting(visitor.annotator, key)
        turns = [
            {
                "role": one.role,
                "html": to_html(one.text) + ending(one.finish_reason),
                "text": one.text if one.role is Role.USER else None,
                "response": one.response,
                "thumb": one.thumb,
            }
            for one in said
        ]
        asked = waiting and asdict(waiting) | {"html": [to_html(text) for text in waiting.texts]}
        return {"turns": turns, "waiting": asked}

    writing = site.conversations.of(visitor.annotator, key)
    shown = await to_thread.run_sync(render)
    if writing is not None and writing.end is not None:  # it may have been stored after the turns were read
        shown, writing = await to_thread.run_sync(render), None
    if writing is not None and len(shown["turns"]) > len(writing.exchange.said):  # it is stored, and about to end
        writing = None
    shown["ongoing"] = writing and writing.exchange.text
    return await to_thread.run_sync(JSONResponse, shown)


@router.post("/chat/{key}/say")
async def say(key: str, body: Words, visitor: Chatter, site: Here) -> HTTPResponse:
    """Answer, piece by piece, also when nobody reads any more; what is said is kept with its answer.

    What is being answered already is said once, however often it is sent: from the look whether it is to its beginning
    nothing is waited for, in which another request would begin it. What was said is read just before: an answer that
    ends in between would else be neither in it nor on its way.
    """
    before = await to_thread.run_sync(Chats(site.store).asked_before, visitor.annotator, key)
    trial = site.trial
    if trial is not None and not await to_thread.run_sync(trial.asks, site.engine.state, site.workspace):
        trial = None
    said = await to_thread.run_sync(Chats(site.store).read, visitor.annotator, key)
    writing = site.conversations.of(visitor.annotator, key)
    if writing is not None and (len(writing.exchange.said), writing.exchange.text) == (body.after, body.text):
        return _events(writing)
    if body.after not in (None, len(said)):
        return _moved_on()
    prompt = dialogue(said, body.text)
    size = sum(len(turn.text.encode()) for turn in prompt)
    if len(prompt) > MOST_MESSAGES or size > LARGEST_BODY:
        return JSONResponse(problem(FULL, code="too_long"), 413)
    settings = site.settings.serve
    temperature = site.settings.sample.temperature  # what people judge is drawn as what is trained on
    seed, lot, side = _drawn(site.secret, key, len(said), body.text)
    chat_ask = settings.chat_ask if settings.seats > 1 else 0.0  # two answers are written side by side
    asks = question(lot, chat_ask, trial, before)
    count = 1 if asks is None else 2
    if site.conversations.under_way(visitor.key) + count > UNDER_WAY:
        message = f"{UNDER_WAY} answers are being written for you: wait for one of them, or stop it"
        raise HTTPException(429, message, RETRY)
    refuse_if(site.limits.take("generations", visitor.key, GENERATIONS, float(count)))
    refuse_if(site.limits.take("stored", visitor.key, STORED, size))
    wanted = GenerationRequest(
        prompt,
        settings.max_new_tokens,
        seed,
        count,
        temperature,
        account=visitor.key,
        candidate=side if asks is not None and asks.trial is not None else None,
    )
    exchange = Exchange(visitor.annotator, key, said, body.text, wanted, asks)
    return _events(site.conversations.begin(exchange, partial(answer, site)))


@router.get("/chat/{key}/ongoing")
async def ongoing(key: str, visitor: Chatter, site: Here) -> HTTPResponse:
    """Give the answer that is being written, from its beginning, and go on with it as it comes."""
    await to_thread.run_sync(Chats(site.store).read, visitor.annotator, key)  # nobody learns of what is not theirs
    found = site.conversations.of(visitor.annotator, key)
    if found is None:  # it is complete, or its server ended
        return _moved_on()
    return _events(found)


@router.post("/chat/{key}/stop")
async def stop(key: str, visitor: Chatter, site: Here) -> HTTPResponse:
    """Write no more of the answer; what was written is kept, as stopped."""
    found = site.conversations.of(visitor.annotator, key)
    if found is not None:
        found.stop()
    return JSONResponse({"stopped": found is not None})


def _drawn(secret: bytes, key: str, after: int, text: str) -> tuple[int, float, int]:
    """Return the seed of an answer, a number in [0, 1) that says whether two are written, and the side of a candidate.

    All follow from what is said and where: an answer that ended with its server is drawn again when it is asked for
    again. They follow from the workspace's secret too: else whoever chats could tell the candidate's side.
    """
    digest = drawn(secret, f"chat {key} {after} {text}")
    return int.from_bytes(digest[:4]) >> 1, (int.from_bytes(digest[4:12]) >> 11) / 2**53, digest[12] & 1


def _moved_on() -> HTTPResponse:
    return JSONResponse(problem("the conversation has moved on: open it again", code="moved_on"), 409)


def _events(ongoing: Ongoing) -> HTTPResponse:
    return StreamingResponse(follow(ongoing), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


@router.post("/chat/{key}/choose")
async def choose(key: str, body: Chosen, visitor: Chatter, site: Here) -> HTTPResponse:
    """Take the verdict on two answers; the chosen one goes on."""
    shortest = site.settings.serve.shortest_view
    if body.choice is not Choice.SKIP and body.seconds is not None and 1000 * body.seconds < shortest:
        return JSONResponse(problem(f"these answers were not visible for {shortest} ms", code="too_soon"), 409)
    take = partial(Chats(site.store).choose, visitor.annotator, key, body.comparison, body.choice, body.seconds)
    return JSONResponse({"response": await to_thread.run_sync(take, limiter=site.limits.writing)})


@router.post("/chat/{key}/delete")
async def delete(request: Request, key: str, visitor: Chatter, site: Here) -> HTTPResponse:
    """Forget a conversation; says which versions had learned from it."""

    def forget() -> Redacted:
        chats = Chats(site.store)
        chats.read(visitor.annotator, key)  # nobody notes down what is not theirs
        deletions.note(site.workspace.root, key)
        sweep(site.workspace, chats.words(visitor.annotator, key))  # a server that is killed here is asked again
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
    """Take what was deleted out of files, and of the database itself.

    A large one is written anew when serving ends, and so is one that has been too often: nobody writes meanwhile.
    """
    for where in sweep(site.workspace, deleted.texts).failed:
        log.error(f"words that somebody has deleted may still be in {where}: look at it, and remove it")
    if site.store.is_small and not site.limits.take("clearings", "", CLEARINGS):
        site.store.clear_traces()
