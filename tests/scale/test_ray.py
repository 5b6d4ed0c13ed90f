"""PPO with workers on Ray: the same update as without, whatever becomes of a worker, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import manners
from manners.errors import MannersError
from manners.loop import ppo, stages
from manners.loop.options import TrainingOptions
from manners.loop.round import REWARD, SFT
from manners.loop.session import Session
from manners.loop.stage import execute
from manners.scale import crew as crew_module
from manners.scale.cluster import LOCAL, LOOPBACK, running
from manners.scale.workers import Worker
from manners.settings import Settings
from manners.workspace import Workspace
from tests.scale import faults
from tests.scale.conftest import Ended, Train
from tests.scale.processes import descendants, holding, listened_to, running_as, wait_until

os.environ.update(LOCAL)  # before Ray is loaded, whichever test comes first
pytest.importorskip("ray", reason="an optional part: pip install 'manners[scale]'")
pytestmark = pytest.mark.long

ROOT = Path(manners.__file__).parents[1]
STORE = 100_000_000
LOOPBACKS = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1 as the kernel writes it, by itself and in IPv6, and IPv6's own."""


def apart(one: Ended, other: Ended) -> float:
    """Largest difference between the policies that two runs came to."""
    theirs = other.policy
    return max(float((tensor - theirs[name]).abs().max()) for name, tensor in one.policy.items())


