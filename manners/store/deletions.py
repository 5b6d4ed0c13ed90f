"""What was deleted, by its key and never by its words: nothing of it comes back with a copy that was made before.

    deletions.jsonl    one line a deletion, written before the words go: {"conversation": "Qx3..."}

The record stands beside the store, so that it outlives one that is damaged; every backup carries it on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from manners.store.annotators import annotator_of
from manners.store.redaction import redact
from manners.store.statements import chunks, take_turns
from manners.store.store import Store
from manners.store.tables import AnnotatorRow, ConversationRow, MessageRow, PromptRow, ResponseRow
from manners.types import DELETED

FILE = "deletions.jsonl"
CONVERSATION = "conversation"


@dataclass(frozen=True, slots=True)
class Reapplied:
    """What deletions did to a store in which their words had come back."""

    conversations: int = 0
    learned_by: tuple[str, ...] = ()
    """Versions that may have learned from verdicts on these words."""
    words: frozenset[str] = frozenset()
    """The texts that are gone now, to look for elsewhere; they go nowhere else."""


def note(root: Path, conversation: str) -> None:
    """Write down that a conversation is deleted, on the disk before this returns."""
    handle = os.open(root / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "ab") as file:
        # A line that a kill cut short stays alone on its line.
        file.write(b"\n" * (file.tell() > 0) + json.dumps({CONVERSATION: conversation}).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def noted(root: Path) -> set[str]:
    """Return the conversations that the record names; a line that cannot be read names none."""
    found = set[str]()
    if (root / FILE).is_file():
        for line in (root / FILE).read_bytes().splitlines():
            try:
                found.add(str(json.loads(line)[CONVERSATION]))
            except (ValueError, KeyError, TypeError):
                continue
    return found


def written(conversations: Iterable[str]) -> str:
    """Return a record that names these conversations."""
    return "".join(json.dumps({CONVERSATION: key}) + "\n" for key in sorted(conversations))


def deleted(store: Store) -> set[str]:
    """Return the conversations that a store knows to be deleted."""
    with store.read() as connection:
        return set(
            connection.execute(select(ConversationRow.key).where(ConversationRow.deleted_at.is_not(None))).scalars()
        )


def apply_again(store: Store, conversations: Iterable[str]) -> Reapplied:
    """Put tombstones where the words of these conversations stand, as far as they are there and have words."""
    with store.write() as connection:
        take_turns(connection)
        rows: list[Any] = []
        for some in chunks(sorted(conversations)):
            query = (
                select(ConversationRow.id, AnnotatorRow.name, AnnotatorRow.kind, AnnotatorRow.account_id)
                .join(AnnotatorRow, ConversationRow.annotator_id == AnnotatorRow.id)
                .where(ConversationRow.key.in_(some), ConversationRow.deleted_at.is_(None))
            )
            rows += connection.execute(query).all()
        if not rows:
            return Reapplied()
        before = _texts(connection)
        learned_by: dict[str, None] = {}
        for row in rows:
            learned_by |= dict.fromkeys(redact(connection, annotator_of(row), row.id).versions)
        gone = before - _texts(connection) - {DELETED, ""}
    return Reapplied(len(rows), tuple(learned_by), frozenset(gone))


def _texts(connection: Connection) -> set[str]:
    """Return all texts of prompts, responses and messages."""
    found = {text or "" for text in connection.execute(select(MessageRow.text)).scalars()}
    found |= set(connection.execute(select(ResponseRow.text)).scalars())
    for turns in connection.execute(select(PromptRow.turns)).scalars():
        found |= {turn["content"] for turn in turns}
    return found
