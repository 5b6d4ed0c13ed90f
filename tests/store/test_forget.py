"""A person who leaves: their words and their name go, what they chose stays, and nobody else loses anything."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DBAPIError

from manners.errors import MannersError
from manners.store import Store, audit, staging, traces, views
from manners.store.accounts import Accounts
from manners.store.annotators import annotator_id
from manners.store.audit import Deed, Event
from manners.store.chats import Chats
from manners.store.flags import FlagReason, held_back, raise_flag
from manners.store.forget import forget, forgotten
from manners.store.programs import OtherContent, Programs, requester
from manners.store.tables import (
    AccountRow,
    AnnotatorRow,
    AuditRow,
    FlagRow,
    ImportRow,
    MessageRow,
    PromptRow,
    RequestRow,
    ResponseRow,
    StagedRow,
    TokenRow,
    VerdictRow,
)
from manners.store.tokens import TokenUse
from manners.types import (
    DELETED,
    AccountRole,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Draw,
    DrawnHow,
    FinishReason,
    PromptUse,
    Response,
    Role,
    Sampling,
    Turn,
    Verdict,
)

SECRET = "the code is 7-3-1, says Zoë"


def person(store: Store, name: str, user: str | None = None) -> Annotator:
    """An account's annotator, or a user of its programs; without such an account somebody of that name."""
    account = next((one.id for one in Accounts(store).all() if one.name == name), None)
    return Annotator(name if user is None else f"{name}:{user}", AnnotatorKind.HUMAN, account)


def by_program(store: Store, account: str, words: str, user: str = "u1", key: str | None = None) -> int:
    """A judged comparison as `/v1/comparisons` stores it."""
    verdict = Verdict(Choice.LEFT, person(store, account, user), comment=f"{words} c", reasons=(f"{words} r",))
    sides = Response(f"{words} left", "gpt"), Response(f"{words} right", "gpt")
    comparison = Comparison((Turn(Role.USER, f"{words} prompt"),), *sides, AskedHow.API, verdicts=(verdict,))
    return Programs(store).add(requester(person(store, account).account), key, words, comparison)[0]


def chat(store: Store, who: str, words: str) -> str:
    chats = Chats(store)
    key = chats.begin(person(store, who))
    answers = [Response(f"{words} {i}", "initial", FinishReason.STOP, Sampling(0.7, 64, i)) for i in range(2)]
    chats.say(person(store, who), key, [], words, answers, 1.0)
    return key


def everything(store: Store) -> str:
    """All values of all tables, as text."""
    found = []
    with store.read() as connection:
        for table in (PromptRow, ResponseRow, MessageRow, VerdictRow, FlagRow, AccountRow, AnnotatorRow, TokenRow):
            found.append(repr(connection.execute(select(table)).all()))
        found += [repr(connection.execute(select(table)).all()) for table in (RequestRow, AuditRow, StagedRow)]
    return "\n".join(found)


@pytest.fixture
def people(store: Store) -> Accounts:
    accounts = Accounts(store)
    for name, role in {"olga": AccountRole.OWNER, "anna": AccountRole.ANNOTATOR, "ben": AccountRole.ANNOTATOR}.items():
        accounts.add(name, role, "correct horse")
    return accounts


def test_nothing_of_a_person_is_left_but_what_they_chose(store: Store, people: Accounts) -> None:
    people.issue(TokenUse.KEY, "anna", label=f"for {SECRET}")
    session = people.issue(TokenUse.SESSION, "anna")
    chat(store, "anna", SECRET)
    by_program(store, "anna", SECRET, key=f"{SECRET} key")
    [shown] = store.add_comparisons(
        [Comparison((Turn(Role.USER, "of all"),), Response("a", "x"), Response("b", "x"), AskedHow.RANDOM)]
    )
    store.add_verdicts([(shown, Verdict(Choice.RIGHT, person(store, "anna"), comment=SECRET, reasons=(SECRET,)))])
    with store.write() as connection:
        raise_flag(connection, person(store, "anna"), FlagReason.OTHER, SECRET, comparison=shown)
    before = store.counts()
    gone = forget(store, "anna")
    left = everything(store)
    assert SECRET not in left and "anna" not in left and "'u1'" not in left and ":u1" not in left
    assert store.counts() == before, "events stay"
    assert [v.choice for c in store.comparisons() for v in c.verdicts] == [Choice.LEFT, Choice.RIGHT]
    assert "of all" in left and (gone.conversations, gone.users) == (1, 2)
    assert {SECRET, f"{SECRET} 0", f"{SECRET} left", f"{SECRET} c", f"{SECRET} r"} <= gone.texts
    assert SECRET not in repr(gone)
    assert people.holder(session, TokenUse.SESSION) is None and people.check("anna", "correct horse") is None
    with store.read() as connection:
        assert set(gone.comparisons) <= held_back(connection), "and nobody is asked about what is gone"


