"""`manners doctor`: each thing that can be wrong is made wrong, and found; what is sound is left as it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from manners.backup import record, snapshots, take
from manners.backup.record import Failure, Rehearsal
from manners.backup.restore import restore
from manners.backup.take import backup
from manners.cli import main
from manners.errors import MannersError
from manners.loop import standing
from manners.loop.plan import Part, Plan
from manners.models import described
from manners.restored import READY
from manners.settings import BackupSettings, ServeSettings, Settings
from manners.store import Outcome, Store, VersionRecord, audit
from manners.store.records import Round
from manners.store.sound import soundness
from manners.types import VersionKind
from manners.upkeep import checks, doctor
from manners.upkeep.checks import FAIL, PASS, WARN, Check
from manners.workspace import Workspace
from tests.conftest import some

NAMES = [
    "workspace",
    "settings",
    "permissions",
    "database",
    "versions",
    "model",
    "memory",
    "disk",
    "clock",
    "backup",
    "port",
]
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
    save_file({"weights": torch.arange(100.0)}, folder / "branch-0.safetensors")
    if recorded:
        with closing(Store.open(workspace.database)) as store:
            store.add_version(VersionRecord(name, VersionKind.POLICY, f"models/{name}", None, {}, 0))
    return folder


def of_versions(workspace: Workspace) -> Check:
    return checks.versions(workspace, soundness(workspace.database))


def test_versions_that_are_gone_or_unknown_or_damaged(workspace: Workspace) -> None:
    folder = version(workspace)
    assert of_versions(workspace) == Check("versions", PASS, "1 version, each with its weights and its row.")
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


def test_a_rollback_is_advised_only_where_it_takes_back_what_is_gone(workspace: Workspace) -> None:
    for name in ("policy-1", "policy-2"):
        version(workspace, name)
        workspace.promote(name)
    kept = (workspace.models / "policy-1").rename(workspace.root / "kept")
    found = of_versions(workspace)
    assert found.verdict == FAIL and found.sentence.startswith("policy-1 was promoted")
    assert "models rollback" not in found.sentence, "it would take back policy-2, which is sound"
    kept.rename(workspace.models / "policy-1")
    shutil.rmtree(workspace.models / "policy-2")
    found = of_versions(workspace)
    assert found.sentence.startswith("policy-2 was promoted") and "`manners models rollback`" in found.sentence
    assert main(["models", "rollback", "--workspace", str(workspace.root)]) == 0
    assert of_versions(workspace).verdict == WARN and workspace.current_policy() == "policy-1"
    workspace.start_from("policy-1")
    shutil.rmtree(workspace.models / "policy-1")
    found = of_versions(workspace)
    assert found.sentence.startswith("learning starts from policy-1") and "models rollback" not in found.sentence


def test_weights_that_the_disk_has_changed_are_told_by_the_last_backup(workspace: Workspace, tmp_path: Path) -> None:
    folder = version(workspace)
    backup(workspace, tmp_path / "backups")
    assert of_versions(workspace).verdict == PASS
    file = folder / "branch-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found = of_versions(workspace)
    assert found.verdict == FAIL and f"{file} is not what the last backup holds" in found.sentence


def test_weights_that_were_damaged_before_the_last_backup_are_told_until_they_are_put_right(
    workspace: Workspace, tmp_path: Path
) -> None:
    """The last backup holds what was damaged, and is nothing to hold it against, nor what is put right."""
    file = version(workspace) / "branch-0.safetensors"
    sound = file.read_bytes()
    backup(workspace, tmp_path / "backups")
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    for _ in range(2):
        assert backup(workspace, tmp_path / "backups")["spoilt"] == ["models/policy-1/branch-0.safetensors"]
        found = of_versions(workspace)
        assert found.verdict == FAIL and f"{file} is not what an earlier backup holds" in found.sentence
    file.write_bytes(sound)
    assert of_versions(workspace).verdict == PASS
    assert backup(workspace, tmp_path / "backups")["spoilt"] == [] and of_versions(workspace).verdict == PASS
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert "is not what the last backup holds" in of_versions(workspace).sentence


def test_a_name_that_is_given_again_is_no_damage(workspace: Workspace, tmp_path: Path) -> None:
    """An older backup is put back, and training makes another policy-2 than later backups hold."""
    version(workspace)
    older = backup(workspace, tmp_path / "backups")["path"]
    version(workspace, "policy-2")
    backup(workspace, tmp_path / "backups")
    restore(Path(older), workspace.root)
    folder = version(workspace, "policy-2")
    (folder / "version.json").write_text(json.dumps(POLICY | {"name": "policy-2", "created_at": "2026-02-01"}))
    save_file({"weights": torch.ones(100)}, file := folder / "branch-0.safetensors")
    assert of_versions(workspace).verdict == PASS
    assert main(["backup", str(tmp_path / "backups"), "--workspace", str(workspace.root)]) == 0
    assert of_versions(workspace).verdict == PASS
    save_file({"weights": torch.zeros(100)}, file)
    assert f"{file} is not what the last backup holds" in of_versions(workspace).sentence
    assert backup(workspace, tmp_path / "backups")["spoilt"] == ["models/policy-2/branch-0.safetensors"]


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
    backup(workspace, tmp_path / "backups")
    for days, verdict in ((13, PASS), (15, WARN), (-1, WARN)):
        at = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")
        record.keep(workspace, rehearsal=replace(rehearsed, at=at))
        found = of_backups(workspace, into="x")
        assert found.verdict == verdict, days
        assert "--rehearse" in found.sentence or verdict == PASS
        assert of_backups(workspace).verdict == of_backups(workspace, into="x", rehearse=0.0).verdict == PASS
    (workspace.root / take.LAST).write_text(json.dumps(said))
    shutil.rmtree(place)
    assert of_backups(workspace).verdict == FAIL
    shutil.rmtree(place.parent)
    found = of_backups(workspace)
    assert found.verdict == WARN and "is its disk connected?" in found.sentence


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


def test_an_interrupted_restore_and_what_is_half_written_are_told_and_left(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process that wrote it is gone: no number of a process is as high as this one."""
    here = socket.gethostname().partition(".")[0]
    (workspace.root / f".report.html.{here}-999999999-00.partial").write_text("half")
    (workspace.root / f".report.json.{here}-{os.getpid()}-00.partial").write_text("being written")
    before = files(workspace.root)
    code, found = told(workspace, capsys)
    assert (
        code == 0
        and found["workspace"]["verdict"] == WARN
        and "half-written (1 such)" in found["workspace"]["sentence"]
    )
    assert files(workspace.root) == before
    (workspace.root / READY).mkdir()
    (workspace.root / READY / "manners.toml").write_text("[ppo]\nclip = 0.3\n")
    before = files(workspace.root)
    code, found = told(workspace, capsys)
    assert found["workspace"]["verdict"] == WARN and "was stopped before its end" in found["workspace"]["sentence"]
    assert files(workspace.root) == before


