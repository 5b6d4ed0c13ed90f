"""A copy of a workspace in use holds all that was acknowledged, and brings nothing back that was deleted."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from manners import restored
from manners.backup import snapshots
from manners.backup.restore import restore
from manners.backup.take import backup, last
from manners.cli import main
from manners.errors import MannersError, UsageError
from manners.loop import stepping
from manners.loop.erase import forget_person, sweep
from manners.loop.history import is_done
from manners.loop.judging import JOURNAL
from manners.loop.stage import ROUND
from manners.store import Store, VersionRecord, cases, deletions
from manners.store.accounts import Accounts
from manners.store.chats import Chats
from manners.store.copies import write_copy
from manners.store.flags import FlagReason, decide, undecided
from manners.store.tokens import TokenUse
from manners.types import (
    AccountRole,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Response,
    Role,
    Turn,
    Verdict,
    VersionKind,
)
from manners.upkeep import schedule
from manners.web.remembered import has_accounts, remember_accounts
from manners.workspace import Workspace
from tests.store.test_chats import converse
from tests.store.test_forget import by_program, everything, person
from tests.web.conftest import NOWHERE, serve

ANNA = Annotator("anna", AnnotatorKind.HUMAN)
SENTENCE = "The heron of Ulm owes me seven crowns."


def pair(number: int) -> Comparison:
    prompt = (Turn(Role.USER, f"Question {number}? ü🙂"),)
    return Comparison(prompt, Response(f"left {number}", "one"), Response(f"right {number}", "two"), AskedHow.RANDOM)


def said(choice: Choice = Choice.LEFT) -> Verdict:
    return Verdict(choice, ANNA, strength=2, seconds=1.5, reasons=("kinder",), comment="well")


def fill(workspace: Workspace, verdicts: int = 5) -> Workspace:
    """Comparisons with verdicts, two versions with files, curves, and what decides how it behaves."""
    with closing(Store.open_or_create(workspace.database)) as store:
        keys = store.add_comparisons(pair(number) for number in range(3))
        store.add_verdicts([(keys[number % 3], said()) for number in range(verdicts)])
        for name, kind in (("reward-1", VersionKind.REWARD), ("policy-1", VersionKind.POLICY)):
            store.add_version(VersionRecord(name, kind, f"models/{name}", watermark=verdicts))
            version(workspace, name)
    workspace.promote("policy-1")
    workspace.toml.write_text("seed = 5\n", encoding="utf-8")
    (workspace.runs / "policy-1").mkdir()
    (workspace.runs / "policy-1" / "metrics.jsonl").write_text('{"step": 1}\n', encoding="utf-8")
    return workspace


def version(workspace: Workspace, name: str) -> None:
    folder = workspace.models / name
    folder.mkdir()
    (folder / "version.json").write_text(json.dumps({"name": name}), encoding="utf-8")
    (folder / "branch-0.safetensors").write_bytes(name.encode() * 10_000)
    (folder / "shared.json").write_text("the same in all", encoding="utf-8")


@pytest.fixture
def workspace(database: str, tmp_path: Path) -> Workspace:
    """A workspace with its store in the folder, and on a server."""
    return fill(Workspace.create(tmp_path / "ws", database if "://" in database else None))


@pytest.fixture
def local(tmp_path: Path) -> Workspace:
    """A workspace with its store in the folder."""
    return fill(Workspace.create(tmp_path / "local"))


def record(workspace: Workspace) -> list[Comparison]:
    with closing(Store.open(workspace.database)) as store:
        return store.comparisons()


def files(root: Path) -> dict[str, bytes]:
    """The versions, runs and settings of a workspace."""
    found = [*root.glob("models/**/*"), *root.glob("runs/**/*"), root / "manners.toml"]
    return {str(file.relative_to(root)): file.read_bytes() for file in found if file.is_file()}


def count(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        return int(connection.execute("SELECT count(*) FROM verdicts").fetchone()[0])


def holding(root: Path, sentence: str) -> list[str]:
    """The files below a folder that have a sentence anywhere in their bytes, as text or as JSON writes it."""
    needles = {sentence.encode(), json.dumps(sentence)[1:-1].encode(), sentence.encode("utf-16-le")}
    files = [file for file in root.rglob("*") if file.is_file()]
    return [str(file) for file in files if any(needle in file.read_bytes() for needle in needles)]


def test_what_comes_back_is_what_was_there(workspace: Workspace, tmp_path: Path) -> None:
    made = backup(workspace, tmp_path / "bk")
    assert {name: made[name] for name in ("path", "verdicts", "versions", "verified")} == {
        "path": str(tmp_path / "bk" / "backup-1"),
        "verdicts": 5,
        "versions": 2,
        "verified": True,
    }
    found = restore(tmp_path / "bk", tmp_path / "new")
    assert (found["path"], found["verdicts"], found["versions"]) == (str(tmp_path / "new"), 5, 2)
    assert found["verified"] is True and found["missing"] == [] and found["kept"] is None
    back = Workspace.open(tmp_path / "new")
    assert back.url is None, "a copy is a file, whichever database it was made of"
    assert record(back) == record(workspace) and files(back.root) == files(workspace.root)
    assert back.current_policy() == "policy-1"
    with closing(Store.open(back.database)) as there, closing(Store.open(workspace.database)) as here:
        assert there.versions() == here.versions()
        there.add_verdicts([(1, said())])
        assert there.watermark() == 6


def test_a_store_on_a_server_comes_back_onto_a_server(
    workspace: Workspace, new_database: Callable[[], str], tmp_path: Path
) -> None:
    before = record(workspace)
    backup(workspace, tmp_path / "bk")
    with closing(Store.open(workspace.database)) as store:
        store.add_verdicts([(1, said(Choice.RIGHT))] * 3)
    found = restore(tmp_path / "bk", workspace.root)
    assert found["verdicts"] == 5 and record(Workspace.open(workspace.root)) == before
    assert Workspace.open(workspace.root).url == workspace.url
    with closing(Store.open(workspace.database)) as store:
        store.add_verdicts([(2, said())])
        if workspace.url is not None:
            assert store.watermark() == 9, "numbers that were given once are not given again"
    if workspace.url is not None:
        elsewhere = new_database()
        restore(tmp_path / "bk", tmp_path / "moved", elsewhere)
        with pytest.raises(MannersError, match="holds a store already"):
            restore(tmp_path / "bk", tmp_path / "twice", elsewhere)
        with pytest.raises(UsageError, match="leave out --database"):
            restore(tmp_path / "bk", tmp_path / "moved", elsewhere)
        assert len(record(Workspace.open(tmp_path / "moved"))) == 3


def test_everything_acknowledged_before_a_backup_is_in_it_while_others_go_on(
    workspace: Workspace, tmp_path: Path
) -> None:
    acknowledged = [0]
    ended = threading.Event()

    def label() -> None:
        with closing(Store.open(workspace.database)) as store:
            while not ended.is_set():
                store.add_verdicts([(1, said())])
                acknowledged[0] += 1

    thread = threading.Thread(target=label)
    thread.start()
    try:
        for _ in range(3):
            while (before := acknowledged[0]) < 5:
                pass
            made = backup(workspace, tmp_path / "bk")
            after = acknowledged[0]
            assert before <= made["verdicts"] - 5 <= after + 1
            with closing(Store.open(Path(made["path"]) / "store.db")) as store:
                assert store.watermark() == made["verdicts"], "one moment: the first so many, and no gap"
    finally:
        ended.set()
        thread.join()
    assert acknowledged[0] > 5, "labelling went on meanwhile"


def test_a_plain_copy_of_a_store_in_use_loses_what_a_backup_holds(local: Workspace, tmp_path: Path) -> None:
    with closing(Store.open(local.database)) as store:
        store.add_verdicts([(1, said())] * 60)
        shutil.copy(local.root / "store.db", tmp_path / "copied.db")
        assert backup(local, tmp_path / "bk")["verdicts"] == 65
    try:
        lost = 65 - count(tmp_path / "copied.db")
    except sqlite3.Error:
        lost = 65
    assert lost >= 60


def test_a_second_backup_copies_only_what_is_new(workspace: Workspace, tmp_path: Path) -> None:
    first = backup(workspace, tmp_path / "bk")
    objects = set((tmp_path / "bk" / "objects").iterdir())
    version(workspace, "policy-2")
    second = backup(workspace, tmp_path / "bk")
    new = set((tmp_path / "bk" / "objects").iterdir()) - objects
    assert second["path"].endswith("backup-2") and len(new) == 2, "version.json and the branch, not what all share"
    store = (tmp_path / "bk" / "backup-2" / "store.db").stat().st_size
    assert second["copied_bytes"] == store + sum(one.stat().st_size for one in new) < first["copied_bytes"]
    restore(tmp_path / "bk" / "backup-1", tmp_path / "first")
    restore(tmp_path / "bk", tmp_path / "latest")
    assert not (tmp_path / "first" / "models" / "policy-2").exists()
    assert (tmp_path / "latest" / "models" / "policy-2").is_dir()


@pytest.mark.long
def test_a_log_that_is_left_undoes_nothing(local: Workspace, tmp_path: Path) -> None:
    """A server was killed after the backup: its write-ahead log lies beside the store."""
    backup(local, tmp_path / "bk")
    child = (
        "import os, sys; from manners.store import Store; from tests.backup.test_backup import said\n"
        "store = Store.open(sys.argv[1]); store.add_verdicts([(1, said())] * 7); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", child, str(local.database)], check=False)
    assert (local.root / "store.db-wal").stat().st_size > 0
    found = restore(tmp_path / "bk", local.root)
    assert found["verdicts"] == 5 == count(local.root / "store.db")
    assert restore(Path(found["kept"]), tmp_path / "kept")["verdicts"] == 12, "what was there is one more backup"


def planted(workspace: Workspace) -> str:
    """A conversation with a sentence in it, which a run has noted too; return its key."""
    with closing(Store.open(workspace.database)) as store:
        key = converse(store, ANNA, SENTENCE, ("How odd. " + SENTENCE, "ah"))
    facts = {"samples": [{"prompt": SENTENCE, "answer": f"You said: {SENTENCE}"}], "count": 3}
    (workspace.runs / "sample.json").write_text(json.dumps(facts), encoding="utf-8")
    return key


def forget(workspace: Workspace, key: str) -> None:
    """What the page does when somebody deletes a conversation."""
    deletions.note(workspace.root, key)
    with closing(Store.open(workspace.database)) as store:
        Chats(store).delete(ANNA, key)


@pytest.mark.parametrize(
    "how", ["in place", "store lost", "store damaged", "store alone", "elsewhere, by a later backup"]
)
def test_a_backup_from_before_a_deletion_does_not_bring_the_words_back(
    workspace: Workspace, tmp_path: Path, how: str
) -> None:
    key = planted(workspace)
    backup(workspace, tmp_path / "bk")
    with closing(Store.open(workspace.database)) as store:
        assert SENTENCE in str(Chats(store).all(ANNA))
    forget(workspace, key)
    place = tmp_path / "bk" / "backup-1"
    root = workspace.root
    if how.startswith("store") and workspace.url is not None:
        pytest.skip("what becomes of a server is its keeper's")
    if how == "store lost":
        (root / "store.db").unlink()
    elif how == "store alone":
        (root / "workspace.json").unlink()
    elif how == "store damaged":
        (root / "store.db").write_bytes(b"zero" * 5000)
    elif how.startswith("elsewhere"):
        backup(workspace, tmp_path / "bk")
        root = tmp_path / "new"
    found = restore(place, root)
    assert found["deleted_again"] == 1
    assert holding(root, SENTENCE) == []
    back = Workspace.open(root)
    with closing(Store.open(back.database)) as store:
        assert Chats(store).all(ANNA) == [] and SENTENCE not in str(store.comparisons())
        assert store.comparisons()[0].prompt[0].text == "Question 0? ü🙂", "the rest is as it was"
    assert json.loads((root / "runs" / "sample.json").read_text())["count"] == 3
    again = restore(place, root)
    assert again["deleted_again"] == 1 and holding(root, SENTENCE) == [], "the record itself came back too"
    assert SENTENCE.encode() not in (root / deletions.FILE).read_bytes()


def test_an_older_backup_leaves_no_copy_with_the_words_behind(local: Workspace, tmp_path: Path) -> None:
    """Its tables are changed as it comes back, for which a copy is kept first: of the words too."""
    key = planted(local)
    place = Path(backup(local, tmp_path / "bk")["path"])
    with closing(sqlite3.connect(place / "store.db")) as older:
        older.executescript(
            "DROP TABLE staged; DROP TABLE imports; ALTER TABLE bets DROP COLUMN upto;"
            " ALTER TABLE comparisons DROP COLUMN asked_by; ALTER TABLE requests DROP COLUMN user;"
            " UPDATE alembic_version SET version_num = '0007'"
        )
    manifest = json.loads((place / "backup.json").read_text())
    manifest["store_digest"] = snapshots.digest_of(place / "store.db")
    (place / "backup.json").write_text(json.dumps(manifest))
    forget(local, key)
    for root in (local.root, tmp_path / "new"):
        assert restore(place, root)["deleted_again"] == 1
        assert holding(root, SENTENCE) == [] and not list(root.glob("store.db.revision-*"))


def test_what_a_step_and_a_judge_have_said_is_in_no_backup_and_comes_out_of_none(
    local: Workspace, tmp_path: Path
) -> None:
    """Where words are deleted both go; an older backup holds them as they were."""
    assert (snapshots.PASSING[0], snapshots.PASSING[1]) == (
        f"{stepping.log(local).parent.relative_to(local.root)}/",
        f"runs/{JOURNAL}",
    )
    key = planted(local)
    stepping.log(local).parent.mkdir()
    for file in (stepping.log(local), local.runs / JOURNAL):
        file.write_text(SENTENCE, encoding="utf-8")
    made = backup(local, tmp_path / "bk")
    place = Path(made["path"])
    assert not [name for name in snapshots.read(place).files if name.startswith(snapshots.PASSING)]
    assert made["left_out"] == ["runs/judge-answers.jsonl", "runs/step"]
    said = json.loads((place / "backup.json").read_text())
    for file in (stepping.log(local), local.runs / JOURNAL):
        said["files"][str(file.relative_to(local.root))] = snapshots.keep(file, tmp_path / "bk")[0]
        file.unlink()
    (place / "backup.json").write_text(json.dumps(said))
    forget(local, key)
    found = restore(place, local.root)
    assert found["verified"] and found["deleted_again"] == 1 and holding(local.root, SENTENCE) == []


@pytest.mark.parametrize("remark", [{"comment": SENTENCE}, {"reasons": ("kinder", SENTENCE)}])
def test_a_reason_that_quotes_a_remark_does_not_come_back_either(
    local: Workspace, tmp_path: Path, remark: dict[str, Any]
) -> None:
    with closing(Store.open(local.database)) as store:
        key = converse(store, ANNA, "Why?", ("Because.", "So"))
        [chosen] = [one for one in store.comparisons() if one.asked_how is AskedHow.CHAT]
        store.add_verdicts([(chosen.id or 0, Verdict(Choice.LEFT, ANNA, **remark))])
    quoted = {"by": "account 7", "reason": f"Somebody says: {SENTENCE}"}
    (local.models / "policy-1" / "checks.json").write_text(json.dumps({"reviews": [quoted]}), encoding="utf-8")
    facts = {"examples": [f"It says: {SENTENCE}", "what others say"]}
    (local.runs / "audit.json").write_text(json.dumps(facts), encoding="utf-8")
    place = Path(backup(local, tmp_path / "bk")["path"])
    forget(local, key)
    restore(place, local.root)
    assert holding(local.root, SENTENCE) == []
    assert json.loads((local.runs / "audit.json").read_text()) == {"examples": ["what others say"]}


def test_what_was_revoked_does_not_come_back_to_life(workspace: Workspace, tmp_path: Path) -> None:
    with closing(Store.open(workspace.database)) as store:
        accounts = Accounts(store)
        for name, role in (("olga", AccountRole.OWNER), ("ben", AccountRole.ANNOTATOR)):
            accounts.add(name, role, None)
        good, stolen = (accounts.issue(TokenUse.KEY, "olga", label=label) for label in ("good", "stolen"))
        session = accounts.issue(TokenUse.SESSION, "olga")
        theirs = accounts.issue(TokenUse.KEY, "ben")
    backup(workspace, tmp_path / "bk")
    with closing(Store.open(workspace.database)) as store:
        accounts = Accounts(store)
        keys = {key.label: key.id for key in accounts.tokens(TokenUse.KEY, account="olga")}
        accounts.revoke(keys["stolen"])
        accounts.disable("ben")
    restore(tmp_path / "bk", workspace.root)
    with closing(Store.open(workspace.database)) as store:
        accounts = Accounts(store)
        alive = [accounts.holder(secret, TokenUse.KEY) for secret in (good, stolen, theirs)]
        assert [one and one.name for one in alive] == ["olga", None, None]
        assert accounts.holder(session, TokenUse.SESSION) is None, "whoever had a page open signs in again"


def test_a_conversation_of_an_account_stays_deleted_and_nobody_else_s_goes(
    workspace: Workspace, tmp_path: Path
) -> None:
    with closing(Store.open(workspace.database)) as store:
        account = Accounts(store).add("anna", AccountRole.ANNOTATOR, None)
        signed_in = Annotator("anna", AnnotatorKind.HUMAN, account.id)
        key = converse(store, signed_in, SENTENCE)
        other = converse(store, ANNA, "What another Anna asks.")
    backup(workspace, tmp_path / "bk")
    with closing(Store.open(workspace.database)) as store:
        deletions.note(workspace.root, key)
        Chats(store).delete(signed_in, key)
    assert restore(tmp_path / "bk" / "backup-1", workspace.root)["deleted_again"] == 1
    with closing(Store.open(workspace.database)) as store:
        assert Chats(store).all(signed_in) == [] and SENTENCE not in str(store.comparisons())
        assert [found.key for found in Chats(store).all(ANNA)] == [other]


def test_nothing_that_waits_on_a_page_lands_on_another_answer(workspace: Workspace, tmp_path: Path) -> None:
    """After the restore numbers are given again on SQLite: to other words in the same conversation."""
    with closing(Store.open(workspace.database)) as store:
        key = Chats(store).begin(ANNA)
    backup(workspace, tmp_path / "bk")
    waiting: list[tuple[str, list[str], str]] = []
    for words in ("before", "after"):
        with closing(Store.open(workspace.database)) as store:
            chats = Chats(store)
            answers = [Response(f"{words} {side}", "initial") for side in "ab"]
            comparison, responses = chats.say(ANNA, key, [], words, answers, 1.0)
            assert comparison is not None
            chats.flag(ANNA, responses[0], FlagReason.WRONG, words)
            waiting.append((comparison, responses, undecided(store)[0].id))
        if words == "before":
            restore(tmp_path / "bk", workspace.root)
    (comparison, responses, flag), now = waiting
    numbers = [token.partition("-")[0] for token in (comparison, *responses, flag)]
    again = [token.partition("-")[0] for token in (now[0], *now[1], now[2])]
    assert (numbers == again) == (workspace.url is None)
    with closing(Store.open(workspace.database)) as store:
        chats = Chats(store)
        for act in (
            lambda: chats.choose(ANNA, key, comparison, Choice.LEFT, None),
            lambda: chats.thumb(ANNA, responses[0], 1),
            lambda: chats.flag(ANNA, responses[1], FlagReason.WRONG, "late"),
            lambda: decide(store, flag, True),
        ):
            with pytest.raises(MannersError):
                act()
        assert [one.note for one in undecided(store)] == ["after"] and [s.thumb for s in chats.read(ANNA, key)] == [
            0,
            0,
        ]
        chats.choose(ANNA, key, now[0], Choice.LEFT, None)
        decide(store, now[2], True)
        assert undecided(store) == []


def test_a_person_who_was_forgotten_does_not_come_back(workspace: Workspace, tmp_path: Path) -> None:
    with closing(Store.open(workspace.database)) as store:
        for name, role in (("olga", AccountRole.OWNER), ("berta", AccountRole.OWNER)):
            Accounts(store).add(name, role, "correct horse")
        key = Accounts(store).issue(TokenUse.KEY, "berta", label="berta's")
        by_program(store, "berta", SENTENCE)
        converse(store, person(store, "berta"), f"{SENTENCE} Again.")
    backup(workspace, tmp_path / "bk")
    with closing(Store.open(workspace.database)) as store:
        forget_person(workspace, store, "berta")
    for _ in range(2):  # also when the record itself has come back
        found = restore(tmp_path / "bk" / "backup-1", workspace.root)
        assert (found["forgotten_again"], found["deleted_again"]) == (1, 1)
        assert holding(workspace.root, SENTENCE) == holding(workspace.root, "berta") == []
        with closing(Store.open(workspace.database)) as store:
            left = everything(store)
            assert SENTENCE not in left and "berta" not in left and "Question 0?" in left
            accounts = Accounts(store)
            assert [one.disabled for one in accounts.all()] == [False, True]
            assert accounts.holder(key, TokenUse.KEY) is None and accounts.check("olga", "correct horse") is not None


def test_a_namesake_in_a_workspace_of_others_is_not_forgotten(workspace: Workspace, tmp_path: Path) -> None:
    with closing(Store.open(workspace.database)) as store:
        Accounts(store).add("olga", AccountRole.OWNER, "correct horse")
    backup(workspace, tmp_path / "bk")
    other = Workspace.create(tmp_path / "other")
    deletions.note(other.root, deletions.of_account("1 2026-01-01T00:00:00+00:00"))
    assert restore(tmp_path / "bk", other.root)["forgotten_again"] == 0


def test_a_backup_from_before_there_were_accounts_makes_nobody_the_owner(local: Workspace, tmp_path: Path) -> None:
    backup(local, tmp_path / "bk")
    with closing(Store.open(local.database)) as store:
        Accounts(store).add("olga", AccountRole.OWNER, None)
    remember_accounts(local)
    restore(tmp_path / "bk", local.root)
    assert has_accounts(Workspace.open(local.root))


@pytest.mark.long
def test_a_workspace_that_is_used_is_left_alone(local: Workspace, tmp_path: Path) -> None:
    backup(local, tmp_path / "bk")
    with serve(local.root, "--upstream", NOWHERE), pytest.raises(MannersError, match="is being served: stop that"):
        restore(tmp_path / "bk", local.root)
    with local.run_lock("ppo"), pytest.raises(MannersError, match="is being trained in"):
        restore(tmp_path / "bk", local.root)
    child = (
        "import sys; from manners.store import Store\n"
        "store = Store.open(sys.argv[1]); store.watermark(); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", child, str(local.database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        with pytest.raises(MannersError, match="is open in another program"):
            restore(tmp_path / "bk", local.root)
        assert other.stdin is not None
        other.stdin.close()
    assert restore(tmp_path / "bk", local.root)["verdicts"] == 5


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_what_is_missing_is_named_and_the_next_backup_mends_it(local: Workspace, tmp_path: Path, damage: str) -> None:
    backup(local, tmp_path / "bk")
    content = (local.models / "policy-1" / "branch-0.safetensors").read_bytes()
    [kept] = [one for one in (tmp_path / "bk" / "objects").iterdir() if one.read_bytes() == content]
    if damage == "gone":
        kept.unlink()
    else:
        kept.write_bytes(content[:-1] + b"!")
    found = restore(tmp_path / "bk", tmp_path / "new")
    assert found["missing"] == ["models/policy-1/branch-0.safetensors"] and found["verified"] is False
    assert not (tmp_path / "new" / "models" / "policy-1").exists(), "a version comes back whole, or not at all"
    assert (tmp_path / "new" / "models" / "reward-1").is_dir() and found["verdicts"] == 5
    backup(local, tmp_path / "bk")
    assert restore(tmp_path / "bk", tmp_path / "mended")["verified"] is True


def test_a_model_that_is_elsewhere_is_named(local: Workspace, tmp_path: Path) -> None:
    local.toml.write_text(f'[model]\nname = "{tmp_path}/a-model"\n', encoding="utf-8")
    backup(local, tmp_path / "bk")
    found = restore(tmp_path / "bk", tmp_path / "new")
    assert found["missing"] == [f"model.name = {tmp_path}/a-model"]
    assert found["verified"] is True, "a model of elsewhere is part of no backup"


def test_what_is_in_no_backup_is_named(local: Workspace, tmp_path: Path) -> None:
    (local.root / "notes.txt").write_text("mine")
    (local.runs / "ppo" / "checkpoint-3").mkdir(parents=True)
    (local.root / "guidelines.md").write_text("Be fair.")
    (local.root / "audit").mkdir()
    for anew in (local.root / cases.FILE, local.report_html, local.report_json):
        anew.write_text("")
    (local.root / "audit" / "mine.jsonl").write_text("mine")
    left_out = ["audit/mine.jsonl", "notes.txt", "runs/ppo/checkpoint-3"]
    assert backup(local, tmp_path / "bk")["left_out"] == left_out
    restore(tmp_path / "bk", tmp_path / "new")
    assert (tmp_path / "new" / "guidelines.md").read_text() == "Be fair."


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_only_the_owner_reads_stores_and_backups_whatever_the_umask(tmp_path: Path) -> None:
    with umask(0):
        workspace = fill(Workspace.create(tmp_path / "ws"))
        with closing(Store.open(workspace.database)) as store:
            store.add_verdicts([(1, said())])
            beside = {file.name: stat.S_IMODE(file.stat().st_mode) for file in workspace.root.glob("store.db*")}
        assert set(beside.values()) == {0o600} and "store.db-wal" in beside
        backup(workspace, tmp_path / "bk")
        restore(tmp_path / "bk", tmp_path / "new")
    written = [one for one in (tmp_path / "bk").rglob("*") if one.is_file() and one.suffix != ".lock"]
    assert {stat.S_IMODE(one.stat().st_mode) for one in written} == {0o600} and len(written) > 5
    assert stat.S_IMODE((tmp_path / "new" / "store.db").stat().st_mode) == 0o600


def test_a_store_that_others_could_read_is_closed_to_them(local: Workspace) -> None:
    (local.root / "store.db").chmod(0o666)
    Store.open(local.database).close()
    assert stat.S_IMODE((local.root / "store.db").stat().st_mode) == 0o600


class Killed(BaseException):
    """Stands for SIGKILL: nothing is meant to catch it."""


def dying_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """Make a change of the disk, the one of that number, this process's end."""
    done: list[int] = []

    def deadly(write: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*given: Any, **more: Any) -> Any:
            done.append(1)
            if len(done) == number:
                raise Killed
            return write(*given, **more)

        return instead

    for owner, name in ((Path, "rename"), (Path, "replace"), (Path, "unlink"), (Path, "rmdir"), (shutil, "rmtree")):
        patch.setattr(owner, name, deadly(getattr(owner, name)))


