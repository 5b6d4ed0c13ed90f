"""The loss of DPO: by hand, by what must not change it, and as what Bradley-Terry's likelihood is written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from manners.direct.loss import dpo
from manners.reward.loss import preference_loss


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


Four = tuple[Tensor, Tensor, Tensor, Tensor]


def some(pairs: int, seed: int = 0) -> Four:
    drawn = -20 * torch.rand((4, pairs), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn[0], drawn[1], drawn[2], drawn[3]


def each(change: Callable[[Tensor], Tensor], given: Four) -> Four:
    a, b, c, d = map(change, given)
    return a, b, c, d


def test_one_pair_by_hand() -> None:
    # chosen gained 1 nat, rejected lost 1: h = 0.5 (1 - (-1)) = 1, and L = log(1 + 1/e) = 0.313262.
    loss, seen = dpo(t(-10), t(-12), t(-11), t(-11), 0.5)
    assert float(loss) == pytest.approx(0.3132616875)
    assert {name: float(value) for name, value in seen.items()} == {
        "agreeing": 1, "decided": 1, "margin": 1, "chosen": 0.5, "rejected": -0.5, "verdicts": 1,
    }  # fmt: skip


def test_a_policy_that_is_its_reference_loses_log_2() -> None:
    chosen, rejected, *_ = some(7)
    loss, seen = dpo(chosen, rejected, chosen, rejected, 0.3)
    assert float(loss) == pytest.approx(math.log(2)) and float(seen["agreeing"]) == 3.5


def test_verdicts_that_split_three_to_two_by_hand() -> None:
    # h = 1: L = -(3 log s + 2 log (1 - s)) / 5 with s = 1 / (1 + 1/e) = 0.731059.
    loss, seen = dpo(t(-10), t(-12), t(-11), t(-11), 0.5, torch.tensor([[3.0, 2.0, 0.0]], dtype=torch.float64))
    assert float(loss) == pytest.approx((3 * 0.3132616875 + 2 * 1.3132616875) / 5)
    assert float(seen["agreeing"]) == 3 and float(seen["margin"]) == 1 and float(seen["chosen"]) == 0.5


def test_verdicts_that_split_teach_their_log_odds_and_a_tie_teaches_none() -> None:
    for counts, odds in (((3, 2, 0), math.log(1.5)), ((0, 0, 1), 0.0), ((2, 0, 2), math.log(3)), ((1, 1, 5), 0.0)):
        h = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        for _ in range(300):
            (gradient,) = torch.autograd.grad(dpo(h, t(0), t(0), t(0), 1.0, torch.tensor([counts]).double())[0], h)
            h = (h - 3 * gradient).detach().requires_grad_(True)
        assert float(h.detach()) == pytest.approx(odds, abs=1e-4), counts


def test_split_verdicts_are_conservative_dpo() -> None:
    given, e = some(9), 0.1
    counts = torch.tensor([[1 - e, e, 0.0]], dtype=torch.float64).expand(9, 3)
    clean, flipped = dpo(*given, 0.1)[0], dpo(given[1], given[0], given[3], given[2], 0.1)[0]
    assert float(dpo(*given, 0.1, counts)[0]) == pytest.approx(float((1 - e) * clean + e * flipped))


def test_without_ties_it_is_the_reward_models_loss_of_the_implicit_rewards() -> None:
    # Davidson's model at a tie parameter of 0 is Bradley-Terry.
    chosen, rejected, first, second = some(6)
    counts = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], dtype=torch.float64).repeat(3, 1)
    better, worse = 0.2 * (chosen - first), 0.2 * (rejected - second)
    theirs, seen = preference_loss(better, worse, counts, torch.tensor(-60.0).double(), float(counts.sum()))
    ours, also = dpo(chosen, rejected, first, second, 0.2, counts)
    torch.testing.assert_close(ours, theirs)
    for name in ("agreeing", "decided", "margin", "verdicts"):
        torch.testing.assert_close(also[name], seen[name])


def test_a_tie_pulls_as_it_does_in_davidsons_model() -> None:
    # d/dh of -log p(tie) is (p_left - p_right) / 2 there, at any tie parameter: here with p of Bradley and Terry.
    h = t(-2.0, 0.7).requires_grad_(True)
    ties = torch.tensor([[0.0, 0.0, 1.0]] * 2, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(dpo(h, t(0, 0), t(0, 0), t(0, 0), 1.0, ties, 1.0)[0], h)
    torch.testing.assert_close(gradient, (torch.sigmoid(h) - torch.sigmoid(-h)).detach() / 2)


@given(st.integers(0, 1000), st.floats(0.01, 5), st.floats(-30, 30))
def test_what_must_not_change_it(seed: int, beta: float, shift: float) -> None:
    chosen, rejected, first, second = some(5, seed)
    counts = torch.rand((5, 3), generator=torch.Generator().manual_seed(seed)).double() + 0.01
    loss = dpo(chosen, rejected, first, second, beta, counts)[0]
    same = [
        dpo(rejected, chosen, second, first, beta, counts[:, [1, 0, 2]])[0],
        dpo(chosen + shift, rejected + shift, first, second, beta, counts)[0],
        dpo(chosen + shift, rejected, first + shift, second, beta, counts)[0],
        dpo(chosen / 2, rejected / 2, first / 2, second / 2, 2 * beta, counts)[0],
        dpo(*each(lambda x: x.flip(0), (chosen, rejected, first, second)), beta, counts.flip(0))[0],
        dpo(chosen, rejected, first, second, beta, 3 * counts)[0],
    ]
    for other in same:
        torch.testing.assert_close(other, loss, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 1000))
def test_losses_of_micro_batches_add_up(seed: int) -> None:
    given = some(7, seed)
    counts = torch.randint(0, 4, (7, 3), generator=torch.Generator().manual_seed(seed)).double() + 0.5
    total = float(counts.sum())

    def loss(part: slice) -> Tensor:
        return dpo(*each(lambda x: x[part], given), 0.1, counts[part], total)[0]

    parts = loss(slice(0, 1)) + loss(slice(1, 5)) + loss(slice(5, 7))
    torch.testing.assert_close(parts, dpo(*given, 0.1, counts)[0])


@given(st.integers(0, 1000))
def test_a_step_makes_what_was_chosen_likelier(seed: int) -> None:
    chosen, rejected, first, second = each(lambda x: x.clone().requires_grad_(), some(4, seed))
    up, down = torch.autograd.grad(dpo(chosen, rejected, first, second, 0.1)[0], [chosen, rejected])
    assert bool((up < 0).all() and (down > 0).all()) and torch.allclose(up, -down)


def test_odds_far_off_neither_overflow_nor_vanish() -> None:
    loss, _ = dpo(t(-1e4).requires_grad_(), t(0), t(0), t(0), 1.0)
    assert float(loss.detach()) == pytest.approx(1e4)
