"""Who may do what: sessions, keys and links; each route names the roles that it is for.

A request that changes something is refused if a browser says that another site made it (`Sec-Fetch-Site`, or `Origin`
in browsers too old to send that): cookies alone prove nothing about who wrote a form. Source: OWASP, Cross-Site
Request Forgery Prevention Cheat Sheet, "Fetch metadata headers" and "Verifying origin".
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated
from urllib.parse import quote, unquote, urlsplit

from anyio import to_thread
from fastapi import APIRouter, Depends, Form, HTTPException, Request
from starlette.responses import RedirectResponse, Response

from manners.errors import MannersError
from manners.store.accounts import SPENT, Account, Pass
from manners.store.audit import Event
from manners.store.names import spelt
from manners.store.programs import requester
from manners.store.tokens import Scope, Terms, TokenUse, could_be, digest
from manners.types import LOCAL, AccountRole, Annotator, AnnotatorKind
from manners.web.gate import Gate
from manners.web.limits import (
    ENTRIES,
    LARGEST_FORM,
    REMEMBERED,
    REQUEST_BYTES,
    REQUESTS,
    SIGN_INS,
    STRANGERS,
    network_of,
)
from manners.web.shapes import AccountName, Password
from manners.web.site import Here, Site, noted

COOKIE = "manners_session"
KNOWN = "manners_known"
"""Cookie with the secret of the last session, which stays when that ends and then lets nobody in; it is sent only to
where one signs in."""
REMEMBERED_SECONDS = 1.0
"""For so long a secret is believed without looking into the database: how late one that another process ended is."""


PAGE_OF = "manners-visitor"
"""Header with the name of whoever opened the page that sends a request, percent-encoded."""


class NotSignedIn(Exception):
    """Nobody has signed in: pages lead to where one can."""

    code = "invalid_api_key"
    message = "sign in first, or send a key as `Authorization: Bearer KEY`"


class SomebodyElse(NotSignedIn):
    """Whoever has signed in is not who opened the page, and what waits there is not theirs."""

    code = "somebody_else"
    message = "somebody else has signed in on this browser: sign in again"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whoever makes a request."""

    name: str
    role: AccountRole
    account: int | None = None
    """The account; None for the owner of a machine without accounts."""
    scopes: frozenset[Scope] = frozenset(Scope)
    """What they may do, within their role."""
    by_key: bool = False
    """Whether a program comes with a key, and no browser with a session."""

    @property
    def annotator(self) -> Annotator:
        """The person whose verdicts are stored."""
        return Annotator(self.name, AnnotatorKind.HUMAN, self.account)

    @property
    def key(self) -> str:
        """A text that no two visitors share."""
        return requester(self.account)


@dataclass(frozen=True)
class Allow:
    """A dependency that lets some roles in, with a key only if it is for that, and hands over who it is."""

    roles: frozenset[AccountRole]
    scope: Scope | None = None
    """What a key must be good for; None where any will do."""
    programs: bool = field(default=False, kw_only=True)
    """Whether no browser's session will do."""

    async def __call__(self, request: Request) -> Visitor:
        """Return the visitor, who was decided about before the body was read, where the route is a `Gate`."""
        admitted: Visitor | None = getattr(request.state, "admitted", None)
        return admitted or await self.decide(request)

    async def decide(self, request: Request) -> Visitor:
        """Return the visitor; raises NotSignedIn, SomebodyElse, or HTTPException 403, 429 or 503."""
        site: Site = request.app.state.site
        visitor = await _visitor(request, site)
        if visitor is None:
            refuse_if(site.limits.take("strangers", address_of(request), STRANGERS))
            raise NotSignedIn
        opened_by = request.headers.get(PAGE_OF)
        if opened_by is not None and unquote(opened_by) != visitor.name:
            raise SomebodyElse
        request.state.visitor = visitor
        if visitor.role not in self.roles:
            raise HTTPException(403, f"this is not for the role {visitor.role}: ask an owner")
        if self.scope is not None and self.scope not in visitor.scopes:
            raise HTTPException(403, f"this key is not for {self.scope}: {ANOTHER_KEY} --scope {self.scope}`")
        if self.programs and not visitor.by_key and visitor.account is not None:
            raise HTTPException(403, f"this is for programs, which come with a key: {ANOTHER_KEY}`")
        refuse_if(site.limits.take("requests", visitor.key, REQUESTS))
        site.limits.hold(request.scope, visitor.key, REQUEST_BYTES)
        request.state.admitted = visitor
        return visitor


