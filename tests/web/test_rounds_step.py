"""A step of the loop from `/rounds`: who may take it, that one is taken at a time, and how it is told that it ended."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from starlette.testclient import TestClient

from manners.loop import erase, history, stepping
from manners.loop.history import Begun
from manners.loop.starter import VARIABLE
from manners.settings import Settings
from manners.store import Store, audit
from manners.types import AccountRole
from manners.web.app import create_app
from manners.web.site import Site
from manners.workspace import Workspace
from tests.web.conftest import PATIENCE, Place
from tests.web.scripted import Scripted
from tests.web.test_dashboard import client
from tests.web.test_every_page import sound
from tests.web.test_openai import listening
from tests.web.test_rounds import fill

FAKE = """
import json, os, signal, sys, time
from contextlib import closing
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
root = Path(sys.argv[sys.argv.index("--workspace") + 1])
told = {"words": sys.argv[1:], "account": os.environ.get("MANNERS_ACCOUNT"), "group": os.getpgid(0) == os.getpid()}
(root / "told.json").write_text(json.dumps(told))
print("memory for sample", file=sys.stderr)
print("drawing responses: 3/9, 5 s", file=sys.stderr, flush=True)
try:
    while not (root / "ends").exists():
        time.sleep(0.01)
except KeyboardInterrupt:
    print("manners: interrupted.", file=sys.stderr)
    sys.exit(130)
said = (root / "ends").read_text()
if said.startswith("{"):
    print(said)
else:
    print(said, file=sys.stderr)
    sys.exit(1)
"""
"""In place of `manners loop`: it ends when it is told how. What a real step does is tested in tests/loop."""
REAL = stepping.CHILD.replace(f"os.nice({stepping.NICENESS})", "os.nice(0)")
"""What is run outside of tests, but that it gives way to nobody: on a busy machine it would not come to its end."""
DONE: dict[str, Any] = {"rounds": [], "waiting_for": None, "current": "initial", "stopped": ""}


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "CHILD", FAKE)
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def owner(alone: Place) -> Iterator[TestClient]:
    """An owner, called `the owner`; a step that was left under way ends with the test."""
    yield client(alone, AccountRole.OWNER, Scripted())
    if (found := stepping.last(Workspace.open(alone.folder))) is not None and found.runs:
        os.killpg(found.taken.pid, signal.SIGKILL)


def facts(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/rounds.json").json()
    return found


def take(client: TestClient, mark: str = "1 sample") -> None:
    answer = client.post("/rounds/step", data={"shown": mark})
    assert answer.status_code == 303 and answer.headers["location"] == "/rounds", answer.text


def until(client: TestClient, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until something holds of the step that was begun last, and return it."""
    end = time.monotonic() + PATIENCE
    while not holds(last := facts(client)["last_step"]):
        assert time.monotonic() < end, last
        time.sleep(0.02)
    return dict(last)


def at_work(client: TestClient) -> dict[str, Any]:
    return until(client, lambda last: last["said"].startswith("drawing"))


def ends(place: Place, how: str) -> None:
    file = place.folder / "ends.draft"
    file.write_text(how, encoding="utf-8")
    file.rename(place.folder / "ends")


def logged(place: Place) -> list[tuple[str, str | None, str]]:
    return [(one.event, one.name, one.about) for one in reversed(audit.entries(place.store))]


def test_only_owners_see_the_next_step_and_take_it(alone: Place, owner: TestClient) -> None:
    found = facts(owner)
    assert found["next_step"]["sentence"] == "ask: initial answers up to 200 prompts" and found["last_step"] is None
    page = owner.get("/rounds").text
    assert "Take this step" in page and '<input type="hidden" name="shown" value="1 sample">' in page
    for role in (AccountRole.REVIEWER, AccountRole.VIEWER):
        other = client(alone, role, Scripted())
        assert not {"next_step", "no_step", "last_step"} & facts(other).keys()
        assert "Step by step" not in other.get("/rounds").text
        for path in ("/rounds/step", "/rounds/stop"):
            assert other.post(path, data={"shown": "1 sample"}).status_code == 403
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "http://elsewhere.example.org"}):
        refused = owner.post("/rounds/step", data={"shown": "1 sample"}, headers=headers)
        assert refused.status_code == 403 and "another site" in refused.text
    assert facts(owner)["last_step"] is None and logged(alone) == []


