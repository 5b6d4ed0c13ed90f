"""`/accounts`, who may come in, for owners; `/me`, everybody's own password, sessions and keys."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from manners.errors import MannersError
from manners.store.accounts import Account
from manners.store.audit import Event
from manners.store.tokens import LIFETIME, LONGEST_LABEL, PROGRAMS, Scope, Terms, TokenUse
from manners.types import AccountRole
from manners.web.auth import Oneself, Owner, signed_in, slow_guesses
from manners.web.gate import Gate
from manners.web.shapes import AccountName, Number, Password, Text
from manners.web.site import Here, Site, noted

LONGEST_DAYS = 3650
Name = Annotated[AccountName, Form()]

router = APIRouter(route_class=Gate)


@router.get("/accounts")
async def page(request: Request, visitor: Owner, site: Here) -> Response:
    """List accounts, and all that lets somebody in."""
    return await _page(request, site)


@router.post("/accounts/invite")
async def invite(request: Request, visitor: Owner, site: Here, role: Annotated[AccountRole, Form()]) -> Response:
    """Make an invitation, and show its link this once."""
    issue = partial(site.accounts.issue, TokenUse.INVITATION, role=role, terms=Terms(visitor.account))
    secret = await to_thread.run_sync(issue, limiter=site.limits.writing)
    await noted(request, Event.INVITED, f"role {role}")
    return await _page(request, site, invitation=f"{site.base_url}/join/{secret}", role=role)


@router.post("/accounts/link")
async def link(request: Request, visitor: Owner, site: Here, name: Name) -> Response:
    """Make a link that signs an account in, for whoever forgot their password, and show it this once."""
    issue = partial(site.accounts.issue, TokenUse.SIGN_IN, name, terms=Terms(visitor.account))
    secret = await to_thread.run_sync(issue, limiter=site.limits.writing)
    await noted(request, Event.LINK_MADE, on=name)
    return await _page(request, site, link=f"{site.base_url}/sign-in/{secret}", name=name)


@router.post("/accounts/key")
async def key(
    request: Request,
    visitor: Owner,
    site: Here,
    name: Name,
    label: Annotated[Text, Form(max_length=LONGEST_LABEL)] = "",
    scope: Annotated[list[Scope] | None, Form()] = None,
    days: Annotated[int, Form(ge=1, le=LONGEST_DAYS)] = LIFETIME[TokenUse.KEY].days,
) -> Response:
    """Make a key for a program, and show it this once; without a scope it may chat and give verdicts."""
    terms = Terms(visitor.account, tuple(scope or PROGRAMS), timedelta(days=days))
    issue = partial(site.accounts.issue, TokenUse.KEY, name, label=label, terms=terms)
    secret = await to_thread.run_sync(issue, limiter=site.limits.writing)
    await noted(request, Event.KEY_MADE, on=name)
    return await _page(request, site, key=secret, name=name)


@router.post("/accounts/revoke")
async def revoke(request: Request, visitor: Owner, site: Here, number: Annotated[Number, Form()]) -> Response:
    """End a session, a key, a link or an invitation."""
    await to_thread.run_sync(site.accounts.revoke, number, limiter=site.limits.writing)
    await noted(request, Event.REVOKED, f"token {number}")
    return _changed(site)


@router.post("/accounts/role")
async def role(
    request: Request, visitor: Owner, site: Here, name: Name, role: Annotated[AccountRole, Form()]
) -> Response:
    """Give an account another role."""
    await to_thread.run_sync(site.accounts.set_role, name, role, limiter=site.limits.writing)
    await noted(request, Event.ROLE_SET, on=name)
    return _changed(site)


@router.post("/accounts/disable")
async def disable(request: Request, visitor: Owner, site: Here, name: Name) -> Response:
    """Let an account in no more."""
    await to_thread.run_sync(site.accounts.disable, name, limiter=site.limits.writing)
    await noted(request, Event.ACCOUNT_DISABLED, on=name)
    return _changed(site)


@router.post("/accounts/enable")
async def enable(request: Request, visitor: Owner, site: Here, name: Name) -> Response:
    """Let a disabled account in again."""
    await to_thread.run_sync(site.accounts.enable, name, limiter=site.limits.writing)
    await noted(request, Event.ACCOUNT_ENABLED, on=name)
    return _changed(site)


@router.get("/me")
async def me(request: Request, visitor: Oneself, site: Here) -> Response:
    """Show one's own sessions and keys, and where the password is changed."""
    if visitor.account is None:
        return RedirectResponse(f"{site.prefix}/accounts", 303)
    own = await to_thread.run_sync(partial(site.accounts.tokens, account=visitor.name))
    return site.page(request, "me.html.j2", tokens=own)


@router.post("/me/password")
async def password(
    request: Request,
    visitor: Oneself,
    site: Here,
    old: Annotated[Password, Form()],
    new: Annotated[Password, Form()],
) -> Response:
    """Change one's own password; all one's sessions end, and a new one begins here."""
    if visitor.account is None:
        raise MannersError("without accounts there is no password: `manners accounts add NAME` makes the first account")
    slow_guesses(request, site, visitor.name)
    change = partial(site.accounts.change_password, visitor.account, old, new)
    await site.limits.hashed(request, visitor.key, change)
    await noted(request, Event.PASSWORD_SET)
    site.remembered.clear()
    return await signed_in(request, site, Account(visitor.name, visitor.role, id=visitor.account), "/me")


@router.post("/me/revoke")
async def revoke_own(request: Request, visitor: Oneself, site: Here, number: Annotated[Number, Form()]) -> Response:
    """End a session or a key of one's own."""
    await to_thread.run_sync(site.accounts.revoke, number, visitor.account or 0, limiter=site.limits.writing)
    await noted(request, Event.REVOKED, f"token {number}")
    return _changed(site, "/me")


def _changed(site: Site, page: str = "/accounts") -> Response:
    """Lead back to a page; what was believed of secrets is looked up anew."""
    site.remembered.clear()
    return RedirectResponse(f"{site.prefix}{page}", 303)


async def _page(request: Request, site: Site, **shown: str) -> Response:
    accounts = await to_thread.run_sync(site.accounts.all)
    tokens = await to_thread.run_sync(site.accounts.tokens)
    about: dict[str, Any] = {"accounts": accounts, "tokens": tokens, "roles": list(AccountRole), "scopes": list(Scope)}
    about |= {"plain": PROGRAMS, "days": LIFETIME[TokenUse.KEY].days}
    fill = partial(site.page, request, "accounts.html.j2", **about, shown=shown)
    return await to_thread.run_sync(fill)  # a house of many has thousands of forms on it
