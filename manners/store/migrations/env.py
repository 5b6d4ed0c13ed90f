"""Runs the revisions on the connection, and inside the transaction, that `manners.store.schema` hands over."""

from alembic import context

from manners.store.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
with context.begin_transaction():
    context.run_migrations()
