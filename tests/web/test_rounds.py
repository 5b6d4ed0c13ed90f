"""The page of the rounds: what it says of a record that was written by hand, who sees it, and how it reads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from manners.audit import gate
from manners.audit.rules import EVALUATION
from manners.loop.history import Begun, write_begun
from manners.results.audit import FAIL, PASS, Check
from manners.store.records import Outcome, Round, VersionRecord
from manners.types import (
    AccountRole,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Response,
    Role,
    Turn,
    Verdict,
    VersionKind,
)
from manners.web.rounds import HIGH, WIDE, drawn
from manners.workspace import Workspace
from tests.web.conftest import NOWHERE, Place, serve
from tests.web.scripted import Scripted
from tests.web.test_dashboard import client

DAY = datetime(2030, 1, 31, 12, tzinfo=UTC)


def comparison(number: int, verdicts: int) -> Comparison:
    who = [Annotator(f"person {n}", AnnotatorKind.HUMAN) for n in range(verdicts)]
    given = tuple(Verdict(Choice.LEFT, person, created_at=DAY) for person in who)
    sides = Response(f"a {number}", "initial"), Response(f"b {number}", "initial")
    return Comparison((Turn(Role.USER, f"{number}?"),), *sides, AskedHow.RANDOM, 1.0, given)


def fill(place: Place) -> Workspace:
    """Two rounds: the first, on 3 verdicts, was promoted, the second, on 5, was not; 1 verdict came since, of 20."""
    workspace = Workspace.open(place.folder)
    for number, (verdicts, policy, reward, outcome) in enumerate(
        [(3, "policy-1", "reward-1", Outcome.PROMOTED), (2, "policy-2", "reward-2", Outcome.REJECTED)]
    ):
        place.store.add_comparisons([comparison(number, verdicts)])
        for name, kind in ((reward, VersionKind.REWARD), (policy, VersionKind.POLICY)):
            place.store.add_version(VersionRecord(name, kind, f"models/{name}", None, {}, place.store.watermark()))
            (workspace.models / name).mkdir(parents=True)
            (workspace.models / name / "version.json").write_text("{}", encoding="utf-8")
        share = 0.7 - 0.25 * number
        found = Check(
            name="win_rate",
            verdict=PASS if outcome is Outcome.PROMOTED else FAIL,
            value=share,
            low=share - 0.1,
            high=share + 0.1,
            required=True,
            sentence="",
        )
        gate.keep(workspace, policy, EVALUATION, [found], "initial")
        metrics = {"win_rate": share, "interval": [share - 0.08, share + 0.08], "kl": 1.5 + number}
        place.store.add_round(Round(policy, reward, outcome, metrics, DAY))
    workspace.promote("policy-1")
    place.store.add_comparisons([comparison(9, 1)])
    sample = {"begun_with": {"the round": 3}}
    (workspace.runs / "sample.json").write_text(json.dumps(sample), encoding="utf-8")
    write_begun(workspace, Begun(rounds=4, created_at=DAY.isoformat(), when="20 new verdicts"))
    return workspace


def test_the_page_says_what_was_written_by_hand(alone: Place) -> None:
    fill(alone)
    looker = client(alone, AccountRole.VIEWER, Scripted())
    facts = looker.get("/rounds.json").json()
    first, second = facts["rounds"]
    assert (first["round"], first["verdicts"], second["round"], second["verdicts"]) == (1, 3, 2, 5)
    assert (first["outcome"], second["outcome"]) == ("promoted", "rejected")
    assert (first["kl"], second["kl"]) == (1.5, 2.5)
    assert first["quality"] == pytest.approx([0.7, 0.6, 0.8])
    assert second["gate"] == {"verdict": "fail", "failed": ["win_rate"], "cannot_tell": []}
    waiting = facts["waiting_for"]
    assert (waiting["what"], waiting["have"], waiting["need"]) == ("verdicts", 1, 20)
    assert (facts["current"], facts["to_play"]) == ("policy-1", 2)
    page = looker.get("/rounds").text
    assert "waiting for verdicts: 1 of 20 new ones are there" in page
    assert "70.0 % [62.0 %, 78.0 %]" in page and "cannot tell from chance" in page
    assert page.index("policy-2</td>") < page.index("policy-1</td>"), "the newest comes first"
    assert '<a href="/rounds" aria-current="page">Rounds</a>' in page


def test_a_loop_that_has_ended_says_why(alone: Place) -> None:
    workspace = fill(alone)
    write_begun(workspace, Begun(rounds=2, created_at=DAY.isoformat(), stopped="2 rounds are played."))
    page = client(alone, AccountRole.OWNER, Scripted()).get("/rounds").text
    assert "The loop has ended: 2 rounds are played." in page and "<progress" not in page


def test_the_page_says_whether_a_process_plays_and_how_the_last_one_ended(alone: Place) -> None:
    workspace = fill(alone)
    looker = client(alone, AccountRole.VIEWER, Scripted())
    goes_on = "<code>manners loop --rounds 4 --when &#34;20 new verdicts&#34;</code> goes on"
    assert looker.get("/rounds.json").json()["state"] == "idle"
    assert "No process plays it now" in (page := looker.get("/rounds").text) and goes_on in page
    with workspace.run_lock("loop"):
        facts = looker.get("/rounds.json").json()
        assert (facts["state"], facts["process"]) == ("waiting", f"process {os.getpid()}")
        assert f"It is played by process {os.getpid()}." in (page := looker.get("/rounds").text) and goes_on not in page
    with workspace.run_lock("ppo"):
        assert looker.get("/rounds.json").json()["state"] == "idle"
    why = "The database <refused>; check it."
    begun = Begun(rounds=4, created_at=DAY.isoformat(), failed=why, failed_at=DAY.isoformat())
    write_begun(workspace, begun)
    facts = looker.get("/rounds.json").json()
    assert (facts["state"], facts["process"], facts["failed"]) == ("failed", "", why)
    page = looker.get("/rounds").text
    assert "failed, 2030-01-31 12:00 UTC: The database &lt;refused&gt;; check it." in page
    assert "manners loop --rounds 4</code> goes on" in page


def test_a_workspace_without_a_loop_says_what_begins_one(alone: Place) -> None:
    page = client(alone, AccountRole.VIEWER, Scripted()).get("/rounds").text
    assert "manners loop --rounds 3" in page and "<svg" not in page


def test_rounds_are_drawn_where_they_belong() -> None:
    def one(number: int, *quality: float) -> dict[str, object]:
        return {"round": number, "quality": quality or None, "outcome": "promoted"}

    places = drawn([one(1, 0.5, 0.0, 1.0), one(2), one(3, 0.75, 0.5, 1.0)])
    assert [p["round"] for p in places] == [1, 3], "of the second nothing is known"
    assert [p["x"] for p in places] == [WIDE / 4, 3 * WIDE / 4]
    assert [p["y"] for p in places] == [HIGH / 2, HIGH / 4]
    assert (places[0]["low"], places[0]["high"], places[1]["low"]) == (HIGH, 0.0, HIGH / 2)
    assert drawn([]) == []


@pytest.mark.long
@pytest.mark.parametrize("dark", [False, True])
def test_a_screen_reader_finds_nothing_serious(alone: Place, open_page: Callable[..., Page], dark: bool) -> None:
    fill(alone)
    with serve(alone.folder, "--upstream", NOWHERE) as server:
        found = Axe().run(open_page(server.url + "/rounds", dark=dark)).response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
