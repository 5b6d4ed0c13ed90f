"""`/log`: what was done, by whom and from where, for owners."""

from __future__ import annotations

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from manners.store import audit
from manners.web.auth import Owner
from manners.web.gate import Gate
from manners.web.site import Here

SHOWN = 500
"""Lines on the page; `manners log` has all of them."""

router = APIRouter(route_class=Gate)


@router.get("/log")
async def page(request: Request, visitor: Owner, site: Here) -> Response:
    """Show the newest lines."""
    found = await to_thread.run_sync(audit.entries, site.store, SHOWN)
    total = await to_thread.run_sync(audit.count, site.store)
    return site.page(request, "log.html.j2", entries=found, total=total)
