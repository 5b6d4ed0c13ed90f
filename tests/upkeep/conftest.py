"""A workspace of a tiny model, sound in every respect, to be broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from manners.workspace import Workspace
from tests.worlds import save_tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny llama."""
    return save_tiny(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def workspace(new_workspace: Callable[[Path], Workspace], model: Path, tmp_path: Path) -> Workspace:
    """A workspace of that model with an empty record."""
    made = new_workspace(tmp_path / "work")
    (made.root / "store.db").chmod(0o600)
    made.toml.write_text(f'[model]\nname = "{model}"\ntrainable_layers = 2\ncontext = 256\n[serve]\nport = 0\n')
    return made