def test_a_request_that_began_before_brings_nobody_back(store: Store, people: Accounts) -> None:
    """Whom it lets in was looked up a second ago, and what is answered may have taken minutes."""
    anna, user = person(store, "anna"), person(store, "anna", "u2")
    prompt, sides = (Turn(Role.USER, "of all"),), (Response("a", "x"), Response("b", "x"))
    [shown] = store.add_comparisons([Comparison(prompt, *sides, AskedHow.RANDOM)])
    store.add_verdicts([(shown, Verdict(Choice.TIE, anna))])
    sent = Comparison((Turn(Role.USER, SECRET),), *sides, AskedHow.API)

    def show() -> None:
        with store.write() as connection:
            views.show(anna, Draw(shown, DrawnHow.RANDOM, 1.0, False, 1), timedelta(1), connection)

    acts: list[Callable[[], object]] = [
        show,
        lambda: Chats(store).begin(anna),
        lambda: store.add_verdicts([(shown, Verdict(Choice.LEFT, user))]),
        lambda: Programs(store).open(requester(anna.account), sent),
        lambda: Programs(store).add(requester(anna.account), None, "", replace(sent, verdicts=())),
    ]
    forget(store, "anna")
    before = store.counts()
    for act in acts:
        with pytest.raises(MannersError, match="this account was disabled meanwhile"):
            act()
    assert store.counts() == before
    assert "anna" not in everything(store) and SECRET not in everything(store)


def test_a_request_that_is_being_written_is_waited_for(store: Store, people: Accounts) -> None:
    with ThreadPoolExecutor(1) as thread:
        with store.write() as connection:
            annotator_id(connection, person(store, "anna"))
            gone = thread.submit(forget, store, "anna")
            time.sleep(0.3)
        assert gone.result(30).users == 1
    assert "anna" not in everything(store)


def test_what_others_brought_in_too_stays_theirs(store: Store, people: Accounts) -> None:
    for name in ("anna", "ben"):
        by_program(store, name, "shared")
    by_program(store, "anna", "hers")
    by_program(store, "anna", "in a file")
    store.add_prompts([(Turn(Role.USER, "in a file prompt"),)], PromptUse.TRAIN, "prompts.txt")
    by_program(store, "anna", "imported")
    sides = Response("eins", "x"), Response("zwei", "x")
    store.merge_comparisons([Comparison((Turn(Role.USER, "imported prompt"),), *sides, AskedHow.IMPORTED)])
    by_program(store, "anna", "said")
    chat(store, "ben", "said prompt")
    forget(store, "anna")
    left = everything(store)
    assert "hers" not in left
    for kept in ("shared prompt", "shared left", "in a file prompt", "imported prompt", "eins", "said prompt"):
        assert kept in left, kept
    for deleted in ("in a file left", "imported left", "said left"):
        assert deleted not in left, deleted
    forget(store, "ben")
    assert "shared" not in everything(store) and "said" not in everything(store)


def test_names_that_begin_alike_and_namesakes_in_files_are_other_people(store: Store, people: Accounts) -> None:
    people.add("annabel", AccountRole.ANNOTATOR)
    people.add("ann", AccountRole.ANNOTATOR)
    for name in ("anna", "annabel", "ann"):
        by_program(store, name, f"of {name}.")
    for name in ("ann", "ann:u1"):  # whom a file calls so
        verdict = Verdict(Choice.LEFT, Annotator(name, AnnotatorKind.HUMAN), comment=f"{name} in a file")
        sides = Response("eins", "x"), Response("zwei", "x")
        prompt = (Turn(Role.USER, f"for {name}"),)
        store.merge_comparisons([Comparison(prompt, *sides, AskedHow.IMPORTED, verdicts=(verdict,))])
    assert forget(store, "ann").users == 1
    left = everything(store)
    assert "of ann." not in left and "of anna." in left and "of annabel." in left and "anna:u1" in left
    assert "ann in a file" in left and "ann:u1 in a file" in left


