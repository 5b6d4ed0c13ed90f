"""The dashboard's figures against a count by hand, who sees names, and what owners may do."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from typing import Any

import pytest
from safetensors.torch import save_file
from starlette.testclient import TestClient

from manners.audit import gate
from manners.audit.rules import EVALUATION, held, rules
from manners.loop import kept
from manners.settings import Settings
from manners.store.records import VersionRecord
from manners.store.tokens import Scope, Terms, TokenUse
from manners.types import (
    AccountRole,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    DrawnHow,
    Interval,
    Response,
    Role,
    Turn,
    Verdict,
    VersionKind,
)
from manners.web import dashboard, findings
from manners.web import site as site_module
from manners.web.app import create_app
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.conftest import Place
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


def test_of_who_was_set_aside_only_what_they_said_unasked_is_left_out() -> None:
    anna, ben = (Annotator(name, AnnotatorKind.HUMAN) for name in ("anna", "ben"))
    drawn = Verdict(Choice.LEFT, anna, drawn=DrawnHow.RANDOM, draw_probability=0.5)
    sides = Response("a", "x"), Response("b", "y")
    given = (Verdict(Choice.LEFT, anna), drawn, Verdict(Choice.RIGHT, ben))
    chat = Comparison((Turn(Role.USER, "?"),), *sides, AskedHow.CHAT, verdicts=given)
    asked = replace(chat, asked_how=AskedHow.RANDOM)
    found = findings.without([chat, asked], {anna})
    assert [one.verdicts for one in found] == [given[1:], given]


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


def version(workspace: Workspace, name: str) -> None:
    """Keep a policy that has no tensor among its weights."""
    described = {"name": name, "kind": "policy", "base": "x", "trunk_hash": "t", "cut": 1, "template_hash": "h"}
    folder = workspace.models / name
    folder.mkdir()
    text = json.dumps(described | {"dtype": "float32", "created_at": "2030-01-01"})
    (folder / "version.json").write_text(text, encoding="utf-8")
    save_file({}, folder / "branch-0.safetensors")


def test_an_owner_promotes_and_rolls_back(alone: Place) -> None:
    fill(alone)
    engine = Scripted()
    owner = client(alone, AccountRole.OWNER, engine)
    workspace = Workspace.open(alone.folder)
    version(workspace, "policy-1")
    refused = owner.post("/dashboard/promote", data={"version": "policy-1", "override": " "})
    assert refused.status_code == 400 and "the gate does not let policy-1 through" in refused.json()["error"]["message"]
    assert workspace.current_policy() == "initial"
    reason = {"version": "policy-1", "override": "read all of its answers"}
    assert owner.post("/dashboard/promote", data=reason).status_code == 303
    assert (workspace.current_policy(), engine.state.version) == ("policy-1", "policy-1")
    [kept] = gate.read(workspace, "policy-1").overrides
    assert (kept.reason, kept.against) == ("read all of its answers", ("win_rate",))
    stale = owner.post("/dashboard/rollback", data={"serving": "policy-7"})  # a page that another has overtaken
    assert stale.status_code == 400 and "policy-1 is served by now" in stale.json()["error"]["message"]
    assert workspace.current_policy() == "policy-1"
    assert owner.post("/dashboard/rollback", data={"serving": "policy-1"}).status_code == 303
    assert (workspace.current_policy(), engine.state.version) == ("initial", "initial")
    wrong = owner.post("/dashboard/promote", data={"version": "policy-9"})
    assert wrong.status_code == 400 and "no policy policy-9" in wrong.json()["error"]["message"]


def test_a_rollback_that_comes_before_the_promotion_is_through_is_what_is_served(
    alone: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process, while the page's promotion is being put on record."""
    fill(alone)
    engine = Scripted()
    owner = client(alone, AccountRole.OWNER, engine)
    workspace = Workspace.open(alone.folder)
    version(workspace, "policy-1")
    record = site_module.noted

    async def meanwhile(*given: Any, **named: Any) -> None:
        workspace.roll_back()
        await record(*given, **named)

    monkeypatch.setattr(dashboard, "noted", meanwhile)
    reason = {"version": "policy-1", "override": "read all of its answers"}
    assert owner.post("/dashboard/promote", data=reason).status_code == 303
    assert (workspace.current_policy(), engine.state.version) == ("initial", "initial")


