"""Conversations with the policy: whose they are, what was said, and how they are forgotten."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, insert, select, update

from manners.errors import MannersError
from manners.store import queries
from manners.store.store import Store
from manners.store.tables import (
    AnnotatorRow,
    ComparisonRow,
    ConversationRow,
    MessageRow,
    PromptRow,
    ResponseRow,
    ThumbRow,
    VerdictRow,
    VersionRow,
    WithdrawalRow,
)
from manners.types import (
    DELETED,
    Annotator,
    AskedHow,
    Choice,
    Comparison,
    Dialogue,
    Response,
    Role,
    Turn,
    Verdict,
    VersionKind,
)


class NoSuchChat(MannersError):
    """There is no such conversation of this person."""


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
    response: int | None = None
    thumb: int = 0


@dataclass(frozen=True, slots=True)
class Effect:
    """What somebody's verdicts did."""

    verdicts: int
    used: int
    """Those that the newest reward model could learn from."""
    version: str | None
    """That reward model."""


class Chats:
    """The conversations of a store; safe to use from many threads."""

    def __init__(self, store: Store) -> None:
        """Keep them in a store."""
        self._store = store

    def begin(self, annotator: Annotator) -> str:
        """Begin a conversation of somebody who has agreed to its being kept, and return its key."""
        key, now = secrets.token_urlsafe(12), datetime.now(UTC)
        with self._store.write() as connection:
            owner = queries.annotator_ids(connection, [annotator])[annotator]
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

    def say(
        self, annotator: Annotator, key: str, text: str, answers: Sequence[Response], probability: float
    ) -> tuple[int | None, list[int]]:
        """Append what somebody said with the answer to it, or with two to choose from.

        Returns the comparison, if there are two, and the ids of the responses. Raises NoSuchChat.
        """
        with self._store.write() as connection:
            queries.take_turns(connection)
            conversation = _conversation(connection, annotator, key)
            prompt = dialogue(_turns(connection, conversation, annotator), text)
            left, right = answers[0], answers[-1]
            asked = Comparison(prompt, left, right, AskedHow.CHAT, probability)
            [pair] = queries.response_ids(connection, [asked])
            two = len(answers) == 2 and pair[0] != pair[1]
            comparison = queries.insert_comparisons(connection, [asked], [pair])[0] if two else None
            now = datetime.now(UTC)
            rows: list[dict[str, Any]] = [
                {"text": text, "response_id": None, "comparison_id": None},
                # Until somebody has chosen, the first one stands: both are draws from one distribution.
                {"text": None, "response_id": pair[0], "comparison_id": comparison},
            ]
            shared = {"conversation_id": conversation, "created_at": now}
            connection.execute(insert(MessageRow), [row | shared for row in rows])
        return comparison, list(pair if two else pair[:1])

    def choose(self, annotator: Annotator, key: str, comparison: int, choice: Choice, seconds: float | None) -> int:
        """Store a verdict on the two answers of the latest turn, and go on with the one chosen; return its id.

        A skip is stored too, and the first answer stands. Raises NoSuchChat, also where the pair is not the latest one.
        """
        with self._store.write() as connection:
            conversation = _conversation(connection, annotator, key)
            latest = connection.execute(
                select(MessageRow.id, MessageRow.comparison_id, ComparisonRow.left_id, ComparisonRow.right_id)
                .join(ComparisonRow, MessageRow.comparison_id == ComparisonRow.id)
                .where(MessageRow.conversation_id == conversation)
                .order_by(MessageRow.id.desc())
                .limit(1)
            ).first()
            if latest is None or latest.comparison_id != comparison:
                raise NoSuchChat("these two answers are not the latest ones of this conversation: open it again")
            verdict = Verdict(choice, annotator, seconds=seconds)
            queries.insert_verdicts(connection, [(comparison, verdict)])
            chosen: int = latest.right_id if choice is Choice.RIGHT else latest.left_id
            connection.execute(update(MessageRow).where(MessageRow.id == latest.id).values(response_id=chosen))
        return chosen

    def thumb(self, annotator: Annotator, response: int, value: int) -> None:
        """Store a thumb on an answer of one's own conversations; 0 takes it back. Raises NoSuchChat."""
        with self._store.write() as connection:
            self.check_own(connection, annotator, response)
            who = queries.annotator_ids(connection, [annotator])[annotator]
            row = {"response_id": response, "annotator_id": who, "value": value, "created_at": datetime.now(UTC)}
            connection.execute(insert(ThumbRow), row)

    def check_own(self, connection: Connection, annotator: Annotator, response: int) -> None:
        """Raise NoSuchChat unless an answer was given in a conversation of somebody's."""
        conversations = _of(annotator).with_only_columns(ConversationRow.id)
        query = select(MessageRow.id).where(
            MessageRow.response_id == response, MessageRow.conversation_id.in_(conversations)
        )
        if connection.execute(query).first() is None:
            raise NoSuchChat("this answer is in none of your conversations: open the conversation again")

    def effect(self, annotator: Annotator) -> Effect:
        """Return what became of somebody's verdicts."""
        own = (
            select(VerdictRow.id)
            .join(AnnotatorRow)
            .where(_is(annotator), VerdictRow.id.not_in(select(WithdrawalRow.verdict_id)))
        )
        newest = (
            select(VersionRow.name, VersionRow.watermark)
            .where(VersionRow.kind == VersionKind.REWARD.value)
            .order_by(VersionRow.id.desc())
            .limit(1)
        )
        with self._store.read() as connection:
            ids = connection.execute(own).scalars().all()
            version = connection.execute(newest).first()
        used = sum(one <= version.watermark for one in ids) if version else 0
        return Effect(len(ids), used, version.name if version else None)

    def delete(self, annotator: Annotator, key: str) -> tuple[list[int], list[str]]:
        """Put a tombstone where the words of a conversation were; events and counts stay.

        Returns its comparisons, and the versions that had learned from verdicts on them. A text that stands in somebody
        else's conversation too is theirs as well and stays there. Raises NoSuchChat.
        """
        with self._store.write() as connection:
            queries.take_turns(connection)
            conversation = _conversation(connection, annotator, key)
            mine = MessageRow.conversation_id == conversation
            comparisons = list(
                connection.execute(
                    select(MessageRow.comparison_id).where(mine, MessageRow.comparison_id.is_not(None))
                ).scalars()
            )
            _redact(connection, conversation)
            connection.execute(update(MessageRow).where(mine, MessageRow.text.is_not(None)).values(text=DELETED))
            on_them = VerdictRow.comparison_id.in_(comparisons)
            connection.execute(update(VerdictRow).where(on_them, VerdictRow.comment != "").values(comment=""))
            now = datetime.now(UTC)
            connection.execute(update(ConversationRow).where(ConversationRow.id == conversation).values(deleted_at=now))
            first = connection.execute(select(func.min(VerdictRow.id)).where(on_them)).scalar()
            versions = (
                []
                if first is None
                else list(connection.execute(select(VersionRow.name).where(VersionRow.watermark >= first)).scalars())
            )
        return [one for one in comparisons if one is not None], versions


