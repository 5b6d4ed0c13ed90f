"""The decode loop for rollouts: exact sampling, log-probabilities as tokens are drawn, trunk states kept.

What is sampled from is softmax(logits / temperature), nothing else unless `top_p` asks for it. Each row has its own
stream of uniform numbers, so that its draws do not depend on which rows share the batch. Rows leave when they finish,
and waiting ones take their seats (`models.decoder`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from manners.models.decoder import Decoder, Seating
from manners.models.sampler import draw_tokens
from manners.models.trunk import States, Trunk
from manners.settings import SampleSettings
from manners.text import Batch, Rendered, Renderer, collate
from manners.types import FinishReason

CHANGE_SHARE = 0.125
"""Seats change when this share of the batch has finished: it costs a copy of the cache of the rows that stay."""


@dataclass(frozen=True)
class Generated:
    """What was drawn for a batch of prompts, row for row."""

    rendered: tuple[Rendered, ...]
    finish: tuple[FinishReason, ...]
    batch: Batch
    logprobs: Float[Tensor, "B T"]
    """Of the drawn tokens under the distribution they were drawn from, in nats; 0 where not kept."""
    states: States | None
    """Trunk states of `batch`, where they were asked for."""


@dataclass(frozen=True)
class Decoding:
    """How responses are drawn: what stays the same from call to call."""

    end_ids: frozenset[int]
    """What ends a response, and stays its last token."""
    pad_id: int
    temperature: float = 1.0
    top_p: float = 1.0
    """Below 1, tokens come from the smallest set of the likeliest ones whose probabilities reach that sum, and
    log-probabilities are of that distribution (Holtzman et al. 2020, section 3.1)."""
    want_states: bool = False
    """Whether the trunk's states are kept on the way."""
    seats: int | None = None
    """Most rows that are in the batch at a time; None: all."""

    @classmethod
    def of(cls, renderer: Renderer, settings: SampleSettings, want_states: bool, seats: int | None = None) -> Decoding:
        """Draw as the settings say, and end as the renderer's answers do."""
        return cls(renderer.end_ids, renderer.pad_id, settings.temperature, want_states=want_states, seats=seats)


def generate(
    model: PreTrainedModel,
    trunk: Trunk,
    prompts: Sequence[tuple[int, ...]],
    uniform: Float[Tensor, "B T"],
    decoding: Decoding,
    on_step: Callable[[int], None] = lambda finished: None,
) -> Generated:
    """Draw one response per prompt (repeat a prompt for more), each until an end token or T tokens.

    `uniform` (float64, in [0, 1)) is all the randomness: number t of a row draws its token t. A response that ends
    keeps its end token; one that does not has finish reason LENGTH. `on_step` hears after every step how many rows
    finished in it.
    """
    device = trunk.device
    ends = torch.tensor(sorted(decoding.end_ids), device=device)
    uniform = uniform.to(trunk.compute.exact)
    limit = uniform.shape[1]
    page = _Page.blank(prompts, limit, trunk, decoding)
    decoder = Decoder(model, trunk.compute, decoding.pad_id, trunk.cut if decoding.want_states else 0)
    # Longest first: no later prompt is then wider than the line of columns. Equal ones together: they are read once.
    waiting = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), prompts[row]))
    who = step = torch.zeros(0, dtype=torch.long, device=device)
    running = who.bool()

    while waiting or bool(running.any()):
        idle = len(who) - int(running.sum())
        if idle == len(who) or idle >= CHANGE_SHARE * len(who):
            kept = running.nonzero().squeeze(1)
            free = (decoding.seats or len(prompts)) - len(kept)
            entering, waiting = waiting[:free], waiting[free:]
            who = torch.cat([who[kept], torch.tensor(entering, dtype=torch.long, device=device)])
            step = torch.cat([step[kept], step.new_zeros(len(entering))])
            running = torch.ones_like(who, dtype=torch.bool)
            page.open(decoder.seat(kept, [prompts[row] for row in entering], limit - int(step.min())), who)
        assert decoder.logits is not None
        numbers = uniform[who.to(uniform.device), step.clamp(max=limit - 1).to(uniform.device)]
        token, logprob = draw_tokens(decoder.logits, decoding.temperature, numbers, decoding.top_p)
        ended = running & torch.isin(token, ends)
        page.write(who[running], step[running], token[running], logprob[running])
        page.finished[who[ended]] = True
        goes_on = running & ~ended & (step < limit - 1)
        if decoding.want_states or bool(goes_on.any()):
            decoder.read(token, running)
            if page.states is not None and decoder.states is not None:
                page.states[who[running], page.width + step[running]] = decoder.states[running, 0]
        on_step(int(running.sum()) - int(goes_on.sum()))
        running, step = goes_on, step + 1
    return page.generated(prompts, decoding.want_states)


