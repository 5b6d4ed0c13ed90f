"""A reviewer's word at the gate: what counts, what is stale, who may not, and that every door asks for it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from manners.audit import gate, review
from manners.audit.rules import EVALUATION, rules
from manners.cli import main
from manners.errors import Blocked, MannersError, UsageError
from manners.loop import stages
from manners.results.audit import APPROVED, CANNOT_TELL, FAIL, PASS, REJECTED, CheckRecord, People, Review
from manners.settings import Settings
from manners.store import Store, VersionRecord
from manners.store.accounts import Accounts
from manners.types import VersionKind
from manners.web.app import create_app
from manners.web.site import Site
from manners.workspace import Workspace
from tests.audit.test_audit_gate import found, version
from tests.web.scripted import Scripted

ASKS = "version = 1\nreview = true\n"
TWO = "version = 1\ntwo_person = true\n"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A policy that was shown to be better than the initial model, started by account 1, with a report."""
    made = Workspace.create(tmp_path / "project")
    with closing(Store.create(made.database)) as store:
        store.add_version(VersionRecord("policy-1", VersionKind.POLICY, "models/policy-1", None, {}, 0))
    version(made, "policy-1")
    gate.keep(made, "policy-1", EVALUATION, [found("win_rate", 0.6, 0.55, 0.65)], "initial")
    gate.keep_people(made, "policy-1", People(), "account 1")
    report(made, "as it was read")
    return made


def report(workspace: Workspace, verdict: str) -> str:
    """Write a report, and return its SHA-256 by an implementation of its own: that of the text that was written."""
    text = json.dumps({"evaluation": {"version": "policy-1", "against": "initial", "verdict": verdict}})
    workspace.report_json.write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def asks(workspace: Workspace, text: str = ASKS) -> None:
    (workspace.root / "gate.toml").write_text(text, encoding="utf-8")


def word(workspace: Workspace, decision: str, by: str = "account 2", **more: Any) -> Review:
    now = review.digest(workspace)
    made = Review(decision=decision, reason="I read it", created_at="", by=by, against="initial", report=now)
    return gate.decide_on(workspace, "policy-1", replace(made, **more))


def by_command(workspace: Workspace) -> None:
    main(["models", "promote", "policy-1", "--workspace", str(workspace.root)])


def by_function(workspace: Workspace) -> None:
    stages.models_promote(workspace, "policy-1")


def by_the_dashboard(workspace: Workspace) -> None:
    with closing(Store.open(workspace.database)) as store:
        site = Site(workspace, Settings(), store, Accounts(store), True, "http://127.0.0.1", Scripted())
        client = TestClient(create_app(site), base_url="http://127.0.0.1", follow_redirects=False)
        client.post("/dashboard/promote", data={"version": "policy-1"})


def by_the_gate(workspace: Workspace) -> None:
    gate.promote(workspace, "policy-1")


def by_an_evaluation(workspace: Workspace) -> None:
    """As at the end of a round: `loop.evaluate` asks this of the gate, and promotes by it."""
    if not gate.standing(workspace, "policy-1").gate.blocks:
        gate.promote(workspace, "policy-1")


DOORS = [by_command, by_function, by_the_dashboard, by_the_gate, by_an_evaluation]


@pytest.mark.parametrize("door", DOORS)
def test_every_door_asks_for_an_approval_of_the_report_that_is_there(
    workspace: Workspace, door: Callable[[Workspace], None]
) -> None:
    def tried() -> str:
        with suppress(Blocked):
            door(workspace)
        return workspace.current_policy()

    asks(workspace)
    assert tried() == "initial", "nobody has approved it"
    word(workspace, APPROVED)
    report(workspace, "another one")
    assert tried() == "initial", "what was approved is not what is there"
    word(workspace, APPROVED)
    word(workspace, REJECTED)
    assert tried() == "initial", "it is rejected"
    word(workspace, APPROVED)
    assert tried() == "policy-1"


@pytest.mark.parametrize("door", DOORS)
def test_a_rejection_blocks_also_where_nobody_asks(workspace: Workspace, door: Callable[[Workspace], None]) -> None:
    word(workspace, REJECTED)
    report(workspace, "written anew, which makes no rejection stale")
    try:
        door(workspace)
    except Blocked as refused:
        assert "review" in refused.facts["gate"]["failed"]
    assert workspace.current_policy() == "initial"
    gate.promote(workspace, "policy-1", "the reviewer was tired")
    [kept] = gate.read(workspace, "policy-1").overrides
    assert kept.against == ("review",) and workspace.current_policy() == "policy-1"


