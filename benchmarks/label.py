"""How quick labelling is for many at once: 50 people, 200 verdicts each, on SQLite and on PostgreSQL.

    python -m benchmarks.label

Each person asks for a pair, answers it as soon as it is there, and asks for the next one: nobody thinks, so this is far
more than 50 people do. Client and server share the machine.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import tyro

from benchmarks.publish import PAGE, here, replace_between

PEOPLE, EACH = 50, 200


@dataclass(frozen=True)
class Labelled:
    """How long each request took, and all of them together."""

    seconds: list[float]
    wall: float


def percentile(seconds: list[float], level: float) -> float:
    """Return a percentile of durations."""
    return float(np.percentile(seconds, level))


async def label_all(url: str, keys: Mapping[str, str], each: int) -> Labelled:
    """Let every holder of a key give so many verdicts, all at once; raises where a request fails."""
    seconds: list[float] = []
    begun = time.monotonic()
    limits = httpx.Limits(max_connections=len(keys), max_keepalive_connections=len(keys))
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        await asyncio.gather(*(_one(client, key, each, seconds) for key in keys.values()))
    return Labelled(seconds, time.monotonic() - begun)


async def _one(client: httpx.AsyncClient, key: str, each: int, seconds: list[float]) -> None:
    async def post(path: str, body: dict[str, object]) -> httpx.Response:
        begun = time.monotonic()
        answer = await client.post(path, json=body, headers={"authorization": f"Bearer {key}"})
        seconds.append(time.monotonic() - begun)
        if answer.status_code == 429:
            await asyncio.sleep(float(answer.headers["retry-after"]))
            return await post(path, body)
        return answer.raise_for_status()

    given = 0
    while given < each:
        pair = (await post("/label/next", {})).json()["pair"]
        if pair is None:
            return
        choice = ("left", "right", "tie")[given % 3]
        await post("/label/verdict", {"view": pair["view"], "choice": choice, "seconds": 1.5})
        given += 1


def main(publish: bool = True) -> None:
    """Measure on both databases, and write the table into the documentation."""
    # The servers of the tests: the same real parts.
    from manners.store import Store
    from manners.store.accounts import Accounts
    from manners.types import AccountRole
    from manners.workspace import Workspace
    from tests import postgres
    from tests.web.conftest import NOWHERE, Place, serve
    from tests.web.test_label import pair, settings

    rows = [
        "| database | verdicts stored | of them distinct | requests/s | p50 | p95 | p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        url = opened.enter_context(opened.enter_context(postgres.start()).database())
        for name, database in (("SQLite", None), ("PostgreSQL", url)):
            workspace = Workspace.create(folder / name, database)
            store = Store.open_or_create(workspace.database)
            place = Place(workspace.root, store, Accounts(store))
            place.accounts.add("olga", AccountRole.OWNER, "correct horse")
            settings(place, repeat_share=0.0)
            place.store.add_comparisons(pair(number) for number in range(PEOPLE * EACH))
            keys = {f"person{number}": place.key(f"person{number}") for number in range(PEOPLE)}
            with serve(place.folder, "--upstream", NOWHERE) as server:
                labelled = asyncio.run(label_all(server.url, keys, EACH))
            given = [(c.id, v.annotator) for c in store.comparisons() for v in c.verdicts]
            took = " | ".join(f"{1000 * percentile(labelled.seconds, p):.0f} ms" for p in (50, 95, 99))
            speed = len(labelled.seconds) / labelled.wall
            rows.append(f"| {name} | {len(given)} | {len(set(given))} | {speed:.0f} | {took} |")
            store.close()
    text = "\n".join([*rows, "", f"{PEOPLE} people at once, {EACH} verdicts each, nobody thinks. {here()}"])
    print(text)
    if publish:
        replace_between(PAGE, "labelling", text)


if __name__ == "__main__":
    tyro.cli(main)
