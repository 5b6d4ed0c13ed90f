"""Davidson's probabilities and the preference loss, against numbers worked out by hand and signs known beforehand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from manners.reward.loss import davidson_log_probs, preference_loss

DOUBLE = torch.float64


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def table(*rows: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=DOUBLE)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=DOUBLE)


def test_probabilities_of_a_worked_example() -> None:
    # Worths 4 and 1, so m = log 4 and exp(m/2) = 2; nu = 1/2. Denominator 2 + 1/2 + 1/2 = 3.
    left, right, tie = davidson_log_probs(numbers(math.log(4)), number(math.log(0.5)))
    assert [left.exp().item(), right.exp().item(), tie.exp().item()] == pytest.approx([2 / 3, 1 / 6, 1 / 6])


def test_equal_scores_tie_with_nu_over_two_plus_nu() -> None:
    left, right, tie = davidson_log_probs(numbers(0.0), number(math.log(3)))
    assert [left.exp().item(), right.exp().item(), tie.exp().item()] == pytest.approx([0.2, 0.2, 0.6])


@given(st.floats(-30, 30))
def test_without_ties_it_is_bradley_terry(margin: float) -> None:
    left, _, _ = davidson_log_probs(numbers(margin), number(-60.0))
    assert left.item() == pytest.approx(-math.log1p(math.exp(-margin)), rel=1e-9, abs=1e-12)


@given(st.floats(-2000, 2000), st.floats(-20, 20))
def test_probabilities_add_up_and_stay_finite(margin: float, log_tie: float) -> None:
    log_probs = davidson_log_probs(numbers(margin), number(log_tie))
    assert all(bool(torch.isfinite(part).all()) for part in log_probs)
    assert sum(part.exp().item() for part in log_probs) == pytest.approx(1.0)


def test_loss_of_a_worked_example() -> None:
    # The example above with two verdicts left and one tie, beside a pair of equal scores with one verdict right:
    # there 1 / (1 + 1 + 1/2) = 2/5.
    counts = table((2, 0, 1), (0, 1, 0))
    loss, statistics = preference_loss(numbers(math.log(4), 7), numbers(0, 7), counts, number(math.log(0.5)), total=4.0)
    assert loss.item() == pytest.approx(-(2 * math.log(2 / 3) + math.log(1 / 6) + math.log(2 / 5)) / 4)
    assert statistics["agreeing"].item() == 2.5
    assert statistics["decided"].item() == 3
    assert statistics["verdicts"].item() == 4
    assert statistics["margin"].item() == pytest.approx(2 * math.log(4))
    assert statistics["tie_probability"].item() == pytest.approx(3 * (1 / 6) + 1 * (1 / 5))


def test_swapping_the_sides_changes_nothing() -> None:
    left = numbers(0.3, -1.0, 2.0)
    right = numbers(1.1, 0.4, 2.0)
    counts = table((3, 1, 0), (0, 2, 2), (1, 0, 1))
    loss, statistics = preference_loss(left, right, counts, number(-0.4), total=10.0)
    swapped, same = preference_loss(right, left, counts[:, [1, 0, 2]], number(-0.4), total=10.0)
    assert loss.item() == pytest.approx(swapped.item())
    assert {key: value.item() for key, value in statistics.items()} == pytest.approx(
        {key: value.item() for key, value in same.items()}
    )


def gradients(counts: Tensor, margin: float = 0.0, log_tie: float = 0.0) -> tuple[float, float, float]:
    left, right, tie = (number(value).requires_grad_() for value in (margin, 0.0, log_tie))
    loss, _ = preference_loss(left[None], right[None], counts, tie, total=counts.sum().item())
    slopes = torch.autograd.grad(loss, [left, right, tie])
    return slopes[0].item(), slopes[1].item(), slopes[2].item()


def test_a_step_raises_what_was_preferred_and_lowers_the_other() -> None:
    left, right, tie = gradients(table((1, 0, 0)))
    assert left < 0 < right  # descent goes against the gradient
    assert left == pytest.approx(-right)
    assert tie > 0


def test_ties_raise_the_tie_parameter_and_pull_scores_together() -> None:
    left, right, tie = gradients(table((0, 0, 1)), margin=2.0)
    assert tie < 0
    assert left > 0 > right


def test_the_tie_parameter_rests_where_it_explains_the_share_of_ties() -> None:
    # Equal scores: nu / (2 + nu) = 1/2 at nu = 2; fewer ties than that push it down, more push it up.
    at_rest, few, many = (gradients(table((1, 1, n)), log_tie=math.log(2))[2] for n in (2, 1, 4))
    assert at_rest == pytest.approx(0.0, abs=1e-12)
    assert few > 0 > many


def test_split_verdicts_teach_their_log_odds() -> None:
    # Three left, one right: without ties the maximum is at the margin log 3.
    below, above = (gradients(table((3, 1, 0)), margin=math.log(3) + shift, log_tie=-60.0)[0] for shift in (-0.1, 0.1))
    assert below < 0 < above


def test_micro_batches_add_up_to_the_batch() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(2, 6, dtype=DOUBLE)
    counts = torch.randint(0, 4, (6, 3)).to(DOUBLE)
    total = counts.sum().item()
    whole, statistics = preference_loss(left, right, counts, number(0.2), total)
    parts = [preference_loss(left[s], right[s], counts[s], number(0.2), total) for s in (slice(0, 1), slice(1, 6))]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item())
    for key, value in statistics.items():
        assert sum(part[key].item() for _, part in parts) == pytest.approx(value.item())
