"""`/review`: where a policy stands, what differs, its answers read blind; then it is approved or rejected."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from manners.audit import gate, review
from manners.audit.rules import rules
from manners.errors import MannersError
from manners.results.audit import APPROVED, Review
from manners.store.audit import Event
from manners.types import Role
from manners.web import reading
from manners.web.auth import Reviewer, Visitor
from manners.web.draws import drawn
from manners.web.gate import Gate
from manners.web.reading import RANDOM, WORST, Report, Shown
from manners.web.render import to_html
from manners.web.shapes import Text
from manners.web.site import Here, Site, noted
from manners.workspace import INITIAL

Version = Annotated[str, Form(max_length=200)]
Digest = Annotated[str, Form(pattern=r"^([0-9a-f]{64})?$")]
Said = Annotated[list[Literal["nothing", "left", "right", "alike"]] | None, Form(max_length=WORST + RANDOM)]

router = APIRouter(route_class=Gate)


@dataclass(frozen=True)
class Looked:
    """What there is to read of a policy."""

    policy: str
    against: str
    report: Report | None
    """None where there is none that compares the two."""
    shown: list[Shown]

    @property
    def digest(self) -> str:
        """Of the report; empty for none."""
        return self.report.digest if self.report else ""


@dataclass(frozen=True)
class Decided:
    """What a page sends."""

    decision: str
    reason: str
    report: str
    """Digest of the report that it has shown; empty for none."""
    shown: str
    """Digest of the pairs that it has shown."""
    said: tuple[str, ...]
    """What was said of each pair; empty where the names had been seen."""


@router.get("/review")
async def page(request: Request, visitor: Reviewer, site: Here, version: str = "") -> Response:
    """Show a policy beside the version that it would replace: the newest one, if none is named."""
    found = await to_thread.run_sync(_facts, site, visitor, version, limiter=site.limits.reckoning)
    return site.page(request, "review.html.j2", **found, longest=gate.LONGEST)


@router.post("/review")
async def decide(
    request: Request,
    visitor: Reviewer,
    site: Here,
    version: Version,
    decision: Annotated[Literal["approved", "rejected"], Form()],
    reason: Annotated[Text, Form(max_length=gate.LONGEST)],
    report: Digest = "",
    shown: Digest = "",
    read: Said = None,
) -> Response:
    """Approve or reject what the page has shown, by the digests of its report and of its pairs."""
    act = partial(_decide, site, visitor, version, Decided(decision, reason, report, shown, tuple(read or ())))
    await to_thread.run_sync(act, limiter=site.limits.writing)
    await noted(request, Event.APPROVED if decision == APPROVED else Event.REJECTED, f"version {version}")
    return RedirectResponse(f"{site.prefix}/review?version={version}", 303)


def _decide(site: Site, visitor: Visitor, version: str, made: Decided) -> None:
    looked, by = _look(site, visitor, version), _account(visitor)
    if made.report != looked.digest or (made.report and made.shown != reading.mark(looked.shown)):
        raise MannersError(f"the report or the answers of {version} are not those that the page has shown: look anew")
    if made.decision == APPROVED and looked.report is None:
        raise MannersError(f"no report compares {version} with {looked.against}: run `manners report` to have one")
    blind = len(made.said) == len(looked.shown) and not _has_decided(site, looked, by)
    kept = Review(
        decision=made.decision,
        reason=made.reason,
        created_at="",
        by=by,
        against=looked.against,
        report=looked.digest or None,
        read=reading.counted(looked.shown, made.said) if blind else {},
    )
    gate.decide_on(site.workspace, version, kept)


def _has_decided(site: Site, looked: Looked, who: str) -> bool:
    """Return whether somebody has ever decided between these two: they see who wrote what, and read blind no more.

    By no report: one that is written anew has the same answers in it.
    """
    found = gate.read(site.workspace, looked.policy).reviews
    return any((one.by, one.against) == (who, looked.against) for one in found)


def _account(visitor: Visitor) -> str:
    return gate.HERE if visitor.account is None else f"account {visitor.account}"


def _look(site: Site, visitor: Visitor, policy: str) -> Looked:
    """Gather what is read; raises MannersError for what is no policy that could be promoted."""
    if policy not in reading.candidates(site.workspace):
        raise MannersError(f"{policy} is no policy that waits: the page /review lists those that do")
    against = gate.replaced_by(site.workspace, policy)
    found = reading.report(site.workspace)
    about = found if found is not None and found.is_about(policy, against) else None
    worst, others = reading.pairs(about, site.store, policy, against)
    seed = drawn(site.secret, f"review {policy} {against} {about.digest if about else ''} {visitor.key}")
    return Looked(policy, against, about, reading.drawn(worst, others, seed))


def _facts(site: Site, visitor: Visitor, version: str) -> dict[str, Any]:
    """Return what the page shows, in plain data; versions' answers without their names until this visitor decided."""
    waiting = reading.candidates(site.workspace)
    if not waiting and not version:
        return {"waiting": waiting, "policy": None}
    looked = _look(site, visitor, version or waiting[0])
    policy, against, me = looked.policy, looked.against, _account(visitor)
    record, asked = gate.read(site.workspace, policy), rules(site.workspace.root)
    stands, revealed = gate.standing(site.workspace, policy), _has_decided(site, looked, me)
    names = {f"account {one.id}": f"{one.name} (account {one.id})" for one in site.accounts.all()}
    now = review.digest(site.workspace)
    evaluation = looked.report.evaluation if looked.report else None
    return {
        "waiting": waiting,
        "policy": policy,
        "against": against,
        "checks": stands.checks,
        "gate": stands.gate,
        "asked": asked.reviewed,
        "barred": review.barred(me, record.started_by) if asked.two_person else "",
        "started_by": names.get(record.started_by or "", record.started_by),
        "differences": reading.differences(site.workspace, policy, against),
        "both_set": against != INITIAL,
        "answers": reading.answers(evaluation) if evaluation else [],
        "evaluation": evaluation,
        "report": looked.digest,
        "shown": reading.mark(looked.shown),
        "pairs": [_as_read(one, policy, against, revealed=revealed) for one in looked.shown],
        "revealed": revealed,
        "reviews": [
            (one, names.get(one.by, one.by), review.stale(one, against, now)) for one in reversed(record.reviews)
        ],
    }


def _as_read(shown: Shown, policy: str, against: str, *, revealed: bool) -> dict[str, Any]:
    """Return a pair as HTML; who wrote what, and why it is read, only where that may be known."""
    asked = [("Asked" if turn.role is Role.USER else "Before", to_html(turn.text)) for turn in shown.pair.prompt]
    found: dict[str, Any] = {"asked": asked, "left": to_html(shown.left), "right": to_html(shown.right)}
    if revealed:
        left, right = (policy, against) if shown.exchanged else (against, policy)
        found |= {"names": (left, right), "why": shown.pair.why}
    return found
