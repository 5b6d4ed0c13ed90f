"""A stage for large imports: what is to be added lies there until it is complete, and is added a slice at a time.

A revision is frozen: it names columns and allowed values itself and does not import the tables of today.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "imports",
        sa.Column("id", sa.Integer(), nullable=False, primary_key=True),
        sa.Column("decided", sa.Boolean(), nullable=False),
        sa.Column("touched_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("comparisons", sa.Integer(), nullable=False),
        sa.Column("verdicts", sa.Integer(), nullable=False),
        sa.Column("duplicates", sa.Integer(), nullable=False),
    )
    op.create_table(
        "staged",
        sa.Column("id", sa.Integer(), nullable=False, primary_key=True),
        sa.Column("import_id", sa.Integer(), sa.ForeignKey("imports.id"), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
    )
    op.create_index("ix_staged_import_id", "staged", ["import_id"])


def downgrade() -> None:
    """Refuse: what is staged would be lost."""
    raise NotImplementedError
