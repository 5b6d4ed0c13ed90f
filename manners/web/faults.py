"""What a fault of ours is logged as: its kind and where it arose, never what it says, which may be somebody's words."""

from __future__ import annotations

import logging

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manners.errors import described
from manners.web.shapes import problem

SORRY = "the server made a mistake, which is in its log: try again, and tell whoever runs it"

log = logging.getLogger("manners.web")


class Faults:
    """Stands before an application, and answers in its place where it fails."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand before an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through; where it fails, log how, and say so if nothing was said yet."""
        begun = False

        async def noticed(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noticed)
        except ClientDisconnect:
            return  # nobody is there any more, and nothing is wrong
        except Exception as fault:
            if scope["type"] != "http":
                raise
            said = f"{scope.get('method', '')} failed: {described(fault)}"
            log.error(said)  # as it is, so that the same fault again is known for the same
            if not begun:
                await JSONResponse(problem(SORRY, "server_error"), 500)(scope, receive, send)
