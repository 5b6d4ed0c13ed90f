"""The first tables, and the triggers that make comparisons and verdicts append-only.

A revision is frozen: it names columns and allowed values itself and does not import the tables of today.
"""

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = ("comparisons", "verdicts")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False)


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.Integer(), nullable=False, primary_key=True)


def _refers(name: str, table: str, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), sa.ForeignKey(f"{table}.id"), nullable=nullable)


def _created_at() -> sa.Column[datetime]:
    return sa.Column("created_at", sa.DateTime(timezone=True), nullable=False)


def upgrade() -> None:
    """Create everything."""
    _create_texts()
    _create_verdicts()
    _create_versions()
    for table in APPEND_ONLY:
        _refuse_changes(table)


def _create_texts() -> None:
    op.create_table(
        "prompts",
        _id(),
        _text("digest"),
        sa.Column("turns", sa.JSON(), nullable=False),
        _text("use"),
        _text("source"),
        _created_at(),
        sa.UniqueConstraint("digest"),
    )
    op.create_table(
        "responses",
        _id(),
        _refers("prompt_id", "prompts"),
        _text("digest"),
        _text("text"),
        _text("author"),
        _text("finish_reason"),
        sa.Column("sampling", sa.JSON(), nullable=True),
        _created_at(),
        sa.UniqueConstraint("digest"),
    )
    op.create_index("ix_responses_prompt_id", "responses", ["prompt_id"])
    op.create_table(
        "comparisons",
        _id(),
        _refers("left_id", "responses"),
        _refers("right_id", "responses"),
        _text("asked_how"),
        sa.Column("ask_probability", sa.Double(), nullable=True),
        _created_at(),
    )
    op.create_index("ix_comparisons_left_id", "comparisons", ["left_id"])
    op.create_index("ix_comparisons_right_id", "comparisons", ["right_id"])


def _create_verdicts() -> None:
    op.create_table(
        "annotators",
        _id(),
        _text("name"),
        _text("kind"),
        sa.UniqueConstraint("name", "kind"),
        sa.CheckConstraint("kind IN ('human', 'ai', 'simulated')", name="kind"),
    )
    op.create_table(
        "verdicts",
        _id(),
        _refers("comparison_id", "comparisons"),
        _refers("annotator_id", "annotators"),
        _text("choice"),
        sa.Column("strength", sa.Integer(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("reasons", sa.JSON(), nullable=False),
        _text("comment"),
        _created_at(),
        sa.CheckConstraint("choice IN ('left', 'right', 'tie', 'both_bad', 'skip')", name="choice"),
        sa.CheckConstraint("strength BETWEEN 1 AND 3", name="strength"),
    )
    op.create_index("ix_verdicts_comparison_id", "verdicts", ["comparison_id"])
    op.create_index("ix_verdicts_annotator_id", "verdicts", ["annotator_id"])


def _create_versions() -> None:
    op.create_table(
        "versions",
        _id(),
        _text("name"),
        _text("kind"),
        _text("path"),
        _refers("parent_id", "versions", nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("watermark", sa.Integer(), nullable=False),
        _created_at(),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "rounds",
        _id(),
        _refers("policy_id", "versions"),
        _refers("reward_id", "versions"),
        _text("outcome"),
        sa.Column("metrics", sa.JSON(), nullable=False),
        _created_at(),
    )


def _refuse_changes(table: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{table} are append-only'; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
        )
        return
    # `INSERT OR REPLACE` deletes without telling the delete trigger, so a taken id is refused on insertion too.
    taken = f"WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id) "
    for event, condition in {"UPDATE": "", "DELETE": "", "INSERT": taken}.items():
        op.execute(
            f"CREATE TRIGGER {table}_refuse_{event.lower()} BEFORE {event} ON {table} "
            f"{condition}BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
        )


def downgrade() -> None:
    """Refuse: going back would drop what people said."""
    raise NotImplementedError
