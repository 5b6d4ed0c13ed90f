"""`/dashboard`: what people said, how far they agree, which version wins, how training goes, and what is served."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Form, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from manners.audit import gate
from manners.errors import MannersError
from manners.store.audit import Event
from manners.types import AccountRole, VersionKind
from manners.web import findings
from manners.web.apart import APART
from manners.web.auth import Looker, Owner, Visitor
from manners.web.candidate import Trial
from manners.web.gate import Gate
from manners.web.site import Here, Site, noted
from manners.workspace import INITIAL

NAMES_FOR = frozenset({AccountRole.OWNER, AccountRole.REVIEWER})
"""Who sees which annotator works how; others see the figures without names."""
WIDE, HIGH = 320.0, 120.0
"""Size of a curve's drawing."""

router = APIRouter(route_class=Gate)


@router.get("/dashboard")
async def page(request: Request, visitor: Looker, site: Here) -> Response:
    """Show it."""
    facts = await to_thread.run_sync(_facts, site, visitor, limiter=site.limits.reckoning)
    drawn = {run: {name: _polyline(points) for name, points in found.items()} for run, found in facts["curves"].items()}
    return site.page(request, "dashboard.html.j2", facts=facts, drawn=drawn, wide=WIDE, high=HIGH)


@router.get("/dashboard.json")
async def as_json(visitor: Looker, site: Here) -> Response:
    """Give what the page shows."""
    return JSONResponse(await to_thread.run_sync(_facts, site, visitor, limiter=site.limits.reckoning))


@router.post("/dashboard/promote")
async def promote(
    request: Request,
    visitor: Owner,
    site: Here,
    version: Annotated[str, Form(max_length=200)],
    override: Annotated[str, Form(max_length=gate.LONGEST)] = "",
) -> Response:
    """Serve another policy, if the gate lets it through or an owner says why it should not have to."""
    policies = {one.name for one in site.store.versions(VersionKind.POLICY)} | {INITIAL}
    if version not in policies:
        raise MannersError(f"there is no policy {version}: the dashboard lists those that there are")
    by = gate.HERE if visitor.account is None else f"account {visitor.account}"
    await to_thread.run_sync(gate.promote, site.workspace, version, override.strip() or None, by)
    await noted(request, Event.PROMOTED, f"version {version}")
    site.engine.load(site.workspace.current_policy())  # which may have been rolled back meanwhile
    return RedirectResponse(f"{site.prefix}/dashboard", 303)


@router.post("/dashboard/rollback")
async def roll_back(
    request: Request, visitor: Owner, site: Here, serving: Annotated[str, Form(max_length=200)] = ""
) -> Response:
    """Serve the policy before this one again; a page that shows another one as `serving` is not heard."""
    if serving and serving != (now := site.workspace.current_policy()):
        raise MannersError(f"{now} is served by now, and no longer {serving}: look at the dashboard anew")
    was = await to_thread.run_sync(gate.roll_back, site.workspace)
    await noted(request, Event.ROLLED_BACK, f"version {was}")
    site.engine.load(site.workspace.current_policy())
    return RedirectResponse(f"{site.prefix}/dashboard", 303)


def _facts(site: Site, visitor: Visitor) -> dict[str, Any]:
    state = site.engine.state
    computed = dict(_computed(site))
    if visitor.role not in NAMES_FOR:
        computed["annotators"] = {kind: _unnamed(rows) for kind, rows in computed["annotators"].items()}
        computed["set_aside"] = {
            kind: [f"user {number}" for number, _ in enumerate(names, 1)]
            for kind, names in computed["set_aside"].items()
        }
    return computed | {
        "curves": findings.curves(site.workspace),
        "versions": findings.versions(site.store, site.workspace),
        "before": gate.before(site.workspace),
        "judge": findings.judge(site.workspace),
        "serving": {"version": state.version, "phase": state.phase, "reason": state.reason},
        "candidate": site.trial and _candidate(site, site.trial),
    }


def _candidate(site: Site, trial: Trial) -> dict[str, Any]:
    """Return which candidate the server was started with, and how it stands."""
    state = site.engine.state
    asked = trial.asks(state, site.workspace)
    stands = {"version": trial.version, "against": trial.against, "share": trial.share, "asked": asked}
    return stands | {"sentence": trial.sentence(state, site.workspace)}


def _computed(site: Site) -> Mapping[str, Any]:
    """Return what follows from the verdicts, computed anew when there are others, and how far it lags `behind` them."""
    database = site.store.url.render_as_string(hide_password=False)
    return site.computed.get(site.store.mark(), partial(APART.work, findings.of_database, database, site.settings))


def _unnamed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"annotator": f"annotator {number}", "account": None} for number, row in enumerate(rows, 1)]


def _polyline(points: list[list[float]]) -> dict[str, Any] | None:
    """Return a curve's points in the drawing, with the range of its values; None where there are fewer than two."""
    if len(points) < 2:
        return None
    steps, values = zip(*points, strict=True)
    low, high = min(values), max(values)
    across = (max(steps) - min(steps)) or 1
    up = (high - low) or 1
    drawn = (f"{WIDE * (x - min(steps)) / across:.1f},{HIGH - HIGH * (y - low) / up:.1f}" for x, y in points)
    return {"points": " ".join(drawn), "low": low, "high": high, "last": values[-1]}
