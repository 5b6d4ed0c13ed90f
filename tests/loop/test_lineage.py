"""Where versions come from, and that pruning takes nothing that something which stays needs."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import Timeout
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from manners.audit import gate
from manners.cli import main
from manners.errors import MannersError
from manners.loop import lineage, stages
from manners.loop.lineage import _ancestors
from manners.models import versions
from manners.models.versions import Version
from manners.store import Store, audit
from manners.types import VersionKind
from manners.workspace import Workspace, atomic_write

BYTES = 1000


def version(workspace: Workspace, name: str, **said: Any) -> Version:
    """Put a version there, with weights of 1000 bytes that mean nothing."""
    kind = VersionKind(name.rpartition("-")[0])
    described = Version(name, kind, **{"base": "somebody/base"} | said, **STILL)
    folder = workspace.models / name
    folder.mkdir()
    save_file({"nothing": torch.zeros(BYTES, dtype=torch.uint8)}, folder / "branch-0.safetensors")
    versions.write_description(described, folder)
    return described


STILL: dict[str, Any] = {
    "trunk_hash": "h",
    "cut": 1,
    "template_hash": "t",
    "dtype": "float32",
    "created_at": "2026-01-01",
}


@pytest.fixture
def workspace(tmp_path: Path, new_workspace: Any) -> Workspace:
    """An SFT version, under two reward models and five policies, of which the second and the third were promoted."""
    made: Workspace = new_workspace(tmp_path / "ws")
    version(made, "pretrain-1")
    version(made, "sft-1", base="pretrain-1")
    version(made, "sft-2")
    for number in range(1, 7):
        version(made, f"reward-{number}", base="sft-1", watermark=10 * number, left_out={"skipped": number})
    parents = {1: None, 2: None, 3: "policy-2", 4: "policy-3", 5: "policy-3"}
    for number, parent in parents.items():
        metrics = {"reward": f"reward-{number}", "source": "human"}
        version(made, f"policy-{number}", base="sft-1", parent=parent, watermark=10 * number, metrics=metrics)
    made.promote("policy-2")
    made.promote("policy-3")
    return made


def sizes(workspace: Workspace) -> dict[str, int]:
    return {
        folder.name: sum(file.stat().st_size for file in folder.iterdir())
        for folder in workspace.models.iterdir()
        if folder.is_dir()
    }


def test_a_version_shows_what_it_grew_on_and_what_it_had_learned_from(workspace: Workspace) -> None:
    shown = stages.models_show(workspace, "policy-4")
    assert shown["grew_on"] == ["policy-3", "sft-1", "reward-4", "policy-2", "reward-3", "pretrain-1", "reward-2"]
    assert (shown["watermark"], shown["parent"], shown["reward"], shown["source"]) == (
        40,
        "policy-3",
        "reward-4",
        "human",
    )
    assert (shown["promoted"], shown["current"], shown["bytes"]) == (False, False, sizes(workspace)["policy-4"])
    before = stages.models_show(workspace, "policy-3")
    assert before["current"] and before["promoted"] and before["grew_from_it"] == ["policy-4", "policy-5"]
    assert stages.models_show(workspace, "reward-2")["left_out"] == {"skipped": 2}
    rows = {row["name"]: row for row in stages.models_list(workspace)["versions"]}
    assert rows["policy-5"]["parent"] == "policy-3" and rows["policy-5"]["watermark"] == 50
    assert [name for name, row in rows.items() if row["promoted"]] == ["policy-2", "policy-3"]
    with pytest.raises(MannersError, match="there is no version policy-9"):
        stages.models_show(workspace, "policy-9")


def test_a_damaged_version_hides_no_other_and_nothing_is_pruned_beside_it(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = [row["name"] for row in stages.models_list(workspace)["versions"]]
    (workspace.models / "policy-4" / "version.json").write_text('{"name": "pol')
    (workspace.models / "reward-2" / "version.json").write_bytes(b"\xff" * 100)
    listed = stages.models_list(workspace)
    assert [row["name"] for row in listed["versions"]] == [one for one in whole if one not in ("policy-4", "reward-2")]
    assert sorted(listed["damaged"]) == ["policy-4", "reward-2"] and listed["current"] == "policy-3"
    said = capsys.readouterr().err
    assert all(f"{name} cannot be read: " in said and "version.json is damaged" in said for name in listed["damaged"])
    shown = stages.models_show(workspace, "policy-3")
    assert shown["grew_on"] == ["policy-2", "sft-1", "reward-3", "pretrain-1"] and "policy-4" in capsys.readouterr().err
    for name in ("policy-4", "reward-2"):
        with pytest.raises(MannersError, match=r"version\.json is damaged"):
            stages.models_show(workspace, name)
    before = sizes(workspace)
    with pytest.raises(MannersError, match=r"version\.json is damaged"):
        stages.models_prune(workspace, 1, True)
    assert sizes(workspace) == before


def test_a_dry_run_removes_nothing_and_says_what_would_be_freed(workspace: Workspace) -> None:
    before = sizes(workspace)
    facts = stages.models_prune(workspace, 1)
    gone = [row["name"] for row in facts["versions"]]
    assert gone == ["policy-1", "policy-4", "reward-1", "reward-4"], "what the promoted and the newest grew on stays"
    assert facts["bytes_to_free"] == sum(before[name] for name in gone) > 4 * BYTES
    assert (
        not facts["removed"] and facts["next"] == "manners models prune --keep 1 --yes" and sizes(workspace) == before
    )


def test_what_is_removed_is_what_was_said_and_the_rest_can_be_rolled_back_to(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sizes(workspace)
    where = ["--workspace", str(workspace.root), "--json"]
    assert main(["models", "prune", "--keep", "1", *where]) == 0
    said = json.loads(capsys.readouterr().out)
    assert main(["models", "prune", "--keep", "1", "--yes", *where]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["versions"] == said["versions"] and done["bytes_freed"] == said["bytes_to_free"] and done["removed"]
    left = sizes(workspace)
    assert left == {name: size for name, size in before.items() if name in said["kept"]}
    assert sum(before.values()) - sum(left.values()) == done["bytes_freed"]
    for was in ("policy-3", "policy-2"):
        assert stages.models_rollback(workspace)["was"] == was
    with closing(Store.open(workspace.database)) as store:
        noted = [entry.about for entry in audit.entries(store) if entry.event == "pruned"]
    assert sorted(noted) == [f"version {row['name']}" for row in done["versions"]]
    assert not [file for file in workspace.models.iterdir() if file.name.startswith(".")]


def test_who_promotes_and_who_prunes_wait_for_each_other(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at what nothing needs and its end nothing is promoted; whoever comes then looks once more."""
    whole = lineage.unneeded

    def looked(*args: Any) -> list[str]:
        with pytest.raises(Timeout):
            workspace.promoting().acquire(timeout=0)
        return whole(*args)

    monkeypatch.setattr(lineage, "unneeded", looked)
    monkeypatch.setattr(gate, "goes_back", lambda *_: stages.models_prune(workspace, 1, yes=True)["removed"])
    with pytest.raises(MannersError, match="there is no version policy-1"):
        gate.promote(workspace, "policy-1")
    assert workspace.promoted() == ["policy-2", "policy-3"]


