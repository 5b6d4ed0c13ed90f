"""What every page works with: one record, made when the server starts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from anyio import to_thread
from fastapi import Depends, Request
from fastapi.templating import Jinja2Templates
from jinja2 import FileSystemLoader
from starlette.responses import Response

from manners import __version__
from manners.markup import environment
from manners.settings import Settings
from manners.store import Store
from manners.store.accounts import Accounts, Pass
from manners.store.audit import Deed, Event, record
from manners.store.records import Mark
from manners.store.tokens import TokenUse
from manners.types import LOCAL as LOCAL
from manners.web.candidate import Trial
from manners.web.desk import Desk
from manners.web.draws import secret_of
from manners.web.figures import Figures
from manners.web.generation import Generator
from manners.web.limits import RECKONED, Limits
from manners.web.ongoing import Conversations
from manners.web.remembered import has_accounts, remember_accounts
from manners.workspace import Workspace

FOLDER = Path(__file__).parent


@dataclass
class Computed:
    """Something that takes a while, kept until what it was computed from is different, or until there is time again.

    Where verdicts come in all the time, whoever looks would have it computed all the time.
    """

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _mark: Mark | None = None
    _found: dict[str, Any] = field(default_factory=dict)
    _at: float = 0.0
    _left: float = RECKONED.burst
    """Seconds of a core that were left for it, at `_at`."""

    def get(self, mark: Mark, compute: Callable[[], tuple[dict[str, Any], float]]) -> dict[str, Any]:
        """Return what was computed, and how many seconds `behind` this mark it is; who comes meanwhile waits for it.

        `compute` says how many seconds of a core it took, too. What was taken back or deleted is never shown again,
        whatever it takes.
        """
        with self._lock:
            now = time.monotonic()
            left = min(RECKONED.burst, self._left + (now - self._at) * RECKONED.a_second)
            gone = self._mark is None or self._mark.gone != mark.gone
            if gone or (self._mark != mark and left > 0):
                self._found, took = compute()
                self._mark, self._at, self._left = mark, now, left - took
            return self._found | {"behind": None if self._mark == mark else now - self._at}


@dataclass(frozen=True)
class Site:
    """One workspace, served."""

    workspace: Workspace
    settings: Settings
    store: Store
    accounts: Accounts
    local: bool
    """Whether it was started without accounts, for this machine only; see `is_local`."""
    base_url: str
    """How browsers reach the server, without a slash at the end."""
    engine: Generator
    """Who writes the answers."""
    computed: Computed = field(default_factory=Computed)
    """What the dashboard shows."""
    limits: Limits = field(default_factory=Limits)
    conversations: Conversations = field(default_factory=Conversations)
    """In which an answer is being written."""
    trial: Trial | None = None
    """Which candidate is put beside the promoted policy, as the server was told."""
    proxied: bool = False
    """Whether a proxy was named, whose headers are believed."""
    remembered: dict[tuple[TokenUse, str], tuple[Pass, float]] = field(default_factory=dict)
    """Which secrets have let somebody in, by digest, and until when that is believed without another look."""
    figures: Figures = field(default_factory=Figures)
    """What `/metrics` tells of the server."""
    templates: Jinja2Templates = field(
        default_factory=lambda: Jinja2Templates(env=environment(FileSystemLoader(FOLDER / "templates")))
    )

    @cached_property
    def desk(self) -> Desk:
        """What is put before annotators."""
        return Desk(self.workspace, self.store, self.settings.serve)

    @cached_property
    def secret(self) -> bytes:
        """What is drawn with where a browser knows all the rest (`draws`)."""
        return secret_of(self.workspace)

    def is_local(self) -> bool:
        """Return whether whoever can reach the server is its owner: until somebody makes the first account."""
        if not self.local:
            return False
        if self.accounts.exist():
            remember_accounts(self.workspace)
        return not has_accounts(self.workspace)

    @property
    def prefix(self) -> str:
        """Path under which a proxy shows the server; empty where there is none."""
        return urlsplit(self.base_url).path.rstrip("/")

    def page(self, request: Request, template: str, *, status: int = 200, **context: Any) -> Response:
        """Fill in a template of this folder."""
        visitor = getattr(request.state, "visitor", None)
        shared = {"visitor": visitor, "prefix": self.prefix, "version": __version__}
        return self.templates.TemplateResponse(request, template, shared | context, status_code=status)


async def site_of(request: Request) -> Site:
    """Return the site that a request is for (a dependency)."""
    site: Site = request.app.state.site
    return site


async def noted(
    request: Request, event: Event, about: str = "", *, by: int | None = None, on: str | None = None
) -> None:
    """Put on record what somebody did: whoever has signed in, unless it is said, and from where."""
    site: Site = request.app.state.site
    visitor = getattr(request.state, "visitor", None)
    account = by if by is not None or visitor is None else visitor.account
    address = request.client.host if request.client else ""
    deed = Deed(event, account, address, about, on)
    await to_thread.run_sync(record, site.store, deed, limiter=site.limits.writing)


Here = Annotated[Site, Depends(site_of)]
"""What a page takes to get the site."""
