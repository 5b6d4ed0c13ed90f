"""One tiny model and one finished demo for all tests of the loop; who changes a workspace takes a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from manners.feedback import crowd
from manners.settings import Settings
from manners.workspace import Workspace
from tests.loop import tiny
from tests.worlds import save_tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny llama."""
    return save_tiny(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The workspace of a demo that has run; not to be changed."""
    root = tmp_path_factory.mktemp("finished") / "demo"
    tiny.demo(root, tiny.settings(model))
    return root


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Workspace:
    """A copy of that workspace."""
    return Workspace.open(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture
def settings(model: Path) -> Settings:
    """The tiny settings for the tiny model."""
    return tiny.settings(model)


@pytest.fixture(autouse=True)
def _taste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the crowd have a taste that a model which babbles can meet."""
    monkeypatch.setitem(crowd.TASTES, tiny.FIGURES.name, tiny.FIGURES)