def folder_for(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


def circle_for(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to(file)


@pytest.mark.parametrize("odd", [folder_for, circle_for], ids=["folder", "circle"])
@pytest.mark.parametrize(
    ("name", "check"),
    some(
        [
            ("workspace.json", "workspace"),
            ("manners.toml", "settings"),
            ("gate.toml", "settings"),
            ("store.db", "database"),
            ("models/policy-1/branch-0.safetensors", "versions"),
            ("models/policy-1/version.json", "versions"),
            ("models/current.json", "versions"),
            ("backup.json", "backup"),
        ],
        3,
    ),
)
def test_one_odd_file_fails_its_own_check_and_the_report_is_whole(
    name: str, check: str, odd: Callable[[Path], None], workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    version(workspace)
    odd(workspace.root / name)
    code, found = told(workspace, capsys)
    assert code == 1 and list(found) == NAMES and found[check]["verdict"] == FAIL


def test_a_damaged_marker_is_a_finding_and_no_workspace_is_none(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (workspace.root / "workspace.json").write_text("[]")
    code, found = told(workspace, capsys)
    assert code == 1 and list(found) == NAMES and "workspace.json is damaged" in found["workspace"]["sentence"]
    (tmp_path / "empty").mkdir()
    assert main(["doctor", "--workspace", str(tmp_path / "empty")]) == 1
    assert "is not a workspace" in capsys.readouterr().err


def test_a_fault_of_ours_fails_its_check_without_a_word_of_anybody() -> None:
    def look() -> Iterator[Check]:
        yield Check("model", PASS, "It loads.")
        raise RuntimeError("my dear diary")

    found = checks.guarded(("model", "memory", "disk"), look)
    assert [(one.name, one.verdict) for one in found] == [("model", PASS), ("memory", FAIL), ("disk", WARN)]
    assert "RuntimeError" in found[1].sentence and "diary" not in found[1].sentence


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "branch-0.safetensors").unlink(), "branch-0.safetensors is not there"),
        (lambda folder: (folder / "branch-0.safetensors").write_bytes(b""), "branch-0.safetensors is damaged"),
        (lambda folder: (folder / "branch-0.safetensors").write_bytes(b"weights" * 9), "begins with no header"),
        (lambda folder: (folder / "version.json").unlink(), "has no version.json"),
        (lambda folder: shutil.copytree(folder, folder.with_name("policy-3")), "it describes policy-1"),
    ],
)
@pytest.mark.parametrize("promoted", [False, True])
def test_a_version_that_cannot_be_loaded_fails(
    damage: Callable[[Path], object], said: str, promoted: bool, workspace: Workspace
) -> None:
    folder = version(workspace)
    if promoted:
        workspace.promote("policy-1")
    damage(folder)
    found = of_versions(workspace)
    assert found.verdict == FAIL and said in found.sentence


