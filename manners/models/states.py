"""Trunk states of many sequences, computed once and kept in a memory-mapped file for every epoch and member."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from manners.models.trunk import States, Trunk
from manners.progress import track
from manners.text import Batch, Rendered, collate, length_buckets


class StateStore:
    """Random access to (states, batch) for any subset of the sequences it was made from."""

    def __init__(
        self,
        trunk: Trunk,
        rendered: Sequence[Rendered],
        pad_id: int,
        file: Path,
        rows: int = 16,
        title: str = "reading",
    ) -> None:
        """Run every sequence through the trunk, in buckets of similar length, into `file` (float32, a row a token)."""
        self.trunk, self.rendered, self.pad_id = trunk, rendered, pad_id
        self.starts = np.concatenate([[0], np.cumsum([r.length for r in rendered])])
        self.flat: np.memmap[tuple[int, int], np.dtype[np.float32]] | None = None
        if trunk.cut == 0:
            return  # the states of an empty trunk are the ids
        self.flat = np.memmap(file, dtype=np.float32, mode="w+", shape=(int(self.starts[-1]), trunk.width))
        for bucket in track(length_buckets([r.length for r in rendered], rows), title):
            batch = collate([rendered[i] for i in bucket], pad_id).to(trunk.device)
            states = trunk.states(batch).float().cpu()
            for row, index in enumerate(bucket):
                self.flat[self.starts[index] : self.starts[index + 1]] = states[row][batch.attend[row].cpu()].numpy()

    def batch(self, indices: Sequence[int]) -> tuple[States, Batch]:
        """Return the states of some sequences, side by side, with their batch."""
        batch = collate([self.rendered[i] for i in indices], self.pad_id)
        if self.flat is None:
            batch = batch.to(self.trunk.device)
            return batch.ids, batch
        states = torch.zeros((*batch.ids.shape, self.trunk.width))
        for row, index in enumerate(indices):
            states[row, batch.attend[row]] = torch.from_numpy(
                np.array(self.flat[self.starts[index] : self.starts[index + 1]])
            )
        return states.to(self.trunk.device, self.trunk.whole.dtype), batch.to(self.trunk.device)
