"""Who may do what: sessions, keys and links; each route names the roles that it is for.

A request that changes something is refused if a browser says that another site made it (`Sec-Fetch-Site`, or `Origin`
in browsers too old to send that): cookies alone prove nothing about who wrote a form. Source: OWASP, Cross-Site
Request Forgery Prevention Cheat Sheet, "Fetch metadata headers" and "Verifying origin".
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Annotated
from urllib.parse import quote, urlsplit

from anyio import to_thread
from fastapi import APIRouter, Depends, Form, HTTPException, Request
from starlette.responses import RedirectResponse, Response

from manners.errors import MannersError
from manners.store.accounts import SPENT, Account, TokenUse
from manners.store.audit import Event
from manners.types import AccountRole, Annotator, AnnotatorKind
from manners.web.limits import ENTRIES, REQUESTS, SIGN_INS, network_of
from manners.web.shapes import AccountName
from manners.web.site import LOCAL, Here, Site, noted

COOKIE = "manners_session"
REMEMBERED_SECONDS = 10.0
"""For so long a session is believed without looking into the database: how late a disabled account may be let in."""


class NotSignedIn(Exception):
    """Nobody has signed in: pages lead to where one can."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whoever makes a request."""

    name: str
    role: AccountRole

    @property
    def annotator(self) -> Annotator:
        """The person under whose name verdicts are stored."""
        return Annotator(self.name, AnnotatorKind.HUMAN)


@dataclass(frozen=True)
class Allow:
    """A dependency that lets some roles in, and hands over who it is."""

    roles: frozenset[AccountRole]

    async def __call__(self, request: Request, site: Here) -> Visitor:
        """Return the visitor; raises NotSignedIn, or HTTPException 403 or 429."""
        visitor = await _visitor(request, site)
        if visitor is None:
            raise NotSignedIn
        request.state.visitor = visitor
        if visitor.role not in self.roles:
            raise HTTPException(403, f"this is not for the role {visitor.role}: ask an owner")
        refuse_if(site.limits.take("requests", visitor.name, REQUESTS))
        return visitor


Owner = Annotated[Visitor, Depends(Allow(frozenset({AccountRole.OWNER})))]
Reviewer = Annotated[Visitor, Depends(Allow(frozenset({AccountRole.OWNER, AccountRole.REVIEWER})))]
Looker = Annotated[Visitor, Depends(Allow(frozenset({AccountRole.OWNER, AccountRole.REVIEWER, AccountRole.VIEWER})))]
Labeller = Annotated[
    Visitor, Depends(Allow(frozenset({AccountRole.OWNER, AccountRole.REVIEWER, AccountRole.ANNOTATOR})))
]
Anybody = Annotated[Visitor, Depends(Allow(frozenset(AccountRole)))]
"""Whoever has signed in."""

router = APIRouter()
_remembered: dict[tuple[TokenUse, str], tuple[Account | None, float]] = {}


async def _visitor(request: Request, site: Site) -> Visitor | None:
    if site.local:
        return Visitor(LOCAL, AccountRole.OWNER)
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        account = await _holder(site, bearer.strip(), TokenUse.KEY)
    else:
        account = await _holder(site, request.cookies.get(COOKIE, ""), TokenUse.SESSION)
    return None if account is None else Visitor(account.name, account.role)


async def _holder(site: Site, secret: str, use: TokenUse) -> Account | None:
    if not secret:
        return None
    now = time.monotonic()
    account, until = _remembered.get((use, secret), (None, 0.0))
    if now >= until:
        account = await to_thread.run_sync(site.accounts.holder, secret, use)
        if len(_remembered) > 10_000:
            _remembered.clear()
        _remembered[use, secret] = account, now + REMEMBERED_SECONDS
    return account


def refuse_if(wait: float) -> None:
    """Raise HTTPException 429 saying for how long, unless `wait` seconds are none."""
    if wait:
        seconds = math.ceil(wait)
        raise HTTPException(429, f"too many at once: try again in {seconds} s", {"Retry-After": str(seconds)})


