"""How the server is doing, in the text format that Prometheus reads (`/metrics`); no person's name, no word, no path.

What happens is counted as it happens (requests, answers, tokens); how much there is is looked up when somebody asks,
at most once in ten seconds. Source: Prometheus, "Exposition formats" and "Metric and label naming".
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from manners.backup import record, snapshots
from manners.backup.take import last as last_backup
from manners.errors import MannersError, Unavailable
from manners.loop import waiting
from manners.loop.history import State
from manners.models.requests import Done, Event, Failed, Phase, Token
from manners.store import holdings, sound

if TYPE_CHECKING:  # it holds one of these
    from manners.web.site import Site

KEPT_SECONDS = 10.0
"""For so long what was looked up in the database is given again: whoever asks often costs it nothing."""


class Figures:
    """What is counted while a server runs; safe to use from many threads."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered.", "route", "method", "status")
        self.seconds = Histogram(
            "manners_request_seconds",
            "From a request to the beginning of its answer.",
            ["route"],
            registry=self.registry,
        )
        self.answers = self._gauge("answers", "Answers asked for and not complete: waiting, or being written.", "state")
        self.ended = self._counter("answers_ended", "Answers that ended, by how.", "how")
        self.tokens = self._counter("tokens", "Tokens read (prompt) and written (completion).", "of")
        self._verdicts = self._gauge("verdicts", "Verdicts in the record.", "asked_how", "annotator_kind")
        self._queue = self._gauge("queue_comparisons", "Comparisons that somebody may still be given to judge.")
        self._served = self._gauge("version_served", "1 for the policy that answers.", "version")
        self._ready = self._gauge("model_ready", "Whether answers are being written: 1, or 0 while it loads or failed.")
        self._size = self._gauge("database_bytes", "Size of the database.")
        self._backup = self._gauge("last_backup_timestamp_seconds", "When the last backup was; 0 for never.")
        self._rehearsed = self._gauge("last_rehearsal_ok", "1 where the last rehearsed restore came back whole.")
        self._loop = self._gauge("loop", "1 for how `manners loop` stands, 0 for how it does not.", "state")
        for state in ("waiting", "writing"):
            self.answers.labels(state)
        ProcessCollector(namespace="manners", registry=self.registry)
        self._lock, self._looked = threading.Lock(), -KEPT_SECONDS

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"manners_{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"manners_{name}", meaning, labels, registry=self.registry)

    async def counted(self, events: AsyncGenerator[Event], count: int) -> AsyncGenerator[Event]:
        """Pass on what is written to `count` answers, and count it; leave it under `contextlib.aclosing`."""
        waiting, writing = self.answers.labels("waiting"), self.answers.labels("writing")
        begun, left = set[int](), count
        waiting.inc(count)
        try:
            async with aclosing(events) as source:
                async for event in source:
                    if isinstance(event, Token | Done) and event.index not in begun:
                        begun.add(event.index)
                        waiting.dec()
                        writing.inc()
                    if isinstance(event, Done):
                        left -= 1
                        begun.discard(event.index)
                        writing.dec()
                        self._done(event)
                    elif isinstance(event, Failed):
                        self.ended.labels("refused" if event.refused else "failed").inc(left)
                    yield event
        finally:
            writing.dec(len(begun))
            waiting.dec(max(0, left - len(begun)))

    def _done(self, event: Done) -> None:
        self.ended.labels(event.finish_reason.value).inc()
        self.tokens.labels("prompt").inc(event.prompt_tokens)
        self.tokens.labels("completion").inc(event.completion_tokens)

    def text(self, site: Site) -> bytes:
        """Return all of it as Prometheus reads it."""
        with self._lock:
            if time.monotonic() - self._looked >= KEPT_SECONDS:
                self._look(site)
                self._looked = time.monotonic()
            state = site.engine.state
            self._served.clear()
            self._served.labels(state.version).set(1)
            self._ready.set(state.phase is Phase.READY)
        return generate_latest(self.registry)

    def _look(self, site: Site) -> None:
        """Look up how much there is."""
        with site.store.read() as connection:
            self._size.set(sound.size(connection))
            found = holdings.verdicts(connection)
        self._verdicts.clear()
        for (how, kind), count in found.items():
            self._verdicts.labels(how, kind).set(count)
        self._queue.set(site.desk.open())
        backup, rehearsed = last_backup(site.workspace), record.rehearsal(site.workspace)
        made = snapshots.moment(backup["made_at"]) if backup else None
        self._backup.set(made.timestamp() if made else 0)
        self._rehearsed.set(rehearsed is not None and rehearsed.verified)
        stands = _loop(site)
        for one in State:
            self._loop.labels(str(one)).set(one is stands)


def _loop(site: Site) -> State:
    """Return how the loop stands; one whose record is damaged goes on no more."""
    try:
        return waiting.stands(site.workspace, site.store)
    except Unavailable:
        raise
    except MannersError:
        return State.FAILED
