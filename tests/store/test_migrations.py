"""Stores of older versions are brought up to date with all that is in them, or stay as they were."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, MetaData, inspect, select, text
from sqlalchemy.exc import DatabaseError, IntegrityError

from manners.cli import main
from manners.errors import MannersError
from manners.reward.drawing import draw_weight
from manners.store import Outcome, Round, Store, VersionRecord, schema, views
from manners.store.programs import Programs
from manners.store.tables import RequestRow
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Bet,
    Choice,
    Comparison,
    Draw,
    DrawnHow,
    FinishReason,
    PromptUse,
    Response,
    Role,
    Turn,
    Verdict,
    VersionKind,
)
from manners.workspace import Workspace, scratch_folder
from tests.conftest import some

NOON = datetime(2024, 5, 31, 12, tzinfo=UTC)
FIRST: dict[str, list[dict[str, Any]]] = {
    "prompts": [{"digest": "p", "turns": [{"role": "user", "content": "Hi ü"}], "use": "train", "source": "mine"}],
    "responses": [
        {"prompt_id": 1, "digest": f"r{text}", "text": text, "author": "v1", "finish_reason": "stop", "sampling": None}
        for text in "ab"
    ],
    "comparisons": [{"left_id": 2, "right_id": 1, "asked_how": "random", "ask_probability": 0.5}],
    "annotators": [{"name": "Ann", "kind": "human"}],
    "verdicts": [
        {
            "comparison_id": 1,
            "annotator_id": 1,
            "choice": choice,
            "strength": 2,
            "seconds": 1.5,
            "reasons": ["kind"],
            "comment": "",
        }
        for choice in ("left", "right")
    ],
    "versions": [
        {"name": name, "kind": kind, "path": f"models/{name}", "parent_id": None, "metrics": {"x": 1}, "watermark": 1}
        for name, kind in (("policy-1", "policy"), ("reward-1", "reward"))
    ],
    "rounds": [{"policy_id": 1, "reward_id": 2, "outcome": "promoted", "metrics": {}}],
}
"""Rows as revision 0001 kept them."""
ASKED = ("prompts", "responses", "comparisons", "annotators")
"""Tables of which a comparison without a verdict is made."""


def configured(connection: Connection) -> Config:
    """Return what Alembic works by."""
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def upgrade_to(connection: Connection, revision: str) -> None:
    """Make the tables as a revision had them."""
    command.upgrade(configured(connection), revision)


def leave(database: str | Path, revision: str, first: Iterable[str], **more: list[dict[str, Any]]) -> None:
    """Make a store as a revision left it, with the rows of `FIRST` of some tables, and more rows of others."""
    engine = schema.connect(schema.to_url(database))
    with engine.begin() as connection:
        upgrade_to(connection, revision)
        tables = MetaData()
        tables.reflect(connection)
        for name in first:
            dated = [row if name == "annotators" else row | {"created_at": NOON} for row in FIRST[name]]
            connection.execute(tables.tables[name].insert(), dated)
        for name, rows in more.items():
            connection.execute(tables.tables[name].insert(), rows)
    engine.dispose()


@pytest.fixture
def first(database: str) -> str:
    """A store as revision 0001 left it, with data in it."""
    leave(database, "0001", FIRST)
    return database


def check(store: Store) -> None:
    """Everything of revision 0001 is there, and more can be added."""
    ann = Annotator("Ann", AnnotatorKind.HUMAN)
    given = tuple(
        Verdict(choice, ann, strength=2, created_at=NOON, seconds=1.5, reasons=("kind",))
        for choice in (Choice.LEFT, Choice.RIGHT)
    )
    left, right = (Response(text, "v1", FinishReason.STOP) for text in "ba")
    prompt = (Turn(Role.USER, "Hi ü"),)
    assert store.comparisons() == [Comparison(prompt, left, right, AskedHow.RANDOM, 0.5, given, id=1)]
    assert [(prompt.dialogue, prompt.use) for prompt in store.prompts()] == [(prompt, PromptUse.TRAIN)]
    assert store.versions() == [
        VersionRecord(f"{kind}-1", kind, f"models/{kind}-1", metrics={"x": 1}, watermark=1, created_at=NOON, id=number)
        for number, kind in enumerate((VersionKind.POLICY, VersionKind.REWARD), 1)
    ]
    assert store.rounds() == [Round("policy-1", "reward-1", Outcome.PROMOTED, {}, NOON, 1)]
    store.add_verdicts([(1, given[0])])
    assert store.watermark() == 3


def test_the_first_tables_come_up_to_date_with_all_that_is_in_them(first: str) -> None:
    with closing(Store.open(first)) as store:
        check(store)


@pytest.fixture
def next_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that puts one more revision on top, with these lines in its `upgrade`."""
    folder = shutil.copytree(schema.MIGRATIONS, tmp_path / "migrations")

    def add(lines: str) -> None:
        newest = schema.newest_revision()
        head = f'import sqlalchemy as sa\nfrom alembic import op\nrevision = "next"\ndown_revision = "{newest}"\n'
        body = "".join(f"    {line}\n" for line in dedent(lines).strip().splitlines())
        (folder / "versions" / "next.py").write_text(f"{head}def upgrade():\n{body}")
        monkeypatch.setattr(schema, "MIGRATIONS", folder)

    return add