def test_nobody_takes_the_name_that_somebody_will_have_who_is_forgotten(store: Store, people: Accounts) -> None:
    anna = person(store, "anna").account
    for name in (f"[forgotten {anna}]", f"Forgotten {anna}"):
        with pytest.raises(MannersError, match="is reserved"):
            people.add(name, AccountRole.ANNOTATOR)
    people.add("[forgotten me]", AccountRole.ANNOTATOR)
    assert forgotten(store) == []
    assert forget(store, "anna").account == anna
    assert [key.split()[0] for key in forgotten(store)] == [str(anna)], "and whoever is only called so is not"


def test_nothing_is_remarked_on_what_is_gone(store: Store, people: Accounts) -> None:
    """It was on somebody's screen when it was deleted: what they chose counts, and what they wrote may say it again."""
    key, ben = chat(store, "anna", "some words"), person(store, "ben")
    [asked] = store.comparisons()
    assert asked.id is not None
    with store.write() as connection:
        view = views.show(ben, Draw(asked.id, DrawnHow.RANDOM, 1.0, False), timedelta(minutes=1), connection)
    assert view is not None
    Chats(store).delete(person(store, "anna"), key)
    with store.write() as connection:
        views.answer(ben, views.Given(view.view, Choice.LEFT, None, (SECRET,), SECRET), connection)
        views.flag(ben, view.view, FlagReason.OTHER, SECRET, connection)
    assert SECRET not in everything(store)
    assert [verdict.choice for verdict in store.comparisons()[0].verdicts] == [Choice.LEFT]


def test_nor_by_another_user_of_the_program(store: Store, people: Accounts) -> None:
    programs, account = Programs(store), requester(person(store, "anna").account)
    sides = Response("one", "gpt"), Response("other", "gpt")
    pair = programs.open(account, Comparison((Turn(Role.USER, "some words"),), *sides, AskedHow.API))
    programs.judge(account, pair, Verdict(Choice.LEFT, person(store, "anna", "zed")))
    forget(store, "anna", "zed")
    programs.judge(account, pair, Verdict(Choice.RIGHT, person(store, "anna", "yve"), comment=SECRET))
    assert SECRET not in everything(store)
    assert [verdict.choice for verdict in store.comparisons()[0].verdicts] == [Choice.LEFT, Choice.RIGHT]


def file_of(*prompts: str) -> list[Comparison]:
    """Comparisons as a file brings them, more of them than are added at once."""
    sides = Response("eins", "x"), Response("zwei", "x")
    texts = [*prompts, *(f"question {number}" for number in range(staging.AT_ONCE + 100))]
    return [Comparison((Turn(Role.USER, text),), *sides, AskedHow.IMPORTED) for text in texts]


def test_an_import_under_way_that_holds_the_words_is_thrown_away(store: Store, people: Accounts) -> None:
    by_program(store, "anna", SECRET)
    before = store.counts().comparisons

    def source() -> Iterator[Comparison]:
        yield from file_of(f"{SECRET} prompt")
        forget(store, "anna")
        yield from file_of()

    with pytest.raises(MannersError, match="forgotten meanwhile"):
        store.merge_comparisons(source())
    assert SECRET not in everything(store) and store.counts().comparisons == before
    with store.read() as connection:
        assert not connection.execute(select(StagedRow)).all() and not connection.execute(select(ImportRow)).all()


def test_a_slice_that_is_on_its_way_is_looked_at_too(store: Store) -> None:
    key = staging._stage(store.write, file_of())

    def throw() -> int:
        with store.write() as connection:
            return staging.throw_away(connection, [SECRET])

    with ThreadPoolExecutor(1) as thread:
        with store.write() as connection:
            staging._touch(connection, key)
            connection.execute(insert(StagedRow), {"import_id": key, "content": json.dumps(SECRET, ensure_ascii=False)})
            thrown = thread.submit(throw)
            time.sleep(0.3)
        assert thrown.result(30) == 1
    assert SECRET not in everything(store)


