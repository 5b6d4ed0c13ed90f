"""Empty stores, and files to import."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from manners.store import Store


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    """An empty store."""
    with closing(Store.create(database)) as store:
        yield store


@pytest.fixture
def fresh(new_database: Callable[[], str]) -> Iterator[Callable[[], Store]]:
    """A function that makes one more empty store."""
    with ExitStack() as stores:
        yield lambda: stores.enter_context(closing(Store.create(new_database())))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """A function that writes a file and returns its path."""

    def write_file(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write_file