def dialogue(said: Sequence[Said], text: str) -> Dialogue:
    """Return the prompt that somebody's next words make."""
    return (*(Turn(one.role, one.text) for one in said), Turn(Role.USER, text))


def _is(annotator: Annotator) -> ColumnElement[bool]:
    return (AnnotatorRow.name == annotator.name) & (AnnotatorRow.kind == annotator.kind.value)


def _of(annotator: Annotator) -> Select[int, str]:
    return (
        select(ConversationRow.id, ConversationRow.key)
        .join(AnnotatorRow, ConversationRow.annotator_id == AnnotatorRow.id)
        .where(_is(annotator), ConversationRow.deleted_at.is_(None))
    )


def _conversation(connection: Connection, annotator: Annotator, key: str) -> int:
    row = connection.execute(_of(annotator).where(ConversationRow.key == key)).first()
    if row is None:
        raise NoSuchChat("there is no such conversation of yours: begin a new one")
    return int(row.id)


def _turns(connection: Connection, conversation: int, annotator: Annotator) -> list[Said]:
    messages = connection.execute(
        select(MessageRow.text, MessageRow.response_id, ResponseRow.text.label("answer"))
        .outerjoin(ResponseRow, MessageRow.response_id == ResponseRow.id)
        .where(MessageRow.conversation_id == conversation)
        .order_by(MessageRow.id)
    ).all()
    thumbs = connection.execute(
        select(ThumbRow.response_id, ThumbRow.value)
        .join(AnnotatorRow, ThumbRow.annotator_id == AnnotatorRow.id)
        .where(_is(annotator), ThumbRow.response_id.in_([m.response_id for m in messages if m.response_id]))
        .order_by(ThumbRow.id)
    ).all()
    latest = {thumb.response_id: thumb.value for thumb in thumbs}
    return [
        Said(Role.USER, message.text or "")
        if message.response_id is None
        else Said(Role.ASSISTANT, message.answer, message.response_id, latest.get(message.response_id, 0))
        for message in messages
    ]


def _redact(connection: Connection, conversation: int) -> None:
    """Blank the prompts that this conversation alone has, with all answers to them."""

    def prompts(condition: ColumnElement[bool]) -> set[int]:
        query = (
            select(ResponseRow.prompt_id)
            .join(MessageRow, MessageRow.response_id == ResponseRow.id)
            .join(ConversationRow, MessageRow.conversation_id == ConversationRow.id)
            .where(condition)
        )
        return set(connection.execute(query).scalars())

    own = prompts(ConversationRow.id == conversation)
    others = prompts((ConversationRow.id != conversation) & ConversationRow.deleted_at.is_(None))
    asked_elsewhere = set(
        connection.execute(
            select(ResponseRow.prompt_id)
            .join(ComparisonRow, ComparisonRow.left_id == ResponseRow.id)
            .where(ComparisonRow.asked_how != AskedHow.CHAT.value, ResponseRow.prompt_id.in_(own))
        ).scalars()
    )
    turns = [{"role": Role.USER.value, "content": DELETED}]
    for prompt in own - others - asked_elsewhere:
        gone = {"turns": turns, "digest": f"deleted {prompt}"}
        connection.execute(update(PromptRow).where(PromptRow.id == prompt).values(gone))
        answers = select(ResponseRow.id).where(ResponseRow.prompt_id == prompt)
        for answer in connection.execute(answers).scalars().all():
            gone = {"text": DELETED, "digest": f"deleted {answer}"}
            connection.execute(update(ResponseRow).where(ResponseRow.id == answer).values(gone))
