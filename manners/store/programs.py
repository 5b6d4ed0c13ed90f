"""Comparisons that other programs open or report, each known to its program by a name of its own."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from sqlalchemy import Connection, Row, insert, select

from manners.errors import MannersError
from manners.store.annotators import check_accounts
from manners.store.comparisons import insert_comparisons
from manners.store.statements import take_turns
from manners.store.store import Store
from manners.store.tables import RequestRow
from manners.store.texts import response_ids
from manners.store.verdicts import insert_answer, insert_verdicts
from manners.types import Comparison, Verdict

OF_ACCOUNT = "account "
"""How the name begins under which the requests of an account are kept."""


def requester(account: int | None) -> str:
    """Return under what the requests of an account's programs are kept; None is whoever is at the machine."""
    return "local" if account is None else f"{OF_ACCOUNT}{account}"


class UnknownPair(MannersError):
    """No pair of that name was opened for this account."""


class OtherContent(MannersError):
    """The name was used for something else before."""


class Programs:
    """What other programs put before their users; safe to use from many threads."""

    def __init__(self, store: Store) -> None:
        """Keep them in a store."""
        self._store = store

    def open(self, account: str, comparison: Comparison, user: str | None = None) -> str:
        """Store a comparison that is being shown to a user; return the name under which its verdict may come.

        Raises Disabled.
        """
        name = f"pair_{secrets.token_urlsafe(18)}"
        with self._store.write() as connection:
            _insert(connection, account, name, "", comparison, user)
        return name

    def judge(self, account: str, name: str, verdict: Verdict) -> None:
        """Append a verdict; a later one of the same person replaces it. Raises UnknownPair."""
        with self._store.write() as connection:
            row = _known(connection, account, name)
            if row is None:
                raise UnknownPair(f"there is no pair {name}: send the pair_id that came with the two answers")
            insert_answer(connection, row.comparison_id, verdict)

    def add(self, account: str, name: str | None, content: str, comparison: Comparison) -> tuple[int, bool]:
        """Store a comparison with its verdict once under a name; return its number, and whether it is new.

        `content` is a digest of all that was sent. Raises OtherContent when the name stands for something else.
        """
        with self._store.write() as connection:
            take_turns(connection)
            known = None if name is None else _known(connection, account, name)
            if known is None:
                name = name or f"report_{secrets.token_urlsafe(18)}"
                return _insert(connection, account, name, content, comparison), True
            if known.content != content:
                raise OtherContent(f"the key {name} was used for another comparison: choose a new one")
            return int(known.comparison_id), False


def _known(connection: Connection, account: str, name: str) -> Row[RequestRow] | None:
    query = select(RequestRow).where(RequestRow.account == account, RequestRow.key == name)
    return connection.execute(query).first()


def _insert(
    connection: Connection, account: str, name: str, content: str, comparison: Comparison, user: str | None = None
) -> int:
    take_turns(connection)
    check_accounts(connection, {int(account.removeprefix(OF_ACCOUNT))} if account.startswith(OF_ACCOUNT) else ())
    pairs = response_ids(connection, [comparison])
    [key] = insert_comparisons(connection, [comparison], pairs)
    insert_verdicts(connection, [(key, verdict) for verdict in comparison.verdicts])
    row = {"account": account, "key": name, "content": content, "comparison_id": key, "user": user}
    connection.execute(insert(RequestRow), row | {"created_at": datetime.now(UTC)})
    return key
