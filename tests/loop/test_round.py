"""The whole loop on a tiny model: what it leaves, that it repeats itself, and what it says when nothing was learnt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manners.cli import main
from manners.data import DEMO_TOML
from manners.loop import round as loop_round
from manners.loop import stages
from manners.loop.session import Session
from manners.settings import Settings
from manners.settings_load import load
from manners.store import Outcome, Store
from manners.types import AnnotatorKind, AskedHow, PromptUse
from manners.workspace import Workspace
from tests.loop import tiny
from tests.report.test_keys import documented
from tests.worlds import save_tiny

DEMANDED = {
    "model": {"name", "parameters"},
    "comparisons": {"total", "trained_on", "set_aside", "source"},
    "reward": {"accuracy", "interval", "length_only", "ece"},
    "ppo": {"episodes", "kl", "optimizer_steps", "episodes_per_second", "seconds"},
    "evaluation": {
        "win_rate",
        "interval",
        "prompts",
        "taste_before",
        "taste_after",
        "perplexity_before",
        "perplexity_after",
    },
    "seconds": {"sample", "reward", "ppo", "evaluation"},
}


def test_the_report_has_what_programs_rely_on(finished: Path, model: Path) -> None:
    facts = tiny.read_report(finished)
    assert {name: keys - facts[name].keys() for name, keys in DEMANDED.items()} == {name: set() for name in DEMANDED}
    assert facts["peak_memory_bytes"] > 2**20
    assert facts["model"]["name"] == str(model)
    assert facts["model"]["parameters"] == 51_488
    assert facts["comparisons"]["total"] == facts["comparisons"]["trained_on"] + facts["comparisons"]["set_aside"] == 24
    assert facts["comparisons"]["source"] == "simulated"
    assert facts["ppo"]["episodes"] == 2 * 16
    assert facts["ppo"]["optimizer_steps"] == 2 * 2 * 2
    assert facts["evaluation"]["prompts"] == 12
    low, high = facts["evaluation"]["interval"]
    assert low <= facts["evaluation"]["win_rate"] <= high
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "simulated" in page
    assert facts["evaluation"]["verdict"].split(":")[0] in page


def paths(facts: Any, name: str = "") -> Iterator[str]:
    """Every key of a report, as the table writes it."""
    if isinstance(facts, dict):
        for key, value in facts.items():
            yield f"{name}.{key}".lstrip(".")
            yield from paths(value, f"{name}.{key}".lstrip("."))
    elif isinstance(facts, list):
        for value in facts:
            yield from paths(value, f"{name}[]")


def test_a_demo_writes_no_other_keys(finished: Path) -> None:
    rows = [line.split("|")[1:3] for line in documented().splitlines()[2:]]
    kinds = {key.strip(" `"): kind.strip() for key, kind in rows}
    written = set(paths(tiny.read_report(finished)))
    inside = {key for key, kind in kinds.items() if kind == "interval" or kind.startswith("by name")}
    parts = {stage.name for stage in loop_round.EVERY}
    unknown = {key for key in written - kinds.keys() - parts if not any(key.startswith(f"{of}.") for of in inside)}
    assert unknown == set()
    assert kinds.keys() & written > {"reward.accuracy", "ppo.curves", "evaluation.matched.pairs", "reward.seconds"}


def test_what_the_demo_leaves_in_its_workspace(finished: Path) -> None:
    store = Store.open(finished / "store.db")
    comparisons = store.comparisons()
    assert {c.asked_how for c in comparisons} == {AskedHow.RANDOM}
    assert {c.prompt for c in comparisons} == {p.dialogue for p in store.prompts(PromptUse.TRAIN)}
    assert all(len(c.verdicts) == 2 and c.left.text != c.right.text for c in comparisons)
    assert {v.annotator.kind for c in comparisons for v in c.verdicts} == {AnnotatorKind.SIMULATED}
    assert all(c.left.author == "initial" and c.left.sampling is not None for c in comparisons)
    assert [v.name for v in store.versions()] == ["reward-1", "policy-1"]
    assert store.versions()[0].watermark == store.watermark() == 48
    (played,) = store.rounds()
    promoted = tiny.read_report(finished)["evaluation"]["promoted"]
    assert played.outcome is (Outcome.PROMOTED if promoted else Outcome.REJECTED)
    assert not list(finished.rglob("*.partial"))
    store.close()


@pytest.mark.long
def test_the_same_seed_gives_the_same_figures(finished: Path, model: Path, tmp_path: Path) -> None:
    again = tiny.demo(tmp_path / "again", tiny.settings(model))
    first = tiny.steady(tiny.read_report(finished))
    assert tiny.steady(again) == first
    assert len(json.dumps(first)) > 3000


def test_a_demo_in_the_way_is_moved_aside_and_not_lost(
    model: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "demo")
    monkeypatch.setattr(loop_round, "STAGES", ())
    few = {use: some[:6] for use, some in tiny.PROMPTS.items()}
    tiny.demo(tmp_path / "demo", tiny.settings(model, seed=4), few)
    assert tiny.read_report(tmp_path / "demo.previous") == tiny.read_report(finished)
    assert tiny.read_report(tmp_path / "demo")["seed"] == 4
    for folder, seed in (("demo", 4), ("demo.previous", tiny.SETTINGS.seed)):
        kept = load(tmp_path / folder / "manners.toml").settings
        assert kept == tiny.settings(model, seed), "what goes on in it goes on with these"


@pytest.mark.parametrize("options", [[], ["--seed", "0"], ["--seed", "7"], ["--seed", "7", "--set", "ppo.updates=3"]])
def test_a_demo_goes_on_with_what_was_chosen_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setattr(loop_round, "STAGES", ())
    seen = list[Settings]()

    def played(session: Session, **_: bool) -> dict[str, str]:
        seen.append(session.settings)
        return {}

    monkeypatch.setattr(loop_round, "play", played)
    demo = ["demo", "--workspace", str(tmp_path / "demo")]
    assert main([*demo, "--resume", *options]) == 0, "there is none yet, so one begins"
    assert main([*demo, "--resume"]) == 0
    assert main([*demo, *options]) == 0
    first = seen[0]
    assert seen == [first] * 3
    assert (first.sample.max_new_tokens, first.reward.curve) == (32, False), "those of a demo, not the defaults"
    assert (first.seed, first.ppo.updates) == (7 if "7" in options else 0, 3 if "ppo.updates=3" in options else 12)
    as_it_ships = (tmp_path / "demo" / "manners.toml").read_text() == DEMO_TOML.read_text()
    assert as_it_ships == ("7" not in options), "with its comments"


@pytest.mark.long
def test_a_crowd_that_answers_at_random_gets_nothing_promoted(model: Path, tmp_path: Path) -> None:
    crowd = replace(tiny.SETTINGS.crowd, taste="random")
    facts = tiny.demo(tmp_path / "demo", tiny.settings(model, crowd=crowd))
    low, high = facts["evaluation"]["interval"]
    assert low <= 0.5 <= high
    assert facts["evaluation"]["outcome"] == "cannot_tell"
    assert facts["evaluation"]["promoted"] is False
    assert "cannot be told apart" in facts["evaluation"]["verdict"]
    assert Workspace.open(tmp_path / "demo").current_policy() == "initial"
    low, high = facts["reward"]["interval"]
    assert low <= 0.5 <= high


@pytest.mark.long
def test_a_learning_rate_of_zero_changes_nothing(model: Path, tmp_path: Path) -> None:
    """Each of the two draws answers of its own, so that one seed in twenty would call them different: not this one."""
    ppo = replace(tiny.SETTINGS.ppo, learning_rate=0.0)
    facts = tiny.demo(tmp_path / "demo", tiny.settings(model, seed=4, ppo=ppo))["evaluation"]
    low, high = facts["interval"]
    assert low <= 0.5 <= high
    assert facts["outcome"] == "cannot_tell"
    assert facts["taste_change"]["low"] <= 0 <= facts["taste_change"]["high"]
    assert facts["perplexity_after"] == pytest.approx(facts["perplexity_before"])
    assert abs(facts["kl"]) < 1e-4
    assert facts["promoted"] is False


@pytest.mark.long
def test_another_model_taste_and_prompt_file_by_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GPT-2 without a chat template, prompts from files of two formats, and the taste for plain facts."""
    model = save_tiny(tmp_path / "gpt2", "gpt2", chat_template=None)
    root = tmp_path / "project"
    assert main(["init", str(root)]) == 0
    session = tiny.project(root, model, {})
    (tmp_path / "train.txt").write_text("".join(f"when does train {n} leave\n" for n in range(30)), encoding="utf-8")
    rows = [json.dumps({"prompt": f"how far is town {n}?"}) for n in range(20)]
    (tmp_path / "validate.jsonl").write_text("\n".join(rows[:8]), encoding="utf-8")
    (tmp_path / "evaluate.jsonl").write_text("\n".join(rows[8:]), encoding="utf-8")
    for use, file in (("train", "train.txt"), ("validate", "validate.jsonl"), ("evaluate", "evaluate.jsonl")):
        assert main(["prompts", "import", str(tmp_path / file), "--use", use, "--workspace", str(root)]) == 0
    settings = replace(session.settings, crowd=replace(tiny.SETTINGS.crowd, taste="plain_facts"))
    stages.sample(session.workspace, settings, crowd=True, plan=False)
    assert stages.train_reward(session.workspace, settings, plan=False)["set_aside"] > 0
    assert stages.train_policy(session.workspace, settings, plan=False)["episodes"] == 32
    assert stages.evaluate(session.workspace, settings, ask=None, plan=False)["source"] == "simulated"
    stages.report(session.workspace, settings)
    facts = tiny.read_report(root)
    assert "no chat template" in facts["model"]["note"]
    assert facts["comparisons"]["total"] == 30
    assert {"figures", "plainness"} & facts["evaluation"]["taste_parts"].keys()
    capsys.readouterr()
    assert main(["status", "--workspace", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["policies"] == ["policy-1"]
