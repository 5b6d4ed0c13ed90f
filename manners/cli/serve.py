"""The commands on the web pages: serving them, and who may sign in."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Annotated

from tyro.conf import EnumChoicesFromValues, Positional, arg, subcommand

from manners.cli.common import Common, Result
from manners.errors import MannersError
from manners.settings_load import to_dict
from manners.store import Store, audit
from manners.store import accounts as stored
from manners.store.records import digest
from manners.types import AccountRole
from manners.web.address import link

Name = Annotated[Positional[str], arg(metavar="NAME")]


@dataclass(frozen=True, kw_only=True)
class Serve(Common):
    """Open the pages for labelling, chatting and looking on, and the server for other programs."""

    port: int | None = None
    """Where to listen; the next free one is taken if it is in use. The same as `--set serve.port=N`."""
    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own needs an owner's account."""
    base_url: Annotated[str | None, arg(metavar="URL")] = None
    """How browsers reach the server, where a proxy stands before it; a name that is not this machine's own needs an
    owner's account."""
    open_browser: Annotated[bool, arg(name="open")] = False
    """Open the page in the browser."""
    upstream: Annotated[str | None, arg(metavar="URL")] = None
    """Let another server write the answers, one that speaks OpenAI's chat completions, such as vLLM. Where it wants a
    key, put it into the environment variable MANNERS_UPSTREAM_KEY."""
    upstream_model: Annotated[str | None, arg(metavar="NAME")] = None
    """The model to ask that server for; the first one that it lists if not said."""

    def run(self) -> Result:
        """Serve until interrupted."""
        from manners.web.server import serve
        from manners.web.upstream import Upstream

        if self.upstream_model and not self.upstream:
            raise MannersError("--upstream-model goes with --upstream URL: say which server has that model")
        key = os.environ.get("MANNERS_UPSTREAM_KEY", "")
        upstream = Upstream(self.upstream, self.upstream_model, key) if self.upstream else None
        settings = self.settings()
        if self.port is not None:
            settings = replace(settings, serve=replace(settings.serve, port=self.port))
        workspace = self.open()
        store = Store.open(workspace.database)
        store.clear_traces()  # where the last server was killed before it could
        audit.settings_changed(store, digest(to_dict(settings))[:16])
        audit.record(store, audit.Deed(audit.Event.SERVED))
        try:
            serve(
                workspace,
                store,
                settings,
                host=self.host,
                base_url=self.base_url,
                open_browser=self.open_browser,
                upstream=upstream,
            )
        except KeyboardInterrupt:
            print("stopped.", file=sys.stderr)
        finally:
            store.clear_traces()  # of what was deleted meanwhile
            store.close()
        return {}


@dataclass(frozen=True, kw_only=True)
class AccountsCommon(Common):
    """What the commands on accounts share."""

    @contextmanager
    def accounts(self) -> Iterator[stored.Accounts]:
        """Yield the accounts of the workspace."""
        store = Store.open(self.open().database)
        try:
            yield stored.Accounts(store)
        finally:
            store.close()

    def noted(self, event: audit.Event, about: str = "", on: str | None = None) -> None:
        """Put on record what was done to an account on this machine."""
        with closing(Store.open(self.open().database)) as store:
            audit.record(store, audit.Deed(event, about=about, on=on))


@dataclass(frozen=True, kw_only=True)
class AccountsAdd(AccountsCommon):
    """Make an account; its password is asked for, or read as one line where there is no terminal."""

    name: Name
    """The name to sign in with, and the name of the annotator."""
    role: Annotated[AccountRole, EnumChoicesFromValues] = AccountRole.OWNER
    """What it may do."""

    def run(self) -> Result:
        """Add it."""
        password = getpass.getpass("Password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
        with self.accounts() as accounts:
            added = accounts.add(self.name, self.role, password)
        self.noted(audit.Event.ACCOUNT_ADDED, on=self.name)
        return asdict(added)


@dataclass(frozen=True, kw_only=True)
class AccountsInvite(AccountsCommon):
    """Print a link with which somebody makes an account, once, within a week; with the host of the last server."""

    role: Annotated[AccountRole, EnumChoicesFromValues] = AccountRole.ANNOTATOR
    """What the account may do."""

    def run(self) -> Result:
        """Issue it."""
        with self.accounts() as accounts:
            secret = accounts.issue(stored.TokenUse.INVITATION, role=self.role)
        self.noted(audit.Event.INVITED, f"role {self.role}")
        return {"role": self.role, **link(self.open(), f"/join/{secret}")}


@dataclass(frozen=True, kw_only=True)
class AccountsKey(AccountsCommon):
    """Make a key with which a program acts for an account; it is shown this once."""

    name: Name
    """The account."""
    label: str = ""
    """What the key is for."""

    def run(self) -> Result:
        """Issue it."""
        with self.accounts() as accounts:
            secret = accounts.issue(stored.TokenUse.KEY, self.name, label=self.label)
        self.noted(audit.Event.KEY_MADE, on=self.name)
        return {"key": secret}


@dataclass(frozen=True, kw_only=True)
class AccountsLink(AccountsCommon):
    """Print a link that signs an account in, once, within an hour: for whoever forgot their password."""

    name: Name
    """The account."""

    def run(self) -> Result:
        """Issue it."""
        with self.accounts() as accounts:
            secret = accounts.issue(stored.TokenUse.SIGN_IN, self.name)
        self.noted(audit.Event.LINK_MADE, on=self.name)
        return {"name": self.name, **link(self.open(), f"/sign-in/{secret}")}


@dataclass(frozen=True, kw_only=True)
class AccountsDisable(AccountsCommon):
    """Let an account in no more; what it said stays."""

    name: Name
    """The account."""

    def run(self) -> Result:
        """Disable it."""
        with self.accounts() as accounts:
            accounts.disable(self.name)
        self.noted(audit.Event.ACCOUNT_DISABLED, on=self.name)
        return {"disabled": self.name}


@dataclass(frozen=True, kw_only=True)
class AccountsList(AccountsCommon):
    """List accounts and keys."""

    def run(self) -> Result:
        """List them."""
        with self.accounts() as accounts:
            return {"accounts": list(map(asdict, accounts.all())), "keys": list(map(asdict, accounts.keys()))}


Accounts = (
    Annotated[AccountsAdd, subcommand("add")]
    | Annotated[AccountsInvite, subcommand("invite")]
    | Annotated[AccountsKey, subcommand("key")]
    | Annotated[AccountsLink, subcommand("link")]
    | Annotated[AccountsDisable, subcommand("disable")]
    | Annotated[AccountsList, subcommand("list")]
)
