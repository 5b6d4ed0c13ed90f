"""Adapters begin as nothing, merge into plain layers, and are all that a branch then owns."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from manners.errors import MannersError
from manners.models.branches import Branch, ScalarBranch, set_trainable
from manners.models.lowrank import SCALE, LowRank
from manners.models.surgery import layer_list
from manners.models.trunk import grow_trunk
from manners.text import Rendered, collate
from tests.worlds import tiny_model

SEQUENCES = [Rendered((5, 6, 7), (8, 9, 10, 11)), Rendered((12,) * 6, (13, 14))]


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_an_adapter_adds_the_product_of_its_matrices(kind: type[nn.Linear | Conv1D]) -> None:
    base = nn.Linear(5, 7) if kind is nn.Linear else Conv1D(7, 5)
    nn.init.normal_(base.bias)
    layer, x = LowRank(base, 2, torch.Generator().manual_seed(0)), torch.randn(3, 4, 5)
    torch.testing.assert_close(layer(x), base(x))
    nn.init.normal_(layer.b)
    weight = base.weight if kind is nn.Linear else base.weight.T
    by_hand = [
        sum(weight[o, i] * v[i] + SCALE * sum(layer.b[o, r] * layer.a[r, i] for r in range(2)) * v[i] for i in range(5))
        for v in x[2:, 1]
        for o in range(7)
    ]
    torch.testing.assert_close(layer(x)[2, 1], torch.stack(by_hand) + base.bias, atol=1e-5, rtol=1e-5)
    before = base.weight.clone()
    torch.testing.assert_close(layer.merged()(x), layer(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(base.weight, before)


@pytest.mark.parametrize("layers", [2, "all"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "mixtral"])
def test_a_branch_of_adapters_begins_as_the_initial_model_and_owns_nothing_else(
    model_type: str, layers: int | Literal["all"]
) -> None:
    trunk = grow_trunk(tiny_model(model_type), layers, 3)
    policy, reference = (Branch(trunk, trainable) for trainable in (True, False))
    batch = collate(SEQUENCES, 0)
    states = trunk.states(batch)
    first = policy.logprobs(policy.hidden(states, batch), batch, 1.0)
    assert torch.equal(first, reference.logprobs(reference.hidden(states, batch), batch, 1.0))

    linear = [
        m
        for layer in layer_list(trunk.whole)[trunk.cut :]
        for m in layer.modules()
        if isinstance(m, nn.Linear | Conv1D)
    ]
    assert sum(t.numel() for t in policy.own_tensors().values()) == sum(3 * sum(m.weight.shape) for m in linear)
    whole = {name: p.clone() for name, p in trunk.whole.named_parameters()}
    with torch.no_grad():
        for parameter in set_trainable([policy]):
            parameter.add_(torch.randn_like(parameter))
    changed = policy.logprobs(policy.hidden(states, batch), batch, 1.0)
    assert (changed - first).abs().max() > 0.1
    assert all(torch.equal(p, whole[name]) for name, p in trunk.whole.named_parameters())
    assert policy.assembled(trunk).state_dict().keys() == trunk.whole.state_dict().keys()
    for row, r in enumerate(SEQUENCES):
        logits = policy.assembled(trunk)(input_ids=torch.tensor([r.prompt_ids + r.response_ids])).logits[0]
        expected = torch.log_softmax(logits, -1)[len(r.prompt_ids) - 1 : -1].gather(1, torch.tensor([r.response_ids]).T)
        torch.testing.assert_close(changed[row, : len(expected)], expected.squeeze(1), atol=1e-4, rtol=1e-4)


def test_a_scalar_branch_trains_adapters_and_its_head_only() -> None:
    trunk = grow_trunk(tiny_model(tie_word_embeddings=True), "all", 2)
    branch = ScalarBranch(trunk, torch.Generator().manual_seed(0))
    assert {name.rpartition(".")[2] for name in branch.own_tensors()} == {"a", "b", "weight"}
    assert [name for name in branch.own_tensors() if name.endswith("weight")] == ["scalar.weight"]


def test_a_model_without_linear_layers_above_the_cut_is_refused() -> None:
    model = tiny_model()
    for layer in layer_list(model)[2:]:
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, child = name.rpartition(".")
                setattr(layer.get_submodule(parent), child, nn.Identity())
    trunk = grow_trunk(tiny_model(), 2, 2)
    with pytest.raises(MannersError, match="no linear layers above layer 2"):
        Branch(type(trunk)(**{**trunk.__dict__, "whole": model}), trainable=True)
