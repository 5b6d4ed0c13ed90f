"""`manners audit`: what it measures in a project, what it says to programs, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from manners.audit import gate
from manners.cli import main
from manners.errors import Blocked, MannersError, UsageError
from manners.loop import audit, stages
from manners.loop.options import AuditOptions
from manners.loop.round import AUDIT
from manners.settings import AuditSettings, Settings
from manners.text import Rendered
from manners.types import Response, Role, Turn
from manners.workspace import Workspace
from tests.loop import tiny
from tests.worlds import tiny_pretrained


def audited(workspace: Workspace, settings: Settings, **chosen: Any) -> dict[str, Any]:
    return stages.perform(workspace, settings, AUDIT, AuditOptions(**chosen))


def rows(file: Path, count: int = 12) -> Path:
    """Write pairs on as many prompts, of which a person chose the one with `thanks`."""
    some = [
        {"prompt": f"what of {n}?", "chosen": f"Thanks for {n}. It is so.", "rejected": f"No {n}."}
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return file


def test_a_program_is_told_every_check_and_what_they_come_to(
    copy: Workspace, settings: Settings, tmp_path: Path
) -> None:
    facts = audited(copy, settings, comparisons=rows(tmp_path / "pairs.jsonl"))
    assert facts["version"] == "reward-1" and facts["against"] is None and facts["pairs"] == facts["changed"] == 12
    fields = (
        "name",
        "value",
        "low",
        "high",
        "threshold",
        "margin",
        "verdict",
        "required",
        "n",
        "detectable",
        "sentence",
    )
    for check in facts["checks"]:
        assert set(check) == set(fields)
        assert check["verdict"] in ("pass", "fail", "cannot_tell") and check["sentence"]
        assert (check["value"] is None) == (check["low"] is None) and (
            check["value"] is not None or check["verdict"] != "pass"
        )
    names = [check["name"] for check in facts["checks"]]
    assert len(set(names)) == len(names) and sum(name.startswith("turned_") for name in names) >= 8
    assert sum(name.startswith("probe_") for name in names) == 10
    assert set(facts["gate"]) == {"verdict", "failed", "cannot_tell"}
    assert facts["gate"]["failed"] == [c["name"] for c in facts["checks"] if c["verdict"] == "fail"]
    kept = gate.read(copy, "reward-1").measured["reward"]
    assert [check.name for check in kept.checks] == names
    shown = tiny.read_report(Path(stages.report(copy, settings)["facts"]).parent)["audit"]
    assert shown["sentence"] == facts["sentence"] and len(shown["checks"]) == len(names)
    page = copy.report_html.read_text(encoding="utf-8")
    assert "What the reward model likes" in page and facts["checks"][0]["sentence"][:40] in page


def test_without_a_file_it_measures_on_what_was_set_aside(copy: Workspace, settings: Settings) -> None:
    few = replace(settings, audit=AuditSettings(pairs=5))
    facts = audited(copy, few)
    assert facts["source"] == "comparisons set aside from the training of reward-1"
    assert facts["pairs"] >= facts["changed"] and facts["changed"] <= 5
    plan = stages.perform(copy, few, AUDIT, AuditOptions(), plan=True)
    assert plan["pairs"] == facts["pairs"] and plan["exchanges"] >= facts["exchanges"] > 100
    assert tiny.steady(audited(copy, few)) == tiny.steady(facts)


def test_the_gate_says_where_a_policy_stands_and_its_exit_code_does(
    copy: Workspace, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    copy.toml.write_text(tiny.toml(settings), encoding="utf-8")
    record = copy.models / "policy-1" / "checks.json"
    command = ["audit", "--gate", "--json", "--workspace", str(copy.root)]
    record.unlink(missing_ok=True)
    assert main(command) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["gate"]["cannot_tell"] == ["win_rate"] and "win_rate" in said.err
    rule = {"value": 0.7, "low": 0.6, "high": 0.8, "threshold": 0.5, "margin": 0.0, "verdict": "pass", "required": True}
    checks = [{"name": "win_rate", "sentence": "Better.", **rule}]
    against = gate.replaced_by(copy, "policy-1")
    record.write_text(
        json.dumps({"measured": {"evaluation": {"against": against, "checks": checks}}}), encoding="utf-8"
    )
    assert main([*command[:2], "policy-1", *command[2:]]) == 0
    assert json.loads(capsys.readouterr().out)["gate"]["verdict"] == "pass"
    with pytest.raises(MannersError, match="reward-1 is no policy"):
        audited(copy, settings, gate=True, version="reward-1")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"what": "everything"}, "what can be audited is a reward model"),
        ({"what": "data", "every": True}, "it goes with --fetch NAME alone"),
        ({"what": "policy", "fetch": "xstest"}, "are for published sets"),
        ({"gate": True, "every": True}, "--gate reads what has been measured"),
        ({"skip_bad": True}, "name one"),
        ({"what": "policy", "comparisons": Path("pairs.jsonl")}, "for a reward model"),
        ({"short": True}, "for a policy"),
        ({"what": "policy", "short": True, "every": True}, "opposites"),
    ],
)
def test_options_that_do_not_go_together(chosen: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        AuditOptions(**chosen).check(plan=False, resume=False)


def test_too_few_openings_are_refused_before_anything_is_read(
    copy: Workspace, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(MannersError, match=r"at least 2 openings, and pairs\.jsonl has 1"):
        audited(copy, settings, comparisons=rows(tmp_path / "pairs.jsonl", 1))
    with pytest.raises(MannersError, match="there is no version reward-9"):
        audited(copy, settings, version="reward-9")
    assert not (copy.runs / "audit").exists() and gate.read(copy, "reward-1").measured == {}


def test_an_audit_that_fails_is_what_blocks(copy: Workspace, settings: Settings, tmp_path: Path) -> None:
    """A random model of four layers fails something; a promotion then names it, until a reason is given."""
    facts = audited(copy, settings, comparisons=rows(tmp_path / "pairs.jsonl"))
    assert facts["gate"]["failed"], "a model that babbles is no judge"
    copy.start_from("initial")
    with pytest.raises(Blocked, match=facts["gate"]["failed"][0]):
        stages.models_promote(copy, "policy-1")
    assert stages.models_promote(copy, "policy-1", "to show it")["overridden"]


def test_answers_to_one_prompt_are_scored_behind_the_same_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for the prompt beside the short one, and none beside the long one; others may stand between."""
    there = tiny_pretrained(context=128)
    asked, other = (Turn(Role.USER, "the weather is fine today " * 8),), (Turn(Role.USER, "how long?"),)
    short, long = Response("Yes.", "a"), Response("the oven is hot " * 20, "b")
    alone = [there.renderer.render(asked, said).prompt_ids for said in (short, long)]
    assert alone[0] != alone[1], "each by itself sees another prompt"
    seen: list[Rendered] = []

    def score(_: Any, __: Any, rendered: Sequence[Rendered]) -> Tensor:
        seen.extend(rendered)
        return torch.arange(len(seen) - len(rendered), len(seen)).float().unsqueeze(0)

    monkeypatch.setattr(audit, "score_rendered", score)
    monkeypatch.setattr(audit, "AT_ONCE", 1)
    session = cast(Any, SimpleNamespace(pretrained=there))
    run = cast(Any, SimpleNamespace(done=lambda name: 0, each=lambda name, items, work: map(work, items)))
    found, cut = audit._scored(session, run, cast(Any, None), [(asked, short), (other, short), (asked, long)])
    by_exchange = {exchange: seen[int(scores[0])] for exchange, scores in found.items()}
    beside = there.renderer.render_beside(asked, [short, long])
    assert [by_exchange[asked, said] for said in (short, long)] == beside and cut == 2
    assert by_exchange[other, short] == there.renderer.render(other, short)
