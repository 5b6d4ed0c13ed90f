"""Who sits in a decoder's batch: rollouts and serving let rows enter and leave in the same steps.

    1. read    the tokens that were drawn last
    2. change  seats: rows that have left give theirs to rows that wait, where it is worth a copy of the cache
    3. draw    a token for each row

Which rows wait, in which order and for what they leave, is the business of whoever keeps the rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from manners.models.decoder import Decoder, Seating

CHANGE_SHARE = 0.125
"""Seats change when this share of the batch has left: it costs a copy of the cache of the rows that stay."""


class Row(Protocol):
    """An answer in the making."""

    @property
    def so_far(self) -> tuple[int, ...]:
        """The prompt, and what was drawn after it: what is read when the row takes a seat."""

    @property
    def left(self) -> bool:
        """Whether it is finished or cancelled, and its seat free."""


R = TypeVar("R", bound=Row)


class Seats(Generic[R]):
    """The rows of a decoder, each in its seat; a row that has left stays until seats change."""

    def __init__(self, decoder: Decoder) -> None:
        """Begin with empty seats."""
        self.decoder = decoder
        self.rows = list[R]()
        self._token: Int[Tensor, " R"] | None = None
        """Drawn last, of each seat, and not yet read."""
        self._drew = list[int]()
        """Seats whose row had not left when it was drawn."""

    @property
    def running(self) -> list[R]:
        """Rows that have not left."""
        return [row for row in self.rows if not row.left]

    @property
    def gone(self) -> int:
        """Seats whose row has left."""
        return len(self.rows) - len(self.running)

    @property
    def full(self) -> bool:
        """Whether there is no column left for another token."""
        return self.decoder.used == self.decoder.attend.shape[1]

    def read(self) -> list[int]:
        """1. Read the tokens that were drawn last, if any; return the seats of the rows that they are for."""
        if self._token is None:
            return []
        running = torch.zeros(len(self.rows), dtype=torch.bool)
        running[self._drew] = True
        self.decoder.read(self._token, running.to(self._token.device))
        self._token = None
        return self._drew

    def change(self, entering: Sequence[R], room: int, rising: Collection[R] = ()) -> list[Seating]:
        """2. Let rows enter behind those that stay; every seat has room for `room` tokens then.

        Those that are `rising` give their seat up although they have not left, and can take another one later.
        """
        kept = [seat for seat, row in enumerate(self.rows) if not row.left and row not in rising]
        seats = torch.tensor(kept, dtype=torch.long, device=self.decoder.length.device)
        seatings = self.decoder.seat(seats, [row.so_far for row in entering], room)
        self.rows = [*(self.rows[seat] for seat in kept), *entering]
        self._token = None
        return seatings

    def take(self, token: Int[Tensor, " R"]) -> list[tuple[int, R]]:
        """3. Take what was drawn for each seat; return the rows that are to have it, with their seats."""
        self._token = token
        self._drew = [seat for seat, row in enumerate(self.rows) if not row.left]
        return [(seat, self.rows[seat]) for seat in self._drew]
