"""What was deleted, by its key and never by its words: nothing of it comes back with a copy that was made before.

    deletions.jsonl    one line a deletion, written before the words go: {"conversation": "Qx3..."}
                       or {"account": "3 2026-11-28T12:00:00+00:00"}, its number and when it was made

The record stands beside the store, so that it outlives one that is damaged; every backup carries it on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from manners.store.annotators import annotator_of
from manners.store.forget import forget_again, forgotten
from manners.store.redaction import redact
from manners.store.statements import chunks, take_turns
from manners.store.store import Store
from manners.store.tables import AnnotatorRow, ConversationRow
from manners.types import DELETED

FILE = "deletions.jsonl"
CONVERSATION, ACCOUNT = "conversation", "account"


@dataclass(frozen=True, slots=True)
class Reapplied:
    """What deletions did to a store in which their words had come back."""

    conversations: int = 0
    accounts: int = 0
    learned_by: tuple[str, ...] = ()
    """Versions that may have learned from verdicts on these words."""
    words: frozenset[str] = frozenset()
    """The texts that are gone now, to look for elsewhere; they go nowhere else."""


def of_account(key: str) -> str:
    """Return the key of an account as one among those of conversations, none of which has a blank."""
    return f"{ACCOUNT} {key}"


def note(root: Path, key: str) -> None:
    """Write down that a conversation is deleted, or an account (`of_account`), on the disk before this returns."""
    handle = os.open(root / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "ab") as file:
        # A line that a kill cut short stays alone on its line.
        file.write(b"\n" * (file.tell() > 0) + _line(key).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def noted(root: Path) -> set[str]:
    """Return the keys that the record names; a line that cannot be read names none."""
    found = set[str]()
    if (root / FILE).is_file():
        for line in (root / FILE).read_bytes().splitlines():
            try:
                said = json.loads(line)
                found.add(of_account(str(said[ACCOUNT])) if ACCOUNT in said else str(said[CONVERSATION]))
            except (ValueError, KeyError, TypeError):
                continue
    return found


def written(keys: Iterable[str]) -> str:
    """Return a record that names these."""
    return "".join(_line(key) + "\n" for key in sorted(keys))


def _line(key: str) -> str:
    account = key.removeprefix(of_account(""))
    return json.dumps({CONVERSATION: key} if account == key else {ACCOUNT: account})


def deleted(store: Store) -> set[str]:
    """Return the conversations and accounts that a store knows to be deleted."""
    gone = select(ConversationRow.key).where(ConversationRow.deleted_at.is_not(None))
    with store.read() as connection:
        conversations = set(connection.execute(gone).scalars())
    return conversations | set(map(of_account, forgotten(store)))


def apply_again(store: Store, keys: Iterable[str]) -> Reapplied:
    """Put tombstones where the words of these conversations and accounts stand, as far as they are there."""
    wanted = sorted(keys)
    if not wanted:
        return Reapplied()
    with store.write() as connection:
        take_turns(connection)
        again = [forget_again(connection, key.removeprefix(of_account(""))) for key in wanted if " " in key]
        people = [one for one in again if one is not None]
        rows: list[Any] = []
        for some in chunks(key for key in wanted if " " not in key):
            query = (
                select(ConversationRow.id, AnnotatorRow.name, AnnotatorRow.kind, AnnotatorRow.account_id)
                .join(AnnotatorRow, ConversationRow.annotator_id == AnnotatorRow.id)
                .where(ConversationRow.key.in_(some), ConversationRow.deleted_at.is_(None))
            )
            rows += connection.execute(query).all()
        learned_by = dict.fromkeys(version for one in people for version in one.versions)
        told = [redact(connection, annotator_of(row), row.id) for row in rows]
        learned_by |= dict.fromkeys(version for one in told for version in one.versions)
        gone = frozenset[str]().union(*(one.texts for one in people), *(one.texts for one in told)) - {DELETED, ""}
    conversations = len(rows) + sum(one.conversations for one in people)
    return Reapplied(conversations, len(people), tuple(learned_by), gone)
