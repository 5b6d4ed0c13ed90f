"""`/accounts`: who may come in, for owners."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from manners.store.accounts import TokenUse
from manners.store.audit import Event
from manners.types import AccountRole
from manners.web.auth import Owner
from manners.web.shapes import AccountName, Text
from manners.web.site import Here, Site, noted

Name = Annotated[AccountName, Form()]

router = APIRouter()


@router.get("/accounts")
async def page(request: Request, visitor: Owner, site: Here) -> Response:
    """List accounts and keys."""
    return await _page(request, site)


@router.post("/accounts/invite")
async def invite(request: Request, visitor: Owner, site: Here, role: Annotated[AccountRole, Form()]) -> Response:
    """Make an invitation, and show its link this once."""
    secret = await to_thread.run_sync(partial(site.accounts.issue, TokenUse.INVITATION, role=role))
    await noted(request, Event.INVITED, f"role {role}")
    return await _page(request, site, invitation=f"{site.base_url}/join/{secret}", role=role)


@router.post("/accounts/link")
async def link(request: Request, visitor: Owner, site: Here, name: Name) -> Response:
    """Make a link that signs an account in, for whoever forgot their password, and show it this once."""
    secret = await to_thread.run_sync(partial(site.accounts.issue, TokenUse.SIGN_IN, account=name))
    await noted(request, Event.LINK_MADE, on=name)
    return await _page(request, site, link=f"{site.base_url}/sign-in/{secret}", name=name)


@router.post("/accounts/key")
async def key(
    request: Request, visitor: Owner, site: Here, name: Name, label: Annotated[Text, Form(max_length=200)] = ""
) -> Response:
    """Make a key for a program, and show it this once."""
    secret = await to_thread.run_sync(partial(site.accounts.issue, TokenUse.KEY, account=name, label=label))
    await noted(request, Event.KEY_MADE, on=name)
    return await _page(request, site, key=secret, name=name)


@router.post("/accounts/key/end")
async def end_key(request: Request, visitor: Owner, site: Here, key: Annotated[int, Form(ge=0, lt=2**31)]) -> Response:
    """End a key."""
    await to_thread.run_sync(site.accounts.end_key, key)
    await noted(request, Event.KEY_ENDED, f"key {key}")
    return RedirectResponse(f"{site.prefix}/accounts", 303)


@router.post("/accounts/role")
async def role(
    request: Request, visitor: Owner, site: Here, name: Name, role: Annotated[AccountRole, Form()]
) -> Response:
    """Give an account another role."""
    await to_thread.run_sync(site.accounts.set_role, name, role)
    await noted(request, Event.ROLE_SET, on=name)
    return RedirectResponse(f"{site.prefix}/accounts", 303)


@router.post("/accounts/disable")
async def disable(request: Request, visitor: Owner, site: Here, name: Name) -> Response:
    """Let an account in no more."""
    await to_thread.run_sync(site.accounts.disable, name)
    await noted(request, Event.ACCOUNT_DISABLED, on=name)
    return RedirectResponse(f"{site.prefix}/accounts", 303)


async def _page(request: Request, site: Site, **shown: str) -> Response:
    accounts = await to_thread.run_sync(site.accounts.all)
    keys = await to_thread.run_sync(site.accounts.keys)
    return site.page(request, "accounts.html.j2", accounts=accounts, keys=keys, roles=list(AccountRole), shown=shown)
