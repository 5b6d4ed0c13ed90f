"""`/metrics`: what is told to whoever watches the server, and who that may be."""

from __future__ import annotations

import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manners.store.tokens import Scope as KeyScope
from manners.types import LOCAL, AccountRole
from manners.web.auth import Allow, Visitor
from manners.web.figures import Figures
from manners.web.gate import Gate
from manners.web.site import Here, Site

OTHER = "other"
"""The route of what leads nowhere: what somebody typed is no label."""
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "DELETE"})


class Watched:
    """Stands before an application, and counts what it is asked and how soon it answers."""

    def __init__(self, app: ASGIApp, figures: Figures) -> None:
        """Stand before an application."""
        self._app = app
        self._figures = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, and count it by the route that took it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, after = time.monotonic(), 499, 0.0

        async def noticed(message: Message) -> None:
            nonlocal status, after
            if message["type"] == "http.response.start":
                status, after = int(message["status"]), time.monotonic() - begun
            await send(message)

        try:
            await self._app(scope, receive, noticed)
        finally:
            route = "/static" if scope["path"].startswith("/static/") else getattr(scope.get("route"), "path", OTHER)
            method = scope["method"] if scope["method"] in METHODS else OTHER
            self._figures.requests.labels(route, method, str(status)).inc()
            if after:  # whoever left before has no answer to wait for
                self._figures.seconds.labels(route).observe(after)


@dataclass(frozen=True)
class Watcher(Allow):
    """Lets in who may see the dashboard, or a key for this; this machine without either, where a setting says so."""

    async def decide(self, request: Request) -> Visitor:
        """Return the visitor; raises as `Allow` does."""
        site: Site = request.app.state.site
        if site.settings.serve.metrics == "this machine" and not site.proxied and _from_here(request):
            return Visitor(LOCAL, AccountRole.VIEWER, scopes=frozenset())
        return await super().decide(request)


def _from_here(request: Request) -> bool:
    try:
        return ip_address(request.client.host if request.client else "").is_loopback
    except ValueError:
        return False


SEES = frozenset({AccountRole.OWNER, AccountRole.REVIEWER, AccountRole.VIEWER})
Reader = Annotated[Visitor, Depends(Watcher(SEES, KeyScope.METRICS))]

router = APIRouter(route_class=Gate)


@router.get("/metrics")
async def metrics(_: Reader, site: Here) -> Response:
    """Give the figures."""
    text = await to_thread.run_sync(site.figures.text, site, limiter=site.limits.reckoning)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