ANOTHER_KEY = "make one with `manners accounts key NAME"
LABELLERS = frozenset({AccountRole.OWNER, AccountRole.REVIEWER, AccountRole.ANNOTATOR})
Owner = Annotated[Visitor, Depends(Allow(frozenset({AccountRole.OWNER}), Scope.ADMIN))]
Reviewer = Annotated[Visitor, Depends(Allow(frozenset({AccountRole.OWNER, AccountRole.REVIEWER}), Scope.ADMIN))]
Looker = Annotated[
    Visitor, Depends(Allow(frozenset({AccountRole.OWNER, AccountRole.REVIEWER, AccountRole.VIEWER}), Scope.EXPORT))
]
Labeller = Annotated[Visitor, Depends(Allow(LABELLERS, Scope.FEEDBACK))]
Chatter = Annotated[Visitor, Depends(Allow(LABELLERS, Scope.CHAT))]
Exporter = Annotated[Visitor, Depends(Allow(LABELLERS, Scope.EXPORT))]
Program = Annotated[Visitor, Depends(Allow(LABELLERS, Scope.FEEDBACK, programs=True))]
"""A program that gives verdicts on behalf of its users; without accounts whoever is at the machine."""
Oneself = Annotated[Visitor, Depends(Allow(frozenset(AccountRole), Scope.ADMIN))]
"""Whoever has signed in, about their own account."""
Anybody = Annotated[Visitor, Depends(Allow(frozenset(AccountRole)))]
"""Whoever has signed in."""

router = APIRouter(route_class=Gate)


async def _visitor(request: Request, site: Site) -> Visitor | None:
    if site.local and await to_thread.run_sync(site.is_local):
        return Visitor(LOCAL, AccountRole.OWNER)
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    by_key = scheme.lower() == "bearer"
    if by_key:
        found = await _admitted(site, bearer.strip(), TokenUse.KEY)
    else:
        found = await _admitted(site, request.cookies.get(COOKIE, ""), TokenUse.SESSION)
    if found is None:
        return None
    return Visitor(found.account.name, found.account.role, found.account.id, found.scopes, by_key)


async def _admitted(site: Site, secret: str, use: TokenUse) -> Pass | None:
    if not could_be(secret):
        return None
    key = use, digest(secret)
    found, until = site.remembered.get(key, (None, 0.0))
    if (now := time.monotonic()) >= until:
        # Whoever was let in before does not wait behind those who try secrets out.
        limiter = None if found else site.limits.trying
        found = await to_thread.run_sync(site.accounts.admit, secret, use, limiter=limiter)
        site.remembered.pop(key, None)
        if found is not None:  # of what lets nobody in nothing is kept, however many there are
            site.remembered[key] = found, now + REMEMBERED_SECONDS
            if len(site.remembered) > REMEMBERED:
                del site.remembered[next(iter(site.remembered))]
    return found


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


def address_of(request: Request) -> str:
    """Return whose address a request comes from."""
    return network_of(request.client.host if request.client else "")


@dataclass(frozen=True, slots=True)
class _Known:
    """A browser that has been signed in here before."""

    account: str
    mark: str


def slow_guesses(request: Request, site: Site, name: str) -> None:
    """Count a guess at a password; raises HTTPException 429 where there were too many.

    By address and name together: by the name alone, whoever guesses would keep the owner of the name out. A browser
    that this account has signed in with before is counted by itself: a neighbour's guesses do not keep it out either.
    Source: OWASP, "Blocking Brute Force Attacks", device cookies.
    """
    name = spelt(name)  # as it is looked up: written in another way it would be guessed at anew
    known: _Known | None = getattr(request.state, "known", None)
    who = known.mark if known is not None and known.account == name else address_of(request)
    refuse_if(site.limits.take("sign-in", f"{who} {name}", SIGN_INS))


@dataclass(frozen=True)
class Entry:
    """A dependency that counts an attempt to come in against the account that its browser knows, or its address."""

    async def __call__(self) -> None:
        """Do nothing more: it was counted before the body was read."""

    async def decide(self, request: Request) -> None:
        """Count it, before its body is read, or anything else looked up or hashed; raises HTTPException 429 or 503."""
        site: Site = request.app.state.site
        secret = request.cookies.get(KNOWN, "")
        account = None
        if could_be(secret):
            account = await to_thread.run_sync(site.accounts.knew, secret, limiter=site.limits.trying)
        known = None if account is None else _Known(account, digest(secret))
        request.state.known = known
        # By account and not by browser: whoever has signed in often has as many of these, and would have as many turns.
        request.state.entrant = who = address_of(request) if known is None else f"browsers of {known.account}"
        refuse_if(site.limits.take("entries", who, ENTRIES))
        size = LARGEST_FORM if known is None else REQUEST_BYTES
        site.limits.hold(request.scope, who, size, stranger=known is None)


