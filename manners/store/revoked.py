"""What was revoked stays revoked: a copy of the store brings no key, session, link or account back to life."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select, update

from manners.store.statements import chunks
from manners.store.store import Store
from manners.store.tables import AccountRow, TokenRow

KEY = "key"


def revoked(store: Store) -> tuple[set[str], set[str]]:
    """Return the digests of the secrets that have ended, and the names of the accounts that were disabled."""
    with store.read() as connection:
        secrets = connection.execute(select(TokenRow.digest).where(TokenRow.ended_at.is_not(None))).scalars()
        names = connection.execute(select(AccountRow.name).where(AccountRow.disabled_at.is_not(None))).scalars()
        return set(secrets), set(names)


def revoke_again(store: Store, secrets: set[str], accounts: set[str]) -> None:
    """End what ended meanwhile, and all that a browser holds: sessions and links; keys that are good stay so."""
    now = datetime.now(UTC)
    with store.write() as connection:
        open_ones = TokenRow.ended_at.is_(None)
        connection.execute(update(TokenRow).where(open_ones, TokenRow.use != KEY).values(ended_at=now))
        for some in chunks(secrets):
            connection.execute(update(TokenRow).where(open_ones, TokenRow.digest.in_(some)).values(ended_at=now))
        for some in chunks(accounts):
            enabled = AccountRow.disabled_at.is_(None)
            connection.execute(update(AccountRow).where(enabled, AccountRow.name.in_(some)).values(disabled_at=now))
