"""Secrets that stand for an account: sessions, keys, links; of each only a digest is stored, and who issued it.

Plain functions, each within the caller's transaction.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, insert, select, update
from sqlalchemy.orm import aliased

from manners.store.tables import AccountRow, TokenRow
from manners.types import AccountRole


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


class Scope(StrEnum):
    """What a key is good for, within what its account may do."""

    CHAT = "chat"
    """Get answers."""
    FEEDBACK = "feedback"
    """Give verdicts, also on behalf of the users of a program."""
    EXPORT = "export"
    """Read what was said and found."""
    METRICS = "metrics"
    """Read how the server is doing: `/metrics`, and nothing else."""
    ADMIN = "admin"
    """Decide: about accounts, versions and reports."""


PROGRAMS = (Scope.CHAT, Scope.FEEDBACK)
"""What a key is good for unless it is said."""
LIFETIME = {
    TokenUse.SESSION: timedelta(days=14),
    TokenUse.KEY: timedelta(days=365),
    TokenUse.SIGN_IN: timedelta(hours=1),
    TokenUse.INVITATION: timedelta(days=7),
}
MOST_SESSIONS = 20
"""Of one account: more browsers than a person has."""
LONGEST_LABEL = 200
SECRET_BYTES = 32
SECRET_LENGTH = math.ceil(SECRET_BYTES * 8 / 6)
"""Characters of a secret as it is written."""
_Issuer = aliased(AccountRow)
_MAY_ISSUE = TokenRow.issuer_id.is_(None) | ((_Issuer.role == AccountRole.OWNER.value) & _Issuer.disabled_at.is_(None))
# Each request asks who it is from: to build the query takes longer than to run it.
_GOOD: Select[TokenRow, str, str] = (
    select(TokenRow, AccountRow.name.label("account"), _Issuer.name.label("issuer"))
    .outerjoin(AccountRow, TokenRow.account_id == AccountRow.id)
    .outerjoin(_Issuer, TokenRow.issuer_id == _Issuer.id)
    .where(
        TokenRow.ended_at.is_(None),
        TokenRow.expires_at.is_(None) | (TokenRow.expires_at > bindparam("now")),
        TokenRow.account_id.is_(None) | AccountRow.disabled_at.is_(None),
        _MAY_ISSUE,
    )
)
"""What has not ended or run out by `now`, and whose issuer may still issue it, with both names."""
_FOUND = _GOOD.where(TokenRow.digest == bindparam("secret"), TokenRow.use == bindparam("purpose"))


@dataclass(frozen=True, slots=True)
class Token:
    """A secret that is good, without the secret."""

    id: int
    use: TokenUse
    account: str | None
    """Whom it stands for; None for an invitation."""
    role: AccountRole | None
    """Of the account that an invitation makes."""
    label: str
    """What a key is for; which browser a session is in."""
    scopes: tuple[Scope, ...]
    issuer: str | None
    """Whose right it rests on; None for what was issued on the command line, or by the account's own password."""
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a secret is issued."""

    issuer: int | None = None
    """The account that issues it: it ends with that account's right to."""
    scopes: tuple[Scope, ...] = PROGRAMS
    """What a key is good for."""
    life: timedelta | None = None
    """None: as long as its use lasts (`LIFETIME`)."""


PLAIN = Terms()


def could_be(text: str) -> bool:
    """Return whether a text may be a secret of ours: whatever has another length is nobody's, and is not looked up."""
    return len(text) == SECRET_LENGTH


def digest(secret: str) -> str:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def insert_token(
    connection: Connection, use: TokenUse, account: int | None, role: AccountRole | None, label: str, terms: Terms
) -> str:
    """Store a new secret, and return it."""
    secret = secrets.token_urlsafe(SECRET_BYTES)
    now = datetime.now(UTC)
    row = {
        "digest": digest(secret),
        "use": use.value,
        "account_id": account,
        "role": None if role is None else role.value,
        "label": label[:LONGEST_LABEL],
        "scopes": " ".join(terms.scopes) if use is TokenUse.KEY else "",
        "issuer_id": terms.issuer,
        "created_at": now,
        "expires_at": now + (terms.life or LIFETIME[use]),
    }
    connection.execute(insert(TokenRow), row)
    return secret


def find(connection: Connection, secret: str, use: TokenUse) -> Row[TokenRow, str, str] | None:
    """Return the row of a secret that is good for a use, or None."""
    asked = {"now": datetime.now(UTC), "secret": digest(secret), "purpose": use.value}
    return connection.execute(_FOUND, asked).first()


def spend(connection: Connection, secret: str, use: TokenUse) -> Row[TokenRow, str, str] | None:
    """Use up a secret that is good once, and return its row, or None where it is not good (any more)."""
    token = find(connection, secret, use)
    # Of two at once one finds it open.
    return token if token is not None and end(connection, TokenRow.id == token.id) else None


def end(connection: Connection, which: ColumnElement[bool]) -> int:
    """End the secrets that a condition names, and return how many."""
    query = update(TokenRow).where(which, TokenRow.ended_at.is_(None))
    return connection.execute(query.values(ended_at=datetime.now(UTC))).rowcount


def end_oldest_sessions(connection: Connection, account: int) -> None:
    """End the sessions of an account but for its newest ones."""
    theirs = (TokenRow.account_id == account) & (TokenRow.use == TokenUse.SESSION.value)
    good = select(TokenRow.id).where(theirs, TokenRow.ended_at.is_(None), TokenRow.expires_at > datetime.now(UTC))
    last = connection.execute(good.order_by(TokenRow.id.desc()).offset(MOST_SESSIONS - 1).limit(1)).scalar()
    if last is not None:
        end(connection, theirs & (TokenRow.id < last))


def listed(connection: Connection, uses: Sequence[TokenUse], account: int | None = None) -> list[Token]:
    """Return the secrets for some uses that are good, of one account or of all, oldest first."""
    query = _GOOD.where(TokenRow.use.in_([use.value for use in uses])).order_by(TokenRow.id)
    some = query if account is None else query.where(TokenRow.account_id == account)
    rows = connection.execute(some, {"now": datetime.now(UTC)})
    return [
        Token(
            row.id,
            TokenUse(row.use),
            row.account,
            None if row.role is None else AccountRole(row.role),
            row.label,
            scopes_of(row),
            row.issuer,
            row.created_at,
            row.expires_at,
        )
        for row in rows
    ]


def scopes_of(row: Row[TokenRow, str, str]) -> tuple[Scope, ...]:
    """Return what a row of `find` is good for: all that its account may do where it is no key."""
    return tuple(map(Scope, row.scopes.split())) if row.use == TokenUse.KEY.value else tuple(Scope)
