"""`/metrics`: what it counts, held against what was done by hand; who sees it; and that it names nobody."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from manners.backup import record
from manners.backup.record import Rehearsal
from manners.backup.take import backup
from manners.loop.history import Begun, write_begun
from manners.models.requests import Done, Event, Failed, Token
from manners.settings import ServeSettings, Settings
from manners.store.tokens import Scope
from manners.types import (
    AccountRole,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    FinishReason,
    Response,
    Role,
    Turn,
    Verdict,
)
from manners.web import figures
from manners.web.app import create_app
from manners.web.figures import Figures
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.conftest import Place, run
from tests.web.scripted import Scripted

FROM = ("192.0.2.7", 4711)
HERE = ("127.0.0.1", 4711)
SECRET = "zoe-says-7-3-1"


def site_of(place: Place, *, local: bool = False, **more: Any) -> Site:
    workspace = Workspace.open(place.folder)
    settings = Settings(serve=ServeSettings(metrics=more.pop("metrics", "signed in")))
    return Site(workspace, settings, place.store, place.accounts, local, "http://127.0.0.1", Scripted(), **more)


def client_of(site: Site, key: str = "", client: tuple[str, int] = FROM) -> TestClient:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return TestClient(create_app(site), "http://127.0.0.1", headers=headers, follow_redirects=False, client=client)


def told(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """All samples, by name and the labels' values in the order of their names, as Prometheus' own parser reads them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, tuple(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


def labels(text: str) -> set[str]:
    return {value for _, values in told(text) for value in values}


@pytest.fixture(autouse=True)
def _looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "KEPT_SECONDS", 0.0)


def test_what_was_done_is_what_it_counts(place: Place, tmp_path: Path) -> None:
    anna, crowd = Annotator("Anna Weber", AnnotatorKind.HUMAN), Annotator("c", AnnotatorKind.SIMULATED)
    for number, how in enumerate([AskedHow.RANDOM, AskedHow.RANDOM, AskedHow.EVALUATION]):
        given = (Verdict(Choice.LEFT, anna), Verdict(Choice.TIE, crowd))[: 2 - number]
        prompt = (Turn(Role.USER, f"{SECRET} {number}"),)
        place.store.add_comparisons([Comparison(prompt, Response("a", "x"), Response("b", "y"), how, 1.0, given)])
    site = site_of(place)
    watcher = client_of(site, place.key("Wanda", AccountRole.VIEWER, [Scope.METRICS]))
    client = client_of(site)
    for _ in range(3):
        assert client.get("/health").status_code == 200
    client.get(f"/{SECRET}")
    client.get(f"/sign-in/{SECRET}")
    client.request(SECRET.upper(), "/health")
    answer = watcher.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    found = told(answer.text)
    assert found["manners_requests_total", ("GET", "/health", "200")] == 3
    assert found["manners_requests_total", ("GET", "other", "404")] == 1
    assert found["manners_requests_total", ("GET", "/sign-in/{secret}", "400")] == 1
    assert found["manners_request_seconds_count", ("/health",)] >= 3
    assert found["manners_verdicts", ("human", "random")] == 2
    assert found["manners_verdicts", ("simulated", "random")] == 1
    assert ("manners_verdicts", ("human", "evaluation")) not in found
    assert found["manners_queue_comparisons", ()] == site.desk.open()
    assert found["manners_version_served", (site.engine.state.version,)] == 1
    assert found["manners_database_bytes", ()] > 10_000
    assert found["manners_last_backup_timestamp_seconds", ()] == found["manners_last_rehearsal_ok", ()] == 0
    said = answer.text + repr(labels(answer.text))
    assert not any(word in said for word in ("Anna", "Weber", "Wanda", "olga", SECRET, SECRET.upper(), "192.0.2.7"))
    place_of = backup(site.workspace, tmp_path / "backups")["path"]
    record.keep(site.workspace, rehearsal=Rehearsal("2026-01-01", place_of, 3, 0, True, "", 0.1))
    found = told(watcher.get("/metrics").text)
    assert found["manners_last_backup_timestamp_seconds", ()] > 1.7e9 and found["manners_last_rehearsal_ok", ()] == 1


def test_how_the_loop_stands_is_a_figure(alone: Place) -> None:
    site = site_of(alone, local=True)
    watcher, workspace = client_of(site, client=HERE), site.workspace

    def stands() -> list[str]:
        found = told(watcher.get("/metrics").text)
        states = {labels[0]: value for (name, labels), value in found.items() if name == "manners_loop"}
        assert states.keys() == {"none", "running", "waiting", "idle", "failed", "ended"}
        return [state for state, value in states.items() if value]

    assert stands() == ["none"]
    write_begun(workspace, Begun(rounds=3))
    assert stands() == ["idle"]
    with workspace.run_lock("loop"):
        assert stands() == ["running"]
        (workspace.runs / "sample.json").write_text('{"begun_with": {"the round": 1}}', encoding="utf-8")
        assert stands() == ["waiting"]
        write_begun(workspace, Begun(rounds=3, crowd=True))
        assert stands() == ["running"], "the crowd is not waited for"
    write_begun(workspace, Begun(rounds=3, failed="The disk is full."))
    assert stands() == ["failed"]
    write_begun(workspace, Begun(rounds=3, stopped="3 rounds are played."))
    assert stands() == ["ended"]
    (workspace.runs / "loop.json").write_text("{", encoding="utf-8")
    assert stands() == ["failed"], "nothing can go on with it"


