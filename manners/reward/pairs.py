"""Pairs as the model reads them: every distinct response is read once, the pairs of a prompt stay together."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from manners.errors import MannersError
from manners.models.packing import shared_rows
from manners.models.pretrained import Pretrained
from manners.models.states import StateStore
from manners.models.trunk import States
from manners.results import Shortened
from manners.reward.ensemble import Exchange
from manners.reward.groups import Split, check_two_ways
from manners.reward.labelled import Labelled, LabelledPair, LeftOut
from manners.text import Packed, Rendered, Renderer, length_buckets
from manners.types import Dialogue, Response


def render_compared(renderer: Renderer, exchanges: Iterable[Exchange]) -> dict[Exchange, Rendered]:
    """Render every distinct exchange; of a prompt all the responses that are given to it see the same."""
    exchanges = list(dict.fromkeys(exchanges))
    responses: dict[Dialogue, list[Response]] = {}
    for prompt, response in exchanges:
        responses.setdefault(prompt, []).append(response)
    rendered: dict[Exchange, Rendered] = {}
    for prompt, given in responses.items():
        beside = renderer.render_beside(prompt, given)
        rendered |= {(prompt, response): found for response, found in zip(given, beside, strict=True)}
    return {exchange: rendered[exchange] for exchange in exchanges}


def laid_out(renderer: Renderer, labelled: Labelled) -> Labelled:
    """Leave out, and count, the pairs whose prompt the chat template refuses; raises MannersError if that leaves none.

    `loop.reward` says which they are before it begins.
    """
    objections = renderer.template.objections(pair.prompt for pair in labelled.pairs)
    kept = tuple(pair for pair in labelled.pairs if not objections[pair.prompt])
    if labelled.pairs and not kept:
        raise MannersError(
            f"the model's chat template refuses the prompts of all {len(labelled.pairs)} comparisons"
            f" ({objections[labelled.pairs[0].prompt]}); bring others, or name another template with"
            " model.chat_template"
        )
    if refused := len(labelled.pairs) - len(kept):
        labelled = replace(labelled, pairs=kept, left_out={**labelled.left_out, LeftOut.REFUSED: refused})
    return labelled


def read(renderer: Renderer, labelled: Labelled) -> tuple[Labelled, dict[Exchange, Rendered]]:
    """Render the sides of all pairs; leave out, and count, the pairs of which the model reads the same on both sides.

    And those that the chat template refuses (`laid_out`). Raises MannersError when that leaves none.
    """
    labelled = laid_out(renderer, labelled)
    rendered = render_compared(renderer, ((p.prompt, side) for p in labelled.pairs for side in (p.left, p.right)))

    def differ(pair: LabelledPair) -> bool:
        left, right = (rendered[pair.prompt, side].response_ids for side in (pair.left, pair.right))
        return left != right

    kept = tuple(pair for pair in labelled.pairs if differ(pair))
    if not kept:
        raise MannersError(
            f"the two responses of all {len(labelled.pairs)} comparisons are alike once they are shortened to"
            f" model.context = {renderer.context} tokens, so there is nothing to learn; raise model.context"
        )
    if alike := len(labelled.pairs) - len(kept):
        labelled = replace(labelled, pairs=kept, left_out={**labelled.left_out, LeftOut.ALIKE: alike})
    return labelled, rendered


def sayable(labelled: Labelled, rendered: Mapping[Exchange, Rendered], shut_out: AbstractSet[int]) -> Labelled:
    """Leave out, and count, the pairs that no policy can say a side of (`can_say`).

    Raises MannersError when that leaves none.
    """
    kept = tuple(pair for pair in labelled.pairs if can_say(pair, rendered, shut_out))
    if not kept:
        raise MannersError(
            f"all {len(labelled.pairs)} comparisons have a response with something that the model's tokenizer has no"
            " token for, so that no policy could learn to say it; bring others, or use another model"
        )
    if gone := len(labelled.pairs) - len(kept):
        labelled = replace(labelled, pairs=kept, left_out={**labelled.left_out, LeftOut.UNSAYABLE: gone})
    return labelled


def sides_said(split: Split, rendered: Mapping[Exchange, Rendered], shut_out: AbstractSet[int]) -> Split:
    """Return the two sides, drawn from all pairs, without those that no policy can say a side of.

    To draw from what can be said would set other groups aside than reward training does, which learns from them.
    Raises MannersError where nothing is left to learn from, or to measure with.
    """
    sides = (split.train, split.held_out, split.idle)
    train, held_out, idle = (tuple(pair for pair in side if can_say(pair, rendered, shut_out)) for side in sides)
    if not train or not any(pair.measured.decided for pair in held_out):
        which = "to measure with" if train else "to learn from"
        raise MannersError(
            f"of the comparisons {which} none is left that the model's tokenizer has tokens for and whose verdicts"
            " choose a side; bring more, or use another model"
        )
    check_two_ways(train)
    return replace(split, train=train, held_out=held_out, idle=idle)


def can_say(pair: LabelledPair, rendered: Mapping[Exchange, Rendered], shut_out: AbstractSet[int]) -> bool:
    """Return whether neither side has a token that is shut out: its log-probability is -inf, by any policy."""
    return all(shut_out.isdisjoint(rendered[pair.prompt, side].response_ids) for side in (pair.left, pair.right))


def unended(renderer: Renderer, rendered: Mapping[Exchange, Rendered]) -> dict[Exchange, Rendered]:
    """Return exchanges as a policy learns them: a response that was cut to fit does not end where it was cut.

    A reward model reads an end there, where its score stands; a policy would learn to stop in mid-sentence, or not to.
    """

    def cut(response: Response, found: Rendered) -> bool:
        ends = found.response_ids[-1] == renderer.end_id
        return found.shortened and ends and len(found.response_ids) < len(renderer.response_ids(response))

    return {
        (prompt, response): replace(found, response_ids=found.response_ids[:-1], dropped=found.dropped + 1)
        if cut(response, found)
        else found
        for (prompt, response), found in rendered.items()
    }


def shortened(rendered: Collection[Rendered]) -> Shortened:
    """Count what did not fit, among some exchanges, and the tokens that it lost."""
    dropped = [r.dropped for r in rendered if r.dropped]
    return Shortened(count=len(dropped), share=len(dropped) / max(1, len(rendered)), tokens=sum(dropped))


class Scorer(Protocol):
    """What gives a number to a response: a member of a reward model, or a policy (`direct`)."""

    def scores(self, states: States, batch: Packed) -> Float[Tensor, " N"]:
        """Return the number of each response of a batch."""


class ReadPairs:
    """Labelled pairs with the trunk states of their responses.

    K answers to one prompt make up to K (K - 1) / 2 pairs; keeping these in one batch scores each answer once
    (Ouyang et al. 2022, section 3.5).
    """

    def __init__(
        self,
        pretrained: Pretrained,
        pairs: Sequence[LabelledPair],
        rendered_as: Mapping[Exchange, Rendered],
        file: Path,
        title: str,
    ) -> None:
        """Run the trunk over every distinct response, as it was rendered, into `file`."""
        self.pairs = pairs
        exchanges = {(p.prompt, side): None for p in pairs for side in (p.left, p.right)}
        place = {exchange: index for index, exchange in enumerate(exchanges)}
        rendered = [rendered_as[exchange] for exchange in exchanges]
        self.sides = [(place[p.prompt, p.left], place[p.prompt, p.right]) for p in pairs]
        self.rendered = rendered
        self.share = pretrained.trunk.compute.shares_prompts
        self.store = StateStore(pretrained.trunk, rendered, pretrained.renderer.pad_id, file, title=title)

    def batches(self, which: Sequence[int], size: int, order: random.Random) -> list[list[int]]:
        """Shuffle prompts and join their pairs, whole prompts together, into batches of at most `size` pairs.

        Of a prompt with more pairs so many at a time are a batch of their own: each batch is one step.
        """
        full: list[list[int]] = []
        prompts: list[list[int]] = []
        for pairs in self._by_prompt(which):
            whole = (len(pairs) - 1) // size * size
            full += [pairs[at : at + size] for at in range(0, whole, size)]
            prompts.append(pairs[whole:])
        order.shuffle(prompts)
        batches: list[list[int]] = []
        for pairs in prompts:
            if not batches or len(batches[-1]) + len(pairs) > size:
                batches.append([])
            batches[-1].extend(pairs)
        if full:
            batches += full
            order.shuffle(batches)
        return batches

    def weight(self, which: Sequence[int]) -> float:
        """Return what the verdicts on some pairs weigh."""
        return sum(sum(self.pairs[i].weights) for i in which)

    def usual(self, which: Sequence[int]) -> float:
        """Return what the verdicts on one of some pairs weigh, on average.

        A batch of them is a step of its mean loss, times its weight over that of as many usual pairs: what limits the
        weight of a user, an account or a judge then limits their part in all steps, whoever they share batches with.
        """
        return self.weight(which) / len(which)

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

    @property
    def tokens(self) -> int:
        """Tokens of all that one pass reads: every distinct response, and its prompt once where responses share it."""
        return sum(self._tokens(pairs) for pairs in self._by_prompt(range(len(self.pairs))))

    def _tokens(self, pairs: Sequence[int]) -> int:
        """Tokens that the responses of some pairs of one prompt take in a batch."""
        chosen = [self.rendered[side] for side in sorted({side for i in pairs for side in self.sides[i]})]
        prompts = len(shared_rows(chosen, self.share)) * len(chosen[0].prompt_ids)
        return prompts + sum(len(r.response_ids) for r in chosen)

    def scores(self, member: Scorer, which: Sequence[int]) -> Float[Tensor, "pairs 2"]:
        """Raw scores of the left and right sides of some pairs; a response in several pairs is scored once."""
        distinct = sorted({side for i in which for side in self.sides[i]})
        at = {sequence: row for row, sequence in enumerate(distinct)}
        scores = member.scores(*self.store.batch(distinct))
        rows = torch.tensor([[at[left], at[right]] for left, right in (self.sides[i] for i in which)])
        return scores[rows.to(scores.device)]

    @torch.no_grad()
    def all_scores(self, member: Scorer) -> Float[Tensor, "pairs 2"]:
        """Raw scores of all pairs, in order."""
        scores = torch.zeros((len(self.pairs), 2))
        for which in self.micro_batches(range(len(self.pairs))):
            scores[which] = self.scores(member, which).cpu()
        return scores
