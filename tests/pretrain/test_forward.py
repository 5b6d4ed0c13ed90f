"""The short way through a Llama is the model's own, in its loss and in every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from manners.pretrain import forward
from manners.pretrain.forward import IGNORED, gated, head_loss, is_plain, loss, norm, rotated
from tests.pretrain.worlds import SHAPE, model
from tests.worlds import tiny_model


def rows(count: int = 3, vocabulary: int = SHAPE.vocabulary) -> Tensor:
    return torch.randint(0, vocabulary, (count, SHAPE.row + 1), generator=torch.Generator().manual_seed(2))


def gradients(found: Tensor, parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    return list(torch.autograd.grad(found, parameters))


@pytest.mark.parametrize("at_once", [7, 2**20])
def test_loss_and_gradients_are_those_of_the_models_own_forward(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(forward, "HEAD_NUMBERS", at_once * SHAPE.vocabulary)
    llama, some = model(), rows()
    targets = some[:, 1:].clone()
    targets[0, 5:9] = IGNORED
    parameters = list(llama.parameters())
    logits = llama(some[:, :-1]).logits
    theirs = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORED)
    ours = loss(llama, some, targets)
    assert is_plain(llama)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    for one, two in zip(gradients(ours / 50, parameters), gradients(theirs / 50, parameters), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "gemma2", "llama"])
def test_other_models_go_their_own_way(kind: str) -> None:
    other, some = tiny_model(kind), rows(vocabulary=300)
    assert not is_plain(other)
    logits = other(some[:, :-1]).logits
    expected = -logits.log_softmax(dim=2).gather(2, some[:, 1:, None]).sum()
    torch.testing.assert_close(loss(other, some, some[:, 1:]), expected)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("at_once", [7, 2**20])
def test_a_head_that_is_a_product_is_taken_a_few_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch, kind: str, at_once: int
) -> None:
    monkeypatch.setattr(forward, "HEAD_NUMBERS", at_once * 300)
    other, some = tiny_model(kind), rows(vocabulary=300)
    assert forward.has_short_head(other)
    parameters = list(other.parameters())
    for parameter in parameters:
        parameter.requires_grad_()
    logits = other(some[:, :-1]).logits
    theirs = functional.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten(), reduction="sum")
    ours = loss(other, some, some[:, 1:])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    for one, two in zip(gradients(ours / 50, parameters), gradients(theirs / 50, parameters), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_measuring_takes_no_gradient() -> None:
    hidden, weight = torch.randn(10, 6), torch.randn(5, 6, requires_grad=True)
    targets = torch.arange(10) % 5
    with torch.no_grad(), FlopCounterMode(display=False) as measuring:
        head_loss(hidden, weight, targets)
    with FlopCounterMode(display=False) as learning:
        head_loss(hidden.requires_grad_(), weight, targets)
    assert measuring.get_total_flops() == 2 * 10 * 6 * 5 < learning.get_total_flops()


def test_a_later_token_changes_no_earlier_loss() -> None:
    llama, some = model(), rows(1)
    changed = some.clone()
    changed[0, 12:] = 5
    targets = some[:, 1:].clone()
    targets[0, 11:] = IGNORED
    with torch.no_grad():
        assert float(loss(llama, some, targets)) == pytest.approx(float(loss(llama, changed, targets)), rel=1e-6)


def test_each_step_has_the_gradient_of_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    assert torch.autograd.gradcheck(lambda x, w: norm(x, w, 1e-5), (some(3, 2, 6), some(6)))
    assert torch.autograd.gradcheck(gated, (some(4, 10),))
    angles = some(3, 1, 1, 2).detach()
    assert torch.autograd.gradcheck(lambda x: rotated(x, angles.cos(), angles.sin()), (some(2, 3, 2, 2, 4),))
    targets = torch.tensor([1, 0, IGNORED, 3])
    assert torch.autograd.gradcheck(lambda h, w: head_loss(h, w, targets), (some(4, 6), some(5, 6)))
