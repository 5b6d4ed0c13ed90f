"""Documents laid into rows of one length, so that most stand whole and no place is empty.

    row:  BOS document EOS | BOS document EOS | rest of one EOS | BOS a part of one

Every row begins with BOS, and so does every document; the rest of one that was cut does not, unless it stands first in
its row. Best fit: the longest that fits goes in, again and again; what is left over in a row is filled with a part of
the longest one there is, whose rest waits for another row. So every token is read once a pass, and what has to be cut
is counted.
Source: "best-fit packing", Ding et al. 2024 (arxiv.org/abs/2404.10830); nanochat's loader drops the rest of what it
cuts, a third of all tokens at its size.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

POOL = 2048
"""Documents among which the best fit is looked for."""
Span = tuple[int, bool, int]
"""A part of the ids: how many, whether the first of them is BOS, and where they begin."""


@dataclass
class Position:
    """Where in the order of rows a run is: from it the rest of the order follows."""

    epoch: int = 0
    pool: int = 0
    row: int = 0
    """Rows of this pool that were read."""
    carried: list[Span] = field(default_factory=list)
    """What was left over from the pool before."""
    cut: int = 0
    """Parts that documents were cut into beyond the first, in the pools before."""


class Rows:
    """An endless order of rows, shuffled anew each pass by the seed, and resumable at any row."""

    def __init__(self, ids: NDArray[Any], ends: NDArray[Any], bos: int, length: int, seed: int) -> None:
        """Take ids, where each document ends in them, BOS, which those have that begin, and the tokens of a row."""
        self.ids, self.ends, self.bos, self.length, self.seed = ids, ends, bos, length, seed
        self.at = Position()
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._laid: tuple[list[list[Span]], list[Span], int] | None = None

    @property
    def cut(self) -> int:
        """Parts that documents were cut into beyond the first, so far."""
        return self.at.cut + (self._pool()[2] if self.at.row else 0)

    def next(self, count: int) -> NDArray[np.int64]:
        """Return the next rows, count x length."""
        return np.stack([self._row() for _ in range(count)])

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {**vars(self.at), "carried": list(self.at.carried)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.at = Position(**{**state, "carried": [tuple(one) for one in state["carried"]]})
        self._laid = None

    def _row(self) -> NDArray[np.int64]:
        while self.at.row >= len(self._pool()[0]):
            self._next_pool()
        spans = self._pool()[0][self.at.row]
        self.at.row += 1
        row = np.full(self.length, self.bos, np.int64)
        place = 0 if spans[0][1] else 1
        for size, _, start in spans:
            row[place : place + size] = self.ids[start : start + size]
            place += size
        return row

    def _next_pool(self) -> None:
        _, carried, cut = self._pool()
        pools = -(-len(self.ends) // POOL)
        epoch, pool = divmod(self.at.epoch * pools + self.at.pool + 1, pools)
        self.at = Position(epoch, pool, 0, carried, self.at.cut + cut)
        self._laid = None

    def _pool(self) -> tuple[list[list[Span]], list[Span], int]:
        """Return the rows of the pool that the position is in, what is left over, and how often it cut."""
        if self._laid is None:
            if self._order is None or self._order[0] != self.at.epoch:
                drawn = np.random.default_rng((self.seed, self.at.epoch)).permutation(len(self.ends))
                self._order = self.at.epoch, drawn
            chosen = self._order[1][self.at.pool * POOL : (self.at.pool + 1) * POOL]
            starts = np.where(chosen > 0, self.ends[chosen - 1], 0).astype(np.int64)
            sizes = self.ends[chosen].astype(np.int64) - starts
            begins = self.ids[starts] == self.bos
            spans = [*self.at.carried, *zip(sizes.tolist(), begins.tolist(), starts.tolist(), strict=True)]
            rows, left, cut = lay_out(spans, self.length)
            order = np.random.default_rng((self.seed, self.at.epoch, self.at.pool)).permutation(len(rows))
            self._laid = [rows[i] for i in order], left, cut
        return self._laid


def lay_out(spans: list[Span], length: int) -> tuple[list[list[Span]], list[Span], int]:
    """Return rows that spans fill, a BOS put before a row that begins with a rest; what is too little; and the cuts.

    A place that is left at the end of a row, too small for BOS and a token, holds BOS alone.
    """
    waiting = sorted(span for span in spans if span[0])
    total = sum(size for size, _, _ in waiting)
    rows, cut = list[list[Span]](), 0
    while total >= length:
        row, room = list[Span](), length
        while room > 1:
            place = _best(waiting, room, first=not row)
            span = waiting.pop(place)
            room -= not row and not span[1]
            if span[0] > room:
                size, begins, start = span
                span = (room, begins, start)
                insort(waiting, (size - room, False, start + room))
                cut += 1
            row.append(span)
            room -= span[0]
            total -= span[0]
        rows.append(row)
    return rows, waiting, cut


def _best(waiting: list[Span], room: int, first: bool) -> int:
    """Return which span goes in: the longest that fits, or the longest there is, to be cut."""
    fits = bisect_right(waiting, (room, True, np.inf))
    if first and fits and waiting[fits - 1][:2] == (room, False):
        fits = bisect_left(waiting, (room, False, -1))  # with the BOS before them, rests that long do not fit
    return fits - 1
