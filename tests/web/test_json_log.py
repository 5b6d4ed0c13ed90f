"""`--log-format json`: every line is one object, whoever writes it, and none has a secret or anybody's words."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from manners import logs
from manners.cli import main
from manners.logs import JsonLines, written
from manners.settings import BackupSettings
from manners.types import AccountRole
from manners.upkeep import schedule
from manners.workspace import Workspace
from tests.web.conftest import NOWHERE, Place, serve

SECRET = "the code is 7-3-1, says Zoë"


def objects(text: str) -> list[dict[str, str]]:
    """Every line as an object; fails where one is none."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all(one.keys() == {"time", "level", "message"} for one in found)
    return found


def test_lines_become_objects_with_their_level() -> None:
    beneath = io.StringIO()
    lines = JsonLines(beneath)
    print("one", "and the same", file=lines)
    print("warning: two\n\nERROR:    three", file=lines)
    print("\x1b[31mfour\u202e", end="\r", file=lines)
    print("not ended", end="", file=lines)
    found = objects(beneath.getvalue())
    assert [(one["level"], one["message"]) for one in found] == [
        ("info", "one and the same"),
        ("warning", "two"),
        ("error", "three"),
        ("info", "\x1b[31mfour\u202e"),
    ]
    assert beneath.getvalue().isascii() and "\x1b" not in beneath.getvalue()


def test_lines_of_many_threads_stay_apart() -> None:
    beneath = io.StringIO()
    lines = JsonLines(beneath)

    def say(who: int) -> None:
        for number in range(50):
            for part in (f"{who}", " says ", f"{number}", "\n"):
                lines.write(part)

    threads = [threading.Thread(target=say, args=(who,)) for who in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    said = {one["message"] for one in objects(beneath.getvalue())}
    assert said == {f"{who} says {number}" for who in range(4) for number in range(50)}


def test_records_of_loggers_say_kind_and_place_of_an_error_and_not_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beneath = io.StringIO()
    monkeypatch.setattr(sys, "stderr", beneath)
    log = logging.getLogger("manners.web")
    with written("json"):
        log.error("a fault of %s", "ours")
        try:
            raise ValueError(SECRET)
        except ValueError:
            log.exception("it failed")
    assert sys.stderr is beneath
    found = objects(beneath.getvalue())
    assert found[0]["level"] == "error" and found[0]["message"] == "a fault of ours"
    assert "ValueError" in found[1]["message"] and SECRET not in beneath.getvalue()
    assert not [one for one in logging.getLogger().handlers if isinstance(one, logs._Objects)]


def test_a_command_that_fails_says_so_in_an_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--workspace", str(tmp_path), "--log-format", "json"]) == 1
    [only] = objects(capsys.readouterr().err)
    assert "is not a workspace" in only["message"] and only["level"] == "error"


class Once(threading.Event):
    """An event that is set once somebody has waited for it."""

    def wait(self, timeout: float | None = None) -> bool:
        before = self.is_set()
        self.set()
        return before


def test_a_backup_that_fails_is_an_error(
    new_workspace: Callable[[Path], Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, beneath, ended = new_workspace(tmp_path / "project"), io.StringIO(), Once()
    monkeypatch.setattr(sys, "stderr", beneath)
    monkeypatch.setattr(schedule, "LOOK", 0.0)
    monkeypatch.setattr(schedule, "_backup", lambda *_: 1 / 0)
    with written("json"):
        schedule.follow(workspace, BackupSettings(into=str(tmp_path / "kept")), ended)
    [said] = objects(beneath.getvalue())
    assert said["level"] == "error" and said["message"].startswith("backup: failed, and is tried again in an hour")


def test_a_process_that_is_started_writes_as_it_was_told() -> None:
    program = "from manners.logs import write_as_told\nimport sys\nwrite_as_told()\nprint('here', file=sys.stderr)"
    for form, is_json in (("json", True), ("text", False)):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={logs.FORMAT: form, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stderr == "here\n") is not is_json
        assert not is_json or objects(done.stderr)[0]["message"] == "here"


@pytest.mark.long
def test_a_server_says_no_secret_and_nobodys_words(alone: Place, tmp_path: Path) -> None:
    """Pages, wrong passwords, links, keys, broken bodies and a model that is not there; then every line is read."""
    key = alone.key("Zoë Weber")
    link = alone.link("Zoë Weber")
    toml = f'[backup]\ninto = "{tmp_path / "backups"}"\n'
    (alone.folder / "manners.toml").write_text(toml)
    alone.store.close()
    log = (tmp_path / "log").open("w+")
    alone.accounts.add("olga", AccountRole.OWNER, "correct horse")
    with serve(alone.folder, "--log-format", "json", "--upstream", NOWHERE, stderr=log) as server:
        ask = {"model": "x", "messages": [{"role": "user", "content": SECRET}]}
        with httpx.Client(base_url=server.url) as client:
            client.post("/sign-in", data={"name": "Zoë Weber", "password": SECRET})
            client.get(link)
            client.get(f"/{SECRET}")
            client.post("/v1/chat/completions", json=ask, headers={"authorization": f"Bearer {key}"})
            client.post("/v1/chat/completions", json=ask, headers={"authorization": f"Bearer {SECRET.encode().hex()}"})
            client.post("/v1/feedback", content=SECRET.encode(), headers={"authorization": f"Bearer {key}"})
            client.post("/label/verdict", content=b"\xff" + SECRET.encode())
    log.seek(0)
    said = log.read()
    log.close()
    objects(said)
    for word in (SECRET, "7-3-1", "Zoë", "Weber", key, link.rpartition("/")[2], "correct horse", SECRET.encode().hex()):
        assert word not in said and json.dumps(word).strip('"') not in said
