"""How a batch is divided, what workers take, and who is refused before Ray starts."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from manners import cli
from manners.cli import main
from manners.errors import MannersError, UsageError
from manners.loop.options import PPOOptions
from manners.models.branches import Branch
from manners.models.cost import own_bytes
from manners.scale.cluster import check, threads_each
from manners.scale.cost import handed_over_bytes, returned_bytes, worker_bytes
from manners.settings import RewardSettings, SampleSettings, Settings
from manners.workspace import Workspace
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
