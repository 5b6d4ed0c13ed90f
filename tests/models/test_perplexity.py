"""Forgetting is measured as the library measures the loss on plain text."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tokenizers import processors

from manners.models.branches import Branch, set_trainable
from manners.models.perplexity import PlainText, paragraph_nll
from manners.text import Renderer
from tests.worlds import BOS, END_IDS, tiny_pretrained

PROSE = ("The train to the sea leaves at noon.", "How long does bread take in the oven?", "x")


def test_the_rise_of_perplexity_is_that_of_the_librarys_loss() -> None:
    pretrained = tiny_pretrained()
    initial, policy = (Branch(pretrained.trunk, trainable) for trainable in (False, True))
    assert PlainText(initial, pretrained, PROSE).rise(policy) == pytest.approx(0, abs=1e-6)
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
    assert PlainText(initial, pretrained, PROSE).rise(policy) == pytest.approx(rise, rel=1e-3)


def test_behind_the_tokenizers_own_bos_the_first_token_is_predicted_too() -> None:
    pretrained = tiny_pretrained()
    first = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    pretrained.tokenizer.backend_tokenizer.post_processor = first
    pretrained = replace(pretrained, renderer=Renderer(pretrained.tokenizer, END_IDS, 12))
    initial = Branch(pretrained.trunk, trainable=False)
    (found,), counts = paragraph_nll([initial], pretrained, [*PROSE, ""])
    assert len(found) == 3 and counts[2] == 1, "one token behind a BOS is enough, a BOS alone is not"
    for text, nll, count in zip(PROSE, found, counts, strict=False):
        ids = torch.tensor([pretrained.tokenizer.encode(text)[:12]])
        assert ids[0].tolist().count(BOS) == 1 and ids[0, 0] == BOS
        with torch.no_grad():
            loss = initial.assembled(pretrained.trunk)(input_ids=ids, labels=ids).loss
        assert count == ids.shape[1] - 1
        assert nll == pytest.approx(float(loss) * count, rel=1e-4)


def test_the_divergence_is_that_of_the_whole_distribution_and_parts_come_in_turn() -> None:
    pretrained = tiny_pretrained()
    initial, policy = (Branch(pretrained.trunk, trainable) for trainable in (False, True))
    texts = [f"{text} {number}" for number in range(2) for text in PROSE[:2]]
    prose = PlainText(initial, pretrained, texts)
    assert len(prose.parts) == 2  # three paragraphs, and one
    assert float(prose.divergence(policy, 0).detach()) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for tensor in policy.own_tensors().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    for number, chosen in enumerate((texts[:3], texts[3:], texts[:3])):
        total = tokens = 0.0
        for text in chosen:
            ids = torch.tensor([pretrained.tokenizer.encode(text, add_special_tokens=False)])
            with torch.no_grad():
                before, after = (
                    branch.assembled(pretrained.trunk)(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
                    for branch in (initial, policy)
                )
            total += float((before.exp() * (before - after)).sum())
            tokens += len(before)
        assert total / tokens > 0.01
        assert float(prose.divergence(policy, number).detach()) == pytest.approx(total / tokens, rel=1e-3)


def test_following_the_divergence_downhill_brings_the_policy_back() -> None:
    pretrained = tiny_pretrained()
    initial, policy = (Branch(pretrained.trunk, trainable) for trainable in (False, True))
    prose, parameters = PlainText(initial, pretrained, PROSE), set_trainable([policy])
    with torch.no_grad():
        for tensor in parameters:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    far = float(prose.divergence(policy, 0).detach())
    optimiser = torch.optim.Adam(parameters, lr=0.003)
    for step in range(40):
        optimiser.zero_grad()
        torch.autograd.backward(prose.divergence(policy, step))
        optimiser.step()
    assert float(prose.divergence(policy, 0).detach()) < 0.2 * far