def from_elsewhere(request: Request) -> bool:
    """Return whether a browser says that another site made this request."""
    if fetched := request.headers.get("sec-fetch-site"):
        return fetched not in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host")


async def _take_entry(request: Request, site: Here) -> None:
    """Count an attempt to come in against its address, before anything is looked up or hashed for it."""
    address = request.client.host if request.client else ""
    refuse_if(site.limits.take("entries", network_of(address), ENTRIES))


ENTRY = Depends(_take_entry)


@router.get("/sign-in")
async def sign_in_page(request: Request, site: Here, then: str = "/") -> Response:
    """Show where to sign in."""
    return site.page(request, "sign_in.html.j2", then=_inside(then))


@router.post("/sign-in", dependencies=[ENTRY])
async def sign_in(
    request: Request,
    site: Here,
    name: Annotated[AccountName, Form()],
    password: Annotated[str, Form()],
    then: Annotated[str, Form()] = "/",
) -> Response:
    """Sign in by name and password."""
    refuse_if(site.limits.take("sign-in", name, SIGN_INS))
    account = await to_thread.run_sync(site.accounts.check, name, password, limiter=site.limits.hashing)
    if account is None:
        await noted(request, Event.SIGN_IN_FAILED)
        return site.page(request, "sign_in.html.j2", status=403, then=_inside(then), failed=True, name=name)
    await noted(request, Event.SIGNED_IN, by=account.name)
    return await _signed_in(site, account, _inside(then))


@router.get("/sign-in/{secret}", dependencies=[ENTRY])
async def follow_link(request: Request, secret: str, site: Here) -> Response:
    """Sign in by a link that is good once."""
    account = await to_thread.run_sync(site.accounts.follow, secret)
    await noted(request, Event.SIGNED_IN, "link", by=account.name)
    return await _signed_in(site, account, "/")


@router.get("/join/{secret}", dependencies=[ENTRY])
async def join_page(request: Request, secret: str, site: Here) -> Response:
    """Show where an invitation is taken up."""
    role = await to_thread.run_sync(site.accounts.invitation, secret)
    if role is None:
        raise MannersError(SPENT)
    return site.page(request, "join.html.j2", role=role, secret=secret)


@router.post("/join/{secret}", dependencies=[ENTRY])
async def join(
    request: Request,
    secret: str,
    site: Here,
    name: Annotated[AccountName, Form()],
    password: Annotated[str, Form()],
) -> Response:
    """Make the account that an invitation is for, and sign in."""
    account = await to_thread.run_sync(site.accounts.join, secret, name, password, limiter=site.limits.hashing)
    await noted(request, Event.JOINED, by=account.name)
    return await _signed_in(site, account, "/")


@router.post("/sign-out")
async def sign_out(request: Request, site: Here) -> Response:
    """End the session."""
    secret = request.cookies.get(COOKIE, "")
    account = await _holder(site, secret, TokenUse.SESSION)
    if account is not None:  # strangers get no turn among those who write
        await to_thread.run_sync(site.accounts.end, secret)
        await noted(request, Event.SIGNED_OUT, by=account.name)
    _remembered.pop((TokenUse.SESSION, secret), None)
    response = RedirectResponse(f"{site.prefix}/sign-in", 303)
    response.delete_cookie(COOKIE, path=site.prefix or "/")
    return response


async def _signed_in(site: Site, account: Account, then: str) -> Response:
    secret = await to_thread.run_sync(partial(site.accounts.issue, TokenUse.SESSION, account=account.name))
    response = RedirectResponse(site.prefix + then, 303)
    secure = site.base_url.startswith("https:")
    response.set_cookie(
        COOKIE, secret, 14 * 86_400, httponly=True, samesite="lax", secure=secure, path=site.prefix or "/"
    )
    return response


def _inside(path: str) -> str:
    """Return a path of this server: a link to sign in must not lead elsewhere."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"


def sign_in_address(site: Site, request: Request) -> str:
    """Return where a page leads that nobody may see yet."""
    return f"{site.prefix}/sign-in?then={quote(request.url.path)}"
