"""Muon in float32 is torch's Muon but for the number format, and makes singular values equal."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from manners.muon import Muon, orthogonal

SHAPES = [(16, 16), (16, 48), (48, 16), (16, 16), (5, 7)]


def matrices(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def taught(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], first: int, last: int) -> None:
    for step in range(first, last + 1):
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimiser.step()


def torchs(parameters: list[nn.Parameter]) -> torch.optim.Muon:
    return torch.optim.Muon(parameters, lr=0.02, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")


def test_it_is_torchs_where_that_is_in_float32_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "bfloat16", lambda self: self.clone())
    ours, other = matrices(), matrices()
    taught(Muon(ours, 0.02, decay=0.3), ours, 1, 6)
    taught(torchs(other), other, 1, 6)
    for one, two in zip(ours, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_it_is_torchs_up_to_the_rounding_of_bfloat16() -> None:
    ours, other, before = matrices(), matrices(), matrices()
    taught(Muon(ours, 0.02, decay=0.3), ours, 1, 6)
    taught(torchs(other), other, 1, 6)
    for one, two, start in zip(ours, other, before, strict=True):
        assert float(((one - two).norm() / (two - start).norm()).detach()) < 0.05


@pytest.mark.parametrize("shape", [(8, 8), (8, 32), (64, 64)])
def test_singular_values_become_about_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn((1, *shape), generator=torch.Generator().manual_seed(1))
    [found] = orthogonal(matrix, (3.4445, -4.7750, 2.0315))
    left, values, right = torch.linalg.svd(matrix[0], full_matrices=False)
    inner = torch.linalg.multi_dot([left.T, found, right.T])
    spread = torch.linalg.svdvals(found)[values / values[0] > 0.02]
    assert float(spread.min()) > 0.6 and float(spread.max()) < 1.25
    assert float((inner - inner.diag().diag()).abs().max()) < 1e-3


def test_a_step_is_as_large_as_one_of_adamw() -> None:
    # 0.2 of the rate, root mean square over the entries: what AdamW's steps come to (Liu et al. 2025).
    parameters = matrices()
    before = [p.detach().clone() for p in parameters]
    taught(Muon(parameters, 0.01, decay=0.0), parameters, 1, 1)
    for parameter, was in zip(parameters, before, strict=True):
        assert float((parameter - was).square().mean().sqrt().detach()) == pytest.approx(0.002, rel=0.25)


def test_it_goes_on_from_its_state_to_the_bit() -> None:
    whole, part = matrices(), matrices()
    taught(Muon(whole, 0.02, decay=0.1), whole, 1, 6)
    first = Muon(part, 0.02, decay=0.1)
    taught(first, part, 1, 3)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    again = Muon(part, 0.02, decay=0.1)
    again.load_state_dict(torch.load(file, weights_only=True))
    taught(again, part, 4, 6)
    assert all(torch.equal(one, two) for one, two in zip(whole, part, strict=True))
    assert again.seconds is not None and again.seconds > 0
