"""What uvicorn leaves open: how long a connection may keep us waiting, and how many there may be of one address.

uvicorn has a limit on connections, but idle ones count, so that whoever opens enough of them shuts all others out; and
its time limit between requests ends with the first byte of the next one (Kludex/uvicorn issue 157). Middleware comes
too late for both, since it is called when a request's header is complete. So this is uvicorn's own protocol, looked at
once a second:

    header      10 s from opening, or from the first byte of a further request        408, or closed where nothing came
    body        30 s from the header; the application is told (`shield`)              408
    reading     30 s in which a client takes less than 48 KB of what waits for it     closed
    idle        75 s between two requests (uvicorn's)                                 closed

Where there are too many, the one is closed that has waited longest without a request: of the address itself, or of the
one that has most. Only where all of them are at work, the newcomer is refused. For a proxy whose word is taken for who
asks, only how many there may be in all is a limit.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from http import HTTPStatus
from typing import Any
from weakref import WeakKeyDictionary

import h11
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol

from manners.web.limits import network_of

HEADER_SECONDS = 10.0
BODY_SECONDS = 30.0
READING_SECONDS = 30.0
READ_MEANWHILE = 48_000
"""Bytes that a client takes in that time, or it does not read."""
IDLE_SECONDS = 75
"""Longer than proxies keep theirs (nginx: 60), or one of them sends a request into a connection that is closed."""
LARGEST_HEADER = 32_768
"""Bytes of a request's line and headers."""
MOST_CONNECTIONS = 2000
MOST_OF_ONE = 500
"""Connections of one address that is no proxy's: a school behind one has browsers that open six each."""
FILES = 400
"""Files that the rest of the process may have open: the database, pages, the model's pipe."""
BACKLOG = 128
"""Connections that wait to be accepted: so many come at once, before any can be refused."""
_HERE = WeakKeyDictionary[asyncio.AbstractEventLoop, Counter[str]]()
"""How many there are of each address, by the loop that serves them."""


class Connection(H11Protocol):
    """One connection, which knows since when it keeps us waiting."""

    def __init__(self, *given: Any, **named: Any) -> None:
        """Take what uvicorn gives."""
        super().__init__(*given, **named)
        self.address = ""
        """Whose it is: found out once, since each that comes asks it of all the others."""
        self.opened = self.active = 0.0
        """When it came, and when it last did anything."""
        self.begun: float | None = None
        """When the first byte of a header came that is not complete yet."""
        self.asked = 0.0
        """When the latest header was complete."""
        self.stuck: float | None = None
        """Since when nothing more can be written, or the last bytes are on their way, and few of them were taken."""
        self.unread = 0
        """How many bytes waited then."""
        self._known: object = None

    @property
    def closing(self) -> bool:
        """Whether it is on its way out."""
        return self.transport.is_closing()

    @property
    def waits(self) -> bool:
        """Whether no request is in progress."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let a connection in, or close one for it, or refuse it."""
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self.address = network_of(self.client[0]) if self.client else ""
        self.opened = self.active = self.loop.time()
        here = _HERE.setdefault(self.loop, Counter())
        here[self.address] += 1
        if here[self.address] > MOST_OF_ONE and not self._is_proxy():
            self._make_room(self.address, 429)
        elif len(self.server_state.connections) > most_connections():
            self._make_room(here.most_common(1)[0][0], 503)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let a connection go."""
        super().connection_lost(exc)
        here = _HERE[self.loop]
        here[self.address] -= 1
        if not here[self.address]:
            del here[self.address]

    def data_received(self, data: bytes) -> None:
        """Take what a client sends."""
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        super().on_response_complete()
        self._note()

    def resume_writing(self) -> None:
        """Write on."""
        super().resume_writing()
        self.stuck = None

    def look(self) -> None:
        """Close a connection that has kept us waiting for too long."""
        now = self.loop.time()
        if self.closing or self.flow.write_paused:
            waits = self.transport.get_write_buffer_size()
            if self.stuck is None or self.unread - waits >= READ_MEANWHILE:
                self.stuck, self.unread = now, waits
            elif now - self.stuck > READING_SECONDS:
                self.transport.abort()
        elif not self.waits:
            return  # the application works, or reads the body, with a time limit of its own
        elif self.conn.their_state is h11.IDLE:
            since = self.opened if self.cycle is None else self.begun
            if since is not None and now - since > HEADER_SECONDS:
                self._refuse(408) if self.begun else self.transport.close()
        elif now - self.asked > BODY_SECONDS:
            self.transport.close()  # it was answered before its body came, and still sends

    def _note(self) -> None:
        """Note when something began."""
        self.active = self.loop.time()
        if self.cycle is not self._known:
            self._known, self.asked, self.begun = self.cycle, self.active, None
        if self.waits and self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self.begun = self.begun or self.active

    def _is_proxy(self) -> bool:
        """Return whether whoever connects passes on what others ask: its connections are those of many."""
        if not isinstance(self.app, ProxyHeadersMiddleware) or self.client is None:
            return False
        return self.client[0] in self.app.trusted_hosts

    def _make_room(self, address: str, status: int) -> None:
        """Close the one of an address that has waited longest without a request, first of those that never sent any."""
        here = (one for one in self.server_state.connections if isinstance(one, Connection) and one is not self)
        waiting = [one for one in here if one.address == address and one.waits and not one.closing]
        if waiting:
            min(waiting, key=lambda one: (one.cycle is not None, one.active)).transport.close()
        else:
            self._refuse(status)

    def _refuse(self, status: int) -> None:
        """Answer what was not asked, or not to the end, and close."""
        headers = [("connection", "close"), ("content-length", "0"), ("retry-after", "2")]
        reason = HTTPStatus(status).phrase.encode()
        self.transport.write(self.conn.send(h11.Response(status_code=status, headers=headers, reason=reason)) or b"")
        self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        self.transport.close()


def most_connections() -> int:
    """Return how many connections there may be: what the system lets a process open decides too."""
    return max(8, min(MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FILES))


def open_more_files() -> None:
    """Let this process open as many files as connections take, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