def test_a_restore_that_is_killed_anywhere_leaves_the_one_or_the_other(local: Workspace, tmp_path: Path) -> None:
    backup(local, tmp_path / "bk")
    old = tmp_path / "old"
    with closing(Store.open(local.database)) as store:
        store.add_verdicts([(1, said())] * 2)
    version(local, "policy-2")
    local.promote("policy-2")
    shutil.copytree(local.root, old)
    seen, number, reached = set(), 0, True
    while reached:
        number += 1
        root = shutil.copytree(old, tmp_path / f"at-{number}")
        folder = shutil.copytree(tmp_path / "bk", tmp_path / f"bk-{number}")
        with pytest.MonkeyPatch.context() as patch:
            dying_at(patch, number)
            try:
                restore(folder / "backup-1", root)
                reached = False
            except Killed:
                pass
        workspace = Workspace.open(root)
        state = (len(files(root)), workspace.current_policy(), count(root / "store.db"))
        seen.add(state)
        assert not (root / restored.READY).exists() and not list(root.rglob("*.partial"))
    assert seen == {(len(files(old)), "policy-2", 7), (len(files(old)) - 3, "policy-1", 5)} and number > 10


def test_commands_say_where_when_and_how_much(
    local: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert last(local) is None
    place = ["--workspace", str(local.root), "--json"]
    assert main(["backup", str(tmp_path / "bk"), *place]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["verdicts"], made["versions"], made["verified"]) == (5, 2, True)
    found = last(local)
    assert found is not None and found["path"] == made["path"] and found["made_at"].endswith("+00:00")
    assert main(["restore", str(tmp_path / "bk"), *place]) == 0
    back = json.loads(capsys.readouterr().out)
    assert {"path", "verdicts", "versions", "verified"} <= back.keys() and back["verdicts"] == 5
    assert main(["restore", str(tmp_path / "nowhere"), *place]) == 1
    assert "holds no backup" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 9}', '{"files": {"../x": "0"}}', '{"files": 3}'])
