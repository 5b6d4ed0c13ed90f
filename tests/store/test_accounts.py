"""Accounts, and the secrets that stand for them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from argon2 import PasswordHasher
from sqlalchemy import select, update

from manners.errors import MannersError
from manners.store import Store
from manners.store.accounts import Account, Accounts
from manners.store.tables import AccountRow, TokenRow
from manners.store.tokens import TokenUse
from manners.types import AccountRole

PASSWORD = "correct horse"


@pytest.fixture
def accounts(store: Store) -> Accounts:
    accounts = Accounts(store)
    accounts.add("olga", AccountRole.OWNER, PASSWORD)
    return accounts


def test_only_the_right_password_of_an_account_that_is_there_is_good(accounts: Accounts) -> None:
    assert accounts.check("olga", PASSWORD) == Account("olga", AccountRole.OWNER)
    assert accounts.check("olga", PASSWORD + " ") is None
    assert accounts.check("nobody", PASSWORD) is None
    accounts.add("by link", AccountRole.ANNOTATOR)
    assert accounts.check("by link", "") is None


def test_a_hash_takes_what_argon2_recommends(shipped_hasher: PasswordHasher) -> None:
    assert not PasswordHasher().check_needs_rehash(shipped_hasher.hash(PASSWORD))


def test_no_password_and_no_secret_is_stored(accounts: Accounts, store: Store) -> None:
    secret = accounts.issue(TokenUse.KEY, "olga", label="script")
    with store.read() as connection:
        stored = str(connection.execute(select(AccountRow)).all()) + str(connection.execute(select(TokenRow)).all())
    assert secret not in stored and PASSWORD not in stored
    assert accounts.holder(secret, TokenUse.KEY) == Account("olga", AccountRole.OWNER)


def test_a_secret_is_good_for_its_own_use_only(accounts: Accounts) -> None:
    session = accounts.issue(TokenUse.SESSION, "olga")
    assert accounts.holder(session, TokenUse.KEY) is None
    with pytest.raises(MannersError, match="used already, or has expired"):
        accounts.follow(session)
    accounts.end(session)
    assert accounts.holder(session, TokenUse.SESSION) is None


def test_a_link_is_good_once_and_not_for_ever(accounts: Accounts, store: Store) -> None:
    link = accounts.issue(TokenUse.SIGN_IN, "olga")
    assert accounts.follow(link).account.name == "olga"
    with pytest.raises(MannersError, match="used already"):
        accounts.follow(link)
    late = accounts.issue(TokenUse.SIGN_IN, "olga")
    with store.write() as connection:
        connection.execute(update(TokenRow).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    with pytest.raises(MannersError, match="has expired"):
        accounts.follow(late)


def test_an_invitation_makes_one_account_of_its_role(accounts: Accounts) -> None:
    secret = accounts.issue(TokenUse.INVITATION, role=AccountRole.ANNOTATOR)
    assert accounts.invitation(secret) is AccountRole.ANNOTATOR
    with pytest.raises(MannersError, match="there is an account olga already"):
        accounts.join(secret, "olga", PASSWORD)
    assert accounts.join(secret, "anna", PASSWORD) == Account("anna", AccountRole.ANNOTATOR)
    with pytest.raises(MannersError, match="used already"):
        accounts.join(secret, "berta", PASSWORD)
    assert [account.name for account in accounts.all()] == ["olga", "anna"]


def test_nothing_is_hashed_without_an_invitation(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accounts, "_hash", lambda *_: pytest.fail("hashed for a stranger"))
    with pytest.raises(MannersError, match="used already, or has expired"):
        accounts.join("nonsense", "anna", PASSWORD)


def test_a_disabled_account_keeps_nothing_open(accounts: Accounts) -> None:
    accounts.add("anna", AccountRole.ANNOTATOR, PASSWORD)
    session, key = accounts.issue(TokenUse.SESSION, "anna"), accounts.issue(TokenUse.KEY, "anna")
    accounts.disable("anna")
    assert accounts.holder(session, TokenUse.SESSION) is None
    assert accounts.holder(key, TokenUse.KEY) is None
    assert accounts.check("anna", PASSWORD) is None
    assert [account.disabled for account in accounts.all()] == [False, True]


def test_somebody_stays_owner(accounts: Accounts) -> None:
    with pytest.raises(MannersError, match="olga is the only owner"):
        accounts.disable("olga")
    with pytest.raises(MannersError, match="olga is the only owner"):
        accounts.set_role("olga", AccountRole.VIEWER)
    accounts.add("otto", AccountRole.OWNER, PASSWORD)
    accounts.set_role("olga", AccountRole.VIEWER)
    assert accounts.all()[0] == Account("olga", AccountRole.VIEWER)


def test_a_new_password_ends_sessions_and_leaves_keys(accounts: Accounts) -> None:
    session, key = accounts.issue(TokenUse.SESSION, "olga"), accounts.issue(TokenUse.KEY, "olga", label="script")
    accounts.set_password("olga", "another password")
    assert accounts.holder(session, TokenUse.SESSION) is None
    assert accounts.holder(key, TokenUse.KEY) is not None
    (listed,) = accounts.tokens(TokenUse.KEY)
    assert (listed.account, listed.label) == ("olga", "script")
    accounts.revoke(listed.id)
    assert accounts.holder(key, TokenUse.KEY) is None
    with pytest.raises(MannersError, match="there is nothing of number"):
        accounts.revoke(listed.id)


@pytest.mark.parametrize("name", ["", " anna", "a" * 81, "a\nb", "a\u202eb"])
def test_names_that_would_mislead_are_refused(accounts: Accounts, name: str) -> None:
    with pytest.raises(MannersError, match="an account's name takes 1 to 80 visible characters"):
        accounts.add(name, AccountRole.VIEWER, PASSWORD)


def test_a_short_password_is_refused(accounts: Accounts) -> None:
    with pytest.raises(MannersError, match="at least 10 characters"):
        accounts.add("anna", AccountRole.VIEWER, "short")
