"""Empty stores, and files to import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from manners.store import Store


@pytest.fixture
def fresh(new_store: Callable[[], str]) -> Iterator[Callable[[], Store]]:
    """A function that opens one more empty store."""
    with ExitStack() as stores:
        yield lambda: stores.enter_context(closing(Store.open(new_store())))


@pytest.fixture
def store(fresh: Callable[[], Store]) -> Store:
    """An empty store."""
    return fresh()


def by_file(cases: Iterable[str]) -> list[Any]:
    """Each case on SQLite, and one on PostgreSQL too: how a file is read does not hang on where its rows go to."""
    several = list(cases)
    on_server = pytest.param("postgresql", several[0], marks=pytest.mark.long)
    return [*(("sqlite", case) for case in several), on_server]


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """Collect what a store sends to its database within the block."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if not statement.startswith("BEGIN"):  # which one of the drivers says by itself
            sent.append(statement)

    event.listen(store._engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(store._engine, "before_cursor_execute", note)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """A function that writes a file and returns its path."""

    def write_file(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write_file