def test_a_damaged_backup_is_one_sentence(local: Workspace, tmp_path: Path, damage: str) -> None:
    backup(local, tmp_path / "bk")
    (tmp_path / "bk" / "backup-1" / "backup.json").write_text(damage)
    before = files(local.root)
    with pytest.raises(MannersError, match=r"damaged|newer manners"):
        restore(tmp_path / "bk", local.root)
    assert files(local.root) == before


def test_a_store_that_is_not_what_was_written_is_not_put_back(local: Workspace, tmp_path: Path) -> None:
    backup(local, tmp_path / "bk")
    copy = tmp_path / "bk" / "backup-1" / "store.db"
    copy.write_bytes(copy.read_bytes()[:-4096])
    with pytest.raises(MannersError, match="is not what was written"):
        restore(tmp_path / "bk", local.root)
    assert count(local.root / "store.db") == 5


def test_a_backup_that_the_disk_spoils_is_removed_and_says_so(
    local: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(local, tmp_path / "bk")
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "is_sound", lambda folder, digest: False)
        with pytest.raises(MannersError, match=r"backup-2 was not what was written .* and is removed: check the disk"):
            backup(local, tmp_path / "bk")
    assert [one.name for one in snapshots.all_of(tmp_path / "bk")] == ["backup-1"], "it counts among none"


