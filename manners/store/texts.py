"""Prompts and responses, each stored once: what makes one unique, and the ids of those that are new."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, select, union, update

from manners.store.records import digest, to_messages
from manners.store.statements import chunks, insert_new
from manners.store.tables import ComparisonRow, PromptRow, ResponseRow
from manners.types import AskedHow, Comparison, Dialogue, PromptUse, Response

CHAT = "chat"
"""Source of a prompt that nobody but people in their conversations has brought in."""
API = "api"
"""Source of a prompt that a program has brought in by `/v1`, and nobody else before."""
GONE = "deleted "
"""With what the digest begins of a text that was deleted."""
BROUGHT = frozenset({AskedHow.IMPORTED, AskedHow.API})
"""Comparisons whose prompt came from outside; all others are opened here, on words that are there already."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a prompt is to be."""

    digest: str
    use: PromptUse
    dialogue: Dialogue | None = None
    """None for one that is there for something else, and moves."""
    source: str = ""

    @property
    def moves(self) -> bool:
        """Whether it is there for something else."""
        return self.dialogue is None


def place_prompts(connection: Connection, prompts: Sequence[Placed]) -> None:
    """Store those of these prompts that are new, and give each the use that it is to have, whatever it has."""
    for some in chunks(prompts):
        for source in {one.source for one in some if not one.moves}:
            ours = [one for one in some if one.source == source]
            new = {one.digest: (one.dialogue, one.use) for one in ours if one.dialogue is not None}
            prompt_ids(connection, new, source)
            claim(connection, new, source)
        for use in PromptUse:
            theirs = PromptRow.digest.in_([one.digest for one in some if one.use is use])
            connection.execute(update(PromptRow).where(theirs, PromptRow.use != use.value).values(use=use.value))


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
    """Name another source for those of these prompts that until now only conversations, or programs, have brought in.

    To be brought in by a program as well takes a prompt out of conversations, and not out of another program's hands.
    """
    theirs = (CHAT,) if source == API else (CHAT, API)
    for chunk in chunks(digests):
        known = PromptRow.digest.in_(chunk) & PromptRow.source.in_(theirs)
        connection.execute(update(PromptRow).where(known).values(source=source))


def answers_of(comparison: int) -> ColumnElement[bool]:
    """Return the condition that a response is one of a comparison's two."""
    columns = ComparisonRow.left_id, ComparisonRow.right_id
    sides = (select(column).where(ComparisonRow.id == comparison) for column in columns)
    return ResponseRow.id.in_(union(*sides))


def is_gone(connection: Connection, answers: ColumnElement[bool]) -> bool:
    """Return whether the words of some answers were deleted; whoever would delete them waits for this transaction.

    Who looks at an answer while it is deleted may say its words again, in a remark that nobody would look for any more.
    """
    query = select(ResponseRow.digest).where(answers).order_by(ResponseRow.id).with_for_update(read=True)
    return any(one.startswith(GONE) for one in connection.scalars(query))


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
