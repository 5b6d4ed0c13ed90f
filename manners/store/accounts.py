"""Who may sign in, and the secrets that stand for them: only digests of secrets are stored."""

from __future__ import annotations

import functools
import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from sqlalchemy import Connection, Row, insert, select, update

from manners.errors import MannersError
from manners.store.store import Store
from manners.store.tables import AccountRow, TokenRow
from manners.types import AccountRole

SHORTEST_PASSWORD = 10
LONGEST_NAME = 80
SPENT = "this link was used already, or has expired; ask for a new one"

_hasher = PasswordHasher()


class TokenUse(StrEnum):
    """What a secret is for."""

    SESSION = "session"
    """A browser that has signed in."""
    KEY = "key"
    """A program."""
    SIGN_IN = "sign_in"
    """A link that signs in once."""
    INVITATION = "invitation"
    """A link with which somebody makes an account once."""


LIFETIME = {
    TokenUse.SESSION: timedelta(days=14),
    TokenUse.KEY: None,
    TokenUse.SIGN_IN: timedelta(hours=1),
    TokenUse.INVITATION: timedelta(days=7),
}


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who may sign in; as an annotator a person of the same name."""

    name: str
    role: AccountRole
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """A program's key, without its secret."""

    id: int
    account: str
    label: str
    created_at: datetime


class Accounts:
    """The accounts of a workspace; safe to use from many threads."""

    def __init__(self, store: Store) -> None:
        """Keep them in a store."""
        self._store = store

    def all(self) -> list[Account]:
        """Return the accounts, oldest first."""
        with self._store.read() as connection:
            rows = connection.execute(select(AccountRow).order_by(AccountRow.id)).all()
        return [_account(row) for row in rows]

    def add(self, name: str, role: AccountRole, password: str | None = None) -> Account:
        """Add an account; one without a password signs in by links. Raises MannersError on a taken or unfit name."""
        hashed = None if password is None else _hash(password)
        with self._store.write() as connection:
            return _insert(connection, name, role, hashed)

    def join(self, invitation: str, name: str, password: str) -> Account:
        """Take up an invitation: make the account that it is for.

        Raises MannersError on a taken or unfit name, and on an invitation that is not good (any more).
        """
        if self.invitation(invitation) is None:  # before the password is hashed, which costs strangers nothing else
            raise MannersError(SPENT)
        hashed = _hash(password)
        with self._store.write() as connection:
            token = _spend(connection, invitation, TokenUse.INVITATION)
            return _insert(connection, name, AccountRole(token.role), hashed)

    def set_password(self, name: str, password: str) -> None:
        """Give an account a new password, and end its sessions."""
        hashed = _hash(password)
        with self._store.write() as connection:
            account = self._known(connection, name)
            connection.execute(update(AccountRow).where(AccountRow.id == account.id).values(password_hash=hashed))
            _end(connection, account.id, TokenUse.SESSION)

    def set_role(self, name: str, role: AccountRole) -> None:
        """Let an account do more, or less. Raises MannersError where nobody would be owner any more."""
        with self._store.write() as connection:
            account = self._known(connection, name)
            if role is not AccountRole.OWNER:
                _keep_an_owner(connection, account)
            connection.execute(update(AccountRow).where(AccountRow.id == account.id).values(role=role.value))

    def disable(self, name: str) -> None:
        """Let an account in no more, and end its sessions and keys; what it said stays.

        Raises MannersError where nobody would be owner any more.
        """
        with self._store.write() as connection:
            account = self._known(connection, name)
            _keep_an_owner(connection, account)
            values = {"disabled_at": datetime.now(UTC)}
            connection.execute(update(AccountRow).where(AccountRow.id == account.id).values(values))
            _end(connection, account.id, *TokenUse)

    def check(self, name: str, password: str) -> Account | None:
        """Return the account if the password is its own; takes as long where there is no such account."""
        with self._store.read() as connection:
            row = connection.execute(select(AccountRow).where(AccountRow.name == name)).first()
        hashed = row.password_hash if row is not None and row.disabled_at is None else None
        try:
            _hasher.verify(hashed or _nobody(), password)
        except (VerifyMismatchError, InvalidHashError):
            return None
        return None if row is None or hashed is None else _account(row)

    def issue(self, use: TokenUse, account: str | None = None, role: AccountRole | None = None, label: str = "") -> str:
        """Return a new secret for an account, or for whoever takes up an invitation with a role."""
        secret = secrets.token_urlsafe(32)
        now = datetime.now(UTC)
        life = LIFETIME[use]
        with self._store.write() as connection:
            row = {
                "digest": _digest(secret),
                "use": use.value,
                "account_id": None if account is None else self._known(connection, account).id,
                "role": None if role is None else role.value,
                "label": label,
                "created_at": now,
                "expires_at": None if life is None else now + life,
            }
            connection.execute(insert(TokenRow), row)
        return secret

    def holder(self, secret: str, use: TokenUse) -> Account | None:
        """Return the account that a session or a key stands for, or None if it is not good (any more)."""
        with self._store.read() as connection:
            token = _token(connection, secret, use)
            return None if token is None else _holder(connection, token.account_id)

    def invitation(self, secret: str) -> AccountRole | None:
        """Return the role that an invitation gives, or None if it is not good (any more)."""
        with self._store.read() as connection:
            token = _token(connection, secret, TokenUse.INVITATION)
            return None if token is None else AccountRole(token.role)

    def follow(self, link: str) -> Account:
        """Use up a sign-in link, and return its account. Raises MannersError if it is not good (any more)."""
        with self._store.write() as connection:
            account = _holder(connection, _spend(connection, link, TokenUse.SIGN_IN).account_id)
        if account is None:
            raise MannersError("the account of this link is disabled; ask an owner")
        return account

    def end(self, secret: str) -> None:
        """End a session."""
        query = update(TokenRow).where(TokenRow.digest == _digest(secret), TokenRow.ended_at.is_(None))
        with self._store.write() as connection:
            connection.execute(query.values(ended_at=datetime.now(UTC)))

    def keys(self, account: str | None = None) -> list[Key]:
        """Return the keys that are good, of one account or of all."""
        query = (
            select(TokenRow, AccountRow.name)
            .join(AccountRow, TokenRow.account_id == AccountRow.id)
            .where(TokenRow.use == TokenUse.KEY.value, TokenRow.ended_at.is_(None))
            .order_by(TokenRow.id)
        )
        with self._store.read() as connection:
            rows = connection.execute(query if account is None else query.where(AccountRow.name == account)).all()
        return [Key(row.id, row.name, row.label, row.created_at) for row in rows]

    def end_key(self, key: int) -> None:
        """Revoke a key. Raises MannersError where there is none of that number."""
        query = update(TokenRow).where(
            TokenRow.id == key, TokenRow.use == TokenUse.KEY.value, TokenRow.ended_at.is_(None)
        )
        with self._store.write() as connection:
            if not connection.execute(query.values(ended_at=datetime.now(UTC))).rowcount:
                raise MannersError(f"there is no key {key}; `manners accounts list` shows those there are")

    def _known(self, connection: Connection, name: str) -> Row[AccountRow]:
        row = connection.execute(
            select(AccountRow).where(AccountRow.name == name, AccountRow.disabled_at.is_(None))
        ).first()
        if row is None:
            raise MannersError(f"there is no account {name}; `manners accounts list` shows those there are")
        return row


