"""Pure tensor functions that more than one stage needs.

Axes: B sequences, T response tokens, V vocabulary, N tokens of any kind. Masks are called `keep`: bool, True = counts.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

KLEstimator = Literal["k1", "k3"]


def masked_sum(x: Float[Tensor, "*shape"], keep: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Sum of `x` where `keep`; what is masked out may be anything, NaN included."""
    return torch.where(keep, x, torch.zeros_like(x)).sum()


def masked_mean(x: Float[Tensor, "*shape"], keep: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean of `x` where `keep`: sum of kept / number kept. Raises ValueError where nothing is kept."""
    kept = int(keep.sum())
    if kept == 0:
        raise ValueError("the mean of nothing: `keep` is False everywhere")
    return masked_sum(x, keep) / kept


def masked_variance(x: Float[Tensor, "*shape"], keep: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Unbiased variance (n - 1) of the kept values; raises ValueError with fewer than two."""
    kept = int(keep.sum())
    if kept < 2:
        raise ValueError(f"a variance needs two kept values, there are {kept}")
    centred = x - masked_mean(x, keep)
    return masked_sum(centred**2, keep) / (kept - 1)


def whiten(
    x: Float[Tensor, "*shape"], keep: Bool[Tensor, "*shape"], shift_mean: bool = True
) -> Float[Tensor, "*shape"]:
    """Scale the kept values to variance 1; to mean 0 as well if `shift_mean`, otherwise the mean stays.

    (x - mean) / sqrt(var + 1e-8) [+ mean], var unbiased. What is not kept becomes 0.
    Source: lm-human-preferences (Ziegler et al. 2019), `whiten`; the variance there is biased, as TensorFlow has it.
    """
    mean = masked_mean(x, keep)
    whitened = (x - mean) * torch.rsqrt(masked_variance(x, keep) + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(keep, whitened, torch.zeros_like(x))


def token_logprobs(logits: Float[Tensor, "N V"], ids: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Log-probability of each token under softmax(logits), in nats and in float32."""
    return -torch.nn.functional.cross_entropy(logits.float(), ids, reduction="none")


def kl_per_token(
    logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], estimator: KLEstimator
) -> Float[Tensor, "B T"]:
    """Estimate KL(policy || reference) from each drawn token, in nats.

    With d = ref - policy: k1 = -d, unbiased and of either sign; k3 = exp(d) - 1 - d, unbiased and never negative.
    Source: Schulman 2020, "Approximating KL divergence" (joschu.net/blog/kl-approx.html). Raises ValueError for any
    other estimator: what is not known must not pass for one that is.
    """
    difference = ref_logprobs - logprobs
    match estimator:
        case "k1":
            return -difference
        case "k3":
            return difference.exp() - 1 - difference
        case _:
            raise ValueError(f"the KL estimator is {estimator!r}; k1 and k3 are known")


def float64_device(device: torch.device) -> torch.device:
    """Return where sums in float64 run: on the device itself, or on the CPU for Apple's, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def warm_up(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step (from 1): up linearly over a tenth of the steps, then down to zero.

    min(step / w, (steps - step + 1) / (steps - w + 1)), w = max(1, steps // 10).
    """
    warm = max(1, steps // 10)
    return min(step / warm, (steps - step + 1) / (steps - warm + 1))
