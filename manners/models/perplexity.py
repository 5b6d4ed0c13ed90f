"""Forgetting: how a policy reads plain text, compared with the initial model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from manners.models.branches import Branch
from manners.models.pretrained import Pretrained
from manners.models.trunk import States
from manners.text import Batch, Rendered, collate, length_buckets

PARAGRAPHS = 3
"""Paragraphs that are read at once: some two hundred tokens, whose logits over the vocabulary fit easily."""


@torch.no_grad()
def paragraph_nll(
    branches: Sequence[Branch], pretrained: Pretrained, paragraphs: Sequence[str]
) -> tuple[list[list[float]], list[int]]:
    """Sum of negative log-likelihoods (nats, at temperature 1) of each paragraph under each branch, and its tokens.

    It is of the whole vocabulary, as plain transformers reads text: nothing is drawn here.

    All branches start from one pass of the trunk. Paragraphs longer than the context are cut at its end, those of less
    than two tokens (a BOS among them) left out.
    """
    rendered = _rendered(pretrained, paragraphs)
    trunk = pretrained.trunk
    totals = [[0.0] * len(rendered) for _ in branches]
    for bucket in length_buckets([r.length for r in rendered], trunk.compute.bucket_tokens):
        batch = collate([rendered[i] for i in bucket], pretrained.renderer.pad_id).to(trunk.device)
        states = trunk.states(batch)
        for nll, branch in zip(totals, branches, strict=True):
            logprobs = branch.text_logprobs(branch.hidden(states, batch), batch)
            for row, index in enumerate(bucket):
                nll[index] = -float(logprobs[row].sum())
    return totals, [len(r.response_ids) for r in rendered]


@dataclass(frozen=True)
class _Part:
    """A few paragraphs as the trunk and the initial model read them."""

    states: States
    batch: Batch
    hidden: Float[Tensor, "N D"]
    """The initial model's final states, where a token is predicted."""
    logprobs: Float[Tensor, "B T"]


class PlainText:
    """Paragraphs that the initial model has read once, for policies to be compared with it again and again."""

    @torch.no_grad()
    def __init__(self, initial: Branch, pretrained: Pretrained, paragraphs: Sequence[str]) -> None:
        """Read the paragraphs; those of less than two tokens (a BOS among them) are left out."""
        self.initial = initial
        self.exact = pretrained.trunk.compute.exact
        rendered = _rendered(pretrained, paragraphs)
        parts = list[_Part]()
        for start in range(0, len(rendered), PARAGRAPHS):
            batch = collate(rendered[start : start + PARAGRAPHS], pretrained.renderer.pad_id).to(
                pretrained.trunk.device
            )
            states = pretrained.trunk.states(batch)
            hidden = initial.hidden(states, batch)
            parts.append(_Part(states, batch, hidden[:, :-1][batch.keep], initial.text_logprobs(hidden, batch)))
        self.parts = tuple(parts)

    @torch.no_grad()
    def rise(self, policy: Branch) -> float:
        """Relative change of perplexity from the initial model to a policy: 0.05 is 5 % worse."""
        lost = 0.0
        tokens = 0
        for part in self.parts:
            logprobs = policy.text_logprobs(policy.hidden(part.states, part.batch), part.batch)
            change = part.logprobs - logprobs
            lost += float(change.to(self.exact).double().sum())
            tokens += int(part.batch.keep.sum())
        return math.expm1(min(700.0, lost / max(1, tokens)))

    def divergence(self, policy: Branch, number: int) -> Float[Tensor, ""]:
        """Mean over the tokens of a part of KL(initial || policy) of the next token, in nats; parts come in turn.

        Of the whole distribution, not of the token that stands there: it holds the policy where it was, and teaches it
        nothing about these paragraphs.
        """
        part = self.parts[number % len(self.parts)]
        hidden = policy.hidden(part.states, part.batch)[:, :-1][part.batch.keep]
        with torch.no_grad():
            wanted = self.initial.logits(part.hidden).float().log_softmax(dim=-1)
        found = policy.logits(hidden).float().log_softmax(dim=-1)
        return functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


def _rendered(pretrained: Pretrained, paragraphs: Sequence[str]) -> list[Rendered]:
    """Token ids without a template: plain text is what pre-training saw, behind a BOS where the tokenizer puts one.

    The first token, which is that BOS if there is one, is given and not predicted.
    """
    renderer = pretrained.renderer
    texts = [renderer.text_ids(p) for p in paragraphs]
    ids = [(*renderer.bos, *text)[: renderer.context] for text in texts]
    return [Rendered(i[:1], i[1:]) for i in ids if len(i) > 1]
