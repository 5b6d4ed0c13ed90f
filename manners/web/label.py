"""`/label`: one comparison after another, blind; and `/flags`, where reviewers decide about what was reported."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from importlib.resources import files
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Form, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, RedirectResponse, Response

from manners.store import cases, flags
from manners.store.flags import FlagReason
from manners.store.views import Given, JudgedAlready, NoSuchView, Shown, TooSoon
from manners.types import Annotator, Choice, Role
from manners.web.auth import Labeller, Reviewer, refuse_if
from manners.web.gate import Gate
from manners.web.limits import REPORTS, STORED
from manners.web.render import CUT_OFF, to_html
from manners.web.shapes import Number, Short, Text, Token, problem, size_of
from manners.web.site import Here, Site

REASONS = ("more correct", "more helpful", "clearer", "shorter", "kinder", "safer", "follows the instruction")
"""What one may say about why, beside free text."""
SENSITIVE = re.compile(
    r"\b(suicid|self[- ]?harm|kill|murder|rape|sexual|porn|abus|tortur|behead|massacre|overdose)", re.IGNORECASE
)
"""Words at which a text is blurred until it is asked for: too often rather than too seldom."""

View = Annotated[str, Field(pattern=r"^[-\w]{1,64}$")] | Number
"""The token of what was shown; a number where an older manners showed it, and the verdict waited in the browser."""
Day = Annotated[int, Query(ge=0, le=90_000)]
"""Seconds since a day began: no clock need agree with ours, and one day a year has 25 hours."""

router = APIRouter(route_class=Gate)


class VerdictBody(BaseModel):
    """A verdict on what was shown."""

    view: View
    choice: Choice
    strength: Annotated[int, Field(ge=1, le=3)] | None = None
    reasons: Annotated[list[Short], Field(max_length=20, fail_fast=True)] = []
    comment: Annotated[Text, Field(max_length=10_000)] = ""
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] | None = None


class BeginBody(BaseModel):
    """Where a page begins, or goes back to."""

    view: View | None = None
    """What it showed before it was loaded anew, or what it judged and takes back."""


class FlagBody(BaseModel):
    """A report on what was shown."""

    view: View
    reason: FlagReason
    note: Annotated[Text, Field(max_length=10_000)] = ""


@router.get("/label")
async def page(request: Request, visitor: Labeller, site: Here) -> Response:
    """Show the page; the pairs come to it one by one."""
    guidelines = await to_thread.run_sync(_guidelines, site)
    return site.page(
        request,
        "label.html.j2",
        reasons=REASONS,
        flags=list(FlagReason)[:3],
        guidelines=guidelines,
        shortest=site.settings.serve.shortest_view,
    )


@router.post("/label/begin")
async def begin(body: BeginBody, visitor: Labeller, site: Here) -> Response:
    """Give back what an earlier page had before this person, but for the pair that this page showed: that comes again.

    Else whoever reloads could choose what to judge, without a skip on record.
    """
    show = partial(site.desk.begin, view=None if body.view is None else str(body.view))
    return await to_thread.run_sync(_pair, show, visitor.annotator, limiter=site.limits.labelling)


@router.post("/label/next")
async def next_pair(visitor: Labeller, site: Here) -> Response:
    """Give a pair to judge; `pair` is null where there is none now."""
    return await to_thread.run_sync(_pair, site.desk.next, visitor.annotator, limiter=site.limits.labelling)


@router.post("/label/verdict")
async def verdict(body: VerdictBody, visitor: Labeller, site: Here) -> Response:
    """Take a verdict; the same view answered again is answered once."""
    refuse_if(site.limits.take("stored", visitor.key, STORED, size_of(body)))
    reasons = tuple(body.reasons)
    given = Given(str(body.view), body.choice, body.strength, reasons, body.comment, body.seconds)
    try:
        await to_thread.run_sync(site.desk.judge, visitor.annotator, given, limiter=site.limits.labelling)
    except NoSuchView as error:
        return JSONResponse(problem(str(error), param="view", code="view_not_found"), 404)
    except TooSoon as error:
        return JSONResponse(problem(str(error), param="view", code="too_soon"), 409)
    except JudgedAlready as error:
        return JSONResponse(problem(str(error), param="view", code="judged_already"), 409)
    return JSONResponse({"view": body.view})


@router.post("/label/undo")
async def undo(visitor: Labeller, site: Here, body: BeginBody | None = None) -> Response:
    """Take back a verdict, the latest if none is named; give its pair again with what was said beside the choice."""
    view = None if body is None or body.view is None else str(body.view)
    take = partial(site.desk.undo, view=view)
    return await to_thread.run_sync(_pair, take, visitor.annotator, limiter=site.limits.labelling)


@router.post("/label/flag")
async def flag(body: FlagBody, visitor: Labeller, site: Here) -> Response:
    """Report a pair."""
    refuse_if(site.limits.take("reports", visitor.key, REPORTS))
    refuse_if(site.limits.take("stored", visitor.key, STORED, size_of(body)))
    try:
        report = partial(site.desk.flag, visitor.annotator, str(body.view), body.reason, body.note)
        await to_thread.run_sync(report, limiter=site.limits.labelling)
    except NoSuchView as error:
        return JSONResponse(problem(str(error), param="view", code="view_not_found"), 404)
    return JSONResponse({"view": body.view})


@router.get("/label/progress")
async def progress(visitor: Labeller, site: Here, day: Day | None = None) -> Response:
    """Say how far this person has come; their day began `day` seconds ago, or else that of UTC counts."""
    began = None if day is None else timedelta(seconds=day)
    far = await to_thread.run_sync(site.desk.tally, visitor.annotator, began)
    return JSONResponse({"today": far.today, "total": far.total, "left": far.left})


@router.get("/flags")
async def flagged(request: Request, visitor: Reviewer, site: Here) -> Response:
    """List what was reported and not decided about."""

    def render() -> Response:
        shown = [(one, _as_reported(one)) for one in flags.undecided(site.store)]
        return site.page(request, "flags.html.j2", flags=shown, more=flags.count_undecided(site.store) - len(shown))

    return await to_thread.run_sync(render, limiter=site.limits.reckoning)


@router.post("/flags/{token}")
async def decide(token: Token, visitor: Reviewer, site: Here, upheld: Annotated[bool, Form()]) -> Response:
    """Uphold a report, or dismiss it."""

    def act() -> None:
        site.desk.reconsider(flags.decide(site.store, token, upheld))
        if upheld:
            cases.write(site.workspace.root, site.store)

    await to_thread.run_sync(act, limiter=site.limits.writing)
    return RedirectResponse(f"{site.prefix}/flags", 303)


def _pair(show: Callable[[Annotator], Shown | None], annotator: Annotator) -> Response:
    """Tell the page of the comparison that is shown to somebody; of null where there is none."""
    shown = show(annotator)
    return JSONResponse({"pair": None if shown is None else _told(shown)})


def _told(shown: Shown) -> dict[str, Any]:
    """Return what the page needs of a comparison."""
    texts = [*(turn.text for turn in shown.prompt), shown.left, shown.right]
    return {
        "view": shown.view,
        "turns": [{"role": turn.role.value, "html": to_html(turn.text)} for turn in shown.prompt],
        "left": to_html(shown.left) + CUT_OFF * shown.cut_off[0],
        "right": to_html(shown.right) + CUT_OFF * shown.cut_off[1],
        "given": None if shown.before is None else asdict(shown.before),
        "raw": {"left": shown.left, "right": shown.right},
        "sensitive": any(SENSITIVE.search(text) for text in texts),
    }


def _as_reported(flag: flags.Flag) -> list[tuple[str, str]]:
    """Return what a reviewer reads of a report: what was asked, and what was answered, with its name."""
    names = ("Left", "Right") if len(flag.texts) == 2 else ("Answered",)
    asked = [("Asked" if turn.role is Role.USER else "Before", to_html(turn.text)) for turn in flag.prompt]
    return [*asked, *((name, to_html(text)) for name, text in zip(names, flag.texts, strict=True))]


def _guidelines(site: Site) -> str:
    """Return the owner's guidelines, or the ones to begin with."""
    own = site.workspace.root / "guidelines.md"
    inside = own.resolve().is_relative_to(site.workspace.root.resolve())  # no link to what annotators are not to see
    source = own if own.is_file() and inside else files("manners.data").joinpath("guidelines.md")
    return to_html(source.read_bytes().decode("utf-8", errors="replace"))
