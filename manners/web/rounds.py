"""`/rounds`: where the loop stands, what it waits for, and what each of its rounds has learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from manners.loop import history, waiting
from manners.web.auth import Looker
from manners.web.gate import Gate
from manners.web.site import Here, Site

WIDE, HIGH = 640.0, 160.0
"""Size of the drawing."""

router = APIRouter(route_class=Gate)


@router.get("/rounds")
async def page(request: Request, _: Looker, site: Here) -> Response:
    """Show it."""
    facts = await to_thread.run_sync(_facts, site, limiter=site.limits.reckoning)
    curve, command = drawn(facts["rounds"]), history.command(site.workspace)
    return site.page(request, "rounds.html.j2", facts=facts, drawn=curve, command=command, wide=WIDE, high=HIGH)


@router.get("/rounds.json")
async def as_json(_: Looker, site: Here) -> Response:
    """Give what the page shows."""
    return JSONResponse(await to_thread.run_sync(_facts, site, limiter=site.limits.reckoning))


def _facts(site: Site) -> dict[str, Any]:
    return waiting.facts(site.workspace, history.Reading(site.store), site.settings)


def drawn(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return where each round lies in the drawing that has a win rate over the start version: 1 on top, 0 below."""
    known = [one for one in rounds if one["quality"] is not None]
    step = WIDE / max(1, len(known))
    places = []
    for number, one in enumerate(known):
        rate, low, high = (round(HIGH * (1 - value), 1) for value in one["quality"])
        across = round(step * (number + 0.5), 1)
        places.append({"round": one["round"], "x": across, "y": rate, "low": low, "high": high, "is": one["outcome"]})
    return places
