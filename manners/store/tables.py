"""The tables, one set for SQLite and PostgreSQL; how they came to be is in `migrations`."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import JSON, CheckConstraint, DateTime, Dialect, Double, ForeignKey, MetaData, Text, TypeDecorator
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from manners.types import AnnotatorKind, Choice


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


class AnnotatorRow(Table):
    """Whoever gives verdicts; one name may be a person's and, apart from that, a model's."""

    __tablename__ = "annotators"
    __table_args__ = (Unique("name", "kind"), _one_of("kind", AnnotatorKind))
    name: Mapped[str]
    kind: Mapped[str]


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
