"""A view is answered under a random token, which stands for it alone, also in a store that was put back from a copy.

A revision is frozen: it names columns and allowed values itself and does not import the tables of today.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; a view that is there keeps its number, under which a verdict may still wait in a browser."""
    op.add_column("views", sa.Column("token", sa.Text(), nullable=True))
    op.execute("UPDATE views SET token = CAST(id AS TEXT)")
    op.create_index("ix_views_token", "views", ["token"], unique=True)


def downgrade() -> None:
    """Refuse: going back would let a verdict land on another pair."""
    raise NotImplementedError
