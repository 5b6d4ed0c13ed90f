"""A store in which a name was somebody becomes one in which an account is: no verdict is lost, and none mixed up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import MetaData, insert, select, text
from sqlalchemy.exc import DatabaseError

from manners.errors import MannersError
from manners.store import Store, schema
from manners.store.accounts import Accounts
from manners.store.annotators import annotator_of
from manners.store.chats import Chats
from manners.store.tables import AnnotatorRow, FlagRow, RequestRow, ThumbRow, VerdictRow, ViewRow
from manners.store.tokens import Scope, TokenUse
from manners.types import Annotator, AnnotatorKind
from tests.store.test_migrations import upgrade_to

NOON = datetime(2024, 5, 31, 12, tzinfo=UTC)


def at(hours: float) -> datetime:
    return NOON + timedelta(hours=hours)


def who(name: str, account: int | None = None) -> Annotator:
    return Annotator(name, AnnotatorKind.HUMAN, account)


def view(number: int, annotator: int, hours: float, lease: float = 0.25) -> dict[str, Any]:
    shown = {"id": number, "comparison_id": number, "annotator_id": annotator, "exchanged": False, "drawn": "random"}
    return shown | {"probability": 0.5, "pool": 9, "created_at": at(hours), "expires_at": at(hours + lease)}


def verdict(number: int, annotator: int, hours: float, view: int | None = None) -> dict[str, Any]:
    said = {"id": number, "comparison_id": number, "annotator_id": annotator, "choice": "left", "strength": 2}
    said |= {"seconds": 1.5, "reasons": ["kind"], "comment": f"said {number}", "exchanged": False, "view_id": view}
    return said | {"created_at": at(hours)}


ACCOUNTS = {"olga": 0, "owner": 5, "anna": 0, "anna:zed": 0, "ben": 0}
"""By name, after how many hours each was made; ids are 1 to 5. `owner` comes when the machine's owner was there."""
PERSONS = ("owner", "anna", "anna:zed")
NAMES = [*((name, "human") for name in PERSONS), ("anna", "ai"), ("zoe", "human"), ("ben", "human")]
VERDICTS = {
    1: (verdict(1, 1, 1), who("owner")),  # in the chat of the machine's owner
    2: (verdict(2, 1, 2, view=2), who("owner")),  # on the page, before there was an account of that name
    3: (verdict(3, 1, 6, view=3), who("owner", 2)),  # on the page, by the account
    4: (verdict(4, 1, 7), who("owner", 2)),  # in the account's chat
    5: (verdict(5, 2, 1, view=5), who("anna", 3)),  # on the page
    6: (verdict(6, 2, -9, view=6), who("anna")),  # from a file that says how it was drawn
    7: (verdict(7, 2, 9), who("anna")),  # from a file
    8: (verdict(8, 2, 2), who("anna", 3)),  # by anna's program, for herself
    9: (verdict(9, 3, 2), who("anna:zed", 3)),  # by anna's program, for its user zed
    10: (verdict(10, 3, 2, view=10), who("anna:zed", 4)),  # on the page, by an account of that name
    11: (verdict(11, 4, 3), Annotator("anna", AnnotatorKind.AI)),
    12: (verdict(12, 5, 3), who("zoe")),
    13: (verdict(13, 6, 3, view=13), who("ben", 5)),
    14: (verdict(14, 1, 1.5), who("owner")),  # by a program on the owner's machine
}
"""Each with whose it is."""
VIEWS = [view(2, 1, 2), view(3, 1, 6), view(5, 2, 1), view(6, 2, -9, 0), view(10, 3, 2), view(13, 6, 3), view(1, 1, 1)]
SHOWN_TO = {2: who("owner"), 3: who("owner", 2), 5: who("anna", 3), 6: who("anna"), 10: who("anna:zed", 4)}
SHOWN_TO |= {13: who("ben", 5), 1: who("owner")}


