"""Forgetting: how a policy reads plain text and what it holds for likely, compared with the initial model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from manners import ranks
from manners.models.branches import Branch
from manners.models.pretrained import Pretrained
from manners.models.trunk import States
from manners.text import Batch, Rendered, collate, length_buckets
from manners.types import Dialogue, Response

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
    return _nll(branches, pretrained, rendered), [len(r.response_ids) for r in rendered]


def _nll(branches: Sequence[Branch], pretrained: Pretrained, rendered: Sequence[Rendered]) -> list[list[float]]:
    """Sum of negative log-likelihoods of each response, by branch."""
    trunk = pretrained.trunk
    totals = [[0.0] * len(rendered) for _ in branches]
    for bucket in length_buckets([r.length for r in rendered], trunk.compute.bucket_tokens):
        batch = collate([rendered[i] for i in bucket], pretrained.renderer.pad_id).to(trunk.device)
        states = trunk.states(batch)
        for nll, branch in zip(totals, branches, strict=True):
            logprobs = branch.text_logprobs(branch.hidden(states, batch), batch)
            for row, index in enumerate(bucket):
                nll[index] = -float(logprobs[row].sum())
    return totals


@torch.no_grad()
def answer_logprobs(
    branches: Sequence[Branch], pretrained: Pretrained, asked: Sequence[tuple[str, Sequence[str]]]
) -> list[list[list[float] | None]]:
    """Log-likelihood of each answer behind a context, in nats: for every branch, for every question, (answers,).

    asked: contexts, each with the answers that may follow behind a space. It is the sum over all tokens behind those
    that the answers of a question have in common, at temperature 1 and of the whole vocabulary; not divided by length:
    softmax over a question's answers is then the probability of each, given that one of them follows. Of a question
    that does not fit into the context there is None.
    """
    renderer = pretrained.renderer
    texts = [[(*renderer.bos, *renderer.text_ids(f"{c} {answer}")) for answer in answers] for c, answers in asked]
    fit = [max(map(len, ids)) <= renderer.context for ids in texts]
    rendered = list[Rendered]()
    for ids in (ids for ids, fits in zip(texts, fit, strict=True) if fits):
        same = max(1, _in_common(ids))
        rendered += [Rendered(one[:same], one[same:]) for one in ids]
    found = list[list[list[float] | None]]()
    for nll in _nll(branches, pretrained, rendered):
        rest = iter(nll)
        found.append([[-next(rest) for _ in ids] if fits else None for ids, fits in zip(texts, fit, strict=True)])
    return found


@torch.no_grad()
def response_logprobs(
    branches: Sequence[Branch], pretrained: Pretrained, exchanges: Sequence[tuple[Dialogue, Response]]
) -> list[list[float]]:
    """Log-likelihood of each response to its prompt as the chat template lays them out, in nats: (branches, exchanges).

    The sum over all its tokens, the one that ends it among them, at temperature 1 and of the whole vocabulary.
    """
    rendered = [pretrained.renderer.render(prompt, response) for prompt, response in exchanges]
    return [[-nll for nll in of_branch] for of_branch in _nll(branches, pretrained, rendered)]


def _in_common(texts: Sequence[tuple[int, ...]]) -> int:
    """Count the tokens that all begin with, of which none is the last."""
    limit = min(map(len, texts)) - 1
    return next((at for at in range(limit) if len({text[at] for text in texts}) > 1), limit)


@dataclass(frozen=True)
class _Read:
    """Paragraphs as the trunk and the initial model read them."""

    states: States
    batch: Batch
    hidden: Float[Tensor, "N D"]
    """The initial model's final states, where a token is predicted."""
    logprobs: Float[Tensor, "B T"]


@dataclass(frozen=True)
class _Part:
    """A few paragraphs, of which each process reads its share."""

    mine: _Read | None
    """None where there are fewer paragraphs than processes."""
    tokens: int
    """Predicted in all of them, whoever reads them."""


