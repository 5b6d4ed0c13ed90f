"""Views say among how many comparisons theirs was drawn: what a drawing weighs depends on it.

A revision is frozen: it names columns and allowed values itself and does not import the tables of today.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of views that are there nobody knows it."""
    op.add_column("views", sa.Column("pool", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Refuse: going back would drop how comparisons were drawn."""
    raise NotImplementedError
