"""A pool of hostile clients, for `benchmarks.attack`: `python -m benchmarks.hostile PORT SECONDS SIZE KEY...`.

Fifteen kinds at once, from nine addresses of this machine, one of which the honest share. The first key is a
reviewer's, who may see the dashboard. Prints how often what was answered, as JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

ADDRESSES = [f"127.0.0.{number}" for number in range(1, 10)]
BODY = 1_900_000
"""Bytes of the large ones: just below what is taken at all."""
KEY = 30_000
"""Characters of a wrong key: a header takes 32 KB."""
CHAT = "/v1/chat/completions"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Pool:
    """What the hostile know, and what they were told."""

    def __init__(self, port: int, keys: list[str]) -> None:
        """Take a port of this machine, and keys of accounts that they have."""
        self.port = port
        self.told = Counter[str]()
        self._reviewer = keys[0]
        self._keys = itertools.cycle(keys)
        self._addresses = itertools.cycle(ADDRESSES)

    @property
    def key(self) -> str:
        """One of their keys."""
        return next(self._keys)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Streams]:
        """Yield a connection from one of their addresses."""
        source = (next(self._addresses), 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=source, limit=2**20)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def head(
        self, path: str, length: int | None, key: str | None, kind: str = "application/json", more: str = ""
    ) -> bytes:
        """Return a request's header; one without a length asks for a page."""
        who = f"Authorization: Bearer {key}\r\n" if key else ""
        what = "" if length is None else f"Content-Type: {kind}\r\nContent-Length: {length}\r\n"
        how = "GET" if length is None else "POST"
        return f"{how} {path} HTTP/1.1\r\nHost: a\r\n{who}{what}{more}\r\n".encode()

    async def hear(self, kind: str, reader: asyncio.StreamReader) -> None:
        """Note the status of an answer, and read it to its end or for two seconds."""
        line = await reader.readline()
        self.told[f"{kind}: {line.split()[1].decode() if len(line.split()) > 1 else 'closed'}"] += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                while await reader.read(65_536):
                    pass

    async def say_nothing(self) -> None:
        """Open a connection and leave it open."""
        async with self.connection() as (reader, _):
            await self.hear("idle", reader)

    async def drip_header(self) -> None:
        """Send a header that does not end."""
        async with self.connection() as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n")
            await self._drip("slow header", reader, writer, b"X: y\r\n")

    async def drip_body(self, known: bool) -> None:
        """Send a body that does not end."""
        async with self.connection() as (reader, writer):
            writer.write(self.head(CHAT, BODY, self.key if known else None))
            await self._drip(f"slow body, {'signed in' if known else 'a stranger'}", reader, writer, b" ")

    async def read_nothing(self) -> None:
        """Ask for long answers and do not read them."""
        async with self.connection() as (reader, writer):
            body = asked("Hi", n=4, max_tokens=200, stream=True, logprobs=True, top_logprobs=20)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(self.head(CHAT, len(body), self.key) + body)
            await asyncio.sleep(20)
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            await self.hear("slow reader", reader)

    async def guess(self, number: int) -> None:
        """Try to sign in."""
        await self.send("sign-in", "/sign-in", f"name=n{number}&password=wrong+password".encode(), None, FORM)

    async def send_deep(self, number: int) -> None:
        """Send JSON that is much larger once it is taken apart."""
        kinds = (b"[" * BODY, b"[" + b"{}," * (BODY // 3) + b"0]", b'{"messages":[' + b"[]," * (BODY // 3) + b"0]}")
        await self.send("deep or wide JSON", CHAT, kinds[number % len(kinds)], self.key)

    async def talk_long(self) -> None:
        """Send a dialogue of a thousand turns, and leave before it is answered, half the time."""
        turns = [{"role": "user" if n % 2 else "assistant", "content": "how long is it? " * 20} for n in range(1000)]
        body = json.dumps({"model": "manners", "messages": turns[:999] + turns[1:2], "max_tokens": 20}).encode()
        await self.send("long dialogue", CHAT, body, self.key)

    async def come_with_wrong_keys(self, number: int) -> None:
        """Send a key that nobody has, as long as a header may be, another one each time."""
        await self.exchange("wrong key", "/v1/models", None, f"{number}".zfill(KEY))

    async def look_for_nothing(self, number: int) -> None:
        """Ask for pages that there are not."""
        await self.exchange("no such page", f"/nowhere/{number}/{'x' * 500}", None, None)

    async def report(self) -> None:
        """Report one pair after another."""
        key = self.key
        said = await self.exchange("a pair to report", "/label/next", {}, key)
        if pair := said.get("pair"):
            body = {"view": pair["view"], "reason": "other", "note": "x" * 9000}
            await self.exchange("report", "/label/flag", body, key)

    async def chat_on(self) -> None:
        """Go on with one conversation until it takes no more: each turn is stored with all that was said before it."""
        key = self.key
        chat = (await self.exchange("begin", "/chat/begin", {}, key)).get("key")
        for turn in range(100 if chat else 0):
            await self.exchange("long chat", f"/chat/{chat}/say", {"text": f"{turn} and on"}, key)

    async def look_on(self) -> None:
        """Look at the dashboard, which reads all comparisons whenever there are others."""
        await self.exchange("dashboard", "/dashboard", None, self._reviewer)

    async def ask_for_reports(self) -> None:
        """Ask for answers at once, with twenty other tokens beside each of theirs."""
        body = asked("Hi", n=4, max_tokens=200, logprobs=True, top_logprobs=20)
        await self.send("top_logprobs, at once", CHAT, body, self.key, wait=30)

    async def ask_for_many(self) -> None:
        """Ask for as many answers as there are seats."""
        await self.send(
            "n = 16", CHAT, asked("Tell me everything.", n=16, max_tokens=150, stream=True), self.key, wait=30
        )

    async def send(
        self, kind: str, path: str, body: bytes, key: str | None, type_: str = "application/json", wait: float = 10
    ) -> None:
        """Send a whole request, and hear what is said to it."""
        async with self.connection() as (reader, writer), asyncio.timeout(wait):
            writer.write(self.head(path, len(body), key, type_) + body)
            await self.hear(kind, reader)

    async def exchange(self, kind: str, path: str, body: object, key: str | None) -> dict[str, Any]:
        """Send a body, or ask for a page where it is None; return the object that is answered, or an empty one."""
        content = b"" if body is None else json.dumps(body).encode()
        head = self.head(path, None if body is None else len(content), key, more="Connection: close\r\n")
        async with self.connection() as (reader, writer), asyncio.timeout(30):
            writer.write(head + content)
            answer = await reader.read()
        first, _, said = answer.partition(b"\r\n\r\n")
        status = first.split()[1].decode() if first else "closed"
        broken = ", and then not" if b'"kind": "failed"' in said else ""
        self.told[f"{kind}: {status}{broken}"] += 1
        with suppress(ValueError):
            found = json.loads(said)
            return found if isinstance(found, dict) else {}
        return {}

    async def _drip(self, kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drop: bytes) -> None:
        hearing = asyncio.ensure_future(self.hear(kind, reader))
        while not hearing.done():
            writer.write(drop)
            await asyncio.sleep(1)
        await hearing


FORM = "application/x-www-form-urlencoded"


def asked(text: str, **more: object) -> bytes:
    """Return the body of a request for an answer."""
    return json.dumps({"model": "manners", "messages": [{"role": "user", "content": text}]} | more).encode()


async def attack(pool: Pool, seconds: float, size: float) -> None:
    """Let all kinds run side by side; `size` 1 is 700 connections that wait and 40 requests a second."""
    numbers = itertools.count()

    async def again(do: Callable[[], Awaitable[None]], pause: float = 0.05) -> None:
        while True:
            try:
                await do()
            except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
                pool.told[type(error).__name__] += 1
            await asyncio.sleep(pause)

    kinds: list[tuple[int, float, Callable[[], Awaitable[None]]]] = [
        (300, 0.5, pool.say_nothing),
        (200, 0.5, pool.drip_header),
        (60, 0.5, lambda: pool.drip_body(known=True)),
        (60, 0.5, lambda: pool.drip_body(known=False)),
        (40, 0.5, pool.read_nothing),
        (10, 0.3, lambda: pool.guess(next(numbers))),
        (4, 1.0, lambda: pool.send_deep(next(numbers))),
        (4, 1.0, pool.talk_long),
        (10, 0.1, lambda: pool.come_with_wrong_keys(next(numbers))),
        (10, 0.1, lambda: pool.look_for_nothing(next(numbers))),
        (4, 0.1, pool.report),
        (2, 0.1, pool.chat_on),
        (1, 0.5, pool.look_on),
        (4, 0.5, pool.ask_for_reports),
        (20, 0.2, pool.ask_for_many),
    ]
    tasks = [
        asyncio.create_task(again(do, pause)) for count, pause, do in kinds for _ in range(max(1, int(count * size)))
    ]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """Attack for as long as was said."""
    _, port, seconds, size, *keys = sys.argv
    pool = Pool(int(port), keys)
    asyncio.run(attack(pool, float(seconds), float(size)))
    print(json.dumps(dict(sorted(pool.told.items()))))


if __name__ == "__main__":
    main()
