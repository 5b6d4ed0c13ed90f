"""What is told of each token beside its text, where a request asks: its log-probability, and the likeliest instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from manners.models.requests import DrawnToken, TokenLogprob
from manners.models.vocabulary import Vocabulary
from manners.text import Renderer

NAMED = 10_000
"""Tokens whose text is kept: to find it takes the tokenizer as long as a row of a step."""
Names = Callable[[int], tuple[str, bytes]]
"""Says what a token writes, as text and as bytes."""


def names(renderer: Renderer) -> Names:
    """Return what says what a token writes, and remembers it."""

    @lru_cache(NAMED)
    def name(token: int) -> tuple[str, bytes]:
        return renderer.token_text(token), renderer.token_bytes(token)

    return name


def reported(
    name: Names, vocabulary: Vocabulary, logits: Float[Tensor, "R V"], tokens: Sequence[int], counts: Sequence[int]
) -> list[DrawnToken]:
    """Return the token of each row and its `counts` likeliest, named, with log-probabilities.

    Of what can be said, at temperature 1. All rows together: one by one they take as long as the step that drew them.
    """
    logprobs = vocabulary.at(logits, 1.0).log_softmax(dim=-1)
    drawn = logprobs.gather(1, torch.tensor(tokens, device=logits.device).unsqueeze(1)).squeeze(1).tolist()
    values, places = (found.tolist() for found in logprobs.topk(min(max(counts), logprobs.shape[1])))

    def named(token: int, logprob: float) -> TokenLogprob:
        text, raw = name(token)
        return TokenLogprob(text, logprob, raw)

    return [
        DrawnToken(named(token, drawn[row]), tuple(map(named, places[row][:count], values[row][:count])))
        for row, (token, count) in enumerate(zip(tokens, counts, strict=True))
    ]