class PlainText:
    """Paragraphs that the initial model has read once, for policies to be compared with it again and again.

    Where several processes train as one each has its share of every part, and gradients are to be added up (`ranks`).
    """

    @torch.no_grad()
    def __init__(self, initial: Branch, pretrained: Pretrained, paragraphs: Sequence[str]) -> None:
        """Read the paragraphs; those of less than two tokens (a BOS among them) are left out."""
        self.initial = initial
        self.exact = pretrained.trunk.compute.exact
        rendered = _rendered(pretrained, paragraphs)
        parts = list[_Part]()
        for start in range(0, len(rendered), PARAGRAPHS):
            part = rendered[start : start + PARAGRAPHS]
            mine = [part[row] for row in ranks.share(list(range(len(part))))]
            tokens = sum(len(one.response_ids) for one in part)
            parts.append(_Part(_read(initial, pretrained, mine) if mine else None, tokens))
        self.parts = tuple(parts)

    @torch.no_grad()
    def rise(self, policy: Branch) -> float:
        """Relative change of perplexity from the initial model to a policy: 0.05 is 5 % worse."""
        lost = torch.zeros((), dtype=torch.float64)
        for read in (part.mine for part in self.parts if part.mine is not None):
            logprobs = policy.text_logprobs(policy.hidden(read.states, read.batch), read.batch)
            lost += (read.logprobs - logprobs).to(self.exact).double().sum().cpu()
        tokens = sum(part.tokens for part in self.parts)
        return math.expm1(min(700.0, float(ranks.summed({"lost": lost})["lost"]) / max(1, tokens)))

    def divergence(self, policy: Branch, number: int) -> Float[Tensor, ""]:
        """Mean over the tokens of a part of KL(initial || policy) of the next token, in nats; parts come in turn.

        Of the whole distribution, not of the token that stands there: it holds the policy where it was, and teaches it
        nothing about these paragraphs. Of several processes each returns its share: the mean is their sum.
        """
        part = self.parts[number % len(self.parts)]
        if (read := part.mine) is None:
            return torch.zeros((), requires_grad=True)
        hidden = policy.hidden(read.states, read.batch)[:, :-1][read.batch.keep]
        with torch.no_grad():
            wanted = self.initial.logits(read.hidden).float().log_softmax(dim=-1)
        found = policy.logits(hidden).float().log_softmax(dim=-1)
        return functional.kl_div(found, wanted, reduction="sum", log_target=True) / part.tokens

    def loss(self, policy: Branch, number: int) -> Float[Tensor, ""]:
        """Mean negative log-likelihood of the tokens of a part, in nats; parts come in turn.

        What pre-training minimises: it teaches the policy these paragraphs, whatever the initial model made of them.
        Of several processes each returns its share.
        """
        part = self.parts[number % len(self.parts)]
        if (read := part.mine) is None:
            return torch.zeros((), requires_grad=True)
        logprobs = policy.text_logprobs(policy.hidden(read.states, read.batch), read.batch)
        return -logprobs.sum() / part.tokens


def _read(initial: Branch, pretrained: Pretrained, rendered: Sequence[Rendered]) -> _Read:
    batch = collate(rendered, pretrained.renderer.pad_id).to(pretrained.trunk.device)
    states = pretrained.trunk.states(batch)
    hidden = initial.hidden(states, batch)
    return _Read(states, batch, hidden[:, :-1][batch.keep], initial.text_logprobs(hidden, batch))


def _rendered(pretrained: Pretrained, paragraphs: Sequence[str]) -> list[Rendered]:
    """Token ids without a template: plain text is what pre-training saw, behind a BOS where the tokenizer puts one.

    The first token, which is that BOS if there is one, is given and not predicted.
    """
    renderer = pretrained.renderer
    texts = [renderer.text_ids(p) for p in paragraphs]
    ids = [(*renderer.bos, *text)[: renderer.context] for text in texts]
    return [Rendered(i[:1], i[1:]) for i in ids if len(i) > 1]
