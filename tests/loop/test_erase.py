"""Deletion reaches every byte of the workspace: a sentence is planted wherever words are kept, and looked for."""

from __future__ import annotations

import gzip
import html
import io
import json
import os
import signal
import socket
import sqlite3
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import uvicorn
from sqlalchemy import select
from starlette.testclient import TestClient

from manners.audit import card, gate, record
from manners.backup.restore import restore
from manners.backup.take import backup
from manners.checkpoint import Run, unfinished
from manners.cli import main
from manners.facts import to_facts
from manners.loop import erase
from manners.loop.erase import sweep
from manners.loop.judging import JOURNAL
from manners.loop.reporting import collect, what_was_said
from manners.loop.session import Session
from manners.loop.stage import Costs, Finished
from manners.report import build
from manners.results import ReportFacts, Said, SaidExample
from manners.results.audit import REJECTED, AuditExample, AuditResult, Review
from manners.results.phases import AnsweredExample, SFTResult
from manners.settings import ServeSettings, Settings
from manners.store import Store, cases, flags, staging, traces
from manners.store.accounts import Accounts
from manners.store.chats import Chats
from manners.store.flags import FlagReason, raise_flag
from manners.store.forget import forget
from manners.store.programs import Programs, requester
from manners.store.tables import StagedRow
from manners.store.tokens import TokenUse
from manners.types import (
    DELETED,
    AccountRole,
    Annotator,
    AnnotatorKind,
    Answer,
    AskedHow,
    Choice,
    Comparison,
    FinishReason,
    PromptUse,
    Response,
    Role,
    Sampling,
    Turn,
    Verdict,
)
from manners.web import server
from manners.web.app import create_app
from manners.web.limits import CLEARINGS, DELETIONS
from manners.web.site import LOCAL, Site
from manners.workspace import Workspace
from tests.audit.test_audit_gate import version
from tests.store.test_forget import by_program, file_of, person
from tests.web.scripted import Scripted

SECRET = 'my code is "7-3-1" & Zoë is <9>'
ANNA = Annotator("anna", AnnotatorKind.HUMAN)
OWNER = Annotator(LOCAL, AnnotatorKind.HUMAN)
"""Whoever is at the machine, where there are no accounts."""
KEPT = "what others say"


def forms(sentence: str) -> dict[str, bytes]:
    """The ways in which a sentence may stand in a file."""
    escaped = json.dumps(sentence)[1:-1]
    return {
        "utf-8": sentence.encode(),
        "utf-16-le": sentence.encode("utf-16-le"),
        "utf-16-be": sentence.encode("utf-16-be"),
        "utf-32": sentence.encode("utf-32-le"),
        "json": escaped.encode(),
        "json in json": json.dumps(escaped)[1:-1].encode(),
        "json, not escaped": json.dumps(sentence, ensure_ascii=False)[1:-1].encode(),
        "html": html.escape(sentence).encode(),
        "html, quotes by number": html.escape(sentence).replace("&quot;", "&#34;").encode(),
        "python": repr(sentence)[1:-1].encode(),
        "part of it": b"7-3-1",
    }


def contents(file: Path) -> Iterator[bytes]:
    """What a file holds, and what is packed in it."""
    data = file.read_bytes()
    yield data
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from (archive.read(name) for name in archive.namelist())


def found(root: Path, sentence: str = SECRET) -> list[str]:
    """Where a sentence stands in a workspace, and in which form."""
    return [
        f"{file.relative_to(root)}: {name}"
        for file in sorted(root.rglob("*"))
        if file.is_file()
        for content in contents(file)
        for name, form in forms(sentence).items()
        if form in content
    ]


