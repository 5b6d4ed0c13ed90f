"""What the comparisons of an evaluation count for: a bet is placed once, and nothing changes it.

A revision is frozen: it names columns and allowed values itself and does not import the tables of today.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table, and the triggers that make it append-only."""
    op.create_table(
        "bets",
        sa.Column("id", sa.Integer(), nullable=False, primary_key=True),
        sa.Column("comparison_id", sa.Integer(), sa.ForeignKey("comparisons.id"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("stake", sa.Double(), nullable=False),
        sa.Column("read", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("comparison_id", "kind"),
        sa.CheckConstraint("kind IN ('human', 'ai', 'simulated')", name="kind"),
        sa.CheckConstraint("stake BETWEEN -1 AND 1", name="stake"),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION bets_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'bets are append-only'; END $$"
        )
        op.execute(
            "CREATE TRIGGER bets_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON bets "
            "FOR EACH STATEMENT EXECUTE FUNCTION bets_append_only()"
        )
        return
    for event, condition in {
        "UPDATE": "",
        "DELETE": "",
        # `INSERT OR REPLACE` deletes without telling the delete trigger, so a taken id is refused on insertion too.
        "INSERT": "WHEN EXISTS (SELECT 1 FROM bets WHERE id = NEW.id) ",
    }.items():
        op.execute(
            f"CREATE TRIGGER bets_refuse_{event.lower()} BEFORE {event} ON bets "
            f"{condition}BEGIN SELECT RAISE(ABORT, 'bets are append-only'); END"
        )


def downgrade() -> None:
    """Refuse: a bet that was placed stays placed."""
    raise NotImplementedError
