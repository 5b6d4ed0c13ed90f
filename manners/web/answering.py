"""How an answer of the chat is written and kept."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

from anyio import to_thread

from manners.errors import MannersError
from manners.models.requests import Done, Failed
from manners.store.chats import Chats
from manners.types import AskedHow, FinishReason, Response, Sampling
from manners.web.candidate import Trial
from manners.web.identity import Neutral, names_of
from manners.web.ongoing import Ongoing, event
from manners.web.render import CUT_OFF, to_html
from manners.web.site import Site


async def answer(site: Site, ongoing: Ongoing) -> str:
    """Write, store, and return the last event."""
    done = dict[int, Done]()
    version = site.engine.state.version
    ongoing.writing = asyncio.ensure_future(_write(site, ongoing, done))
    try:
        await ongoing.writing
    except asyncio.CancelledError:
        if not ongoing.stopped:
            ongoing.writing.cancel()
            raise
    except MannersError as error:
        return event("failed", message=str(error))
    if ongoing.stopped and not any(text.strip() for text in ongoing.texts):
        return event("stopped")
    try:
        keeping = to_thread.run_sync(_keep, site, ongoing, done, version, limiter=site.limits.writing)
        return event("done", **await keeping)
    except MannersError as error:  # somebody else went on with this conversation, or deleted it
        return event("failed", message=str(error))


async def _write(site: Site, ongoing: Ongoing, done: dict[int, Done]) -> None:
    """Take what is written as it comes, without the names of models. Raises MannersError where it fails."""
    names = [*names_of(site.settings.model.name), *names_of(site.engine.state.version)]
    neutral = [Neutral(names) for _ in ongoing.texts]
    try:
        wanted = ongoing.exchange.wanted
        async with aclosing(site.figures.counted(site.engine.generate(wanted), wanted.count)) as events:
            async for one in events:
                if isinstance(one, Failed):
                    raise MannersError(one.message)
                if isinstance(one, Done):
                    done[one.index] = one
                    ongoing.texts[one.index] += neutral[one.index].rest()
                else:
                    ongoing.texts[one.index] += neutral[one.index].feed(one.text)
                ongoing.tell()
    finally:
        if ongoing.stopped:
            for side, held_back in enumerate(neutral):
                ongoing.texts[side] += "" if side in done else held_back.rest()


def _keep(site: Site, ongoing: Ongoing, done: Mapping[int, Done], version: str) -> dict[str, Any]:
    """Store an exchange, and return it as the page shows it. Raises MannersError where the conversation moved on."""
    exchange, wanted, asks = ongoing.exchange, ongoing.exchange.wanted, ongoing.exchange.question
    sampling = Sampling(wanted.temperature, wanted.max_tokens, wanted.seed)
    authors = [asks.trial.version if asks and asks.trial and n == wanted.candidate else version for n in range(2)]
    answers = [
        Response(text, done[side].version, done[side].finish_reason, sampling)
        if side in done
        else Response(text, authors[side], FinishReason.UNKNOWN, sampling)
        for side, text in enumerate(ongoing.texts)
    ]
    if len(done) < len(answers):  # what was stopped is compared with nothing
        answers = [max(answers, key=lambda answer: (bool(answer.text.strip()), answer.author == version))]
    elif asks and asks.trial and not _can_tell(answers, asks.trial):
        answers = [one for one in answers if one.author != asks.trial.version][:1] or answers[:1]
    chats = Chats(site.store)
    who = exchange.annotator
    probability, how = (asks.probability, asks.asked_how) if asks else (1.0, AskedHow.CHAT)
    comparison, responses = chats.say(who, exchange.key, exchange.said, exchange.text, answers, probability, how)
    shown = answers[: len(responses)]
    html = [to_html(answer.text) + ending(answer.finish_reason) for answer in shown]
    texts = [answer.text for answer in shown]
    asked = to_html(exchange.text)
    return {"comparison": comparison, "responses": responses, "html": html, "texts": texts, "asked": asked}


def _can_tell(answers: Sequence[Response], trial: Trial) -> bool:
    """Return whether two answers are of the two versions, whatever was promoted meanwhile, and not the same."""
    one, other = answers
    return {one.author, other.author} == {trial.version, trial.against} and one.text.strip() != other.text.strip()


def ending(reason: FinishReason | None) -> str:
    """Return what stands under an answer that its writer did not end; empty under any other."""
    match reason:
        case FinishReason.LENGTH:
            return CUT_OFF
        case FinishReason.UNKNOWN:
            return '<p class="hint">Stopped here.</p>'
    return ""