def test_each_branch_that_a_description_speaks_of_is_looked_for(workspace: Workspace) -> None:
    """Two members and the one kept out of the reward; a whole model's parts are those that its index names."""
    folder = version(workspace)
    text = json.dumps(POLICY | {"name": "reward-1", "kind": "reward", "shifts": [0.0, 0.0], "witness": [0.0, 1.0]})
    shutil.copytree(folder, reward := workspace.models / "reward-1")
    (reward / "version.json").write_text(text)
    shutil.copytree(folder, whole := workspace.models / "pretrain-1")
    (whole / "version.json").write_text(json.dumps(POLICY | {"name": "pretrain-1", "kind": "pretrain"}))
    (whole / "branch-0.safetensors").rename(whole / "part-1.safetensors")
    (whole / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}})
    )
    for lacking in ("part-2", "branch-1", "branch-2"):
        found = of_versions(workspace)
        file = (whole if lacking.startswith("part") else reward) / f"{lacking}.safetensors"
        assert found.verdict == FAIL and f"{file} is not there" in found.sentence
        shutil.copy(folder / "branch-0.safetensors", file)
    assert of_versions(workspace).verdict == WARN, "two of them are not in the record"


def test_a_file_of_a_version_that_the_last_backup_holds_is_missed(workspace: Workspace, tmp_path: Path) -> None:
    """What the description does not speak of: the camps of a reward model, the tokenizer of a whole one."""
    folder = version(workspace)
    save_file({}, folder / "camps.safetensors")
    (folder / "checks.json").write_text("{}")
    backup(workspace, tmp_path / "backups")
    (folder / "checks.json").unlink()
    assert of_versions(workspace).verdict == PASS, "what is measured again is written again"
    (folder / "camps.safetensors").unlink()
    found = of_versions(workspace)
    assert found.verdict == FAIL and "camps.safetensors is gone, and the last backup holds it" in found.sentence


def test_a_folder_that_is_called_almost_as_a_version_is_told(workspace: Workspace) -> None:
    folder = version(workspace)
    shutil.copytree(folder, workspace.models / "policy-03")
    found = of_versions(workspace)
    assert found.verdict == WARN and "policy-03 is no version" in found.sentence
    assert described.every(workspace) == ["policy-1"] and standing.models_list(workspace)["current"] == "initial"
    assert standing.status(workspace)["policies"] == ["policy-1"]


