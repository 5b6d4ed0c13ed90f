"""Empty stores, and files to import."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from manners.store import Store
from manners.store.schema import connect, to_url

POSTGRES = os.environ.get("MANNERS_TEST_POSTGRES")
DATABASES = ["sqlite", *(["postgresql"] if POSTGRES else [])]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store on SQLite."""
    store = Store.create(tmp_path / "manners.db")
    yield store
    store.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """A function that makes one more empty store on SQLite."""
    stores: list[Store] = []

    def make() -> Store:
        stores.append(Store.create(tmp_path / f"fresh{len(stores)}.db"))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty database is: a path, or the URL in MANNERS_TEST_POSTGRES, whose `public` schema is emptied."""
    if request.param == "sqlite":
        return str(tmp_path / "any.db")
    assert POSTGRES is not None
    engine = connect(to_url(POSTGRES))
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return POSTGRES


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """A function that writes a file and returns its path."""

    def write_file(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write_file
