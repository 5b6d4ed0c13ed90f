"""Stores of older versions are brought up to date with all that is in them, or stay as they were."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, MetaData, inspect

from manners.store import Outcome, Round, Store, VersionRecord, schema, views
from manners.types import (
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
    Turn,
    Verdict,
    VersionKind,
)

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


def upgrade_to(connection: Connection, revision: str) -> None:
    """Make the tables as a revision had them."""
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


@pytest.fixture
def first(database: str) -> str:
    """A store as revision 0001 left it, with data in it."""
    engine = schema.connect(schema.to_url(database))
    with engine.begin() as connection:
        upgrade_to(connection, "0001")
        tables = MetaData()
        tables.reflect(connection)
        for name, rows in FIRST.items():
            dated = [row if name == "annotators" else row | {"created_at": NOON} for row in rows]
            connection.execute(tables.tables[name].insert(), dated)
    engine.dispose()
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


def test_a_verdict_that_waits_for_a_view_of_before_is_taken(database: str) -> None:
    engine = schema.connect(schema.to_url(database))
    with engine.begin() as connection:
        upgrade_to(connection, "0004")
        tables = MetaData()
        tables.reflect(connection)
        for name in ("prompts", "responses", "comparisons", "annotators"):
            dated = [row if name == "annotators" else row | {"created_at": NOON} for row in FIRST[name]]
            connection.execute(tables.tables[name].insert(), dated)
        view = {"comparison_id": 1, "annotator_id": 1, "exchanged": True, "drawn": "random", "probability": 0.5}
        connection.execute(tables.tables["views"].insert(), view | {"created_at": NOON, "expires_at": NOON})
    engine.dispose()
    ann = Annotator("Ann", AnnotatorKind.HUMAN)
    with closing(Store.open(database)) as store:
        with store.write() as connection:
            assert views.answer(ann, views.Given("1", Choice.LEFT), connection) == (1, Choice.RIGHT)
            shown = views.show(ann, Draw(1, DrawnHow.RANDOM, 0.5, False, 1), timedelta(1), connection)
        assert shown.view != "2" and [v.choice for v in store.comparisons()[0].verdicts] == [Choice.RIGHT]
