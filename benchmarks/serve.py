"""Serving: `python -m benchmarks.serve`, tokens a second for many at once, and how quick pages stay meanwhile."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from benchmarks.prepare import prompt_texts
from benchmarks.publish import PAGE, here, replace_between
from manners.models.requests import Done, Failed, GenerationRequest, Phase, Token
from manners.settings import ModelSettings
from manners.types import Role, Turn
from manners.web.engine import Engine
from manners.workspace import Workspace

PAGE_WORK = 20_000
"""Additions that stand for what a page costs, about a millisecond."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    model: str = "smollm2-135m"
    streams: int = 16
    """Requests at once."""
    tokens: int = 64
    """Length limit of an answer."""
    threads: int = max(1, (os.cpu_count() or 1) - 1)
    """Of the model's process."""
    seconds: float = 10.0
    """How long pages are fetched, without and with streams."""
    publish: bool = True
    """Write the table into the documentation."""


def main(options: Options) -> None:
    """Measure, and publish the table."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.create(Path(folder) / "workspace")
        engine = Engine(workspace.root, ModelSettings(options.model), "initial", options.streams, options.threads)
        begin = time.perf_counter()
        engine.start()
        while engine.state.phase is Phase.LOADING:
            time.sleep(0.01)
        ready = time.perf_counter() - begin
        try:
            rows = [f"| from start to ready | {ready:.1f} s |", *asyncio.run(measure(engine, options))]
        finally:
            engine.stop()
    text = "\n".join(["| | |", "|---|---|", *rows])
    text += f"\n\n{options.threads} thread(s) for the model, answers of up to {options.tokens} tokens. {here()}"
    print(text)
    if options.publish:
        replace_between(PAGE, "serving", text)


async def measure(engine: Engine, options: Options) -> list[str]:
    """Return the rows of the table that need a model that is ready."""
    texts = prompt_texts()[: options.streams]
    requests = [
        GenerationRequest((Turn(Role.USER, text),), options.tokens, seed, temperature=0.7)
        for seed, text in enumerate(texts)
    ]
    await answer(engine, requests[0])
    begin = time.perf_counter()
    tokens = sum([await answer(engine, request) for request in requests])
    alone = tokens / (time.perf_counter() - begin)
    begin = time.perf_counter()
    tokens = sum(await asyncio.gather(*(answer(engine, request) for request in requests)))
    together = tokens / (time.perf_counter() - begin)
    first_alone = [await first_token(engine, request) for request in requests]
    async with busy(engine, requests[1:]):
        first_beside = [await first_token(engine, requests[0]) for _ in requests]
    idle = await fetch_pages(options.seconds)
    async with busy(engine, requests):
        beside = await fetch_pages(options.seconds)
    return [
        f"| one after another | {alone:.1f} tokens/s |",
        f"| {options.streams} at once | {together:.1f} tokens/s, **{together / alone:.1f} times** as many |",
        f"| first token, nobody else there | {spread(first_alone)} |",
        f"| first token, {options.streams - 1} others running | {spread(first_beside)} |",
        f"| a page, the model idle | {spread(idle)} |",
        f"| a page, {options.streams} streams running | {spread(beside)} |",
    ]


async def answer(engine: Engine, request: GenerationRequest) -> int:
    """Return how many tokens were drawn."""
    async for event in engine.generate(request):
        if isinstance(event, Failed):
            raise SystemExit(event.message)
        if isinstance(event, Done):
            return event.completion_tokens
    raise AssertionError("an answer without an end")


async def first_token(engine: Engine, request: GenerationRequest) -> float:
    """Return the seconds until the first text."""
    begin = time.perf_counter()
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, Token):
                break
    return time.perf_counter() - begin


@asynccontextmanager
async def busy(engine: Engine, requests: Sequence[GenerationRequest]) -> AsyncIterator[None]:
    """Keep as many streams running as there are requests."""

    async def again(request: GenerationRequest) -> None:
        while True:
            await answer(engine, request)
            request = replace(request, seed=request.seed + len(requests))

    streams = [asyncio.create_task(again(request)) for request in requests]
    await asyncio.sleep(2.0)
    yield
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)


async def fetch_pages(seconds: float) -> list[float]:
    """Fetch a small page from a server in this process again and again; return the seconds that each took."""

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = str(sum(range(PAGE_WORK))).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    took, end = list[float](), time.perf_counter() + seconds
    server = await asyncio.start_server(page, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    while (begin := time.perf_counter()) < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        await reader.read()
        writer.close()
        took.append(time.perf_counter() - begin)
        await asyncio.sleep(0.02)
    server.close()
    return took


def spread(seconds: Sequence[float]) -> str:
    """Return median and 95th percentile."""
    return f"{1e3 * statistics.median(seconds):.1f} ms (p95 {1e3 * statistics.quantiles(seconds, n=20)[-1]:.1f} ms)"


if __name__ == "__main__":
    main(tyro.cli(Options))