def test_views_of_before_do_not_know_among_how_many_they_were_drawn(database: str) -> None:
    engine = schema.connect(schema.to_url(database))
    with engine.begin() as connection:
        upgrade_to(connection, "0002")
        tables = MetaData()
        tables.reflect(connection)
        for name, rows in FIRST.items():
            if name in ("prompts", "responses", "comparisons", "annotators"):
                dated = [row if name == "annotators" else row | {"created_at": NOON} for row in rows]
                connection.execute(tables.tables[name].insert(), dated)
        view = {"comparison_id": 1, "annotator_id": 1, "exchanged": False, "drawn": "random", "probability": 0.5}
        connection.execute(tables.tables["views"].insert(), view | {"created_at": NOON, "expires_at": NOON})
        said = FIRST["verdicts"][0] | {"view_id": 1, "exchanged": False}
        connection.execute(tables.tables["verdicts"].insert(), said | {"created_at": NOON})
    engine.dispose()
    with closing(Store.open(database)) as store:
        [comparison] = store.comparisons()
        [old] = comparison.verdicts
        assert (old.drawn, old.draw_probability, old.draw_pool) == (DrawnHow.RANDOM, 0.5, None)
        store.add_verdicts([(1, replace(old, choice=Choice.RIGHT, created_at=None, draw_pool=7))])
        assert [verdict.draw_pool for verdict in store.comparisons()[0].verdicts] == [None, 7]


ADD_COLUMN = 'op.add_column("prompts", sa.Column("language", sa.Text(), server_default="en", nullable=False))'


def columns(database: str) -> set[str]:
    """Names of the columns of `prompts`."""
    engine = schema.connect(schema.to_url(database))
    found = {column["name"] for column in inspect(engine).get_columns("prompts")}
    engine.dispose()
    return found


def test_a_revision_is_applied_when_a_store_is_opened(first: str, next_revision: Callable[[str], None]) -> None:
    Store.open(first).close()
    next_revision(ADD_COLUMN)
    with closing(Store.open(first)) as store:
        check(store)
    assert "language" in columns(first)


