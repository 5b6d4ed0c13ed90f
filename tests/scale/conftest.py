"""A project with a reward model for all tests of this folder, and PPO on it with and without workers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from manners.facts import Facts
from manners.loop.options import PPOOptions
from manners.loop.round import PPO
from manners.loop.session import Session
from manners.loop.stage import execute
from manners.ppo.learner import Learner
from manners.settings import Settings
from manners.workspace import Workspace
from tests.loop import tiny
from tests.ppo.scripted import keep
from tests.worlds import save_tiny


@dataclass(frozen=True)
class Ended:
    """What a run of PPO came to."""

    root: Path
    facts: Facts

    @property
    def policy(self) -> dict[str, Tensor]:
        """The tensors of its policy."""
        return load_file(self.root / "models" / str(self.facts["version"]) / "branch-0.safetensors")

    def curve(self, name: str) -> list[Any]:
        """One of its curves."""
        return list(self.facts["curves"][name])


Train = Callable[..., Ended]


@pytest.fixture(scope="session")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The tiny settings for a tiny llama, with a run of three updates."""
    return tiny.settings(save_tiny(tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory, chosen: Settings) -> Path:
    """The workspace of a demo that has run; not to be changed."""
    root = tmp_path_factory.mktemp("taught") / "demo"
    tiny.demo(root, chosen)
    return root


def trainer(taught: Path, chosen: Settings, folder: Path) -> Train:
    """Return a function that runs PPO in a copy of that workspace.

    The version at its end is kept, better or not: it shows what every update has learnt.
    """

    def run(workers: int | None = None, address: str | None = None, *, name: str = "run") -> Ended:
        root = folder / name
        workspace = Workspace.open(shutil.copytree(taught, root))
        options = PPOOptions(workers=workers, ray_address=address)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Learner, "offer", keep)
            return Ended(root, execute(PPO, Session(workspace, chosen), options).facts)

    return run


@pytest.fixture
def train(taught: Path, chosen: Settings, tmp_path: Path) -> Train:
    """`trainer` for one test."""
    return trainer(taught, chosen, tmp_path)


@pytest.fixture(scope="session")
def undisturbed(taught: Path, chosen: Settings, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """What PPO comes to without any workers."""
    return trainer(taught, chosen, tmp_path_factory.mktemp("undisturbed"))()
