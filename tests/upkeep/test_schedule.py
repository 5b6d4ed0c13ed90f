"""Backups on a schedule: when one is due, what stays of old ones, and a restore that is rehearsed."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.backup import record, snapshots, take
from manners.backup.restore import restore
from manners.backup.take import backup
from manners.backup.thin import thin
from manners.cli import main
from manners.errors import MannersError
from manners.loop import standing
from manners.settings import BackupSettings
from manners.store import Store, audit
from manners.types import PromptUse, Role, Turn
from manners.upkeep import checks, schedule
from manners.upkeep.schedule import is_due, look
from manners.workspace import Workspace

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def ago(hours: float) -> str:
    return (NOW - timedelta(hours=hours)).isoformat(timespec="seconds")


@pytest.mark.parametrize(
    ("last", "failed", "due"),
    [
        (None, None, True),
        (ago(23.9), None, False),
        (ago(24), None, True),
        (ago(-1), None, True),  # the clock was set back
        (None, ago(0.9), False),  # tried again an hour after it failed
        (None, ago(1), True),
        (ago(50), ago(0.5), False),
        (ago(2), ago(1.5), True),
        (ago(50), ago(-3), True),
    ],
)
def test_when_one_is_due(last: str | None, failed: str | None, due: bool) -> None:
    assert is_due(last, failed, DAY, NOW) is due


@given(st.timedeltas(timedelta(0), 9 * DAY), st.timedeltas(timedelta(minutes=6), 3 * DAY))
def test_what_is_due_stays_so_until_it_is_done(age: timedelta, every: timedelta) -> None:
    due = is_due((NOW - age).isoformat(), None, every, NOW)
    assert due is (age >= every)
    assert is_due((NOW - age).isoformat(), None, every, NOW + every)


def chosen(tmp_path: Path, **more: float) -> BackupSettings:
    return BackupSettings(into=str(tmp_path / "backups"), **more)  # type: ignore[arg-type]


def asked(workspace: Workspace, *texts: str) -> None:
    with closing(Store.open(workspace.database)) as store:
        store.add_prompts([(Turn(Role.USER, text),) for text in texts], PromptUse.TRAIN, "test")


def test_it_backs_up_and_rehearses_and_then_rests(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(workspace, "Why?")
    first, second = look(workspace, chosen(tmp_path))
    assert first.startswith(f"backup: {tmp_path / 'backups' / 'backup-1'} holds 0 verdicts")
    assert second.startswith("rehearsal:") and "can be put back, with 0 verdicts and 0 versions" in second
    assert look(workspace, chosen(tmp_path)) == []
    with closing(Store.open(workspace.database)) as store:
        assert [(one.event, one.about) for one in audit.entries(store)] == [("exported", "backup")], "as by hand"
    left = {one.name for one in (tmp_path / "backups").iterdir()}
    assert left == {"backup-1", "objects", "backup.lock"}, "the scratch folder is gone"
    assert main(["status", "--json", "--workspace", str(workspace.root)]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["last_rehearsal"]["verified"] and status["last_rehearsal"]["backup"].endswith("backup-1")
    assert "backup_failed" not in status


def test_nothing_is_done_that_was_not_asked_for(workspace: Workspace, tmp_path: Path) -> None:
    assert look(workspace, BackupSettings()) == []
    [only] = look(workspace, chosen(tmp_path, rehearse=0.0))
    assert only.startswith("backup:") and record.rehearsal(workspace) is None


def test_a_backup_that_fails_is_said_kept_and_tried_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "backups").write_text("a file where a folder should be")
    [said] = look(workspace, chosen(tmp_path))
    assert said.startswith("backup: failed, and is tried again in an hour:")
    failed = record.failure(workspace)
    assert failed is not None and "already holds other things" in failed.problem
    (tmp_path / "backups").unlink()
    assert look(workspace, chosen(tmp_path)) == [], "an hour has not passed"
    later = datetime.now(UTC) + timedelta(hours=1)
    monkeypatch.setattr(schedule, "_now", lambda: later)
    assert len(look(workspace, chosen(tmp_path))) == 2
    assert record.failure(workspace) is None


def test_a_backup_by_a_timer_of_the_system_that_fails_is_kept_until_one_does_not(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["backup", str(tmp_path / "backups"), "--workspace", str(workspace.root)]
    (tmp_path / "backups").write_text("a file where a folder should be")
    assert main(command) == 1
    failed = standing.status(workspace)["backup_failed"]
    assert "already holds other things" in failed["problem"] and snapshots.moment(failed["at"])
    found = checks.backups(workspace, BackupSettings())
    assert found.verdict == checks.FAIL and "already holds other things" in found.sentence
    (tmp_path / "backups").unlink()
    assert main(command) == 0
    assert "backup_failed" not in standing.status(workspace)

    def faulty(*_: object) -> None:
        raise ValueError("what somebody wrote")

    monkeypatch.setattr(take, "backup", faulty)
    with pytest.raises(ValueError, match="what somebody wrote"):
        main(command)
    kept = record.failure(workspace)
    assert kept is not None and kept.problem == "ValueError"


def test_a_backup_that_fails_elsewhere_keeps_the_server_from_none_of_its_own(
    workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "full").write_text("a file where a folder should be")
    assert main(["backup", str(tmp_path / "full"), "--workspace", str(workspace.root)]) == 1
    made, _ = look(workspace, chosen(tmp_path))
    assert made.startswith(f"backup: {tmp_path / 'backups' / 'backup-1'} holds")
    assert main(["backup", str(tmp_path / "full"), "--workspace", str(workspace.root)]) == 1
    assert look(workspace, chosen(tmp_path)) == [], "nor does it make one due"


def test_a_fault_of_ours_ends_no_server_and_says_nobodys_words(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*_: object) -> None:
        raise ValueError("what somebody wrote")

    monkeypatch.setattr(schedule, "backup", faulty)
    [said] = look(workspace, chosen(tmp_path))
    failed = record.failure(workspace)
    assert "ValueError" in said and failed is not None and failed.problem == "ValueError"
    assert "somebody" not in said


def test_a_rehearsal_that_meets_a_fault_of_ours_is_one_that_failed(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the last one that went well would stand in the status, the doctor's report and the figures."""
    assert len(look(workspace, chosen(tmp_path))) == 2

    def faulty(*_: object) -> None:
        raise ValueError("what somebody wrote")

    monkeypatch.setattr(schedule, "restore", faulty)
    later = datetime.now(UTC) + timedelta(days=8)
    monkeypatch.setattr(schedule, "_now", lambda: later)
    said = look(workspace, chosen(tmp_path))[-1]
    made = record.rehearsal(workspace)
    assert made is not None and not made.verified and "ValueError" in made.problem and "ValueError" in said
    assert "somebody" not in made.problem + said
    assert not [one for one in look(workspace, chosen(tmp_path)) if one.startswith("rehearsal")], "not for an hour"


