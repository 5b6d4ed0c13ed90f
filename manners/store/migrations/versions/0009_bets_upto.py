"""Up to which verdict a bet was placed: verdicts that are taken back leave those that came later where they were.

A revision is frozen: it names columns and allowed values itself and does not import the tables of today. Of bets that
were placed before it is not known.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("bets", sa.Column("upto", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Refuse: what came too late could not be told."""
    raise NotImplementedError