def _hash(password: str) -> str:
    if len(password) < SHORTEST_PASSWORD:
        raise MannersError(f"a password takes at least {SHORTEST_PASSWORD} characters")
    return _hasher.hash(password)


@functools.cache
def _nobody() -> str:
    """What the password of an account that is not there is held against, so that its absence does not show in time."""
    return _hasher.hash(secrets.token_urlsafe(16))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _token(connection: Connection, secret: str, use: TokenUse) -> Row[TokenRow] | None:
    query = select(TokenRow).where(
        TokenRow.digest == _digest(secret), TokenRow.use == use.value, TokenRow.ended_at.is_(None)
    )
    row = connection.execute(query).first()
    return row if row is not None and (row.expires_at is None or row.expires_at > datetime.now(UTC)) else None


def _spend(connection: Connection, secret: str, use: TokenUse) -> Row[TokenRow]:
    token = _token(connection, secret, use)
    if token is None:
        raise MannersError(SPENT)
    connection.execute(update(TokenRow).where(TokenRow.id == token.id).values(ended_at=datetime.now(UTC)))
    return token


def _insert(connection: Connection, name: str, role: AccountRole, hashed: str | None) -> Account:
    if not 1 <= len(name) <= LONGEST_NAME or name != name.strip() or not name.isprintable():
        raise MannersError(f"an account's name takes 1 to {LONGEST_NAME} visible characters, without blanks around it")
    if connection.execute(select(AccountRow.id).where(AccountRow.name == name)).first():
        raise MannersError(f"there is an account {name} already; choose another name")
    row = {"name": name, "role": role.value, "password_hash": hashed, "created_at": datetime.now(UTC)}
    connection.execute(insert(AccountRow), row)
    return Account(name, role)


def _holder(connection: Connection, account: int) -> Account | None:
    row = connection.execute(
        select(AccountRow).where(AccountRow.id == account, AccountRow.disabled_at.is_(None))
    ).first()
    return None if row is None else _account(row)


def _end(connection: Connection, account: int, *uses: TokenUse) -> None:
    query = update(TokenRow).where(
        TokenRow.account_id == account, TokenRow.use.in_([use.value for use in uses]), TokenRow.ended_at.is_(None)
    )
    connection.execute(query.values(ended_at=datetime.now(UTC)))


def _keep_an_owner(connection: Connection, account: Row[AccountRow]) -> None:
    others = select(AccountRow.id).where(
        AccountRow.role == AccountRole.OWNER.value, AccountRow.disabled_at.is_(None), AccountRow.id != account.id
    )
    if account.role == AccountRole.OWNER.value and connection.execute(others).first() is None:
        raise MannersError(f"{account.name} is the only owner; make another account an owner first")


def _account(row: Row[AccountRow]) -> Account:
    return Account(row.name, AccountRole(row.role), row.disabled_at is not None)
