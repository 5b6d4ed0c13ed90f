"""What the store asks of an open connection: plain functions, each within the caller's transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased

from manners.store.records import digest, from_messages, to_messages
from manners.store.tables import (
    AnnotatorRow,
    ComparisonRow,
    FlagRow,
    PromptRow,
    ResponseRow,
    Table,
    VerdictRow,
    ViewRow,
    WithdrawalRow,
)
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Dialogue,
    DrawnHow,
    FinishReason,
    PromptUse,
    Response,
    Sampling,
    Verdict,
)

T = TypeVar("T")
CHUNK = 500
"""Rows per statement: well under SQLite's limit on bound values."""
CHAT = "chat"
"""Source of a prompt that nobody but people in their conversations has brought in."""
BROUGHT = frozenset({AskedHow.IMPORTED, AskedHow.API})
"""Comparisons whose prompt came from outside; all others are opened here, on words that are there already."""


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the items in lists of at most `CHUNK`."""
    source = iter(items)
    while chunk := list(islice(source, CHUNK)):
        yield chunk


def take_turns(connection: Connection) -> None:
    """Let no other writer of texts and comparisons in until the transaction ends; writers of verdicts go on.

    On PostgreSQL two of them could otherwise wait for each other's texts for ever, or both insert one comparison; on
    SQLite writers take turns anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("LOCK TABLE prompts IN SHARE ROW EXCLUSIVE MODE"))


