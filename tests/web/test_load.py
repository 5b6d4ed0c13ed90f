"""Fifty annotators at once, and a server that is killed in the middle: nothing is lost, nothing doubled."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from benchmarks.label import label_all, percentile
from manners.store import Store
from manners.store.accounts import Accounts
from manners.store.tables import VerdictRow, ViewRow
from manners.types import AccountRole
from manners.workspace import Workspace
from tests.postgres import Server
from tests.web.conftest import NOWHERE, PATIENCE, Place, serve
from tests.web.test_label import pair, settings

PEOPLE, EACH = 20, 15


@pytest.mark.long
def test_many_at_once_lose_nothing_and_double_nothing(place: Place) -> None:
    settings(place, repeat_share=0.0, shortest_view=0)
    place.store.add_comparisons(pair(number) for number in range(PEOPLE * EACH))
    keys = {f"person{number}": place.key(f"person{number}") for number in range(PEOPLE)}
    with serve(place.folder, "--upstream", NOWHERE) as server:
        labelled = label_all(server.url, keys, EACH)
    found = [verdict for comparison in place.store.comparisons() for verdict in comparison.verdicts]
    assert Counter(verdict.annotator.name for verdict in found) == dict.fromkeys(keys, EACH)
    seen = Counter((c.id, v.annotator.name) for c in place.store.comparisons() for v in c.verdicts)
    assert set(seen.values()) == {1}, "nobody is asked twice"
    assert max(len(c.verdicts) for c in place.store.comparisons()) <= 2, "no more verdicts than asked for"
    assert percentile(labelled.seconds, 95) < 5 * percentile(labelled.seconds, 50), "nobody waits for all the others"


@pytest.mark.long
def test_every_acknowledged_verdict_survives_a_kill(place: Place, times: int) -> None:
    settings(place, repeat_share=0.0, overlap=1, agree=1)
    place.store.add_comparisons(pair(number) for number in range(400 * times))
    headers = {"authorization": f"Bearer {place.key('anna')}"}
    acknowledged: list[str] = []
    for number in range(10 * times):
        kill = number % 10
        at_once = ("--set", "serve.shortest_view=0")
        with (
            serve(place.folder, "--upstream", NOWHERE, *at_once) as server,
            httpx.Client(base_url=server.url) as client,
        ):
            client.post("/label/begin", headers=headers, json={})
            for turn in range(3 + kill):
                shown = client.post("/label/next", headers=headers, json={}).json()["pair"]
                given = {"view": shown["view"], "choice": "left"}
                if turn == 2 + kill:  # in the middle of this one
                    with suppress(httpx.HTTPError), httpx.Client(timeout=0.001 * kill or 1e-4) as hasty:
                        hasty.post(f"{server.url}/label/verdict", headers=headers, json=given)
                    server.kill()
                    break
                client.post("/label/verdict", headers=headers, json=given).raise_for_status()
                acknowledged.append(shown["view"])
    with place.store.read() as connection:
        answered = select(ViewRow.token).join(VerdictRow, VerdictRow.view_id == ViewRow.id)
        views = [str(token) for token in connection.execute(answered).scalars()]
    assert set(acknowledged) <= set(views) and len(set(views)) == len(views)
    assert len(views) <= len(acknowledged) + 10 * times


@pytest.fixture
def team(server: Server, tmp_path: Path) -> Iterator[Place]:
    """A workspace whose store is in a database that a test may take away."""
    with server.database() as url, closing(Store.create(url)) as store:
        accounts = Accounts(store)
        accounts.add("olga", AccountRole.OWNER, "correct horse")
        yield Place(Workspace.create(tmp_path / "team", url).root, store, accounts)


class Away:
    """The requests that were turned away, and the verdicts that were acknowledged."""

    def __init__(self) -> None:
        """None yet."""
        self.refused = list[httpx.Response]()
        self.acknowledged = list[str]()
        self.changed = threading.Condition()

    def heard(self, answer: httpx.Response, view: str | None) -> None:
        """Take note of an answer to a verdict on a view, or to another request."""
        with self.changed:
            if answer.status_code != HTTPStatus.OK:
                self.refused.append(answer)
            elif view is not None:
                self.acknowledged.append(view)
            self.changed.notify_all()

    def until(self, heard: Sized, count: int) -> None:
        """Wait until so much was heard."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(heard) >= count, PATIENCE), "nothing happens any more"


@pytest.mark.long
def test_every_acknowledged_verdict_survives_a_database_that_is_started_anew(
    team: Place, server: Server, times: int
) -> None:
    """People go on: what was refused is sent again until it is taken, as the page does."""
    people, each, restarts = 6, 60 * times, 3 * times
    settings(team, repeat_share=0.0, overlap=1, agree=1)
    team.store.add_comparisons(pair(number) for number in range(2 * people * each))  # an answer that is lost has one
    keys = [team.key(f"person{number}") for number in range(people)]
    away = Away()

    def label(key: str, url: str) -> None:
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE) as client:

            def send(path: str, given: dict[str, str]) -> httpx.Response:
                while True:
                    answer = client.post(path, json=given)
                    if answer.status_code != HTTPStatus.TOO_MANY_REQUESTS:
                        away.heard(answer, given.get("view"))
                    if answer.status_code == HTTPStatus.OK:
                        return answer
                    time.sleep(0.1)

            for _ in range(each):
                shown = send("/label/next", {}).json()["pair"]
                send("/label/verdict", {"view": shown["view"], "choice": "left"})

    at_once = ("--set", "serve.shortest_view=0")
    with serve(team.folder, "--upstream", NOWHERE, *at_once) as pages, ThreadPoolExecutor(people) as pool:
        labelling = [pool.submit(label, key, pages.url) for key in keys]
        for number in range(restarts):
            away.until(away.acknowledged, people * each * number // (2 * restarts) + 1)  # half is left at the last
            before = len(away.refused)
            server.control("stop", "-m", "fast")
            try:
                away.until(away.refused, before + people)
            finally:
                server.control("start")
        for one in labelling:
            one.result()
    assert len(away.refused) >= people * restarts
    assert {(one.status_code, one.headers.get("retry-after")) for one in away.refused} == {(503, "2")}
    with team.store.read() as connection:
        answered = select(ViewRow.token).join(VerdictRow, VerdictRow.view_id == ViewRow.id)
        views = [str(token) for token in connection.execute(answered).scalars()]
    assert sorted(views) == sorted(away.acknowledged) and len(set(views)) == people * each
    judged = Counter((c.id, v.annotator.name) for c in team.store.comparisons() for v in c.verdicts)
    assert len(judged) == people * each and set(judged.values()) == {1}


def test_the_same_verdict_sent_twice_is_one(place: Place) -> None:
    place.store.add_comparisons(pair(number) for number in range(2))
    headers = {"authorization": f"Bearer {place.key('anna')}"}
    other = {"authorization": f"Bearer {place.key('ben')}"}
    at_once = ("--set", "serve.shortest_view=0")
    with serve(place.folder, "--upstream", NOWHERE, *at_once) as server, httpx.Client(base_url=server.url) as client:
        view = client.post("/label/next", headers=headers, json={}).json()["pair"]["view"]
        for _ in range(3):
            answer = client.post("/label/verdict", headers=headers, json={"view": view, "choice": "right"})
            assert answer.status_code == 200
        stolen = client.post("/label/verdict", headers=other, json={"view": view, "choice": "left"})
        assert stolen.status_code == 404 and "not shown to you" in stolen.json()["error"]["message"]
    assert sum(len(comparison.verdicts) for comparison in place.store.comparisons()) == 1
