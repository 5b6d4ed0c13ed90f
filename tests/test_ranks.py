"""What processes that train as one share out, add up and tell each other; and what becomes of one that is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import manners
from manners import ranks
from manners.errors import MannersError
from manners.launched import Place, told
from manners.training import Term, Training

ROOT = Path(manners.__file__).parents[1]
WORLD = """
import json, os, sys
import torch
from torch import nn
from manners import ranks
from manners.errors import MannersError
from manners.launched import Place

number, count, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
torch.set_num_threads(4)
ranks.join(Place(number, count, number, count), meeting)
ranks.compute_with(2)
found = {"number": ranks.number(), "share": list(ranks.share(list(range(7))))}
parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
parameters[0].grad = torch.tensor([1.0, 10.0]) * (number + 1)
if number:
    parameters[1].grad = torch.ones(2)
ranks.add_up(parameters)
found["gradients"] = [None if p.grad is None else p.grad.tolist() for p in parameters]
found["gathered"] = ranks.gathered({"who": number, "said": ["a"] * number})
summed = ranks.summed({"both": torch.tensor(2.0), f"own{number}": torch.tensor(3.0)})
found["summed"] = {name: float(value) for name, value in summed.items()}
found["all"] = ranks.all_of([number] * number)
ranks.look(parameters)
with torch.no_grad():
    parameters[0] += number * 1e-9
try:
    ranks.look(parameters)
except MannersError as error:
    found["look"] = str(error)
print(json.dumps(found), flush=True)
if len(sys.argv) > 4 and number:
    os.kill(os.getpid(), 9)
threads = torch.get_num_threads()
try:
    ranks.leave()
except MannersError as error:
    print(json.dumps(str(error)), flush=True)
    ranks.forsake()
    sys.exit(3)
print("alone", ranks.count(), threads, torch.get_num_threads(), flush=True)
try:
    ranks.join(Place(0, 2, 0, 2))
except MannersError as error:
    print(error, flush=True)
"""


def world(folder: Path, count: int, *more: str) -> list[tuple[int, list[str]]]:
    """Run the script in so many processes; return exit code and lines of each."""
    script = folder / "world.py"
    script.write_text(WORLD, encoding="utf-8")
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(number), str(count), (folder / "meeting").as_uri(), *more],
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    said = [process.communicate(timeout=300)[0].splitlines() for process in running]
    return [(process.returncode, lines) for process, lines in zip(running, said, strict=True)]


def test_three_share_add_up_and_part(tmp_path: Path) -> None:
    ended = world(tmp_path, 3)
    assert [code for code, _ in ended] == [0, 0, 0]
    found = [json.loads(lines[0]) for _, lines in ended]
    assert [one["share"] for one in found] == [[0, 3, 6], [1, 4], [2, 5]]
    for one in found:
        assert one["gradients"] == [[6.0, 60.0], [2.0, 2.0], None], "the sum; what nobody has stays away"
        assert one["gathered"] == [{"who": n, "said": ["a"] * n} for n in range(3)]
        assert one["summed"] == {"both": 6.0, "own0": 3.0, "own1": 3.0, "own2": 3.0}
        assert one["all"] == [1, 2, 2]
        assert "process 2 of 3 holds other parameters" in one["look"]
    alone, again = ended[0][1][1:]
    assert alone == "alone 1 2 4", "the first goes on, with the threads that it had"
    assert "this process has trained along once" in again
    assert all(lines[1:] == [] for _, lines in ended[1:]), "the others end there"


@pytest.mark.long
def test_who_is_left_says_so(tmp_path: Path) -> None:
    first, second = world(tmp_path, 2, "killed")
    assert second[0] == -9 and first[0] == 3
    assert "another process that trains along was lost" in first[1][1] and "--resume" in first[1][1]


@pytest.mark.long
def test_who_has_waited_in_vain_meets_nobody_any_more(tmp_path: Path) -> None:
    code = (
        "import os, sys, threading, time\nfrom manners import ranks\nfrom manners.errors import MannersError\n"
        "from manners.launched import Place\n"
        "meet = lambda: ranks.join(Place(0, 2, 0, 2), sys.argv[1])\n"
        "threading.Thread(target=meet, daemon=True).start()\n"
        "while not ranks._missed: time.sleep(0.05)\n"
        "try: meet()\nexcept MannersError as error: print(error, flush=True)\n"
        "os._exit(0)"  # an interpreter that ends while a thread is in torch may abort
    )
    command = [sys.executable, "-c", code, (tmp_path / "meeting").as_uri()]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0 and "this process can meet no others: start it anew" in done.stdout


def test_alone_nothing_is_done() -> None:
    parameter = nn.Parameter(torch.ones(2))
    ranks.add_up([parameter])
    ranks.look([parameter])
    ranks.wait()
    ranks.leave()
    assert parameter.grad is None
    value = object()
    assert ranks.gathered(value) == [value] and ranks.place() == Place(0, 1)


@given(st.integers(0, 40), st.integers(1, 9))
def test_shares_follow_one_another_and_are_alike(rows: int, workers: int) -> None:
    found = ranks.divided(rows, workers)
    assert [row for of in found for row in of] == list(range(rows))
    sizes = [len(of) for of in found]
    assert len(sizes) == min(rows, workers) and (not sizes or max(sizes) - min(sizes) <= 1)


@pytest.mark.parametrize("said", [{}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}])
def test_nobody_has_said_anything(said: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert told() is None


def test_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert told() == Place(5, 8, 1, 4)


def test_devices_that_cannot_be_shared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(MannersError, match="2 processes train on this machine, and it has 1 GPUs"):
        ranks.join(Place(0, 2, 0, 2), "file:///nowhere", "cuda")
    with pytest.raises(MannersError, match=r"model\.device is mps, on which one process trains"):
        ranks.join(Place(0, 2, 0, 2), "file:///nowhere", "mps")


def test_the_parameters_are_looked_at_in_the_first_step_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = list[int]()
    monkeypatch.setattr(ranks, "look", lambda parameters: looks.append(len(parameters)))
    parameter = nn.Parameter(torch.ones(2))
    training = Training([parameter], 0.1, 1.0)
    for _ in range(ranks.LOOK_EVERY + 1):
        training.learn([Term("all", 1.0, "all", lambda: (parameter.square().sum(), {}))])
        training.step(MannersError("not finite"))
    assert looks == [1, 1]
