"""Pairs ready for training: every distinct response is read once, the pairs of a prompt stay together."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from manners.models.branches import ScalarBranch
from manners.models.pretrained import Pretrained
from manners.models.states import StateStore
from manners.reward.data import LabelledPair
from manners.types import Dialogue

MICRO_SEQUENCES = 16
"""Responses per forward and backward; changes memory and speed only."""


class Pairs:
    """Labelled pairs with the trunk states of their responses.

    K answers to one prompt make up to K (K - 1) / 2 pairs; keeping these in one batch scores each answer once
    (Ouyang et al. 2022, section 3.5).
    """

    def __init__(self, pretrained: Pretrained, pairs: Sequence[LabelledPair], file: Path, title: str) -> None:
        """Render every distinct response and run the trunk over it, into `file`."""
        self.pairs = pairs
        exchanges = {(p.prompt, side): None for p in pairs for side in (p.left, p.right)}
        place = {exchange: index for index, exchange in enumerate(exchanges)}
        rendered = [pretrained.renderer.render(prompt, response) for prompt, response in exchanges]
        self.sides = [(place[p.prompt, p.left], place[p.prompt, p.right]) for p in pairs]
        self.shortened = sum(r.shortened for r in rendered)
        self.lengths = [r.length for r in rendered]
        self.store = StateStore(pretrained.trunk, rendered, pretrained.renderer.pad_id, file, title=title)

    def batches(self, which: Sequence[int], size: int, order: random.Random) -> list[list[int]]:
        """Shuffle prompts and pack their pairs, whole prompts together, into batches of about `size` pairs."""
        by_prompt: dict[Dialogue, list[int]] = {}
        for index in which:
            by_prompt.setdefault(self.pairs[index].prompt, []).append(index)
        prompts = list(by_prompt.values())
        order.shuffle(prompts)
        return _packed(prompts, size, len)

    def micro_batches(self, batch: Sequence[int]) -> list[list[int]]:
        """Split a batch by prompt, longest first, so that a micro-batch holds little padding."""
        by_prompt: dict[Dialogue, list[int]] = {}
        for index in batch:
            by_prompt.setdefault(self.pairs[index].prompt, []).append(index)
        longest = sorted(
            by_prompt.values(), key=lambda pairs: -max(self.lengths[s] for i in pairs for s in self.sides[i])
        )
        return _packed(longest, MICRO_SEQUENCES, lambda pairs: len({s for i in pairs for s in self.sides[i]}))

    def scores(self, member: ScalarBranch, which: Sequence[int]) -> Float[Tensor, "pairs 2"]:
        """Raw scores of the left and right sides of some pairs; a response in several pairs is scored once."""
        distinct = sorted({side for i in which for side in self.sides[i]})
        at = {sequence: row for row, sequence in enumerate(distinct)}
        scores = member.scores(*self.store.batch(distinct))
        rows = torch.tensor([[at[left], at[right]] for left, right in (self.sides[i] for i in which)])
        return scores[rows.to(scores.device)]

    @torch.no_grad()
    def all_scores(self, member: ScalarBranch) -> Float[Tensor, "pairs 2"]:
        """Raw scores of all pairs, in order."""
        scores = torch.zeros((len(self.pairs), 2))
        for which in self.micro_batches(range(len(self.pairs))):
            scores[which] = self.scores(member, which).cpu()
        return scores


def _packed(groups: Sequence[list[int]], size: int, weigh: Callable[[list[int]], int]) -> list[list[int]]:
    """Join neighbouring groups while their weights sum to at most `size`; a heavier group stands alone."""
    packed: list[list[int]] = []
    filled = size
    for group in groups:
        weight = weigh(group)
        if packed and filled + weight <= size:
            packed[-1].extend(group)
            filled += weight
        else:
            packed.append(list(group))
            filled = weight
    return packed
