"""Rows: each token once a pass, documents whole where they fit, and an order that goes on from any row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.pretrain import rows as module
from manners.pretrain.rows import Rows, Span, lay_out

BOS = 999


def spans_of(sizes: list[int]) -> list[Span]:
    ends = np.cumsum(sizes)
    return [(size, int(end) - size) for size, end in zip(sizes, ends, strict=True)]


@given(st.lists(st.integers(0, 40), max_size=40), st.integers(2, 17))
def test_every_token_is_laid_once_and_every_row_is_full(sizes: list[int], length: int) -> None:
    laid, left, cut = lay_out(spans_of(sizes), length)
    everything = [span for row in [*laid, left] for span in row]
    assert sorted(i for size, start in everything for i in range(start, start + size)) == list(range(sum(sizes)))
    assert all(length - 1 <= sum(size + 1 for size, _ in row) <= length for row in laid)
    assert sum(size + 1 for size, _ in left) < length
    assert len(everything) == sum(size > 0 for size in sizes) + cut


def test_documents_that_fit_are_whole() -> None:
    # 9 + BOS, 5 + BOS and 3 + BOS, 4 + BOS twice: by hand, three rows of 10 and nothing cut.
    laid, left, cut = lay_out(spans_of([9, 5, 3, 4, 4]), 10)
    assert sorted(sorted(size for size, _ in row) for row in laid) == [[3, 5], [4, 4], [9]]
    assert (left, cut) == ([], 0)


def corpus(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(sum(sizes), dtype=np.uint16), np.cumsum(sizes).astype(np.uint64)


def test_a_row_begins_with_bos_and_so_does_all_that_is_in_it() -> None:
    ids, ends = corpus([4, 3, 2])
    [row] = Rows(ids, ends, BOS, 12, seed=0).next(1)
    places = [place for place, token in enumerate(row) if token == BOS]
    parts = {tuple(part.tolist()) for part in np.split(row, places)[1:]}
    assert places[0] == 0 and parts == {(BOS, 0, 1, 2, 3), (BOS, 4, 5, 6), (BOS, 7, 8)}


@pytest.fixture(autouse=True)
def _small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOL", 8)


def many(seed: int = 3) -> Rows:
    sizes = np.random.default_rng(1).integers(1, 30, 50).tolist()
    return Rows(*corpus(sizes), BOS, 16, seed)


def test_a_pass_reads_everything_once_and_each_pass_has_its_own_order() -> None:
    read = many()
    total = len(read.ids)
    order = read.next(3 * total // 16)
    tokens = order[order != BOS]
    first, second = tokens[:total], tokens[total : 2 * total]
    # What is left over of a pool comes later, so the first pass may end a few rows into the second.
    assert np.mean(np.bincount(first, minlength=total) == 1) > 0.9 and set(tokens.tolist()) == set(range(total))
    assert first.tolist() != second.tolist()
    assert many().next(20).tolist() == order[:20].tolist() != many(seed=4).next(20).tolist()


@pytest.mark.parametrize("stop", [0, 1, 7, 40, 133])
def test_it_goes_on_from_any_row(stop: int) -> None:
    whole = many().next(200)
    begun, later = many(), many()
    begun.next(stop) if stop else None
    later.restore(begun.state())
    assert later.next(200 - stop).tolist() == whole[stop:].tolist()
    assert later.cut >= begun.cut
