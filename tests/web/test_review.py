"""`/review`: what is shown of a policy, read blind, and what becomes of a decision."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from safetensors.torch import save_file
from starlette.testclient import TestClient

from manners.audit import gate
from manners.audit.rules import EVALUATION, held, rules
from manners.results.audit import People
from manners.settings import Settings
from manners.store import Store, VersionRecord, audit, bets
from manners.types import (
    AccountRole,
    AnnotatorKind,
    AskedHow,
    Bet,
    Comparison,
    Interval,
    Response,
    Role,
    Turn,
    VersionKind,
)
from manners.web import draws, reading
from manners.web.app import create_app
from manners.web.reading import Pair, Shown
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.conftest import Place, enter
from tests.web.scripted import Scripted
from tests.web.test_every_page import sound
from tests.web.test_openai import listening

HTML = "<script>alert(1)</script>"


def waits(place: Place, *, worst: int = 8, examples: int = 12) -> Workspace:
    """Two policies, the first promoted, the second evaluated against it, with a report on the two."""
    workspace = Workspace.open(place.folder)
    (workspace.root / draws.FILE).write_bytes(b"5" * 2 * draws.SECRET_BYTES)  # so that every run draws the same sides
    for number in (1, 2):
        name = f"policy-{number}"
        described = {"name": name, "kind": "policy", "base": "x", "trunk_hash": "t", "cut": 1, "template_hash": "h"}
        described |= {"dtype": "float32", "created_at": "2030-01-01", "watermark": 10 * number}
        described |= {"settings": {"ppo": {"updates": 12, "kl_coefficient": 0.1 * number}, "seed": 0}}
        described |= {"metrics": {"source": "human", "trained_on": 40}, "left_out": {"only skips": number}}
        (workspace.models / name).mkdir()
        (workspace.models / name / "version.json").write_text(json.dumps(described), encoding="utf-8")
        save_file({}, workspace.models / name / "branch-0.safetensors")
        place.store.add_version(VersionRecord(name, VersionKind.POLICY, f"models/{name}", None, {}, 0))
        gate.keep_people(workspace, name, People(annotators=3, comparisons=20 * number), "account 1")
    workspace.promote("policy-1")
    won = held("win_rate", rules().of(EVALUATION, "win_rate"), Interval(0.6, 0.55, 0.65), 50, f"It won {HTML}.")
    gate.keep(workspace, "policy-2", EVALUATION, [won], "policy-1")
    write(workspace, worst=worst, examples=examples)
    return workspace


def write(workspace: Workspace, worst: int = 8, examples: int = 12, **more: Any) -> None:
    """Write a report: of the answers of policy-1 it says that they are old, of those of policy-2 that they are new."""

    def pair(number: int, kind: str) -> dict[str, Any]:
        return {
            "prompt": f"{kind} question {number}?",
            "before": f"old {kind} {number}",
            "after": f"new {kind} {number}",
        }

    evaluation: dict[str, Any] = {"version": "policy-2", "against": "policy-1", "prompts": 50, "samples": 2}
    evaluation |= {"length_before": 30.5, "length_after": 41.25, "verdict": "It is better."}
    evaluation |= {"worst": [pair(n, "worst") for n in range(worst)]}
    evaluation |= {"examples": [pair(n, "random") for n in range(examples)]}
    workspace.report_json.write_text(json.dumps({"evaluation": evaluation | more}), encoding="utf-8")


def client(place: Place, name: str, role: AccountRole = AccountRole.REVIEWER) -> TestClient:
    site = Site(
        Workspace.open(place.folder), Settings(), place.store, place.accounts, False, "http://127.0.0.1", Scripted()
    )
    key = place.key(name, role)
    return TestClient(create_app(site), headers={"authorization": f"Bearer {key}"}, follow_redirects=False)


def form(page: str, decision: str, reason: str = "I have read it", read: str = "nothing") -> dict[str, Any]:
    """What a browser sends of a page."""
    hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))
    return hidden | {"decision": decision, "reason": reason, "read": [read] * page.count('<select name="read">')}


def sides(page: str) -> list[tuple[str, str]]:
    """Left and right of each pair on a page."""
    texts = re.findall(r'<div class="text" tabindex="0"><p>(.*?)</p>', page)
    return list(zip(texts[::2], texts[1::2], strict=True))


@pytest.mark.parametrize("new_store", ["sqlite"], indirect=True)
class TestPage:
    """On SQLite, as nothing here but the log of deeds and the bets is in the store."""

    def test_it_says_where_a_policy_stands_and_what_differs(self, place: Place) -> None:
        waits(place)
        page = client(place, "rita").get("/review").text
        assert "Review of policy-2" in page and "policy-2 would replace policy-1" in page, "the newest that waits"
        assert "It won &lt;script&gt;" in page and HTML not in page
        rows = dict(re.findall(r'<th scope="row">([^<]+)</th>(<td.*?)</tr>', page))
        cells = {name: re.findall(r">([^<]*)</td>", row) for name, row in rows.items()}
        assert cells["ppo.kl_coefficient"] == ["0.1", "0.2"] and "ppo.updates" not in cells, "what is alike is not said"
        assert cells["verdicts up to number"] == ["10", "20"] and cells["left out: only skips"] == ["1", "2"]
        assert cells["comparisons in the record"] == ["20", "40"] and "annotators" not in cells
        assert cells["mean length, in tokens"] == ["30.5", "41.25"] and "50 prompts, 2 answers" in page
        assert "started by olga (account 1)" in page

    def test_answers_are_read_blind_until_one_has_decided(self, place: Place) -> None:
        """Six of the worst and six of the others; nothing on the page says which side is whose, or which sort."""
        workspace = waits(place)
        rita = client(place, "rita")
        page = rita.get("/review?version=policy-2").text
        shown = sides(page)
        assert len(shown) == 12 and rita.get("/review?version=policy-2").text == page, (
            "no side is told by looking twice"
        )
        kinds = [re.sub(r"(old|new) ", "", left) for left, _ in shown]
        assert sorted(kind for kind in kinds if kind.startswith("worst")) == [f"worst {n}" for n in range(6)]
        sorts = [kind.split()[0] for kind in kinds]
        assert sorts not in (sorted(sorts), sorted(sorts, reverse=True)), "the two sorts are mixed"
        new_left = sum(left.startswith("new") for left, _ in shown)
        assert 0 < new_left < 12, "sides are shuffled"
        pairs = page[page.index("<h2>Answers") : page.index("<h2>What differs")]
        pairs = pairs[pairs.index("Pair 1") :]
        assert (
            "policy" not in pairs
            and "liked least" not in pairs
            and "random" not in re.sub("random (question )?\\d", "", pairs)
        )
        assert rita.post("/review", data=form(page, "approved", read="left")).status_code == 303
        after = rita.get("/review?version=policy-2").text
        names = re.findall(r"<h4[^>]*>(?:Left|Right): (policy-\d)</h4>", after)
        for (left, right), (first, second) in zip(sides(after), zip(names[::2], names[1::2], strict=True), strict=True):
            assert {"policy-1": "old", "policy-2": "new"}[first] == left.split()[0] != right.split()[0]
            assert {first, second} == {"policy-1", "policy-2"}
        assert '<select name="read">' not in after
        assert client(place, "rolf").get("/review?version=policy-2").text.count('<select name="read">') == 12
        [kept] = gate.read(workspace, "policy-2").reviews
        assert kept.read == {"this": new_left, "other": 12 - new_left}, "left was said of every pair"
        assert kept.by != "account 1" and "policy-2 better, blind" in after

    def test_a_decision_is_by_account_shown_by_name_and_on_record(self, place: Place) -> None:
        workspace = waits(place)
        rita = client(place, "rita")
        page = rita.get("/review").text
        assert rita.post("/review", data=form(page, "approved", HTML)).status_code == 303
        [kept] = gate.read(workspace, "policy-2").reviews
        number = next(one.id for one in place.accounts.all() if one.name == "rita")
        assert (kept.decision, kept.reason, kept.by) == ("approved", HTML, f"account {number}")
        for file in (workspace.models / "policy-2").iterdir():
            assert b"rita" not in file.read_bytes(), "a name would stay when its owner is forgotten"
        shown = rita.get("/review").text
        assert f"rita (account {number})" in shown and "&lt;script&gt;" in shown and HTML not in shown
        newest = audit.entries(place.store)[0]
        assert (newest.event, newest.account, newest.about) == ("approved", number, "version policy-2")
        assert "stale" not in shown
        write(workspace, verdict="It is another one.")
        again = rita.get("/review").text
        assert "not read blind" in again and '<select name="read">' not in again, (
            "the same pairs, whose names she knows"
        )
        said = form(again, "approved") | {"read": ["left"] * len(sides(again))}
        assert rita.post("/review", data=said).status_code == 303
        assert gate.read(workspace, "policy-2").reviews[-1].read == {}, "nothing is counted as read blind"
        write(workspace, verdict="It is a third one.")
        assert "stale: report.json is not the one that was read" in rita.get("/review").text

    def test_what_was_not_shown_cannot_be_decided_about(self, place: Place) -> None:
        workspace = waits(place)
        rita = client(place, "rita")
        page = rita.get("/review").text
        sent = form(page, "approved")

        def refused(**changed: Any) -> str:
            answer = rita.post("/review", data=sent | changed)
            assert answer.status_code == 400, answer.text
            return str(answer.json()["error"]["message"])

        assert "takes a reason" in refused(reason="  ")
        assert "no policy that waits" in refused(version="policy-1") and "no policy that waits" in refused(
            version="../x"
        )
        assert "not those that the page has shown" in refused(report="0" * 64)
        assert "not those that the page has shown" in refused(shown="0" * 64)
        assert "not those that the page has shown" in refused(report="")
        write(workspace, verdict="Written anew while somebody read.")
        assert "not those that the page has shown" in refused() and "not those" in refused(decision="rejected")
        assert gate.read(workspace, "policy-2").reviews == ()

    @pytest.mark.parametrize("other", [{"version": "policy-1"}, {"against": "initial"}, None])
    def test_a_report_on_something_else_is_none(self, place: Place, other: dict[str, str] | None) -> None:
        """Then it can be rejected, and not approved."""
        workspace = waits(place)
        if other is None:
            workspace.report_json.unlink()
        else:
            write(workspace, 8, 12, **other)
        rita = client(place, "rita")
        page = rita.get("/review").text
        assert "There is no report on policy-2 beside policy-1" in page and 'value="approved"' not in page
        refused = rita.post("/review", data=form(page, "approved"))
        assert refused.status_code == 400 and "no report compares" in refused.json()["error"]["message"]
        assert rita.post("/review", data=form(page, "rejected")).status_code == 303
        assert gate.standing(workspace, "policy-2").gate.failed == ("review",)

    def test_whoever_started_the_run_is_told_and_kept_from_approving(self, place: Place) -> None:
        workspace = waits(place)
        (workspace.root / "gate.toml").write_text("version = 1\ntwo_person = true\n", encoding="utf-8")
        gate.keep_people(workspace, "policy-2", People(), "account 2")
        rita = client(place, "rita")
        assert next(one.id for one in place.accounts.all() if one.name == "rita") == 2
        page = rita.get("/review").text
        assert "account 2 started the run that made it" in page and 'value="approved"' not in page
        refused = rita.post("/review", data=form(page, "approved"))
        assert refused.status_code == 400 and "a second person" in refused.json()["error"]["message"]
        rolf = client(place, "rolf")
        assert rolf.post("/review", data=form(rolf.get("/review").text, "approved")).status_code == 303
        assert not gate.standing(workspace, "policy-2").gate.blocks

    def test_nothing_waits_and_a_damaged_report_is_said(self, place: Place) -> None:
        rita = client(place, "rita")
        assert "No policy waits" in rita.get("/review").text
        workspace = waits(place)
        workspace.report_json.write_text("{", encoding="utf-8")
        assert "report.json is damaged" in rita.get("/review").json()["error"]["message"]

    def test_the_dashboard_leads_there(self, place: Place) -> None:
        waits(place)
        link = 'href="/review?version=policy-2"'
        assert link in client(place, "rita").get("/dashboard").text
        assert link in client(place, "otto", AccountRole.OWNER).get("/dashboard").text
        viewer = client(place, "vera", AccountRole.VIEWER).get("/dashboard").text
        assert link not in viewer and "/review" not in viewer

    def test_what_people_said_goes_first_once_it_counts(self, place: Place) -> None:
        """Of three comparisons two have placed their bets, one lost and one won; the third may still be asked about."""
        waits(place, worst=0, examples=0)
        asked = [(Turn(Role.SYSTEM, "Be kind."), Turn(Role.USER, f"{n}?")) for n in range(3)]
        sides = [[Response(f"by policy-{v} {n}", f"policy-{v}") for v in (1, 2)] for n in range(3)]
        sides[1].reverse()
        numbers = place.store.add_comparisons(
            Comparison(prompt, left, right, AskedHow.EVALUATION, 1.0)
            for prompt, (left, right) in zip(asked, sides, strict=True)
        )
        place_bets(place.store, {numbers[0]: 1.0, numbers[1]: 1.0})  # for the left: policy-1, then policy-2
        worst, others = reading.pairs(None, place.store, "policy-2", "policy-1")
        assert [(pair.other, pair.this) for pair in worst] == [("by policy-1 0", "by policy-2 0")]
        assert [(pair.other, pair.this) for pair in others] == [("by policy-1 1", "by policy-2 1")]
        page = client(place, "rita").get("/review").text
        assert "Be kind." in page and "by policy-2 0" in page and "by policy-2 2" not in page

    @pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
    def test_it_can_be_read_and_decided_in_a_browser(
        self, place: Place, open_page: Callable[..., Page], width: int, dark: bool
    ) -> None:
        workspace = waits(place)
        (workspace.root / "gate.toml").write_text("version = 1\nreview = true\n", encoding="utf-8")
        place.accounts.add("rita", AccountRole.REVIEWER, None)
        site = Site(workspace, Settings(), place.store, place.accounts, False, "http://127.0.0.1", Scripted())
        with listening(site) as url:
            page = open_page(url + place.link("rita"), dark=dark, width=width)
            enter(page)
            page.goto(f"{url}/review")
            sound(page, "review")
            left, right = (page.locator(".answer").nth(at).bounding_box() for at in (0, 1))
            assert left is not None and right is not None
            assert (left["y"] == right["y"]) == (width > 700), "side by side, or one below the other on a phone"
            page.get_by_role("button", name="Approve policy-2").click()
            expect(page).to_have_url(f"{url}/review")  # the browser asks for a reason
            page.get_by_label("Which is better?").first.select_option("right")
            page.get_by_label("Why, which is kept").fill("Kind, and short.")
            page.get_by_role("button", name="Approve policy-2").click()
            expect(page.get_by_text("You have decided: the names are shown.")).to_be_visible()
            expect(page.get_by_text("Kind, and short.").last).to_be_visible()
            sound(page, "after a decision")
        assert not gate.standing(workspace, "policy-2").gate.blocks


def place_bets(store: Store, stakes: dict[int, float]) -> None:
    """Have people's verdicts count, for the left side where a stake is positive."""
    with store.write() as connection:
        bets.place(connection, [(number, Bet(AnnotatorKind.HUMAN, stake, 1)) for number, stake in stakes.items()])


