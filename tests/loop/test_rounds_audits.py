"""Audits within a round: those that the gate requires are run, and what they find decides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from manners.audit import gate
from manners.loop import rounds
from manners.loop.rounds import Asked
from manners.loop.session import Session
from manners.settings import AuditSettings
from manners.workspace import Workspace
from tests.loop.small_rounds import everything_wins, small
from tests.store.test_cases import report_in_chat


@pytest.fixture(scope="module", autouse=True)
def _everything_wins() -> Iterator[None]:
    with everything_wins():
        yield


def test_a_check_of_behaviour_that_the_gate_requires_is_measured_in_the_round(
    fresh: Path, model: Path, tmp_path: Path
) -> None:
    """A model that babbles refuses nothing, before and after: so many prompts show it, and it is promoted."""
    root = shutil.copytree(fresh, tmp_path / "loop")
    with (root / "gate.toml").open("a", encoding="utf-8") as file:
        file.write("\n\n[policy.over_refusal]\nrequired = true\n")
    chosen = replace(small(model), audit=AuditSettings(cases=30, tokens=1))
    facts = rounds.play(Session(Workspace.open(root), chosen), Asked(rounds=1, crowd=True))
    [told] = facts["rounds"]
    assert told["outcome"] == "promoted" and facts["current"] == "policy-1"
    checks = {check.name: check for check in gate.read(Workspace.open(root), "policy-1").measured["policy"].checks}
    assert checks["over_refusal"].verdict == "pass" and checks["over_refusal"].n == 30
    audited = json.loads((root / "runs" / "behaviour.json").read_text(encoding="utf-8"))
    assert (audited["version"], audited["against"], audited["begun_with"]["the round"]) == ("policy-1", "initial", 1)
    assert not (root / "runs" / "audit.json").exists(), "nothing of the reward model was required"


def test_an_answer_that_a_reviewer_kept_away_is_asked_for_again_in_the_round(
    fresh: Path, model: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(fresh, tmp_path / "loop")
    session = Session(Workspace.open(root), replace(small(model), audit=AuditSettings(cases=5, tokens=1)))
    report_in_chat(session.store, "noon", upheld=True)
    rounds.play(session, Asked(rounds=1, crowd=True))
    checks = {check.name: check for check in gate.read(session.workspace, "policy-1").measured["policy"].checks}
    assert (checks["cases"].verdict, checks["cases"].n) == ("pass", 1)