def same_update(one: Ended, other: Ended) -> None:
    assert apart(one, other) <= 1e-5
    for name in ("objective/scores", "objective/kl", "response/length", "policy/approxkl_avg"):
        assert one.curve(name) == pytest.approx(other.curve(name), abs=1e-5, rel=1e-5), name


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster that another process has started: most tests go there, since a start takes long."""
    code = (
        "import sys\nfrom manners.scale.cluster import running\nwith running(None, 2, 100_000_000) as ray:\n"
        " print(ray.get_runtime_context().gcs_address, flush=True)\n sys.stdin.read()"
    )
    token = os.environ.setdefault("RAY_AUTH_TOKEN", "b" * 64)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": token}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


def test_two_workers_one_worker_and_none_give_the_same_update(train: Train, undisturbed: Ended, cluster: str) -> None:
    none, one, two = undisturbed, train(1, cluster, name="with-1"), train(2, cluster, name="with-2")
    initial = load_file(none.root / "models" / "policy-1" / "branch-0.safetensors")
    assert max(float((t - initial[n]).abs().max()) for n, t in none.policy.items()) > 1e-3, "nothing was learnt"
    same_update(none, one)
    same_update(none, two)
    assert two.curve("workers/count") == [2, 2] and two.curve("workers/replaced") == [0, 0]
    branch = sum(tensor.nbytes for tensor in two.policy.values())
    assert two.curve("workers/handovers") == [1, 2] and two.curve("workers/handover_bytes") == [branch, 2 * branch]
    assert max(two.curve("workers/apart")) < 1e-4
    assert "workers/count" not in none.facts["curves"]


@pytest.mark.parametrize(
    ("kind", "says", "thrown_away", "workers"),
    [
        (faults.Dies, "it was lost (ActorDiedError)", 0, 2),
        (faults.Stale, "its weights are stale: those of hand-over 1, and this is number 2", 0, 2),
        (faults.Lies, "its weights are not the trainer's", 0, 1),
        (faults.Corrupts, "its weights are not the trainer's", 0, 1),
        (faults.Miscomputes, "with the trainer's weights its log-probabilities are off by", 0, 1),
        (faults.Drifts, "16 responses of hand-over 2 are thrown away", 16, 1),
    ],
)
def test_a_worker_that_fails_is_replaced_and_the_run_ends_as_if_it_had_not(
    kind: type[Worker],
    says: str,
    thrown_away: int,
    workers: int,
    train: Train,
    undisturbed: Ended,
    cluster: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(crew_module, "HANDOVER_SECONDS", 3600.0)  # a busy machine is no fault
    monkeypatch.setattr(ppo, "crew", partial(crew_module.crew, kind=kind))
    disturbed = train(workers, cluster)
    assert (disturbed.root / "a worker has failed").exists()
    said = [line for line in capsys.readouterr().err.splitlines() if "is replaced" in line]
    assert len(said) == 1 and says in said[0]
    same_update(undisturbed, disturbed)
    assert disturbed.curve("workers/replaced")[-1] == 1
    assert disturbed.curve("workers/thrown_away")[-1] == thrown_away


def test_a_hand_over_that_hangs_is_given_up(
    train: Train,
    undisturbed: Ended,
    cluster: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(crew_module, "HANDOVER_SECONDS", 20.0)
    monkeypatch.setattr(ppo, "crew", partial(crew_module.crew, kind=faults.Hangs))
    disturbed = train(1, cluster)
    assert (disturbed.root / "a worker has failed").exists()
    said = [line for line in capsys.readouterr().err.splitlines() if "is replaced" in line]
    assert said and all("a hand-over of weights took more than 20 seconds" in line for line in said)
    assert disturbed.curve("workers/replaced")[-1] == len(said)  # more than one where the machine is busy
    same_update(undisturbed, disturbed)


def test_workers_that_always_fail_end_the_run_with_a_sentence(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descendants(os.getpid())
    monkeypatch.setattr(ppo, "crew", partial(crew_module.crew, kind=faults.Breaks))
    with pytest.raises(MannersError, match=r"^worker \d failed 4 times in one rollout, at last because it failed with"):
        train(1)
    assert descendants(os.getpid()) <= before


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux tells who listens where")
def test_ray_listens_on_this_machine_alone_and_ends_with_the_run() -> None:
    before = descendants(os.getpid())
    with running(None, 1, STORE) as ray:
        found = descendants(os.getpid())
        assert len(found) > len(before) + 1, "Ray has processes of its own"
        assert listened_to(found) and listened_to(found) <= LOOPBACKS
        assert ray.get_runtime_context().gcs_address.startswith(LOOPBACK)
        assert not ray._private.worker.global_worker.node.webui_url
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and os.environ["RAY_AUTH_MODE"] == "token"
    assert descendants(os.getpid()) <= before


def test_nobody_without_the_token_comes_in() -> None:
    code = "import ray, sys; ray.init(sys.argv[1], logging_level=50); print(ray.get(ray.remote(lambda: 1).remote()))"
    with running(None, 1, STORE) as ray:
        address = ray.get_runtime_context().gcs_address
        for token, comes_in in ((os.environ["RAY_AUTH_TOKEN"], True), ("a" * 64, False)):
            environment = os.environ | {"RAY_AUTH_TOKEN": token}
            command = [sys.executable, "-c", code, address]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
            assert (done.returncode == 0, done.stdout.strip() == "1") == (comes_in, comes_in), done.stderr


def test_workers_on_a_cluster_of_the_runs_own(undisturbed: Ended, train: Train) -> None:
    same_update(undisturbed, train(2))


def test_more_workers_than_a_cluster_has_processors_are_refused(cluster: str, train: Train) -> None:
    with pytest.raises(MannersError, match="--workers is 3, and the Ray cluster has 2 processors"):
        train(3, cluster)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "somewhere"])
def test_no_cluster_at_the_address_is_said(address: str) -> None:
    with pytest.raises(MannersError, match=rf"^no Ray cluster can be used at {address} "), running(address, 1, STORE):
        pass


COMMAND = "import sys; from manners.cli import main; sys.exit(main())"
UPDATES = 30


def ppo_command(workspace: Path, chosen: Settings, *more: str) -> list[str]:
    changed = [f"model.name={chosen.model.name}", f"ppo.updates={UPDATES}", "ppo.kl_stop=10000"]
    changed += ["ppo.learning_rate=0.0001", "ppo.batch=8", "ppo.minibatch=4", "checkpoint_every=0"]
    changed += [f"model.trainable_layers={chosen.model.trainable_layers}", "model.context=256", "model.device=cpu"]
    changed += ["sample.max_new_tokens=8", "sample.temperature=1.0", "ppo.validation_prompts=4", "seed=3"]
    sets = [part for setting in changed for part in ("--set", setting)]
    return [sys.executable, "-c", COMMAND, "ppo", "--workspace", str(workspace), *more, *sets]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="Linux tells whose processes are left")
def test_a_killed_run_leaves_no_process_and_goes_on_to_the_same_end(
    taught: Path, chosen: Settings, tmp_path: Path
) -> None:
    whole, killed = (Workspace.open(shutil.copytree(taught, tmp_path / name)) for name in ("whole", "killed"))
    token = "c" * 64
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_AUTH_TOKEN": token}
    subprocess.run(ppo_command(whole.root, chosen, "--workers", "2"), env=environment, check=True, timeout=600)
    wait_until(lambda: not holding(f"RAY_AUTH_TOKEN={token}"))
    with subprocess.Popen(ppo_command(killed.root, chosen, "--workers", "2"), env=environment) as process:
        curves = killed.runs / "policy-2" / "metrics.jsonl"
        wait_until(lambda: curves.is_file() and curves.read_text().count("\n") > 5)
        assert len(holding(f"RAY_AUTH_TOKEN={token}")) > 3
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not holding(f"RAY_AUTH_TOKEN={token}"))  # some look for Ray's store for a minute
    assert curves.read_text().count("\n") < UPDATES
    again = ppo_command(killed.root, chosen, "--workers", "2", "--resume")
    subprocess.run(again, env=environment, check=True, timeout=600)
    ends = [load_file(one.models / "policy-2" / "branch-0.safetensors") for one in (whole, killed)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_the_plan_counts_every_worker(taught: Path, chosen: Settings) -> None:
    workspace = Workspace.open(taught)
    alone, two, three = (stages.train_policy(workspace, chosen, plan=True, workers=workers) for workers in (None, 2, 3))
    assert "workers" not in alone["memory_bytes"] and "drawing_responses" not in two["memory_bytes"]
    for count, plan in ((2, two), (3, three)):
        assert plan["memory_bytes"]["workers"] == count * plan["each_worker_bytes"]
    assert three["each_worker_bytes"] < two["each_worker_bytes"], "a smaller share is drawn"
    far = stages.train_policy(workspace, chosen, plan=True, workers=2, ray_address="10.0.0.1:6379")
    assert "workers" not in far["memory_bytes"] and far["each_worker_bytes"] == two["each_worker_bytes"]


def test_processes_under_ray_train_make_the_same_update_also_where_one_is_killed(
    taught: Path, chosen: Settings, tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reward model by one process, by two of the cluster, and by two of which one is killed on the way."""
    long = replace(chosen, checkpoint_every=0.0, reward=replace(chosen.reward, epochs=12))

    def run(name: str, options: TrainingOptions) -> tuple[dict[str, torch.Tensor], int]:
        workspace = Workspace.open(shutil.copytree(taught, tmp_path / name))
        facts = execute(REWARD, Session(workspace, long), options).facts
        files = sorted((workspace.models / str(facts["version"])).glob("*.safetensors"))
        return {f"{f.name} {n}": t for f in files for n, t in load_file(f).items()}, facts["processes"]

    on_cluster = TrainingOptions(processes=2, ray_address=cluster)
    alone, one = run("alone", TrainingOptions())
    both, two = run("both", on_cluster)
    assert (one, two) == (1, 2) and len(alone) > 4
    assert max(float((tensor - both[name]).abs().max()) for name, tensor in alone.items()) <= 1e-5
    killed = list[int]()

    def kill_one() -> None:
        wait_until(lambda: len(list((tmp_path / "killed" / "runs" / "reward").glob("checkpoint-1[0-9]"))) > 0)
        killed.append(running_as("RayTrainWorker").pop())
        os.kill(killed[0], signal.SIGKILL)

    with ThreadPoolExecutor(1) as beside:
        waiting = beside.submit(kill_one)
        disturbed, _ = run("killed", on_cluster)
        waiting.result()
    assert killed and "all begin again from the last checkpoint: " in capsys.readouterr().err
    assert all(torch.equal(tensor, disturbed[name]) for name, tensor in both.items())


def test_what_a_process_under_ray_train_refuses_is_said_once(
    taught: Path, chosen: Settings, tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace.open(shutil.copytree(taught, tmp_path / "refused"))
    wrong = replace(chosen, sft=replace(chosen.sft, examples=str(tmp_path / "nowhere.jsonl")))
    with pytest.raises(MannersError, match=r"nowhere\.jsonl"):
        execute(SFT, Session(workspace, wrong), TrainingOptions(processes=2, ray_address=cluster))
    assert "all begin again" not in capsys.readouterr().err
    with pytest.raises(MannersError, match="--processes is 3, and the Ray cluster has 2 processors"):
        execute(SFT, Session(workspace, chosen), TrainingOptions(processes=3, ray_address=cluster))
