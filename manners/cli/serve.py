"""The commands on the web pages: serving them, and who may sign in."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

from tyro.conf import EnumChoicesFromValues, Positional, UseAppendAction, arg, subcommand

from manners.cli.common import Common, Result
from manners.errors import MannersError
from manners.settings import Settings
from manners.store import Store, audit
from manners.store import accounts as stored
from manners.store.tokens import LIFETIME, PROGRAMS, Scope, Terms, TokenUse
from manners.types import AccountRole
from manners.web.address import link
from manners.web.remembered import remember_accounts
from manners.workspace import Workspace

if TYPE_CHECKING:  # it is imported where it is needed, which is when something is served
    from manners.web.candidate import Trial

MOST_DAYS = 36_500
"""For which a key is good."""
Name = Annotated[Positional[str], arg(metavar="NAME")]


@contextmanager
def _matrices_alone() -> Iterator[None]:
    """Have numpy and scipy loaded so that one thread multiplies matrices.

    Those of the dashboard are small, and a second thread would spin beside them and take a core from the model.
    OpenBLAS reads the variable when it is loaded; processes that are started later do not inherit it.
    """
    name = "OPENBLAS_NUM_THREADS"
    if name in os.environ:
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]


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
    candidate: Annotated[str | None, arg(metavar="VERSION")] = None
    """Put the answers of this policy beside the promoted one's on a share of turns in the chat, and ask which is
    better: to evaluate it, and never to train."""
    share: Annotated[float | None, arg(metavar="SHARE")] = None
    """Of the turns that may ask about the candidate, above 0 and up to 1; 0.1 if not said."""

    def run(self) -> Result:
        """Serve until interrupted."""
        with _matrices_alone():
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
        trial = self._trial(workspace, settings)
        store = Store.open(workspace.database)
        try:
            serve(
                workspace,
                store,
                settings,
                host=self.host,
                base_url=self.base_url,
                open_browser=self.open_browser,
                upstream=upstream,
                trial=trial,
            )
        except KeyboardInterrupt:
            print("stopped.", file=sys.stderr)
        finally:
            store.close()
        return {}

    def _trial(self, workspace: Workspace, settings: Settings) -> Trial | None:
        """Return which candidate is put beside the promoted policy. Raises MannersError where it cannot be one."""
        from manners.web.candidate import trial_of

        if self.candidate is None:
            if self.share is not None:
                raise MannersError("--share goes with --candidate VERSION: say which version it is the share of")
            return None
        return trial_of(workspace, settings, self.candidate, self.share, upstream=self.upstream is not None)


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
        password = _ask_password()
        with self.accounts() as accounts:
            added = accounts.add(self.name, self.role, password)
            remember_accounts(self.open())
        self.noted(audit.Event.ACCOUNT_ADDED, on=self.name)
        return asdict(added)


@dataclass(frozen=True, kw_only=True)
class AccountsPassword(AccountsCommon):
    """Give an account a new password, which is asked for, or read as one line; its sessions and links end."""

    name: Name
    """The account."""

    def run(self) -> Result:
        """Set it."""
        password = _ask_password()
        with self.accounts() as accounts:
            accounts.set_password(self.name, password)
        self.noted(audit.Event.PASSWORD_SET, on=self.name)
        return {"name": self.name, "password": "changed"}


@dataclass(frozen=True, kw_only=True)
class AccountsInvite(AccountsCommon):
    """Print a link with which somebody makes an account, once, within a week; with the host of the last server."""

    role: Annotated[AccountRole, EnumChoicesFromValues] = AccountRole.ANNOTATOR
    """What the account may do."""

    def run(self) -> Result:
        """Issue it."""
        with self.accounts() as accounts:
            secret = accounts.issue(TokenUse.INVITATION, role=self.role)
        self.noted(audit.Event.INVITED, f"role {self.role}")
        return {"role": self.role, **link(self.open(), f"/join/{secret}")}


@dataclass(frozen=True, kw_only=True)
class AccountsKey(AccountsCommon):
    """Make a key with which a program acts for an account; it is shown this once."""

    name: Name
    """The account."""
    label: str = ""
    """What the key is for."""
    scope: Annotated[UseAppendAction[tuple[tuple[Scope, ...], ...]], EnumChoicesFromValues] = ()
    """What it is good for: to get answers, to give verdicts (both if left out), to read what was said and found, to
    read how the server is doing, to decide."""
    days: int = LIFETIME[TokenUse.KEY].days
    """For how long."""

    def run(self) -> Result:
        """Issue it."""
        scopes = tuple(dict.fromkeys(one for some in self.scope for one in some)) if self.scope else PROGRAMS
        if not 1 <= self.days <= MOST_DAYS or not scopes:
            raise MannersError(
                f"a key is good for something, and for 1 to {MOST_DAYS:,} days: say --scope and --days so"
            )
        terms = Terms(scopes=scopes, life=timedelta(days=self.days))
        with self.accounts() as accounts:
            key = accounts.issue(TokenUse.KEY, self.name, label=self.label, terms=terms)
        self.noted(audit.Event.KEY_MADE, on=self.name)
        return {"key": key, "name": self.name, "scopes": list(scopes), "days": self.days}


@dataclass(frozen=True, kw_only=True)
class AccountsLink(AccountsCommon):
    """Print a link that signs an account in, once, within an hour: for whoever forgot their password."""

    name: Name
    """The account."""

    def run(self) -> Result:
        """Issue it."""
        with self.accounts() as accounts:
            secret = accounts.issue(TokenUse.SIGN_IN, self.name)
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
class AccountsEnable(AccountsCommon):
    """Let a disabled account in again; its keys and sessions stay ended."""

    name: Name
    """The account."""

    def run(self) -> Result:
        """Enable it."""
        with self.accounts() as accounts:
            accounts.enable(self.name)
        self.noted(audit.Event.ACCOUNT_ENABLED, on=self.name)
        return {"enabled": self.name}


@dataclass(frozen=True, kw_only=True)
class AccountsRole(AccountsCommon):
    """Let an account do more, or less; what an owner has issued ends with the role."""

    name: Name
    """The account."""
    role: Annotated[AccountRole, EnumChoicesFromValues]
    """What it may do from now on."""

    def run(self) -> Result:
        """Set it."""
        with self.accounts() as accounts:
            accounts.set_role(self.name, self.role)
        self.noted(audit.Event.ROLE_SET, on=self.name)
        return {"name": self.name, "role": self.role}


@dataclass(frozen=True, kw_only=True)
class AccountsSessions(AccountsCommon):
    """List the browsers that are signed in, of one account or of all; `revoke` ends them by number."""

    name: Annotated[Positional[str | None], arg(metavar="NAME")] = None
    """The account."""

    def run(self) -> Result:
        """List them."""
        with self.accounts() as accounts:
            return {"sessions": list(map(asdict, accounts.tokens(TokenUse.SESSION, account=self.name)))}


@dataclass(frozen=True, kw_only=True)
class AccountsRevoke(AccountsCommon):
    """End a session, a key, a link or an invitation by its number, or all of an account's and all that it issued."""

    number: Annotated[Positional[int | None], arg(metavar="N")] = None
    """As `list` and `sessions` show it."""
    account: Annotated[str | None, arg(metavar="NAME")] = None
    """Whose, instead of a number."""

    def run(self) -> Result:
        """End it."""
        if (self.number is None) == (self.account is None):
            raise MannersError("say what to end: `manners accounts revoke N`, or --account NAME for all of one's")
        with self.accounts() as accounts:
            if self.account is not None:
                ended = accounts.revoke_all(self.account)
            elif self.number is not None:
                accounts.revoke(self.number)
        if self.account is not None:
            self.noted(audit.Event.REVOKED, on=self.account)
            return {"account": self.account, "revoked": ended}
        self.noted(audit.Event.REVOKED, f"token {self.number}")
        return {"number": self.number, "revoked": 1}


