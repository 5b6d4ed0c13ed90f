"""Prompts and responses, each stored once: what makes one unique, and the ids of those that are new."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
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
COMPARISONS = "comparisons"
"""Source of a prompt that came with comparisons of a file, or that was asked about here."""
GONE = "deleted "
"""With what the digest begins of a text that was deleted."""
BROUGHT = {AskedHow.IMPORTED: COMPARISONS, AskedHow.API: API}
"""Comparisons whose prompt came from outside, with its source; all others are opened here, on words that are there."""
_IN_CHATS = {AskedHow.CHAT, AskedHow.CANDIDATE}


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
        new = [one for one in some if not one.moves]
        prompt_ids(connection, new)
        for source in {one.source for one in new} - {CHAT}:
            claim(connection, [one.digest for one in new if one.source == source], source)
        for use in PromptUse:
            theirs = PromptRow.digest.in_([one.digest for one in some if one.use is use])
            connection.execute(update(PromptRow).where(theirs, PromptRow.use != use.value).values(use=use.value))


def prompt_ids(connection: Connection, prompts: Collection[Placed]) -> dict[str, tuple[int, PromptUse]]:
    """Return id and use of each prompt by digest; those that are new enter with the use and the source given here."""
    now = datetime.now(UTC)
    rows = [
        {"digest": one.digest, "turns": to_messages(one.dialogue), "use": one.use.value, "source": one.source}
        for one in prompts
        if one.dialogue is not None
    ]
    insert_new(connection, PromptRow, [row | {"created_at": now} for row in rows])
    wanted = PromptRow.digest.in_({one.digest for one in prompts})
    rows_there = connection.execute(select(PromptRow.digest, PromptRow.id, PromptRow.use).where(wanted))
    return {row.digest: (row.id, PromptUse(row.use)) for row in rows_there}


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


def source_of(asked: AbstractSet[AskedHow], file: str = COMPARISONS) -> str:
    """Return where a new prompt comes from that was asked about in these ways: a `file`, a program, or a conversation.

    A record that was written elsewhere holds people's conversations too, and they stay theirs.
    """
    if AskedHow.IMPORTED in asked:
        return file
    if AskedHow.API in asked:
        return API
    return CHAT if asked & _IN_CHATS else file


def response_ids(connection: Connection, comparisons: Sequence[Comparison]) -> list[tuple[int, int]]:
    """Return the ids of the left and the right response of each comparison, storing the prompts and texts that are new.

    A new prompt may be trained on unless its comparison belongs to an evaluation; `source_of` says where it comes from.
    """
    keys = [prompt_digest(comparison.prompt) for comparison in comparisons]
    uses = {AskedHow.EVALUATION: PromptUse.EVALUATE}
    prompts: dict[str, Placed] = {}
    asked: defaultdict[str, set[AskedHow]] = defaultdict(set)
    for key, one in zip(keys, comparisons, strict=True):
        prompts.setdefault(key, Placed(key, uses.get(one.asked_how, PromptUse.TRAIN), one.prompt))
        asked[key].add(one.asked_how)
    stored = prompt_ids(connection, [replace(one, source=source_of(asked[key])) for key, one in prompts.items()])
    for how, source in BROUGHT.items():
        claim(connection, [key for key, hows in asked.items() if how in hows], source)
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
