"""A reward model: scalar branches on one trunk, normalised on the start version's own answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from manners.models.branches import ScalarBranch
from manners.models.pretrained import Pretrained
from manners.models.trunk import States
from manners.text import Batch, Packed, Rendered, pack, packed_buckets
from manners.types import Dialogue, Response

Exchange = tuple[Dialogue, Response]
"""A prompt and a response to it."""
CHUNK = 512
"""Exchanges that are scored together: which others stand beside an exchange shows in the last digits of its score."""


@dataclass(frozen=True)
class Scored:
    """Normalised scores of N responses."""

    members: Float[Tensor, "K N"]
    """Each member's score, less its own mean on the start version's answers (scores are free up to that shift)."""
    dropped: tuple[int, ...] = ()
    """Tokens of each response and its prompt that did not fit into the context; empty where nobody counted."""

    @property
    def mean(self) -> Float[Tensor, " N"]:
        """The reward: the mean over members."""
        return self.members.mean(dim=0)

    @property
    def std(self) -> Float[Tensor, " N"]:
        """Spread among members; 0 with a single one."""
        return self.members.std(dim=0, correction=0)


@dataclass(frozen=True)
class RewardModel:
    """K members with the shift of each and the common scale."""

    members: tuple[ScalarBranch, ...]
    shifts: tuple[float, ...]
    scale: float

    @torch.no_grad()
    def score(self, states: States, batch: Batch | Packed) -> Scored:
        """Score the responses of a batch from their trunk states: (raw_k - shift_k) / scale for member k."""
        raw = torch.stack([member.scores(states, batch) for member in self.members])
        shifts = torch.tensor(self.shifts, device=raw.device).unsqueeze(1)
        return Scored((raw - shifts) / self.scale)

    def normalised_on(self, raw: Float[Tensor, "K N"]) -> RewardModel:
        """Return the same members, normalised on these raw scores of the start version's answers."""
        scale = float(raw.mean(dim=0).std()) if raw.shape[1] > 1 else 1.0
        return RewardModel(self.members, tuple(raw.mean(dim=1).tolist()), scale if scale > 1e-6 else 1.0)


def score_rendered(reward: RewardModel, pretrained: Pretrained, rendered: Sequence[Rendered]) -> Float[Tensor, "K N"]:
    """Score rendered exchanges, in buckets of similar length, through trunk and members; (K, N), in the order given."""
    trunk = pretrained.trunk
    pad_id = pretrained.renderer.pad_id
    scores = torch.zeros((len(reward.members), len(rendered)))
    for bucket in packed_buckets(rendered, trunk.compute.shares_prompts, trunk.compute.bucket_tokens):
        batch = pack([rendered[i] for i in bucket], trunk.compute.shares_prompts, pad_id).to(trunk.device)
        scores[:, bucket] = reward.score(trunk.states(batch), batch).members.cpu()
    return scores


def score_exchanges(reward: RewardModel, pretrained: Pretrained, exchanges: Iterable[Exchange]) -> Iterator[Scored]:
    """Score any number of exchanges in flat memory, a chunk at a time and in order.

    What `exchanges` raises is raised when everything before it has been scored.
    """
    for chunk in _chunks(exchanges):
        rendered = [pretrained.renderer.render(prompt, response) for prompt, response in chunk]
        yield Scored(score_rendered(reward, pretrained, rendered), tuple(r.dropped for r in rendered))


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
