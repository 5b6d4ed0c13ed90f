"""docs/review.md: its commands run in their order, as two people go by them, and its tables say what the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from manners import web
from manners.audit import gate
from manners.cli import main
from manners.feedback import crowd
from manners.ppo.learner import Learner
from manners.results.audit import People
from manners.settings import Settings
from manners.store import Store
from manners.store.accounts import Accounts
from manners.store.tokens import Scope, Terms, TokenUse
from manners.types import AccountRole
from manners.web.app import create_app
from manners.web.site import Site
from manners.workspace import Workspace
from tests.loop import small_rounds, tiny
from tests.ppo.scripted import keep
from tests.test_docs_pages import DOCS, Page
from tests.web.scripted import Scripted
from tests.web.test_review import form
from tests.worlds import save_tiny

TEXT = (DOCS / "review.md").read_text(encoding="utf-8")
[RULES] = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def approve(workspace: Workspace, name: str, policy: str) -> None:
    """Do on the page what a reviewer does there."""
    store = Store.open(workspace.database)
    key = Accounts(store).issue(TokenUse.KEY, name, terms=Terms(scopes=tuple(Scope)))
    site = Site(workspace, Settings(), store, Accounts(store), False, "http://127.0.0.1", Scripted())
    client = TestClient(create_app(site), headers={"authorization": f"Bearer {key}"}, follow_redirects=False)
    page = client.get(f"/review?version={policy}").text
    assert page.count('<select name="read">') > 3, "there are answers to read"
    answer = client.post("/review", data=form(page, "approved"))
    assert answer.status_code == 303, answer.text
    store.close()


@pytest.mark.long
def test_every_command_on_the_page_runs_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Olga starts the runs, Rita reads; only what decides about versions by chance is made loose."""
    monkeypatch.setitem(crowd.TASTES, tiny.FIGURES.name, tiny.FIGURES)
    monkeypatch.setattr(Learner, "offer", keep)
    settings = tiny.settings(save_tiny(tmp_path / "model"))
    tiny.demo(tmp_path / "project", settings)
    workspace = Workspace.open(tmp_path / "project")
    workspace.toml.write_text(tiny.toml(settings), encoding="utf-8")
    workspace.start_from("initial")
    store = Store.open(workspace.database)
    for name, role in (("olga", AccountRole.OWNER), ("rita", AccountRole.REVIEWER)):
        Accounts(store).add(name, role, None)
    store.close()
    gate.keep_people(workspace, "policy-1", People(), "account 1")
    (workspace.root / "gate.toml").write_text(RULES + small_rounds.GATE, encoding="utf-8")
    monkeypatch.chdir(workspace.root)
    [(variable, name)] = re.findall(r"^ {4}export (\w+)=(\w+)", TEXT, re.MULTILINE)
    monkeypatch.setenv(variable, name)
    capsys.readouterr()
    told = {}
    for command in Page(TEXT, tmp_path / "model").commands():
        if command == "manners serve":
            approve(workspace, "rita", "policy-1")
            continue
        ended = main([*command.split()[1:], "--json"])
        said = capsys.readouterr()
        assert ended == (1 if command.endswith("--gate") else 0), f"{command}: {said.err}"
        told[command] = json.loads(said.out)
    assert told["manners evaluate"]["promoted"] is False
    assert told["manners audit --gate"]["gate"] == {"verdict": "cannot_tell", "failed": [], "cannot_tell": ["review"]}
    assert told["manners models promote policy-1"] == {"current": "policy-1"}
    assert gate.read(workspace, told["manners ppo"]["version"]).started_by == "account 1"


def test_the_parts_that_the_table_explains_are_those_of_the_page() -> None:
    page = (Path(web.__file__).parent / "templates" / "review.html.j2").read_text(encoding="utf-8")
    headings = re.findall(r"<h2>([^<{]+)", page)
    rows = re.findall(r"^\| \*([^*]+)\*", TEXT, re.MULTILINE)
    assert {"Where it stands", "What differs", "What was decided"} <= set(rows)
    assert {row.partition(",")[0] for row in rows} == set(headings) - {"Decide"}
    assert set(re.findall(r"^(\w+) = true", RULES, re.MULTILINE)) == {"review", "two_person"}