def insert_new(connection: Connection, table: type[Table], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows whose unique columns are not there yet, whoever else is writing."""
    if not rows:
        return
    insert_or_ignore = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(insert_or_ignore(table).on_conflict_do_nothing(), rows)


def prompt_ids(
    connection: Connection, prompts: Mapping[str, tuple[Dialogue, PromptUse]], source: str
) -> dict[str, tuple[int, PromptUse]]:
    """Return id and use of each prompt by digest; those that are new enter with the use given here."""
    now = datetime.now(UTC)
    rows = [
        {"digest": key, "turns": to_messages(dialogue), "use": use.value, "source": source, "created_at": now}
        for key, (dialogue, use) in prompts.items()
    ]
    insert_new(connection, PromptRow, rows)
    query = select(PromptRow.digest, PromptRow.id, PromptRow.use).where(PromptRow.digest.in_(prompts))
    return {row.digest: (row.id, PromptUse(row.use)) for row in connection.execute(query)}


def claim(connection: Connection, digests: Iterable[str], source: str) -> None:
    """Name another source for those of these prompts that until now only conversations have brought in."""
    for chunk in chunks(digests):
        known = PromptRow.digest.in_(chunk) & (PromptRow.source == CHAT)
        connection.execute(update(PromptRow).where(known).values(source=source))


def prompt_digest(dialogue: Dialogue) -> str:
    """Return what makes a prompt unique."""
    return digest([(turn.role.value, turn.text) for turn in dialogue])


def response_digest(prompt: str, response: Response) -> str:
    """Return what makes a response to the prompt of this digest unique: its text, its author and how it was drawn."""
    sampling = asdict(response.sampling) if response.sampling else None
    return digest(prompt, response.text, response.author, response.finish_reason.value, sampling)


def response_ids(
    connection: Connection, comparisons: Sequence[Comparison], source: str = "comparisons"
) -> list[tuple[int, int]]:
    """Return the ids of the left and the right response of each comparison, storing the prompts and texts that are new.

    A new prompt comes from `source`, and may be trained on unless its comparison belongs to an evaluation.
    """
    keys = [prompt_digest(comparison.prompt) for comparison in comparisons]
    uses = {AskedHow.EVALUATION: PromptUse.EVALUATE}
    prompts: dict[str, tuple[Dialogue, PromptUse]] = {}
    for key, comparison in zip(keys, comparisons, strict=True):
        prompts.setdefault(key, (comparison.prompt, uses.get(comparison.asked_how, PromptUse.TRAIN)))
    stored = prompt_ids(connection, prompts, source)
    claim(connection, {key for key, c in zip(keys, comparisons, strict=True) if c.asked_how in BROUGHT}, source)
    pairs = []
    rows: dict[str, Mapping[str, Any]] = {}
    now = datetime.now(UTC)
    for key, comparison in zip(keys, comparisons, strict=True):
        left, right = response_digest(key, comparison.left), response_digest(key, comparison.right)
        pairs.append((left, right))
        for name, response in ((left, comparison.left), (right, comparison.right)):
            rows[name] = _response_row(name, stored[key][0], response, now)
    insert_new(connection, ResponseRow, list(rows.values()))
    query = select(ResponseRow.digest, ResponseRow.id).where(ResponseRow.digest.in_(rows))
    ids = {row.digest: row.id for row in connection.execute(query)}
    return [(ids[left], ids[right]) for left, right in pairs]


def _response_row(name: str, prompt_id: int, response: Response, now: datetime) -> dict[str, Any]:
    return {
        "digest": name,
        "prompt_id": prompt_id,
        "text": response.text,
        "author": response.author,
        "finish_reason": response.finish_reason.value,
        "sampling": asdict(response.sampling) if response.sampling else None,
        "created_at": now,
    }


def annotator_ids(connection: Connection, annotators: Iterable[Annotator]) -> dict[Annotator, int]:
    """Return the id of each annotator, storing those that are new."""
    wanted = set(annotators)
    query = select(AnnotatorRow).where(AnnotatorRow.name.in_({annotator.name for annotator in wanted}))

    def stored() -> dict[Annotator, int]:
        return {Annotator(row.name, AnnotatorKind(row.kind)): row.id for row in connection.execute(query)}

    found = stored()
    new = sorted((a.name, a.kind.value) for a in wanted - found.keys())
    if new:
        insert_new(connection, AnnotatorRow, [{"name": name, "kind": kind} for name, kind in new])
        found = stored()
    return found


def annotator_id(connection: Connection, annotator: Annotator) -> int:
    """Return the id of an annotator, who is stored if new."""
    query = select(AnnotatorRow.id).where(
        AnnotatorRow.name == annotator.name, AnnotatorRow.kind == annotator.kind.value
    )
    found: int | None = connection.execute(query).scalar_one_or_none()
    return annotator_ids(connection, [annotator])[annotator] if found is None else found


def insert_comparisons(
    connection: Connection, comparisons: Sequence[Comparison], pairs: Sequence[tuple[int, int]]
) -> list[int]:
    """Insert one row for each comparison and return the ids in the same order."""
    if not comparisons:
        return []
    now = datetime.now(UTC)
    rows = [
        {
            "left_id": left,
            "right_id": right,
            "asked_how": comparison.asked_how.value,
            "ask_probability": comparison.ask_probability,
            "created_at": now,
        }
        for comparison, (left, right) in zip(comparisons, pairs, strict=True)
    ]
    statement = insert(ComparisonRow).returning(ComparisonRow.id, sort_by_parameter_order=True)
    return list(connection.execute(statement, rows).scalars())


def insert_verdicts(connection: Connection, verdicts: Sequence[tuple[int, Verdict]]) -> None:
    """Append verdicts, each with the id of its comparison.

    One that was drawn elsewhere brings the record of its drawing with it.
    """
    if not verdicts:
        return
    annotators = annotator_ids(connection, (verdict.annotator for _, verdict in verdicts))
    now = datetime.now(UTC)
    views = _insert_views(connection, verdicts, annotators, now)
    rows = [
        {
            "comparison_id": comparison,
            "annotator_id": annotators[verdict.annotator],
            "choice": verdict.choice.value,
            "strength": verdict.strength,
            "seconds": verdict.seconds,
            "reasons": list(verdict.reasons),
            "comment": verdict.comment,
            "created_at": verdict.created_at or now,
            "exchanged": verdict.exchanged,
            "view_id": views.get(place),
        }
        for place, (comparison, verdict) in enumerate(verdicts)
    ]
    connection.execute(insert(VerdictRow), rows)


def _insert_views(
    connection: Connection, verdicts: Sequence[tuple[int, Verdict]], annotators: Mapping[Annotator, int], now: datetime
) -> dict[int, int]:
    """Insert a view for each verdict that says how it was drawn; return the views' ids by the verdicts' places."""
    rows = {
        place: {
            "comparison_id": comparison,
            "annotator_id": annotators[verdict.annotator],
            "exchanged": verdict.exchanged,
            "drawn": verdict.drawn.value,
            "probability": verdict.draw_probability,
            "created_at": verdict.created_at or now,
            "expires_at": verdict.created_at or now,
        }
        for place, (comparison, verdict) in enumerate(verdicts)
        if verdict.drawn is not None and verdict.draw_probability is not None
    }
    if not rows:
        return {}
    statement = insert(ViewRow).returning(ViewRow.id, sort_by_parameter_order=True)
    return dict(zip(rows, connection.execute(statement, list(rows.values())).scalars(), strict=True))


def merge_ids(connection: Connection, comparisons: Sequence[Comparison]) -> tuple[list[int], list[int]]:
    """Return the id of each comparison, inserting those that are not there, and the positions of those inserted."""
    pairs = response_ids(connection, comparisons)
    query = select(ComparisonRow.left_id, ComparisonRow.right_id, ComparisonRow.asked_how, ComparisonRow.id).where(
        ComparisonRow.left_id.in_({left for left, _ in pairs})
    )
    keys = [(*pair, comparison.asked_how.value) for pair, comparison in zip(pairs, comparisons, strict=True)]
    known = {(row.left_id, row.right_id, row.asked_how): row.id for row in connection.execute(query)}
    first = {key: position for position, key in reversed(list(enumerate(keys))) if key not in known}
    new = sorted(first.values())
    ids = insert_comparisons(connection, [comparisons[i] for i in new], [pairs[i] for i in new])
    known |= {keys[position]: key for position, key in zip(new, ids, strict=True)}
    return [known[key] for key in keys], new


def unknown_verdicts(
    connection: Connection, ids: Sequence[int], comparisons: Sequence[Comparison]
) -> tuple[list[tuple[int, Verdict]], int]:
    """Return the verdicts on these comparisons that are not stored yet, and how many are."""
    query = (
        select(VerdictRow.comparison_id, AnnotatorRow.name, AnnotatorRow.kind, VerdictRow.choice, VerdictRow.created_at)
        .join(AnnotatorRow)
        .where(VerdictRow.comparison_id.in_(set(ids)))
    )
    times: dict[tuple[int, Annotator, Choice], set[datetime | None]] = defaultdict(set)
    for row in connection.execute(query):
        annotator = Annotator(row.name, AnnotatorKind(row.kind))
        times[row.comparison_id, annotator, Choice(row.choice)].add(row.created_at)
    unknown: list[tuple[int, Verdict]] = []
    duplicates = 0
    for key, comparison in zip(ids, comparisons, strict=True):
        for verdict in comparison.verdicts:
            seen = times[key, verdict.annotator, verdict.choice]
            if verdict.created_at in seen or (seen and verdict.created_at is None):
                duplicates += 1
            else:
                unknown.append((key, verdict))
                seen.add(verdict.created_at)
    return unknown, duplicates


def select_comparisons(connection: Connection, asked_how: AskedHow | None) -> list[Comparison]:
    """Return the comparisons by id, each with its verdicts in order of arrival; those taken back are left out."""
    left, right = aliased(ResponseRow), aliased(ResponseRow)
    query = (
        select(ComparisonRow, left.prompt_id, *_columns(left, "left"), *_columns(right, "right"))
        .join(left, ComparisonRow.left_id == left.id)
        .join(right, ComparisonRow.right_id == right.id)
        .order_by(ComparisonRow.id)
    )
    verdict_query = (
        select(VerdictRow, AnnotatorRow.name, AnnotatorRow.kind, ViewRow.drawn, ViewRow.probability)
        .select_from(VerdictRow)
        .join(AnnotatorRow)
        .outerjoin(ViewRow, VerdictRow.view_id == ViewRow.id)
        .where(VerdictRow.id.not_in(select(WithdrawalRow.verdict_id)))
        .order_by(VerdictRow.id)
    )
    if asked_how is not None:
        query = query.where(ComparisonRow.asked_how == asked_how.value)
        verdict_query = verdict_query.join(ComparisonRow, VerdictRow.comparison_id == ComparisonRow.id).where(
            ComparisonRow.asked_how == asked_how.value
        )
    verdicts: dict[int, list[Verdict]] = defaultdict(list)
    for row in connection.execute(verdict_query):
        verdicts[row.comparison_id].append(_verdict(row))
    prompts = {row.id: from_messages(row.turns) for row in connection.execute(select(PromptRow.id, PromptRow.turns))}
    reported, reported_responses = _upheld(connection)
    return [
        Comparison(
            prompt=prompts[row.prompt_id],
            left=_response(row, "left"),
            right=_response(row, "right"),
            asked_how=AskedHow(row.asked_how),
            ask_probability=row.ask_probability,
            verdicts=tuple(verdicts.get(row.id, ())),
            id=row.id,
            reported=row.id in reported or not reported_responses.isdisjoint((row.left_id, row.right_id)),
        )
        for row in connection.execute(query)
    ]


def _upheld(connection: Connection) -> tuple[set[int], set[int]]:
    """Return the comparisons and the responses about which a report was upheld."""
    rows = connection.execute(select(FlagRow.comparison_id, FlagRow.response_id).where(FlagRow.upheld.is_(True))).all()
    comparisons = {row.comparison_id for row in rows if row.comparison_id is not None}
    return comparisons, {row.response_id for row in rows if row.response_id is not None}


def _columns(response: type[ResponseRow], side: str) -> list[ColumnElement[Any]]:
    names = ("text", "author", "finish_reason", "sampling")
    return [getattr(response, name).label(f"{side}_{name}") for name in names]


def _response(row: Any, side: str) -> Response:
    sampling = getattr(row, f"{side}_sampling")
    return Response(
        text=getattr(row, f"{side}_text"),
        author=getattr(row, f"{side}_author"),
        finish_reason=FinishReason(getattr(row, f"{side}_finish_reason")),
        sampling=Sampling(**sampling) if sampling else None,
    )


def _verdict(row: Any) -> Verdict:
    return Verdict(
        choice=Choice(row.choice),
        annotator=Annotator(row.name, AnnotatorKind(row.kind)),
        strength=row.strength,
        created_at=row.created_at,
        seconds=row.seconds,
        reasons=tuple(row.reasons),
        comment=row.comment,
        exchanged=row.exchanged,
        drawn=None if row.drawn is None else DrawnHow(row.drawn),
        draw_probability=row.probability,
    )
