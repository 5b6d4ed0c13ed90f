"""Masked means, whitening, token log-probabilities and KL estimates, against sums written out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from manners.maths import (
    KLEstimator,
    float64_device,
    kl_per_token,
    masked_mean,
    masked_sum,
    masked_variance,
    token_logprobs,
    warm_up,
    whiten,
)

X = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.inf, -5.0]])
KEEP = torch.tensor([[True, True, False], [True, False, True]])
"""Kept: 1, 2, 6, -5; mean 1, squared deviations 0 + 1 + 25 + 36 = 62."""

kept_values = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=20).filter(lambda v: max(v) - min(v) > 0.1)


def test_masked_sum_mean_and_variance_by_hand_whatever_is_masked_out() -> None:
    assert masked_sum(X, KEEP) == 4.0
    assert masked_mean(X, KEEP) == 1.0
    assert masked_variance(X, KEEP).item() == pytest.approx(62 / 3)
    assert masked_variance(X, torch.tensor([[True, False, False], [True, False, False]])).item() == 12.5


def test_the_mean_of_nothing_and_the_variance_of_one_value_are_refused() -> None:
    with pytest.raises(ValueError, match="mean of nothing"):
        masked_mean(X, torch.zeros_like(KEEP))
    with pytest.raises(ValueError, match="two kept values"):
        masked_variance(X, torch.tensor([[True, False, False], [False, False, False]]))


def test_the_gradient_of_a_masked_mean_is_one_nth_where_kept_and_zero_elsewhere() -> None:
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(masked_mean(x, KEEP), x)
    assert torch.equal(gradient, KEEP / 4)


def test_whitening_by_hand() -> None:
    deviation = math.sqrt(62 / 3)
    expected = torch.tensor([[0.0, 1.0, 0.0], [5.0, 0.0, -6.0]]) / deviation
    torch.testing.assert_close(whiten(X, KEEP), expected)
    shifted = torch.where(KEEP, expected + 1.0, torch.zeros(()))
    torch.testing.assert_close(whiten(X, KEEP, shift_mean=False), shifted)
    small = torch.tensor([1e-4, -1e-4], dtype=torch.float64)  # of variance 2e-8: what is added to it is half as much
    torch.testing.assert_close(whiten(small, small != 0), small / math.sqrt(3e-8))


@given(kept_values, st.booleans())
def test_whitened_values_have_variance_one_and_mean_zero_or_the_mean_they_had(
    values: list[float], shift_mean: bool
) -> None:
    x = torch.tensor([*values, math.nan], dtype=torch.float64)
    keep = ~x.isnan()
    whitened = whiten(x, keep, shift_mean)
    assert masked_variance(whitened, keep).item() == pytest.approx(1.0, abs=1e-3)
    mean = 0.0 if shift_mean else sum(values) / len(values)
    assert masked_mean(whitened, keep).item() == pytest.approx(mean, abs=1e-6)
    assert whitened[-1] == 0.0
    order = torch.tensor(values).argsort(stable=True)
    assert (whitened[:-1][order].diff() >= 0).all()  # what was larger stays larger


def test_token_logprobs_are_those_of_the_softmax() -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 1.0]])
    ids = torch.tensor([2, 0])
    by_hand = [4.0 - math.log(sum(math.exp(v) for v in (1.0, 2.0, 4.0))), -math.log(2 + math.exp(1.0))]
    torch.testing.assert_close(token_logprobs(logits, ids), torch.tensor(by_hand))
    assert token_logprobs(logits.bfloat16(), ids).dtype == torch.float32


def expectation(policy: Tensor, reference: Tensor, estimator: KLEstimator) -> float:
    """Mean of the estimate over tokens drawn from the policy, by summing over the whole vocabulary."""
    estimates = kl_per_token(policy.log().unsqueeze(0), reference.log().unsqueeze(0), estimator)
    return float((policy * estimates).sum())


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_are_unbiased(estimator: KLEstimator) -> None:
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    exact = 0.7 * math.log(0.7 / 0.2) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.5)
    assert exact > 0.5
    assert expectation(policy, reference, estimator) == pytest.approx(exact, abs=1e-6)


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative_and_k1_is_the_log_ratio(logprob: float, ref_logprob: float) -> None:
    new, old = torch.tensor([[logprob]], dtype=torch.float64), torch.tensor([[ref_logprob]], dtype=torch.float64)
    assert kl_per_token(new, old, "k3").item() >= -1e-12
    assert kl_per_token(new, old, "k1").item() == pytest.approx(logprob - ref_logprob)
    assert kl_per_token(new, new, "k1").item() == kl_per_token(new, new, "k3").item() == 0.0


@pytest.mark.parametrize("estimator", ["k2", "K1", "", None])
def test_an_estimator_that_is_not_known_is_refused(estimator: Any) -> None:
    logprobs = torch.zeros((1, 2))
    with pytest.raises(ValueError, match=r"the KL estimator is .*; k1 and k3 are known"):
        kl_per_token(logprobs, logprobs, estimator)


def test_float64_is_on_every_device_but_apples() -> None:
    for name in ("cpu", "cuda", "cuda:1"):
        assert float64_device(torch.device(name)) == torch.device(name)
    assert float64_device(torch.device("mps")) == torch.device("cpu")


def test_the_rate_warms_up_and_falls() -> None:
    shares = [warm_up(step, 20) for step in range(1, 21)]
    assert shares[:2] == pytest.approx([0.5, 1.0])
    assert shares[2:] == pytest.approx([(20 - i) / 19 for i in range(2, 20)])
    assert warm_up(1, 1) == warm_up(1, 19) == 1.0
    assert warm_up(1, 22) == pytest.approx(0.5) and warm_up(1, 18) == 1.0
