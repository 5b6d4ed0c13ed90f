"""The log of what was done: by which account, from which address, about what. It only grows, and it holds no words."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import Connection, func, insert, select

from manners.store.store import Store
from manners.store.tables import AccountRow, AuditRow


class Event(StrEnum):
    """What can be on record."""

    SIGNED_IN = "signed_in"
    SIGN_IN_FAILED = "sign_in_failed"
    SIGNED_OUT = "signed_out"
    ACCOUNT_ADDED = "account_added"
    INVITED = "invited"
    JOINED = "joined"
    LINK_MADE = "link_made"
    KEY_MADE = "key_made"
    REVOKED = "revoked"
    PASSWORD_SET = "password_set"
    ROLE_SET = "role_set"
    ACCOUNT_DISABLED = "account_disabled"
    ACCOUNT_ENABLED = "account_enabled"
    ACCOUNT_FORGOTTEN = "account_forgotten"
    CONVERSATION_DELETED = "conversation_deleted"
    APPROVED = "approved"
    REJECTED = "rejected"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    EXPORTED = "exported"
    PRUNED = "pruned"
    RESTORED = "restored"
    SERVED = "served"
    STEP_BEGUN = "step_begun"
    STEP_STOPPED = "step_stopped"
    SETTINGS_CHANGED = "settings_changed"


ABOUT = re.compile(r"([a-z_]+( [A-Za-z0-9][A-Za-z0-9._-]{0,99})?)?")
"""What an event can be about: a kind, with a number, a version or a setting of ours behind it. Nobody's words."""
ADDRESS = re.compile(r"[0-9A-Fa-f:.]{0,45}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log."""

    number: int
    at: datetime
    event: str
    account: int | None
    """The id of the account that did it; None for whoever works on this machine, and for strangers."""
    name: str | None
    """What that account is called now: the log itself knows no names."""
    address: str
    about: str


@dataclass(frozen=True, slots=True)
class Deed:
    """What is to be put on record."""

    event: Event
    by: int | None = None
    """The account that did it, by its id; None for whoever works on this machine, and for strangers."""
    address: str = ""
    """From where; one that is none is left out."""
    about: str = ""
    on: str | None = None
    """The name of an account that it is about, of which the id is kept."""


def note(connection: Connection, deed: Deed) -> None:
    """Append a line within the caller's transaction.

    Raises ValueError for an `about` that could hold words, which is our mistake.
    """
    about = deed.about if deed.on is None else f"account {account_id(connection, deed.on) or 'unknown'}"
    if not ABOUT.fullmatch(about):
        raise ValueError("the log takes kinds, numbers and names of ours, and no words")
    row = {
        "event": deed.event.value,
        "account_id": deed.by,
        "address": deed.address if ADDRESS.fullmatch(deed.address) else "",
        "about": about,
        "created_at": datetime.now(UTC),
    }
    connection.execute(insert(AuditRow), row)


def record(store: Store, deed: Deed) -> None:
    """Append a line in a transaction of its own, see `note`; none where the store lies where nothing can be written."""
    if store.is_writable:
        with store.write() as connection:
            note(connection, deed)


def account_id(connection: Connection, name: str) -> int | None:
    """Return the id of the account of a name; None where there is none."""
    plain = unicodedata.normalize("NFC", name)  # the form in which names are kept
    return connection.execute(select(AccountRow.id).where(AccountRow.name == plain)).scalar_one_or_none()


def entries(store: Store, limit: int = 100) -> list[Entry]:
    """Return the newest lines, newest first."""
    query = (
        select(AuditRow, AccountRow.name)
        .outerjoin(AccountRow, AuditRow.account_id == AccountRow.id)
        .order_by(AuditRow.id.desc())
        .limit(limit)
    )
    with store.read() as connection:
        rows = connection.execute(query).all()
    return [Entry(r.id, r.created_at, r.event, r.account_id, r.name, r.address, r.about) for r in rows]


def count(store: Store) -> int:
    """Return how many lines there are."""
    with store.read() as connection:
        return connection.execute(select(func.count()).select_from(AuditRow)).scalar_one()


def candidate(store: Store) -> str | None:
    """Return the version that the last server to start put beside the promoted policy; None where it put none there."""
    query = select(AuditRow.about).where(AuditRow.event == Event.SERVED.value).order_by(AuditRow.id.desc())
    with store.read() as connection:
        what, _, version = (connection.execute(query.limit(1)).scalar_one_or_none() or "").partition(" ")
    return version if what == "candidate" else None


def settings_changed(store: Store, digest: str) -> None:
    """Append a line where the settings are others than those on record; nothing says what they were."""
    query = select(AuditRow.about).where(AuditRow.event == Event.SETTINGS_CHANGED.value).order_by(AuditRow.id.desc())
    with store.write() as connection:
        if connection.execute(query.limit(1)).scalar_one_or_none() != f"settings {digest}":
            note(connection, Deed(Event.SETTINGS_CHANGED, about=f"settings {digest}"))
