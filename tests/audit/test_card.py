"""The card of a version: what it says, that it follows the record, and that no markup gets in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from manners.audit import gate
from manners.audit.rules import EVALUATION, REWARD, held, rules
from manners.cli import main
from manners.errors import Blocked
from manners.results.audit import People
from manners.store import Store
from manners.types import Interval
from manners.workspace import Workspace


def made(root: Path, name: str = "policy-1", **more: Any) -> Workspace:
    workspace = Workspace.create(root / "project")
    version(workspace, name, **more)
    return workspace


def version(workspace: Workspace, name: str, **more: Any) -> None:
    described = {"name": name, "kind": name.partition("-")[0], "base": "smollm2-135m", "trunk_hash": "t"} | more
    described |= {"cut": 1, "template_hash": "h", "dtype": "float32", "created_at": "2030-01-01"}
    (workspace.models / name).mkdir()
    save_file({}, workspace.models / name / "branch-0.safetensors")
    (workspace.models / name / "version.json").write_text(json.dumps(described), encoding="utf-8")


def card(workspace: Workspace, name: str = "policy-1") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace.models / name / "card.json").read_text(encoding="utf-8"))
    return found


def test_it_says_who_taught_it_and_what_it_must_not_be_used_for(tmp_path: Path) -> None:
    workspace = made(tmp_path, metrics={"trained_on": 12, "source": "simulated"}, watermark=40)
    people = People(kinds=("simulated",), annotators=6, comparisons=24, verdicts={"left": 30}, agreement=None)
    gate.keep_people(workspace, "policy-1", people)
    found = card(workspace)
    assert found["people"]["annotators"] == 6 and found["data"] == {
        "watermark": 40,
        "source": "simulated",
        "trained_on": 12,
    }
    assert "Apache-2.0" in found["base"]["licence"] and found["not_measured"] == ["evaluation", "policy"]
    assert any("the annotators are a program" in one for one in found["not_for"])
    page = (workspace.models / "policy-1" / "card.html").read_text(encoding="utf-8")
    assert "Decisions about people" in page and "None is shown, for nothing was measured" in page


def test_what_fails_and_who_overrode_it_is_on_it_as_text(tmp_path: Path) -> None:
    workspace = made(tmp_path)
    bad = held("perplexity", rules().of(EVALUATION, "perplexity"), Interval(0.3, 0.2, 0.4), 40, "It forgot.")
    gate.keep(workspace, "policy-1", EVALUATION, [bad], "initial")
    gate.promote(workspace, "policy-1", "<script>alert(1)</script> & a demonstration", "account 2")
    found = card(workspace)
    assert found["known_failures"] == [bad.sentence] and found["measured"]["evaluation"]["against"] == "initial"
    [kept] = found["overrides"]
    assert kept["reason"].endswith("a demonstration") and kept["against"] == ["perplexity", "win_rate"]
    page = (workspace.models / "policy-1" / "card.html").read_text(encoding="utf-8")
    assert "Promoted against the gate" in page and "account 2" in page and "It forgot." in page
    assert "<script>" not in page and "&lt;script&gt;" in page and "http" not in page, "it refers to nothing outside"


def test_what_its_reward_model_fails_is_on_a_policys_card_too(tmp_path: Path) -> None:
    """It is what the gate blocks the policy for; and it is there whichever of the two was measured last."""
    workspace = made(tmp_path, metrics={"reward": "reward-1"})
    version(workspace, "reward-1")
    version(workspace, "policy-2", metrics={"reward": "reward-2"})
    for name in ("policy-1", "policy-2"):
        gate.keep_people(workspace, name, People())
    assert card(workspace)["not_measured"] == ["evaluation", "policy", "reward"]
    asked = rules().of(REWARD, "length_slope")
    bad = held("length_slope", asked, Interval(2.0, 1.5, 2.5), 40, "It likes length.")
    untold = held("ties", rules().of(REWARD, "ties"), Interval(0.1, 0.0, 0.3), 12, "Ties.")
    gate.keep(workspace, "reward-1", REWARD, [bad, untold])
    assert gate.standing(workspace, "policy-1").gate.failed == ("length_slope",)
    for _ in range(2):
        found = card(workspace)
        assert found["known_failures"] == [f"reward-1, which taught it: {bad.sentence}"]
        assert found["not_known"] == ["ties of reward-1"] and "reward" not in found["not_measured"]
        page = (workspace.models / "policy-1" / "card.html").read_text(encoding="utf-8")
        assert "reward (reward-1, which taught it)" in page and "None is shown" not in page
        gate.keep(workspace, "policy-1", EVALUATION, [])
    other = card(workspace, "policy-2")
    assert other["known_failures"] == [] and "reward" in other["not_measured"]
    assert card(workspace, "reward-1")["known_failures"] == [bad.sentence]
    assert "reward" not in gate.read(workspace, "policy-1").measured, "the record is the reward model's own"


def test_a_gate_that_was_loosened_is_on_it(tmp_path: Path) -> None:
    workspace = made(tmp_path, "reward-1")
    loose = "version = 1\n[reward.length_slope]\nmargin = 9.0\n[evaluation.win_rate]\nrequired = false\n"
    (workspace.root / "gate.toml").write_text(loose, encoding="utf-8")
    gate.keep(workspace, "reward-1", REWARD, [])
    assert card(workspace, "reward-1")["gate_changes"] == [
        "evaluation.win_rate: no longer required",
        "reward.length_slope: at most 9 from 0, in place of at most 0.25 from 0",
    ]


@pytest.mark.parametrize(
    ("rule", "field", "said"),
    [
        ("evaluation.start", "fails = 0.3", "evaluation.start: fails 0.3, in place of 0.5"),
        ("evaluation.win_rate", "fails = 0.3", "evaluation.win_rate: fails 0.3, in place of none"),
        ("policy.helpfulness", "weight = 0.5", "policy.helpfulness: weight 0.5, in place of 3"),
        ("evaluation.win_rate", 'better = "below"', "evaluation.win_rate: at most 0.5, in place of above 0.5"),
        (
            "evaluation.variety",
            "threshold = 0.2\nmargin = 0.1\nweight = 2",
            "evaluation.variety: threshold 0.2, in place of 0.1; margin 0.1, in place of 0; weight 2, in place of 1",
        ),
    ],
)
def test_whatever_is_asked_otherwise_is_on_it(tmp_path: Path, rule: str, field: str, said: str) -> None:
    """What is let through is not all: `fails` and `weight` say what blocks."""
    workspace = made(tmp_path, "reward-1")
    (workspace.root / "gate.toml").write_text(f"version = 1\n[{rule}]\n{field}\n", encoding="utf-8")
    gate.keep(workspace, "reward-1", REWARD, [])
    assert card(workspace, "reward-1")["gate_changes"] == [said]


def test_a_gate_that_was_loosened_after_the_measurement_is_on_the_card_of_what_it_let_through(tmp_path: Path) -> None:
    """Nothing is measured anew, and nothing overridden: the promotion alone says so."""
    workspace = made(tmp_path)
    won = held("win_rate", rules().of(EVALUATION, "win_rate"), Interval(0.6, 0.55, 0.65), 40, "It won.")
    bad = held("perplexity", rules().of(EVALUATION, "perplexity"), Interval(0.3, 0.2, 0.4), 40, "It forgot.")
    gate.keep(workspace, "policy-1", EVALUATION, [won, bad], "initial")
    with pytest.raises(Blocked, match="fails: perplexity"):
        gate.promote(workspace, "policy-1")
    assert card(workspace)["gate_changes"] == []
    text = "version = 1\n[evaluation.perplexity]\nmargin = 0.5\n"
    (workspace.root / "gate.toml").write_text(text, encoding="utf-8")
    Store.create(workspace.database).close()
    assert main(["models", "promote", "policy-1", "--workspace", str(workspace.root), "--json"]) == 0
    assert workspace.current_policy() == "policy-1"
    found = card(workspace)
    [changed] = found["gate_changes"]
    assert changed.startswith("evaluation.perplexity: ") and "0.5" in changed
    assert found["known_failures"] == [bad.sentence] and found["overrides"] == []
    page = (workspace.models / "policy-1" / "card.html").read_text(encoding="utf-8")
    assert changed in page


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"LICENSE": "\nMIT License\n\nCopyright"}, "MIT License (LICENSE)"),
        ({"README.md": "---\nlicense: cc-by-4.0\n---\n"}, "cc-by-4.0 (README.md)"),
        ({"README.md": "no front matter"}, "not known here"),
        ({}, "not known here"),
    ],
)
def test_a_licence_is_read_where_the_model_lies(tmp_path: Path, files: dict[str, str], said: str) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name, text in files.items():
        (model / name).write_text(text, encoding="utf-8")
    workspace = made(tmp_path, base=str(model))
    gate.keep_people(workspace, "policy-1", People())
    assert card(workspace)["base"]["licence"].startswith(said)
