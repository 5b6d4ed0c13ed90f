"""A reward model: scalar branches on one trunk, in units of what the start version's answers to a prompt differ by."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from manners.models.branches import ScalarBranch
from manners.models.packing import flat_rows, pack, pack_flat, packed_buckets
from manners.models.pretrained import Pretrained
from manners.models.trunk import States
from manners.text import Batch, Packed, Rendered
from manners.types import Dialogue, Response

Exchange = tuple[Dialogue, Response]
"""A prompt and a response to it."""
WIDE = 4
"""How many times the tokens of another forward stand in a row where millions are scored: longer rows are faster, and
nothing else is in memory then."""
CHUNK = 512
"""Exchanges that are scored together: which others stand beside an exchange shows in the last digits of its score."""


@dataclass(frozen=True)
class Scored:
    """Normalised scores of N responses."""

    members: Float[Tensor, "K N"]
    """Each member's score, less its own mean on the start version's answers (scores are free up to that shift), in
    units of what such answers to one prompt differ by."""
    dropped: tuple[int, ...] = ()
    """Tokens of each response and its prompt that did not fit into the context; empty where nobody counted."""
    camps: Float[Tensor, "G N"] | None = None
    """What each camp of annotators likes an answer more than all do, in units; None where they are not told apart."""

    @property
    def mean(self) -> Float[Tensor, " N"]:
        """The reward: the mean over members."""
        return self.members.mean(dim=0)

    @property
    def std(self) -> Float[Tensor, " N"]:
        """Spread among members; 0 with a single one."""
        return self.members.std(dim=0, correction=0)


@dataclass(frozen=True)
class Camps:
    """What camps of annotators want, beside what all do: a direction each, in the first member's final states.

    The score of camp g is the mean over members + h . direction_g - offset_g, in units; over all camps, as large as
    they are, the rest is 0. See `reward.camps`.
    """

    directions: Float[Tensor, "G D"]
    offsets: Float[Tensor, " G"]
    """Means on the start version's answers."""
    shares: Float[Tensor, " G"]
    """Of annotators, the largest first."""

    def of(self, ends: Float[Tensor, "N D"]) -> Float[Tensor, "G N"]:
        """Return by how much each camp likes answers more than all do, from the states of their last tokens."""
        return self.directions.to(ends.device) @ ends.T - self.offsets.to(ends.device).unsqueeze(1)


@dataclass(frozen=True)
class RewardModel:
    """K members, each with its shift and its scale."""

    members: tuple[ScalarBranch, ...]
    shifts: tuple[float, ...]
    """Each member's mean on the start version's answers."""
    scales: tuple[float, ...]
    """What a unit of the reward is in each member's raw score, in nats: margins are log-odds."""
    witness: RewardModel | None = None
    """One member more, in units of its own, that learned from a part of the pairs and has no part in the reward: nobody
    optimises against it, so that it can say what optimising has come to. None in older versions."""
    camps: Camps | None = None

    @property
    def unit(self) -> float:
        """What a unit is worth, in nats: the log-odds of being preferred that the members mean by it, on average."""
        return sum(self.scales) / len(self.scales)

    @torch.no_grad()
    def score(self, states: States, batch: Batch | Packed) -> Scored:
        """Score the responses of a batch from their trunk states: (raw_k - shift_k) / scale_k for member k."""
        if self.camps is None:
            return self._scored([member.scores(states, batch) for member in self.members])
        first, *rest = self.members
        ends = first.ends(states, batch)
        raw = [first.of_ends(ends), *(member.scores(states, batch) for member in rest)]
        return replace(self._scored(raw), camps=self.camps.of(ends))

    def _scored(self, raw: Sequence[Float[Tensor, " N"]]) -> Scored:
        members = torch.stack(list(raw))
        shifts, scales = (torch.tensor(x, device=members.device).view(-1, 1) for x in (self.shifts, self.scales))
        return Scored((members - shifts) / scales)

    def margins(self, raw: Float[Tensor, "K pairs 2"]) -> Float[Tensor, "K pairs"]:
        """Return score left - score right by member, in units, of raw scores of both sides of some pairs."""
        return (raw[..., 0] - raw[..., 1]) / torch.tensor(self.scales).view(-1, 1)

    def normalised_on(self, raw: Float[Tensor, "K N"], prompts: Sequence[Hashable]) -> RewardModel:
        """Return the same members, in units of what N answers of the start version to these prompts differ by.

        With s_k = `within_prompts` of member k, and S that of the mean over members of raw_k / s_k, scale_k = s_k S:
        the members weigh alike, and the reward, their mean, has a standard deviation of 1 among answers to one prompt.
        There is one scale a member and none a prompt. What lies between prompts is in no scale: comparisons are made
        within a prompt, so that the likelihood of Bradley and Terry leaves an offset of every prompt free. Scores that
        do not vary keep their scale.
        """
        own = within_prompts(raw, prompts)
        together = within_prompts((raw.double() / own.unsqueeze(1)).mean(dim=0, keepdim=True), prompts)
        shifts, scales = raw.mean(dim=1).tolist(), (own * together).tolist()
        return replace(self, shifts=tuple(shifts), scales=tuple(scales))


