"""Honest people who use a server: they label, they chat, and note how long everything took and what failed."""

from __future__ import annotations

import json
import random
import re
import time
from collections import defaultdict
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from benchmarks.label import percentile

THINKING = 1.0
"""Seconds that an annotator thinks, a tenth of what people take; half as long or half as long again."""


@dataclass
class Noticed:
    """What the honest noticed."""

    pages: list[float] = field(default_factory=list)
    """Seconds that each page, pair and verdict took."""
    first: list[float] = field(default_factory=list)
    """Seconds until each answer's first piece."""
    acknowledged: list[str] = field(default_factory=list)
    """The views of which the server said that their verdict is kept."""
    last: float = 0.0
    """When the last verdict was acknowledged."""
    failed: list[str] = field(default_factory=list)
    took: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds on a processor, by whose."""


def label(host: str, key: str, end: float, noticed: Noticed, thinking: float = THINKING) -> None:
    """Open the page, and judge one pair after another, with so many seconds thought a pair."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def ask(connection: HTTPConnection, method: str, path: str, body: object = None) -> bytes:
        begun = time.monotonic()
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        found = answer.read()
        noticed.pages.append(time.monotonic() - begun)
        if answer.status != 200:
            raise ValueError(f"{path}: {answer.status} {found[:80].decode(errors='replace')}")
        return found

    while time.monotonic() < end:
        try:
            with closing(HTTPConnection(host, timeout=60)) as connection:
                for _ in range(5):
                    ask(connection, "GET", "/label")
                    shown = json.loads(ask(connection, "POST", "/label/next", {}))["pair"]
                    if shown is None or time.monotonic() > end:
                        return
                    view = shown["view"]
                    time.sleep(thinking * random.uniform(0.5, 1.5))
                    choice = random.choice(("left", "right", "tie"))
                    ask(connection, "POST", "/label/verdict", {"view": view, "choice": choice, "seconds": 1.0})
                    noticed.acknowledged.append(view)
                    noticed.last = time.monotonic()
        except (OSError, HTTPException, ValueError, KeyError) as error:
            noticed.failed.append(f"label: {type(error).__name__} {error}")


def chat(host: str, key: str, end: float, noticed: Noticed) -> None:
    """Ask for one answer after another, and note when each begins."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    asked = {"model": "manners", "messages": [{"role": "user", "content": "How do I bake bread?"}], "stream": True}
    while time.monotonic() < end:
        try:
            with closing(HTTPConnection(host, timeout=60)) as connection:
                begun = time.monotonic()
                body = json.dumps(asked | {"max_tokens": 30, "seed": random.randrange(2**31)})
                connection.request("POST", "/v1/chat/completions", body, headers)
                answer, first, ended = connection.getresponse(), 0.0, False
                for line in answer:
                    if not first and re.search(rb'"content": "[^"]', line):
                        first = time.monotonic() - begun
                    ended |= line.strip() == b"data: [DONE]"
                if answer.status != 200 or not ended:
                    noticed.failed.append(f"chat: {answer.status}, {'whole' if ended else 'broken off'}")
                elif first:
                    noticed.first.append(first)
        except (OSError, HTTPException) as error:
            noticed.failed.append(f"chat: {type(error).__name__} {error}")
        time.sleep(0.5 * random.uniform(0.5, 1.5))


def wait_for_the_model(host: str, key: str) -> None:
    """Wait until a server answers requests, for five minutes; exits where its model does not load."""
    for _ in range(1200):
        with closing(HTTPConnection(host, timeout=60)) as connection:
            connection.request("GET", "/v1/health", headers={"authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            said = answer.read().decode()
            if answer.status == 200:
                return
            if "Loading model" not in said:
                raise SystemExit(said)
        time.sleep(0.25)
    raise SystemExit("the model does not load")


def memory(pid: int) -> int:
    """Return the resident bytes of a process and of those that it started."""
    total = 0
    for one in (pid, *started_by(pid)):
        with suppress(OSError):  # it has ended meanwhile
            found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{one}/status").read_text())
            total += int(found[1]) * 1024 if found else 0
    return total


def started_by(pid: int) -> list[int]:
    """Return the processes that a process started, by whichever of its threads."""
    found = list[int]()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended meanwhile
            found += map(int, file.read_text().split())
    return found


def times(seconds: list[float]) -> str:
    """Return the median of durations and their 95th percentile, as Markdown."""
    return f"{1000 * percentile(seconds, 50):.0f} ms (p95 **{1000 * percentile(seconds, 95):.0f} ms**)"
