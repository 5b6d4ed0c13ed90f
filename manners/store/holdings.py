"""How much there is of everything."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from manners.store.records import Holdings, Mark
from manners.store.tables import (
    AccountRow,
    AnnotatorRow,
    ComparisonRow,
    ConversationRow,
    FlagRow,
    GoldRow,
    PromptRow,
    ResponseRow,
    VerdictRow,
    VersionRow,
    ViewRow,
    WithdrawalRow,
)
from manners.types import AnnotatorKind, PromptUse


def holdings(connection: Connection) -> Holdings:
    """Count prompts and verdicts by their kinds, and responses, comparisons and versions."""
    prompts = dict.fromkeys(PromptUse, 0)
    verdicts = dict.fromkeys(AnnotatorKind, 0)
    by_use = select(PromptRow.use, func.count()).group_by(PromptRow.use)
    by_kind = select(AnnotatorRow.kind, func.count()).join(VerdictRow).group_by(AnnotatorRow.kind)
    prompts |= {PromptUse(use): count for use, count in connection.execute(by_use)}
    verdicts |= {AnnotatorKind(kind): count for kind, count in connection.execute(by_kind)}
    responses, comparisons, versions = (
        connection.execute(select(func.count()).select_from(table)).scalar_one()
        for table in (ResponseRow, ComparisonRow, VersionRow)
    )
    return Holdings(prompts, responses, comparisons, verdicts, versions)


def verdicts(connection: Connection) -> dict[tuple[str, str], int]:
    """Count verdicts by what they were asked for and the kind of annotator."""
    query = (
        select(ComparisonRow.asked_how, AnnotatorRow.kind, func.count())
        .select_from(VerdictRow)
        .join(ComparisonRow)
        .join(AnnotatorRow)
        .group_by(ComparisonRow.asked_how, AnnotatorRow.kind)
    )
    return {(how, kind): count for how, kind, count in connection.execute(query)}


def mark(connection: Connection) -> Mark:
    """Return what is different once there are other prompts, comparisons, verdicts, views or versions."""
    come = [
        select(func.count()).select_from(table)
        for table in (PromptRow, ComparisonRow, VerdictRow, ViewRow, GoldRow, VersionRow)
    ]
    gone = [select(func.count()).select_from(WithdrawalRow)]
    gone += [
        select(func.count(column))
        for column in (FlagRow.resolved_at, ConversationRow.deleted_at, AccountRow.disabled_at)
    ]
    return Mark(*(tuple(connection.execute(query).scalar_one() for query in queries) for queries in (come, gone)))
