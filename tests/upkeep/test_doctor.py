"""`manners doctor`: each thing that can be wrong is made wrong, and found; what is sound is left as it is."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from manners.backup import record, take
from manners.backup.record import Failure, Rehearsal
from manners.backup.take import backup
from manners.cli import main
from manners.errors import MannersError
from manners.loop.plan import Part, Plan
from manners.settings import BackupSettings, ServeSettings, Settings
from manners.store import Outcome, Store, VersionRecord, audit
from manners.store.records import Round
from manners.store.sound import soundness
from manners.types import VersionKind
from manners.upkeep import checks, doctor
from manners.upkeep.checks import FAIL, PASS, WARN, Check
from manners.workspace import Workspace

NAMES = ["settings", "permissions", "database", "versions", "model", "memory", "disk", "clock", "backup", "port"]
POLICY = {
    "name": "policy-1",
    "kind": "policy",
    "base": "x",
    "trunk_hash": "x",
    "cut": 1,
    "template_hash": "x",
    "dtype": "float32",
    "created_at": "2026-01-01T00:00:00+00:00",
}


def files(root: Path) -> dict[str, bytes]:
    return {str(one.relative_to(root)): one.read_bytes() for one in sorted(root.rglob("*")) if one.is_file()}


def told(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    """Ask the command, as programs do."""
    code = main(["doctor", "--json", "--workspace", str(workspace.root)])
    found = json.loads(capsys.readouterr().out)
    assert all(one.keys() == {"name", "verdict", "sentence"} for one in found["checks"])
    return code, {one["name"]: one for one in found["checks"]}


def test_a_sound_workspace_passes_and_is_left_as_it_is(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(workspace.root)
    code, found = told(workspace, capsys)
    assert code == 0 and list(found) == NAMES
    assert {one["verdict"] for one in found.values()} == {PASS, WARN}
    warned = {name for name, one in found.items() if one["verdict"] == WARN}
    assert warned <= {"memory", "backup", "disk"}, "no prompts yet, no backup yet, and this machine's disk"
    assert "loads (0 million parameters), with its template; answers end with" in found["model"]["sentence"]
    assert files(workspace.root) == before


@pytest.mark.parametrize(
    ("toml", "name", "said"),
    [
        ("[ppo]\nclip = 99\n", "settings", "ppo.clip"),
        ('[model]\nname = "/nowhere/at/all"\n', "model", "cannot be loaded"),
    ],
)
def test_what_fails_is_named_and_the_command_fails(
    toml: str, name: str, said: str, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.toml.write_text(toml)
    code, found = told(workspace, capsys)
    assert code == 1 and found[name]["verdict"] == FAIL and said in found[name]["sentence"]
    assert all(one["verdict"] != FAIL for other, one in found.items() if other != name)


def test_a_gate_that_cannot_be_read_is_a_setting_too(workspace: Workspace) -> None:
    (workspace.root / "gate.toml").write_text("version = 1\n[evaluation.win_rate]\nbetter = 3\n")
    found, chosen = checks.settings(workspace)
    assert found.verdict == FAIL and "gate.toml" in found.sentence and chosen is None


def of_rights(workspace: Workspace) -> Check:
    return checks.permissions(workspace, soundness(workspace.database))


def test_a_record_that_others_can_read_fails_and_is_not_mended(workspace: Workspace) -> None:
    file = workspace.root / "store.db"
    assert of_rights(workspace).verdict == PASS
    file.chmod(0o644)
    found = of_rights(workspace)
    assert found.verdict == FAIL and f"chmod 600 {file}" in found.sentence
    assert file.stat().st_mode & 0o777 == 0o644, "who only looks changes nothing"


def test_a_folder_that_anybody_can_write_to_fails(workspace: Workspace) -> None:
    workspace.models.chmod(0o777)
    found = of_rights(workspace)
    assert found.verdict == FAIL and "anybody can write to" in found.sentence
    workspace.models.chmod(0o755)
    shutil.rmtree(workspace.runs)
    assert "is not there" in of_rights(workspace).sentence


def test_a_workspace_that_cannot_be_written_fails(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != workspace.runs)
    found = checks.permissions(workspace, None)
    assert found.verdict == FAIL and f"{workspace.runs} cannot be written" in found.sentence


def of_database(workspace: Workspace) -> Check:
    try:
        return checks.database(workspace, soundness(workspace.database))
    except MannersError as error:
        return checks.database(workspace, error)


def test_a_damaged_database_fails(workspace: Workspace) -> None:
    """A page in the middle is overwritten; then the file begins with something else; then it is gone."""
    file = workspace.root / "store.db"
    assert of_database(workspace).verdict == PASS
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4096] = b"\xff" * 4096
    file.write_bytes(content)
    assert of_database(workspace).verdict == FAIL
    file.write_bytes(b"no database" * 1000)
    assert of_database(workspace).verdict == FAIL
    file.unlink()
    assert "there is no store" in of_database(workspace).sentence


def test_a_row_that_refers_to_none_fails(workspace: Workspace) -> None:
    with closing(sqlite3.connect(workspace.root / "store.db")) as connection, connection:
        connection.execute(
            "INSERT INTO versions (name, kind, path, parent_id, metrics, watermark, created_at)"
            " VALUES ('policy-1', 'policy', 'models/policy-1', 99, '{}', 0, '2026-01-01 00:00:00')"
        )
    found = of_database(workspace)
    assert found.verdict == FAIL and "refers to one of versions that is not there" in found.sentence


@pytest.mark.parametrize(("revision", "verdict", "said"), [("9999", FAIL, "newer"), ("0001", WARN, "older manners")])
def test_tables_of_another_manners_are_told(
    revision: str, verdict: str, said: str, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(workspace.root / "store.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    before = files(workspace.root)
    found = of_database(workspace)
    assert found.verdict == verdict and said in found.sentence
    assert files(workspace.root) == before, "nothing is brought up to date by looking"


def version(workspace: Workspace, name: str = "policy-1", *, recorded: bool = True) -> Path:
    """Make a version that nobody can load, and that is well described."""
    folder = workspace.models / name
    folder.mkdir()
    (folder / "version.json").write_text(json.dumps(POLICY | {"name": name}))
    (folder / "branch-0.safetensors").write_bytes(b"weights" * 100)
    if recorded:
        with closing(Store.open(workspace.database)) as store:
            store.add_version(VersionRecord(name, VersionKind.POLICY, f"models/{name}", None, {}, 0))
    return folder


def of_versions(workspace: Workspace) -> Check:
    return checks.versions(workspace, soundness(workspace.database))


def test_versions_that_are_gone_or_unknown_or_damaged(workspace: Workspace) -> None:
    folder = version(workspace)
    assert of_versions(workspace) == Check("versions", PASS, "1 version, each with its folder and its row.")
    version(workspace, "policy-2", recorded=False)
    found = of_versions(workspace)
    assert found.verdict == WARN and found.sentence.startswith("policy-2 is not recorded:")
    (folder / "version.json").write_text("{")
    found = of_versions(workspace)
    assert found.verdict == FAIL and "version.json is damaged" in found.sentence
    shutil.rmtree(folder)
    found = of_versions(workspace)
    assert found.verdict == WARN and "policy-1 is recorded, and its folder is gone" in found.sentence
    workspace.promote("policy-1")
    found = of_versions(workspace)
    assert found.verdict == FAIL and "policy-1 was promoted" in found.sentence and "rollback" in found.sentence


def test_weights_that_the_disk_has_changed_are_told_by_the_last_backup(workspace: Workspace, tmp_path: Path) -> None:
    folder = version(workspace)
    backup(workspace, tmp_path / "backups")
    assert of_versions(workspace).verdict == PASS
    file = folder / "branch-0.safetensors"
    file.write_bytes(b"weights" * 99 + b"weighty")
    found = of_versions(workspace)
    assert found.verdict == FAIL and f"{file} is not what the last backup holds" in found.sentence


def test_a_promoted_policy_of_another_model_fails(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    version(workspace)
    workspace.promote("policy-1")
    code, found = told(workspace, capsys)
    assert code == 1 and found["model"]["verdict"] == FAIL
    assert "policy-1 was trained above another trunk" in found["model"]["sentence"]


def test_a_clock_that_was_set_back_fails(workspace: Workspace) -> None:
    """The record has a round of next year; one of today is as it should be."""
    with closing(Store.open(workspace.database)) as store:
        audit.record(store, audit.Deed(audit.Event.SERVED))
        assert checks.clock(soundness(workspace.database)).verdict == PASS
        for name, kind in (("policy-1", VersionKind.POLICY), ("reward-1", VersionKind.REWARD)):
            store.add_version(VersionRecord(name, kind, f"models/{name}", None, {}, 0))
        then = datetime.now(UTC) + timedelta(days=365)
        store.add_round(Round("policy-1", "reward-1", Outcome.REJECTED, {}, then))
    found = checks.clock(soundness(workspace.database))
    assert found.verdict == FAIL and f"{then:%Y-%m-%d %H:%M} already" in found.sentence


def of_backups(workspace: Workspace, **chosen: Any) -> Check:
    return checks.backups(workspace, BackupSettings(**chosen))


def test_backups_that_are_none_old_gone_or_cannot_be_put_back(workspace: Workspace, tmp_path: Path) -> None:
    assert of_backups(workspace).verdict == WARN
    place = Path(backup(workspace, tmp_path / "backups")["path"])
    assert of_backups(workspace).verdict == PASS
    said = json.loads((workspace.root / take.LAST).read_text())
    for age, chosen, verdict in [(8, {}, WARN), (6, {}, PASS), (6, {"into": "x"}, WARN), (1.9, {"into": "x"}, PASS)]:
        then = datetime.now(UTC) - timedelta(days=age)
        (workspace.root / take.LAST).write_text(json.dumps(said | {"made_at": then.isoformat(timespec="seconds")}))
        assert of_backups(workspace, **chosen).verdict == verdict, (age, chosen)
    rehearsed = Rehearsal("2026-01-01", str(place), 3, 0, verified=True, problem="", seconds=0.1)
    record.keep(workspace, rehearsal=rehearsed)
    assert "put back to see that it can be on 2026-01-01" in of_backups(workspace).sentence
    record.keep(workspace, rehearsal=replace(rehearsed, verified=False, problem="store.db differs"))
    assert of_backups(workspace).verdict == FAIL
    record.keep(workspace, rehearsal=rehearsed, failure=Failure("2026-01-02", "the disk is full"))
    found = of_backups(workspace)
    assert found.verdict == FAIL and "the disk is full" in found.sentence
    record.keep(workspace, failure=None)
    shutil.rmtree(place)
    assert of_backups(workspace).verdict == WARN


def test_a_port_that_is_taken_is_told(workspace: Workspace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        chosen = Settings(serve=ServeSettings(port=taken.getsockname()[1]))
        found = checks.port(workspace, chosen)
    assert found.verdict == WARN and "is in use" in found.sentence
    assert checks.port(workspace, chosen).verdict == PASS


def test_memory_and_disk_that_do_not_suffice(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (Part("a", 10**9, "ppo.batch"), Part("b", 3 * 10**9, "model.trainable_layers"))
    plan = Plan("ppo", {}, 0, parts, free=5 * 10**9)
    assert doctor._memory([plan]).verdict == PASS
    found = doctor._memory([plan, replace(plan, free=4 * 10**9)])
    assert found.verdict == FAIL and "lower model.trainable_layers" in found.sentence
    assert doctor._memory([]).verdict == WARN
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 5 * 10**9))
    for needed, verdict in [(10**9, PASS), (4.5e9, WARN), (6 * 10**9, FAIL)]:
        assert doctor._room(workspace, int(needed)).verdict == verdict


def test_a_model_that_is_not_here_is_not_fetched_to_look_at_it(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MANNERS_CACHE", str(tmp_path / "empty"))
    workspace.toml.write_text('[model]\nname = "smollm2-135m"\n')
    code, found = told(workspace, capsys)
    assert code == 0 and "not on this machine yet" in found["model"]["sentence"] and not (tmp_path / "empty").exists()


def test_a_team_database_is_looked_at(database: str) -> None:
    with closing(Store.create(database)):
        pass
    found = soundness(Path(database) if "://" not in database else database)
    assert found.is_newest and not found.problem and found.size > 10_000