def test_by_default_nobody_is_asked_and_no_check_says_so(workspace: Workspace) -> None:
    assert (rules().review, rules().two_person) == (False, False)
    assert [check.name for check in gate.standing(workspace, "policy-1").checks] == ["win_rate"]
    word(workspace, APPROVED)
    [_, said] = gate.standing(workspace, "policy-1").checks
    assert (said.name, said.verdict, said.required) == ("review", PASS, False) and "I read it" in said.sentence
    report(workspace, "another one")
    found = gate.standing(workspace, "policy-1")
    assert found.checks[-1].verdict == CANNOT_TELL and not found.gate.blocks, "a stale approval is worth none"


def test_what_is_recorded_is_who_when_why_what_was_read_and_where_the_gate_stood(workspace: Workspace) -> None:
    asks(workspace)
    read = report(workspace, "to be read")
    word(workspace, APPROVED, reason=" kind,\nand short ", read={"this": 3})
    [kept] = gate.read(workspace, "policy-1").reviews
    assert (kept.decision, kept.reason, kept.by, kept.report) == (APPROVED, "kind, and short", "account 2", read)
    assert kept.created_at.endswith("+00:00") and kept.gate.cannot_tell == ("review",) and kept.read == {"this": 3}
    card = (workspace.models / "policy-1" / "card.html").read_text(encoding="utf-8")
    assert "Approved" in card and "kind, and short" in card and "Started by" in card and "account 1" in card
    assert "review: true, in place of false" in card
    first = kept
    word(workspace, REJECTED, reason="on second thoughts")
    assert gate.read(workspace, "policy-1").reviews[0] == first, "nothing is ever changed"


@pytest.mark.parametrize("reason", ["", "  \n", "x" * 1001])
def test_a_decision_takes_a_reason(workspace: Workspace, reason: str) -> None:
    for decision in (APPROVED, REJECTED):
        with pytest.raises(UsageError, match="a review takes a reason"):
            word(workspace, decision, reason=reason)
    assert gate.read(workspace, "policy-1").reviews == ()


def test_what_was_not_read_cannot_be_approved_but_rejected(workspace: Workspace) -> None:
    for other in ("0" * 64, None):
        with pytest.raises(MannersError, match="not the one that was read"):
            word(workspace, APPROVED, report=other)
    workspace.report_json.unlink()
    with pytest.raises(MannersError, match="not the one that was read"):
        word(workspace, APPROVED)
    word(workspace, REJECTED)
    assert [one.report for one in gate.read(workspace, "policy-1").reviews] == [None]


@pytest.mark.parametrize(
    ("started_by", "by", "may"),
    [
        ("account 1", "account 2", True),
        ("account 1", "account 1", False),
        ("account 1", "this machine", False),  # anybody may be at it, also account 1
        ("this machine", "account 2", False),  # which may have been at it
        ("this machine", "this machine", False),
        (None, "account 2", False),
    ],
)
def test_two_people_are_two_accounts(workspace: Workspace, started_by: str | None, by: str, may: bool) -> None:
    now = review.digest(workspace)
    made = Review(decision=APPROVED, reason="x", created_at="2030-01-01", by=by, against="initial", report=now)
    record = CheckRecord(reviews=(made,), started_by=started_by)
    told = review.check(record, replace(rules(), two_person=True), "initial", now)
    assert told is not None and told.required and told.verdict == (PASS if may else CANNOT_TELL)
    plain = review.check(record, replace(rules(), review=True), "initial", now)
    assert plain is not None and plain.verdict == PASS, "one person will do"
    before = review.check(replace(record, reviews=()), replace(rules(), two_person=True), "initial", now)
    nobody = started_by in (None, "this machine")
    assert before is not None and ("so that nobody can" in before.sentence) == nobody


def test_who_started_the_run_can_reject_it_and_approve_nothing(workspace: Workspace) -> None:
    asks(workspace, TWO)
    with pytest.raises(MannersError, match="a second person, and account 1 started the run"):
        word(workspace, APPROVED, by="account 1")
    with pytest.raises(Blocked, match="No reviewer has approved it"):
        gate.promote(workspace, "policy-1")
    word(workspace, APPROVED, by="account 2")
    assert not gate.standing(workspace, "policy-1").gate.blocks
    word(workspace, REJECTED, by="account 1")
    assert gate.standing(workspace, "policy-1").gate.failed == ("review",)


def test_an_approval_from_before_two_were_asked_for_counts_if_it_was_the_second(workspace: Workspace) -> None:
    word(workspace, APPROVED, by="account 2")
    word(workspace, APPROVED, by="account 1")
    asks(workspace, TWO)
    assert not gate.standing(workspace, "policy-1").gate.blocks, "account 2's still counts"


