"""The commands on a person who leaves, and on the log of what was done."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from manners.cli.common import Common, Result
from manners.errors import UsageError
from manners.store import Store, audit


@dataclass(frozen=True, kw_only=True)
class Forget(Common):
    """Delete the words and the name of somebody who leaves, in the store and in every file of the workspace."""

    name: Annotated[Positional[str], arg(metavar="ACCOUNT")]
    """The account; it is disabled. What it chose stays, as the choice of somebody without a name."""
    user: str | None = None
    """Only this user of the account's programs, as `/v1` was told the name; the account stays."""

    def run(self) -> Result:
        """Forget them."""
        from manners.loop.erase import forget_person

        workspace = self.open()
        with closing(Store.open(workspace.database)) as store:
            return forget_person(workspace, store, self.name, self.user)


@dataclass(frozen=True, kw_only=True)
class Log(Common):
    """Show what was done, by which account and from where, newest first."""

    limit: Annotated[int, arg(metavar="N")] = 100
    """How many lines, from the newest; the total is printed beside them."""

    def run(self) -> Result:
        """Read it."""
        if not 0 <= self.limit < 2**31:
            raise UsageError(f"--limit cannot be {self.limit}: it takes a whole number from 0 to {2**31 - 1}.")
        with closing(Store.open(self.open().database)) as store:
            lines = [asdict(entry) for entry in audit.entries(store, self.limit)]
            return {"log": lines, "total": audit.count(store)}
