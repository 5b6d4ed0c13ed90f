"""Kept trunk states are those that the trunk computes, whatever the order and the batch."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Literal

import pytest
import torch

from manners.errors import MannersError
from manners.models import states
from manners.models.branches import ScalarBranch, set_trainable
from manners.models.states import StateStore, kept_bytes, reserve
from manners.models.trunk import grow_trunk
from manners.text import Rendered, collate
from tests.worlds import tiny_model, with_compute

LENGTHS = enumerate((4, 0, 4, 2, 4, 0))
SEQUENCES = [Rendered(tuple(range(5, 6 + n)), tuple(range(50, 52 + n % 3 + i))) for i, n in LENGTHS]
"""Three prompts with one, two and three responses."""


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("layers", [2, "all"])
@torch.no_grad()
def test_states_of_any_choice_are_the_trunks(tmp_path: Path, layers: int | Literal["all"], share: bool) -> None:
    trunk = with_compute(grow_trunk(tiny_model(), layers), shares_prompts=share)
    store = StateStore(trunk, SEQUENCES, 0, tmp_path / "states")
    for chosen in ([0], [3, 1], [5, 5, 2, 0]):
        states, batch = store.batch(chosen)
        for index, (row, start, stop) in zip(chosen, batch.spans, strict=True):
            alone = collate([SEQUENCES[index]], 0)
            prompt = len(SEQUENCES[index].prompt_ids)
            columns = [*range(prompt), *range(start, stop)]
            assert torch.equal(batch.ids[row, columns], alone.ids[0])
            torch.testing.assert_close(states[row, columns], trunk.states(alone)[0], atol=1e-4, rtol=1e-4)
    if layers == "all":  # an empty trunk keeps nothing
        assert not (tmp_path / "states").exists()
    else:  # each prompt once
        tokens = 5 + 1 + 3 + sum(len(r.response_ids) for r in SEQUENCES)
        found = (tmp_path / "states").stat()
        assert found.st_size == kept_bytes(SEQUENCES, trunk) == tokens * trunk.width * 4
        assert found.st_blocks * 512 >= found.st_size, "no holes"


@torch.no_grad()
def test_states_are_kept_in_the_models_own_format(tmp_path: Path) -> None:
    model = tiny_model()
    torch.nn.Module.to(model, dtype=torch.bfloat16)
    trunk = with_compute(grow_trunk(model, 2), shares_prompts=True)
    store = StateStore(trunk, SEQUENCES, 0, tmp_path / "states")
    tokens = 5 + 1 + 3 + sum(len(r.response_ids) for r in SEQUENCES)
    assert (tmp_path / "states").stat().st_size == kept_bytes(SEQUENCES, trunk) == tokens * trunk.width * 2
    states, batch = store.batch(range(6))
    assert states.dtype is torch.bfloat16
    torch.testing.assert_close(states[batch.positions > 0], trunk.states(batch)[batch.positions > 0])


@torch.no_grad()
def test_states_that_are_not_kept_are_computed_for_each_batch(tmp_path: Path) -> None:
    kept = with_compute(grow_trunk(tiny_model(), 2), shares_prompts=True)
    stores = [StateStore(t, SEQUENCES, 0, tmp_path / "states") for t in (replace(kept, keeps_states=False), kept)]
    (states, batch), (expected, _) = (store.batch([3, 1, 4]) for store in stores)
    for row, start, stop in batch.spans:
        torch.testing.assert_close(states[row, start:stop], expected[row, start:stop], atol=1e-4, rtol=1e-4)
    discard = tmp_path / "none"
    StateStore(replace(kept, keeps_states=False), SEQUENCES, 0, discard)
    assert not discard.exists()


@pytest.mark.parametrize("share", [True, False])
def test_branches_score_and_learn_from_kept_states(tmp_path: Path, share: bool) -> None:
    trunk = with_compute(grow_trunk(tiny_model(), 2), shares_prompts=share)
    branch = ScalarBranch(trunk, torch.Generator().manual_seed(0))
    states, batch = StateStore(trunk, SEQUENCES, 0, tmp_path / "states").batch(range(6))
    assert len(batch.ids) == (3 if share else 6)
    parameters = set_trainable([branch])
    weights = torch.arange(1.0, 7.0)
    scores = branch.scores(states, batch)
    gradients = torch.autograd.grad((weights * scores).sum(), parameters)
    expected = [torch.zeros_like(p) for p in parameters]
    for weight, score, sequence in zip(weights, scores, SEQUENCES, strict=True):
        alone = collate([sequence], 0)
        again = branch.scores(trunk.states(alone), alone)[0]
        torch.testing.assert_close(again, score, atol=1e-4, rtol=1e-4)
        expected = [e + g for e, g in zip(expected, torch.autograd.grad(weight * again, parameters), strict=True)]
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert max(float(g.abs().max()) for g in gradients) > 0.01


def no_such_call(*_: object) -> None:
    """Stands for a disk that cannot take space in one call."""
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.mark.parametrize("call", [None, no_such_call], ids=["no system call", "no support on the disk"])
@pytest.mark.parametrize("size", [0, 3, 2**20, 2**20 + 5])
def test_space_is_taken_where_there_is_no_call_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, call: object
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", call, raising=False)
    reserve(tmp_path / "states", size)
    assert (tmp_path / "states").read_bytes() == bytes(size)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["one", "writing"])
def test_a_disk_without_room_is_told_in_one_sentence_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    class Full:
        """A file on a full disk."""

        def __init__(self, stream: IO[bytes]) -> None:
            self.fileno, self.write = stream.fileno, full

    if call == "one":
        monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    else:
        allocate = states._allocate
        monkeypatch.setattr(os, "posix_fallocate", None, raising=False)
        monkeypatch.setattr(states, "_allocate", lambda stream, size: allocate(Full(stream), size))  # type: ignore[arg-type]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_234))
    trunk = with_compute(grow_trunk(tiny_model(), 2), shares_prompts=True)
    monkeypatch.setattr(type(trunk), "states", lambda *_: pytest.fail("it was read"))
    with pytest.raises(MannersError) as caught:
        StateStore(trunk, SEQUENCES, 0, tmp_path / "states")
    assert str(caught.value) == (
        f"the trunk's states take {kept_bytes(SEQUENCES, trunk):,} bytes in {tmp_path}, and 1,234 are free there:"
        " make room on that disk, set a lower reward.limit or sft.limit, or set model.trunk_states to recomputed"
    )
    assert not list(tmp_path.iterdir())


def test_what_else_goes_wrong_with_the_file_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "posix_fallocate", broken, raising=False)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        reserve(tmp_path / "states", 3)