def test_a_roll_back_goes_past_what_cannot_be_loaded(workspace: Workspace) -> None:
    """A server that is told to serve it would go on with the version that was to be taken back."""
    workspace.promote("policy-4")
    file = workspace.models / "policy-3" / "branch-0.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert gate.before(workspace) == "policy-2"
    back = {"current": "policy-2", "was": "policy-4", "passed_by": ["policy-3"]}
    assert stages.models_rollback(workspace) == back
    shutil.rmtree(workspace.models / "policy-2")
    workspace.promote("policy-5")
    assert stages.models_rollback(workspace) == {"current": "initial", "was": "policy-5", "passed_by": ["policy-2"]}


def test_what_the_settings_name_and_where_learning_starts_stay(workspace: Workspace) -> None:
    version(workspace, "sft-3")
    version(workspace, "sft-4")
    atomic_write(workspace.toml, '[model]\nname = "sft-2"\n')
    facts = stages.models_prune(workspace, 1)
    assert [row["name"] for row in facts["versions"] if row["kind"] == "sft"] == ["sft-3"]
    workspace.start_from("policy-4")  # nothing is promoted any more
    gone = [row["name"] for row in stages.models_prune(workspace, 1)["versions"]]
    assert "policy-4" not in gone and "policy-3" not in gone and "policy-1" in gone


