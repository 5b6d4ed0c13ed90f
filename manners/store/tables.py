"""The tables, one set for SQLite and PostgreSQL; how they came to be is in `migrations`."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    CheckConstraint,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    MetaData,
    Text,
    TypeDecorator,
    false,
)
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from manners.types import AccountRole, AnnotatorKind, Choice, DrawnHow


class UTCDateTime(TypeDecorator[datetime]):
    """A moment in UTC: SQLite keeps no time zones, so they are taken off on the way in and put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the moment in UTC; a moment without a zone is a bug of the caller."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the stored moment with its zone."""
        return value if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _one_of(column: str, values: type[StrEnum]) -> CheckConstraint:
    allowed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({allowed})", name=column)


class Table(DeclarativeBase):
    """What all tables share: names of constraints that later migrations can refer to, and two column types."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text(),
        float: Double(),
        datetime: UTCDateTime(),
        dict[str, Any]: JSON(),
        list[Any]: JSON(),
    }
    id: Mapped[int] = mapped_column(primary_key=True)


class PromptRow(Table):
    """A dialogue that ends with a user turn; unique, so that it can have one use only."""

    __tablename__ = "prompts"
    digest: Mapped[str] = mapped_column(unique=True)
    turns: Mapped[list[Any]]
    use: Mapped[str]
    source: Mapped[str]
    created_at: Mapped[datetime]


class ResponseRow(Table):
    """A response as it was shown, with who wrote it and how."""

    __tablename__ = "responses"
    prompt_id: Mapped[int] = mapped_column(ForeignKey("prompts.id"), index=True)
    digest: Mapped[str] = mapped_column(unique=True)
    text: Mapped[str]
    author: Mapped[str]
    finish_reason: Mapped[str]
    sampling: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime]


class ComparisonRow(Table):
    """Two responses in the order shown, and how they came to be asked about."""

    __tablename__ = "comparisons"
    left_id: Mapped[int] = mapped_column(ForeignKey("responses.id"), index=True)
    right_id: Mapped[int] = mapped_column(ForeignKey("responses.id"), index=True)
    asked_how: Mapped[str]
    ask_probability: Mapped[float | None]
    created_at: Mapped[datetime]
    asked_by: Mapped[str | None]


class AnnotatorRow(Table):
    """Whoever gives verdicts: an account, a user of its programs, or whom a file names.

    One name may be a person's and, apart from that, a model's; and an account's beside somebody else's.
    """

    __tablename__ = "annotators"
    name: Mapped[str]
    kind: Mapped[str]
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    __table_args__ = (
        _one_of("kind", AnnotatorKind),
        Index("ix_annotators_name", "name"),
        Index(
            "uq_annotators_named",
            "name",
            "kind",
            unique=True,
            sqlite_where=account_id.is_(None),
            postgresql_where=account_id.is_(None),
        ),
        Index(
            "uq_annotators_account",
            "account_id",
            "name",
            unique=True,
            sqlite_where=account_id.is_not(None),
            postgresql_where=account_id.is_not(None),
        ),
    )


class VerdictRow(Table):
    """One answer to one comparison; triggers refuse to change or delete it."""

    __tablename__ = "verdicts"
    __table_args__ = (_one_of("choice", Choice), CheckConstraint("strength BETWEEN 1 AND 3", name="strength"))
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparisons.id"), index=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"), index=True)
    choice: Mapped[str]
    strength: Mapped[int | None]
    seconds: Mapped[float | None]
    reasons: Mapped[list[Any]]
    comment: Mapped[str]
    created_at: Mapped[datetime]
    exchanged: Mapped[bool] = mapped_column(default=False, server_default=false())
    view_id: Mapped[int | None] = mapped_column(ForeignKey("views.id"), index=True, unique=True)


class WithdrawalRow(Table):
    """A verdict that its annotator took back; it stays where it is, and counts for nothing."""

    __tablename__ = "withdrawals"
    verdict_id: Mapped[int] = mapped_column(ForeignKey("verdicts.id"), unique=True)
    created_at: Mapped[datetime]


class BetRow(Table):
    """What a comparison of two versions counts for by one kind of annotator; triggers refuse to change or delete it."""

    __tablename__ = "bets"
    __table_args__ = (
        Unique("comparison_id", "kind"),
        _one_of("kind", AnnotatorKind),
        CheckConstraint("stake BETWEEN -1 AND 1", name="stake"),
    )
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparisons.id"))
    kind: Mapped[str]
    stake: Mapped[float]
    read: Mapped[int]
    created_at: Mapped[datetime]
    upto: Mapped[int | None]


class ViewRow(Table):
    """A comparison as the queue put it before an annotator: the record of what was shown, answered or not."""

    __tablename__ = "views"
    __table_args__ = (_one_of("drawn", DrawnHow),)
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparisons.id"), index=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"), index=True)
    exchanged: Mapped[bool]
    drawn: Mapped[str]
    probability: Mapped[float]
    pool: Mapped[int | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    token: Mapped[str | None] = mapped_column(index=True, unique=True)


class GoldRow(Table):
    """The known verdict on a comparison that measures annotators."""

    __tablename__ = "gold"
    __table_args__ = (_one_of("choice", Choice),)
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparisons.id"), unique=True)
    choice: Mapped[str]
    created_at: Mapped[datetime]


class FlagRow(Table):
    """What somebody reported: a comparison on the labelling page, or one answer in the chat."""

    __tablename__ = "flags"
    comparison_id: Mapped[int | None] = mapped_column(ForeignKey("comparisons.id"), index=True)
    response_id: Mapped[int | None] = mapped_column(ForeignKey("responses.id"), index=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    reason: Mapped[str]
    note: Mapped[str]
    created_at: Mapped[datetime]
    upheld: Mapped[bool | None]
    resolved_at: Mapped[datetime | None]


class ThumbRow(Table):
    """A thumb on a single answer: never a comparison; the latest of an annotator counts, 0 takes it back."""

    __tablename__ = "thumbs"
    __table_args__ = (CheckConstraint("value BETWEEN -1 AND 1", name="value"),)
    response_id: Mapped[int] = mapped_column(ForeignKey("responses.id"), index=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    value: Mapped[int]
    created_at: Mapped[datetime]


class ConversationRow(Table):
    """Somebody's conversation with the policy; its turns are those of the prompts and responses of its messages."""

    __tablename__ = "conversations"
    key: Mapped[str] = mapped_column(unique=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"), index=True)
    consented_at: Mapped[datetime]
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class MessageRow(Table):
    """One turn of a conversation: the user's text, or a response that was drawn (and chosen, if two were shown)."""

    __tablename__ = "messages"
    conversation_id: Mapped[int] = mapped_column(ForeignKey("conversations.id"), index=True)
    text: Mapped[str | None]
    response_id: Mapped[int | None] = mapped_column(ForeignKey("responses.id"), index=True)
    comparison_id: Mapped[int | None] = mapped_column(ForeignKey("comparisons.id"), index=True)
    created_at: Mapped[datetime]


class RequestRow(Table):
    """What a program sent under a key of its own choice: sent again, it is the same comparison.

    `account` is `account N`, or `local` where there are no accounts; `user` whose words they are, as the program said
    when it asked for two answers.
    """

    __tablename__ = "requests"
    __table_args__ = (Unique("account", "key"),)
    account: Mapped[str]
    key: Mapped[str]
    content: Mapped[str]
    comparison_id: Mapped[int] = mapped_column(ForeignKey("comparisons.id"))
    created_at: Mapped[datetime]
    user: Mapped[str | None]


class AccountRow(Table):
    """Who may sign in."""

    __tablename__ = "accounts"
    __table_args__ = (_one_of("role", AccountRole),)
    name: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    password_hash: Mapped[str | None]
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class TokenRow(Table):
    """A secret that stands for an account: a browser's session, a program's key, or a link that is good once.

    An invitation has a role and no account yet.
    """

    __tablename__ = "tokens"
    __table_args__ = (CheckConstraint("use IN ('session', 'key', 'sign_in', 'invitation')", name="use"),)
    digest: Mapped[str] = mapped_column(unique=True)
    use: Mapped[str]
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"), index=True)
    role: Mapped[str | None]
    label: Mapped[str]
    scopes: Mapped[str] = mapped_column(default="", server_default="")
    issuer_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class AuditRow(Table):
    """What was done, by which account (none: on this machine) and from where; triggers refuse to change or delete it.

    It never holds words or names, so that forgetting somebody leaves it as it is.
    """

    __tablename__ = "audit"
    event: Mapped[str]
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id"))
    address: Mapped[str]
    about: Mapped[str]
    created_at: Mapped[datetime]


class VersionRow(Table):
    """A model version."""

    __tablename__ = "versions"
    name: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    path: Mapped[str]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))
    metrics: Mapped[dict[str, Any]]
    watermark: Mapped[int]
    created_at: Mapped[datetime]


class RoundRow(Table):
    """One turn of the loop."""

    __tablename__ = "rounds"
    policy_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    reward_id: Mapped[int] = mapped_column(ForeignKey("versions.id"))
    outcome: Mapped[str]
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class ImportRow(Table):
    """A large import: once it is decided, what is staged of it counts as added."""

    __tablename__ = "imports"
    decided: Mapped[bool]
    touched_at: Mapped[datetime]
    """When the last slice was written."""
    comparisons: Mapped[int]
    verdicts: Mapped[int]
    duplicates: Mapped[int]


class StagedRow(Table):
    """A comparison with its verdicts, as JSON, that waits to be added."""

    __tablename__ = "staged"
    import_id: Mapped[int] = mapped_column(ForeignKey("imports.id"), index=True)
    content: Mapped[str]
