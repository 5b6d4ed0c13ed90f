"""The store keeps what was said, in order, and refuses to forget it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import event, insert, inspect, text
from sqlalchemy.exc import DatabaseError

from manners.errors import MannersError
from manners.reward.labelled import LeftOut
from manners.reward.verdicts import label
from manners.store import Outcome, Round, Store, VersionRecord
from manners.store.flags import FlagReason, decide, raise_flag, undecided
from manners.store.schema import connect, to_url
from manners.store.tables import Table, WithdrawalRow
from manners.store.verdicts import insert_verdicts
from manners.types import (
    Annotator,
    AnnotatorKind,
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
    VersionKind,
    latest_verdicts,
)

ANN = Annotator("Ann", AnnotatorKind.HUMAN)
MACHINE_ANN = Annotator("Ann", AnnotatorKind.AI)
PROMPT = (Turn(Role.SYSTEM, "Be kind."), Turn(Role.USER, "Grüß dich,\n\n„wie“ geht's?"))
NOON = datetime(2024, 5, 31, 12, tzinfo=UTC)
FULL = Comparison(
    prompt=PROMPT,
    left=Response("Gut 🙂", "v1", FinishReason.STOP, Sampling(0.7, 64, 3)),
    right=Response("", "v1", FinishReason.STOP, Sampling(0.7, 64, 4)),
    asked_how=AskedHow.RANDOM,
    ask_probability=0.25,
    asked_by="reward-1",
    verdicts=(
        Verdict(Choice.LEFT, ANN, strength=3, created_at=NOON, seconds=4.5, reasons=("kind", "short"), comment="ok\n"),
        Verdict(Choice.TIE, MACHINE_ANN, created_at=NOON),
    ),
)

EXPECTED = {
    "accounts": "id name role password_hash created_at disabled_at",
    "alembic_version": "version_num",
    "annotators": "id name kind account_id",
    "audit": "id event account_id address about created_at",
    "bets": "id comparison_id kind stake read created_at upto",
    "comparisons": "id left_id right_id asked_how ask_probability created_at asked_by",
    "conversations": "id key annotator_id consented_at created_at deleted_at",
    "flags": "id comparison_id response_id annotator_id reason note created_at upheld resolved_at",
    "gold": "id comparison_id choice created_at",
    "imports": "id decided touched_at comparisons verdicts duplicates",
    "messages": "id conversation_id text response_id comparison_id created_at",
    "prompts": "id digest turns use source created_at",
    "requests": "id account key content comparison_id created_at user",
    "responses": "id prompt_id digest text author finish_reason sampling created_at",
    "rounds": "id policy_id reward_id outcome metrics created_at",
    "staged": "id import_id content",
    "thumbs": "id response_id annotator_id value created_at",
    "tokens": "id digest use account_id role label created_at expires_at ended_at scopes issuer_id",
    "verdicts": "id comparison_id annotator_id choice strength seconds reasons comment created_at exchanged view_id",
    "versions": "id name kind path parent_id metrics watermark created_at",
    "views": "id comparison_id annotator_id exchanged drawn probability created_at expires_at pool token",
    "withdrawals": "id verdict_id created_at",
}
"""Tables and their columns, in order; another schema needs another revision."""


def asked(prompt: str) -> tuple[Turn, ...]:
    return (Turn(Role.USER, prompt),)


def test_schema_is_the_expected_one_and_the_one_of_the_tables(database: str) -> None:
    Store.create(database).close()
    engine = connect(to_url(database))
    with engine.connect() as connection:
        inspector = inspect(connection)
        found = {
            table: " ".join(column["name"] for column in inspector.get_columns(table))
            for table in inspector.get_table_names()
        }
        differences = compare_metadata(MigrationContext.configure(connection), Table.metadata)
    engine.dispose()
    assert found == EXPECTED
    assert differences == []


def test_a_comparison_comes_back_as_it_was(database: str) -> None:
    store = Store.create(database)
    ids = store.add_comparisons([FULL, replace(FULL, verdicts=())])
    store.close()
    reopened = Store.open(database)
    assert reopened.comparisons() == [replace(FULL, id=ids[0]), replace(FULL, id=ids[1], verdicts=())]
    assert reopened.comparisons(AskedHow.RANDOM) == reopened.comparisons()
    assert reopened.comparisons(AskedHow.IMPORTED) == []
    counts = reopened.counts()
    assert (counts.comparisons, counts.responses, sum(counts.prompts.values())) == (2, 2, 1)
    assert counts.verdicts == {AnnotatorKind.HUMAN: 1, AnnotatorKind.AI: 1, AnnotatorKind.SIMULATED: 0}
    reopened.close()


def test_times_are_kept_in_utc(store: Store) -> None:
    [key] = store.add_comparisons([replace(FULL, verdicts=())])
    elsewhere = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    store.add_verdicts([(key, Verdict(Choice.SKIP, ANN, created_at=elsewhere)), (key, Verdict(Choice.TIE, ANN))])
    given, now = (verdict.created_at for verdict in store.comparisons()[0].verdicts)
    assert given == NOON and given.utcoffset() == timedelta(0)
    assert now is not None and abs(now - datetime.now(UTC)) < timedelta(minutes=1)


def test_more_rows_than_fit_a_statement_keep_their_order(store: Store) -> None:
    many = [replace(FULL, left=Response(str(i), "v1"), verdicts=()) for i in range(1201)]
    ids = store.add_comparisons(many)
    assert ids == sorted(ids)
    assert [comparison.left.text for comparison in store.comparisons()] == [str(i) for i in range(1201)]
    store.add_verdicts([(key, Verdict(Choice.LEFT, ANN)) for key in reversed(ids)])
    assert store.watermark() == store.counts().verdicts[AnnotatorKind.HUMAN] == 1201


def test_a_later_verdict_replaces_the_earlier_and_history_stays(store: Store) -> None:
    [key] = store.add_comparisons([replace(FULL, verdicts=())])
    for choice, annotator in [(Choice.LEFT, ANN), (Choice.TIE, MACHINE_ANN), (Choice.RIGHT, ANN)]:
        store.add_verdicts([(key, Verdict(choice, annotator))])
    [comparison] = store.comparisons()
    assert [verdict.choice for verdict in comparison.verdicts] == [Choice.LEFT, Choice.TIE, Choice.RIGHT]
    counting = [(verdict.annotator, verdict.choice) for verdict in latest_verdicts(comparison.verdicts)]
    assert counting == [(ANN, Choice.RIGHT), (MACHINE_ANN, Choice.TIE)]


@pytest.mark.parametrize("hours", [-24 * 365 * 50, -1, 0, 1, 23])
def test_the_latest_verdict_is_the_one_that_came_last_whatever_its_time_says(store: Store, hours: int) -> None:
    first = Verdict(Choice.LEFT, ANN, created_at=NOON)
    last = Verdict(Choice.RIGHT, ANN, created_at=NOON + timedelta(hours=hours))
    other = Verdict(Choice.TIE, MACHINE_ANN, created_at=NOON)
    assert latest_verdicts([first, other, last]) == (last, other)
    [key] = store.add_comparisons([replace(FULL, verdicts=(first, other))])
    store.add_verdicts([(key, last)])
    [comparison] = store.comparisons()
    assert latest_verdicts(comparison.verdicts) == (last, other)
    assert [v.created_at for v in comparison.verdicts] == [NOON, NOON, last.created_at], "what they say is kept"
    # Verdicts of several comparisons on one pair come together in the order of these, and keep that of arrival.
    assert latest_verdicts(reversed(comparison.verdicts)) == (last, other)


def test_a_clock_that_goes_back_changes_no_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    [key] = store.add_comparisons([replace(FULL, verdicts=())])
    for choice, now in ((Choice.LEFT, NOON), (Choice.RIGHT, NOON - timedelta(days=400))):
        with monkeypatch.context() as patch:
            patch.setattr("manners.store.verdicts.datetime", SimpleNamespace(now=lambda _, now=now: now))
            store.add_verdicts([(key, Verdict(choice, ANN))])
    [comparison] = store.comparisons()
    assert [v.created_at for v in comparison.verdicts] == [NOON, NOON - timedelta(days=400)]
    assert [verdict.choice for verdict in latest_verdicts(comparison.verdicts)] == [Choice.RIGHT]


def test_a_cut_stays_what_it_is_while_a_verdict_with_a_lower_number_is_on_its_way(store: Store) -> None:
    keys = store.add_comparisons([replace(FULL, verdicts=()), replace(FULL, verdicts=())])
    slow = Verdict(Choice.LEFT, ANN)
    if store._engine.dialect.name == "sqlite":
        store.add_verdicts([(key, slow) for key in keys])
        assert len(store.comparisons(as_of=store.watermark())[1].verdicts) == 1, "one writer at a time"
        return
    store.add_verdicts([(keys[0], slow)])
    with ThreadPoolExecutor(1) as pool:
        with store.write() as connection:
            insert_verdicts(connection, [(keys[0], slow)])
            store.add_verdicts([(keys[1], slow)])
            asked = pool.submit(store.watermark)
            with pytest.raises(TimeoutError):
                asked.result(timeout=0.3)
        cut = asked.result(timeout=60)
    store.add_verdicts([(keys[0], slow)])
    assert cut == 3 and [len(one.verdicts) for one in store.comparisons(as_of=cut)] == [2, 1]


def report(store: Store, upheld: bool, **about: int) -> None:
    """Report a comparison or a response, and decide about it."""
    with store.write() as connection:
        raise_flag(connection, ANN, FlagReason.ILLEGAL, "", **about)
    [flag] = undecided(store)
    decide(store, flag.id, upheld)


@pytest.mark.parametrize("about", ["comparison", "response"])
def test_what_a_reviewer_keeps_away_is_marked_and_not_learnt_from(store: Store, about: str) -> None:
    good = replace(FULL, right=replace(FULL.right, text="Na ja"), verdicts=(Verdict(Choice.LEFT, ANN),))
    ids = store.add_comparisons([good, replace(good, prompt=asked("Hello")), replace(good, prompt=asked("Hi"))])
    report(store, False, **{about: ids[0]})
    assert label(store.comparisons()).left_out == {}, "a report that was dismissed changes nothing"
    # Each comparison brought two responses of its own, numbered in the order of the comparisons.
    report(store, True, **{about: ids[1] if about == "comparison" else 2 * ids[1]})
    assert [comparison.reported for comparison in store.comparisons()] == [False, True, False]
    labelled = label(store.comparisons())
    assert labelled.left_out == {LeftOut.REPORTED: 1}
    assert [pair.comparison_id for pair in labelled.pairs] == [ids[0], ids[2]]


def test_what_is_read_is_one_moment_whatever_is_written_meanwhile(store: Store) -> None:
    store.add_comparisons([FULL])
    other = Store(connect(store.url), "another")
    later = iter([replace(FULL, prompt=(Turn(Role.USER, "Another"),))])

    def meanwhile(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "FROM prompts" in statement:
            other.add_comparisons(list(later))

    event.listen(store._engine, "after_cursor_execute", meanwhile)
    try:
        assert [found.prompt for found in store.comparisons()] == [PROMPT]
    finally:
        event.remove(store._engine, "after_cursor_execute", meanwhile)
        other.close()
    assert next(later, None) is None and len(store.comparisons()) == 2


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE verdicts SET choice = 'right'",
        "UPDATE verdicts SET exchanged = true",
        "UPDATE verdicts SET comment = 'something else'",
        "UPDATE verdicts SET comment = '', choice = 'right'",
        "DELETE FROM verdicts WHERE id = 1",
        "UPDATE comparisons SET left_id = right_id, right_id = left_id",
        "DELETE FROM comparisons",
    ],
)
def test_verdicts_and_comparisons_are_append_only(database: str, statement: str) -> None:
    store = Store.create(database)
    store.add_comparisons([FULL])
    before = store.comparisons()
    engine = connect(to_url(database))
    with pytest.raises(DatabaseError, match="append-only"), engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
    assert store.comparisons() == before
    store.close()


def test_a_comment_can_be_blanked(database: str) -> None:
    store = Store.create(database)
    store.add_comparisons([FULL])
    with store.write() as connection:
        connection.execute(text("UPDATE verdicts SET comment = ''"))
    [comparison] = store.comparisons()
    store.close()
    assert comparison.verdicts == tuple(replace(verdict, comment="") for verdict in FULL.verdicts)


def test_a_verdict_that_was_taken_back_counts_for_nothing_and_stays(database: str) -> None:
    store = Store.create(database)
    store.add_comparisons([FULL])
    with store.write() as connection:
        connection.execute(insert(WithdrawalRow), {"verdict_id": 1, "created_at": NOON})
    [comparison] = store.comparisons()
    assert comparison.verdicts == FULL.verdicts[1:]
    assert sum(store.counts().verdicts.values()) == 2
    store.close()


def test_insert_or_replace_overwrites_nothing(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "manners.db")
    store.add_comparisons([FULL])
    store.close()
    engine = connect(to_url(tmp_path / "manners.db"))
    with pytest.raises(DatabaseError, match="append-only"), engine.begin() as connection:
        connection.execute(text("INSERT OR REPLACE INTO verdicts SELECT * FROM verdicts"))
    engine.dispose()


def test_unknown_comparison_is_refused_and_nothing_is_stored(store: Store) -> None:
    [key] = store.add_comparisons([replace(FULL, verdicts=())])
    with pytest.raises(MannersError, match="no comparison 999"):
        store.add_verdicts([(key, Verdict(Choice.LEFT, ANN)), (999, Verdict(Choice.LEFT, ANN))])
    assert store.watermark() == 0


def test_a_prompt_has_one_id_and_one_use(store: Store) -> None:
    one, two = store.add_prompts([PROMPT, asked("Hello")], PromptUse.EVALUATE, "mine")
    assert store.add_prompts([asked("Hello"), PROMPT], PromptUse.EVALUATE, "again") == [two, one]
    with pytest.raises(MannersError, match=r"'Hello' is in .* for `evaluate`"):
        store.add_prompts([asked("New"), asked("Hello")], PromptUse.TRAIN, "other")
    assert [(prompt.id, prompt.dialogue) for prompt in store.prompts(PromptUse.EVALUATE)] == [
        (one, PROMPT),
        (two, asked("Hello")),
    ]
    assert store.prompts(PromptUse.TRAIN) == []
    store.add_comparisons([FULL, replace(FULL, prompt=asked("New"))])
    assert [prompt.use for prompt in store.prompts()] == [PromptUse.EVALUATE, PromptUse.EVALUATE, PromptUse.TRAIN]


def test_a_new_prompt_of_an_evaluation_is_not_for_training(store: Store) -> None:
    store.add_comparisons([replace(FULL, asked_how=AskedHow.EVALUATION)])
    assert [prompt.use for prompt in store.prompts()] == [PromptUse.EVALUATE]


def test_an_error_in_the_middle_leaves_nothing_behind(store: Store) -> None:
    def broken() -> Iterator[Comparison]:
        yield from [replace(FULL, left=Response(str(i), "v1")) for i in range(700)]
        raise RuntimeError("power cut")

    for add in (store.add_comparisons, store.merge_comparisons):
        with pytest.raises(RuntimeError, match="power cut"):
            add(broken())
    counts = store.counts()
    assert (counts.responses, counts.comparisons, sum(counts.prompts.values())) == (0, 0, 0)


def test_merging_knows_what_is_there(database: str) -> None:
    store = Store.create(database)
    assert store.merge_comparisons([FULL, FULL]).duplicates == 2
    again = store.merge_comparisons(
        [
            FULL,
            replace(FULL, verdicts=()),
            replace(FULL, verdicts=(replace(FULL.verdicts[0], created_at=None),)),
            replace(FULL, verdicts=(replace(FULL.verdicts[0], created_at=NOON + timedelta(days=1)),)),
            replace(FULL, verdicts=(replace(FULL.verdicts[0], annotator=Annotator("Bo", AnnotatorKind.HUMAN)),)),
            replace(FULL, left=FULL.right, right=FULL.left),
        ]
    )
    assert (again.comparisons, again.verdicts, again.duplicates) == (1, 4, 4)
    assert [len(comparison.verdicts) for comparison in store.comparisons()] == [4, 2]
    store.close()


def test_versions_and_rounds(store: Store) -> None:
    first = VersionRecord("v1", VersionKind.POLICY, "versions/v1", metrics={"kl": 0.0}, created_at=NOON)
    reward = VersionRecord("r1", VersionKind.REWARD, "versions/r1", parent="v1", watermark=7, created_at=NOON)
    ids = [store.add_version(first), store.add_version(reward)]
    assert store.versions() == [replace(first, id=ids[0]), replace(reward, id=ids[1])]
    assert [version.name for version in store.versions(VersionKind.REWARD)] == ["r1"]
    with pytest.raises(MannersError, match=r"version v1 in .* already"):
        store.add_version(first)
    with pytest.raises(MannersError, match=r"no version v9"):
        store.add_version(replace(first, name="v2", parent="v9"))
    round_ = Round("v1", "r1", Outcome.REJECTED, {"win_rate": 0.5}, NOON)
    assert store.rounds() == [] and store.add_round(round_) == 1
    assert store.rounds() == [replace(round_, id=1)]
    with pytest.raises(MannersError, match=r"no version v9"):
        store.add_round(replace(round_, reward="v9"))


def test_a_store_of_a_newer_version_is_refused(database: str) -> None:
    Store.create(database).close()
    engine = connect(to_url(database))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(MannersError, match=r"written by a newer version of manners \(revision 9999\); update"):
        Store.open(database)


def test_places_without_a_store_are_refused(tmp_path: Path, write: Callable[[str, bytes], Path]) -> None:
    with pytest.raises(MannersError, match=r"There is no store at"):
        Store.open(tmp_path / "absent.db")
    assert not (tmp_path / "absent.db").exists()
    with pytest.raises(MannersError, match="holds no store"):
        Store.open(write("empty.db", b""))
    with pytest.raises(MannersError, match=r"file is not a database.*; name the SQLite file"):
        Store.open(write("letter.db", b"Dear Sir or Madam, " * 100))
    with pytest.raises(MannersError, match=r"is not supported"):
        Store.open("mysql://localhost/x")
    Store.create(tmp_path / "once.db").close()
    with pytest.raises(MannersError, match="holds a store already"):
        Store.create(tmp_path / "once.db")


def test_a_database_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(MannersError, match="unable to open"):
        Store.create(tmp_path / "folder.db")
