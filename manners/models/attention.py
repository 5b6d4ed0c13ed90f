"""Attention that reads only the keys that a row looks at, where rows of a batch have different lengths.

Hugging Face models take a tensor of keys with one column for each place of the longest row, and a mask. On a CPU the
columns that a mask hides cost as much as the others. So a forward of a model that was made to `listen` may say
(`rows=`, which models pass on to their attention) where each row's own columns are:

    Tail     one token a row after a cache; neighbours of similar length are read together
    Flat     sequences one after another in a single row, without any padding: prompts, and answers behind prompts

Whether a model passes it on is found out by `models.proof`; where nothing is said, nothing changes. Other models of the
process keep the attention that they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from manners.models.products import exact_products
from manners.text import Segment

NAME = "manners_sdpa"
"""What `attend` is called in the tables of transformers."""
CALL = 400_000
"""Bytes of keys and values that are read in the time of one more call: what fewer columns must save."""


@dataclass(frozen=True)
class Tail:
    """Rows with one new token each."""

    groups: tuple[tuple[int, int, int], ...]
    """First row, the row after the last, and the first column that any of these rows looks at."""


@dataclass(frozen=True)
class Flat:
    """Segments of a single row, which together are all columns that are read now; those before are of a cache."""

    segments: tuple[Segment, ...]

    @classmethod
    def after(cls, lead: int, lengths: Sequence[int]) -> Flat:
        """Lay sequences of these lengths out behind `lead` columns of a cache, with which they all begin."""
        stops = list(accumulate(lengths, initial=lead))
        behind = ((0, lead),) if lead else ()
        return cls(tuple(Segment(start, stop, behind) for start, stop in pairwise(stops)))


def own(keys: Float[Tensor, "1 G L S"], segment: Segment) -> Float[Tensor, "1 G m S"]:
    """Return what a segment looks at: what it stands behind, and itself."""
    parts = [keys[:, :, start:stop] for start, stop in (*segment.behind, (segment.start, segment.stop))]
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def tail(starts: Sequence[int], used: int, column_bytes: int) -> Tail:
    """Divide rows into runs of neighbours so that what is read in vain and the calls cost least.

    `starts` says from which column on each row looks, `used` how many columns there are, `column_bytes` what keys and
    values of one row and column take. Dynamic programming over the last row of a run.
    """
    best = [0.0]
    cuts = [0]
    for stop in range(1, len(starts) + 1):
        first = used
        options = list[tuple[float, int]]()
        for start in range(stop - 1, -1, -1):
            first = min(first, starts[start])
            options.append((best[start] + (stop - start) * (used - first) * column_bytes + CALL, start))
        cost, cut = min(options)
        best.append(cost)
        cuts.append(cut)
    groups = list[tuple[int, int, int]]()
    stop = len(starts)
    while stop:
        groups.append((cuts[stop], stop, min(starts[cuts[stop] : stop])))
        stop = cuts[stop]
    return Tail(tuple(reversed(groups)))


def listen(model: PreTrainedModel) -> None:
    """Let a model attend by `attend` from now on, where it attends as Hugging Face's `sdpa` does; else change nothing.

    All that shares its configuration listens too.
    """
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.config._attn_implementation = NAME


def listens(model: PreTrainedModel) -> bool:
    """Whether a model attends by `attend`: to another it means nothing to say what a row looks at."""
    return bool(model.config._attn_implementation == NAME)


def attend(
    module: nn.Module,
    query: Float[Tensor, "R H n S"],
    key: Float[Tensor, "R G L S"],
    value: Float[Tensor, "R G L S"],
    attention_mask: Tensor | None,
    rows: Tail | Flat | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "R n H S"], None]:
    """Attend as Hugging Face's `sdpa` does, but only to the columns that `rows` names."""
    if isinstance(rows, Tail):
        return _attend_tail(query, key, value, attention_mask, rows, **others), None
    if isinstance(rows, Flat):
        window, cached = others.get("sliding_window"), key.shape[2] - query.shape[2]
        with exact_products():
            parts = [
                sdpa_attention_forward(
                    module,
                    query[:, :, segment.start - cached : segment.stop - cached],
                    own(key, segment),
                    own(value, segment),
                    _causal(segment.stop - segment.start, segment.lead, window, query.device),
                    **others,
                )[0]
                for segment in rows.segments
            ]
        return torch.cat(parts, dim=1), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **others)


def _attend_tail(
    query: Float[Tensor, "R H 1 S"],
    key: Float[Tensor, "R G L S"],
    value: Float[Tensor, "R G L S"],
    mask: Float[Tensor, "R 1 1 L"] | Bool[Tensor, "R 1 1 L"] | None,
    rows: Tail,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> Float[Tensor, "R 1 H S"]:
    """Let each group look at its columns; the heads that share keys stand as queries beside each other."""
    if position_bias is not None:
        raise TypeError("attention by row knows no position biases")
    count, heads, _one, size = query.shape
    queries = query.reshape(count, key.shape[1], -1, size)
    out = torch.empty_like(queries)
    for start, stop, first in rows.groups:
        seen = None if mask is None else mask[start:stop, ..., first:]
        keys, values = key[start:stop, :, first:], value[start:stop, :, first:]
        out[start:stop] = nn.functional.scaled_dot_product_attention(
            queries[start:stop], keys, values, attn_mask=seen, scale=scaling
        )
    return out.view(count, 1, heads, size)


def _causal(count: int, lead: int, window: int | None, device: torch.device) -> Tensor | None:
    """Whether each of `count` tokens behind `lead` others looks at each; None where plain causality says it."""
    if lead == 0 and (window is None or count <= window):
        return None
    mask = torch.ones((1, 1, count, lead + count), dtype=torch.bool, device=device).tril(lead)
    return mask if window is None else mask.triu(lead - window + 1)