def test_what_says_the_same_or_was_seen_is_not_read_again() -> None:
    asked = (Turn(Role.USER, "q"),)
    pairs = [Pair(asked, "a", "b", "first"), Pair(asked, "a", "b", "again"), Pair(asked, "a", " a\n", "same")]
    pairs += [Pair(asked, "[deleted]", "b", "gone"), Pair(asked, "b", "a", "another")]
    assert [one.why for one in reading._once(pairs, set())] == ["first", "another"]


def test_what_is_said_of_sides_is_counted_by_version() -> None:
    pair = Pair((Turn(Role.USER, "q"),), "old", "new", "")
    shown = [Shown(pair, exchanged) for exchanged in (True, True, False, False, False)]
    assert reading.counted(shown, ["left", "right", "left", "alike", "nothing"]) == {"this": 1, "other": 2, "alike": 1}


def test_who_reads_and_what_is_read_say_which_sides_are_drawn(tmp_path: Path) -> None:
    worst = [Pair((Turn(Role.USER, f"{n}"),), "old", "new", "") for n in range(6)]
    draws = {tuple(one.exchanged for one in reading.drawn(worst, [], f"reader {n}".encode())) for n in range(20)}
    assert len(draws) > 10, "two reviewers do not see the same sides"
    several = [one.exchanged for n in range(20) for one in reading.drawn(worst, [], str(n).encode())]
    assert 30 < sum(several) < 90