def test_an_import_that_has_decided_is_finished_first_and_what_its_file_says_stays(
    store: Store, people: Accounts
) -> None:
    by_program(store, "anna", "in both")
    by_program(store, "anna", SECRET)
    comparisons = file_of("in both prompt")
    key = staging._stage(store.write, comparisons)
    staging._decide(store.write, key, lambda _: True)  # as whoever was killed then
    forget(store, "anna")
    left = everything(store)
    assert "in both prompt" in left and "in both left" not in left and SECRET not in left
    assert sum(one.asked_how is AskedHow.IMPORTED for one in store.comparisons()) == len(comparisons)


def test_one_user_of_a_program_is_forgotten_and_the_program_goes_on(store: Store, people: Accounts) -> None:
    by_program(store, "anna", SECRET, "zed", "k1")
    by_program(store, "anna", "hello", "yve", "k2")
    gone = forget(store, "anna", "zed")
    left = everything(store)
    assert SECRET not in left and "zed" not in left and "hello left" in left and "anna:yve" in left
    assert gone.users == 1 and people.check("anna", "correct horse") is not None
    with pytest.raises(OtherContent):  # what was sent before does not come back under its key
        by_program(store, "anna", SECRET, "zed", "k1")
    with pytest.raises(MannersError, match="no user nobody of anna"):
        forget(store, "anna", "nobody")


def opened(store: Store, words: str, user: str | None) -> str:
    """A pair as `X-Ask-Preference` opens it, that nobody has judged yet."""
    sides = Response(f"{words} left", "gpt"), Response(f"{words} right", "gpt")
    asked = Comparison((Turn(Role.USER, f"{words} prompt"),), *sides, AskedHow.API)
    return Programs(store).open(requester(person(store, "anna").account), asked, user)


def test_what_a_user_was_asked_and_did_not_judge_goes_with_them_and_what_is_of_nobody_is_counted(
    store: Store, people: Accounts
) -> None:
    opened(store, SECRET, "zed.7")
    pair = opened(store, f"{SECRET}, once more", "zed.7")
    Programs(store).judge(requester(person(store, "anna").account), pair, Verdict(Choice.TIE, person(store, "anna")))
    for words, user in (("hello", "yve"), ("whose", None), ("whose too", None)):
        opened(store, words, user)
    judged = opened(store, "answered", None)
    by_yve = Verdict(Choice.LEFT, person(store, "anna", "yve"))
    Programs(store).judge(requester(person(store, "anna").account), judged, by_yve)
    gone = forget(store, "anna", "zed.7")
    left = everything(store)
    assert SECRET not in left and "zed.7" not in left
    assert all(f"{words} left" in left for words in ("hello", "whose", "whose too", "answered"))
    assert (len(gone.comparisons), gone.unnamed) == (2, 2)
    with pytest.raises(MannersError, match=r"no user zed\.7 of anna"):
        forget(store, "anna", "zed.7")
    assert forget(store, "anna", "yve").unnamed == 2 and "hello" not in everything(store)
    assert forget(store, "anna").unnamed == 0 and "whose" not in everything(store)


def test_with_an_account_the_names_go_that_its_programs_gave(store: Store, people: Accounts) -> None:
    opened(store, SECRET, "zed.7")
    forget(store, "anna")
    assert SECRET not in everything(store) and "zed.7" not in everything(store)


def test_somebody_stays_owner_and_strangers_are_named(store: Store, people: Accounts) -> None:
    with pytest.raises(MannersError, match="olga is the only owner"):
        forget(store, "olga")
    with pytest.raises(MannersError, match="there is no account zoe"):
        forget(store, "zoe")
    assert people.check("olga", "correct horse") is not None


def test_who_was_disabled_can_be_forgotten_and_twice_is_once(store: Store, people: Accounts) -> None:
    people.disable("anna")
    number = forget(store, "anna").account
    with pytest.raises(MannersError, match="no account anna"):
        forget(store, "anna")
    again = forget(store, f"[forgotten {number}]")
    assert (again.account, again.conversations, again.texts) == (number, 0, frozenset())


