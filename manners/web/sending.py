"""Long answers: given a piece at a time, each once those before it are read, and counted until then.

Given whole, an answer lies in the connection's buffer while nobody reads it, after all that its request held was let
go: whoever asks for long ones and reads none would take as much memory as they like.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manners.web.limits import HELD_BY_ONE, Limits
from manners.web.shapes import problem

PIECE = 65_536
"""Bytes that are given at once: so many wait in a connection's buffer before it says that nobody reads."""
MOST_COUNTED = HELD_BY_ONE // 4
"""Bytes that one answer counts as at most, however long it is: whoever asks for nothing beside it is given it."""


class Sending:
    """Stands before an application, and gives what it answers with in pieces."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        """Stand before an application."""
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let an answer through, or refuse it where too many of this visitor's wait to be read."""
        refusal: Response | None = None

        async def sent(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start":
                refusal = self._count(scope, Headers(scope=message))
                await (send(message) if refusal is None else refusal(scope, receive, send))
            elif message["type"] == "http.response.body" and refusal is None:
                for piece in _pieces(message):
                    await send(piece)

        await self._app(scope, receive, sent if scope["type"] == "http" else send)

    def _count(self, scope: Scope, headers: Headers) -> Response | None:
        """Hold what an answer takes; return a refusal where that is too much."""
        size, visitor = int(headers.get("content-length", "0")), scope["state"].get("visitor")
        if visitor is None or size <= PIECE:
            return None
        try:
            self._limits.hold(scope, visitor.key, min(size, MOST_COUNTED))
        except HTTPException as error:
            return JSONResponse(problem(error.detail), error.status_code, error.headers)
        return None


def _pieces(message: Message) -> Iterator[Message]:
    body, more = message.get("body", b""), message.get("more_body", False)
    for begin in range(0, len(body) or 1, PIECE):
        yield {**message, "body": body[begin : begin + PIECE], "more_body": more or begin + PIECE < len(body)}
