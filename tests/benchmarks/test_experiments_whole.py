"""Every experiment of the small world from its first draw to its table, on a random model and a handful of requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.evidence import Results
from benchmarks.experiments import ai_feedback, asking, judges, over_optimisation, rounds, world
from manners.feedback import crowd
from manners.reward import passes
from tests.loop import tiny
from tests.worlds import save_tiny

EXPERIMENTS = (rounds, asking, ai_feedback, over_optimisation, judges)
PLACES = ("rounds", "asking", "ai-feedback", "over-optimisation", "judges")
SIZES: dict[ModuleType, dict[str, Any]] = {
    world: {},
    rounds: {"ROUNDS": 2, "ASKED": 6, "UPDATES": 2, "ANSWERS": 3},
    asking: {"OTHERS": 8, "STEPS": (12, 20)},
    ai_feedback: {"FEW": 12, "JUDGED": 20, "TO_PEOPLE": 10, "ASKED": 8, "UPDATES": 2, "PLAYED": 6},
    over_optimisation: {"TRAIN": 12, "UPDATES": 4, "EVERY": 2, "CHOICES": (1, 2, 4, 8)},
    judges: {"OTHERS": 20, "SEEN": 4, "JUDGES": {"20 others": (20, 0.25)}},
}
EVERYWHERE = {"MEASURED": 6, "DRAWN": 8, "CANDIDATES": 16, "EACH": 3}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A page with a place for each table; experiments are small, open a random model, and keep parts in a folder."""
    monkeypatch.setitem(crowd.TASTES, tiny.FIGURES.name, tiny.FIGURES)
    session = tiny.project(tmp_path / "workspace", save_tiny(tmp_path / "model"))
    ppo = replace(session.settings.ppo, validation_prompts=4, batch=8, minibatch=8, epochs=1)
    there = world.World(replace(session, settings=replace(session.settings, ppo=ppo)), tmp_path / "experiments")
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in PLACES), encoding="utf-8")
    monkeypatch.setattr(passes, "PASSES", (1,))
    monkeypatch.setitem(over_optimisation.LOOSE, "updates", 4)
    monkeypatch.setattr(over_optimisation, "PICTURE", tmp_path / "picture.png")
    best = world.best_of
    monkeypatch.setattr(ai_feedback, "best_of", lambda scored, values, n: best(scored, values, min(n, 8)))
    for module, sizes in SIZES.items():
        shared = {name: value for name, value in EVERYWHERE.items() if hasattr(module, name)}
        for name, value in {**shared, **sizes}.items():
            monkeypatch.setattr(module, name, value)
    for module in EXPERIMENTS:
        monkeypatch.setattr(module, "open_world", lambda _: there)
        monkeypatch.setattr(module, "PAGE", page)
        monkeypatch.setattr(module, "results", lambda name: Results(name, tmp_path / "results"))
    yield page
    session.store.close()


@pytest.mark.long
@pytest.mark.parametrize("module", EXPERIMENTS, ids=PLACES)
def test_it_goes_through_to_its_table_and_is_done_once(
    module: Any, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = module.Options(seeds=(0, 1))
    module.main(options)
    once = small.read_text(encoding="utf-8")
    assert once.count("cores of") == 1 and once.count("\n| ") > 2 and "nan" not in once
    # What is done is not done again: neither is anything drawn nor learned.
    for name in ("draw", "learn"):
        monkeypatch.setattr(module, name, None, raising=False)
        monkeypatch.setattr(world, name, None)
    module.main(options)
    assert small.read_text(encoding="utf-8") == once