def test_a_step_runs_by_itself_and_the_page_says_how_it_ended(alone: Place, owner: TestClient) -> None:
    take(owner)
    last = at_work(owner)
    assert (last["state"], last["round"], last["said"]) == ("running", 1, "drawing responses: 3/9, 5 s")
    page = owner.get("/rounds").text
    assert "Under way" in page and last["said"] in page and "Stop it" in page and "Take this step" not in page
    found, pid = facts(owner), stepping.last(Workspace.open(alone.folder)).taken.pid  # type: ignore[union-attr]
    assert (found["state"], found["process"], found["next_step"]) == ("running", f"process {pid}", None)
    assert f"It is played by process {pid}." in page and "No loop was begun" not in page
    assert found["no_step"].startswith("a step of the loop is under way")
    refused = owner.post("/rounds/step", data={"shown": "1 sample"})
    assert refused.status_code == 400 and "a step of the loop is under way" in refused.text
    ends(alone, json.dumps(DONE))
    assert until(owner, lambda last: not last["runs"])["said"] == "it is done"
    page = owner.get("/rounds").text
    assert "Before, in round 1: ask: initial answers up to 200 prompts. It is done" in page and "Take this step" in page
    told = json.loads((alone.folder / "told.json").read_text(encoding="utf-8"))
    words = ["loop", "--rounds", "1", "--one-step", "--json", "--workspace", str(alone.folder)]
    assert told == {"words": words, "account": "the owner", "group": True}
    assert logged(alone) == [("step_begun", "the owner", "round 1")]


def test_a_step_goes_on_with_the_loop_as_it_was_begun(alone: Place, owner: TestClient) -> None:
    workspace = Workspace.open(alone.folder)
    history.write_begun(workspace, Begun(rounds=4, created_at="2030-01-31T12:00:00+00:00", when="monday 03:00"))
    take(owner)
    at_work(owner)
    told = json.loads((alone.folder / "told.json").read_text(encoding="utf-8"))
    assert told["words"][1:5] == ["--rounds", "4", "--when", "monday 03:00"]


@pytest.mark.parametrize(
    ("says", "state", "said"),
    [
        ("manners: there are no prompts <to> ask: import some", "failed", "there are no prompts <to> ask: import some"),
        ("Traceback\nKeyError: 'x'", "killed", "its process has ended without a word ("),
        ("{", "killed", "its process has ended without a word ("),
        (
            json.dumps(DONE | {"waiting_for": {"sentence": "waiting for verdicts: 0 of 200"}}),
            "done",
            "it was too early for that: the loop is waiting for verdicts: 0 of 200",
        ),
        (
            json.dumps(
                DONE | {"rounds": [{"policy": "policy-1", "outcome": "promoted"}], "stopped": "1 round is played."}
            ),
            "done",
            "policy-1 is promoted. 1 round is played.",
        ),
    ],
)
def test_how_it_ended_is_said_in_a_sentence(alone: Place, owner: TestClient, says: str, state: str, said: str) -> None:
    take(owner)
    ends(alone, says)
    last = until(owner, lambda last: not last["runs"])
    assert last["state"] == state and last["said"].startswith(said)
    page = owner.get("/rounds").text
    assert ('class="error">Before' in page) is (state != "done") and "Take this step" in page
    if state == "failed":
        assert "It failed: there are no prompts &lt;to&gt; ask: import some" in page


def test_what_its_loop_says_why_it_failed_is_said_once(alone: Place, owner: TestClient) -> None:
    take(owner)
    ends(alone, "manners: nobody could judge")
    until(owner, lambda last: not last["runs"])
    begun = Begun(
        rounds=1, created_at="2030-01-31T12:00:00+00:00", failed="nobody could judge", failed_at="2030-01-31T12:00"
    )
    history.write_begun(Workspace.open(alone.folder), begun)
    page = owner.get("/rounds").text
    assert page.count("nobody could judge") == 1 and "It failed, as it says above." in page
    (alone.folder / "ends").unlink()
    take(owner)
    at_work(owner)
    page = owner.get("/rounds").text
    assert "It is played by" in page and "nobody could judge" not in page, "that was the one before"


def test_it_is_stopped_and_gone_on_from(alone: Place, owner: TestClient) -> None:
    assert owner.post("/rounds/stop", data={"shown": "1 sample"}).status_code == 400, "nothing runs"
    take(owner)
    at_work(owner)
    refused = owner.post("/rounds/stop", data={"shown": "1 reward"})
    assert refused.status_code == 400 and "that step does not run any more" in refused.text
    assert owner.post("/rounds/stop", data={"shown": "1 sample"}).status_code == 303
    last = until(owner, lambda last: not last["runs"])
    assert last["state"] == "stopped" and last["said"].startswith("it was stopped: the next step goes on")
    assert logged(alone) == [("step_begun", "the owner", "round 1"), ("step_stopped", "the owner", "round 1")]
    assert owner.post("/rounds/stop", data={"shown": "1 sample"}).status_code == 400, "its number is another's by now"
    take(owner)
    assert at_work(owner)["state"] == "running"


