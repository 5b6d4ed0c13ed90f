"""How a person is forgotten who leaves: their conversations, what came under their account by `/v1`, their remarks, and
their name. What they chose stays and counts, as the choice of somebody without a name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, Row, Text, cast, func, literal, select, update
from sqlalchemy.orm import InstrumentedAttribute

from manners.errors import MannersError
from manners.store import staging, tokens
from manners.store.accounts import Accounts
from manners.store.annotators import annotator_of
from manners.store.audit import Deed, Event, account_id, note
from manners.store.names import SEPARATOR
from manners.store.programs import requester
from manners.store.redaction import Blanked, blank_texts, forget_comments, forget_notes, redact
from manners.store.statements import chunks, take_turns
from manners.store.store import Store
from manners.store.tables import (
    AccountRow,
    AnnotatorRow,
    ComparisonRow,
    ConversationRow,
    FlagRow,
    MessageRow,
    PromptRow,
    RequestRow,
    ResponseRow,
    TokenRow,
    VerdictRow,
)
from manners.store.texts import API, BROUGHT, CHAT, COMPARISONS
from manners.store.traces import leave_traces
from manners.types import DELETED

OURS = (API, CHAT, COMPARISONS)
"""Sources of a prompt that no file of the owner's was; an older store calls what came by `/v1` `comparisons`."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was deleted of somebody, and what else is to know of it."""

    account: int
    """The account's id, by which the log goes on knowing it."""
    users: int
    """Annotators whose names are gone: the account's own, and the users of its programs."""
    conversations: int
    comparisons: list[int]
    """Those on words that are gone."""
    versions: list[str]
    """Those that may have learned from verdicts on them."""
    texts: frozenset[str] = field(repr=False)
    """The words themselves, to be looked for in files."""
    unnamed: int = 0
    """Where one user was: pairs of the account that may be theirs: no user was named, and nobody has judged them."""


def forget(store: Store, name: str, user: str | None = None, by: int | None = None) -> Forgotten:
    """Delete the words of an account and its name, or those of one `user` of its programs; the account is disabled.

    What an import is adding meanwhile is looked at too: one that has decided to add is finished first, so that it is
    known which texts are in its file as well, and one that has not, and holds the words, is thrown away as a whole.

    Raises MannersError where there is no such account or user, and where nobody would be owner any more.
    """
    keys_of(store, name, user)
    account = _account(store, name)
    staging.recover(store.read, store.write)
    with store.write() as connection:
        take_turns(connection)
        return _forget(connection, account, user, by)


def words_of(store: Store, name: str, user: str | None = None) -> frozenset[str]:
    """Return the words that `forget` will delete: to be looked for in files while the store still has them.

    Raises as that does.
    """
    keys_of(store, name, user)
    account = _account(store, name)
    staging.recover(store.read, store.write)
    with store.tried() as connection:
        return _forget(connection, account, user, None).texts


def forget_again(connection: Connection, key: str) -> Forgotten | None:
    """Forget an account that a copy of the store has brought back, by its key, whoever it is; None where it has not."""
    for account in connection.execute(select(AccountRow).where(~_IS_FORGOTTEN)).all():
        if key_of(account) == key:
            now = datetime.now(UTC)
            still = (AccountRow.id == account.id) & AccountRow.disabled_at.is_(None)
            connection.execute(update(AccountRow).where(still).values(disabled_at=now))
            tokens.end(connection, (TokenRow.account_id == account.id) | (TokenRow.issuer_id == account.id))
            return _forget(connection, account, None, None)
    return None


def key_of(account: Row[AccountRow]) -> str:
    """Return what an account is known by without its name: the number alone may be another's in a copy."""
    return f"{account.id} {account.created_at.isoformat()}"


def keys_of(store: Store, name: str, user: str | None = None) -> tuple[str, list[str]]:
    """Return the key of an account, which is disabled, and those of the conversations whose words `forget` will delete.

    Raises MannersError where it cannot: no such account or user, or nobody would be owner any more.
    """
    account = _account(store, name)
    if user is None and account.disabled_at is None:
        Accounts(store).disable(name)
    with store.read() as connection:
        people = _people(connection, account, user)
        if user is not None and not people and not _requests(connection, account, people, user):
            raise MannersError(f"no user {user} of {account.name} was asked or has answered here; check the name")
        open_ones = ConversationRow.annotator_id.in_(people), ConversationRow.deleted_at.is_(None)
        return key_of(account), list(connection.execute(select(ConversationRow.key).where(*open_ones)).scalars())


def forgotten(store: Store) -> list[str]:
    """Return the keys of the accounts that a store knows to be forgotten."""
    with store.read() as connection:
        rows = connection.execute(select(AccountRow).where(_IS_FORGOTTEN)).all()
    return [key_of(row) for row in rows]


def _forget(connection: Connection, account: Row[AccountRow], user: str | None, by: int | None) -> Forgotten:
    people = _people(connection, account, user)
    requests = _requests(connection, account, people, user)
    found = _delete(connection, people, requests)
    staging.throw_away(connection, found[-1])
    _rename(connection, AnnotatorRow.id, people, AnnotatorRow.name)
    theirs = RequestRow.account == requester(account.id)
    named = theirs if user is None else theirs & (RequestRow.user == user)
    connection.execute(update(RequestRow).where(named).values(user=None))
    if user is None:
        _rename(connection, AccountRow.id, [account.id], AccountRow.name)
        connection.execute(update(AccountRow).where(AccountRow.id == account.id).values(password_hash=None))
        connection.execute(update(TokenRow).where(TokenRow.account_id == account.id).values(label=""))
        connection.execute(update(RequestRow).where(theirs).values(key=_tombstone(RequestRow.id)))
    note(connection, Deed(Event.ACCOUNT_FORGOTTEN, by, about=f"account {account.id}"))
    leave_traces(connection)
    return Forgotten(account.id, len(people), *found, unnamed=0 if user is None else _unnamed(connection, theirs))


def _account(store: Store, name: str) -> Row[AccountRow]:
    with store.read() as connection:
        row = connection.execute(select(AccountRow).where(AccountRow.id == account_id(connection, name))).first()
    if row is None:
        raise MannersError(f"there is no account {name}; `manners accounts list` shows those there are")
    return row


def _people(connection: Connection, account: Row[AccountRow], user: str | None) -> set[int]:
    """Return the annotators that an account is, with the users of its programs, or one of these alone.

    By the account's id: whom a file calls the same is somebody else.
    """
    who = AnnotatorRow.account_id == account.id
    if user is not None:
        who &= AnnotatorRow.name == f"{account.name}{SEPARATOR}{user}"
    return set(connection.execute(select(AnnotatorRow.id).where(who)).scalars())


def _requests(connection: Connection, account: Row[AccountRow], people: set[int], user: str | None) -> set[int]:
    """Return the comparisons that came by `/v1` under an account, or those that one user was asked or has judged."""
    query = select(RequestRow.comparison_id).where(RequestRow.account == requester(account.id))
    if user is not None:
        judged = select(VerdictRow.comparison_id).where(VerdictRow.annotator_id.in_(people))
        query = query.where(RequestRow.comparison_id.in_(judged) | (RequestRow.user == user))
    return set(connection.execute(query).scalars())


def _unnamed(connection: Connection, theirs: ColumnElement[bool]) -> int:
    """Count the pairs of some requests that have words still, and of which nobody knows whose."""
    judged = select(VerdictRow.id).where(VerdictRow.comparison_id == RequestRow.comparison_id).exists()
    open_ones = theirs & RequestRow.user.is_(None) & (RequestRow.content != DELETED) & ~judged
    return connection.execute(select(func.count()).select_from(RequestRow).where(open_ones)).scalar_one()


def _delete(
    connection: Connection, people: set[int], requests: set[int]
) -> tuple[int, list[int], list[str], frozenset[str]]:
    """Delete conversations, texts and remarks; return how many conversations, comparisons, versions and the words."""
    mine = select(ConversationRow.id, AnnotatorRow.name, AnnotatorRow.kind, AnnotatorRow.account_id).join(AnnotatorRow)
    open_ones = mine.where(ConversationRow.annotator_id.in_(people), ConversationRow.deleted_at.is_(None))
    conversations = connection.execute(open_ones).all()
    told = [redact(connection, annotator_of(row), row.id) for row in conversations]
    brought = _blank_requests(connection, requests)
    comparisons = set(brought.comparisons).union(*(one.comparisons for one in told))
    theirs = forget_comments(connection, VerdictRow.annotator_id, people)[1]
    versions, about = forget_comments(connection, VerdictRow.comparison_id, brought.comparisons)
    for chunk in chunks(requests):
        connection.execute(update(RequestRow).where(RequestRow.comparison_id.in_(chunk)).values(content=DELETED))
    notes = forget_notes(connection, FlagRow.annotator_id, people)
    notes |= forget_notes(connection, FlagRow.comparison_id, brought.comparisons)
    learned = sorted(set(versions).union(*(one.versions for one in told)))
    texts = frozenset[str]().union(brought.texts, theirs, about, notes, *(one.texts for one in told))
    return len(conversations), sorted(comparisons), learned, texts


def _blank_requests(connection: Connection, requests: set[int]) -> Blanked:
    """Blank the prompts that these requests alone have brought in, and the answers that they alone have brought."""
    answers: dict[int, int] = {}
    for chunk in chunks(requests):
        sides = ResponseRow.id.in_([ComparisonRow.left_id, ComparisonRow.right_id])
        query = select(ResponseRow.id, ResponseRow.prompt_id).select_from(ComparisonRow).join(ResponseRow, sides)
        answers |= {row.id: row.prompt_id for row in connection.execute(query.where(ComparisonRow.id.in_(chunk)))}
    brought, said = _brought(connection, requests, answers), _said(connection, answers)
    prompts: set[int] = set()
    for chunk in chunks(set(answers.values())):
        known = select(PromptRow.id).where(PromptRow.id.in_(chunk), PromptRow.source.in_(OURS))
        prompts |= set(connection.execute(known).scalars())
    theirs = prompts & (set(said.values()) - set(brought.values()))
    for chunk in chunks(theirs):  # now of those alone who say it in conversations
        connection.execute(update(PromptRow).where(PromptRow.id.in_(chunk)).values(source=CHAT))
    alone = answers.keys() - brought.keys() - said.keys()
    return blank_texts(connection, prompts - {*brought.values(), *said.values()}, alone)


def _brought(connection: Connection, requests: set[int], answers: dict[int, int]) -> dict[int, int]:
    """Return the answers, each with its prompt, that files or other programs brought for their prompts."""
    found: dict[int, int] = {}
    gone = select(RequestRow.comparison_id).where(RequestRow.content == DELETED)  # of others who were forgotten
    for chunk in chunks(set(answers.values())):
        for side in (ComparisonRow.left_id, ComparisonRow.right_id):
            query = select(ComparisonRow.id, ResponseRow.id.label("response"), ResponseRow.prompt_id)
            query = query.join(ResponseRow, side == ResponseRow.id).where(
                ResponseRow.prompt_id.in_(chunk), ComparisonRow.asked_how.in_([how.value for how in BROUGHT])
            )
            stays = query.where(ComparisonRow.id.not_in(gone))
            found |= {r.response: r.prompt_id for r in connection.execute(stays) if r.id not in requests}
    return found


def _said(connection: Connection, answers: dict[int, int]) -> dict[int, int]:
    """Return the answers, each with its prompt, that stand in conversations on prompts of these requests."""
    found: dict[int, int] = {}
    for chunk in chunks(set(answers.values())):
        query = (
            select(ResponseRow.id, ResponseRow.prompt_id)
            .select_from(MessageRow)
            .join(ConversationRow, MessageRow.conversation_id == ConversationRow.id)
            .join(ResponseRow, MessageRow.response_id == ResponseRow.id)
            .where(ResponseRow.prompt_id.in_(chunk), ConversationRow.deleted_at.is_(None))
        )
        found |= {row.id: row.prompt_id for row in connection.execute(query)}
    return found


def _rename(
    connection: Connection, column: InstrumentedAttribute[int], keys: Iterable[int], name: InstrumentedAttribute[str]
) -> None:
    for chunk in chunks(keys):
        values = {name.key: _tombstone(column)}
        connection.execute(update(column.class_).where(column.in_(chunk)).values(values))


def _tombstone(key: ColumnElement[int] | InstrumentedAttribute[int]) -> ColumnElement[str]:
    """Return the name of somebody without one; no account can be called so (`names`)."""
    return literal("[forgotten ") + cast(key, Text()) + literal("]")


_IS_FORGOTTEN = AccountRow.name == _tombstone(AccountRow.id)
