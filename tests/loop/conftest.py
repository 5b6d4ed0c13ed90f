"""One tiny model and one finished demo for all tests of the loop; who changes a workspace takes a copy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from manners.facts import Facts
from manners.feedback import crowd
from manners.loop import rounds
from manners.loop import session as session_module
from manners.loop.session import Session
from manners.models.pretrained import Pretrained
from manners.models.whole import load
from manners.ppo.learner import Learner
from manners.settings import ModelSettings, Settings
from manners.workspace import Workspace
from tests.loop import small_rounds, tiny
from tests.ppo.scripted import keep
from tests.worlds import save_tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny llama."""
    return save_tiny(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session", autouse=True)
def _loaded_once(model: Path) -> Iterator[None]:
    """That llama is read and proved once for each way to load it: nothing ever changes it, in whatever workspace."""
    known: dict[str, Pretrained] = {}

    def once(settings: ModelSettings, workspace: Workspace, otherwise: str | None = None) -> Pretrained:
        if settings.name != str(model):
            return load(settings, workspace, otherwise)
        if (way := repr((settings, otherwise))) not in known:
            known[way] = load(settings, workspace, otherwise)
        return known[way]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "load", once)
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The workspace of a demo that has run; not to be changed."""
    root = tmp_path_factory.mktemp("finished") / "demo"
    tiny.demo(root, tiny.settings(model))
    return root


@pytest.fixture(scope="session")
def moved_on(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The workspace of a demo whose policy is the one at the end of its run, better or not; not to be changed."""
    root = tmp_path_factory.mktemp("moved_on") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "offer", keep)
        tiny.demo(root, tiny.settings(model))
    return root


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A workspace with prompts in which nothing was done; not to be changed."""
    return small_rounds.project(tmp_path_factory.mktemp("fresh") / "loop", model).root


@pytest.fixture(scope="session")
def looped(tmp_path_factory: pytest.TempPathFactory, model: Path, fresh: Path) -> tuple[Path, Facts]:
    """The workspace of three rounds that were never stopped, and what came of them; not to be changed."""
    root = shutil.copytree(fresh, tmp_path_factory.mktemp("looped") / "loop")
    with small_rounds.everything_wins():
        played = rounds.play(Session(Workspace.open(root), small_rounds.small(model)), small_rounds.THREE)
    return root, played


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
