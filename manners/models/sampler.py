"""Tokens drawn from logits: exact, one uniform number a token."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from manners.errors import MannersError

BLOCK = 256
"""Tokens whose probabilities are summed first when one is drawn."""


def draw_tokens(
    logits: Float[Tensor, "R V"],
    uniform: Float[Tensor, " R"],
    top_p: float | Float[Tensor, "R 1"] = 1.0,
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """Invert the cumulative distribution at `uniform`: one token a row, with its log-probability.

    `logits` are those of `Vocabulary.at`, in float32 and at temperature. `top_p` is that of all rows, or each row's
    own; with less than 1, tokens come from the smallest set of the likeliest ones whose probabilities reach that sum
    (Holtzman et al. 2020, section 3.1).

    The sums run over blocks of the vocabulary first, and then inside the block that is hit: a cumulative sum over all
    of it, in the precision that this takes, would cost as much as the last layers of the model. They run where
    `uniform` is (`Compute.exact`). Raises MannersError for logits that are no distribution.
    """
    share = torch.as_tensor(top_p, device=logits.device).expand(len(logits), 1)
    if bool((limited := share.squeeze(1) < 1.0).any()):
        logits = logits.clone()
        logits[limited] = _likeliest(logits[limited], share[limited])
    top = logits.amax(dim=-1, keepdim=True)
    missing = -logits.shape[-1] % BLOCK
    weights = (logits - top).exp_()
    weights = (nn.functional.pad(weights, (0, missing)) if missing else weights).view(len(logits), -1, BLOCK)
    exact = uniform.device
    blocks = weights.sum(dim=-1).to(exact).double()
    if not bool(blocks.isfinite().all()):
        raise MannersError(
            "what the model says is no number: weights are damaged, or too large for model.dtype; use another version"
        )
    block, inside = _invert(blocks, uniform.double())
    rows = torch.arange(len(logits), device=logits.device)
    chosen = block.to(logits.device)
    place, _ = _invert(weights[rows, chosen].to(exact).double(), inside)
    token = (block * BLOCK + place).to(logits.device)
    logprob = logits[rows, token] - top.squeeze(1) - blocks.sum(dim=-1).log().to(logits)
    return token, logprob


def _likeliest(logits: Float[Tensor, "R V"], top_p: Float[Tensor, "R 1"]) -> Float[Tensor, "R V"]:
    """Leave only the likeliest tokens whose probabilities reach `top_p`; the likeliest one always stays."""
    top_p = top_p.clamp(min=torch.finfo(torch.float32).tiny)  # 1e-46 is 0 in float32, which nothing stays below
    ordered, places = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    return logits.masked_fill(torch.zeros_like(before).scatter(-1, places, before) >= top_p, -torch.inf)


def _invert(
    weights: Float[Tensor, "R n"], uniform: Float[Tensor, " R"]
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """Find the weight in which a share `uniform` of their sum falls; return also the share of it that is left of that.

    A weight of zero is never found.
    """
    edges = weights.cumsum(dim=-1)
    total = edges[:, -1]
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(edges, target.unsqueeze(1), right=True)
    weight = weights.gather(1, found).squeeze(1)
    share = (target - (edges.gather(1, found).squeeze(1) - weight)) / weight
    return found.squeeze(1), share.clamp(0.0, 1.0)