def test_one_that_does_not_stop_at_once_is_being_stopped(alone: Place, owner: TestClient) -> None:
    take(owner)
    pid = stepping.last(Workspace.open(alone.folder))
    at_work(owner)
    assert pid is not None
    os.killpg(pid.taken.pid, signal.SIGSTOP)
    assert owner.post("/rounds/stop", data={"shown": "1 sample"}).status_code == 303
    assert facts(owner)["last_step"]["state"] == "stopping" and "Stopping, since" in owner.get("/rounds").text
    os.killpg(pid.taken.pid, signal.SIGCONT)
    assert until(owner, lambda last: not last["runs"])["state"] == "stopped"


def test_another_server_sees_that_it_runs_and_how_it_ended(alone: Place, owner: TestClient) -> None:
    """What tells it is in the folder, and not in the server that has begun it."""
    take(owner)
    at_work(owner)
    with closing(Store.open(Workspace.open(alone.folder).database)) as store:
        site = Site(
            Workspace.open(alone.folder), Settings(), store, alone.accounts, False, "http://127.0.0.1", Scripted()
        )
        again = TestClient(create_app(site), headers=dict(owner.headers), follow_redirects=False)
        assert facts(again)["last_step"]["state"] == "running"
        assert again.post("/rounds/step", data={"shown": "1 sample"}).status_code == 400
        ends(alone, json.dumps(DONE))
        assert until(again, lambda last: not last["runs"])["said"] == "it is done"


def test_where_another_process_trains_no_step_is_taken_and_it_is_named(alone: Place, owner: TestClient) -> None:
    with Workspace.open(alone.folder).run_lock("ppo"):
        who = f"`ppo`, process {os.getpid()}, is training here: a step can be taken when it has ended"
        assert facts(owner)["no_step"] == who and facts(owner)["next_step"] is None
        page = owner.get("/rounds").text
        assert "Take this step" not in page and f"process {os.getpid()}, is training here" in page
        refused = owner.post("/rounds/step", data={"shown": "1 sample"})
        assert refused.status_code == 400 and who in refused.json()["error"]["message"]
    with Workspace.open(alone.folder).run_lock("loop"):
        assert facts(owner)["no_step"].startswith(f"`loop`, process {os.getpid()}, plays the loop: a step can be taken")
    assert facts(owner)["last_step"] is None and "Take this step" in owner.get("/rounds").text


def test_where_something_is_waited_for_there_is_no_step(alone: Place, owner: TestClient) -> None:
    """It waits for 20 new verdicts, of which 1 is there and 1 can come."""
    workspace = fill(alone)
    assert facts(owner)["no_step"] == "there is nothing to do but to wait for 1 more verdict"
    assert "There is nothing to do but to wait for" in (page := owner.get("/rounds").text) and "Take this" not in page
    assert owner.post("/rounds/step", data={"shown": "3 reward"}).status_code == 400
    workspace.toml.write_text("[loop]\nhours = 0.5\n", encoding="utf-8")
    history.write_begun(workspace, Begun(rounds=4, created_at="2020-01-31T12:00:00+00:00", crowd=True))
    assert facts(owner)["next_step"]["mark"] == "3 reward", (
        "what is at work is played to its end, and settings are read"
    )
    refused = owner.post("/rounds/step", data={"shown": "3 ppo"})
    assert refused.status_code == 400 and "is not the next one any more" in refused.text
    (workspace.runs / "sample.json").unlink()
    assert "loop.hours is used up" in facts(owner)["no_step"]
    workspace.toml.write_text("[loop]\nhours = soon\n", encoding="utf-8")
    assert facts(owner)["next_step"]["mark"] == "3 sample", "as the server was started, where the file is broken"


def test_a_version_that_is_damaged_is_named_in_place_of_a_step(alone: Place, owner: TestClient) -> None:
    workspace = fill(alone)
    for stage in ("sample", "reward", "ppo"):
        (workspace.runs / f"{stage}.json").write_text(json.dumps({"begun_with": {"the round": 3}}), encoding="utf-8")
    assert "version.json is damaged" in facts(owner)["no_step"] and owner.get("/rounds").status_code == 200


def test_nothing_is_begun_where_nothing_can_be_written(
    alone: Place, owner: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "is_writable", property(lambda _: False))
    assert "nothing can be written" in facts(owner)["no_step"]
    refused = owner.post("/rounds/step", data={"shown": "1 sample"})
    assert refused.status_code == 400 and facts(owner)["last_step"] is None