def plant(root: Path, texts: tuple[str, ...] = (SECRET,)) -> None:
    """Keep words in every file of a workspace beside its store where today's or an older manners keeps them."""
    workspace = Workspace.open(root)
    for stage in ("sample", "evaluate"):
        run = Run(workspace.runs / stage, f"manners {stage}", {}, 0.0)
        prompt = (Turn(Role.USER, KEPT if stage == "evaluate" else texts[0]),)
        said = Response(f"{prompt[0].text}", "initial", FinishReason.STOP, Sampling(0.7, 64, 0))
        run.state["attempt 0"] = [[(0, Answer(prompt, said, (1, 2), (3, 4)))]]
        run.state["weights"] = torch.arange(1000.0)
        run.save()
        run.save()
    examples = [AnsweredExample(prompt=text, example=text, before=f"so: {text}", after=text) for text in (*texts, KEPT)]
    result = SFTResult(version="sft-1", source="store", examples=tuple(examples))
    (workspace.runs / "sft.json").write_text(json.dumps({"result": to_facts(result), "seconds": 1.0}, indent=1))
    shown = tuple(
        SaidExample(prompt=text, left=f"{text} 0", right="b", verdict="left", annotator="x") for text in texts
    )
    build(ReportFacts(comparisons=Said(total=1, examples=shown)), root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace in which somebody has left words wherever one can, and somebody else has too."""
    root = tmp_path / "ws"
    workspace = Workspace.create(root)
    with closing(Store.create(workspace.database)) as store:
        accounts = Accounts(store)
        accounts.add("olga", AccountRole.OWNER, "correct horse")
        accounts.add("anna", AccountRole.ANNOTATOR, "correct horse")
        accounts.issue(TokenUse.KEY, "anna", label=SECRET)
        anna = person(store, "anna")
        for who, words in ((anna, SECRET), (person(store, "olga"), KEPT)):
            chats = Chats(store)
            key = chats.begin(who)
            answers = [Response(f"{words} {i}", "initial", FinishReason.STOP, Sampling(0.7, 9, i)) for i in range(2)]
            chats.say(who, key, [], words, answers, 1.0)
            chats.say(who, key, chats.read(who, key), f"and {words}?", answers, 1.0)
            chats.flag(who, chats.read(who, key)[1].response or "", FlagReason.OTHER, f"{words} flag")
        by_program(store, "anna", SECRET)
        by_program(store, "olga", KEPT)
        sides = Response("a", "x"), Response("b", "x")
        [number] = store.add_comparisons([Comparison((Turn(Role.USER, "q"),), *sides, AskedHow.RANDOM)])
        store.add_verdicts([(number, Verdict(Choice.LEFT, anna, reasons=(SECRET,), comment=f"{SECRET}!"))])
        with store.write() as connection:
            raise_flag(connection, anna, FlagReason.OTHER, SECRET, comparison=number)
    plant(root)
    return root


def test_after_forget_no_byte_of_the_workspace_says_it(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    places = found(root)
    for place in ("store.db: utf-8", "report.html: html", "report.json", "runs/sft.json: json", "runs/sample/"):
        assert any(one.startswith(place) for one in places), f"nothing was planted in {place}"
    assert main(["forget", "anna", "--workspace", str(root), "--json"]) == 0
    out, err = capfd.readouterr()
    facts = json.loads(out)
    assert found(root) == [] and found(root, "anna") == []
    assert "7-3-1" not in out + err and "anna" not in out
    assert facts["runs_dropped"] == ["sample"] and facts["files"] == ["sft.json", "report.html", "report.json"]
    assert facts["conversations"] == 1 and facts["database_written_anew"] is True
    assert found(root, KEPT), "what others say stays"
    assert len(unfinished(root / "runs" / "evaluate")) == 2, "and so does a run that holds none of it"
    kept = json.loads((root / "runs" / "sft.json").read_text())["result"]["examples"]
    assert [one["prompt"] for one in kept] == [KEPT]
    assert main(["log", "--workspace", str(root), "--json"]) == 0
    [line] = json.loads(capfd.readouterr().out)["log"]
    assert line["event"] == "account_forgotten"


def test_where_another_program_holds_the_database_what_is_said_to_write_it_anew_does(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(traces, "PATIENCE_SECONDS", 0.05)
    with closing(sqlite3.connect(root / "store.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM prompts").fetchone()
        assert main(["forget", "anna", "--workspace", str(root), "--json"]) == 0
        assert found(root), "as the reader still sees it"
    facts = json.loads(capfd.readouterr().out)
    assert facts["database_written_anew"] is False and "`manners serve` writes it anew when it begins" in facts["next"]
    assert is_due(root)
    monkeypatch.setattr(server, "Engine", lambda *_, **__: SimpleNamespace(start=lambda: None, stop=lambda: None))
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    assert main(["serve", "--workspace", str(root), "--set", "serve.port=0"]) == 0
    assert not is_due(root)
    assert found(root) == [] and found(root, "anna") == []


def is_due(root: Path) -> bool:
    """Whether the database is still to be written anew."""
    with closing(Store.open(root / "store.db")) as store:
        return traces.has_traces(store._engine)


def test_forgetting_one_user_says_how_many_pairs_may_be_theirs(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with closing(Store.open(root / "store.db")) as store:
        asked = Comparison((Turn(Role.USER, "?"),), Response("a", "x"), Response("b", "x"), AskedHow.API)
        Programs(store).open(requester(person(store, "anna").account), asked)
    assert main(["forget", "anna", "--user", "u1", "--workspace", str(root), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["unnamed"] == 1


def die(root: Path) -> None:
    """Say something more, import a file that says it too, and write a report, in a process that is killed in it all."""
    child = os.fork()
    if child == 0:
        store = Store.open(root / "store.db")
        chats, anna = Chats(store), person(store, "anna")
        chats.say(anna, chats.begin(anna), [], f"{SECRET} in the log", [Response(SECRET, "initial")], 1.0)
        staging._stage(store.write, file_of(SECRET))
        owner = f"{socket.gethostname().partition('.')[0]}-{os.getpid()}-0123abcd"
        (root / f".report.html.{owner}.partial").write_text(SECRET)
        scratch = root / "runs" / f".states.{owner}.partial"
        scratch.mkdir()
        (scratch / "texts").write_text(SECRET)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.parametrize("before", [True, False])
def test_a_kill_in_the_middle_of_forgetting_leaves_no_word_that_nobody_can_look_for(
    root: Path, before: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The files have lost them before the store does, and as long as the store has them `forget` can be repeated."""

    class Killed(BaseException):
        pass

    def killed(*given: Any) -> None:
        if not before:
            forget(*given)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(erase, "forget", killed)
        with pytest.raises(Killed):
            main(["forget", "anna", "--workspace", str(root)])
    assert not [one for one in found(root) if not one.startswith("store.db")]
    if before:
        assert found(root) and main(["forget", "anna", "--workspace", str(root)]) == 0 and found(root) == []
    assert SECRET not in "".join(capfd.readouterr())


def test_what_a_kill_and_a_restore_have_left_goes_too_and_no_backup_brings_it_back(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = backup(Workspace.open(root), tmp_path / "bk")
    (root / "store.db.damaged").write_bytes((root / "store.db").read_bytes()[:-5000])
    (root / "store.db.revision-0001").write_bytes((root / "store.db").read_bytes())
    die(root)
    assert (root / "store.db-wal").stat().st_size
    places = found(root)
    older = ("store.db.damaged", "store.db.revision-0001")
    for place in ("store.db-wal: utf-8", "store.db-wal: json", *older, ".report.html.", "runs/.states."):
        assert any(one.startswith(place) for one in places), f"nothing was planted in {place}"
    assert main(["forget", "anna", "--workspace", str(root), "--json"]) == 0
    out, err = capfd.readouterr()
    assert {*older} <= {*json.loads(out)["files"]} and "7-3-1" not in out + err
    assert found(root) == [] and found(root, "anna") == [] and found(root, KEPT)
    for place in (made["path"], str(tmp_path / "bk")):
        assert main(["restore", place, "--workspace", str(root), "--json"]) == 0
        out, err = capfd.readouterr()
        assert json.loads(out)["forgotten_again"] == (place == made["path"]) and "7-3-1" not in out + err
        assert found(root) == [] and found(root, "anna") == []
    with closing(Store.open(root / "store.db")) as store, store.read() as connection:
        assert not connection.execute(select(StagedRow)).all()


def test_a_conversation_deleted_on_the_page_is_in_no_byte_of_a_workspace_that_had_nothing_else_of_it(
    tmp_path: Path,
) -> None:
    """With the log of a killed server, a damaged store, and a backup from before that is put back."""
    workspace = Workspace.create(tmp_path / "ws")
    with closing(Store.create(workspace.database)) as store:
        key = Chats(store).begin(OWNER)
        answers = [Response(f"{SECRET} {i}", "initial") for i in range(2)]
        Chats(store).say(OWNER, key, [], SECRET, answers, 1.0)
        Chats(store).flag(OWNER, Chats(store).read(OWNER, key)[1].response or "", FlagReason.OTHER, SECRET)
    plant(workspace.root)
    backup(workspace, tmp_path / "bk")
    (workspace.root / "store.db.damaged").write_bytes((workspace.root / "store.db").read_bytes()[:-5000])
    (workspace.root / "store.db.revision-0001").write_bytes((workspace.root / "store.db").read_bytes())
    with closing(Store.open(workspace.database)) as store:
        site = Site(workspace, Settings(), store, Accounts(store), True, "http://127.0.0.1", Scripted())
        client = TestClient(create_app(site), "http://127.0.0.1", client=("127.0.0.1", 1))
        assert client.post(f"/chat/{key}/delete").status_code == 200
        assert found(workspace.root) == [], "while it is being served"
    restore(tmp_path / "bk", workspace.root)
    assert found(workspace.root) == []


def test_a_server_that_is_killed_while_somebody_deletes_has_left_nothing_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace.create(tmp_path / "ws")
    monkeypatch.setattr("manners.web.chat._leave_nothing", lambda *_: None)  # it comes no further than the store
    with closing(Store.create(workspace.database)) as store:
        key = Chats(store).begin(OWNER)
        Chats(store).say(OWNER, key, [], SECRET, [Response(SECRET, "initial")], 1.0)
        plant(workspace.root)
        site = Site(workspace, Settings(), store, Accounts(store), True, "http://127.0.0.1", Scripted())
        client = TestClient(create_app(site), "http://127.0.0.1", client=("127.0.0.1", 1))
        assert client.post(f"/chat/{key}/delete").status_code == 200
        assert not [one for one in found(workspace.root) if not one.startswith("store.db")]


def test_whoever_deletes_without_end_writes_the_database_anew_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, clear = Workspace.create(tmp_path / "ws"), Store.clear_traces
    written: list[bool] = []

    def clearing(store: Store) -> None:
        written.append(clear(store))

    with closing(Store.create(workspace.database)) as store:
        monkeypatch.setattr(Store, "clear_traces", clearing)
        site = Site(workspace, Settings(), store, Accounts(store), True, "http://127.0.0.1", Scripted())
        client = TestClient(create_app(site), "http://127.0.0.1", client=("127.0.0.1", 1))
        keys = [Chats(store).begin(OWNER) for _ in range(int(DELETIONS.burst))]
        statuses = {client.post(f"/chat/{key}/delete").status_code for key in keys}
        assert statuses == {200} and len(written) == CLEARINGS.burst
        assert traces.has_traces(store._engine), "the duty stays for when serving ends"


def test_after_a_conversation_is_deleted_on_the_page_only_what_is_not_of_it_stays(root: Path) -> None:
    workspace = Workspace.open(root)
    settings = Settings(serve=ServeSettings(share_chats=True))
    with closing(Store.open(workspace.database)) as store:
        secret = Accounts(store).issue(TokenUse.KEY, "anna")
        site = Site(workspace, settings, store, Accounts(store), False, "http://127.0.0.1", Scripted())
        client = TestClient(create_app(site), headers={"authorization": f"Bearer {secret}", "host": "127.0.0.1"})
        [one] = client.get("/chat/all").json()["conversations"]
        assert client.post(f"/chat/{one['key']}/delete").status_code == 200
        # What came by /v1, the remark on another comparison and a key's label are not of that conversation.
        assert {place.partition(":")[0] for place in found(root, SECRET)} <= {"store.db", "store.db-wal"}
        from manners.store.forget import forget

        forget(store, "anna")
        store.clear_traces()
        assert found(root) == [], "the page has left nothing for later"


def test_a_reason_that_quotes_somebody_goes_with_them_and_a_reviewers_own_with_the_reviewer(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Reasons stand in a version's record and on its card; no backup brings them back, and who decided what stays."""
    workspace = Workspace.open(root)
    version(workspace, "policy-1")
    said = {
        "account 2": "mine alone",
        "account 1": f"it says: {SECRET.upper()}",
        "this machine": "flag is a common word",
    }
    for by, reason in said.items():
        word = Review(decision=REJECTED, reason=reason, created_at="", by=by, against="initial")
        gate.decide_on(workspace, "policy-1", word)
    workspace.report_json.unlink()
    gate.promote(workspace, "policy-1", f"because {SECRET}", "account 1")
    for form in ("checks.json: json, not escaped", "card.json: json, not escaped", "card.html: html"):
        assert any(one.startswith(f"models/policy-1/{form}") for one in found(root)), f"nothing was planted in {form}"
    made = backup(workspace, tmp_path / "bk")
    assert main(["forget", "anna", "--workspace", str(root), "--json"]) == 0
    assert "checks.json" in json.loads(capfd.readouterr().out)["files"]
    reasons = {"account 2": DELETED, "account 1": DELETED, "this machine": "flag is a common word"}
    for _ in range(2):
        record = gate.read(workspace, "policy-1")
        assert {one.by: one.reason for one in record.reviews} == reasons
        assert [one.reason for one in record.overrides] == [DELETED]
        assert found(root) == [] and found(root, "mine alone") == []
        assert main(["restore", made["path"], "--workspace", str(root), "--json"]) == 0, capfd.readouterr().err
        capfd.readouterr()


def reasoned(root: Path) -> Workspace:
    """A version that was rejected in somebody's words."""
    workspace = Workspace.open(root)
    version(workspace, "policy-1")
    word = Review(decision=REJECTED, reason=f"it says: {SECRET}", created_at="", by="account 1", against="initial")
    gate.decide_on(workspace, "policy-1", word)
    assert {one.partition(":")[0] for one in found(root) if one.startswith("models/")} == {
        f"models/policy-1/{name}" for name in ("card.html", "card.json", "checks.json")
    }
    return workspace


def test_a_reason_goes_from_the_card_too_where_the_gate_cannot_be_read(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A card shows what of gate.toml was changed: it cannot be written then, and does not stay with the words."""
    workspace = reasoned(root)
    (root / "gate.toml").write_text("version = 1\n[reward.accuracy\n", encoding="utf-8")
    assert main(["forget", "anna", "--workspace", str(root), "--json"]) == 0
    assert "failed" not in json.loads(capfd.readouterr().out)
    assert [one.reason for one in gate.read(workspace, "policy-1").reviews] == [DELETED] and found(root) == []
    (root / "gate.toml").unlink()
    gate.keep(workspace, "policy-1", "policy", [], "initial")
    assert DELETED in (root / "models" / "policy-1" / "card.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("at", ["_write", "atomic_write", "write"])
def test_a_kill_between_record_and_card_leaves_no_reason(root: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is given again, and looks for what is still there."""
    workspace = reasoned(root)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(card if at == "write" else record, at, killed)
        sweep(workspace, [SECRET])
    sweep(workspace, [SECRET])
    assert not [one for one in found(root) if one.startswith("models/")]


def test_a_record_of_which_nobody_can_tell_is_named(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    workspace = reasoned(root)
    version(workspace, "policy-2")
    gate.keep(workspace, "policy-2", "policy", [], "initial")
    file = root / "models" / "policy-1" / "checks.json"
    file.write_text(file.read_text(encoding="utf-8")[:-3], encoding="utf-8")
    assert main(["forget", "anna", "--workspace", str(root), "--json"]) == 0
    [failed] = json.loads(capfd.readouterr().out)["failed"]
    assert failed.startswith("models/policy-1/checks.json (") and "is damaged" in failed
    assert {one.partition(":")[0] for one in found(root)} == {"models/policy-1/checks.json"}


def test_a_reported_answer_that_became_a_case_goes_with_its_words(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with closing(Store.open(root / "store.db")) as store:
        for flag in flags.undecided(store):
            flags.decide(store, flag.id, upheld=True)
        cases.write(root, store)
    assert any(one.startswith("audit/cases.jsonl: json") for one in found(root)) and found(root, KEPT)
    assert main(["forget", "anna", "--workspace", str(root), "--json"]) == 0
    assert "cases.jsonl" in json.loads(capfd.readouterr().out)["files"] and found(root) == []
    file = root / cases.FILE
    swept = file.read_text(encoding="utf-8")
    assert KEPT in swept, "what others reported stays"
    with closing(Store.open(root / "store.db")) as store:
        cases.write(root, store)
    assert file.read_text(encoding="utf-8") == swept, "and the store has lost the same"


def test_a_case_whose_text_has_a_separator_of_lines_in_it_stays(root: Path) -> None:
    file = root / cases.FILE
    file.parent.mkdir()
    said = json.dumps({"prompt": [], "answer": f"{KEPT}\u2028and more"}, ensure_ascii=False) + "\n"
    file.write_text(said, encoding="utf-8")
    assert "cases.jsonl" not in sweep(Workspace.open(root), [SECRET]).files
    assert file.read_text(encoding="utf-8") == said


def test_what_a_case_was_written_of_before_the_deletion_does_not_stay(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page reads the store, the words are deleted and swept, and only then the page writes its file."""
    before = cases.Case((Turn(Role.USER, SECRET),), "an answer", "policy-1", flags.FlagReason.WRONG)
    sweeping = threading.Thread(target=sweep, args=(Workspace.open(root), [SECRET]))

    def read(_: Store) -> list[cases.Case]:
        sweeping.start()
        sweeping.join(1.0)  # it waits for the file, or is done with it
        return [before]

    monkeypatch.setattr(cases, "upheld", read)
    with closing(Store.open(root / "store.db")) as store:
        cases.write(root, store)
    sweeping.join()
    assert SECRET not in (root / cases.FILE).read_text(encoding="utf-8")


def test_a_short_text_is_no_reason_to_drop_what_only_resembles_it(root: Path) -> None:
    swept = sweep(Workspace.open(root), ["my", "cod", "o", "so: ", "what others"])
    assert swept.runs == () and "report.html" not in swept.files
    assert sweep(Workspace.open(root), [SECRET]).runs == ("sample",)


def test_a_run_of_ppo_goes_where_one_of_its_checkpoints_may_hold_prompts_as_tokens(root: Path) -> None:
    """Older code wrote those down, and did not write down which version is made."""
    run = Run(root / "runs" / "ppo", "manners ppo", {}, 0.0)
    run.state |= {"version": "policy-1", "queue": [3, 1]}
    run.save()
    run.save()
    assert sweep(Workspace.open(root), ["no words of it"]).runs == ()
    file = unfinished(run.folder)[0] / "checkpoint.json"
    said = json.loads(file.read_text(encoding="utf-8"))
    assert said.pop("version") == "policy-1"
    file.write_text(json.dumps(said), encoding="utf-8")
    assert sweep(Workspace.open(root), []).runs == (), "nothing is deleted"
    assert sweep(Workspace.open(root), ["no words of it"]).runs == ("ppo",)


@pytest.mark.parametrize("text", ["x", "é", "a" * 300, "a" * 70_000, 'q"\\\n\x00', "\ud800", "日本"])
def test_a_checkpoint_that_torch_wrote_is_known_by_its_texts(tmp_path: Path, text: str) -> None:
    workspace = Workspace.create(tmp_path / "ws")
    run = Run(workspace.runs / "sample", "manners sample", {}, 0.0)
    run.state |= {"prompts": [(Turn(Role.USER, text),)], "weights": torch.zeros(10)}
    run.save()
    assert sweep(workspace, [f"{text}!", f" {text}"]).runs == ()
    assert sweep(workspace, [text]).runs == ("sample",)
    assert not unfinished(workspace.runs / "sample")


def test_damaged_files_stop_nothing(root: Path) -> None:
    (root / "runs" / "sft.json").write_text("{")
    (root / "report.json").write_text("{")
    (root / "runs" / "sample" / "checkpoint-1" / "state.pt").write_bytes(b"no archive")
    swept = sweep(Workspace.open(root), [SECRET])
    assert swept.runs == ("sample",) and swept.files == ("report.html", "report.json"), "nobody can tell what it says"


def archive(how: str) -> bytes:
    """A checkpoint's archive, damaged so that reading it raises each time another kind of error."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"so it goes " * 100)
    raw = bytearray(written.getvalue())
    listed = raw.index(b"PK\x01\x02")
    begins = 30 + len("archive/data.pkl")
    match how:
        case "encrypted":
            raw[listed + 8] |= 1
        case "packed in another way":
            raw[listed + 10] = 99
        case "overwritten":
            raw[begins : begins + 8] = b"\xff" * 8
        case "shortened":
            del raw[-30:]
        case "of nothing":
            raw = raw.replace(b"data.pkl", b"data.old")
    return bytes(raw)


@pytest.mark.parametrize("how", ["encrypted", "packed in another way", "overwritten", "shortened", "of nothing"])
def test_a_checkpoint_of_which_nobody_can_tell_is_dropped_and_stops_nothing(root: Path, how: str) -> None:
    for state in (root / "runs" / "evaluate").glob("checkpoint-*/state.pt"):
        state.write_bytes(archive("sound"))
    assert sweep(Workspace.open(root), ["no words of it"]).runs == ()
    (root / "runs" / "evaluate" / "checkpoint-1" / "state.pt").write_bytes(archive(how))
    swept = sweep(Workspace.open(root), [SECRET])
    assert swept.runs == ("evaluate", "sample") and not swept.failed
    assert swept.files == ("sft.json", "report.html", "report.json")


@pytest.mark.parametrize("step", ["discard", "without_examples", "_without_older", "quoting", "_without_report"])
def test_what_cannot_be_taken_out_is_said_and_keeps_nothing_else(
    root: Path, step: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever forgot has lost the words by then: what is not looked through now never is."""

    def fails(*_: object) -> None:
        raise OSError(30, f"Read-only file system: {SECRET}")

    places = {place.partition(":")[0] for place in found(root)} - {"store.db", "store.db-wal"}
    monkeypatch.setattr(erase, step, fails)
    assert main(["forget", "anna", "--workspace", str(root), "--json"]) == 0
    out, err = capfd.readouterr()
    facts = json.loads(out)
    assert facts["failed"] and facts["database_written_anew"] and "7-3-1" not in out + err
    left = {place.partition(":")[0] for place in found(root)}
    assert len(left) < len(places) and not any(place.startswith("store.db") for place in left)
    named = " ".join(facts["failed"]).replace("the report", "report.html report.json")
    assert all(any(part in named for part in (place, place.rpartition("/checkpoint")[0] or place)) for place in left)


def test_hashes_of_what_a_judge_was_asked_go_with_what_was_asked(root: Path) -> None:
    """A short question can be guessed by its hash."""
    file = root / "runs" / JOURNAL
    file.write_text('{"key": "0123456789abcdef", "first": 0.7, "sampled": 0}\n')
    assert sweep(Workspace.open(root), []).files == () and file.exists()
    assert JOURNAL in sweep(Workspace.open(root), ["something else"]).files and not file.exists()


@pytest.mark.parametrize("rest", ["", "[" * 100_000])
def test_damaged_facts_go_where_they_say_it(root: Path, rest: str) -> None:
    file = root / "runs" / "sft.json"
    file.write_text(json.dumps({"examples": [SECRET]})[:-1] + rest)
    assert "sft.json" not in sweep(Workspace.open(root), ["no words of it"]).files and file.exists()
    assert "sft.json" in sweep(Workspace.open(root), [SECRET]).files and not file.exists()


# What a report says


@pytest.mark.parametrize("shared", [False, True])
def test_a_report_quotes_chats_only_where_they_are_shared(tmp_path: Path, shared: bool) -> None:
    session = Session(Workspace.create(tmp_path / "ws"), Settings(serve=ServeSettings(share_chats=shared)))
    store = session.store
    store.add_prompts([(Turn(Role.USER, "from a file"),)], PromptUse.TRAIN, "prompts.txt")
    chats = Chats(store)
    answers = [Response(f"{SECRET} {i}", "initial", FinishReason.STOP, Sampling(0.7, 9, i)) for i in range(2)]
    for words in (SECRET, "from a file"):
        key = chats.begin(ANNA)
        chats.say(ANNA, key, [], words, answers, 1.0)
    sides = Response("eins", "x"), Response("zwei", "x")
    opened = Comparison((Turn(Role.USER, SECRET),), *sides, AskedHow.RANDOM)
    store.add_comparisons([opened, replace(opened, prompt=(Turn(Role.USER, "from a file"),))])
    said = what_was_said(session)
    assert said is not None and said.total == 4, "they count all the same"
    paths = build(ReportFacts(comparisons=said), tmp_path / "out")
    assert bool(found(tmp_path / "out")) == shared
    assert "from a file" in paths.json.read_text()
    store.close()


@pytest.mark.parametrize("shared", [False, True])
def test_a_report_quotes_users_of_programs_only_where_chats_are_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Neither what was put before them, nor what an older audit made of it, nor who they are."""
    session = Session(Workspace.create(tmp_path / "ws"), Settings(serve=ServeSettings(share_chats=shared)))
    store = session.store
    Accounts(store).add("olga", AccountRole.OWNER, "correct horse")
    by_program(store, "olga", SECRET, "u-7")
    asked = f"{SECRET} prompt"
    sides = Response("eins", "x"), Response("zwei", "x")
    opened = Comparison((Turn(Role.USER, asked),), *sides, AskedHow.RANDOM)
    store.add_comparisons([opened, replace(opened, prompt=(Turn(Role.USER, KEPT),))])
    texts = (asked, "IN CAPITALS"), (KEPT, f"{SECRET} left"), (KEPT, "well")
    examples = tuple(
        AuditExample(check="turned_upper", prompt=prompt, better=text, worse="no", score_better=0, score_worse=1)
        for prompt, text in texts
    )
    pretrained: Any = _Nothing()
    monkeypatch.setitem(vars(session), "pretrained", pretrained)
    facts = collect(session, {"audit": Finished(AuditResult(examples=examples), Costs())})
    build(ReportFacts(comparisons=facts.comparisons), tmp_path / "out")
    assert bool(found(tmp_path / "out")) == bool(found(tmp_path / "out", "olga:u-7")) == shared
    assert facts.comparisons is not None and facts.comparisons.total == 3, "they count all the same"
    assert found(tmp_path / "out", KEPT)
    [audit] = facts.stages.values()
    assert isinstance(audit, AuditResult)
    assert [(one.prompt, one.better) for one in audit.examples or ()] == [*texts[0 if shared else 2 :]]
    store.close()


def test_a_report_quotes_what_a_program_sent_and_a_file_brought_too(tmp_path: Path) -> None:
    session = Session(Workspace.create(tmp_path / "ws"), Settings())
    Accounts(session.store).add("olga", AccountRole.OWNER, "correct horse")
    by_program(session.store, "olga", SECRET)
    prompt = (Turn(Role.USER, f"{SECRET} prompt"),)
    session.store.add_prompts([prompt], PromptUse.TRAIN, "prompts.txt")
    session.store.add_comparisons([Comparison(prompt, Response("eins", "x"), Response("zwei", "x"), AskedHow.RANDOM)])
    said = what_was_said(session)
    assert said is not None
    assert [(one.prompt, one.left) for one in said.examples or ()] == [(f"{SECRET} prompt", "eins")]
    session.store.close()


def test_a_report_quotes_no_chat_from_the_facts_of_an_older_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(Workspace.create(tmp_path / "ws"), Settings())
    key = Chats(session.store).begin(ANNA)
    Chats(session.store).say(ANNA, key, [], SECRET, [Response("hm", "initial")], 1.0)
    examples = tuple(AnsweredExample(prompt=text, example=text) for text in (SECRET, KEPT))
    pretrained: Any = _Nothing()
    monkeypatch.setitem(vars(session), "pretrained", pretrained)
    done = {"sft": Finished(SFTResult(examples=examples), Costs())}
    session.workspace.promote("policy-1")
    facts = collect(session, done)
    assert facts.current == "policy-1", "what answers is read when the report is made"
    [sft] = facts.stages.values()
    assert isinstance(sft, SFTResult) and [one.prompt for one in sft.examples or ()] == [KEPT]
    session.store.close()


@pytest.mark.parametrize("shared", [False, True])
def test_a_report_quotes_no_answer_of_a_chat_that_stands_behind_another_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """As a probe of an audit does, with the answer that was liked; the prompt is anybody's."""
    session = Session(Workspace.create(tmp_path / "ws"), Settings(serve=ServeSettings(share_chats=shared)))
    answers = [Response(f"{SECRET} {i}", "initial", FinishReason.STOP, Sampling(0.7, 9, i)) for i in range(2)]
    Chats(session.store).say(ANNA, Chats(session.store).begin(ANNA), [], "And?", answers, 1.0)
    others = f"{SECRET} 1", "of a file"
    examples = tuple(
        AuditExample(check="probe_other_prompt", prompt=KEPT, better="well", worse=text, score_better=0, score_worse=1)
        for text in others
    )
    pretrained: Any = _Nothing()
    monkeypatch.setitem(vars(session), "pretrained", pretrained)
    [audit] = collect(session, {"audit": Finished(AuditResult(examples=examples), Costs())}).stages.values()
    assert isinstance(audit, AuditResult)
    assert [one.worse for one in audit.examples or ()] == [*others[not shared :]]
    session.store.close()


class _Nothing:
    """A model of which a report says nothing."""

    name = note = "none"
    parameters = 0

    @property
    def renderer(self) -> _Nothing:
        return self

    template_hash = ""
