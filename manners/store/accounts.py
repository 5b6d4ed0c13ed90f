"""Who may sign in, and with which secrets; who somebody is, is an account's id, never a name."""

from __future__ import annotations

import functools
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from sqlalchemy import Connection, Row, insert, select, update

from manners.errors import MannersError
from manners.store import tokens
from manners.store.names import LONGEST_NAME, fit_name, look_alike, spelt
from manners.store.statements import take_turns
from manners.store.store import Store
from manners.store.tables import AccountRow, TokenRow
from manners.store.tokens import PLAIN, Scope, Terms, Token, TokenUse
from manners.types import AccountRole

__all__ = ["LONGEST_NAME", "LONGEST_PASSWORD", "SPENT", "Account", "Accounts", "Pass", "TokenUse"]

SHORTEST_PASSWORD = 10
LONGEST_PASSWORD = 1000
SPENT = "this link was used already, or has expired; ask for a new one"

_hasher = PasswordHasher()


class Hasher(Protocol):
    """Whoever hashes passwords."""

    def hash(self, password: str, /) -> str:
        """Return the hash of a password."""
        ...

    def verify(self, hashed: str, password: str, /) -> bool:
        """Return whether a hash is a password's, or raise VerifyMismatchError or InvalidHashError."""
        ...


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who may sign in; as an annotator a person of their own."""

    name: str
    role: AccountRole
    disabled: bool = False
    id: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Pass:
    """What a secret lets in."""

    account: Account
    scopes: frozenset[Scope]
    issuer: int | None
    """Whose right it rests on."""


class Accounts:
    """The accounts of a workspace; safe to use from many threads."""

    def __init__(self, store: Store, hasher: Hasher | None = None) -> None:
        """Keep them in a store; passwords are hashed by whoever asks, unless there is somebody for it."""
        self._store = store
        self._hasher = hasher

    def all(self) -> list[Account]:
        """Return the accounts, oldest first."""
        with self._store.read() as connection:
            rows = connection.execute(select(AccountRow).order_by(AccountRow.id)).all()
        return [_account(row) for row in rows]

    def exist(self) -> bool:
        """Return whether there are any, disabled ones too."""
        with self._store.read() as connection:
            return connection.execute(select(AccountRow.id).limit(1)).first() is not None

    def add(self, name: str, role: AccountRole, password: str | None = None) -> Account:
        """Add an account; one without a password signs in by links. Raises MannersError on a taken or unfit name."""
        hashed = None if password is None else self._hash(password)
        with self._store.write() as connection:
            return _insert(connection, name, role, hashed)

    def join(self, invitation: str, name: str, password: str) -> Account:
        """Take up an invitation: make the account that it is for.

        Raises MannersError on a taken or unfit name, and on an invitation that is not good (any more).
        """
        if self.invitation(invitation) is None:  # before the password is hashed, which costs strangers nothing else
            raise MannersError(SPENT)
        hashed = self._hash(password)
        with self._store.write() as connection:
            take_turns(connection, AccountRow)  # before the link is used up: whoever disables its issuer does so too
            token = _spend(connection, invitation, TokenUse.INVITATION)
            return _insert(connection, name, AccountRole(token.role), hashed)

    def set_password(self, name: str, password: str) -> None:
        """Give an account a new password, and end its sessions and the links that would sign it in."""
        hashed = self._hash(password)
        with self._store.write() as connection:
            _set_hash(connection, _known(connection, name).id, hashed)

    def change_password(self, account: int, old: str, new: str) -> None:
        """Give an account a new password, as `set_password`. Raises MannersError where the old one is not its own."""
        with self._store.read() as connection:
            row = connection.execute(select(AccountRow).where(AccountRow.id == account)).one()
        if row.password_hash is None:
            raise MannersError("this account has no password yet: ask an owner for a sign-in link, and set one there")
        if not self._is_password(row.password_hash, old):
            raise MannersError("that is not the password of this account: try again, or ask an owner for a link")
        hashed = self._hash(new)
        with self._store.write() as connection:
            _set_hash(connection, account, hashed)

    def set_role(self, name: str, role: AccountRole) -> None:
        """Let an account do more, or less; what an owner has issued ends with the role.

        Raises MannersError where nobody would be owner any more.
        """
        with self._store.write() as connection:
            account = _known(connection, name)
            if role is not AccountRole.OWNER:
                _keep_an_owner(connection, account)
                tokens.end(connection, TokenRow.issuer_id == account.id)
            connection.execute(update(AccountRow).where(AccountRow.id == account.id).values(role=role.value))

    def disable(self, name: str) -> None:
        """Let an account in no more, and end its sessions and keys, and what it has issued; what it said stays.

        Raises MannersError where nobody would be owner any more.
        """
        with self._store.write() as connection:
            account = _known(connection, name)
            _keep_an_owner(connection, account)
            values = {"disabled_at": datetime.now(UTC)}
            connection.execute(update(AccountRow).where(AccountRow.id == account.id).values(values))
            tokens.end(connection, (TokenRow.account_id == account.id) | (TokenRow.issuer_id == account.id))

    def enable(self, name: str) -> None:
        """Let a disabled account in again, with the password and the role it had; what has ended stays ended."""
        with self._store.write() as connection:
            query = update(AccountRow).where(AccountRow.name == spelt(name), AccountRow.disabled_at.is_not(None))
            if not connection.execute(query.values(disabled_at=None)).rowcount:
                raise MannersError(f"there is no disabled account {name}; `manners accounts list` shows all there are")

    def check(self, name: str, password: str) -> Account | None:
        """Return the account if the password is its own; takes as long where there is no such account."""
        with self._store.read() as connection:
            row = connection.execute(select(AccountRow).where(AccountRow.name == spelt(name))).first()
        hashed = row.password_hash if row is not None and row.disabled_at is None else None
        if not self._is_password(hashed or _nobody(), password):
            return None
        return None if row is None or hashed is None else _account(row)

    def issue(
        self,
        use: TokenUse,
        account: str | None = None,
        role: AccountRole | None = None,
        label: str = "",
        terms: Terms = PLAIN,
    ) -> str:
        """Return a new secret for an account, or for whoever takes up an invitation with a role.

        A session more than an account may have ends its oldest one.

        Raises MannersError where there is no such account, and where its issuer may issue nothing (any more).
        """
        with self._store.write() as connection:
            if terms.issuer is not None and use is not TokenUse.SESSION:
                _check_issuer(connection, terms.issuer)
            whose = None if account is None else _known(connection, account).id
            secret = tokens.insert_token(connection, use, whose, role, label, terms)
            if use is TokenUse.SESSION and whose is not None:
                tokens.end_oldest_sessions(connection, whose)
            return secret

    def admit(self, secret: str, use: TokenUse) -> Pass | None:
        """Return what a session, a key or a sign-in link lets in, or None if it is not good (any more)."""
        with self._store.read() as connection:
            return _pass(connection, tokens.find(connection, secret, use))

    def holder(self, secret: str, use: TokenUse) -> Account | None:
        """Return the account that a secret stands for, or None if it is not good (any more)."""
        found = self.admit(secret, use)
        return None if found is None else found.account

    def knew(self, secret: str) -> str | None:
        """Return the account whose session this is, or was: whoever has it has been signed in here before."""
        query = select(AccountRow.name).join(TokenRow, TokenRow.account_id == AccountRow.id)
        was = (TokenRow.digest == tokens.digest(secret)) & (TokenRow.use == TokenUse.SESSION.value)
        with self._store.read() as connection:
            return connection.execute(query.where(was, AccountRow.disabled_at.is_(None))).scalar_one_or_none()

    def invitation(self, secret: str) -> AccountRole | None:
        """Return the role that an invitation gives, or None if it is not good (any more)."""
        with self._store.read() as connection:
            token = tokens.find(connection, secret, TokenUse.INVITATION)
            return None if token is None else AccountRole(token.role)

    def follow(self, link: str, password: str | None = None) -> Pass:
        """Use up a sign-in link, set the password if one is given, and return whom it lets in.

        Raises MannersError if the link is not good (any more).
        """
        if password is not None and self.admit(link, TokenUse.SIGN_IN) is None:
            raise MannersError(SPENT)  # before the password is hashed
        hashed = None if password is None else self._hash(password)
        with self._store.write() as connection:
            found = _pass(connection, _spend(connection, link, TokenUse.SIGN_IN))
            if found is None:
                raise MannersError(SPENT)
            if hashed is not None:
                _set_hash(connection, found.account.id, hashed)
        return found

    def end(self, secret: str) -> None:
        """End a session."""
        with self._store.write() as connection:
            tokens.end(connection, TokenRow.digest == tokens.digest(secret))

    def tokens(self, *uses: TokenUse, account: str | None = None) -> list[Token]:
        """Return the secrets for these uses (for all, if none is named) that are good, of one account or of all."""
        with self._store.read() as connection:
            whose = None if account is None else _known(connection, account).id
            return tokens.listed(connection, uses or tuple(TokenUse), whose)

    def revoke(self, number: int, account: int | None = None) -> None:
        """End a session, a key, a link or an invitation, where `account` is said one of its own alone.

        Raises MannersError where there is none of that number.
        """
        which = TokenRow.id == number
        with self._store.write() as connection:
            if not tokens.end(connection, which if account is None else which & (TokenRow.account_id == account)):
                raise MannersError(
                    f"there is nothing of number {number} to end; `manners accounts list` and `manners accounts"
                    " sessions` show what there is"
                )

    def revoke_all(self, name: str) -> int:
        """End all that stands for an account, and all that it has issued; return how many these were."""
        with self._store.write() as connection:
            account = _known(connection, name).id
            return tokens.end(connection, (TokenRow.account_id == account) | (TokenRow.issuer_id == account))

    def _hash(self, password: str) -> str:
        if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
            raise MannersError(
                f"a password takes at least {SHORTEST_PASSWORD} characters, and at most {LONGEST_PASSWORD}"
            )
        return (self._hasher or _hasher).hash(password)

    def _is_password(self, hashed: str, password: str) -> bool:
        try:
            return (self._hasher or _hasher).verify(hashed, password)
        except (VerifyMismatchError, InvalidHashError):
            return False


@functools.cache
def _nobody() -> str:
    """What the password of an account that is not there is held against, so that its absence does not show in time."""
    return _hasher.hash(secrets.token_urlsafe(16))


def _known(connection: Connection, name: str) -> Row[AccountRow]:
    row = connection.execute(
        select(AccountRow).where(AccountRow.name == spelt(name), AccountRow.disabled_at.is_(None))
    ).first()
    if row is None:
        raise MannersError(f"there is no account {name}; `manners accounts list` shows those there are")
    return row


def _spend(connection: Connection, secret: str, use: TokenUse) -> Row[TokenRow, str, str]:
    token = tokens.spend(connection, secret, use)
    if token is None:
        raise MannersError(SPENT)
    return token


def _set_hash(connection: Connection, account: int, hashed: str) -> None:
    connection.execute(update(AccountRow).where(AccountRow.id == account).values(password_hash=hashed))
    signs_in = TokenRow.use.in_([TokenUse.SESSION.value, TokenUse.SIGN_IN.value])
    tokens.end(connection, (TokenRow.account_id == account) & signs_in)


def _check_issuer(connection: Connection, issuer: int) -> None:
    # Locked, so that whoever takes the right away at the same moment waits, and then ends this too.
    query = select(AccountRow.id).where(
        AccountRow.id == issuer, AccountRow.role == AccountRole.OWNER.value, AccountRow.disabled_at.is_(None)
    )
    if connection.execute(query.with_for_update()).first() is None:
        raise MannersError("this account may not issue links and keys any more: ask an owner")


def _insert(connection: Connection, name: str, role: AccountRole, hashed: str | None) -> Account:
    take_turns(connection, AccountRow)
    taken = connection.execute(select(AccountRow.name)).scalars().all()
    if spelt(name) in taken:
        raise MannersError(f"there is an account {name} already; choose another name")
    name = fit_name(name)
    if (other := look_alike(name, taken)) is not None:
        raise MannersError(f"the name {name} looks like that of the account {other}; choose another name")
    row = {"name": name, "role": role.value, "password_hash": hashed, "created_at": datetime.now(UTC)}
    return Account(name, role, id=connection.execute(insert(AccountRow).returning(AccountRow.id), row).scalar_one())


def _pass(connection: Connection, token: Row[TokenRow, str, str] | None) -> Pass | None:
    if token is None:
        return None
    row = connection.execute(select(AccountRow).where(AccountRow.id == token.account_id)).one()
    return Pass(_account(row), frozenset(tokens.scopes_of(token)), token.issuer_id)


def _keep_an_owner(connection: Connection, account: Row[AccountRow]) -> None:
    others = select(AccountRow.id).where(
        AccountRow.role == AccountRole.OWNER.value, AccountRow.disabled_at.is_(None), AccountRow.id != account.id
    )
    if account.role == AccountRole.OWNER.value and connection.execute(others.with_for_update()).first() is None:
        raise MannersError(f"{account.name} is the only owner; make another account an owner first")


def _account(row: Row[AccountRow]) -> Account:
    return Account(row.name, AccountRole(row.role), row.disabled_at is not None, row.id)