async def _given(*events: Event) -> AsyncGenerator[Event]:
    for event in events:
        yield event


def counted(events: Sequence[Event], count: int, leave_after: int | None = None) -> tuple[Any, list[Any]]:
    """What is counted after these events, and while each is passed on (waiting, writing)."""
    told_of = Figures()
    during = []

    def now() -> tuple[float | None, ...]:
        return tuple(told_of.registry.get_sample_value("manners_answers", {"state": s}) for s in ("waiting", "writing"))

    async def take() -> None:
        async with aclosing(told_of.counted(_given(*events), count)) as passed:
            async for _ in passed:
                during.append(now())
                if len(during) == leave_after:
                    return

    run(take())
    assert now() == (0, 0), "whatever happens, nobody waits afterwards"
    return told_of.registry, during


def done(index: int, prompt: int = 5, completion: int = 7) -> Done:
    return Done(index, FinishReason.STOP, prompt, completion, "policy-1")


def test_answers_wait_are_written_and_end_by_hand() -> None:
    registry, during = counted([Token(0, "a"), Token(1, "b"), done(1), Token(0, "c"), done(0)], 2)
    assert during == [(1, 1), (0, 2), (0, 1), (0, 1), (0, 0)]
    assert registry.get_sample_value("manners_tokens_total", {"of": "completion"}) == 14
    assert registry.get_sample_value("manners_tokens_total", {"of": "prompt"}) == 10
    assert registry.get_sample_value("manners_answers_ended_total", {"how": "stop"}) == 2


def test_answers_that_fail_or_that_nobody_waits_for_any_more() -> None:
    registry, _ = counted([Token(0, "a"), Failed("no memory")], 3)
    assert registry.get_sample_value("manners_answers_ended_total", {"how": "failed"}) == 3
    registry, during = counted([Token(0, "a"), Token(0, "b")], 2, leave_after=1)
    assert during == [(1, 1)]
    assert registry.get_sample_value("manners_answers_ended_total", {"how": "stop"}) is None
    registry, during = counted([done(0)], 1)
    assert during == [(0, 0)], "an empty answer ends without a token"


@pytest.mark.parametrize(
    ("role", "scopes", "status"),
    [
        (AccountRole.OWNER, [Scope.METRICS], 200),
        (AccountRole.REVIEWER, [Scope.METRICS], 200),
        (AccountRole.VIEWER, [Scope.METRICS], 200),
        (AccountRole.ANNOTATOR, [Scope.METRICS], 403),
        (AccountRole.OWNER, [Scope.EXPORT, Scope.CHAT, Scope.FEEDBACK, Scope.ADMIN], 403),
    ],
)
def test_a_key_sees_it_that_is_for_it(role: AccountRole, scopes: list[Scope], status: int, alone: Place) -> None:
    alone.accounts.add("olga", AccountRole.OWNER, "correct horse")
    site = site_of(alone)
    key = alone.key("wanda", role, scopes)
    assert client_of(site, key).get("/metrics").status_code == status
    if scopes == [Scope.METRICS]:
        assert client_of(site, key).get("/dashboard.json").status_code == 403, "and it is good for nothing else"


@pytest.mark.parametrize(
    ("metrics", "client", "proxied", "status"),
    [
        ("signed in", HERE, False, 401),
        ("this machine", HERE, False, 200),
        ("this machine", ("::1", 4711), False, 200),
        ("this machine", FROM, False, 401),
        ("this machine", ("testclient", 4711), False, 401),
        ("this machine", HERE, True, 401),  # a proxy on this machine brings whoever comes to it
    ],
)
def test_this_machine_sees_it_where_a_setting_says_so(
    metrics: str, client: tuple[str, int], proxied: bool, status: int, alone: Place
) -> None:
    alone.accounts.add("olga", AccountRole.OWNER, "correct horse")
    site = site_of(alone, metrics=metrics, proxied=proxied)
    assert client_of(site, client=client).get("/metrics").status_code == status
    assert client_of(site, client=client).get("/dashboard.json").status_code == 401


def test_without_accounts_whoever_is_here_sees_it(alone: Place) -> None:
    assert client_of(site_of(alone, local=True), client=HERE).get("/metrics").status_code == 200


def test_who_asks_often_costs_the_database_nothing(alone: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "KEPT_SECONDS", 60.0)
    site = site_of(alone, local=True)
    looked = list[int]()
    monkeypatch.setattr(Figures, "_look", lambda self, site: looked.append(1))
    client = client_of(site, client=HERE)
    for _ in range(5):
        client.get("/metrics")
    assert looked == [1]