@pytest.mark.parametrize("knows", ["round", "hand", "backup"])
def test_a_promotion_that_only_the_record_or_a_backup_knows_is_told(
    knows: str, workspace: Workspace, tmp_path: Path
) -> None:
    version(workspace)
    workspace.promote("policy-1")
    with closing(Store.open(workspace.database)) as store:
        if knows == "round":
            store.add_version(VersionRecord("reward-1", VersionKind.REWARD, "models/reward-1", None, {}, 0))
            store.add_round(Round("policy-1", "reward-1", Outcome.PROMOTED, {}, datetime.now(UTC)))
        if knows == "hand":
            audit.record(store, audit.Deed(audit.Event.PROMOTED, about="version policy-1"))
    if knows == "backup":
        backup(workspace, tmp_path / "backups")
    assert "was promoted once" not in of_versions(workspace).sentence
    workspace.standing_file.unlink()
    found = of_versions(workspace)
    assert found.verdict == WARN and "policy-1 was promoted once" in found.sentence


def spoilt(place: Path, workspace: Workspace) -> dict[str, Callable[[], object]]:
    """Ways in which a backup is one no more."""
    held = {name: place.parent / "objects" / digest for name, digest in snapshots.read(place).files.items()}
    weights = held["models/policy-1/branch-0.safetensors"]
    said = workspace.root / take.LAST

    def at(moment: str) -> int:
        return said.write_text(json.dumps(json.loads(said.read_text()) | {"made_at": moment}))

    return {
        "no manifest": (place / "backup.json").unlink,
        "manifest damaged": lambda: (place / "backup.json").write_text("{"),
        "no store": (place / "store.db").unlink,
        "store cut": lambda: os.truncate(place / "store.db", 100),
        "no object": held["models/policy-1/version.json"].unlink,
        "object changed": lambda: held["manners.toml"].write_text("x"),
        "no weights": weights.unlink,
        "weights cut": lambda: os.truncate(weights, 100),
        "in the future": lambda: at((datetime.now(UTC) + timedelta(days=2)).isoformat()),
        "yesterday": lambda: at("yesterday"),
        "note damaged": lambda: said.write_text("{"),
        "odd rehearsal": lambda: record.keep(
            workspace, rehearsal=Rehearsal("yesterday", "x", 0, 0, verified=True, problem="", seconds=0.1)
        ),
    }


@pytest.mark.parametrize(
    "how",
    [
        "no manifest",
        "manifest damaged",
        "no store",
        "store cut",
        "no object",
        "object changed",
        "no weights",
        "weights cut",
        "in the future",
        "yesterday",
        "note damaged",
        "odd rehearsal",
    ],
)
def test_a_backup_that_is_one_no_more_fails(how: str, workspace: Workspace, tmp_path: Path) -> None:
    version(workspace)
    place = Path(backup(workspace, tmp_path / "backups")["path"])
    assert of_backups(workspace).verdict == PASS
    spoilt(place, workspace)[how]()
    found = of_backups(workspace)
    assert found.verdict == FAIL and "\n" not in found.sentence


@pytest.mark.parametrize("at", ["2026-01-01", "yesterday"])
def test_what_is_advised_where_a_rehearsal_failed_is_the_remedy(at: str, workspace: Workspace, tmp_path: Path) -> None:
    backup(workspace, tmp_path / "backups")
    record.keep(workspace, rehearsal=Rehearsal(at, "x", 0, 0, verified=False, problem="gone", seconds=0.1))
    found = of_backups(workspace)
    [command] = re.findall("`manners (.+)`", found.sentence)
    assert found.verdict == FAIL
    words = [str(tmp_path / "backups") if word == "DIR" else word for word in command.split()]
    assert main([*words, "--workspace", str(workspace.root)]) == 0
    assert of_backups(workspace).verdict == PASS


def test_a_moment_without_a_zone_is_utc(workspace: Workspace, tmp_path: Path) -> None:
    backup(workspace, tmp_path / "backups")
    said = json.loads((workspace.root / take.LAST).read_text())
    naive = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="seconds")
    (workspace.root / take.LAST).write_text(json.dumps(said | {"made_at": naive}))
    assert of_backups(workspace).verdict == PASS