def test_a_revision_that_fails_changes_nothing(
    first: str, next_revision: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    Store.open(first).close()
    next_revision(f"{ADD_COLUMN}\nraise RuntimeError('power cut')")
    with pytest.raises(RuntimeError, match="power cut"):
        Store.open(first)
    assert "language" not in columns(first)
    monkeypatch.undo()
    with closing(Store.open(first)) as store:
        check(store)


def many(count: int = 60) -> list[dict[str, Any]]:
    """Verdicts of every kind that revision 0001 took."""
    return [
        {
            "comparison_id": 1,
            "annotator_id": 1 + number % 3,
            "choice": list(Choice)[number % len(Choice)].value,
            "strength": (None, 1, 2, 3)[number % 4],
            "seconds": (None, 0.25, 1e6)[number % 3],
            "reasons": [["kind"], [], ["short", "“é 🥖”"]][number % 3],
            "comment": ("", "it's\nso", "ü")[number // 2 % 3],
            "created_at": NOON - timedelta(seconds=number, microseconds=number),  # clocks that go back
        }
        for number in range(count)
    ]


def dump(database: str) -> str:
    """All that is in a database: tables, their columns, triggers and rows, by id."""
    engine = schema.connect(schema.to_url(database))
    tables = MetaData()
    tables.reflect(engine)
    ours = "SELECT sql FROM sqlite_master ORDER BY name"
    if engine.dialect.name == "postgresql":
        ours = "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY tgname"
    found = [repr(inspect(engine).get_columns(table)) for table in sorted(tables.tables)]
    with engine.connect() as connection:
        found.append(repr(connection.execute(text(ours)).all()))
        for name, table in sorted(tables.tables.items()):
            rows = select(table).order_by(*(column for column in table.columns if column.name == "id"))
            found.append(f"{name}: {connection.execute(rows).all()}")
    engine.dispose()
    return "\n".join(found)


@pytest.fixture
def full(database: str) -> str:
    """A store of revision 0001 with rows in each of its tables, and verdicts of every kind."""
    engine = schema.connect(schema.to_url(database))
    with engine.begin() as connection:
        upgrade_to(connection, "0001")
        tables = MetaData()
        tables.reflect(connection)
        assert tables.tables.keys() - {"alembic_version"} == FIRST.keys()
        people: list[dict[str, Any]] = [{"name": "Ann", "kind": kind} for kind in ("human", "ai")] + [
            {"name": "owner", "kind": "human"}
        ]
        for name, rows in (FIRST | {"annotators": people, "verdicts": many()}).items():
            dated = [row if name == "annotators" else {"created_at": NOON} | row for row in rows]
            connection.execute(tables.tables[name].insert(), dated)
    engine.dispose()
    return database


def test_a_workspace_of_the_first_tables_has_the_same_verdicts_one_by_one(
    full: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = full if "://" in full else None
    root = Workspace.create(tmp_path / "ws", server).root
    if server is None:
        shutil.copy(full, root / "store.db")
    with closing(Store.open(server or root / "store.db")) as store:
        [comparison] = store.comparisons()
    who = [Annotator("Ann", AnnotatorKind.HUMAN), Annotator("Ann", AnnotatorKind.AI)]
    who.append(Annotator("owner", AnnotatorKind.HUMAN))
    for number, (row, one) in enumerate(zip(many(), comparison.verdicts, strict=True), 1):
        assert (one.arrived, one.annotator, one.choice) == (number, who[row["annotator_id"] - 1], row["choice"])
        said = (one.strength, one.seconds, list(one.reasons), one.comment, one.created_at)
        assert said == tuple(row[name] for name in ("strength", "seconds", "reasons", "comment", "created_at"))
        assert (one.exchanged, one.drawn, one.draw_probability) == (False, None, None)
    for said_to in (["status"], ["comparisons", "export", str(tmp_path / "out.jsonl")]):
        assert main([*said_to, "--workspace", str(root), "--json"]) == 0
    assert len((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()) == len(many())


@pytest.mark.parametrize("failing", [f"{number:04}" for number in range(2, 1 + int(schema.newest_revision()))])
def test_where_a_revision_fails_the_old_store_is_as_it_was_and_comes_up_to_date_once_it_does_not(
    full: str, failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dump(full)
    folder = shutil.copytree(schema.MIGRATIONS, tmp_path / "failing")
    [file] = (folder / "versions").glob(f"{failing}_*.py")
    cut = "\n_whole = upgrade\ndef upgrade():\n    _whole()\n    raise RuntimeError('power cut')\n"
    file.write_text(file.read_text(encoding="utf-8") + cut, encoding="utf-8")
    monkeypatch.setattr(schema, "MIGRATIONS", folder)
    with pytest.raises(RuntimeError, match="power cut"):
        Store.open(full)
    assert dump(full) == before
    monkeypatch.undo()
    with closing(Store.open(full)) as store:
        assert [len(one.verdicts) for one in store.comparisons()] == [len(many())]
        with store.read() as connection:
            assert schema.current_revision(connection) == schema.newest_revision()


def test_a_verdict_that_waits_for_a_view_of_before_is_taken(database: str) -> None:
    view = {"comparison_id": 1, "annotator_id": 1, "exchanged": True, "drawn": "random", "probability": 0.5}
    leave(database, "0004", ASKED, views=[view | {"created_at": NOON, "expires_at": NOON}])
    ann = Annotator("Ann", AnnotatorKind.HUMAN)
    with closing(Store.open(database)) as store:
        with store.write() as connection:
            assert views.answer(ann, views.Given("1", Choice.LEFT), connection) == (1, Choice.RIGHT)
            shown = views.show(ann, Draw(1, DrawnHow.RANDOM, 0.5, False, 1), timedelta(1), connection)
        assert (
            shown is not None
            and shown.view != "2"
            and [v.choice for v in store.comparisons()[0].verdicts] == [Choice.RIGHT]
        )


def test_bets_of_before_do_not_know_up_to_which_verdict_they_were_placed(database: str) -> None:
    placed = {"comparison_id": 1, "kind": "human", "stake": 0.5, "read": 2, "created_at": NOON}
    leave(database, "0004", ASKED, bets=[placed])
    with closing(Store.open(database)) as store:
        assert store.comparisons()[0].bets == (Bet(AnnotatorKind.HUMAN, 0.5, 2, None),)


def test_of_pairs_of_before_nobody_knows_whose_words_they_hold_and_back_there_of_none(database: str) -> None:
    sent = {"account": "local", "key": "k1", "content": "", "comparison_id": 1, "created_at": NOON}
    leave(database, "0010", ASKED, requests=[sent])
    [known] = asked_for(database)
    assert known == ("k1", None)
    with closing(Store.open(database)) as store:
        [one] = store.comparisons()
        Programs(store).open("local", replace(one, asked_how=AskedHow.API), "u-7")
    assert [user for _, user in asked_for(database)] == [None, "u-7"]
    engine = schema.connect(schema.to_url(database))
    with engine.begin() as connection:
        command.downgrade(configured(connection), "0010")
        assert "user" not in {column["name"] for column in inspect(connection).get_columns("requests")}
    engine.dispose()
    assert [user for _, user in asked_for(database)] == [None, None], "two pairs are there"


def asked_for(database: str) -> list[tuple[str, str | None]]:
    """The key and the user of each request, by id."""
    query = select(RequestRow.key, RequestRow.user).order_by(RequestRow.id)
    with closing(Store.open(database)) as store, store.read() as connection:
        return [(row.key, row.user) for row in connection.execute(query)]


def test_views_of_before_and_what_answers_them_stay_where_what_a_reward_model_chose_may_be_drawn(database: str) -> None:
    """The table is made anew on SQLite: numbers, tokens, verdicts and the ways that were allowed stay."""
    given = {"annotator_id": 1, "exchanged": True, "probability": 0.25, "created_at": NOON, "expires_at": NOON}
    ways = ("repeat", "random", "disagreement", "gold")
    rows = [given | {"comparison_id": 1, "drawn": how, "pool": 4 + i, "token": f"t{i}"} for i, how in enumerate(ways)]
    said = [FIRST["verdicts"][0] | {"view_id": i, "exchanged": False, "created_at": NOON} for i in (2, 4)]
    leave(database, "0009", ASKED, views=rows, verdicts=said)
    ann = Annotator("Ann", AnnotatorKind.HUMAN)
    with closing(Store.open(database)) as store:
        [one] = store.comparisons()
        drawn = [(v.drawn, v.draw_probability, v.draw_pool) for v in one.verdicts]
        assert drawn == [(DrawnHow.RANDOM, 0.25, 5), (DrawnHow.GOLD, 0.25, 7)] and one.asked_by is None
        with store.write() as connection:
            assert views.answer(ann, views.Given("t0", Choice.LEFT), connection) == (1, Choice.RIGHT)
            shown = views.show(ann, Draw(1, DrawnHow.ADVERSARIAL, 0.5, False, 1), timedelta(1), connection)
            assert shown is not None
            with pytest.raises(IntegrityError), connection.begin_nested():
                connection.execute(text("UPDATE views SET drawn = 'otherwise'"))
        check_foreign_keys(store)


def check_foreign_keys(store: Store) -> None:
    """Nothing refers to what is not there, and nothing can."""
    with store.write() as connection:
        with pytest.raises(IntegrityError), connection.begin_nested():
            connection.execute(text("DELETE FROM views WHERE id = 2"))
        if connection.dialect.name == "sqlite":
            assert connection.execute(text("PRAGMA foreign_key_check")).all() == []


def test_back_from_what_a_reward_model_chose_every_verdict_is_there_and_nothing_new_is_measured(database: str) -> None:
    """Down and up again: comparisons count as imported, and what a queue drew as by disagreement, without a pool."""
    prompt = (Turn(Role.USER, "Hi?"),)
    ann, ben = (Annotator(name, AnnotatorKind.HUMAN) for name in ("Ann", "Ben"))
    queue = Verdict(Choice.LEFT, ann, 2, NOON, drawn=DrawnHow.ADVERSARIAL, draw_probability=0.5, draw_pool=3)
    chance = replace(queue, drawn=DrawnHow.RANDOM, draw_probability=0.1, draw_pool=9)
    sides = [Response(text, "v1", FinishReason.STOP) for text in "abcd"]
    chosen = Comparison(
        prompt,
        sides[0],
        sides[1],
        AskedHow.ADVERSARIAL,
        verdicts=(queue, Verdict(Choice.TIE, ben)),
        asked_by="reward-1",
    )
    plain = Comparison(prompt, sides[2], sides[3], AskedHow.RANDOM, 1.0, (chance,))
    with closing(Store.create(database)) as store:
        store.add_comparisons([chosen, plain])
        before = store.comparisons()
    assert [one.asked_by for one in before] == ["reward-1", None]
    engine = schema.connect(schema.to_url(database))
    with engine.begin() as connection:
        command.downgrade(configured(connection), "0009")
        columns = {column["name"] for column in inspect(connection).get_columns("comparisons")}
        assert "asked_by" not in columns and schema.current_revision(connection) == "0009"
    with engine.begin() as connection, pytest.raises(DatabaseError, match="append-only"):
        connection.execute(text("UPDATE comparisons SET asked_how = 'random'"))
    engine.dispose()
    with closing(Store.open(database)) as store:
        after = store.comparisons()
    unknown = replace(before[0].verdicts[0], drawn=DrawnHow.DISAGREEMENT, draw_pool=None)
    expected = replace(before[0], asked_how=AskedHow.IMPORTED, asked_by=None, verdicts=(unknown, before[0].verdicts[1]))
    assert after == [expected, before[1]]
    assert draw_weight([unknown], 10) == 0.0


def test_a_copy_is_kept_before_the_tables_are_changed(
    full: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what the store was, private, made once, and no copy is made of what is up to date."""
    if "://" in full:
        pytest.skip("a team's server keeps its own copies")
    path = Path(full)
    kept = path.with_name(f"{path.name}.revision-0001")
    before = dump(full)
    Store.open(full).close()
    assert dump(str(kept)) == before and dump(full) != before
    assert kept.stat().st_mode & 0o777 == 0o600
    assert f"a copy of it is {kept.name}" in capsys.readouterr().err
    inode = kept.stat().st_ino
    Store.open(full).close()
    assert kept.stat().st_ino == inode and not capsys.readouterr().err
    assert sorted(one.name for one in path.parent.glob(f"{path.name}.*")) == [kept.name]
    # A second try, after one that failed or after somebody went back, keeps what has come since: the copy lacks it.
    shutil.copyfile(kept, path)
    with closing(sqlite3.connect(path)) as older, older:
        older.execute("INSERT INTO annotators (name, kind) VALUES ('of after the first try', 'human')")
    before = dump(full)
    Store.open(full).close()
    assert dump(str(kept)) == before and "of after the first try" in before


def test_what_another_process_has_brought_up_to_date_is_no_copy_of_before(
    full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two commands begin at once; the second has seen the old revision, and copies when the first is through."""
    if "://" in full:
        pytest.skip("a team's server keeps its own copies")
    path, before = Path(full), dump(full)

    def first(kept: Path) -> Any:
        monkeypatch.setattr(schema, "scratch_folder", scratch_folder)
        Store.open(full).close()
        return scratch_folder(kept)

    monkeypatch.setattr(schema, "scratch_folder", first)
    Store.open(full).close()
    assert dump(str(path.with_name(f"{path.name}.revision-0001"))) == before


def said_of(store: Store) -> dict[tuple[str, str, str], list[Verdict]]:
    """Every verdict, in order of arrival, by what it is about."""
    return {(str(c.prompt), c.left.text, c.right.text): list(c.verdicts) for c in store.comparisons()}


@pytest.mark.parametrize("revision", some((f"{n:04}" for n in range(1, int(schema.newest_revision()))), 2))
def test_who_goes_back_to_a_copy_of_before_takes_along_what_was_said_since(
    revision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As docs/operations.md says: export with the newest, put the kept copy in place of the store, import."""
    root = Workspace.create(tmp_path / "ws").root
    path, copy, out = root / "store.db", root / f"store.db.revision-{revision}", str(tmp_path / "out.jsonl")
    leave(path, "0001", FIRST)
    if revision != "0001":  # on one connection that has read the older tables, they cannot be changed
        engine = schema.connect(schema.to_url(path))
        with engine.begin() as connection:
            upgrade_to(connection, revision)
        engine.dispose()
    with closing(Store.open(path)) as store:
        before = said_of(store)
        [known] = store.comparisons()
        ann, ben = Annotator("Ann", AnnotatorKind.HUMAN), Annotator("Ben", AnnotatorKind.HUMAN)
        later = Verdict(Choice.BOTH_BAD, ben, 3, NOON, 0.5, ("rude",), 'ü,\n"no"', True, DrawnHow.RANDOM, 0.25, 9)
        store.add_verdicts([(1, later), (1, Verdict(Choice.SKIP, ann)), (1, replace(later, choice=Choice.TIE))])
        store.add_comparisons([replace(known, left=Response("new", "v2"), verdicts=(later,), id=None)])
        expected = said_of(store)
    assert copy.exists() and sum(map(len, before.values())) == 2 and sum(map(len, expected.values())) == 6
    assert main(["comparisons", "export", out, "--workspace", str(root)]) == 0
    copy.replace(path)
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    with closing(Store.open(path)) as store:
        assert said_of(store) == before
    for _ in range(2):  # what is there already is known
        assert main(["comparisons", "import", out, "--workspace", str(root)]) == 0
        with closing(Store.open(path)) as store:
            assert said_of(store) == expected


def test_without_room_for_the_copy_nothing_is_changed(full: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "://" in full:
        pytest.skip("a team's server keeps its own copies")
    before = dump(full)

    def full_disk(_: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(schema, "scratch_folder", full_disk)
    with pytest.raises((MannersError, OSError), match=r"[Nn]o space left"):
        Store.open(full)
    assert dump(full) == before
