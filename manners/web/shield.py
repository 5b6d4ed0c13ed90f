"""What holds for every request: where from, how long it may be, and what a browser may do with the answer."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manners.web.auth import address_of, from_elsewhere
from manners.web.connections import BODY_SECONDS
from manners.web.limits import LARGEST_FORM, OPENED
from manners.web.shapes import problem
from manners.web.site import Site

LARGEST_BODY = 2_000_000
"""Bytes of a request: a long conversation, and far more than a verdict."""
FORM_SECONDS = 10.0
"""For the form of somebody who has not signed in: strangers hold little at once, and none of it for long."""
TOO_LARGE = f"a request takes at most {LARGEST_BODY / 1e6:.0f} MB: send less"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
PASSED_ON = frozenset(
    {"forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip", "cf-connecting-ip"}
)
"""What a proxy adds, beside all that begins with `x-forwarded-` or `x-original-`."""
PROXIED = (
    "a proxy passed this on, and without accounts whoever comes through it would be the owner: make an account with "
    "`manners accounts add NAME`, or name the proxy with --base-url"
)
UNNAMED = (
    "a proxy passed requests on, and none was named: all who come through it share the limits of one, and stand in the "
    "log under its address; name it with --base-url"
)
log = logging.getLogger("manners.web")

OPEN = ("/static/", "/sign-in", "/sign-out", "/join/", "/health")
"""What needs nobody to be signed in; see `app.OPEN`."""
PROGRAMS = "/v1/"
"""What pages of other sites may call where `serve.allow_origins` names them; with a key, never with a cookie."""
PREFLIGHT_SECONDS = "600"


class Shield:
    """Refuses what no page of ours sends, and adds the headers that every answer has."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        """Stand before an application."""
        self._app = app
        self._site = site
        # Without accounts there is no key to ask for, and whoever asks is the owner: the server does not start then.
        self._origins = frozenset[str]() if site.local else frozenset(site.settings.serve.allow_origins.split())
        self._hosts = LOOPBACK | {urlsplit(site.base_url).hostname or ""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = 0
        complete = False
        state = scope.setdefault("state", {})
        begun = asyncio.get_running_loop().time()

        async def counted() -> Message:
            nonlocal received, complete
            if complete:  # what comes now is that the client has left
                return await receive()
            known = state.get("visitor")
            seconds = BODY_SECONDS if known else FORM_SECONDS
            try:
                async with asyncio.timeout_at(begun + seconds):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body did not come within {seconds:.0f} s: send it again") from None
            size = len(message.get("body", b""))
            received += size
            complete = not message.get("more_body", False)
            if received > (LARGEST_BODY if known else LARGEST_FORM):
                raise HTTPException(413, TOO_LARGE if known else "sign in first, or send less")
            if known:
                self._site.limits.hold(scope, known.key, size)
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in (welcome | HEADERS).items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        request = Request(scope)
        welcome = self._welcome(request)
        is_open = request.scope["path"].startswith(OPEN)
        refusal = self._refusal(request, bool(welcome)) or (too_often(self._site, request) if is_open else None)
        try:
            await (refusal or self._app)(scope, counted, with_headers)
        finally:
            self._site.limits.let_go(scope)

    def _welcome(self, request: Request) -> dict[str, str]:
        """Return the headers that let a page of another site read the answer; none where it may not ask."""
        origin = request.headers.get("origin", "")
        named = origin and ("*" in self._origins or origin in self._origins)
        if not named or not request.url.path.startswith(PROGRAMS) or "cookie" in request.headers:
            return {}
        return {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": "retry-after",
            "cross-origin-resource-policy": "cross-origin",
            "vary": "origin",
        }

    def _refusal(self, request: Request, welcome: bool) -> Response | None:
        if not self._site.proxied and (name := _forwarded(request)):
            if self._site.local:
                return _refuse(403, f"{PROXIED} ({name})")
            log.warning(UNNAMED)
        host = request.headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._site.local and name not in self._hosts:
            # A page elsewhere can have a name of its own point at this machine, and would then be "the same site".
            return _refuse(421, f"this server is not {name or 'nameless'}: open {self._site.base_url}")
        if request.method not in SAFE and from_elsewhere(request) and not welcome:
            return _refuse(403, "a page of another site sent this: open the page here and try again")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            return _refuse(413, TOO_LARGE)
        return _preflight(request) if welcome and request.method == "OPTIONS" else None


def too_often(site: Site, request: Request) -> Response | None:
    """Count who asks for what is open to all, or is not there; return a refusal where it was too often."""
    wait = site.limits.take("open", address_of(request), OPENED)
    if not wait:
        return None
    return _refuse(429, "too many at once: try again in a moment", {"Retry-After": str(math.ceil(wait))})


def _forwarded(request: Request) -> str | None:
    """Return a header that says that somebody else sent the request first; None where there is none."""
    return next(
        (name for name in request.headers if name in PASSED_ON or name.startswith(("x-forwarded", "x-original-"))),
        None,
    )


def _preflight(request: Request) -> Response:
    """Answer a browser that asks before it sends what a page of another site wants to send."""
    headers = {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": request.headers.get("access-control-request-headers", ""),
        "access-control-max-age": PREFLIGHT_SECONDS,
    }
    return Response(status_code=204, headers=headers)


def _refuse(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(problem(message), status, headers)