def test_a_step_that_cannot_be_begun_says_why_and_leaves_the_next_one_free(
    alone: Place, owner: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(alone.folder / "nothing"))
        refused = owner.post("/rounds/step", data={"shown": "1 sample"})
    assert refused.status_code == 400 and "no step can be begun in" in refused.text
    take(owner)
    assert at_work(owner)["state"] == "running"


def test_what_it_said_goes_where_it_says_what_is_deleted_and_it_says_more(alone: Place, owner: TestClient) -> None:
    workspace, secret = Workspace.open(alone.folder), "the code is 7-3-1, says Zoë"
    take(owner)
    at_work(owner)
    log = stepping.log(workspace)
    assert erase.sweep(workspace, ["nothing of the kind"]).files == () and "drawing" in log.read_text(encoding="utf-8")
    with log.open("a", encoding="utf-8") as said:
        said.write(f"{secret}\n")
    assert erase.sweep(workspace, [secret]).files == (log.name,)
    assert facts(owner)["last_step"]["state"] == "running" and log.read_bytes() == b""
    ends(alone, "manners: it is over")
    assert until(owner, lambda last: not last["runs"])["said"] == "it is over"
    assert log.read_bytes() == b"manners: it is over\n", "no hole before it"


def test_a_step_that_is_damaged_or_of_before_a_restore_stops_no_page(alone: Place, owner: TestClient) -> None:
    folder = Workspace.open(alone.folder).runs / "step"
    folder.mkdir(parents=True)
    (folder / "step.json").write_text("[", encoding="utf-8")
    assert facts(owner)["last_step"] is None
    (folder / "step.json").write_text(json.dumps({"pid": 1, "round": 2, "name": "ppo"}), encoding="utf-8")
    assert facts(owner)["last_step"]["state"] == "killed"
    assert owner.post("/rounds/stop", data={"shown": "2 ppo"}).status_code == 400, "process 1 is not ours to stop"


def test_the_owner_of_a_machine_without_accounts_takes_steps_in_nobodys_name(alone: Place) -> None:
    site = Site(
        Workspace.open(alone.folder), Settings(), alone.store, alone.accounts, True, "http://127.0.0.1", Scripted()
    )
    here = TestClient(create_app(site), "http://127.0.0.1", follow_redirects=False)
    take(here)
    at_work(here)
    assert json.loads((alone.folder / "told.json").read_text(encoding="utf-8"))["account"] is None
    ends(alone, json.dumps(DONE))
    until(here, lambda last: not last["runs"])
    assert logged(alone) == [("step_begun", None, "round 1")]


def test_the_last_line_of_a_long_log_is_found(tmp_path: Path) -> None:
    workspace = Workspace.create(tmp_path / "work")
    log = stepping.log(workspace)
    log.parent.mkdir(parents=True)
    log.write_bytes(b"\xff" * 100_000 + b"\nbegun\rlast \x1b[1m\n\n  \n")
    assert stepping._line(workspace) == "last \\x1b[1m"
    log.write_bytes(b"x" * 100_000)
    assert stepping._line(workspace) == "x" * stepping.LONGEST


@pytest.mark.long
def test_the_command_itself_is_what_runs(alone: Place, owner: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "CHILD", REAL)
    monkeypatch.setenv("MANNERS_LOG_FORMAT", "json")  # of the server; a step's log is for people
    Workspace.open(alone.folder).toml.write_text("[loop]\nhours = -1\n", encoding="utf-8")
    take(owner)
    last = until(owner, lambda last: not last["runs"])
    assert last["state"] == "failed" and "loop.hours" in last["said"]


@pytest.mark.long
def test_a_page_that_is_open_follows_a_step(alone: Place, open_page: Callable[..., Page]) -> None:
    site = Site(
        Workspace.open(alone.folder), Settings(), alone.store, alone.accounts, True, "http://127.0.0.1", Scripted()
    )
    with listening(site) as url:
        page = open_page(f"{url}/rounds", width=390)
        page.get_by_role("button", name="Take this step").click()
        expect(page.get_by_text("drawing responses: 3/9, 5 s")).to_be_visible()
        sound(page, "a step under way")
        page.get_by_role("button", name="Stop it").focus()
        ends(alone, "manners: there are no prompts")
        expect(page.get_by_text("It failed: there are no prompts")).to_be_visible()
        expect(page.get_by_role("button", name="Take this step")).to_be_visible()
        sound(page, "a step that has failed")