ENTRY = Depends(Entry())


@router.get("/sign-in")
async def sign_in_page(request: Request, site: Here, then: str = "/") -> Response:
    """Show where to sign in."""
    return site.page(request, "sign_in.html.j2", then=_inside(then))


@router.post("/sign-in", dependencies=[ENTRY])
async def sign_in(
    request: Request,
    site: Here,
    name: Annotated[AccountName, Form()],
    password: Annotated[Password, Form()],
    then: Annotated[str, Form()] = "/",
) -> Response:
    """Sign in by name and password."""
    slow_guesses(request, site, name)
    account = await site.limits.hashed(request, request.state.entrant, partial(site.accounts.check, name, password))
    if account is None:
        await noted(request, Event.SIGN_IN_FAILED)
        return site.page(request, "sign_in.html.j2", status=403, then=_inside(then), failed=True, name=name)
    await noted(request, Event.SIGNED_IN, by=account.id)
    return await signed_in(request, site, account, _inside(then))


@router.get("/sign-in/{secret}", dependencies=[ENTRY])
async def link_page(request: Request, secret: str, site: Here) -> Response:
    """Show what a link is for: only the button uses it up, for programs open links before people do."""
    account = await to_thread.run_sync(site.accounts.holder, secret, TokenUse.SIGN_IN)
    if account is None:
        raise MannersError(SPENT)
    return site.page(request, "enter.html.j2", account=account, secret=secret)


@router.post("/sign-in/{secret}", dependencies=[ENTRY])
async def follow_link(
    request: Request, secret: str, site: Here, password: Annotated[Password, Form()] = ""
) -> Response:
    """Sign in by a link that is good once, with a new password where one is given."""
    follow = partial(site.accounts.follow, secret, password or None)
    if password:
        found = await site.limits.hashed(request, request.state.entrant, follow)
    else:
        found = await to_thread.run_sync(follow, limiter=site.limits.writing)
    await noted(request, Event.SIGNED_IN, "link", by=found.account.id)
    if password:
        await noted(request, Event.PASSWORD_SET, by=found.account.id)
    return await signed_in(request, site, found.account, "/", found.issuer)


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
    password: Annotated[Password, Form()],
) -> Response:
    """Make the account that an invitation is for, and sign in."""
    account = await site.limits.hashed(
        request, request.state.entrant, partial(site.accounts.join, secret, name, password)
    )
    await noted(request, Event.JOINED, by=account.id)
    return await signed_in(request, site, account, "/")


@router.post("/sign-out")
async def sign_out(request: Request, site: Here) -> Response:
    """End the session."""
    secret = request.cookies.get(COOKIE, "")
    found = await _admitted(site, secret, TokenUse.SESSION)
    if found is not None:  # strangers get no turn among those who write
        await to_thread.run_sync(site.accounts.end, secret, limiter=site.limits.writing)
        await noted(request, Event.SIGNED_OUT, by=found.account.id)
    site.remembered.pop((TokenUse.SESSION, digest(secret)), None)
    response = RedirectResponse(f"{site.prefix}/sign-in", 303)
    response.delete_cookie(COOKIE, path=site.prefix or "/")
    return response


async def signed_in(request: Request, site: Site, account: Account, then: str, issuer: int | None = None) -> Response:
    """Begin a session, which rests on the right of whoever issued the link to it, and lead on."""
    browser = request.headers.get("user-agent", "").replace("\0", "")
    issue = partial(site.accounts.issue, TokenUse.SESSION, account.name, label=browser, terms=Terms(issuer))
    secret = await to_thread.run_sync(issue, limiter=site.limits.writing)
    response = RedirectResponse(site.prefix + then, 303)
    secure = site.base_url.startswith("https:")
    for cookie, days, path in ((COOKIE, 14, site.prefix or "/"), (KNOWN, 365, f"{site.prefix}/sign-in")):
        response.set_cookie(cookie, secret, days * 86_400, httponly=True, samesite="lax", secure=secure, path=path)
    return response


def _inside(path: str) -> str:
    """Return a path of this server: a link to sign in must not lead elsewhere."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"


def sign_in_address(site: Site, request: Request) -> str:
    """Return where a page leads that nobody may see yet: from there back to it.

    What a form is sent to can be opened by nobody, and begins with the name of the page that the form is on.
    """
    path, query = request.url.path, f"?{request.url.query}" if request.url.query else ""
    then = path + query if request.method in ("GET", "HEAD") else f"/{path.split('/')[1]}"
    return f"{site.prefix}/sign-in?then={quote(then)}"
