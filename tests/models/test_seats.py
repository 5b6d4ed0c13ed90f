"""Rows keep their seats until seats change, and what is drawn is read for those that drew it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from manners.models.seats import Seats
from tests.worlds import new_decoder, tiny_model


@dataclass(eq=False)
class Said:
    """A row that says what it is told to."""

    so_far: tuple[int, ...]
    left: bool = False


def test_rows_that_stay_move_up_and_others_enter_behind_them() -> None:
    a, b, c, d = (Said((5 + at, 6, 7)) for at in range(4))
    seats = Seats[Said](new_decoder(tiny_model()))
    assert seats.read() == [] and seats.running == []
    seats.change([a, b, c], room=2)
    assert seats.rows == [a, b, c] and not seats.full
    assert seats.take(torch.tensor([20, 21, 22])) == [(0, a), (1, b), (2, c)]
    b.left = True  # with the token that it has just drawn
    assert seats.rows == [a, b, c] and seats.running == [a, c] and seats.gone == 1
    assert seats.read() == [0, 1, 2] and seats.read() == []
    assert seats.take(torch.tensor([23, 24, 25])) == [(0, a), (2, c)]
    assert seats.read() == [0, 2] and seats.full
    assert seats.decoder.length.tolist() == [5, 4, 5]  # who has left stays where it is
    expected = seats.decoder.model(input_ids=torch.tensor([[*c.so_far, 22, 25]])).logits[0, -1]
    assert seats.decoder.logits is not None
    torch.testing.assert_close(seats.decoder.logits[2], expected, atol=1e-4, rtol=1e-4)
    a.left = True
    seats.change([d], room=2)
    assert seats.rows == [c, d] and seats.gone == 0 and not seats.full
    torch.testing.assert_close(seats.decoder.logits[0], expected, atol=1e-4, rtol=1e-4)
