"""Files of a workspace that are damaged: one sentence names the file, and what can still be said is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manners.errors import MannersError
from manners.loop import stages
from manners.models import versions
from manners.settings import Settings
from manners.workspace import Workspace

BROKEN = ("", "{", "[]", "null", '"text"', '{"seconds": "long"}', '{"peak_memory_bytes": null}')


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("name", ["sample", "reward", "ppo", "evaluation"])
def test_damaged_facts_are_named_by_status_and_refused_by_the_report(
    copy: Workspace, settings: Settings, name: str, content: str
) -> None:
    (copy.runs / f"{name}.json").write_text(content, encoding="utf-8")
    found = stages.status(copy)
    [said] = found["damaged"]
    assert said.startswith(f"{copy.runs / name}.json is damaged (")
    assert said.endswith("): remove it, and run that stage again.")
    assert found["policies"] == ["policy-1"] and found["next"]
    with pytest.raises(MannersError, match=rf"{name}\.json is damaged .*: remove it, and run that stage again\.$"):
        stages.report(copy, settings)


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"history": null}', '{"history": [], "start": null}'])
def test_what_was_promoted_is_never_guessed(copy: Workspace, content: str) -> None:
    file = copy.models / "current.json"
    file.write_text(content, encoding="utf-8")
    for ask in (copy.current_policy, copy.promoted, copy.start, copy.roll_back, lambda: copy.promote("policy-1")):
        with pytest.raises(MannersError, match=r"current\.json is damaged: restore it"):
            ask()
    assert file.read_text(encoding="utf-8") == content


def test_a_version_that_began_at_the_initial_model_is_written_as_it_always_was(finished: Path) -> None:
    for name in ("reward-1", "policy-1"):
        written = json.loads((finished / "models" / name / "version.json").read_text(encoding="utf-8"))
        assert "start" not in written
        assert versions.describe(Workspace.open(finished), name).start == "initial"


@pytest.mark.parametrize(("field", "value"), [("watermark", "a"), ("kind", "judge"), ("shifts", "none")])
def test_a_field_of_the_wrong_kind_in_a_version_is_named(copy: Workspace, field: str, value: str) -> None:
    file = copy.models / "reward-1" / "version.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(described | {field: value, "a later field": 1}), encoding="utf-8")
    with pytest.raises(MannersError, match=rf"version\.json is damaged \({field}.*: use another version\.$"):
        versions.describe(copy, "reward-1")
    file.write_text(json.dumps(described | {"a later field": 1}), encoding="utf-8")
    assert versions.describe(copy, "reward-1").name == "reward-1"


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("name", ["reward-1", "policy-1"])
def test_a_damaged_version_is_named_by_status_and_all_else_is_said(copy: Workspace, name: str, content: str) -> None:
    sound = stages.status(copy)
    (copy.models / name / "version.json").write_text(content, encoding="utf-8")
    found = stages.status(copy)
    [said] = found.pop("damaged")
    assert said.startswith(f"{copy.models / name}/version.json is damaged (") and said.endswith("use another version.")
    assert found == sound