def test_a_rejected_version_is_no_way_back_and_a_roll_back_is_free(workspace: Workspace) -> None:
    version(workspace, "policy-2")
    gate.promote(workspace, "policy-1")
    gate.promote(workspace, "policy-2", "for this test")
    word(workspace, REJECTED)
    with pytest.raises(Blocked, match=r"(?s)policy-1 .*review.*rejected it"):
        gate.promote(workspace, "policy-1")
    assert gate.roll_back(workspace) == "policy-2"
    assert workspace.current_policy() == "initial", "it is free, and goes past what is rejected"
    word(workspace, APPROVED)
    gate.promote(workspace, "policy-1")
    assert workspace.current_policy() == "policy-1"


def test_an_approval_counts_for_replacing_what_it_was_read_beside(workspace: Workspace) -> None:
    """The same report is there, and another version stands in between: what differs from that nobody has read."""
    asks(workspace)
    word(workspace, APPROVED)
    assert not gate.standing(workspace, "policy-1").gate.blocks
    version(workspace, "policy-2")
    gate.promote(workspace, "policy-2", "for this test")
    gate.keep(workspace, "policy-1", EVALUATION, [found("win_rate", 0.6, 0.55, 0.65)], "policy-2")
    with pytest.raises(Blocked, match="it was read beside initial, and would replace policy-2"):
        gate.promote(workspace, "policy-1")
    with pytest.raises(MannersError, match="it was read beside initial, and would replace policy-2"):
        word(workspace, APPROVED)
    word(workspace, APPROVED, against="policy-2")
    gate.promote(workspace, "policy-1")
    assert workspace.current_policy() == "policy-1"


def by_rollback(workspace: Workspace) -> None:
    main(["models", "rollback", "--workspace", str(workspace.root)])


def by_the_dashboards_button(workspace: Workspace) -> None:
    with closing(Store.open(workspace.database)) as store:
        site = Site(workspace, Settings(), store, Accounts(store), True, "http://127.0.0.1", Scripted())
        client = TestClient(create_app(site), base_url="http://127.0.0.1", follow_redirects=False)
        assert client.post("/dashboard/rollback").status_code == 303


@pytest.mark.parametrize("back", [gate.roll_back, by_rollback, by_the_dashboards_button])
def test_no_way_back_ends_at_a_rejected_version(workspace: Workspace, back: Callable[[Workspace], object]) -> None:
    for name in ("policy-2", "policy-3", "policy-4"):
        version(workspace, name)
    for name in ("policy-2", "policy-1", "policy-3", "policy-4"):
        workspace.promote(name)
    word(workspace, REJECTED)
    (workspace.models / "policy-3" / "checks.json").write_text("{", encoding="utf-8")
    assert gate.before(workspace) == "policy-2", "what the dashboard's button says"
    back(workspace)
    assert workspace.promoted() == ["policy-2"], "past one that is rejected and one of which nobody can tell"
    workspace.start_from("policy-1")
    workspace.promote("policy-4")
    assert gate.before(workspace) == "initial"
    back(workspace)
    assert gate.before(workspace) is None
    with pytest.raises(MannersError, match="the initial model already"):
        gate.roll_back(workspace)
    assert workspace.current_policy() == "initial", "learning starts from a rejected one, and nobody is answered by it"


@pytest.mark.parametrize("text", ["review = 1", 'two_person = "yes"', "reviews = true"])
def test_a_mistake_in_the_file_is_named(workspace: Workspace, text: str) -> None:
    asks(workspace, f"version = 1\n{text}\n")
    with pytest.raises(MannersError, match=text.split(" ")[0]):
        gate.promote(workspace, "policy-1")


def test_decisions_and_measurements_at_one_time_are_all_kept(workspace: Workspace) -> None:
    """Eight reviewers and eight audits write one record at once."""
    checks = [found("win_rate", 0.6, 0.55, 0.65)]
    work: list[Callable[[], object]] = []
    for number in range(8):
        work.append(partial(word, workspace, REJECTED, by=f"account {number}"))
        work.append(partial(gate.keep, workspace, "policy-1", f"part {number}", checks))
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = gate.read(workspace, "policy-1")
    assert {one.by for one in record.reviews} == {f"account {number}" for number in range(8)}
    assert {f"part {number}" for number in range(8)} <= set(record.measured)


def test_a_rejection_fails_whatever_came_before() -> None:
    made = Review(decision=APPROVED, reason="x", created_at="2030-01-01", by="account 2", against="initial", report="r")
    record = CheckRecord(reviews=(made, replace(made, decision=REJECTED, reason="it is rude")))
    told = review.check(record, rules(), "initial", "r")
    assert told is not None and told.verdict == FAIL and "it is rude" in told.sentence
