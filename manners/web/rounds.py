"""`/rounds`: where the loop stands, what it waits for, what each round has learned; and its next step, for owners."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Form, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from manners.errors import MannersError
from manners.facts import Facts
from manners.loop import coming, history, kept, stepping, waiting
from manners.loop.coming import Step
from manners.loop.history import LOOP, Begun, Reading, State
from manners.loop.stepping import Last
from manners.loop.waiting import Waiting
from manners.settings import Settings
from manners.settings_load import load
from manners.store.audit import Event
from manners.types import AccountRole
from manners.web.auth import Looker, Owner, Visitor
from manners.web.gate import Gate
from manners.web.site import Here, Site, noted

WIDE, HIGH = 640.0, 160.0
"""Size of the drawing."""
READ_ONLY = "nothing can be written in this workspace by this server, so that no step can be taken here"
Mark = Annotated[str, Form(max_length=100)]
"""Which step a page has shown: `round name`."""

router = APIRouter(route_class=Gate)


@router.get("/rounds")
async def page(request: Request, visitor: Looker, site: Here) -> Response:
    """Show it."""
    facts = await to_thread.run_sync(_facts, site, visitor, limiter=site.limits.reckoning)
    curve, command = drawn(facts["rounds"]), history.command(site.workspace)
    return site.page(request, "rounds.html.j2", facts=facts, drawn=curve, command=command, wide=WIDE, high=HIGH)


@router.get("/rounds.json")
async def as_json(visitor: Looker, site: Here) -> Response:
    """Give what the page shows."""
    return JSONResponse(await to_thread.run_sync(_facts, site, visitor, limiter=site.limits.reckoning))


@router.post("/rounds/step")
async def take(request: Request, visitor: Owner, site: Here, shown: Mark) -> Response:
    """Take the next step of the loop, if it is the one that the page has shown."""
    step = await to_thread.run_sync(_take, site, visitor, shown, limiter=site.limits.reckoning)
    await noted(request, Event.STEP_BEGUN, f"round {step.round}")
    return RedirectResponse(f"{site.prefix}/rounds", 303)


@router.post("/rounds/stop")
async def stop(request: Request, visitor: Owner, site: Here, shown: Mark) -> Response:
    """Stop a step that is under way; what it has done so far is gone on from."""
    taken = await to_thread.run_sync(stepping.stop, site.workspace, shown)
    await noted(request, Event.STEP_STOPPED, f"round {taken.round}")
    return RedirectResponse(f"{site.prefix}/rounds", 303)


def _take(site: Site, visitor: Visitor, shown: str) -> Step:
    found = _next(site, Reading(site.store), _settings(site), stepping.last(site.workspace))
    if isinstance(found, str):
        raise MannersError(found)
    step, begun = found
    if step.mark != shown:
        raise MannersError("the step that the page has shown is not the next one any more: look at the page anew")
    stepping.begin(site.workspace, step, begun, None if visitor.account is None else visitor.name)
    return step


def _facts(site: Site, visitor: Visitor) -> Facts:
    seen, settings = Reading(site.store), _settings(site)
    facts = waiting.facts(site.workspace, seen, settings)
    last = stepping.last(site.workspace)
    if last is not None and last.runs and not facts["process"]:  # it is loading, and holds no right to train yet
        facts |= {"state": str(State.RUNNING), "process": last.taken.process}
    if visitor.role is AccountRole.OWNER:
        facts |= _stepping(_next(site, seen, settings, last), last)
    return facts


def _stepping(found: tuple[Step, Begun] | str, last: Last | None) -> Facts:
    """Return what owners see: the next step, or why there is none, and how the last one stands."""
    facts: Facts = {"next_step": None, "no_step": "", "last_step": None}
    if isinstance(found, str):
        facts["no_step"] = found
    else:
        facts["next_step"] = {"mark": found[0].mark, "round": found[0].round, "sentence": found[0].sentence}
    if last is not None:
        taken = last.taken
        about = {"mark": taken.mark, "round": taken.round, "sentence": taken.sentence, "begun_at": taken.begun_at}
        facts["last_step"] = about | {"state": str(last.state), "runs": last.runs, "said": last.said}
    return facts


def _next(site: Site, seen: Reading, settings: Settings, last: Last | None) -> tuple[Step, Begun] | str:
    """Return the next step with the loop that it is one of, or in a sentence why none can be taken.

    `last` is the one before it.
    """
    workspace = site.workspace
    if not site.store.is_writable or not os.access(workspace.root, os.W_OK):
        return READ_ONLY
    if last is not None and last.runs:
        return stepping.UNDER_WAY
    if (holder := kept.trained_by(workspace, site.store)) is not None:
        does = "plays the loop" if holder.stage == LOOP else "is training here"  # it may be waiting for people
        return f"{holder.words} {does}: a step can be taken when it has ended"
    try:
        begun = coming.loop(workspace, seen)
        if (waits := coming.waits(workspace, seen, settings, begun)) is not None:
            return f"there is nothing to do but to wait {_for(waits)}"
        return coming.over(workspace, seen, begun, settings.loop) or (
            coming.step(workspace, seen, settings, begun),
            begun,
        )
    except MannersError as error:
        return str(error)


def _for(waits: Waiting) -> str:
    """Say what is waited for, shortly."""
    if waits.what == "time":
        return "for the time that --when has named"
    missing = max(1, min(waits.need, waits.at_most) - waits.have)
    return f"for {missing} more {waits.what.removesuffix('s') if missing == 1 else waits.what}"


def _settings(site: Site) -> Settings:
    """Return the settings as a step would find them now; where they cannot be read, those of the server's start."""
    try:
        return load(site.workspace.toml).settings
    except MannersError:
        return site.settings


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