def test_folders_that_hold_other_things_are_left_alone(local: Workspace, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("Dear")
    with pytest.raises(MannersError, match="already holds other things"):
        backup(local, tmp_path / "letters")
    backup(local, tmp_path / "bk")
    with pytest.raises(MannersError, match="already holds other things"):
        restore(tmp_path / "bk", tmp_path / "letters")
    assert [one.name for one in (tmp_path / "letters").iterdir()] == ["a.txt"]


def test_a_folder_of_several_workspaces_gives_each_its_own(local: Workspace, tmp_path: Path) -> None:
    """The latest is another's; who asks for a new folder has to say which."""
    other = fill(Workspace.create(tmp_path / "other"), 7)
    for one in (local, other):
        backup(one, tmp_path / "bk")
    with pytest.raises(MannersError, match=r"holds backups of 2 workspaces: name one of them, as .*/backup-2"):
        restore(tmp_path / "bk", tmp_path / "new")
    found = restore(tmp_path / "bk", local.root)
    assert (Path(found["from"]).name, found["verdicts"]) == ("backup-1", 5)
    assert schedule.rehearse(other, tmp_path / "bk").backup.endswith("backup-2")


def test_a_place_that_is_called_damaged_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come since the backup would be gone from the store, and nobody asked."""
    workspace = fill(Workspace.create(tmp_path / "damaged-goods"))
    folder = tmp_path / "bk"
    backup(workspace, folder)
    with closing(Store.open(workspace.database)) as store:
        store.add_verdicts([(1, said())])
    rights = os.access
    monkeypatch.setattr(
        "manners.backup.restore.os.access", lambda path, how: Path(path) != folder and rights(path, how)
    )
    with pytest.raises(MannersError, match=r"cannot be written, so what stands in .* cannot be kept"):
        restore(folder, workspace.root)
    assert count(workspace.root / "store.db") == 6 and not list(workspace.root.glob("*.damaged"))


def test_a_folder_that_leads_to_another_disk_is_refused_before_anything_is_touched(
    local: Workspace, tmp_path: Path
) -> None:
    backup(local, tmp_path / "bk")
    local.models.rename(tmp_path / "large")
    local.models.symlink_to(tmp_path / "large")
    before = files(local.root)
    with pytest.raises(MannersError, match="leads to another disk"):
        restore(tmp_path / "bk", local.root)
    assert files(Workspace.open(local.root).root) == before and restore(tmp_path / "bk", tmp_path / "new")["verified"]
    (local.root / restored.READY / "models").mkdir(parents=True)  # as an older manners has left it
    Workspace.open(local.root)
    assert local.models.is_dir() and not local.models.is_symlink() and (tmp_path / "large" / "policy-1").is_dir()


def test_a_backup_is_not_kept_where_what_is_deleted_later_would_stay(local: Workspace, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(local.root)
    for folder in (local.root, local.root / "bk", local.root / "models" / "bk", tmp_path / "link" / "bk"):
        with pytest.raises(MannersError, match="is in the workspace itself"):
            backup(local, folder)
    assert not (local.root / "bk").exists() and backup(local, tmp_path / "local-bk")["verified"]


def test_a_run_that_ends_while_a_backup_is_taken_is_in_it_whole_or_not_at_all(
    local: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One version is recorded before the copy of the record, and one after it; both come later than the list."""

    def meanwhile(database: str | Path, path: Path) -> None:
        for name in ("policy-2", "policy-3"):
            if name == "policy-3":
                write_copy(database, path)
            version(local, name)
            with closing(Store.open(local.database)) as store:
                store.add_version(VersionRecord(name, VersionKind.POLICY, f"models/{name}"))

    monkeypatch.setattr("manners.backup.take.write_copy", meanwhile)
    backup(local, tmp_path / "bk")
    restore(tmp_path / "bk", tmp_path / "new")
    with closing(Store.open(tmp_path / "new" / "store.db")) as store:
        recorded = {one.name for one in store.versions()}
    there = {one.name for one in (tmp_path / "new" / "models").iterdir() if one.is_dir()}
    assert there == recorded == {"reward-1", "policy-1", "policy-2"}


def test_a_stage_that_ends_while_a_backup_is_taken_is_not_done_in_it(
    local: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it made is recorded after the record was copied: facts that name it would have an older one taken for it."""

    def facts(stage: str, number: int) -> None:
        said = {"version": f"{stage}-{number}", "begun_with": {ROUND: number}}
        (local.runs / f"{stage}.json").write_text(json.dumps(said), encoding="utf-8")

    def ends(database: str | Path, path: Path) -> None:
        write_copy(database, path)
        version(local, "reward-2")
        with closing(Store.open(local.database)) as store:
            store.add_version(VersionRecord("reward-2", VersionKind.REWARD, "models/reward-2"))
        facts("reward", 2)
        facts("ppo", 1)

    facts("reward", 1)
    monkeypatch.setattr("manners.backup.take.write_copy", ends)
    backup(local, tmp_path / "bk")
    restore(tmp_path / "bk", tmp_path / "new")
    back = Workspace.open(tmp_path / "new")
    assert not (back.models / "reward-2").exists()
    assert is_done(back, "reward", 1) and not is_done(back, "reward", 2) and not is_done(back, "ppo", 1)


def test_words_that_are_deleted_while_a_backup_is_taken_are_not_in_it(
    local: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, copied = planted(local), list[Path]()

    def meanwhile(database: str | Path, path: Path) -> None:
        if not copied:  # what stages found out has been read by then
            forget(local, key)
            (local.runs / "sample.json").write_text('{"count": 3}', encoding="utf-8")
        copied.append(path)
        write_copy(database, path)

    monkeypatch.setattr("manners.backup.take.write_copy", meanwhile)
    backup(local, tmp_path / "bk")
    assert len(copied) == 2 and holding(tmp_path / "bk", SENTENCE) == []
    restore(tmp_path / "bk", tmp_path / "new")
    assert json.loads((tmp_path / "new" / "runs" / "sample.json").read_text()) == {"count": 3}


def test_the_record_of_deletions_is_read_past_a_line_that_a_kill_cut_short(tmp_path: Path) -> None:
    deletions.note(tmp_path, "first")
    with (tmp_path / deletions.FILE).open("a") as file:
        file.write('{"conversation": "sec')
    deletions.note(tmp_path, "third")
    assert deletions.noted(tmp_path) == {"first", "third"}
    assert stat.S_IMODE((tmp_path / deletions.FILE).stat().st_mode) == 0o600


def in_runs(workspace: Workspace) -> dict[str, str]:
    return {one.name: one.read_text(encoding="utf-8") for one in workspace.runs.glob("*.json")}


SAID = ("PIN 4711", "ja", "policy", SENTENCE, 'a "quoted" ü line\nand another')
"""What somebody says: short and long, a word of our own, and what JSON spells in other letters."""


@pytest.mark.parametrize("text", SAID)
def test_a_restore_leaves_of_facts_what_deleting_leaves(local: Workspace, tmp_path: Path, text: str) -> None:
    """Sound facts and damaged ones, each with the text alone, inside of another, and without it."""
    with closing(Store.open(local.database)) as store:
        key = converse(store, ANNA, text, ("Oh.", "Ah."))
    for name, said in (("alone", text), ("inside", f"so: {text}, was it"), ("other", "what others ask")):
        facts = {"version": "policy-1", "result": {"examples": [{"prompt": said}, {"prompt": "Question 0?"}]}}
        for ascii_only in (True, False):
            written = json.dumps(facts, ensure_ascii=ascii_only)
            (local.runs / f"{name}-{ascii_only}.json").write_text(written, encoding="utf-8")
            (local.runs / f"{name}-{ascii_only}-cut.json").write_text(written[:-3], encoding="utf-8")
    place, before = backup(local, tmp_path / "bk")["path"], in_runs(local)
    with closing(Store.open(local.database)) as store:
        sweep(local, Chats(store).words(ANNA, key))
    forget(local, key)
    after = in_runs(local)
    restore(Path(place), local.root)
    assert in_runs(local) == after != before
    whole = {name: json.loads(said) for name, said in after.items() if not name.endswith("-cut.json")}
    assert len(whole) == 6 and {facts["version"] for facts in whole.values()} == {"policy-1"}
    left = {name: [one["prompt"] for one in facts["result"]["examples"]] for name, facts in whole.items()}
    for ascii_only in (True, False):
        assert left[f"other-{ascii_only}.json"] == ["what others ask", "Question 0?"]
        assert left[f"alone-{ascii_only}.json"] == ["Question 0?"]
        assert (left[f"inside-{ascii_only}.json"] == ["Question 0?"]) == (text != "ja"), "which many words hold"
        assert (f"inside-{ascii_only}-cut.json" in after) == (text == "ja")


@pytest.mark.parametrize("rest", ["", "\xff", "[" * 100_000])
def test_damaged_facts_come_back_unless_they_say_what_was_deleted(local: Workspace, tmp_path: Path, rest: str) -> None:
    key = planted(local)
    facts = (local.runs / "sample.json").read_bytes()[:-1] + b', "rest": ' + rest.encode("latin-1")
    innocent = b'{"overrides": ' + rest.encode("latin-1")
    (local.runs / "sample.json").write_bytes(facts)
    (local.runs / "ppo.json").write_bytes(innocent)
    (local.models / "policy-1" / "checks.json").write_bytes(innocent)
    place = Path(backup(local, tmp_path / "bk")["path"])
    forget(local, key)
    found = restore(place, local.root)
    assert found["verified"] and found["deleted_again"] == 1 and holding(local.root, SENTENCE) == []
    assert not (local.runs / "sample.json").exists(), "nobody could say what else it holds"
    assert (local.runs / "ppo.json").read_bytes() == innocent, "whoever reads it is told"


def test_sound_facts_with_a_byte_that_is_no_letter_lose_what_was_deleted(local: Workspace, tmp_path: Path) -> None:
    key = planted(local)
    facts = (local.runs / "sample.json").read_bytes()
    (local.runs / "sample.json").write_bytes(facts[:-1] + b', "file": "caf\xe9"}')
    place = Path(backup(local, tmp_path / "bk")["path"])
    forget(local, key)
    restore(place, local.root)
    found = json.loads((local.runs / "sample.json").read_text())
    assert found["samples"] == [] and found["count"] == 3 and holding(local.root, SENTENCE) == []


def test_lines_are_told_apart_by_their_ends_alone(local: Workspace, tmp_path: Path) -> None:
    """A text may hold what else ends a line: U+2028 stands in JSON as it is."""
    key = planted(local)
    kept = '{"step": 1, "said": "two\u2028lines\x85"}\n'
    said = json.dumps({"step": 2, "said": f"one\u2028{SENTENCE}"}, ensure_ascii=False)
    (local.runs / "policy-1" / "metrics.jsonl").write_text(f"{kept}{said}\n", encoding="utf-8")
    place = Path(backup(local, tmp_path / "bk")["path"])
    forget(local, key)
    restore(place, local.root)
    assert holding(local.root, SENTENCE) == []
    assert (local.runs / "policy-1" / "metrics.jsonl").read_text(encoding="utf-8") == kept
