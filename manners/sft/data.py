"""Sequences with their trunk states, packed into rows in which none sees another."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from manners.models.branches import Branch
from manners.models.packing import ROW_TOKENS
from manners.models.pretrained import Pretrained
from manners.models.states import StateStore
from manners.sft.examples import Learned
from manners.text import Rendered, length_buckets


class ReadExamples:
    """Sequences with the states that the trunk made of them, once for all passes.

    A sequence is to `packing.pack` a response to an empty prompt: those in a row attend to themselves only, and each
    begins at position 0. Where a model does not allow that (`models.proof`), each has a row of its own.
    """

    def __init__(self, pretrained: Pretrained, sequences: Sequence[Learned], file: Path, title: str) -> None:
        """Run the trunk over every sequence, into `file`."""
        self.sequences = sequences
        compute = pretrained.trunk.compute
        self.packs = compute.shares_prompts
        self.tokens = compute.bucket_tokens
        rendered = as_rows(sequences)
        self.store = StateStore(pretrained.trunk, rendered, pretrained.renderer.pad_id, file, title=title)

    def micro_batches(self, which: Sequence[int]) -> list[list[int]]:
        """Split sequences into what one forward and backward can hold: rows of similar length, packed where that goes.

        All rows of a forward are as wide as the widest: a dialogue longer than a row stands among its like.
        """
        lengths = [len(self.sequences[i].ids) for i in which]
        if not self.packs:
            return [[which[at] for at in bucket] for bucket in length_buckets(lengths, self.tokens)]
        capacity = min(ROW_TOKENS, self.tokens)
        rows = best_fit(lengths, capacity)
        widths = [max(capacity, sum(lengths[at] for at in row)) for row in rows]
        buckets = length_buckets(widths, self.tokens)
        return [[which[at] for row in bucket for at in rows[row]] for bucket in buckets]

    def states(self, branch: Branch, which: Sequence[int]) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
        """Return a branch's final states where the learned tokens of some sequences are predicted, and those tokens.

        In the order of the sequences, and of the tokens in each.
        """
        states, batch = self.store.batch(which)
        final = branch.final(states, batch)
        rows, columns = list[int](), list[int]()
        for index, (row, first, _) in zip(which, batch.spans, strict=True):
            for start, stop in self.sequences[index].spans:
                rows += [row] * (stop - start)
                columns += range(first + start, first + stop)
        at = torch.tensor(rows, device=final.device), torch.tensor(columns, device=final.device)
        return final[at[0], at[1] - 1], batch.ids[at]


def as_rows(sequences: Sequence[Learned]) -> list[Rendered]:
    """Return sequences as responses to an empty prompt."""
    return [Rendered((), sequence.ids) for sequence in sequences]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put things, by index, into bins: the longest first, each into the fullest bin that has room for it.

    What is longer than a bin has one of its own; nothing is cut. Source: best fit decreasing, Johnson 1974; at most
    11/9 of the fewest bins there could be, and 6/9 of one.
    """
    bins = list[list[int]]()
    free = list[int]()
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [(room, at) for at, room in enumerate(free) if room >= lengths[index]]
        if fitting:
            _, at = min(fitting)
        else:
            at = len(bins)
            bins.append([])
            free.append(capacity)
        bins[at].append(index)
        free[at] -= lengths[index]
    return bins


def batches(groups: Sequence[Sequence[int]], size: int, order: random.Random) -> list[list[int]]:
    """Shuffle groups of sequences (those of a dialogue), and join `size` of them to a batch."""
    shuffled = list(groups)
    order.shuffle(shuffled)
    return [[i for group in shuffled[at : at + size] for i in group] for at in range(0, len(shuffled), size)]
