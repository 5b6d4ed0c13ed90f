"""Checkpoints: whole or not there, refused where they do not fit, passed over where damaged, the same to the bit."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from manners import checkpoint as module
from manners.checkpoint import KEEP, Run, unfinished
from manners.errors import MannersError
from manners.types import Answer, FinishReason, Response, Role, Sampling, Turn
from manners.unfinished import begun_with

BEGUN_WITH = {"seed": 3, "ppo.clip": 0.2, "model.trainable_layers": "all", "limits": (1, 2)}
ANSWER = Answer(
    (Turn(Role.USER, "naïve?"),), Response("ja", "initial", FinishReason.STOP, Sampling(0.7, 8, 1)), (1, 2), (3,)
)


def run(tmp_path: Path, begun_with: dict[str, Any] = BEGUN_WITH, every: float = 0.0) -> Run:
    return Run(tmp_path / "ppo", "manners ppo", begun_with, every)


def resumed(tmp_path: Path) -> dict[str, Any]:
    again = run(tmp_path)
    assert again.go_on()
    return again.state


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    assert not run(tmp_path).go_on()
    first = run(tmp_path)
    first.state["answers"] = [(0, ANSWER)]
    order = random.Random(5)
    weights = torch.nn.Parameter(torch.randn(3))
    first.save({"weights": weights.detach(), "order": order.getstate()})
    expected = weights.detach().clone()
    with torch.no_grad():
        weights.add_(1)
    state = resumed(tmp_path)
    assert state["answers"] == [(0, ANSWER)]
    assert torch.equal(state["weights"], expected)
    again = random.Random()
    again.setstate(state["order"])
    assert again.random() == order.random()
    assert "weights" not in first.state, "what is live is not held on to"


def test_the_last_few_are_kept_and_all_are_dropped_at_the_end(tmp_path: Path) -> None:
    going = run(tmp_path)
    for number in range(KEEP + 10):
        going.state["number"] = number
        going.save()
    assert [path.name for path in unfinished(going.folder)] == [f"checkpoint-{KEEP + 9}", f"checkpoint-{KEEP + 10}"]
    assert resumed(tmp_path) == {"number": KEEP + 9}
    going.end()
    going.end()
    assert list(tmp_path.iterdir()) == []
    run(tmp_path).begin_anew()


def test_work_is_not_done_twice(tmp_path: Path) -> None:
    done: list[int] = []

    def work(item: int) -> int:
        if item == 3 and len(done) < 4:
            raise KeyboardInterrupt
        done.append(item)
        return item * item

    with pytest.raises(KeyboardInterrupt):
        list(run(tmp_path).each("squares", range(5), work))
    again = run(tmp_path)
    assert again.go_on()
    done.append(-1)
    assert list(again.each("squares", range(5), work)) == [0, 1, 4, 9, 16]
    assert done == [0, 1, 2, -1, 3, 4]


def test_a_checkpoint_is_written_when_it_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("manners.checkpoint.time.monotonic", lambda: clock[0])
    going = run(tmp_path, every=60.0)
    seen = []
    for clock[0] in (130.0, 159.0, 160.0, 161.0, 230.0):
        seen.append(going.due)
        if going.due:
            going.save()
    assert seen == [False, False, True, False, True]
    clock[0] = 1000.0
    again = run(tmp_path, every=60.0)
    assert again.go_on()
    clock[0] = 1005.0
    assert again.seconds == 130 + 5, "work before the checkpoint counts, the pause after it does not"


def test_beginning_anew_would_lose_what_is_unfinished(tmp_path: Path) -> None:
    run(tmp_path).save()
    with pytest.raises(MannersError, match="holds an unfinished run: go on with `manners ppo --resume`, or remove"):
        run(tmp_path).begin_anew()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ppo.clip": 0.3}, r"begun with ppo\.clip = 0\.2, and now it is 0\.3: set it as it was"),
        ({"model.trainable_layers": 2}, r"begun with model\.trainable_layers = all, and now it is 2"),
        ({"ppo.new": 1}, r"begun with ppo\.new = None, and now it is 1"),
    ],
)
def test_another_run_is_refused_by_what_differs(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    run(tmp_path).save()
    with pytest.raises(MannersError, match=says):
        run(tmp_path, BEGUN_WITH | change).go_on()


def test_a_run_of_before_there_was_a_setting_goes_on_with_its_default(tmp_path: Path) -> None:
    run(tmp_path).save()
    assert run(tmp_path, {**BEGUN_WITH, "model.recompute": False, "data.prose": None}).go_on()
    with pytest.raises(MannersError, match=r"begun with model\.recompute = False, and now it is True"):
        run(tmp_path, {**BEGUN_WITH, "model.recompute": True}).go_on()


def test_a_run_of_before_a_setting_was_withdrawn_goes_on_where_it_said_what_holds_now(tmp_path: Path) -> None:
    run(tmp_path, BEGUN_WITH | {"ppo.kl_estimator": "k1"}).save()
    assert run(tmp_path).go_on()
    run(tmp_path, BEGUN_WITH | {"ppo.kl_estimator": "k3"}).save()
    says = r"begun with ppo\.kl_estimator = k3, and ppo\.kl_estimator is no longer a setting: .*; remove that folder"
    with pytest.raises(MannersError, match=says):
        run(tmp_path).go_on()


def test_a_run_of_before_a_setting_came_goes_on_where_that_stands_as_it_was_before(tmp_path: Path) -> None:
    run(tmp_path).save()  # knows nothing of ppo.start, whose default is what was done before
    assert run(tmp_path, BEGUN_WITH | {"ppo.start": "initial"}).go_on()
    with pytest.raises(MannersError, match=r"begun with ppo\.start = initial, and now it is current: set it as it was"):
        run(tmp_path, BEGUN_WITH | {"ppo.start": "current"}).go_on()
    with pytest.raises(MannersError, match=r"begun with ppo\.answers = 1, and now it is 4: set it as it was"):
        run(tmp_path, BEGUN_WITH | {"ppo.answers": 4}).go_on()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


HARMS: list[tuple[str, Any]] = [
    ("state.pt", flip),
    ("state.pt", lambda file: file.write_bytes(file.read_bytes()[:-1])),
    ("state.pt", Path.unlink),
    ("checkpoint.json", lambda file: file.write_text("{")),
    ("checkpoint.json", lambda file: file.write_text(json.dumps({"seconds": 1}))),
    ("checkpoint.json", lambda file: file.write_text("[]")),
    ("checkpoint.json", Path.unlink),
]


@pytest.mark.parametrize(("file", "harm"), HARMS)
def test_a_damaged_one_is_said_and_the_one_before_it_is_gone_on_from(
    tmp_path: Path, file: str, harm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    going = run(tmp_path)
    for number in range(2):
        going.state["number"] = number
        going.save()
    older, newest = unfinished(going.folder)
    harm(newest / file)
    assert begun_with(going.folder) == json.loads(json.dumps(BEGUN_WITH)), "each says what the run was begun with"
    again = run(tmp_path)
    assert again.go_on() and again.state == {"number": 0}
    said = capsys.readouterr().err
    told = rf"{re.escape(str(newest))} is damaged \(.+\), and is removed; going on from {older.name}\n"
    assert re.fullmatch(told, said)
    again.save()
    assert unfinished(going.folder) == [older, newest], "it does not push the sound one out"
    assert resumed(tmp_path) == {"number": 0}


@pytest.mark.parametrize(("file", "harm"), HARMS)
def test_where_none_is_sound_that_is_said_and_nothing_is_removed(tmp_path: Path, file: str, harm: Any) -> None:
    going = run(tmp_path)
    for number in range(2):
        going.state["number"] = number
        going.save()
    there = unfinished(going.folder)
    for checkpoint in there:
        harm(checkpoint / file)
    told = rf"^{re.escape(str(there[-1]))} is damaged \(.+\), and no checkpoint before it is sound: remove \S+ to begin"
    with pytest.raises(MannersError, match=told):
        run(tmp_path).go_on()
    assert unfinished(going.folder) == there


def test_a_half_written_one_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going = run(tmp_path)
    going.state["number"] = 0
    going.save()
    going.state["number"] = 1
    monkeypatch.setattr(module, "_digest", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        going.save()
    monkeypatch.undo()
    (going.folder / f".checkpoint-2.elsewhere-{2**22 + 1}-abc.partial").mkdir()
    assert resumed(tmp_path) == {"number": 0}
