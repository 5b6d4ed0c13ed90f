"""Forgetting is measured as the library measures the loss on plain text."""

from __future__ import annotations

import math

import pytest
import torch

from manners.models.branches import Branch
from manners.models.perplexity import perplexity_rise
from tests.worlds import tiny_pretrained

PROSE = ("The train to the sea leaves at noon.", "How long does bread take in the oven?", "x")


def test_the_rise_of_perplexity_is_that_of_the_librarys_loss() -> None:
    pretrained = tiny_pretrained()
    initial, policy = (Branch(pretrained.trunk, trainable) for trainable in (False, True))
    assert perplexity_rise(policy, initial, pretrained, PROSE) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for tensor in policy.own_tensors().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    nll, tokens = {initial: 0.0, policy: 0.0}, 0
    for text in PROSE:
        ids = torch.tensor([pretrained.tokenizer.encode(text, add_special_tokens=False)])
        if ids.shape[1] > 1:
            for branch in nll:
                with torch.no_grad():
                    loss = branch.assembled(pretrained.trunk)(input_ids=ids, labels=ids).loss
                nll[branch] += float(loss) * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
    rise = math.exp((nll[policy] - nll[initial]) / tokens) - 1
    assert abs(rise) > 0.01
    assert perplexity_rise(policy, initial, pretrained, PROSE) == pytest.approx(rise, rel=1e-3)
