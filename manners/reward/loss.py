"""The loss of the reward model: Bradley-Terry with ties, as Davidson extended it. Pure functions.

Source: R. R. Davidson, "On extending the Bradley-Terry model to accommodate ties in paired comparison experiments",
JASA 65 (1970), eq. 2.3, in logarithms: the worth of a response is exp(score).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Scalar = Float[Tensor, ""]
PerPair = Float[Tensor, "pairs"]
PerVerdict = Float[Tensor, "pairs 3"]
"""Last axis: left, right, tie."""


def davidson_log_probs(margin: PerPair, log_tie: Scalar) -> tuple[PerPair, PerPair, PerPair]:
    """Return the log-probabilities that a verdict is left, right, tie.

    With m = score_left - score_right and the tie parameter nu = exp(log_tie):
    (p_left, p_right, p_tie) = (exp(m/2), exp(-m/2), nu) / (exp(m/2) + exp(-m/2) + nu).
    As nu goes to 0 this is Bradley-Terry, p_left = sigmoid(m). Equal scores tie with probability nu / (2 + nu).
    """
    logits = torch.stack([margin / 2, -margin / 2, log_tie.expand_as(margin)], dim=-1)
    left, right, tie = torch.log_softmax(logits, dim=-1).unbind(-1)
    return left, right, tie


def preference_loss(
    score_left: PerPair, score_right: PerPair, counts: PerVerdict, log_tie: Scalar, total: float
) -> tuple[Scalar, dict[str, Tensor]]:
    """Return the negative log-likelihood of the verdicts, a mean over verdicts, in nats.

    L = - sum over pairs and verdicts of count * log p(verdict) / total. `counts` are weights of single verdicts, never
    majority votes: five annotators who split 3 to 2 teach a small margin. `total` is the sum of `counts` over the whole
    batch, so that the losses of its micro-batches add up to the loss of the batch, however it is cut.

    The statistics are sums over verdicts, for the same reason: `agreeing` / `decided` is the accuracy on verdicts that
    chose a side (equal scores count half), `margin` / `decided` the mean margin in the favour of what was chosen, and
    `tie_probability` / `verdicts` the mean probability given to a tie.
    """
    margin = score_left - score_right
    log_left, log_right, log_tied = davidson_log_probs(margin, log_tie)
    left, right, tie = counts.unbind(-1)
    loss = -(left * log_left + right * log_right + tie * log_tied).sum() / total
    margin = margin.detach()
    agrees = (1 + margin.sign()) / 2
    statistics = {
        "agreeing": (left * agrees + right * (1 - agrees)).sum(),
        "decided": (left + right).sum(),
        "margin": ((left - right) * margin).sum(),
        "tie_probability": (counts.sum(-1) * log_tied.detach().exp()).sum(),
        "verdicts": counts.sum(),
    }
    return loss, statistics
