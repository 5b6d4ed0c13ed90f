"""Logits of a bfloat16 model are float32 numbers: its own products, not rounded again, and its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manners.models import head
from manners.models.branches import Branch
from manners.models.head import WideHead
from manners.models.trunk import grow_trunk
from manners.text import Rendered, collate
from tests.worlds import tiny_model

ROWS = [Rendered((7, 8, 9), (10, 11)), Rendered((12,) * 9, (13,)), Rendered((14, 15), tuple(range(16, 28)))]


def narrow(bias: bool) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 300, bias=bias).to(torch.bfloat16)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("block", [7, 4096])
def test_products_are_summed_wide_and_gradients_go_back_narrow(
    bias: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "BLOCK", block)
    layer = narrow(bias)
    wide = WideHead(layer)
    x = (10 * torch.randn((2, 3, 64))).to(torch.bfloat16).requires_grad_()
    y = wide(x).detach()
    exact = x.detach().double() @ layer.weight.detach().double().T
    exact = exact if layer.bias is None else exact + layer.bias.detach().double()
    assert y.dtype == torch.float32 and y.shape == (2, 3, 300)
    torch.testing.assert_close(y.double(), exact, atol=1e-4, rtol=1e-5)
    assert float((layer(x).detach().double() - exact).abs().max()) > 100 * float((y.double() - exact).abs().max())
    weights = torch.randn((2, 3, 300))
    ours = torch.autograd.grad((wide(x) * weights).sum(), [x, *layer.parameters()])
    theirs = torch.autograd.grad((layer(x).float() * weights).sum(), [x, *layer.parameters()])
    for found, plain in zip(ours, theirs, strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, plain, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "cohere", "granite", "phi"])
@torch.no_grad()
def test_a_branch_of_a_bfloat16_model_has_the_logits_that_its_final_states_say(model_type: str) -> None:
    # Scaled or capped as the model's own head does it; by a float32 copy of the same head.
    model = nn.Module.to(tiny_model(model_type), dtype=torch.bfloat16)
    trunk = grow_trunk(model, 2)
    branch, batch = Branch(trunk, trainable=True), collate(ROWS, 0)
    hidden = branch.hidden(trunk.states(batch), batch)[batch.keep.new_ones((3, 13))]
    found = branch.logits(hidden)
    rounded = nn.Module.to(tiny_model(model_type), dtype=torch.bfloat16)
    copy = grow_trunk(nn.Module.to(rounded, dtype=torch.float32), 2)
    wanted = Branch(copy, trainable=False).logits(hidden.float())
    assert hidden.dtype == torch.bfloat16 and found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert branch.assembled(trunk).get_output_embeddings().weight.dtype == torch.bfloat16
    assert type(branch.assembled(trunk).get_output_embeddings()) is nn.Linear


def test_a_float32_head_is_left_as_it_is() -> None:
    branch = Branch(grow_trunk(tiny_model(), 2), trainable=True)
    assert not any(isinstance(module, WideHead) for module in branch._head[0][0].modules())