@dataclass(frozen=True)
class _Page:
    """The growing record of the draws: prompts end, and responses begin, at one column."""

    ids: Int[Tensor, "B L"]
    attend: Bool[Tensor, "B L"]
    logprobs: Float[Tensor, "B T"]
    finished: Bool[Tensor, " B"]
    states: Float[Tensor, "B L D"] | None
    """Where they are asked for and the trunk is not empty."""
    width: int
    common: int
    """Tokens that all prompts begin with, where branches then read these once for all rows."""

    @classmethod
    def blank(cls, prompts: Sequence[tuple[int, ...]], limit: int, trunk: Trunk, decoding: Decoding) -> _Page:
        beginning = collate([Rendered(prompt, ()) for prompt in prompts], decoding.pad_id).to(trunk.device)
        device = trunk.device
        rows, width = beginning.ids.shape
        ids = torch.full((rows, width + limit), decoding.pad_id, device=device)
        attend = torch.zeros_like(ids, dtype=torch.bool)
        ids[:, :width] = beginning.ids
        attend[:, :width] = beginning.attend
        logprobs = torch.zeros((rows, limit), device=device)
        finished = torch.zeros(rows, dtype=torch.bool, device=device)
        states = None
        if decoding.want_states and trunk.cut:
            states = torch.zeros((*ids.shape, trunk.width), dtype=trunk.whole.dtype, device=device)
        common = beginning.common if trunk.compute.shares_beginnings else 0
        return cls(ids, attend, logprobs, finished, states, width, common)

    def open(self, seatings: Sequence[Seating], who: Int[Tensor, " R"]) -> None:
        """Take in the states of prompts that were read."""
        for seating in seatings:
            if self.states is not None and seating.read.states is not None:
                for row, owner in zip(who[seating.seats].tolist(), seating.owner.tolist(), strict=True):
                    states = seating.read.states[owner, seating.read.attend[owner]]
                    self.states[row, self.width - len(states) : self.width] = states

    def write(self, rows: Tensor, step: Tensor, token: Tensor, logprob: Tensor) -> None:
        """Take in a token of each of these rows."""
        self.ids[rows, self.width + step] = token
        self.attend[rows, self.width + step] = True
        self.logprobs[rows, step] = logprob

    def generated(self, prompts: Sequence[tuple[int, ...]], want_states: bool) -> Generated:
        """Cut off the columns that no row reached, and take the record apart by row."""
        lengths = self.attend[:, self.width :].sum(dim=1)
        stop = self.width + int(lengths.max())
        batch = Batch(self.ids[:, :stop], self.attend[:, :stop], self.width, self.common)
        rendered = tuple(
            Rendered(prompt, tuple(batch.response_ids[row, : int(lengths[row])].tolist()))
            for row, prompt in enumerate(prompts)
        )
        finish = tuple(FinishReason.STOP if f else FinishReason.LENGTH for f in self.finished.tolist())
        states = batch.ids if self.states is None else self.states[:, :stop]
        return Generated(
            rendered, finish, batch, self.logprobs[:, : stop - self.width], states if want_states else None
        )
