"""What the web pages need: accounts, views, flags, conversations; a verdict can be taken back, a comment blanked.

A revision is frozen: it names columns and allowed values itself and does not import the tables of today.
"""

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEPT = "id, comparison_id, annotator_id, choice, strength, seconds, reasons, created_at, exchanged, view_id"
"""Columns of verdicts that nothing may change; a comment may be blanked, for it is a person's words."""


def _text(name: str, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=nullable)


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.Integer(), nullable=False, primary_key=True)


def _refers(name: str, table: str, nullable: bool = False, unique: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), sa.ForeignKey(f"{table}.id"), nullable=nullable, unique=unique)


def _at(name: str = "created_at", nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    """Create the new tables, and give verdicts two columns."""
    _create_accounts()
    _create_views()
    _create_chat()
    # Plain SQL, which both databases read alike: Alembic does not add a column that refers to a table on SQLite.
    op.execute("ALTER TABLE verdicts ADD COLUMN exchanged BOOLEAN DEFAULT false NOT NULL")
    op.execute("ALTER TABLE verdicts ADD COLUMN view_id INTEGER CONSTRAINT fk_verdicts_view_id REFERENCES views (id)")
    op.create_index("ix_verdicts_view_id", "verdicts", ["view_id"], unique=True)
    op.create_table("withdrawals", _id(), _refers("verdict_id", "verdicts", unique=True), _at())
    _let_comments_be_blanked()


def _create_accounts() -> None:
    op.create_table(
        "accounts",
        _id(),
        sa.Column("name", sa.Text(), nullable=False, unique=True),
        _text("role"),
        _text("password_hash", nullable=True),
        _at(),
        _at("disabled_at", nullable=True),
        sa.CheckConstraint("role IN ('owner', 'reviewer', 'annotator', 'viewer')", name="role"),
    )
    op.create_table(
        "tokens",
        _id(),
        sa.Column("digest", sa.Text(), nullable=False, unique=True),
        _text("use"),
        _refers("account_id", "accounts", nullable=True),
        _text("role", nullable=True),
        _text("label"),
        _at(),
        _at("expires_at", nullable=True),
        _at("ended_at", nullable=True),
        sa.CheckConstraint("use IN ('session', 'key', 'sign_in', 'invitation')", name="use"),
    )
    op.create_index("ix_tokens_account_id", "tokens", ["account_id"])


def _create_views() -> None:
    op.create_table(
        "views",
        _id(),
        _refers("comparison_id", "comparisons"),
        _refers("annotator_id", "annotators"),
        sa.Column("exchanged", sa.Boolean(), nullable=False),
        _text("drawn"),
        sa.Column("probability", sa.Double(), nullable=False),
        _at(),
        _at("expires_at"),
        sa.CheckConstraint("drawn IN ('random', 'disagreement', 'gold', 'repeat')", name="drawn"),
    )
    op.create_index("ix_views_comparison_id", "views", ["comparison_id"])
    op.create_index("ix_views_annotator_id", "views", ["annotator_id"])
    op.create_table(
        "gold",
        _id(),
        _refers("comparison_id", "comparisons", unique=True),
        _text("choice"),
        _at(),
        sa.CheckConstraint("choice IN ('left', 'right', 'tie', 'both_bad', 'skip')", name="choice"),
    )
    op.create_table(
        "flags",
        _id(),
        _refers("comparison_id", "comparisons", nullable=True),
        _refers("response_id", "responses", nullable=True),
        _refers("annotator_id", "annotators"),
        _text("reason"),
        _text("note"),
        _at(),
        sa.Column("upheld", sa.Boolean(), nullable=True),
        _at("resolved_at", nullable=True),
    )
    op.create_index("ix_flags_comparison_id", "flags", ["comparison_id"])
    op.create_index("ix_flags_response_id", "flags", ["response_id"])


def _create_chat() -> None:
    op.create_table(
        "thumbs",
        _id(),
        _refers("response_id", "responses"),
        _refers("annotator_id", "annotators"),
        sa.Column("value", sa.Integer(), nullable=False),
        _at(),
        sa.CheckConstraint("value BETWEEN -1 AND 1", name="value"),
    )
    op.create_index("ix_thumbs_response_id", "thumbs", ["response_id"])
    op.create_table(
        "conversations",
        _id(),
        sa.Column("key", sa.Text(), nullable=False, unique=True),
        _refers("annotator_id", "annotators"),
        _at("consented_at"),
        _at(),
        _at("deleted_at", nullable=True),
    )
    op.create_index("ix_conversations_annotator_id", "conversations", ["annotator_id"])
    op.create_table(
        "messages",
        _id(),
        _refers("conversation_id", "conversations"),
        _text("text", nullable=True),
        _refers("response_id", "responses", nullable=True),
        _refers("comparison_id", "comparisons", nullable=True),
        _at(),
    )
    for column in ("conversation_id", "response_id", "comparison_id"):
        op.create_index(f"ix_messages_{column}", "messages", [column])
    op.create_table(
        "requests",
        _id(),
        _text("account"),
        _text("key"),
        _text("content"),
        _refers("comparison_id", "comparisons"),
        _at(),
        sa.UniqueConstraint("account", "key"),
    )


def _let_comments_be_blanked() -> None:
    if op.get_bind().dialect.name == "postgresql":
        refuse = "EXECUTE FUNCTION verdicts_append_only()"
        op.execute("DROP TRIGGER verdicts_append_only ON verdicts")
        op.execute(
            f"CREATE TRIGGER verdicts_append_only BEFORE DELETE OR TRUNCATE ON verdicts FOR EACH STATEMENT {refuse}"
        )
        op.execute(
            f"CREATE TRIGGER verdicts_refuse_update BEFORE UPDATE OF {KEPT} ON verdicts FOR EACH STATEMENT {refuse}"
        )
        op.execute(
            "CREATE TRIGGER verdicts_refuse_comment BEFORE UPDATE OF comment ON verdicts "
            f"FOR EACH ROW WHEN (NEW.comment <> '') {refuse}"
        )
        return
    refuse = "BEGIN SELECT RAISE(ABORT, 'verdicts are append-only'); END"
    op.execute("DROP TRIGGER verdicts_refuse_update")
    op.execute(f"CREATE TRIGGER verdicts_refuse_update BEFORE UPDATE OF {KEPT} ON verdicts {refuse}")
    op.execute(
        f"CREATE TRIGGER verdicts_refuse_comment BEFORE UPDATE OF comment ON verdicts WHEN NEW.comment <> '' {refuse}"
    )


def downgrade() -> None:
    """Refuse: going back would drop what people said."""
    raise NotImplementedError
