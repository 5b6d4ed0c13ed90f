"""What was done, by which account and from where; and reasons of a verdict, which are words, can be blanked.

A revision is frozen: it names columns and allowed values itself and does not import the tables of today. What may not
change of a verdict is every column that it has by now but the two that hold words.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None
WORDS = {"comment", "reasons"}


def upgrade() -> None:
    """Create the table, and the triggers that make it append-only; let a verdict's reasons go."""
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False, primary_key=True),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Integer(), sa.ForeignKey("accounts.id"), nullable=True),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("about", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    columns = [column["name"] for column in sa.inspect(op.get_bind()).get_columns("verdicts")]
    kept = ", ".join(column for column in columns if column not in WORDS)
    if op.get_bind().dialect.name == "postgresql":
        _on_postgresql(kept)
    else:
        _on_sqlite(kept)


def _on_postgresql(kept: str) -> None:
    op.execute(
        "CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the log is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()"
    )
    refuse = "EXECUTE FUNCTION verdicts_append_only()"
    op.execute("DROP TRIGGER verdicts_refuse_update ON verdicts")
    op.execute(f"CREATE TRIGGER verdicts_refuse_update BEFORE UPDATE OF {kept} ON verdicts FOR EACH STATEMENT {refuse}")
    op.execute(
        "CREATE TRIGGER verdicts_refuse_reasons BEFORE UPDATE OF reasons ON verdicts "
        f"FOR EACH ROW WHEN (NEW.reasons::text <> '[]') {refuse}"
    )


def _on_sqlite(kept: str) -> None:
    for event, condition in {
        "UPDATE": "",
        "DELETE": "",
        # `INSERT OR REPLACE` deletes without telling the delete trigger, so a taken id is refused on insertion too.
        "INSERT": "WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) ",
    }.items():
        op.execute(
            f"CREATE TRIGGER audit_refuse_{event.lower()} BEFORE {event} ON audit "
            f"{condition}BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END"
        )
    refuse = "BEGIN SELECT RAISE(ABORT, 'verdicts are append-only'); END"
    op.execute("DROP TRIGGER verdicts_refuse_update")
    op.execute(f"CREATE TRIGGER verdicts_refuse_update BEFORE UPDATE OF {kept} ON verdicts {refuse}")
    op.execute(
        f"CREATE TRIGGER verdicts_refuse_reasons BEFORE UPDATE OF reasons ON verdicts WHEN NEW.reasons <> '[]' {refuse}"
    )


def downgrade() -> None:
    """Refuse: what was done stays on record."""
    raise NotImplementedError
