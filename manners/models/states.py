"""Trunk states of many sequences, computed once and kept in a memory-mapped file for every epoch and member."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from manners.errors import MannersError
from manners.models.packing import pack, packed_buckets
from manners.models.trunk import States, Trunk
from manners.progress import steps
from manners.text import Packed, Rendered

BLANK = bytes(2**20)
"""What is written to take space on a disk that has no other way."""


class StateStore:
    """Random access to (states, batch) for any subset of the sequences it was made from."""

    def __init__(
        self, trunk: Trunk, rendered: Sequence[Rendered], pad_id: int, file: Path, title: str = "reading"
    ) -> None:
        """Run every sequence through the trunk, in buckets of similar length, into `file`, a row a token.

        Numbers are kept as the model computes in them. A prompt's states do not depend on what comes after it: they are
        kept once for all its responses. A trunk that keeps none runs for each batch anew, which may round otherwise.
        Raises MannersError, before anything runs, where the disk has no room for them.
        """
        self.trunk = trunk
        self.rendered = rendered
        self.pad_id = pad_id
        self.flat: Tensor | None = None
        if trunk.cut == 0 or not trunk.keeps_states:
            return  # the states of an empty trunk are the ids
        prompts = list(dict.fromkeys(r.prompt_ids for r in rendered))
        starts = np.cumsum([0, *map(len, prompts), *(len(r.response_ids) for r in rendered)]).tolist()
        self.prompt_starts = dict(zip(prompts, starts, strict=False))
        self.response_starts = starts[len(prompts) : -1]
        reserve(file, kept_bytes(rendered, trunk))
        dtype = trunk.whole.dtype
        flat = torch.from_file(str(file), shared=True, size=starts[-1] * trunk.width, dtype=dtype)
        self.flat = flat.view(-1, trunk.width)
        with steps(title, len(rendered)) as advance:
            for chosen in packed_buckets(rendered, trunk.compute.shares_prompts, trunk.compute.bucket_tokens):
                batch = self._packed(chosen)
                states = trunk.states(batch.to(trunk.device)).cpu()
                for index, (row, start, stop) in zip(chosen, batch.spans, strict=True):
                    prompt = rendered[index].prompt_ids
                    at = self.response_starts[index]
                    self.flat[at : at + stop - start] = states[row, start:stop]
                    at = self.prompt_starts[prompt]
                    self.flat[at : at + len(prompt)] = states[row, : len(prompt)]
                advance(len(chosen))

    def batch(self, indices: Sequence[int]) -> tuple[States, Packed]:
        """Return the states of some sequences with their batch, whose responses are in the order of `indices`."""
        batch = self._packed(indices)
        if self.flat is None:
            batch = batch.to(self.trunk.device)
            return self.trunk.states(batch), batch
        states = torch.zeros((*batch.ids.shape, self.trunk.width), dtype=self.flat.dtype)
        for index, (row, start, stop) in zip(indices, batch.spans, strict=True):
            prompt = self.rendered[index].prompt_ids
            at = self.response_starts[index]
            states[row, start:stop] = self.flat[at : at + stop - start]
            at = self.prompt_starts[prompt]
            states[row, : len(prompt)] = self.flat[at : at + len(prompt)]
        return states.to(self.trunk.device), batch.to(self.trunk.device)

    def _packed(self, indices: Sequence[int]) -> Packed:
        return pack([self.rendered[i] for i in indices], self.trunk.compute.shares_prompts, self.pad_id)


def kept_bytes(rendered: Sequence[Rendered], trunk: Trunk) -> int:
    """Return what the states of these sequences take on the disk: a prompt once, a response each."""
    prompts = {r.prompt_ids for r in rendered}
    tokens = sum(map(len, prompts)) + sum(len(r.response_ids) for r in rendered)
    return tokens * trunk.width * trunk.whole.dtype.itemsize


def reserve(file: Path, size: int) -> None:
    """Make a file of so many bytes whose space on the disk is taken already.

    A file with holes would be made on any disk, and whoever writes to it through memory is ended by a signal, without
    a word, when the disk is full. Raises MannersError naming folder and bytes where there is too little room.
    """
    try:
        with file.open("wb") as stream:
            _allocate(stream, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        file.unlink()
        free = shutil.disk_usage(file.parent).free
        raise MannersError(
            f"the trunk's states take {size:,} bytes in {file.parent}, and {free:,} are free there: make room on that"
            " disk, set a lower reward.limit or sft.limit, or set model.trunk_states to recomputed"
        ) from error


def _allocate(stream: BinaryIO, size: int) -> None:
    """Take the space in one call, or by writing where system or disk have no such call."""
    allocate = getattr(os, "posix_fallocate", None)
    if allocate is not None:
        try:
            allocate(stream.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENODEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP):
                raise
    for start in range(0, size, len(BLANK)):
        stream.write(BLANK[: size - start])
