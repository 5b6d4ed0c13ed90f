"""The trunk's states of all that is read on a data set, computed once for every reward model that stands on it.

with patch("manners.reward.pairs.StateStore", kept.view):      # training reads from here
    train(...)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from manners.models.pretrained import Pretrained
from manners.models.states import StateStore
from manners.models.trunk import States, Trunk
from manners.text import Packed, Rendered, length_buckets


class KeptStates:
    """Stores of states, one for whatever came that was not known; for one trunk."""

    def __init__(self, folder: Path) -> None:
        """Take a folder for their files."""
        self.folder = folder
        self.stores: list[StateStore] = []
        self.place: dict[Rendered, tuple[int, int]] = {}

    def view(
        self, trunk: Trunk, rendered: Sequence[Rendered], pad_id: int, file: Path | None = None, title: str = "reading"
    ) -> View:
        """Return these sequences as a store of their own; runs the trunk over those that it has not met."""
        new = [one for one in dict.fromkeys(rendered) if one not in self.place]
        if new:
            number = len(self.stores)
            self.stores.append(StateStore(trunk, new, pad_id, self.folder / f"{number}", title))
            self.place |= {one: (number, at) for at, one in enumerate(new)}
        return View(self, trunk, rendered, pad_id)

    def of(self, one: Rendered) -> tuple[Tensor, Tensor]:
        """Return the states of a prompt and of the response to it, a row a token."""
        number, at = self.place[one]
        store = self.stores[number]
        assert store.flat is not None, "an empty trunk has no states to keep"
        prompt, response = store.prompt_starts[one.prompt_ids], store.response_starts[at]
        ends = prompt + len(one.prompt_ids), response + len(one.response_ids)
        return store.flat[prompt : ends[0]], store.flat[response : ends[1]]

    def batches(
        self, pretrained: Pretrained, rendered: Sequence[Rendered]
    ) -> Iterator[tuple[list[int], States, Packed]]:
        """Yield places of sequences that are read together, with their states."""
        view = self.view(pretrained.trunk, rendered, pretrained.renderer.pad_id)
        for bucket in length_buckets([one.length for one in rendered], pretrained.trunk.compute.bucket_tokens):
            yield (bucket, *view.batch(bucket))


class View(StateStore):
    """Some of what is kept, as reward training reads it."""

    def __init__(self, kept: KeptStates, trunk: Trunk, rendered: Sequence[Rendered], pad_id: int) -> None:
        """Take what is known; nothing is computed."""
        self.kept = kept
        self.trunk = trunk
        self.rendered = rendered
        self.pad_id = pad_id

    def batch(self, indices: Sequence[int]) -> tuple[States, Packed]:
        """Return the states of some sequences with their batch, whose responses are in the order of `indices`."""
        batch = self._packed(indices)
        states = torch.zeros((*batch.ids.shape, self.trunk.width), dtype=self.trunk.whole.dtype)
        for index, (row, start, stop) in zip(indices, batch.spans, strict=True):
            prompt, response = self.kept.of(self.rendered[index])
            states[row, : len(prompt)] = prompt
            states[row, start:stop] = response
        return states.to(self.trunk.device), batch.to(self.trunk.device)
