"""Who starts a run: an account by its number, where one is named, so that it can be told who may not approve it."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from manners.audit.review import HERE
from manners.audit.rules import rules
from manners.errors import MannersError
from manners.store import Store
from manners.store.accounts import Accounts

VARIABLE = "MANNERS_ACCOUNT"
"""Names the account of whoever works at this terminal; nothing proves it, as nothing keeps them from the files."""


def starter(store: Store, root: Path) -> str:
    """Return `account N` for the account that MANNERS_ACCOUNT names, and `this machine` where it names none.

    Raises MannersError for a name that is no account's, and where `gate.toml` asks for two people and none is named:
    before anything is trained that nobody could approve.
    """
    name = unicodedata.normalize("NFC", os.environ.get(VARIABLE, ""))
    if not name:
        if rules(root).two_person:
            raise MannersError(
                f"gate.toml asks for two people, and nobody says who starts this run: set {VARIABLE} to the name of"
                " your account (`manners accounts list`), so that another one can approve what it makes"
            )
        return HERE
    found = next((one for one in Accounts(store).all() if one.name == name and not one.disabled), None)
    if found is None:
        raise MannersError(f"{VARIABLE} is {name}, and there is no such account: `manners accounts list` shows them")
    return f"account {found.id}"
