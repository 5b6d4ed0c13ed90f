"""Comparisons that a reward model chose: they say which, and their views that they were drawn for that.

A revision is frozen: it names columns and allowed values itself and does not import the tables of today.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

BEFORE = ("random", "disagreement", "gold", "repeat")
"""Why the queue could draw a comparison until now."""


def upgrade() -> None:
    """Add the column, and let views say so."""
    op.add_column("comparisons", sa.Column("asked_by", sa.Text(), nullable=True))
    _allow(*BEFORE, "adversarial")


def downgrade() -> None:
    """Go back to what is known there, with every verdict.

    A view that was drawn for it becomes one by disagreement of which nobody knows the pool: nothing was measured on
    those either. Its comparison becomes one that a file brought, on which an older version does measure what no queue
    drew.
    """
    op.execute("UPDATE views SET drawn = 'disagreement', pool = NULL WHERE drawn = 'adversarial'")
    _let_comparisons_change(True)
    op.execute("UPDATE comparisons SET asked_how = 'imported' WHERE asked_how = 'adversarial'")
    _let_comparisons_change(False)
    _allow(*BEFORE)
    op.drop_column("comparisons", "asked_by")


def _let_comparisons_change(may: bool) -> None:
    """Let comparisons change, or no more (0001): for as long as it takes."""
    on_server = op.get_bind().dialect.name == "postgresql"
    trigger = "comparisons_append_only" if on_server else "comparisons_refuse_update"
    if may:
        op.execute(f"DROP TRIGGER {trigger}{' ON comparisons' if on_server else ''}")
    elif on_server:
        op.execute(
            f"CREATE TRIGGER {trigger} BEFORE UPDATE OR DELETE OR TRUNCATE ON comparisons "
            "FOR EACH STATEMENT EXECUTE FUNCTION comparisons_append_only()"
        )
    else:
        op.execute(
            f"CREATE TRIGGER {trigger} BEFORE UPDATE ON comparisons "
            "BEGIN SELECT RAISE(ABORT, 'comparisons are append-only'); END"
        )


def _allow(*drawn: str) -> None:
    """Let views be drawn in these ways alone."""
    condition = f"drawn IN ({', '.join(repr(how) for how in drawn)})"
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("ck_views_drawn", "views")
        op.create_check_constraint("drawn", "views", condition)
        return
    # SQLite drops no constraint, so the table is made anew; what refers to it is checked at the end.
    columns = "id, comparison_id, annotator_id, exchanged, drawn, probability, created_at, expires_at, pool, token"
    op.execute("PRAGMA defer_foreign_keys = ON")
    op.execute(f"CREATE TEMPORARY TABLE views_before AS SELECT {columns} FROM views")
    op.drop_table("views")
    op.create_table(
        "views",
        sa.Column("id", sa.Integer(), nullable=False, primary_key=True),
        sa.Column("comparison_id", sa.Integer(), sa.ForeignKey("comparisons.id"), nullable=False),
        sa.Column("annotator_id", sa.Integer(), sa.ForeignKey("annotators.id"), nullable=False),
        sa.Column("exchanged", sa.Boolean(), nullable=False),
        sa.Column("drawn", sa.Text(), nullable=False),
        sa.Column("probability", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("pool", sa.Integer(), nullable=True),
        sa.Column("token", sa.Text(), nullable=True),
        sa.CheckConstraint(condition, name="drawn"),
    )
    op.execute(f"INSERT INTO views ({columns}) SELECT {columns} FROM views_before")
    op.execute("DROP TABLE views_before")
    op.create_index("ix_views_comparison_id", "views", ["comparison_id"])
    op.create_index("ix_views_annotator_id", "views", ["annotator_id"])
    op.create_index("ix_views_token", "views", ["token"], unique=True)
