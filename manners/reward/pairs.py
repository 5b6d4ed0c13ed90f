"""Pairs ready for training: every distinct response is read once, the pairs of a prompt stay together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from manners.models.branches import ScalarBranch
from manners.models.pretrained import Pretrained
from manners.models.states import StateStore
from manners.reward.labelled import LabelledPair
from manners.text import length_buckets, shared_rows
from manners.types import Dialogue


class ReadPairs:
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
        self.rendered = rendered
        self.share = pretrained.trunk.compute.shares_prompts
        self.store = StateStore(pretrained.trunk, rendered, pretrained.renderer.pad_id, file, title=title)

    def batches(self, which: Sequence[int], size: int, order: random.Random) -> list[list[int]]:
        """Shuffle prompts and join their pairs, whole prompts together, into batches of about `size` pairs."""
        prompts = self._by_prompt(which)
        order.shuffle(prompts)
        batches: list[list[int]] = []
        for pairs in prompts:
            if not batches or len(batches[-1]) + len(pairs) > size:
                batches.append([])
            batches[-1].extend(pairs)
        return batches

    def micro_batches(self, batch: Sequence[int]) -> list[list[int]]:
        """Split a batch by prompt, into parts of similar length that one forward and backward can hold."""
        prompts = self._by_prompt(batch)
        buckets = length_buckets([self._tokens(pairs) for pairs in prompts], self.store.trunk.compute.bucket_tokens)
        return [[i for at in bucket for i in prompts[at]] for bucket in buckets]

    def _by_prompt(self, which: Sequence[int]) -> list[list[int]]:
        by_prompt: dict[Dialogue, list[int]] = {}
        for index in which:
            by_prompt.setdefault(self.pairs[index].prompt, []).append(index)
        return list(by_prompt.values())

    def _tokens(self, pairs: Sequence[int]) -> int:
        """Tokens that the responses of some pairs of one prompt take in a batch."""
        chosen = [self.rendered[side] for side in sorted({side for i in pairs for side in self.sides[i]})]
        prompts = len(shared_rows(chosen, self.share)) * len(chosen[0].prompt_ids)
        return prompts + sum(len(r.response_ids) for r in chosen)

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
