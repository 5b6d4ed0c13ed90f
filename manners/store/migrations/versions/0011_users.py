"""Whose words a pair of a program's holds: the name that the program gave with what it asked, so that it can go too.

A revision is frozen: it names columns and allowed values itself and does not import the tables of today. Of pairs that
were opened before it is not known, nor of those that a program asks without a name.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("requests", sa.Column("user", sa.Text(), nullable=True))


def downgrade() -> None:
    """Go back to what is known there: an account, and no name."""
    op.drop_column("requests", "user")
