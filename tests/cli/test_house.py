"""The commands on accounts, backups, deletion and the log: what they answer a program, and one sentence otherwise."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from manners.cli import main
from manners.store import Store
from manners.store.accounts import Accounts
from manners.store.tokens import TokenUse
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict
from tests.store.test_forget import SECRET, by_program, chat

PASSWORD = "correct horse"
Run = Callable[..., Any]


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two accounts, and its backup beside it, to be copied."""
    folder = tmp_path_factory.mktemp("house")
    workspace = str(folder / "ws")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\n" * 2))
        for command in ("init", "accounts add olga --workspace", "accounts add anna --workspace"):
            assert main([*shlex.split(command), workspace]) == 0
    assert main(["backup", str(folder / "bk"), "--workspace", workspace]) == 0
    (folder / "ws" / "backup.json").unlink()
    return folder


@pytest.fixture
def run(house: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs a command in a workspace, and returns its object, or its one sentence where it fails."""
    shutil.copytree(house / "ws", tmp_path / "ws")
    monkeypatch.chdir(tmp_path / "ws")

    def run(command: str, line: str = PASSWORD, code: int = 0) -> Any:
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{line}\n"))
        found = main([*shlex.split(command), "--json"])
        said = capsys.readouterr()
        assert found == code, (command, said.err)
        if not code:
            return json.loads(said.out)
        assert said.out == "" and said.err.startswith("manners: ") and said.err.count("\n") == 1, said.err
        return said.err

    return run


def spoken(root: Path) -> None:
    """Somebody judges, chats, and has a program that does too."""
    with closing(Store.open(root / "store.db")) as store:
        sides = Response("a", "x"), Response("b", "x")
        said = Verdict(Choice.LEFT, Annotator("zoe", AnnotatorKind.HUMAN))
        store.merge_comparisons([Comparison((Turn(Role.USER, "q"),), *sides, AskedHow.IMPORTED, verdicts=(said,))])
        chat(store, "anna", SECRET)
        by_program(store, "anna", SECRET, "u1", "k1")
        by_program(store, "anna", f"{SECRET}!", "u2", "k2")


@pytest.mark.parametrize(
    ("words", "scopes"),
    [
        ("", ["chat", "feedback"]),
        ("--scope export", ["export"]),
        ("--scope chat feedback", ["chat", "feedback"]),
        ("--scope chat --scope feedback", ["chat", "feedback"]),
        ("--scope admin chat --scope chat export", ["admin", "chat", "export"]),
    ],
)
def test_a_key_is_good_for_all_that_was_said_however_it_was_said(run: Run, words: str, scopes: list[str]) -> None:
    made = run(f"accounts key anna {words} --days 3")
    assert (made["scopes"], made["days"]) == (scopes, 3)
    [listed] = run("accounts list")["keys"]
    assert listed["scopes"] == scopes
    until = datetime.fromisoformat(listed["expires_at"])
    assert abs(until - datetime.now(UTC) - timedelta(days=3)) < timedelta(minutes=5)


def test_what_was_ended_is_ended(run: Run) -> None:
    for scope in ("chat", "export"):
        run(f"accounts key anna --scope {scope}")
    with closing(Store.open("store.db")) as store:
        Accounts(store).issue(TokenUse.SESSION, "anna", label="a browser")
        Accounts(store).issue(TokenUse.SESSION, "olga", label="another")
    assert [one["label"] for one in run("accounts sessions anna")["sessions"]] == ["a browser"]
    first = run("accounts list")["keys"][0]["id"]
    assert run(f"accounts revoke {first}") == {"number": first, "revoked": 1}
    assert run("accounts revoke --account anna") == {"account": "anna", "revoked": 2}
    assert run("accounts list")["keys"] == [] and run("accounts sessions anna")["sessions"] == []
    assert [one["label"] for one in run("accounts sessions")["sessions"]] == ["another"]
    run("accounts disable anna")
    assert run("accounts enable anna") == {"enabled": "anna"}
    assert run("accounts password anna", "a new password") == {"name": "anna", "password": "changed"}
    with closing(Store.open("store.db")) as store:
        assert [Accounts(store).check("anna", word) is not None for word in (PASSWORD, "a new password")] == [
            False,
            True,
        ]


def test_a_backup_a_restore_and_somebody_who_leaves(run: Run) -> None:
    spoken(Path())
    made = run("backup ../bk")
    assert (made["verdicts"], made["versions"], made["verified"]) == (3, 0, True) and Path(made["path"]).is_dir()
    assert run("status")["last_backup"]["path"] == made["path"]
    back = run("restore ../bk --workspace ../other")
    assert (back["verdicts"], back["versions"], back["verified"], back["missing"]) == (3, 0, True, [])
    one = run("forget anna --user u2")
    assert (one["names"], one["comparisons"], one["conversations"]) == (1, 1, 0)
    gone = run("forget anna")
    assert (gone["conversations"], gone["database_written_anew"]) == (1, True) and SECRET not in json.dumps(gone)
    assert run("status")["verdicts"]["human"] == 3, "what was chosen stays"
    again = run("restore ../bk")
    assert (again["forgotten_again"], again["verdicts"]) == (1, 3)
    log = run("log")
    events = [line["event"] for line in log["log"]]
    assert log["total"] == len(events) and events[0] == "restored" and "account_forgotten" in events
    assert events.count("account_added") == 2 and SECRET not in json.dumps(log) and "anna" not in json.dumps(log)
    assert [line["event"] for line in run("log --limit 1")["log"]] == ["restored"]


def test_whoever_was_not_forgotten_after_all_is_not_forgotten_by_a_restore(run: Run) -> None:
    """A refusal comes before anything is written down that a restore would do again."""
    spoken(Path())
    run("accounts role olga --role annotator")
    run("backup ../bk")
    assert "only owner" in run("forget anna", code=1) and "no user u9" in run("forget anna --user u9", code=1)
    assert not Path("deletions.jsonl").exists()
    back = run("restore ../bk")
    assert (back["forgotten_again"], back["deleted_again"]) == (0, 0)
    assert [(one["name"], one["disabled"]) for one in run("accounts list")["accounts"]] == [
        ("olga", False),
        ("anna", False),
    ]


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("accounts add olga", 1, "there is an account olga already"),
        ("accounts add 0lga", 1, "looks like that of the account olga"),
        ("accounts add owner", 1, "is reserved"),
        ("accounts password nobody", 1, "there is no account nobody"),
        ("accounts enable anna", 1, "there is no disabled account anna"),
        ("accounts enable nobody", 1, "there is no disabled account nobody"),
        ("accounts sessions nobody", 1, "there is no account nobody"),
        ("accounts key nobody", 1, "there is no account nobody"),
        ("accounts key anna --days 0", 1, "for 1 to 36,500 days"),
        ("accounts key anna --days -1", 1, "for 1 to 36,500 days"),
        ("accounts key anna --days 36501", 1, "for 1 to 36,500 days"),
        ("accounts key anna --days 99999999999999999999", 1, "for 1 to 36,500 days"),
        ("accounts key anna --scope", 1, "is good for something"),
        ("accounts revoke", 1, "say what to end"),
        ("accounts revoke 1 --account anna", 1, "say what to end"),
        ("accounts revoke 999", 1, "there is nothing of number 999"),
        ("accounts revoke -1", 1, "there is nothing of number -1"),
        ("accounts revoke 99999999999999999999", 1, "cannot hold a number as large as that"),
        ("accounts revoke --account nobody", 1, "there is no account nobody"),
        ("backup .", 1, "is in the workspace itself"),
        ("backup models/bk", 1, "is in the workspace itself"),
        ("backup /proc/bk", 1, "cannot write a backup to /proc/bk"),
        ("backup ../letters", 1, "already holds other things"),
        ("backup ../letters/a.txt", 1, "already holds other things"),
        ("restore ../nowhere", 1, "holds no backup"),
        ("restore ../letters", 1, "holds no backup"),
        ("restore ../bk --workspace ../letters", 1, "already holds other things"),
        ("restore ../bk --database sqlite:///x", 1, "A team's database is on a server"),
        ("restore ../bk --database postgresql://u:secret@h/x", 1, "holds a password"),
        ("restore ../bk --database postgresql://u@h/x", 2, "leave out --database"),
        ("forget nobody", 1, "there is no account nobody"),
        ("forget ''", 1, "there is no account"),
        ("forget anna --user nobody", 1, "no user nobody of anna"),
        ("forget zoe", 1, "there is no account zoe"),
        ("log --limit -1", 2, "--limit cannot be -1"),
        ("log --limit 99999999999999999999", 2, "--limit cannot be"),
        ("log --workspace ../nowhere", 1, "nowhere"),
        ("forget anna --workspace ../nowhere", 1, "nowhere"),
        ("backup ../bk --workspace ../nowhere", 1, "nowhere"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    run: Run, house: Path, tmp_path: Path, command: str, code: int, says: str
) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("Dear")
    shutil.copytree(house / "bk", tmp_path / "bk")
    before = run("accounts list")
    said = run(command, code=code)
    assert says in said and "secret" not in said
    assert run("accounts list") == before
