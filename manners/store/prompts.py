"""Which prompts there are, as of now or as of when a run was begun, and which of them a model may answer anew."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from manners.store.comparisons import openings_apart
from manners.store.records import Newest, from_messages
from manners.store.tables import BetRow, ComparisonRow, PromptRow
from manners.store.texts import CHAT
from manners.types import DELETED, Dialogue, PromptUse, Role, StoredPrompt, Turn, opening

TOMBSTONE: Dialogue = (Turn(Role.USER, DELETED),)
"""The prompt that stands where one was deleted."""


def how_far(connection: Connection) -> Newest:
    """Return how far prompts, comparisons and bets go; none of a lower number comes later: writers take turns."""
    highest = (func.coalesce(func.max(row.id), 0) for row in (PromptRow, ComparisonRow, BetRow))
    return Newest(*(connection.execute(select(one)).scalar_one() for one in highest))


def select_prompts(connection: Connection, use: PromptUse | None, upto: Newest | None) -> list[StoredPrompt]:
    """Return the prompts of one use, or of all, by id; with `upto`, those that were there then."""
    query = select(PromptRow.id, PromptRow.turns, PromptRow.use).order_by(PromptRow.id)
    if use is not None:
        query = query.where(PromptRow.use == use.value)
    if upto is not None:
        query = query.where(PromptRow.id <= upto.prompt)
    rows = connection.execute(query)
    return [StoredPrompt(row.id, from_messages(row.turns), PromptUse(row.use)) for row in rows]


def select_answerable(connection: Connection, use: PromptUse, chats: bool, upto: Newest | None) -> list[Dialogue]:
    """Return the prompts of one use that a model may answer anew, by id; see `Store.answerable`."""
    query = select(PromptRow.turns).where(PromptRow.use == use.value).order_by(PromptRow.id)
    if not chats:
        query = query.where(PromptRow.source != CHAT)
    if upto is not None:
        query = query.where(PromptRow.id <= upto.prompt)
    apart = openings_apart(connection, use, upto)
    dialogues = map(from_messages, connection.execute(query).scalars())
    return [one for one in dialogues if one != TOMBSTONE and opening(one) not in apart]