def test_nothing_is_pruned_beside_a_run_or_below_one(workspace: Workspace) -> None:
    with workspace.run_lock("ppo"), pytest.raises(MannersError, match="is training in"):
        stages.models_prune(workspace, 1, yes=True)
    with pytest.raises(MannersError, match="--keep is 0, but the newest version of each kind always stays"):
        stages.models_prune(workspace, 0, yes=True)
    assert stages.models_prune(workspace, 9)["versions"] == []
    (workspace.runs / "ppo").mkdir(parents=True)
    (workspace.runs / "ppo" / "checkpoint-1").touch()
    with pytest.raises(MannersError, match="finish it with `manners ppo --resume`, then prune"):
        stages.models_prune(workspace, 1)


def test_the_candidate_and_whoever_judged_last_stay(workspace: Workspace) -> None:
    """With all that they grew on: a server that is started again, and the next round, look for them."""
    assert stages.models_prune(workspace, 1)["versions"]
    with closing(Store.open(workspace.database)) as store:
        audit.record(store, audit.Deed(audit.Event.SERVED, about="candidate policy-4"))
    judged = {"begun_with": {"the version that judges": "policy-1"}}
    (workspace.runs / "judge.json").write_text(json.dumps(judged), encoding="utf-8")
    assert stages.models_prune(workspace, 1)["versions"] == []
    with closing(Store.open(workspace.database)) as store:
        audit.record(store, audit.Deed(audit.Event.SERVED))
    gone = [row["name"] for row in stages.models_prune(workspace, 1)["versions"]]
    assert gone == ["policy-4", "reward-4"], "no server has a candidate any more"


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=10), st.sets(st.integers(0, 9), max_size=3))
def test_a_line_is_closed(roots: list[tuple[int, int]], asked: set[int]) -> None:
    """What stands in it has all that it grew on in it, once, also where somebody has written a circle into a file."""
    found = {
        f"policy-{at}": Version(
            f"policy-{at}", VersionKind.POLICY, f"policy-{base}", **STILL, parent=f"policy-{parent}"
        )
        for at, (base, parent) in enumerate(roots)
    }
    line = _ancestors(found, [f"policy-{at}" for at in sorted(asked)])
    assert len(set(line)) == len(line)
    for name in line:
        assert {root for root in (found[name].base, found[name].parent) if root in found} <= set(line)


@pytest.mark.parametrize("how", ["whole", "relative", "link", "home", "from elsewhere"])
def test_a_model_that_is_named_by_its_path_stays(
    how: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another version grew on a path: `sft-1` did on what is called pretrain-1, and two newer ones are."""
    version(workspace, "pretrain-2")
    version(workspace, "pretrain-3", base=str(workspace.models / "pretrain-2"))
    (tmp_path / "link").symlink_to(workspace.models / "sft-2")
    monkeypatch.chdir(workspace.root)
    monkeypatch.setenv("HOME", str(tmp_path))
    version(workspace, "sft-3")
    name = {
        "whole": str(workspace.models / "sft-2"),
        "relative": "./models/../models/sft-2",
        "link": str(tmp_path / "link"),
        "home": "~/ws/models/sft-2",
        "from elsewhere": "ws/models/sft-2",  # as it was typed beside the workspace
    }[how]
    assert "sft-2" not in stages.models_prune(workspace, 1)["kept"]
    atomic_write(workspace.toml, f'[model]\nname = "{name}"\n')
    assert {"sft-2", "pretrain-2"} <= set(stages.models_prune(workspace, 1)["kept"])


def test_a_version_is_what_its_folder_is_called(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy under a name that is none is no version; under a version's name it is damage, and said so."""
    before = stages.models_list(workspace)
    for name in ("policy-03", "policy-0", "policy-\N{ARABIC-INDIC DIGIT THREE}", "policy-3-old"):
        shutil.copytree(workspace.models / "policy-3", workspace.models / name)
    assert stages.models_list(workspace) == before
    with pytest.raises(MannersError, match="there is no version policy-03"):
        stages.models_promote(workspace, "policy-03")
    shutil.copytree(workspace.models / "policy-3", workspace.models / "policy-9")
    assert main(["models", "list", "--workspace", str(workspace.root)]) == 0
    assert "it describes policy-3, and its folder is policy-9" in capsys.readouterr().err
