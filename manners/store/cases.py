"""Reported answers that a reviewer has kept away, as cases: every later audit of a policy asks their prompts again.

    audit/cases.jsonl    one line a case: {"prompt": [...], "answer": "...", "author": "...", "reason": "..."}

The record of reports is where they are kept, so that a deletion reaches them there; the file is written from it, whole,
whenever a report is decided and whenever a policy is audited.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from sqlalchemy import select

from manners.store.flags import FlagReason
from manners.store.records import from_messages, to_messages
from manners.store.store import Store
from manners.store.tables import ComparisonRow, FlagRow, PromptRow, ResponseRow
from manners.store.texts import GONE
from manners.types import Dialogue, FinishReason
from manners.workspace import atomic_write

FILE = Path("audit", "cases.jsonl")


@dataclass(frozen=True, slots=True)
class Case:
    """An answer that was reported, and what it answered."""

    prompt: Dialogue
    answer: str
    author: str
    """Who wrote it: a version, or whoever a file names."""
    reason: FlagReason
    finish: FinishReason = FinishReason.UNKNOWN
    """Why it ends where it does: one that was cut off is known again by its beginning."""


def upheld(store: Store) -> list[Case]:
    """Return the cases of a store, in the order of the reports, each once.

    A report on a pair does not say which answer it means: both are cases.
    """
    query = (
        select(PromptRow.turns, ResponseRow.text, ResponseRow.author, FlagRow.reason, ResponseRow.finish_reason)
        .select_from(FlagRow)
        .outerjoin(ComparisonRow, FlagRow.comparison_id == ComparisonRow.id)
        .join(ResponseRow, ResponseRow.id.in_([FlagRow.response_id, ComparisonRow.left_id, ComparisonRow.right_id]))
        .join(PromptRow, ResponseRow.prompt_id == PromptRow.id)
        .where(FlagRow.upheld.is_(True), ResponseRow.digest.not_like(f"{GONE}%"), PromptRow.digest.not_like(f"{GONE}%"))
        .order_by(FlagRow.id, ResponseRow.id)
    )
    with store.read() as connection:
        rows = connection.execute(query).all()
    found: dict[tuple[Dialogue, str], Case] = {}
    for row in rows:
        reason, finish = FlagReason(row.reason), FinishReason(row.finish_reason)
        case = Case(from_messages(row.turns), row.text, row.author, reason, finish)
        found.setdefault((case.prompt, case.answer), case)
    return list(found.values())


def write(root: Path, store: Store) -> list[Case]:
    """Write the file anew, where there is a case or was one, and return the cases."""
    file = root / FILE
    with writing(root):
        cases = upheld(store)
        if cases or file.exists():
            file.parent.mkdir(exist_ok=True)
            atomic_write(file, "".join(_line(case) + "\n" for case in cases))
    return cases


def writing(root: Path) -> FileLock:
    """Return the lock under which the file is written, from before the store or the file is read."""
    return FileLock(root / "cases.lock")


def _line(case: Case) -> str:
    said = {"prompt": to_messages(case.prompt), "answer": case.answer, "author": case.author, "reason": case.reason}
    return json.dumps(said, ensure_ascii=False)