def test_a_conversation_takes_reasons_along(store: Store) -> None:
    key = chat(store, "anna", SECRET)
    store.add_verdicts([(1, Verdict(Choice.LEFT, person(store, "anna"), reasons=(SECRET, "clear"), comment=SECRET))])
    deleted = Chats(store).delete(person(store, "anna"), key)
    assert SECRET not in everything(store) and {SECRET, "clear"} <= deleted.texts
    assert [v.reasons for c in store.comparisons() for v in c.verdicts] == [()]


def test_reasons_can_be_blanked_and_not_changed(store: Store) -> None:
    by_program(store, "anna", "xy")
    for values in ({"reasons": ["other"]}, {"choice": "right"}, {"seconds": 2.0}, {"comment": "other"}):
        with pytest.raises(DBAPIError, match="append-only"), store.write() as connection:
            connection.execute(update(VerdictRow).values(values))
    with store.write() as connection:
        connection.execute(update(VerdictRow).values(reasons=[]))
    assert "xy r'" not in everything(store)


# The log


def test_the_log_only_grows(store: Store, people: Accounts) -> None:
    audit.record(store, Deed(Event.SIGNED_IN, _number(store, "anna"), "192.0.2.7"))
    for statement in (
        "UPDATE audit SET event = 'x'", "DELETE FROM audit", "UPDATE audit SET address = '' WHERE id = 1",
    ):  # fmt: skip
        with pytest.raises(DBAPIError, match="append-only"), store.write() as connection:
            connection.execute(text(statement))
    with pytest.raises(DBAPIError), store.write() as connection:
        connection.execute(insert(AuditRow).prefix_with("OR REPLACE", dialect="sqlite"), _line(1))
    assert [(e.event, e.name, e.address) for e in audit.entries(store)] == [("signed_in", "anna", "192.0.2.7")]


def _number(store: Store, name: str) -> int | None:
    return person(store, name).account


def _line(number: int) -> dict[str, Any]:
    from datetime import UTC, datetime

    return {"id": number, "event": "x", "address": "", "about": "", "created_at": datetime.now(UTC)}


@pytest.mark.parametrize("about", [SECRET, "account Zoë", "account 3\n", "a b c", "version ../x", "key 1; words", "X"])
def test_the_log_takes_no_words(store: Store, about: str) -> None:
    with pytest.raises(ValueError, match="no words"):
        audit.record(store, Deed(Event.EXPORTED, about=about))
    assert audit.count(store) == 0


def test_forgetting_leaves_the_log_as_it_is(store: Store, people: Accounts) -> None:
    for deed in (
        Deed(Event.SIGNED_IN, _number(store, "anna"), "2001:db8::1"),
        Deed(Event.ROLE_SET, _number(store, "olga"), on="anna"),
        Deed(Event.SIGN_IN_FAILED, None, f"{SECRET}"),
        Deed(Event.PROMOTED, _number(store, "olga"), about="version policy-1"),
    ):
        audit.record(store, deed)
    before = audit.entries(store)
    number = forget(store, "anna", by=_number(store, "olga")).account
    after = audit.entries(store)
    assert [(e.number, e.event, e.account, e.about) for e in after[1:]] == [
        (e.number, e.event, e.account, e.about) for e in before
    ]
    assert (after[0].event, after[0].name, after[0].about) == ("account_forgotten", "olga", f"account {number}")
    assert after[-1].name == f"[forgotten {number}]" and before[-1].name == "anna"
    assert before[1].address == "" and before[2].about == f"account {number}"


def test_other_settings_are_on_record_once(store: Store) -> None:
    for digest in ("a1", "a1", "b2", "b2", "a1"):
        audit.settings_changed(store, digest)
    assert [entry.about for entry in audit.entries(store)] == ["settings a1", "settings b2", "settings a1"]


# Traces


def grown(folder: Path) -> Store:
    """A store whose pages were divided often, with a secret in every text; all of it deleted."""
    store = Store.create(folder / "store.db")
    for at in range(60):
        chat(store, "anna", f"{SECRET} {at} " + "x" * (1 + 1037 * at % 9000))
    chats = Chats(store)
    for one in chats.all(person(store, "anna")):
        chats.delete(person(store, "anna"), one.key)
    return store


def found(folder: Path) -> dict[str, int]:
    """How often the secret stands in which file."""
    counts = {file.name: file.read_bytes().count(SECRET.encode()) for file in folder.glob("store.db*")}
    return {name: count for name, count in counts.items() if count}


