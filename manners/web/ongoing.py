"""Answers of the chat while they are written: they go on without a reader, and whoever comes reads them so far.

What is said is stored with its answer once that is complete, or where its reader stopped it, as far as it was written.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from manners.errors import MannersError, described
from manners.models.requests import GenerationRequest
from manners.store.chats import Said
from manners.types import Annotator
from manners.web.candidate import Question
from manners.web.faults import log


@dataclass(frozen=True)
class Exchange:
    """What somebody said, and how it is to be answered."""

    annotator: Annotator
    key: str
    """Of the conversation."""
    said: Sequence[Said]
    """What was said before, as the answer's writer reads it."""
    text: str
    wanted: GenerationRequest
    question: Question | None = None
    """Why two answers are wanted; None where one is."""

    @property
    def held(self) -> bool:
        """Whether nothing is shown before it is complete: the pace of two versions would tell which is which."""
        return self.question is not None and self.question.trial is not None


@dataclass
class Ongoing:
    """An answer as far as it is written, or two."""

    exchange: Exchange
    texts: list[str]
    end: str | None = None
    """The last event, once there is one."""
    stopped: bool = False
    writing: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Another one after each change."""

    def tell(self) -> None:
        """Wake those who read."""
        self.changed.set()
        self.changed = asyncio.Event()

    def stop(self) -> None:
        """Write no more, and keep what was written."""
        self.stopped = True
        if self.writing is not None:
            self.writing.cancel()


class Conversations:
    """The conversations of a server in which an answer is being written."""

    def __init__(self) -> None:
        """Begin with none."""
        self._ongoing: dict[str, Ongoing] = {}
        self._tasks = set[asyncio.Task[None]]()

    def of(self, annotator: Annotator, key: str) -> Ongoing | None:
        """Return the answer that is being written in somebody's conversation; None for none."""
        found = self._ongoing.get(key)
        return found if found is not None and found.exchange.annotator == annotator else None

    def under_way(self, account: str) -> int:
        """Return how many answers are being written for an account, whoever reads them: two where a turn asks."""
        wanted = (one.exchange.wanted for one in self._ongoing.values())
        return sum(one.count for one in wanted if one.account == account)

    def begin(self, exchange: Exchange, answer: Callable[[Ongoing], Coroutine[Any, Any, str]]) -> Ongoing:
        """Begin to answer; `answer` writes, and returns the last event.

        Raises MannersError where an answer is being written already.
        """
        if exchange.key in self._ongoing:
            raise MannersError("an answer is being written in this conversation: wait for it, or stop it")
        ongoing = self._ongoing[exchange.key] = Ongoing(exchange, [""] * exchange.wanted.count)
        task = asyncio.get_running_loop().create_task(self._answer(ongoing, answer(ongoing)))
        self._tasks.add(task)  # a loop holds its tasks weakly
        task.add_done_callback(self._tasks.discard)
        return ongoing

    async def _answer(self, ongoing: Ongoing, answering: Coroutine[Any, Any, str]) -> None:
        end = event("failed", message="the server made a mistake, which is in its log: send your message once more")
        try:
            end = await answering
        except Exception as fault:  # nobody waits for this task: it would be logged with what it says
            log.error(f"an answer of the chat failed: {described(fault)}")
        finally:
            del self._ongoing[ongoing.exchange.key]
            ongoing.end = end
            ongoing.tell()


async def follow(ongoing: Ongoing) -> AsyncIterator[str]:
    """Give what is written so far, then pieces as they come, and at the end the answers as they are stored.

    Of two that are held back nothing comes before the end, in which both are whole, or one where they were stopped.
    """
    held = ongoing.exchange.held
    yield event("begin", sides=len(ongoing.texts), held=held)
    given = [0] * len(ongoing.texts)
    while True:
        changed = ongoing.changed
        for side, text in enumerate(ongoing.texts):
            if not held and text[given[side] :]:
                yield event("piece", side=side, text=text[given[side] :])
                given[side] = len(text)
        if ongoing.end is not None:
            yield ongoing.end
            return
        if changed is ongoing.changed:
            await changed.wait()


def event(kind: str, **more: Any) -> str:
    """Return one event of a stream."""
    return f"data: {json.dumps({'kind': kind} | more)}\n\n"
