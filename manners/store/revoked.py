"""What was revoked stays revoked: a copy of the store brings no key, session, link or account back to life."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select, update

from manners.store.statements import chunks
from manners.store.store import Store
from manners.store.tables import AccountRow, TokenRow

KEY = "key"


Disabled = tuple[int, datetime]
"""An account by its number and when it was made: the number alone may be another's in a copy from elsewhere."""


def revoked(store: Store) -> tuple[set[str], set[Disabled]]:
    """Return the digests of the secrets that have ended, and the accounts that were disabled."""
    with store.read() as connection:
        secrets = connection.execute(select(TokenRow.digest).where(TokenRow.ended_at.is_not(None))).scalars()
        disabled = select(AccountRow.id, AccountRow.created_at).where(AccountRow.disabled_at.is_not(None))
        return set(secrets), {(row.id, row.created_at) for row in connection.execute(disabled)}


def revoke_again(store: Store, secrets: set[str], accounts: set[Disabled]) -> None:
    """End what ended meanwhile, and all that a browser holds: sessions and links; keys that are good stay so."""
    now = datetime.now(UTC)
    with store.write() as connection:
        open_ones = TokenRow.ended_at.is_(None)
        connection.execute(update(TokenRow).where(open_ones, TokenRow.use != KEY).values(ended_at=now))
        for some in chunks(secrets):
            connection.execute(update(TokenRow).where(open_ones, TokenRow.digest.in_(some)).values(ended_at=now))
        for number, made in accounts:
            same = (AccountRow.id == number) & (AccountRow.created_at == made) & AccountRow.disabled_at.is_(None)
            connection.execute(update(AccountRow).where(same).values(disabled_at=now))
