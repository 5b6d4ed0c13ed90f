"""Two processes in one workspace, and one that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

import manners
from manners.errors import MannersError
from manners.loop import stages
from manners.settings import Settings
from manners.store import Store
from manners.store.accounts import Accounts
from manners.store.files.transfer import import_comparisons
from manners.store.tokens import TokenUse
from manners.types import AccountRole, Annotator, AnnotatorKind, Choice, Verdict
from manners.workspace import FORMAT, Workspace
from tests.loop import tiny
from tests.postgres import wait_until_quiet
from tests.web.conftest import NOWHERE, serve
from tests.web.test_label import pair

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(manners.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
COMMAND = "import sys; from manners.cli import main; sys.exit(main())"


@pytest.fixture
def shared(copy: Workspace, database: str) -> Workspace:
    """A copy of the finished demo, with its store in the folder and on a server."""
    if "://" not in database:
        return copy
    with closing(Store.open(copy.database)) as old, closing(Store.create(database)) as new:
        for prompt in old.prompts():
            new.add_prompts([prompt.dialogue], prompt.use, "demo")
        new.add_comparisons(old.comparisons())
        for version in old.versions():
            new.add_version(version)
    (copy.root / "store.db").unlink()
    (copy.root / "workspace.json").write_text(json.dumps({"format": FORMAT, "database": database}))
    return Workspace.open(copy.root)


@pytest.fixture
def endless(shared: Workspace, model: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`manners ppo` in a process of its own, with a hundred thousand updates before it, and two behind it."""
    changed = [f"model.name={model}", "ppo.updates=100000", "ppo.kl_stop=10000", "ppo.learning_rate=0.000001"]
    changed += ["checkpoint_every=86400"]  # so that what it leaves does not depend on how fast it is here
    changed += ["model.trainable_layers=2", "model.context=256", "sample.max_new_tokens=8", "ppo.batch=4"]
    sets = [part for setting in changed for part in ("--set", setting)]
    command = [sys.executable, "-c", COMMAND, "ppo", "--workspace", str(shared.root), *sets]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
        curves = shared.runs / "policy-2" / "metrics.jsonl"
        for _ in range(1200):
            if process.poll() is not None or (curves.is_file() and curves.read_text(encoding="utf-8").count("\n") > 2):
                break
            time.sleep(0.1)
        if process.poll() is not None and process.stderr is not None:
            pytest.fail(process.stderr.read().decode())
        yield process
        process.kill()


@pytest.mark.long
def test_one_trains_while_others_import_label_and_are_served_and_a_killed_run_leaves_nothing_half(
    endless: subprocess.Popen[bytes], shared: Workspace, model: Path, tmp_path: Path
) -> None:
    settings: Settings = tiny.settings(model)
    told = rf"`ppo`, process {endless.pid}( on \S+)?, is training in .*: wait for it to end"

    # Another training is refused at once, naming who trains.
    for train in (stages.train_reward, stages.train_policy):
        with pytest.raises(MannersError, match=told):
            train(shared, settings, plan=False)
        assert endless.poll() is None, "it was refused, and did not wait for the other to end"

    # Importing, answering and serving go on.
    store = Store.open(shared.database)
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "a?", "chosen": "yes", "rejected": "no"}) + "\n", encoding="utf-8")
    import_comparisons(store, file, {}, skip_bad=False)
    before = store.watermark()
    store.add_verdicts([(1, Verdict(Choice.TIE, Annotator("anna", AnnotatorKind.HUMAN)))])
    assert store.watermark() == before + 1
    assert len(store.comparisons()) == 25
    accounts = Accounts(store)
    accounts.add("ben", AccountRole.OWNER, None)
    headers = {"authorization": f"Bearer {accounts.issue(TokenUse.KEY, 'ben')}"}
    store.add_comparisons([pair(0)])
    at_once = ("--set", "serve.shortest_view=0")
    with serve(shared.root, "--upstream", NOWHERE, *at_once) as server, httpx.Client(base_url=server.url) as client:
        shown = client.post("/label/next", headers=headers, json={}).json()["pair"]
        given = client.post("/label/verdict", headers=headers, json={"view": shown["view"], "choice": "both_bad"})
    assert given.status_code == 200
    assert [v.choice for c in store.comparisons() for v in c.verdicts if v.annotator.name == "ben"] == [Choice.BOTH_BAD]
    assert stages.status(shared)["policies"] == ["policy-1"]
    assert endless.poll() is None

    # Killed in the middle: the workspace opens, holds no half version, and trains again under the same name.
    endless.send_signal(signal.SIGKILL)
    endless.wait()
    if shared.url is not None:
        wait_until_quiet(shared.url)
    workspace = Workspace.open(shared.root)
    assert not list(workspace.root.rglob("*.partial"))
    assert sorted(folder.name for folder in workspace.models.glob("*-*")) == ["policy-1", "reward-1"]
    facts = stages.train_policy(workspace, settings, plan=False)
    assert facts["version"] == "policy-2"
    points = (workspace.runs / "policy-2" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in points] == [0, 1, 2], "the curves are this run's alone"
    assert [v.name for v in store.versions()] == ["reward-1", "policy-1", "policy-2"]
    store.close()
