"""The example `examples/own-pairs`, in a short form: every method at the same verdicts, and whoever wins is named."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from manners.feedback import crowd
from manners.loop.session import Session
from manners.settings import DPOSettings, SFTSettings
from manners.store import Store
from manners.store.files.formats import Format
from manners.store.files.transfer import export_comparisons, import_comparisons
from manners.types import PromptUse
from manners.workspace import Workspace
from tests.loop import tiny
from tests.worlds import save_tiny

TAUGHT = SFTSettings(epochs=2, batch=8, set_aside=0.2)
LONG = replace(tiny.SETTINGS.sample, max_new_tokens=128)
"""A random model seldom ends an answer, and what is cut off is no example."""
ENDED = replace(tiny.FIGURES, weights=replace(tiny.FIGURES.weights, brevity=9.0))
FILE = Path(__file__).parents[2] / "examples" / "own-pairs" / "compare.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("own_pairs_compare", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own-pairs")


@pytest.fixture(scope="module")
def found(example: ModuleType, root: Path) -> dict[str, Any]:
    direct = DPOSettings(beta=0.5, passes=2, batch=8, learning_rate=0.003, kl_stop=1000.0, validation_prompts=6)
    settings = tiny.settings(save_tiny(root / "model"), dpo=direct, sft=TAUGHT, sample=LONG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(crowd.TASTES, ENDED.name, ENDED)
        workspace = Workspace.create(root / "crowd")
        example.label_by_crowd(workspace, settings, 20, tiny.PROMPTS)
        facts: dict[str, Any] = example.compare(workspace, settings)
        return facts


@pytest.mark.long
def test_every_method_learns_from_the_same_verdicts(example: ModuleType, found: dict[str, Any], root: Path) -> None:
    assert [row["method"] for row in found["rows"]] == ["SFT", "DPO", "best of 1", "PPO"]
    reports = {name: json.loads((root / "crowd" / "runs" / f"{name}.json").read_text()) for name in ("dpo", "reward")}
    assert reports["dpo"]["trained_on"] == reports["reward"]["trained_on"] == found["pairs"]
    assert reports["dpo"]["trained_on"] + reports["dpo"]["set_aside"] == 20
    for row in found["rows"]:
        estimate, low, high = row["win_rate"]
        assert 0 <= low <= estimate <= high <= 1 and row["seconds"] > 0
    assert found["judge"] == "the hidden taste of the simulated crowd"
    assert found["rows"][2]["kl"] == 0.0, "one answer is the initial model's"
    assert example.UPDATES[0] <= found["ppo_updates"] <= example.UPDATES[-1], "as many as there is time for"
    assert not list(Workspace.open(root / "crowd").models.glob("policy-3")), "the trial of PPO's speed is thrown away"


@pytest.mark.long
def test_who_wins_is_said_by_the_duel(found: dict[str, Any]) -> None:
    assert list(found["duels"]) == ["PPO over DPO", "DPO over SFT", "PPO over SFT"]
    for name, (_, low, high) in found["duels"].items():
        one, other = name.split(" over ")
        says = f"{one} wins over {other}" if low > 0.5 else f"{other} wins over {one}" if high < 0.5 else ""
        assert (says or f"{one} and {other} cannot be told apart") in found["verdict"]
    assert found["verdict"] in found["table"]
    assert re.search(r"(DPO|whether DPO) (beats|does worse)", found["verdict"])
    assert found["table"].splitlines()[0] == f"{found['pairs']} pairs learned from"


@pytest.mark.parametrize(
    ("interval", "says"),
    [((0.6, 0.52, 0.7), "PPO wins"), ((0.4, 0.3, 0.49), "DPO wins"), ((0.5, 0.4, 0.6), "cannot be told apart")],
)
def test_whoever_wins_is_said_to_win(example: ModuleType, interval: tuple[float, ...], says: str) -> None:
    of_policies = {"win_rate": interval[0], "interval": interval[1:]}
    of_phases = {"win_rate": dict(zip(("estimate", "low", "high"), interval, strict=True))}
    for found in (of_policies, of_phases):
        assert says in example.Duel("PPO", "DPO", "policy-2", "policy-1", found).sentence(True)


@pytest.mark.long
def test_people_judge_pairs_of_ones_own(example: ModuleType, found: dict[str, Any], root: Path) -> None:
    assert found["rows"]
    file = root / "pairs.jsonl"
    export_comparisons(Store.open(root / "crowd" / "store.db"), file, Format.ROWS)
    rows = [json.loads(line) | {"annotator_kind": "human"} for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    direct = DPOSettings(passes=1, batch=8, learning_rate=0.003, validation_prompts=4, kl_stop=1000.0)
    settings = tiny.settings(root / "model", dpo=direct, sft=TAUGHT, sample=LONG)
    workspace = Workspace.create(root / "own")
    store = Session(workspace, settings).store
    for use in (PromptUse.VALIDATE, PromptUse.EVALUATE):
        store.add_prompts(tiny.PROMPTS[use], use, "test")
    import_comparisons(store, file, mapping={}, skip_bad=False)
    facts = example.compare(workspace, settings, equal_time=False)
    assert facts["ppo_updates"] == settings.ppo.updates
    assert facts["judge"] == "people" and [row["win_rate"] for row in facts["rows"]] == [None] * 4
    assert "`manners evaluate --ask 200 --against policy-1` opens blind comparisons of policy-2" in facts["verdict"]
    assert (
        "`manners evaluate policy-1 --ask 200 --against sft-1` opens blind comparisons of policy-1" in facts["verdict"]
    )


def test_settings_are_written_down_as_they_were_given(example: ModuleType) -> None:
    written = example._toml(["ppo.updates=12", "dpo.learning_rate=1e-5", "model.name = a b", "ppo.updates=3"])
    assert written == 'ppo.updates = 3\ndpo.learning_rate = 1e-5\nmodel.name = "a b"\n'
