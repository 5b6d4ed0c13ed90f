"""The loss of direct preference optimisation, as a pure function.

A policy is a reward model too: with r(x, y) = beta log(p(y|x) / p_ref(y|x)) the policy is the best one against r at a
KL coefficient of beta, whatever it is. So the likelihood of the verdicts under Bradley-Terry can be written in the
policy itself, and what maximises it is p_ref(y|x) exp(r*(x, y) / beta) / Z(x) for the r* that the verdicts come from.
Source: Rafailov et al. 2023, "Direct preference optimization", eq. 7.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

Scalar = Float[Tensor, ""]
PerPair = Float[Tensor, "pairs"]
PerVerdict = Float[Tensor, "pairs 3"]
"""Last axis: verdicts for the first side of a pair, for the second, for neither."""


def dpo(
    chosen: PerPair,
    rejected: PerPair,
    reference_chosen: PerPair,
    reference_rejected: PerPair,
    beta: float,
    counts: PerVerdict | None = None,
    total: float | None = None,
) -> tuple[Scalar, dict[str, Tensor]]:
    """Return the negative log-likelihood of the verdicts, a mean over verdicts, in nats.

    With h = beta ((chosen - reference_chosen) - (rejected - reference_rejected)), which is log-odds:
    L = - sum over pairs of ((for + tie / 2) log sigmoid(h) + (against + tie / 2) log sigmoid(-h)) / total.

    The first four are log-probabilities of whole responses, in nats: sums over their tokens, the one that ends them
    among these, and over nothing of the prompt. `counts` are weights of single verdicts: for `chosen`, for `rejected`,
    for neither; None is one verdict a pair, for `chosen`. `total` is their sum over the whole batch, so that the losses
    of its micro-batches add up to the loss of the batch, however it is cut; None: over these pairs.

    Several verdicts on a pair are each counted, so that annotators who split 3 to 2 teach log-odds of log(3 / 2); of
    verdicts that split 1 - e to e the formula is conservative DPO (Mitchell 2023, "A note on DPO with noisy
    preferences"). A tie is half a verdict for each side: as in Davidson's model, which the reward model has
    (`reward.loss`) and whose likelihood reads no more of a pair than 2 wins + ties, at any tie parameter (Davidson
    1970). So nothing is to be fitted beside the policy, and without ties this is eq. 7 to the bit.

    The statistics are sums over verdicts: `agreeing` / `decided` is the accuracy on verdicts that chose a side (equal
    rewards count half), `margin` / `decided` the mean of h in favour of what was chosen, `chosen` / `decided` and
    `rejected` / `decided` the mean rewards of the two: both often fall, which h does not show.
    """
    first = beta * (chosen - reference_chosen)
    second = beta * (rejected - reference_rejected)
    odds = first - second
    if counts is None:
        counts = torch.tensor([1.0, 0.0, 0.0], dtype=odds.dtype, device=odds.device).expand(len(odds), 3)
    pro, contra, tie = counts.unbind(-1)
    likelihood = (pro + tie / 2) * logsigmoid(odds) + (contra + tie / 2) * logsigmoid(-odds)
    loss = -likelihood.sum() / (counts.sum() if total is None else total)
    first, second, odds = first.detach(), second.detach(), odds.detach()
    agrees = (1 + odds.sign()) / 2
    statistics = {
        "agreeing": (pro * agrees + contra * (1 - agrees)).sum(),
        "decided": (pro + contra).sum(),
        "margin": ((pro - contra) * odds).sum(),
        "chosen": (pro * first + contra * second).sum(),
        "rejected": (pro * second + contra * first).sum(),
        "verdicts": counts.sum(),
    }
    return loss, statistics
