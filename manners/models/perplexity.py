"""Forgetting: how surprised a policy is by plain text that it was never trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from manners.models.branches import Branch
from manners.models.pretrained import Pretrained
from manners.text import Rendered, collate, length_buckets


@torch.no_grad()
def paragraph_nll(
    branches: Sequence[Branch], pretrained: Pretrained, paragraphs: Sequence[str]
) -> tuple[list[list[float]], list[int]]:
    """Sum of negative log-likelihoods (nats, at temperature 1) of each paragraph under each branch, and its tokens.

    No template: plain text is what pre-training saw. The first token is given, not predicted. All branches start from
    one pass of the trunk. Paragraphs longer than the context are cut at its end.
    """
    renderer, trunk = pretrained.renderer, pretrained.trunk
    ids = [tuple(renderer.tokenizer.encode(p, add_special_tokens=False))[: renderer.context] for p in paragraphs]
    rendered = [Rendered(i[:1], i[1:]) for i in ids if len(i) > 1]
    totals = [[0.0] * len(rendered) for _ in branches]
    for bucket in length_buckets([r.length for r in rendered]):
        batch = collate([rendered[i] for i in bucket], renderer.pad_id).to(trunk.device)
        states = trunk.states(batch)
        for nll, branch in zip(totals, branches, strict=True):
            logprobs = branch.logprobs(branch.hidden(states, batch), batch, 1.0)
            for row, index in enumerate(bucket):
                nll[index] = -float(logprobs[row].sum())
    return totals, [len(r.response_ids) for r in rendered]


def perplexity_rise(policy: Branch, initial: Branch, pretrained: Pretrained, paragraphs: Sequence[str]) -> float:
    """Relative change of perplexity on plain text, from the initial model to a policy: 0.05 is 5 % worse."""
    (after, before), tokens = paragraph_nll([policy, initial], pretrained, paragraphs)
    return math.expm1(min(700.0, (sum(after) - sum(before)) / max(1, sum(tokens))))
