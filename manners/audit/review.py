"""What reviewers decided about a version, as a check of the gate: an approval counts while its report is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from manners.audit.rules import Rules
from manners.results.audit import APPROVED, CANNOT_TELL, FAIL, PASS, REJECTED, Check, CheckRecord, Review
from manners.workspace import Workspace

NAME = "review"
HERE = "this machine"
"""Who decides, overrides and starts runs where nobody is known by an account."""
PAGE = "read it on the page /review"
UNKNOWN = "which account started the run that made it is not known (MANNERS_ACCOUNT names one)"


def digest(workspace: Workspace) -> str | None:
    """Return the SHA-256 of report.json as it is now; None where there is none."""
    try:
        return hashlib.sha256(workspace.report_json.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def stale(review: Review, against: str, report: str | None) -> str:
    """Return why what was read is not what promoting it would do now; empty where it is, by the report's digest."""
    if review.against != against:
        return f"it was read beside {review.against}, and would replace {against}"
    return "" if review.report and review.report == report else "report.json is not the one that was read"


def is_rejected(reviews: Sequence[Review]) -> bool:
    """Return whether the latest word on a version is that it is rejected."""
    return bool(reviews) and reviews[-1].decision == REJECTED


def barred(by: str, started_by: str | None) -> str:
    """Return why somebody's approval is not that of a second person; empty where it is.

    Two people are two accounts: who works on this machine without one may be anybody.
    """
    if started_by in (None, HERE):
        return UNKNOWN
    if by == HERE:
        return "who works on this machine without an account may be the one who started the run"
    return f"{by} started the run that made it" if by == started_by else ""


def check(record: CheckRecord, asked: Rules, against: str, report: str | None) -> Check | None:
    """Return the reviewers' word on a version; None where nobody is asked for it, and nobody has said anything.

    A rejection fails until a later approval. Of the approvals since, one that counts is enough: it was read beside the
    version that would be replaced (`against`), its report is the one that is there now (`report` is its digest) and,
    with `two_person`, it is by another one than who started the run.
    """
    if not record.reviews and not asked.reviewed:
        return None
    verdict, sentence = _said(record, asked, against, report)
    return Check(name=NAME, verdict=verdict, required=asked.reviewed, sentence=sentence)


def _said(record: CheckRecord, asked: Rules, against: str, report: str | None) -> tuple[str, str]:
    if not record.reviews:
        nobody = asked.two_person and record.started_by in (None, HERE)
        return CANNOT_TELL, f"No reviewer has approved it: {f'{UNKNOWN}, so that nobody can' if nobody else PAGE}."
    last = record.reviews[-1]
    said = f"{_at_first(last.by)} {last.decision} it on {last.created_at[:10]}"
    if last.decision == REJECTED:
        return FAIL, f"{said}: {last.reason}"
    wrong = ""
    for one in reversed(record.reviews):
        if one.decision != APPROVED:
            break
        why = stale(one, against, report) or (barred(one.by, record.started_by) if asked.two_person else "")
        if not why:
            return PASS, f"{_at_first(one.by)} {one.decision} it on {one.created_at[:10]}: {one.reason}"
        wrong = wrong or why
    return CANNOT_TELL, f"{said}, which does not count, for {wrong}: {PAGE}."


def _at_first(by: str) -> str:
    return by[:1].upper() + by[1:]
