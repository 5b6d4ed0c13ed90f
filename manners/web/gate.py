"""The order in which a request is taken: who it is, what it may take, how its body is made; and only then its values.

FastAPI reads and parses a body before it asks who sent it. A route of this kind asks first.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

from fastapi import HTTPException, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

DEEPEST = 32
"""Lists and objects inside each other."""
MOST_VALUES = 50_000
"""Values in a body of JSON: a thousand messages have a few thousand. Each takes up to 250 bytes of memory."""
MOST_TEXTS = 2 * (MOST_VALUES + 1)
"""A value has two texts at most, its name and itself."""
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A text that does not end is one up to the body's end: tried anew at each of its quotes, it would take the square of
its length."""
_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


@runtime_checkable
class Door(Protocol):
    """A dependency that decides by a request's header alone whether it is let in."""

    def decide(self, request: Request) -> Awaitable[object]:
        """Let it in, or raise what refuses it."""
        ...


class Gate(APIRoute):
    """A route whose doors are asked before the body is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        answer = super().get_route_handler()
        calls: list[Any] = [one.call for one in self.dependant.dependencies]
        doors = [call for call in calls if isinstance(call, Door)]
        reads = self.body_field is not None

        async def guarded(request: Request) -> Response:
            for door in doors:
                await door.decide(request)
            kind = request.headers.get("content-type", "json").lower()  # FastAPI parses JSON by any spelling of it
            if reads and "json" in kind and (wrong := excess(await request.body())):
                raise HTTPException(422, wrong)
            return await answer(request)

        return guarded


def excess(body: bytes) -> str:
    """Return what a body of JSON has too much of, seen before it is parsed; empty for nothing.

    Parsed, two megabytes of `[{},{},...]` are fifty, and validated with all complaints, more than a thousand. Everybody
    waits meanwhile, so that its signs are counted, and looked at one by one only where there are few.
    """
    if (opened := _number(body, b"[{")) <= DEEPEST and opened + body.count(b",") <= MOST_VALUES:
        return ""  # not even where all of these were no part of a text
    apart, texts = _TEXT.subn(b"", body, MOST_TEXTS + 1)
    too_many = f"the body has more than {MOST_VALUES:,} values: send less at once"
    if texts > MOST_TEXTS:
        return too_many
    brackets = apart.translate(None, _BUT_BRACKETS)[: 2 * MOST_VALUES + 2]
    if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > DEEPEST:
        return f"the body has more than {DEEPEST} lists and objects inside each other: send it flatter"
    return too_many if _number(apart, b"[{,") > MOST_VALUES else ""


def _number(body: bytes, signs: bytes) -> int:
    """Return how many of these signs there are, in one pass however many there are."""
    return len(body) - len(body.translate(None, signs))
