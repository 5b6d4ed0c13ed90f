"""How quick labelling is for many at once: 50 people, 200 verdicts each, on SQLite and on PostgreSQL.

    python -m benchmarks.label

Each person asks for a pair, thinks for about a second, which is a tenth of what people take, answers, and asks for the
next one; and once more, nobody thinks, which shows how much the server can do. Client and server share the machine.
Before that, how long it takes from the start of a server to its first page.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection
from itertools import product
from pathlib import Path
from typing import Any, Literal

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


def label_all(url: str, keys: Mapping[str, str], each: int, think: float = 0.0) -> Labelled:
    """Let every holder of a key give so many verdicts, all at once; raises where a request fails.

    They think for `think` seconds a pair, half as long or half as long again.
    """
    host = url.removeprefix("http://")
    begun = time.monotonic()
    with ThreadPoolExecutor(len(keys)) as people:
        seconds = people.map(lambda key: list(_one(host, key, each, think)), keys.values())
        return Labelled([one for taken in seconds for one in taken], time.monotonic() - begun)


def _one(host: str, key: str, each: int, think: float) -> Iterator[float]:
    """Give verdicts through a connection of one's own, and yield how long each request took.

    By the standard library, since a richer client takes more of the machine than the server does.
    """
    with closing(HTTPConnection(host, timeout=60)) as connection:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

        def post(path: str, body: Mapping[str, object]) -> tuple[float, Any]:
            while True:
                begun = time.monotonic()
                connection.request("POST", path, json.dumps(body), headers)
                answer = connection.getresponse()
                found, took = json.loads(answer.read()), time.monotonic() - begun
                if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
                    time.sleep(float(answer.headers["retry-after"]))
                elif answer.status == HTTPStatus.OK:
                    return took, found
                else:
                    raise RuntimeError(f"{path} was answered with {answer.status}: {found}")

        for given in range(each):
            took, found = post("/label/next", {})
            yield took
            if found["pair"] is None:
                return
            time.sleep(think * random.uniform(0.5, 1.5))
            choice = ("left", "right", "tie")[given % 3]
            yield post("/label/verdict", {"view": found["pair"]["view"], "choice": choice, "seconds": 1.5})[0]


def main(
    databases: tuple[Literal["SQLite", "PostgreSQL"], ...] = ("SQLite", "PostgreSQL"),
    thought: tuple[float, ...] = (1.0, 0.0),
    publish: bool = True,
) -> None:
    """Measure on databases, with so many seconds thought a pair; write the table into the documentation."""
    rows = [
        "| database | thought a pair | verdicts stored | of them distinct | requests/s | p50 | p95 | p99 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first_page = list[float]()
    for name, think in product(databases, thought):
        row, waited = measured(name, think)
        print(row, flush=True)
        rows.append(row)
        first_page.append(waited)
    waits = f"The first page came {min(first_page):.1f} to {max(first_page):.1f} s after the start of the server."
    text = "\n".join([*rows, "", f"{PEOPLE} people at once, {EACH} verdicts each. {waits} {here()}"])
    if publish:
        replace_between(PAGE, "labelling", text)


def measured(database: str, think: float) -> tuple[str, float]:
    """Return a row of the table, and after how many seconds the first page came."""
    # The servers of the tests: the same real parts.
    from manners.store import Store
    from manners.store.accounts import Accounts
    from manners.types import AccountRole
    from manners.workspace import Workspace
    from tests import postgres
    from tests.web.conftest import NOWHERE, Place, serve
    from tests.web.test_label import pair, settings

    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        url = None
        if database == "PostgreSQL":
            url = opened.enter_context(opened.enter_context(postgres.start()).database())
        workspace = Workspace.create(folder / "workspace", url)
        store = opened.enter_context(closing(Store.open_or_create(workspace.database)))
        place = Place(workspace.root, store, Accounts(store))
        place.accounts.add("olga", AccountRole.OWNER, "correct horse")
        settings(place, repeat_share=0.0)
        place.store.add_comparisons(pair(number) for number in range(PEOPLE * EACH))
        keys = {f"person{number}": place.key(f"person{number}") for number in range(PEOPLE)}
        somebody = {"authorization": f"Bearer {keys['person0']}"}
        with serve(place.folder, "--upstream", NOWHERE, "--set", "serve.shortest_view=0") as server:
            begun = time.monotonic()
            httpx.get(f"{server.url}/label", headers=somebody).raise_for_status()
            waited = server.seconds + time.monotonic() - begun
            labelled = label_all(server.url, keys, EACH, think)
        given = [(c.id, v.annotator) for c in store.comparisons() for v in c.verdicts]
    took = " | ".join(f"{1000 * percentile(labelled.seconds, p):.0f} ms" for p in (50, 95, 99))
    speed = len(labelled.seconds) / labelled.wall
    return f"| {database} | {think:.0f} s | {len(given)} | {len(set(given))} | {speed:.0f} | {took} |", waited


if __name__ == "__main__":
    tyro.cli(main)
