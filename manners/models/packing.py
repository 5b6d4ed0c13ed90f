"""Sequences in rows for scoring: responses behind one copy of their prompt, or all of them in a single row.

In a single row there is no padding, and no mask that takes the row's square; it is for models that are told who looks
at what (`models.attention`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from manners.text import Packed, Rendered, Segment, common_start, flat_buckets, length_buckets

ROW_TOKENS = 1024
"""Tokens of a row in which responses share a prompt: attention there grows with the square."""


def shared_rows(rendered: Sequence[Rendered], share: bool) -> list[list[int]]:
    """Group sequences, by index, that can stand in one row: those with one prompt, up to `ROW_TOKENS` in all.

    Without `share` each stands alone.
    """
    return _grouped(rendered, lambda _: ROW_TOKENS) if share else [[index] for index in range(len(rendered))]


def _grouped(rendered: Sequence[Rendered], most: Callable[[int], int]) -> list[list[int]]:
    """Group sequences with one prompt, up to `most` tokens in all behind and with a prompt of so many."""
    rows: list[list[int]] = []
    latest: dict[tuple[int, ...], tuple[list[int], int]] = {}
    for index, r in enumerate(rendered):
        prompt = len(r.prompt_ids)
        row, length = latest.get(r.prompt_ids, ([], 0))
        if not row or length + len(r.response_ids) > most(prompt):
            row, length = [], prompt
            rows.append(row)
        row.append(index)
        latest[r.prompt_ids] = row, length + len(r.response_ids)
    return rows


def _row_tokens(rendered: Sequence[Rendered], rows: Sequence[Sequence[int]]) -> list[int]:
    """Count the tokens of each row: a prompt, and the responses to it."""
    return [len(rendered[row[0]].prompt_ids) + sum(len(rendered[i].response_ids) for i in row) for row in rows]


def _indices(rows: Sequence[Sequence[int]], buckets: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the sequences of each bucket of rows."""
    return [[index for at in bucket for index in rows[at]] for bucket in buckets]


def packed_buckets(rendered: Sequence[Rendered], share: bool, limit: int) -> list[list[int]]:
    """Split indices into batches to `pack`, of rows of similar length."""
    rows = shared_rows(rendered, share)
    return _indices(rows, length_buckets(_row_tokens(rendered, rows), limit))


def pack(rendered: Sequence[Rendered], share: bool, pad_id: int) -> Packed:
    """Lay sequences out in rows; with `share`, responses to one prompt behind one copy of it."""
    rows = shared_rows(rendered, share)
    lengths = _row_tokens(rendered, rows)
    ids = torch.full((len(rows), max(lengths)), pad_id, dtype=torch.long)
    positions = torch.zeros_like(ids)
    segments = torch.full_like(ids, -1)
    spans = [(0, 0, 0)] * len(rendered)
    for at, row in enumerate(rows):
        prompt = rendered[row[0]].prompt_ids
        start = len(prompt)
        ids[at, :start] = torch.tensor(prompt)
        positions[at, :start] = torch.arange(start)
        segments[at, :start] = 0
        for number, index in enumerate(row):
            response = rendered[index].response_ids
            stop = start + len(response)
            ids[at, start:stop] = torch.tensor(response)
            segments[at, start:stop] = number + 1
            positions[at, start:stop] = torch.arange(len(prompt), len(prompt) + len(response))
            spans[index] = (at, start, stop)
            start = stop
    attend = segments >= 0
    if share:
        same = segments.unsqueeze(2) == segments.unsqueeze(1)
        of_prompt = (segments == 0).unsqueeze(1)
        attend = ((same | of_prompt).tril() & attend.unsqueeze(1)).unsqueeze(1)
    return Packed(ids, attend, positions, tuple(spans), common_start([r.prompt_ids for r in rendered]))


def flat_rows(rendered: Sequence[Rendered], limit: int) -> list[list[int]]:
    """Split indices into batches to `pack_flat`, those with one prompt together, of about `limit` tokens at most.

    Behind a long prompt there is room for as many tokens as it has itself: to read it again would take as long.
    """
    rows = _grouped(rendered, lambda prompt: max(limit, 2 * prompt))
    return _indices(rows, flat_buckets(_row_tokens(rendered, rows), limit))


def pack_flat(rendered: Sequence[Rendered]) -> Packed:
    """Lay all sequences out in a single row without padding: what all prompts begin with, prompts, responses.

    For models that are told who looks at what (`models.attention`): attention then takes as long as if each response
    stood alone behind its prompt, where a mask over the whole row takes its square.
    """
    groups = dict[tuple[int, ...], list[int]]()
    for index, r in enumerate(rendered):
        groups.setdefault(r.prompt_ids, []).append(index)
    common = common_start(list(groups)) if len(groups) > 1 else 0
    ids, positions, segments = list[int](), list[int](), list[Segment]()
    spans = [(0, 0, 0)] * len(rendered)

    def put(tokens: Sequence[int], behind: tuple[tuple[int, int], ...]) -> tuple[int, int]:
        segment = Segment(len(ids), len(ids) + len(tokens), behind)
        segments.append(segment)
        ids.extend(tokens)
        positions.extend(range(segment.lead, segment.lead + len(tokens)))
        return segment.start, segment.stop

    beginning = (put(rendered[0].prompt_ids[:common], ()),) if common else ()
    for prompt, owned in groups.items():
        behind = (*beginning, put(prompt[common:], beginning))
        for index in owned:
            spans[index] = (0, *put(rendered[index].response_ids, behind))
    row = torch.tensor([ids])
    return Packed(
        row, torch.ones_like(row, dtype=torch.bool), torch.tensor([positions]), tuple(spans), 0, tuple(segments)
    )