def test_no_trace_of_what_was_deleted_is_left_in_the_file(tmp_path: Path) -> None:
    with closing(grown(tmp_path)) as store:
        assert found(tmp_path), "or this test shows nothing"
        assert store.clear_traces()
        assert not found(tmp_path)
        assert store.is_small and not traces.has_traces(store._engine)
        with store.read() as connection:
            assert connection.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"
    assert not found(tmp_path)


def test_the_duty_outlives_the_process_and_waits_for_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "PATIENCE_SECONDS", 0.05)
    store = Store.create(tmp_path / "store.db")
    key = chat(store, "anna", SECRET)
    with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM prompts").fetchone()
        Chats(store).delete(person(store, "anna"), key)
        assert not store.clear_traces(), "somebody reads what was before"
        store.close()
        with closing(Store.open(tmp_path / "store.db")) as again:
            assert traces.has_traces(again._engine)
            reader.execute("COMMIT")
            assert again.clear_traces() and not traces.has_traces(again._engine)
    assert not found(tmp_path)


@pytest.mark.long
def test_others_wait_less_than_a_second_while_a_small_file_is_written_anew(tmp_path: Path) -> None:
    """Of the largest size at which it is done on the page; they wait for the lock, and read meanwhile."""
    with closing(Store.create(tmp_path / "store.db")) as store:
        words = iter(range(10**9))
        while store.is_small:
            texts = (f"{next(words)} " + "some words and more " * 50 for _ in range(500))
            store.add_prompts([(Turn(Role.USER, one),) for one in texts], PromptUse.TRAIN, "x")
        clearing = threading.Thread(target=lambda: store.clear_traces(always=True))
        [shown] = store.add_comparisons(
            [Comparison((Turn(Role.USER, "q"),), Response("a", "x"), Response("b", "x"), AskedHow.RANDOM)]
        )
        clearing.start()
        waits, reads = [0.0], [0.0]
        while clearing.is_alive():
            begun = time.monotonic()
            store.counts()
            reads.append(time.monotonic() - begun)
            store.add_verdicts([(shown, Verdict(Choice.TIE, Annotator("bo", AnnotatorKind.HUMAN)))])
            waits.append(time.monotonic() - begun)
        clearing.join()
        print(f"longest wait: to write {max(waits):.2f} s, to read {max(reads):.2f} s")
        assert max(waits) < 1 and max(reads) < 0.5


def test_nothing_is_written_anew_where_nothing_was_deleted(tmp_path: Path) -> None:
    with closing(Store.create(tmp_path / "store.db")) as store:
        chat(store, "anna", "hello")
        before = (tmp_path / "store.db").stat().st_mtime_ns
        assert store.clear_traces() and (tmp_path / "store.db").stat().st_mtime_ns == before


def test_on_postgresql_tables_and_statistics_are_without_them_and_the_log_of_writes_is_not(server: Any) -> None:
    """What a client can reach; `docs/security.md` says what it cannot."""
    log = server.folder / "log"
    logged = log.stat().st_size if log.is_file() else 0  # other tests' rows were refused before
    with server.database() as url, closing(Store.create(url)) as store:
        Accounts(store).add("olga", AccountRole.OWNER)
        Accounts(store).add("anna", AccountRole.ANNOTATOR)
        for at in range(30):
            by_program(store, "anna", f"{SECRET} {at}" if at else SECRET, f"u{at}")
        with store.read() as connection:
            connection.execute(text("ANALYZE"))
        forget(store, "anna")
        assert store.clear_traces(always=True)
        server.execute("CHECKPOINT")
        holding = {
            file.relative_to(server.folder / "data").parts[0]
            for file in (server.folder / "data").rglob("*")
            if file.is_file() and SECRET.encode() in file.read_bytes()
        }
        assert holding <= {"pg_wal"}
        assert not log.is_file() or SECRET.encode() not in log.read_bytes()[logged:]


def test_a_server_with_deleted_words_shows_them_to_nobody(store: Store, people: Accounts) -> None:
    number = by_program(store, "anna", SECRET)
    forget(store, "anna")
    with store.read() as connection:
        assert held_back(connection) == {number}
    [comparison] = store.comparisons()
    assert comparison.prompt == (Turn(Role.USER, DELETED),) and comparison.left.text == DELETED