def test_a_backup_that_the_disk_has_changed_is_found_by_the_rehearsal(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path(backup(workspace, tmp_path / "backups")["path"])
    file = place / "store.db"
    file.write_bytes(file.read_bytes()[:-100])
    made = schedule.rehearse(workspace, tmp_path / "backups")
    assert not made.verified and "not what was written" in made.problem
    for one in (tmp_path / "backups" / "objects").iterdir():
        one.unlink()
    backup(workspace, tmp_path / "backups")  # it is whole again, under the next number
    assert schedule.rehearse(workspace, tmp_path / "backups").verified
    words = ["backup", str(tmp_path / "backups"), "--rehearse", "--keep", "1", "--json"]
    assert main([*words, "--workspace", str(workspace.root)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rehearsal"]["verified"] and told["removed"]["backups"] == 2


def test_a_rehearsal_leaves_the_workspace_and_the_backup_as_they_are(workspace: Workspace, tmp_path: Path) -> None:
    asked(workspace, "Why?")
    backup(workspace, tmp_path / "backups")
    kept = {one: one.read_bytes() for one in (tmp_path / "backups").rglob("*") if one.is_file()}
    before = {one.name for one in workspace.root.iterdir()}
    schedule.rehearse(workspace, tmp_path / "backups")
    assert kept == {one: one.read_bytes() for one in (tmp_path / "backups").rglob("*") if one.is_file()}
    assert {one.name for one in workspace.root.iterdir()} == before | {"upkeep.json"}


def test_of_old_backups_the_newest_stay_whole_and_what_only_others_held_goes(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Five backups, each with a version of its own; two stay, and restore to what they were."""
    folder = tmp_path / "backups"
    for number in range(1, 6):
        (workspace.models / f"policy-{number}").mkdir()
        (workspace.models / f"policy-{number}" / "branch-0.safetensors").write_bytes(b"%d" % number * 1000)
        if number > 2:
            shutil.rmtree(workspace.models / f"policy-{number - 2}")
        backup(workspace, folder)
    objects = set((folder / "objects").iterdir())
    gone = thin(folder, 2, workspace.root)
    assert gone.backups == 3 and [one.name for one in snapshots.all_of(folder)] == ["backup-4", "backup-5"]
    removed = objects - set((folder / "objects").iterdir())
    assert {one.stat().st_size for one in (folder / "objects").iterdir()} >= {1000}
    assert gone.files == len(removed) == 2 and gone.size == 2000, "what policy-1 and policy-2 had"
    found = restore(folder / "backup-4", tmp_path / "back")
    assert found["verified"] and {one.name for one in (tmp_path / "back" / "models").iterdir()} >= {
        "policy-3",
        "policy-4",
    }
    assert thin(folder, 2, workspace.root).files == 0


def test_no_file_goes_where_a_backup_that_stays_cannot_be_read(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    for number in range(3):
        asked(workspace, f"Why {number}?")
        (workspace.root / "guidelines.md").write_text(f"Be kind, {number}.")
        backup(workspace, folder)
    (folder / "backup-3" / "backup.json").write_text("{")
    objects = set((folder / "objects").iterdir())
    assert thin(folder, 1, workspace.root).backups == 1, "of those that can be read the newest stays"
    assert set((folder / "objects").iterdir()) == objects


def test_nothing_is_thinned_while_a_backup_is_being_written(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    backup(workspace, folder)
    with snapshots.writing(folder), pytest.raises(MannersError, match="another backup is being written"):
        thin(folder, 1, workspace.root)


def test_the_server_looks_each_minute_and_ends_when_it_is_told_to(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(schedule, "LOOK", 0.01)
    ended = threading.Event()
    following = threading.Thread(target=schedule.follow, args=(workspace, chosen(tmp_path), ended))
    following.start()
    while record.rehearsal(workspace) is None:
        ended.wait(0.01)
    ended.set()
    following.join()
    assert take.last(workspace) and capsys.readouterr().err.count("backup:") == 1
    schedule.follow(workspace, BackupSettings(), threading.Event())  # nothing is asked for: it ends at once


def test_what_is_not_this_workspaces_stays(
    workspace: Workspace, new_workspace: Callable[[Path], Workspace], tmp_path: Path
) -> None:
    folder, other = tmp_path / "backups", new_workspace(tmp_path / "other")
    asked(other, "Why?")
    backup(other, folder)
    letters = folder / "backup-20240101"
    letters.mkdir()
    (letters / "thesis.doc").write_text("Dear")
    for _ in range(2):
        backup(workspace, folder)
    assert thin(folder, 1, workspace.root).backups == 1
    assert {one.name for one in folder.iterdir()} == {
        *("backup-1", "backup-20240101", "backup-20240103", "objects", "backup.lock")
    }
    assert restore(folder / "backup-1", tmp_path / "back")["verified"] and (letters / "thesis.doc").is_file()
    elsewhere = tmp_path / "repository"
    (elsewhere / "objects").mkdir(parents=True)
    (elsewhere / "HEAD").write_text("ref: refs/heads/main")
    with pytest.raises(MannersError, match="already holds other things"):
        backup(workspace, elsewhere)


def test_damage_is_said_and_no_sound_backup_goes_for_it(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = workspace.models / "policy-1" / "branch-0.safetensors"
    weights.parent.mkdir()
    for file in (weights, weights.with_name("version.json")):
        file.write_bytes(b"sound" * 100)
    keeps = chosen(tmp_path, keep=1, every=0.1, rehearse=0)
    folder = tmp_path / "backups"
    backup(workspace, folder)
    weights.write_bytes(b"spoilt")
    for number in (2, 3):
        (workspace.root / "backup.json").unlink()
        [said] = look(workspace, keeps)
        assert (
            f"backup-{number} holds" in said and "models/policy-1/branch-0.safetensors is not what an earlier" in said
        )
    assert [one.name for one in snapshots.all_of(folder)] == ["backup-1", "backup-2", "backup-3"]
    assert main(["backup", str(folder), "--workspace", str(workspace.root), "--keep", "1"]) == 1
    assert "none of these is removed" in capsys.readouterr().err and len(snapshots.all_of(folder)) == 4
    shutil.rmtree(weights.parent)  # a version that is pruned is no damage
    assert backup(workspace, folder)["spoilt"] == [] and thin(folder, 1, workspace.root).backups == 4


def test_a_version_that_is_removed_meanwhile_is_in_no_backup_by_half(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("policy-1", "policy-2"):
        (workspace.models / version).mkdir()
        for name in ("branch-0.safetensors", "version.json"):
            (workspace.models / version / name).write_bytes(f"{version} {name}".encode())
    keep = snapshots.keep

    def and_then(file: Path, folder: Path) -> tuple[str, int]:
        kept = keep(file, folder)
        if file.parent.name == "policy-2":
            shutil.rmtree(file.parent)
        return kept

    monkeypatch.setattr(snapshots, "keep", and_then)
    made = backup(workspace, tmp_path / "backups")
    held = snapshots.read(Path(made["path"])).files
    assert made["verified"] and {name for name in held if name.startswith("models/")} == {
        *("models/policy-1/branch-0.safetensors", "models/policy-1/version.json")
    }


@pytest.mark.parametrize("said", ["2020-11-29T12:00:00", "yesterday", "", None, 7])
def test_a_moment_that_is_none_stops_no_schedule(workspace: Workspace, tmp_path: Path, said: object) -> None:
    (workspace.root / "backup.json").write_text(json.dumps({"made_at": said, "path": "/x", "verdicts": 1}))
    rehearsal = {
        "at": said,
        "backup": "/x",
        "verdicts": 1,
        "versions": 1,
        "verified": False,
        "problem": "",
        "seconds": 1,
    }
    (workspace.root / "upkeep.json").write_text(
        json.dumps({"rehearsal": rehearsal, "failure": {"at": said, "problem": "?"}})
    )
    assert look(workspace, chosen(tmp_path))[0].startswith("backup: ")


def test_a_look_that_fails_is_not_the_last(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks, ended = list[int](), threading.Event()

    def fails(*_: object) -> list[str]:
        looks.append(1)
        if len(looks) == 3:
            ended.set()
        raise MannersError("No space left: Anna's words")

    monkeypatch.setattr(schedule, "look", fails)
    monkeypatch.setattr(schedule, "LOOK", 0.01)
    monkeypatch.setattr(schedule, "AGAIN", timedelta(milliseconds=10))
    schedule.follow(workspace, chosen(tmp_path), ended)
    said = capsys.readouterr().err
    assert len(looks) == 3 and said.count("tried again in an hour") == 3
