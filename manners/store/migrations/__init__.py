"""How the tables came to be, one Alembic revision after another; `Store.open` brings a store up to the newest."""