@dataclass(frozen=True, kw_only=True)
class AccountsList(AccountsCommon):
    """List accounts, keys, and links that nobody has used yet."""

    def run(self) -> Result:
        """List them."""
        with self.accounts() as accounts:
            return {
                "accounts": list(map(asdict, accounts.all())),
                "keys": list(map(asdict, accounts.tokens(TokenUse.KEY))),
                "links": list(map(asdict, accounts.tokens(TokenUse.SIGN_IN, TokenUse.INVITATION))),
            }


def _ask_password() -> str:
    """Read a password, unseen on a terminal, and from one line of input otherwise."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    try:
        return getpass.getpass("Password: ")
    except EOFError:
        raise MannersError("no password was typed, and nothing was changed: run it again.") from None


Accounts = (
    Annotated[AccountsAdd, subcommand("add")]
    | Annotated[AccountsInvite, subcommand("invite")]
    | Annotated[AccountsKey, subcommand("key")]
    | Annotated[AccountsLink, subcommand("link")]
    | Annotated[AccountsPassword, subcommand("password")]
    | Annotated[AccountsRole, subcommand("role")]
    | Annotated[AccountsDisable, subcommand("disable")]
    | Annotated[AccountsEnable, subcommand("enable")]
    | Annotated[AccountsSessions, subcommand("sessions")]
    | Annotated[AccountsRevoke, subcommand("revoke")]
    | Annotated[AccountsList, subcommand("list")]
)
