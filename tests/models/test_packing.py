"""Sequences in rows: each looks at what it stands behind and itself, at the positions it has alone."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from manners.models.compute import bucket_tokens
from manners.models.packing import ROW_TOKENS, flat_rows, pack, pack_flat, packed_buckets
from manners.text import Rendered, common_start

PROMPTS = st.sampled_from([(5, 6, 7), (8, 9), (5,), tuple(range(10, 300))])
RESPONSES = st.lists(st.integers(1, 99), min_size=1, max_size=300).map(tuple)


@given(st.lists(st.builds(Rendered, PROMPTS, RESPONSES), min_size=1, max_size=12))
def test_in_one_row_a_response_looks_at_its_prompt_and_itself_and_nothing_stands_there_twice(
    rendered: list[Rendered],
) -> None:
    packed = pack_flat(rendered)
    ending = {segment.stop: segment for segment in packed.segments}
    for r, row, end in zip(rendered, *(ends.tolist() for ends in packed.ends), strict=True):
        segment = ending[end + 1]
        looks_at = [*segment.behind, (segment.start, segment.stop)]
        columns = [column for start, stop in looks_at for column in range(start, stop)]
        assert row == 0 and tuple(packed.ids[0, columns].tolist()) == r.prompt_ids + r.response_ids
        assert packed.positions[0, columns].tolist() == list(range(r.length))
    assert [(s.start, s.stop) for s in packed.segments] == list(
        pairwise([0, *(segment.stop for segment in packed.segments)])
    )
    prompts = {r.prompt_ids for r in rendered}
    common = common_start(list(prompts)) if len(prompts) > 1 else 0
    shared = sum(len(prompt) - common for prompt in prompts) + common
    assert packed.ids.shape == (1, shared + sum(len(r.response_ids) for r in rendered))


@given(st.lists(st.builds(Rendered, PROMPTS, RESPONSES), min_size=1, max_size=30))
def test_flat_rows_are_a_partition_of_what_fits(rendered: list[Rendered]) -> None:
    rows = flat_rows(rendered, 1024)
    assert sorted(i for row in rows for i in row) == list(range(len(rendered)))
    assert all(pack_flat([rendered[i] for i in row]).ids.shape[1] <= 1024 for row in rows)


def test_a_long_prompt_is_read_once_for_as_many_tokens_as_it_has() -> None:
    long, short = tuple(range(3000)), (1, 2)
    rendered = [Rendered(prompt, (5,) * 20) for _ in range(200) for prompt in (long, short)]
    rows = flat_rows(rendered, 1024)
    reads_it = [row for row in rows if any(rendered[i].prompt_ids == long for i in row)]
    assert [len(row) for row in reads_it] == [150, 50]


@given(st.lists(st.builds(Rendered, PROMPTS, RESPONSES), min_size=1, max_size=12), st.booleans())
def test_a_packed_response_sees_its_prompt_and_itself_at_the_positions_it_has_alone(
    rendered: list[Rendered], share: bool
) -> None:
    packed = pack(rendered, share, pad_id=0)
    for r, row, end in zip(rendered, *(ends.tolist() for ends in packed.ends), strict=True):
        if share:
            seen = packed.attend[row, 0, end].nonzero().squeeze(1)
        else:
            seen = packed.attend[row].nonzero().squeeze(1)
            assert int(seen[-1]) == end
        assert tuple(packed.ids[row, seen].tolist()) == r.prompt_ids + r.response_ids
        assert packed.positions[row, seen].tolist() == list(range(r.length))
        if share:  # as each earlier token of it does
            assert torch.equal(packed.attend[row, 0][seen][:, seen], torch.ones(r.length, r.length).tril().bool())
    assert len(packed.ids) <= len(rendered)
    prompts = {r.prompt_ids for r in rendered}
    assert not share or len(packed.ids) >= len(prompts)
    assert share or len(packed.ids) == len(rendered)


@given(st.lists(st.builds(Rendered, PROMPTS, RESPONSES), min_size=1, max_size=30), st.booleans())
def test_packed_buckets_are_a_partition_and_a_long_row_is_split(rendered: list[Rendered], share: bool) -> None:
    buckets = packed_buckets(rendered, share, bucket_tokens(torch.device("cpu")))
    assert sorted(i for bucket in buckets for i in bucket) == list(range(len(rendered)))
    for bucket in buckets:
        shape = pack([rendered[i] for i in bucket], share, 0).ids.shape
        assert shape[1] <= ROW_TOKENS and (shape[0] == 1 or shape.numel() <= 1024)
