"""Which prompts there are, as of now or as of when a run was begun, and which of them a model may answer anew."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, Select, func, select

from manners.store.comparisons import openings_apart
from manners.store.records import Newest, from_messages
from manners.store.tables import BetRow, ComparisonRow, PromptRow, ResponseRow
from manners.store.texts import API, CHAT, COMPARISONS
from manners.types import DELETED, AskedHow, Dialogue, PromptUse, Role, StoredPrompt, Turn, opening

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


def select_private(connection: Connection, *, programs: bool) -> frozenset[Dialogue]:
    """Return the prompts that nothing but people's conversations, or these and `programs`, has brought in.

    What came by `/v1` an older store calls `comparisons`, as it calls what came with a file: it is a program's where
    programs have asked about it, and no file has.
    """
    theirs: ColumnElement[bool] = PromptRow.source.in_((CHAT, API) if programs else (CHAT,))
    if programs:
        asked = PromptRow.id.in_(_asked(AskedHow.API)) & PromptRow.id.not_in(_asked(AskedHow.IMPORTED))
        theirs |= (PromptRow.source == COMPARISONS) & asked
    return frozenset(map(from_messages, connection.scalars(select(PromptRow.turns).where(theirs))))


def _asked(how: AskedHow) -> Select[int]:
    """Select the prompts of comparisons that were asked in one way."""
    query = select(ResponseRow.prompt_id).join(ComparisonRow, ComparisonRow.left_id == ResponseRow.id)
    return query.where(ComparisonRow.asked_how == how.value)