def fill(put: Any) -> None:
    """Rows as revision 0004 kept them."""
    put("prompts", [{"id": 1, "digest": "p", "turns": [], "use": "train", "source": "x", "created_at": NOON}])
    sides: list[dict[str, Any]] = [
        {"id": n, "prompt_id": 1, "digest": f"r{n}", "text": f"{n}", "author": "v"} for n in (1, 2)
    ]
    put("responses", [s | {"finish_reason": "stop", "sampling": None, "created_at": NOON} for s in sides])
    asked = {"left_id": 1, "right_id": 2, "asked_how": "random", "ask_probability": None, "created_at": NOON}
    put("comparisons", [asked | {"id": number} for number in VERDICTS])
    names = enumerate(ACCOUNTS.items(), 1)
    made = [{"id": n, "name": name, "created_at": at(hours)} for n, (name, hours) in names]
    put("accounts", [one | {"role": "owner", "password_hash": None, "disabled_at": None} for one in made])
    put("annotators", [{"id": n, "name": name, "kind": kind} for n, (name, kind) in enumerate(NAMES, 1)])
    put("views", VIEWS)
    put("verdicts", [row for row, _ in VERDICTS.values()])
    talks = [(1, "of the machine", 1, 1.0), (2, "of the account", 1, 6.5), (3, "of anna", 2, 1.0)]
    put(
        "conversations",
        [
            {"id": n, "key": key, "annotator_id": by, "consented_at": at(h), "created_at": at(h), "deleted_at": None}
            for n, key, by, h in talks
        ],
    )
    turns = [(1, 1), (2, 4)]
    put(
        "messages",
        [
            {"conversation_id": talk, "text": None, "response_id": 1, "comparison_id": asked, "created_at": at(8)}
            for talk, asked in turns
        ],
    )
    sent = [("anna", "k8", 8, 2), ("anna", "k9", 9, 2), ("owner", "k14", 14, 1.5)]
    put(
        "requests",
        [
            {"account": name, "key": key, "content": "", "comparison_id": asked, "created_at": at(hours)}
            for name, key, asked, hours in sent
        ],
    )
    thumb = {"response_id": 1, "value": 1}
    put("thumbs", [thumb | {"annotator_id": 1, "created_at": at(hours)} for hours in (1, 6)])
    flag: dict[str, Any] = {
        "comparison_id": 1,
        "response_id": None,
        "reason": "other",
        "note": "",
        "upheld": None,
        "resolved_at": None,
    }
    put("flags", [flag | {"annotator_id": by, "created_at": at(2)} for by in (1, 2)])
    key: dict[str, Any] = {"use": "key", "account_id": 3, "role": None, "label": "old", "created_at": NOON}
    put("tokens", [key | {"digest": "d", "expires_at": None, "ended_at": None}])


@pytest.fixture
def carried(database: str) -> Iterator[Store]:
    """A store of revision 0004, opened by today's."""
    engine = schema.connect(schema.to_url(database))
    with engine.begin() as connection:
        upgrade_to(connection, "0004")
        tables = MetaData()
        tables.reflect(connection)
        fill(lambda name, rows: connection.execute(tables.tables[name].insert(), rows))
        if connection.dialect.name == "postgresql":  # numbers were given by hand
            for name in ("annotators", "accounts", "verdicts", "views", "conversations", "comparisons"):
                connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), 100)"))
    engine.dispose()
    with closing(Store.open(database)) as store:
        yield store


def whose(store: Store, table: Any) -> dict[int, Annotator]:
    query = select(table.id.label("row"), AnnotatorRow.name, AnnotatorRow.kind, AnnotatorRow.account_id)
    with store.read() as connection:
        rows = connection.execute(query.select_from(table).join(AnnotatorRow, table.annotator_id == AnnotatorRow.id))
        return {row.row: annotator_of(row) for row in rows}


def test_every_verdict_is_there_and_whose_it_was(carried: Store) -> None:
    assert whose(carried, VerdictRow) == {number: owner for number, (_, owner) in VERDICTS.items()}
    with carried.read() as connection:
        rows = [dict(row._mapping) for row in connection.execute(select(VerdictRow).order_by(VerdictRow.id))]
    kept = [dict(row) for row, _ in VERDICTS.values()]
    assert [row | {"annotator_id": 0} for row in rows] == [row | {"annotator_id": 0} for row in kept]


def test_so_is_what_was_shown_said_and_reported(carried: Store) -> None:
    assert whose(carried, ViewRow) == SHOWN_TO
    assert list(whose(carried, ThumbRow).values()) == [who("owner"), who("owner", 2)]
    assert list(whose(carried, FlagRow).values()) == [who("owner"), who("anna", 3)]
    chats = Chats(carried)
    found = {
        person: [one.key for one in chats.all(person)] for person in (who("owner"), who("owner", 2), who("anna", 3))
    }
    assert list(found.values()) == [["of the machine"], ["of the account"], ["of anna"]]
    assert chats.all(who("anna")) == []


def test_programs_are_known_by_their_account_and_old_keys_do_what_programs_do(carried: Store) -> None:
    with carried.read() as connection:
        names = connection.execute(select(RequestRow.key, RequestRow.account).order_by(RequestRow.id)).all()
    assert dict(names) == {"k8": "account 3", "k9": "account 3", "k14": "local"}
    [key] = Accounts(carried).tokens(TokenUse.KEY)
    assert (key.account, key.label, key.scopes, key.issuer) == ("anna", "old", (Scope.CHAT, Scope.FEEDBACK), None)
    assert key.expires_at is not None and timedelta(364) < key.expires_at - datetime.now(UTC) < timedelta(366)


def test_verdicts_are_as_they_were_to_everybody_else(carried: Store) -> None:
    for statement in ("UPDATE verdicts SET annotator_id = 1", "DELETE FROM verdicts WHERE id = 1"):
        with pytest.raises((DatabaseError, MannersError)), carried.write() as connection:
            connection.execute(text(statement))
    with carried.write() as connection:
        for name, account in (("zed", None), ("anna", 3)):  # one of each is enough
            with pytest.raises((DatabaseError, MannersError)), connection.begin_nested():
                for _ in range(2):
                    row = {"name": name, "kind": "human", "account_id": account}
                    connection.execute(insert(AnnotatorRow), row)