def within_prompts(scores: Float[Tensor, "K N"], prompts: Sequence[Hashable]) -> Float[Tensor, " K"]:
    """Return the root of the variance within prompts, pooled: sum (x - mean of its prompt)^2 / (N - prompts).

    It is 1 for scores that do not vary. Raises ValueError where no prompt has two answers.
    """
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    at = torch.tensor([places[prompt] for prompt in prompts], device=scores.device)
    if len(at) == len(places):
        raise ValueError("a spread within prompts takes several answers to a prompt")
    means = scores.new_zeros((len(scores), len(places)), dtype=torch.float64).index_add(1, at, scores.double())
    means = means / torch.bincount(at)
    spread = ((scores - means[:, at]).square().sum(dim=1) / (len(at) - len(places))).sqrt()
    return torch.where(spread > 1e-6, spread, torch.ones_like(spread))


def score_rendered(reward: RewardModel, pretrained: Pretrained, rendered: Sequence[Rendered]) -> Float[Tensor, "K N"]:
    """Score rendered exchanges, in buckets of similar length, through trunk and members; (K, N), in the order given."""
    return score_all(reward, pretrained, rendered).members


def score_all(reward: RewardModel, pretrained: Pretrained, rendered: Sequence[Rendered]) -> Scored:
    """Score rendered exchanges as `score_rendered`, for the camps of annotators too, where there are any."""
    members = torch.zeros((len(reward.members), len(rendered)))
    camps = None if reward.camps is None else torch.zeros((len(reward.camps.shares), len(rendered)))
    for bucket, states, batch in _buckets(pretrained, rendered):
        scored = reward.score(states, batch)
        members[:, bucket] = scored.members.cpu()
        if camps is not None and scored.camps is not None:
            camps[:, bucket] = scored.camps.cpu()
    return Scored(members, tuple(r.dropped for r in rendered), camps)


@torch.no_grad()
def final_states(
    member: ScalarBranch, pretrained: Pretrained, rendered: Sequence[Rendered]
) -> tuple[Float[Tensor, "N D"], Float[Tensor, " N"]]:
    """Return the final state of each response's last token in a member, and its raw score; in the order given."""
    ends = torch.zeros((len(rendered), pretrained.trunk.width))
    for bucket, states, batch in _buckets(pretrained, rendered):
        ends[bucket] = member.ends(states, batch).cpu()
    return ends, member.of_ends(ends.to(pretrained.trunk.device)).cpu()


def _buckets(pretrained: Pretrained, rendered: Sequence[Rendered]) -> Iterator[tuple[list[int], States, Packed]]:
    """Yield places of exchanges that are read together, with their trunk states."""
    trunk, compute = pretrained.trunk, pretrained.trunk.compute
    lay_out: Callable[[Sequence[Rendered]], Packed] = pack_flat
    if compute.flat:
        buckets = flat_rows(rendered, compute.bucket_tokens)
    else:
        buckets = packed_buckets(rendered, compute.shares_prompts, compute.bucket_tokens)
        lay_out = partial(pack, share=compute.shares_prompts, pad_id=pretrained.renderer.pad_id)
    for bucket in buckets:
        batch = lay_out([rendered[i] for i in bucket]).to(trunk.device)
        yield bucket, trunk.states(batch), batch


def score_exchanges(reward: RewardModel, pretrained: Pretrained, exchanges: Iterable[Exchange]) -> Iterator[Scored]:
    """Score any number of exchanges in flat memory, a chunk at a time and in order.

    What `exchanges` raises is raised when everything before it has been scored.
    """
    trunk = pretrained.trunk
    wide = replace(trunk.compute, bucket_tokens=(WIDE if trunk.compute.flat else 1) * trunk.compute.bucket_tokens)
    pretrained = replace(pretrained, trunk=replace(trunk, compute=wide))
    for chunk in _chunks(exchanges):
        rendered = [pretrained.renderer.render(prompt, response) for prompt, response in chunk]
        yield score_all(reward, pretrained, rendered)


def _chunks(exchanges: Iterable[Exchange]) -> Iterator[list[Exchange]]:
    """Yield `CHUNK` exchanges at a time, and what is left before the end or before an exception of theirs."""
    chunk: list[Exchange] = []
    try:
        for exchange in exchanges:
            chunk.append(exchange)
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
    except Exception:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk
