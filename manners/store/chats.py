"""Conversations with the policy: whose they are, what was said, and how they are forgotten."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, func, insert, select, update
from sqlalchemy.orm import aliased

from manners.errors import MannersError
from manners.store.annotators import annotator_id, is_annotator
from manners.store.comparisons import insert_comparisons
from manners.store.flags import FlagReason, raise_flag
from manners.store.records import number_of, token_of
from manners.store.redaction import Redacted, redact
from manners.store.statements import take_turns
from manners.store.store import Store
from manners.store.tables import (
    AnnotatorRow,
    ComparisonRow,
    ConversationRow,
    MessageRow,
    ResponseRow,
    ThumbRow,
    VerdictRow,
    VersionRow,
)
from manners.store.texts import response_ids
from manners.store.verdicts import STANDING, insert_verdicts
from manners.types import (
    DELETED,
    MEASURES,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Dialogue,
    FinishReason,
    Response,
    Role,
    Turn,
    Verdict,
    VersionKind,
)


class NoSuchChat(MannersError):
    """There is no such conversation of this person."""


class MovedOn(MannersError):
    """Something was said in the conversation since it was read."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A conversation in a list."""

    key: str
    title: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Said:
    """One turn of a conversation."""

    role: Role
    text: str
    response: str | None = None
    """The token of an answer."""
    thumb: int = 0
    finish_reason: FinishReason | None = None
    """Of an answer; UNKNOWN where its reader stopped it."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Two answers that nobody has chosen between yet, in the order in which they were shown."""

    comparison: str
    """Its token."""
    responses: tuple[str, str]
    """Theirs."""
    texts: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Effect:
    """What somebody's verdicts did."""

    verdicts: int
    """Comparisons that they chose on: corrections count once; skips, and what was taken back, do not count."""
    used: int
    """Those of them that the newest reward model of people's verdicts could learn from, or be measured with.

    It may have passed over a few: a user who answers at random is set aside, and `reward.limit` draws some.
    """
    version: str | None
    """That reward model."""


class Chats:
    """The conversations of a store; safe to use from many threads."""

    def __init__(self, store: Store) -> None:
        """Keep them in a store."""
        self._store = store

    def begin(self, annotator: Annotator) -> str:
        """Begin a conversation of somebody who has agreed to its being kept, and return its key."""
        key = secrets.token_urlsafe(12)
        now = datetime.now(UTC)
        with self._store.write() as connection:
            owner = annotator_id(connection, annotator)
            row = {"key": key, "annotator_id": owner, "consented_at": now, "created_at": now}
            connection.execute(insert(ConversationRow), row)
        return key

    def all(self, annotator: Annotator) -> list[Summary]:
        """Return somebody's conversations, newest first."""
        query = _of(annotator).add_columns(ConversationRow.created_at).order_by(ConversationRow.id.desc())
        with self._store.read() as connection:
            rows = connection.execute(query).all()
            first = select(func.min(MessageRow.id)).where(MessageRow.conversation_id.in_([row.id for row in rows]))
            titles = connection.execute(
                select(MessageRow.conversation_id, MessageRow.text).where(
                    MessageRow.id.in_(first.group_by(MessageRow.conversation_id))
                )
            ).all()
        title = {row.conversation_id: row.text or "" for row in titles}
        return [Summary(row.key, title.get(row.id, "")[:80] or "New conversation", row.created_at) for row in rows]

    def read(self, annotator: Annotator, key: str) -> list[Said]:
        """Return what was said, oldest first; raises NoSuchChat."""
        with self._store.read() as connection:
            conversation = _conversation(connection, annotator, key)
            return _turns(connection, conversation, annotator)

    def waiting(self, annotator: Annotator, key: str) -> Waiting | None:
        """Return the latest turn's two answers where no choice was made; None otherwise. Raises NoSuchChat."""
        left, right = aliased(ResponseRow), aliased(ResponseRow)
        with self._store.read() as connection:
            conversation = _conversation(connection, annotator, key)
            newest = select(func.max(MessageRow.id)).where(MessageRow.conversation_id == conversation)
            judged = select(VerdictRow.id).where(VerdictRow.comparison_id == MessageRow.comparison_id, STANDING)
            row = connection.execute(
                select(ComparisonRow.id, left.id, left.text, right.id, right.text)
                .select_from(MessageRow)
                .join(ComparisonRow, MessageRow.comparison_id == ComparisonRow.id)
                .join(left, ComparisonRow.left_id == left.id)
                .join(right, ComparisonRow.right_id == right.id)
                .where(MessageRow.id == newest.scalar_subquery(), ~judged.exists())
            ).first()
            if row is None:
                return None
            comparison, one, text, other, other_text = row
            [token] = _tokens(connection, ComparisonRow, [comparison])
            both = _tokens(connection, ResponseRow, [one, other])
        return Waiting(token, (both[0], both[1]), (text, other_text))

    def asked_before(self, annotator: Annotator, key: str) -> AskedHow | None:
        """Return how the first comparison of a conversation was asked; None where there is none. Raises NoSuchChat."""
        with self._store.read() as connection:
            conversation = _conversation(connection, annotator, key)
            query = select(ComparisonRow.asked_how).join(MessageRow, MessageRow.comparison_id == ComparisonRow.id)
            query = query.where(MessageRow.conversation_id == conversation).order_by(MessageRow.id).limit(1)
            found = connection.execute(query).scalar()
        return None if found is None else AskedHow(found)

    def say(
        self,
        annotator: Annotator,
        key: str,
        said: Sequence[Said],
        text: str,
        answers: Sequence[Response],
        probability: float,
        asked_how: AskedHow = AskedHow.CHAT,
    ) -> tuple[str | None, list[str]]:
        """Append what somebody said after what was `said` before, with the answer to it, or with two to choose from.

        Returns the tokens of the comparison, if there are two, and of the responses. Raises NoSuchChat; and MovedOn
        where the conversation is no longer the one that was answered, as with two windows.
        """
        prompt = dialogue(said, text)
        with self._store.write() as connection:
            take_turns(connection)
            conversation = _conversation(connection, annotator, key, alone=True)
            if dialogue(_turns(connection, conversation, annotator), text) != prompt:
                raise MovedOn("the conversation has moved on: open it again and send your message once more")
            left, right = answers[0], answers[-1]
            asked = Comparison(prompt, left, right, asked_how, probability)
            [pair] = response_ids(connection, [asked])
            two = len(answers) == 2 and pair[0] != pair[1]
            comparison = insert_comparisons(connection, [asked], [pair])[0] if two else None
            now = datetime.now(UTC)
            rows: list[dict[str, Any]] = [
                {"text": text, "response_id": None, "comparison_id": None},
                # Until somebody has chosen, the first one stands: nothing tells then who wrote which.
                {"text": None, "response_id": pair[0], "comparison_id": comparison},
            ]
            shared = {"conversation_id": conversation, "created_at": now}
            connection.execute(insert(MessageRow), [row | shared for row in rows])
            token = None if comparison is None else _tokens(connection, ComparisonRow, [comparison])[0]
            return token, _tokens(connection, ResponseRow, pair if two else pair[:1])

    def choose(self, annotator: Annotator, key: str, comparison: str, choice: Choice, seconds: float | None) -> str:
        """Store a verdict on the two answers of the latest turn, and go on with the one chosen; return its token.

        A skip is stored too, and the first answer stands; but what was chosen before is not undone by one, which comes
        from a page that does not know of it. Raises NoSuchChat, also where the pair is not the latest one.
        """
        with self._store.write() as connection:
            conversation = _conversation(connection, annotator, key, alone=True)
            latest = connection.execute(
                select(
                    MessageRow.id,
                    MessageRow.comparison_id,
                    MessageRow.response_id,
                    ComparisonRow.left_id,
                    ComparisonRow.right_id,
                    ComparisonRow.created_at,
                )
                .outerjoin(ComparisonRow, MessageRow.comparison_id == ComparisonRow.id)
                .where(MessageRow.conversation_id == conversation)
                .order_by(MessageRow.id.desc())
                .limit(1)
            ).first()
            if (
                latest is None
                or latest.left_id is None
                or token_of(latest.comparison_id, latest.created_at) != comparison
            ):
                raise NoSuchChat("these two answers are not the latest ones of this conversation: open it again")
            if choice is Choice.SKIP and _is_chosen(connection, latest.comparison_id):
                return _tokens(connection, ResponseRow, [latest.response_id])[0]
            verdict = Verdict(choice, annotator, seconds=seconds)
            insert_verdicts(connection, [(latest.comparison_id, verdict)])
            chosen: int = latest.right_id if choice is Choice.RIGHT else latest.left_id
            connection.execute(update(MessageRow).where(MessageRow.id == latest.id).values(response_id=chosen))
            return _tokens(connection, ResponseRow, [chosen])[0]

    def thumb(self, annotator: Annotator, response: str, value: int) -> None:
        """Store a thumb on an answer of one's own conversations; 0 takes it back. Raises NoSuchChat."""
        with self._store.write() as connection:
            number = _own(connection, annotator, response)
            who = annotator_id(connection, annotator)
            row = {"response_id": number, "annotator_id": who, "value": value, "created_at": datetime.now(UTC)}
            connection.execute(insert(ThumbRow), row)

    def flag(self, annotator: Annotator, response: str, reason: FlagReason, note: str) -> None:
        """Report an answer of one's own conversations. Raises NoSuchChat."""
        with self._store.write() as connection:
            raise_flag(connection, annotator, reason, note, response=_own(connection, annotator, response))

    def effect(self, annotator: Annotator) -> Effect:
        """Return what became of somebody's verdicts."""
        # The latest verdict on a comparison is the one that counts.
        latest = (
            select(func.max(VerdictRow.id))
            .join(AnnotatorRow)
            .where(is_annotator(annotator), STANDING)
            .group_by(VerdictRow.comparison_id)
        )
        left, right = aliased(ResponseRow), aliased(ResponseRow)
        with self._store.read() as connection:
            version = _newest_reward(connection)
            watermark = 0 if version is None else version.watermark
            learnable = (
                (VerdictRow.id <= watermark)
                & ComparisonRow.asked_how.not_in([how.value for how in MEASURES])
                & left.text.not_in((DELETED, ""))
                & right.text.not_in((DELETED, ""))
            )
            given, used = connection.execute(
                select(func.count(), func.count().filter(learnable))
                .select_from(VerdictRow)
                .join(ComparisonRow, VerdictRow.comparison_id == ComparisonRow.id)
                .join(left, ComparisonRow.left_id == left.id)
                .join(right, ComparisonRow.right_id == right.id)
                .where(VerdictRow.id.in_(latest), VerdictRow.choice != Choice.SKIP.value)
            ).one()
        return Effect(given, used, None if version is None else version.name)

    def delete(self, annotator: Annotator, key: str) -> Redacted:
        """Put a tombstone where the words of a conversation were; events and counts stay.

        A text that somebody else has brought in too, in a file, by a program or in another conversation, is theirs as
        well and stays there. Raises NoSuchChat.
        """
        with self._store.write() as connection:
            take_turns(connection)
            conversation = _conversation(connection, annotator, key, alone=True)
            return redact(connection, annotator, conversation)

    def words(self, annotator: Annotator, key: str) -> frozenset[str]:
        """Return the words that `delete` will take away, and leave them where they are. Raises NoSuchChat."""
        with self._store.tried() as connection:
            conversation = _conversation(connection, annotator, key, alone=True)
            return redact(connection, annotator, conversation).texts


def dialogue(said: Sequence[Said], text: str) -> Dialogue:
    """Return the prompt that somebody's next words make."""
    return (*(Turn(one.role, one.text) for one in said), Turn(Role.USER, text))


def _of(annotator: Annotator) -> Select[int, str]:
    return (
        select(ConversationRow.id, ConversationRow.key)
        .join(AnnotatorRow, ConversationRow.annotator_id == AnnotatorRow.id)
        .where(is_annotator(annotator), ConversationRow.deleted_at.is_(None))
    )


def _conversation(connection: Connection, annotator: Annotator, key: str, *, alone: bool = False) -> int:
    """Return the id of somebody's conversation, which with `alone` nobody else changes until the transaction ends.

    Raises NoSuchChat.
    """
    query = _of(annotator).where(ConversationRow.key == key)
    row = connection.execute(query.with_for_update(of=ConversationRow) if alone else query).first()
    if row is None:
        raise NoSuchChat("there is no such conversation of yours: begin a new one")
    return int(row.id)


def _is_chosen(connection: Connection, comparison: int) -> bool:
    """Return whether the latest verdict on a pair that one person is asked about is a choice."""
    query = select(VerdictRow.choice).where(VerdictRow.comparison_id == comparison, STANDING)
    latest = connection.execute(query.order_by(VerdictRow.id.desc()).limit(1)).scalar()
    return latest is not None and latest != Choice.SKIP.value


def _own(connection: Connection, annotator: Annotator, response: str) -> int:
    """Return the number of an answer; raises NoSuchChat unless it was given in a conversation of somebody's."""
    conversations, number = _of(annotator).with_only_columns(ConversationRow.id), number_of(response)
    query = select(MessageRow.id).where(MessageRow.response_id == number, MessageRow.conversation_id.in_(conversations))
    if connection.execute(query).first() is None or _tokens(connection, ResponseRow, [number]) != [response]:
        raise NoSuchChat("this answer is in none of your conversations: open the conversation again")
    return number


def _tokens(
    connection: Connection, table: type[ComparisonRow] | type[ResponseRow], numbers: Iterable[int]
) -> list[str]:
    """Return the tokens of rows that are there, in this order."""
    wanted = list(numbers)
    rows = connection.execute(select(table.id, table.created_at).where(table.id.in_(wanted))).all()
    made = {row.id: row.created_at for row in rows}
    return [token_of(number, made[number]) for number in wanted]


def _turns(connection: Connection, conversation: int, annotator: Annotator) -> list[Said]:
    messages = connection.execute(
        select(
            MessageRow.text,
            MessageRow.response_id,
            ResponseRow.text.label("answer"),
            ResponseRow.finish_reason,
            ResponseRow.created_at,
        )
        .outerjoin(ResponseRow, MessageRow.response_id == ResponseRow.id)
        .where(MessageRow.conversation_id == conversation)
        .order_by(MessageRow.id)
    ).all()
    thumbs = connection.execute(
        select(ThumbRow.response_id, ThumbRow.value)
        .join(AnnotatorRow, ThumbRow.annotator_id == AnnotatorRow.id)
        .where(is_annotator(annotator), ThumbRow.response_id.in_([m.response_id for m in messages if m.response_id]))
        .order_by(ThumbRow.id)
    ).all()
    latest = {thumb.response_id: thumb.value for thumb in thumbs}
    return [
        Said(Role.USER, message.text or "")
        if message.response_id is None
        else Said(
            Role.ASSISTANT,
            message.answer,
            token_of(message.response_id, message.created_at),
            latest.get(message.response_id, 0),
            FinishReason(message.finish_reason),
        )
        for message in messages
    ]


def _newest_reward(connection: Connection) -> Row[str, int, dict[str, Any]] | None:
    """Return the newest reward model that has learned from people; None where there is none."""
    query = select(VersionRow.name, VersionRow.watermark, VersionRow.metrics).order_by(VersionRow.id.desc())
    rows = connection.execute(query.where(VersionRow.kind == VersionKind.REWARD.value))
    return next((row for row in rows if row.metrics.get("source") == AnnotatorKind.HUMAN.value), None)