def test_promotion_asks_first_and_says_whether_the_version_was_evaluated(alone: Place) -> None:
    fill(alone)
    workspace = Workspace.open(alone.folder)
    for name in ("policy-2", "policy-3"):
        alone.store.add_version(VersionRecord(name, VersionKind.POLICY, f"models/{name}", None, {}, 0))
    for name in ("policy-1", "policy-2"):
        version(workspace, name)
    rule = rules(workspace.root).of(EVALUATION, "win_rate")
    won = held("win_rate", rule, Interval(0.8, 0.7, 0.9), 50, "It won.")
    gate.keep(workspace, "policy-2", EVALUATION, [won], against="initial")
    owner = client(alone, AccountRole.OWNER, Scripted())

    def page() -> str:
        text = owner.get("/dashboard").text
        bare = re.sub("<details.*?</details>", "", text, flags=re.DOTALL)
        assert "/dashboard/promote" not in bare and "/dashboard/rollback" not in bare, "each asks before it acts"
        return text

    before = page()
    assert "policy-1 was not evaluated against initial, which it would replace. The gate does not let it" in before
    assert "policy-2 was evaluated against initial, which it would replace. The gate lets it through." in before
    assert "cannot be promoted: there is no version policy-3" in before and ">Promote policy-3<" not in before
    assert before.count('name="override"') == 1 and "/dashboard/rollback" not in before
    assert owner.post("/dashboard/promote", data={"version": "policy-2"}).status_code == 303
    after = page()
    assert "policy-1 was not evaluated against policy-2" in after and ">Roll back to initial<" in after
    assert "initial answers again, at once, in place of policy-2." in after
    assert "initial was there before policy-2: going back asks no gate." in after
    reader = client(alone, AccountRole.REVIEWER, Scripted()).get("/dashboard").text
    assert "/dashboard/promote" not in reader and "/dashboard/rollback" not in reader


def test_the_only_owner_has_no_button_that_would_leave_none(place: Place) -> None:
    workspace = Workspace.open(place.folder)
    site = Site(workspace, Settings(), place.store, place.accounts, False, "http://127.0.0.1", Scripted())
    key = place.accounts.issue(TokenUse.KEY, "olga", terms=Terms(scopes=tuple(Scope)))
    owner = TestClient(create_app(site), headers={"authorization": f"Bearer {key}"})
    assert "yes, as the only owner" in (page := owner.get("/accounts").text)
    assert "Disable olga" not in page and "Role of olga" not in page
    place.accounts.add("otto", AccountRole.OWNER, None)
    assert "Disable olga" in (page := owner.get("/accounts").text) and "Role of olga" in page


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


def test_it_says_whether_an_ai_judges_verdicts_may_train_and_why(alone: Place) -> None:
    fill(alone)
    workspace = Workspace.open(alone.folder)
    looker = client(alone, AccountRole.VIEWER, Scripted())
    assert looker.get("/dashboard.json").json()["judge"] is None and "AI judge" not in looker.get("/dashboard").text
    for admitted, sentence in ((False, "<m> is not admitted as a judge: it fails newest."), (True, "m is admitted.")):
        facts = {"judge": "judge:m#1", "admitted": admitted, "sentence": sentence}
        kept.save_facts(workspace, "judge", facts)
        assert looker.get("/dashboard.json").json()["judge"] == facts
        page = looker.get("/dashboard").text
        assert f">{escape(sentence)}<" in page and "worked out anew each time that something is trained" in page
    kept.facts_file(workspace, "judge").write_text("{", encoding="utf-8")
    assert "judge.json is damaged" in looker.get("/dashboard").text


def test_an_empty_workspace_says_what_comes_next(alone: Place) -> None:
    assert "No verdicts yet" in client(alone, AccountRole.VIEWER, Scripted()).get("/dashboard").text
