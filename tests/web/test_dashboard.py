"""The dashboard's figures against a count by hand, who sees names, and what owners may do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page
from starlette.testclient import TestClient

from manners.audit import gate
from manners.settings import Settings
from manners.store.records import VersionRecord
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
from manners.web.app import create_app
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.conftest import NOWHERE, Place, serve
from tests.web.scripted import Scripted

DAY = datetime(2030, 1, 31, 12, tzinfo=UTC)


def fill(place: Place) -> None:
    """Ten comparisons of two versions: two people choose the new one on the first eight, and skip the last two."""
    people = [Annotator(name, AnnotatorKind.HUMAN) for name in ("<b>anna</b>", "ben")]
    judge = Annotator("judge", AnnotatorKind.AI)
    for n in range(10):
        left, right = Response(f"old {n}", "initial"), Response(f"new {n}", "policy-1")
        choice = Choice.RIGHT if n < 8 else Choice.SKIP
        verdicts = [Verdict(choice, who, created_at=DAY, seconds=4.0 + n) for who in people]
        if n == 0:
            verdicts.append(Verdict(Choice.LEFT, judge, created_at=DAY))
        prompt = (Turn(Role.USER, f"{n}?"),)
        place.store.add_comparisons([Comparison(prompt, left, right, AskedHow.RANDOM, 1.0, tuple(verdicts))])
    place.store.add_version(VersionRecord("policy-1", VersionKind.POLICY, "models/policy-1", None, {}, 0))


def client(place: Place, role: AccountRole, engine: Scripted) -> TestClient:
    workspace = Workspace.open(place.folder)
    site = Site(workspace, Settings(), place.store, place.accounts, False, "http://127.0.0.1", engine)
    key = place.key(f"the {role}", role)
    return TestClient(create_app(site), headers={"authorization": f"Bearer {key}"}, follow_redirects=False)


def test_figures_are_those_counted_by_hand(alone: Place) -> None:
    fill(alone)
    facts = client(alone, AccountRole.REVIEWER, Scripted()).get("/dashboard.json").json()
    assert facts["verdicts"] == {"human": {"2030-01-31": 20}, "ai": {"2030-01-31": 1}}
    assert facts["sources"] == {"human": {"random": 20}, "ai": {"random": 1}}
    assert facts["funnel"]["human"] == {"asked": 10, "left out: only skips": 2, "can be learnt from": 8}
    assert facts["agreement"]["human"]["pairwise"]["estimate"] == 1.0
    assert facts["agreement"]["human"]["left"]["estimate"] == 0.0
    assert facts["agreement"]["human"]["alpha"] is None, "nothing varies, so nothing can be said"
    [anna, ben] = facts["annotators"]["human"]
    assert anna["annotator"] == "<b>anna</b>" and anna["verdicts"] == ben["verdicts"] == 10 and ben["seconds"] == 8.5
    wins = facts["wins"]["human"]
    assert wins["anchor"] == "initial" and wins["ratings"][0]["verdicts"] == 16
    assert 0.5 < wins["ratings"][0]["win_rate"]["estimate"] < 1
    assert [one["name"] for one in facts["versions"]] == ["policy-1", "initial"]
    assert facts["serving"] == {"version": "initial", "phase": "ready", "reason": ""}


def test_no_win_is_shown_without_saying_how_many_accounts_it_rests_on(alone: Place) -> None:
    app, anna = (alone.accounts.add(name, AccountRole.ANNOTATOR).id for name in ("app", "anna"))
    users = [Annotator(f"app:{number}", AnnotatorKind.HUMAN, app) for number in range(30)]
    reader = client(alone, AccountRole.REVIEWER, Scripted())

    def judged(number: int, *people: Annotator) -> Comparison:
        sides = Response(f"old {number}", "initial"), Response(f"new {number}", "policy-1")
        verdicts = tuple(Verdict(Choice.RIGHT, who) for who in people)
        return Comparison((Turn(Role.USER, f"{number}?"),), *sides, AskedHow.RANDOM, 1.0, verdicts)

    def rests_on() -> tuple[int, int, int]:
        [rating] = reader.get("/dashboard.json").json()["wins"]["human"]["ratings"]
        return rating["verdicts"], rating["accounts"], rating["others"]

    alone.store.add_comparisons(judged(number, user) for number, user in enumerate(users))
    assert rests_on() == (30, 1, 0)
    assert "30 verdicts by 1 account<" in reader.get("/dashboard").text
    people = Annotator("anna", AnnotatorKind.HUMAN, anna), Annotator("anna", AnnotatorKind.HUMAN)
    alone.store.add_comparisons([judged(99, *people, Annotator("app", AnnotatorKind.HUMAN, app))])
    assert rests_on() == (33, 2, 1)
    page = reader.get("/dashboard").text
    assert "33 verdicts by 2 accounts and 1 annotator without an account" in page
    assert page.count('<span class="hint">no account</span>') == 1, "which of two who are called anna"


def test_viewers_see_no_names(alone: Place) -> None:
    fill(alone)
    clicked = (Verdict(Choice.LEFT, Annotator("clicker", AnnotatorKind.HUMAN), created_at=DAY),)
    sides = Response("a", "initial"), Response("b", "initial")
    alone.store.add_comparisons(
        Comparison((Turn(Role.USER, f"chat {n}?"),), *sides, AskedHow.CHAT, 0.1, clicked) for n in range(40)
    )
    assert "set aside, since" in (page := client(alone, AccountRole.REVIEWER, Scripted()).get("/dashboard").text)
    assert "clicker" in page
    looker = client(alone, AccountRole.VIEWER, Scripted())
    for shown in (looker.get("/dashboard").text, looker.get("/dashboard.json").text):
        assert "anna" not in shown and "clicker" not in shown
    assert "annotator 2" in looker.get("/dashboard").text


def test_an_owner_promotes_and_rolls_back(alone: Place) -> None:
    fill(alone)
    engine = Scripted()
    owner = client(alone, AccountRole.OWNER, engine)
    workspace = Workspace.open(alone.folder)
    (workspace.models / "policy-1").mkdir()
    (workspace.models / "policy-1" / "version.json").write_text("{}", encoding="utf-8")
    refused = owner.post("/dashboard/promote", data={"version": "policy-1", "override": " "})
    assert refused.status_code == 400 and "the gate does not let policy-1 through" in refused.json()["error"]["message"]
    assert workspace.current_policy() == "initial"
    reason = {"version": "policy-1", "override": "read all of its answers"}
    assert owner.post("/dashboard/promote", data=reason).status_code == 303
    assert (workspace.current_policy(), engine.state.version) == ("policy-1", "policy-1")
    [kept] = gate.read(workspace, "policy-1").overrides
    assert (kept.reason, kept.against) == ("read all of its answers", ("win_rate",))
    assert owner.post("/dashboard/rollback").status_code == 303
    assert (workspace.current_policy(), engine.state.version) == ("initial", "initial")
    wrong = owner.post("/dashboard/promote", data={"version": "policy-9"})
    assert wrong.status_code == 400 and "no policy policy-9" in wrong.json()["error"]["message"]


def test_an_owner_invites_and_ends(alone: Place) -> None:
    owner = client(alone, AccountRole.OWNER, Scripted())
    assert "/join/" in owner.post("/accounts/invite", data={"role": "annotator"}).text
    alone.accounts.add("<i>eve</i>", AccountRole.ANNOTATOR, None)
    page = owner.post("/accounts/key", data={"name": "<i>eve</i>", "label": "<script>x</script>"}).text
    assert "shown this once" in page and "<i>eve" not in page and "<script>x" not in page
    owner.post("/accounts/role", data={"name": "<i>eve</i>", "role": "viewer"})
    owner.post("/accounts/disable", data={"name": "<i>eve</i>"})
    (eve,) = [one for one in alone.accounts.all() if one.name == "<i>eve</i>"]
    assert eve.role is AccountRole.VIEWER and eve.disabled
    last = owner.post("/accounts/disable", data={"name": "the owner"})
    assert last.status_code == 400, "an owner remains"


@pytest.mark.parametrize("dark", [False, True])
def test_a_screen_reader_finds_nothing_serious(alone: Place, open_page: Callable[..., Page], dark: bool) -> None:
    fill(alone)
    with serve(alone.folder, "--upstream", NOWHERE) as server:
        for path in ("/dashboard", "/accounts"):
            page = open_page(server.url + path, dark=dark)
            found = Axe().run(page).response["violations"]
            assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


def test_an_empty_workspace_says_what_comes_next(alone: Place) -> None:
    assert "No verdicts yet" in client(alone, AccountRole.VIEWER, Scripted()).get("/dashboard").text
