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
    return [(size, True, int(end) - size) for size, end in zip(sizes, ends, strict=True)]


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=40), st.integers(2, 17))
def test_every_token_is_laid_once_and_every_row_is_full(some: list[tuple[int, bool]], length: int) -> None:
    sizes = [size for size, _ in some]
    spans = [(size, begins, at) for (size, _, at), (_, begins) in zip(spans_of(sizes), some, strict=True)]
    laid, left, cut = lay_out(spans, length)
    everything = [span for row in [*laid, left] for span in row]
    assert sorted(i for size, _, start in everything for i in range(start, start + size)) == list(range(sum(sizes)))
    for row in laid:
        assert length - 1 <= (not row[0][1]) + sum(size for size, _, _ in row) <= length
    assert sum(size for size, _, _ in left) < length
    assert len(everything) == sum(size > 0 for size in sizes) + cut
    begun = {start for size, begins, start in spans if begins and size}
    assert {start for _, begins, start in everything if begins} == begun, "a rest begins nothing"


def test_documents_that_fit_are_whole() -> None:
    # 10, 6 and 4, 5 twice: by hand, three rows of 10 and nothing cut.
    laid, left, cut = lay_out(spans_of([10, 6, 4, 5, 5]), 10)
    assert sorted(sorted(size for size, _, _ in row) for row in laid) == [[4, 6], [5, 5], [10]]
    assert (left, cut) == ([], 0)


def test_bos_stands_before_a_beginning_and_at_the_head_of_a_row_only() -> None:
    read = many()
    begins = {int(token) for token, before in zip(read.ids[1:], read.ids[:-1], strict=True) if before == BOS}
    inside = [(row[at], row[at + 1]) for row in read.next(200) for at in range(1, 15)]
    followed = {int(token) for before, token in inside if before == BOS}
    assert followed <= begins and read.cut > 20, "behind a BOS within a row a document begins, and never goes on"


def test_a_rest_that_fills_a_row_waits_or_is_cut_for_the_bos_before_it() -> None:
    # By hand: a rest of 10 has no room beside its BOS in a row of 10, so the other, of 9, stands whole in the first
    # row, and 9 of it in the second.
    laid, left, cut = lay_out([(10, False, 0), (9, False, 10)], 10)
    assert laid == [[(9, False, 10)], [(9, False, 0)]]
    assert (left, cut) == ([(1, False, 9)], 1)


def corpus(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Documents whose tokens have a number each, but for the BOS that each begins with."""
    ids, ends = np.arange(sum(sizes), dtype=np.uint16), np.cumsum(sizes).astype(np.uint64)
    ids[[0, *ends[:-1].astype(np.int64)]] = BOS
    return ids, ends


def test_a_row_begins_with_bos_and_so_does_every_document() -> None:
    ids, ends = corpus([5, 4, 3])
    [row] = Rows(ids, ends, BOS, 12, seed=0).next(1)
    places = [place for place, token in enumerate(row) if token == BOS]
    parts = {tuple(part.tolist()) for part in np.split(row, places)[1:]}
    assert places[0] == 0 and parts == {(BOS, 1, 2, 3, 4), (BOS, 6, 7, 8), (BOS, 10, 11)}


@pytest.fixture(autouse=True)
def _small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOL", 8)


def many(seed: int = 3) -> Rows:
    sizes = np.random.default_rng(1).integers(2, 31, 50).tolist()
    return Rows(*corpus(sizes), BOS, 16, seed)


def test_a_pass_reads_everything_once_and_each_pass_has_its_own_order() -> None:
    read = many()
    said = read.ids[read.ids != BOS]
    total = len(said)
    order = read.next(4 * total // 16)
    tokens = order[order != BOS]
    first, second = tokens[:total], tokens[total : 2 * total]
    # What is left over of a pool comes later, so the first pass may end a few rows into the second.
    assert np.mean(np.bincount(first, minlength=len(read.ids))[said] == 1) > 0.9
    assert set(tokens.tolist()) == set(said.tolist())
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
