"""Fifty annotators at once, and a server that is killed in the middle: nothing is lost, nothing doubled."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import httpx
import pytest
from sqlalchemy import select

from benchmarks.label import label_all, percentile
from manners.store.tables import VerdictRow, ViewRow
from tests.web.conftest import NOWHERE, Place, serve
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
        views = list(connection.execute(answered).scalars())
    assert set(acknowledged) <= set(views) and len(set(views)) == len(views)
    assert len(views) <= len(acknowledged) + 10 * times


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
