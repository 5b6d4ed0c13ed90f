"""How a batch is divided, what workers take, and who is refused before Ray starts."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import tyro
from safetensors.torch import save_file

from manners import cli
from manners.cli import main
from manners.errors import MannersError, UsageError
from manners.loop.options import PPOOptions
from manners.models.branches import Branch
from manners.models.cost import own_bytes
from manners.scale.cluster import check, divided_among, threads_each
from manners.scale.cost import handed_over_bytes, returned_bytes, worker_bytes
from manners.scale.workers import Kin, Parts
from manners.settings import ModelSettings, RewardSettings, SampleSettings, Settings
from manners.workspace import INITIAL, Workspace
from tests.worlds import tiny_pretrained


@pytest.mark.parametrize(
    ("cpus", "workers", "each"),
    [
        ([2], 1, 2),
        ([2], 2, 1),
        ([2], 3, 0),
        ([8], 3, 2),
        ([32, 32], 2, 32),
        ([32, 32], 3, 16),
        ([32, 4], 3, 10),
        ([32.0, 0.5], 2, 16),
        ([], 1, 0),
    ],
)
def test_workers_have_as_many_threads_as_there_is_room_for(cpus: list[float], workers: int, each: int) -> None:
    assert threads_each(cpus, workers) == each


@pytest.mark.parametrize(
    ("nodes", "count", "on_gpu", "each"),
    [
        ([(8, 2)], 2, True, 4),
        ([(8, 1), (2, 1)], 2, True, 2),
        ([(8, 1), (8, 0)], 2, True, 0),
        ([(8, 1), (8, 0)], 2, False, 8),
        ([(8, 1)], 3, True, 0),
    ],
)
def test_where_the_model_is_on_a_gpu_each_has_one_or_is_refused(
    nodes: list[tuple[int, int]], count: int, on_gpu: bool, each: int
) -> None:
    """Ray waits for a GPU that there is not, for half an hour a worker and for ever under Ray Train."""
    alive = [{"Alive": True, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})} for cpus, gpus in nodes]
    ray = SimpleNamespace(nodes=lambda: alive)
    if each:
        assert divided_among(ray, count, "workers", on_gpu) == each
        return
    total = f"{sum(cpus for cpus, _ in nodes)} processors and 1 GPUs, of which each takes one"
    with pytest.raises(MannersError, match=f"--workers is {count}, and the Ray cluster has {total}"):
        divided_among(ray, count, "workers", on_gpu)


def test_what_a_worker_finds_in_its_workspace_is_compared_too(tmp_path: Path) -> None:
    """A machine with a copy of the folder, in which the reward model is another one, would score by that unseen."""
    pretrained, roots = tiny_pretrained(), (tmp_path / "trainer", tmp_path / "worker")
    for root in roots:
        workspace = Workspace.create(root)
        for name, value in (("reward-1", 1.0), ("reward-2", 1.0), ("policy-1", 1.0)):
            folder = workspace.models / name
            folder.mkdir()
            (folder / "version.json").write_text("{}", encoding="utf-8")
            save_file({"x": torch.full((3,), value)}, folder / "branch-0.safetensors")

    def kin(root: Path, reward: str = "reward-1", start: str = "policy-1") -> Kin:
        return Kin.of(pretrained, Parts(root, ModelSettings(), SampleSettings(), start, reward, lays_out=False))

    ours = kin(roots[0])
    assert not ours.unlike(kin(roots[1])) and not kin(roots[0], start=INITIAL).unlike(kin(roots[1], start=INITIAL))
    (roots[1] / "models" / "reward-1" / "version.json").write_text('{"shifts": [2]}', encoding="utf-8")
    assert ours.unlike(kin(roots[1])).startswith(f"reward {kin(roots[1]).reward[:20]} and here {ours.reward[:20]}")
    assert not kin(roots[0], "reward-2").unlike(kin(roots[1], "reward-2"))
    save_file({"x": torch.zeros(3)}, roots[1] / "models" / "policy-1" / "branch-0.safetensors")
    assert kin(roots[0], "reward-2").unlike(kin(roots[1], "reward-2")).startswith("start ")


def test_to_look_for_ray_does_not_load_it() -> None:
    """It reads how it is to start when it loads, and that is said only then."""
    program = "import sys; from manners.scale import cluster; cluster.check(); sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_ray_workers_are_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MannersError, match=r"pip install 'manners\[scale\]'"):
        check()
    root = Workspace.create(tmp_path / "project").root
    assert main(["ppo", "--workspace", str(root), "--workers", "2"]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--workers and --ray-address take Ray, which is not installed: run" in last
    assert last.endswith("`pip install 'manners[scale]'`, or leave them out")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (PPOOptions(workers=0), "--workers N takes a number from 1 on"),
        (PPOOptions(ray_address="10.0.0.1:6379"), "--ray-address says where processes are: name their number"),
        (PPOOptions(workers=2, ray_address="ray://10.0.0.1:10001"), "--ray-address takes HOST:PORT or auto"),
    ],
)
def test_workers_that_there_cannot_be_are_wrong_usage(options: PPOOptions, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        options.check(plan=False, resume=False)


def test_the_command_takes_workers_and_an_address() -> None:
    PPOOptions().check(plan=True, resume=True)
    PPOOptions(workers=1, ray_address="auto").check(plan=True, resume=True)
    args = shlex.split("ppo --workers 2 --ray-address 10.0.0.1:6379")
    chosen = tyro.cli(cli.Command, prog="manners", args=args)
    assert (chosen.workers, chosen.ray_address) == (2, "10.0.0.1:6379")


def test_what_travels_and_what_a_worker_takes_is_counted_by_hand() -> None:
    trunk = tiny_pretrained().trunk
    branch = sum(p.numel() for p in Branch(trunk, trainable=True).parameters() if p.requires_grad)
    assert handed_over_bytes(trunk) == 4 * branch
    settings = Settings(sample=SampleSettings(max_new_tokens=8), reward=RewardSettings(members=2, curve=False))
    states = 5 * (20 + 8) * 32 * 4
    ids_and_mask = 5 * (20 + 8) * 9
    assert returned_bytes(trunk, settings, 5, 20) == states + ids_and_mask + 5 * 4 * (8 + 8 + 2)
    more = replace(settings, reward=replace(settings.reward, members=4))
    one, with_start, with_members = (
        worker_bytes(trunk, chosen, 5, 5, 20, beside) for chosen, beside in ((settings, 0), (settings, 1), (more, 0))
    )
    assert with_start - one == 4 * branch
    assert with_members - one == 2 * own_bytes(trunk, head=False)
    assert torch.float32 is trunk.whole.dtype
