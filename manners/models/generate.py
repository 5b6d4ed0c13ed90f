"""The decode loop for rollouts: exact sampling, log-probabilities as tokens are drawn, trunk states kept.

What is sampled from is softmax(logits / temperature) over what can be said (`models.vocabulary`), nothing else unless
`top_p` asks for it. Each row has its own
stream of uniform numbers, so that its draws do not depend on which rows share the batch. Rows leave when they finish,
and waiting ones take their seats (`models.decoder`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from manners.models.decoder import Decoder, Seating
from manners.models.sampler import draw_tokens
from manners.models.seats import CHANGE_SHARE, Seats
from manners.models.trunk import States, Trunk
from manners.settings import SampleSettings
from manners.text import Batch, Rendered, Renderer, collate
from manners.types import FinishReason


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

    def greedy(self) -> Decoding:
        """Take the likeliest token each time, whatever the random numbers: it always stays."""
        return replace(self, temperature=1.0, top_p=0.0)


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
    limit = uniform.shape[1]
    uniform = uniform.to(trunk.compute.exact)
    rows = [_Row(place, prompt) for place, prompt in enumerate(prompts)]
    # Longest first: no later prompt is then wider than the line of columns. Equal ones together: they are read once.
    waiting = sorted(rows, key=lambda row: (-len(row.prompt), row.prompt))
    states = _States.blank(prompts, limit, trunk) if decoding.want_states and trunk.cut else None
    decoder = Decoder(model, trunk.compute, decoding.pad_id, trunk.cut if states else 0)
    seats = Seats[_Row](decoder)
    while True:
        # 1. Tokens that were drawn are read: for the next ones, and for their own states.
        drew = seats.read() if decoding.want_states or seats.running else []
        if states is not None and decoder.states is not None:
            states.of_tokens([seats.rows[seat] for seat in drew], decoder.states[drew, 0])
        if not waiting and not seats.running:
            return _generated(rows, trunk, decoding, states)
        # 2. Seats change when nobody is left, or enough have left.
        if not seats.running or seats.gone >= CHANGE_SHARE * len(seats.rows):
            free = (decoding.seats or len(rows)) - len(seats.running)
            entering, waiting = waiting[:free], waiting[free:]
            seatings = seats.change(entering, limit - min(row.step for row in [*seats.running, *entering]))
            if states is not None:
                states.of_prompts(seatings, seats.rows)
        # 3. Every row draws a token, with its own number.
        assert decoder.logits is not None
        numbers = uniform[[row.place for row in seats.rows], [min(row.step, limit - 1) for row in seats.rows]]
        said = trunk.vocabulary.at(decoder.logits, decoding.temperature)
        token, logprob = draw_tokens(said, numbers, decoding.top_p)
        drawn = list(zip(token.tolist(), logprob.tolist(), strict=True))
        taking = seats.take(token)
        for seat, row in taking:
            row.take(*drawn[seat], decoding.end_ids, limit)
        for row in seats.rows:
            row.step += 1
        on_step(sum(row.left for _, row in taking))


@dataclass(eq=False)
class _Row:
    """A response in the making."""

    place: int
    prompt: tuple[int, ...]
    drawn: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    step: int = 0
    """Draws so far; what it draws after its end, until its seat is taken, is thrown away."""

    @property
    def so_far(self) -> tuple[int, ...]:
        """What is read when it takes a seat."""
        return (*self.prompt, *self.drawn)

    @property
    def left(self) -> bool:
        """Whether it is finished."""
        return self.finish is not None

    def take(self, token: int, logprob: float, ends: frozenset[int], limit: int) -> None:
        """Add a token, which may be the last."""
        self.drawn.append(token)
        self.logprobs.append(logprob)
        if token in ends:
            self.finish = FinishReason.STOP
        elif len(self.drawn) == limit:
            self.finish = FinishReason.LENGTH


@dataclass(frozen=True)
class _States:
    """The trunk's states of every row, as they come: prompts end, and responses begin, at one column."""

    tensor: Float[Tensor, "B L D"]
    width: int

    @classmethod
    def blank(cls, prompts: Sequence[tuple[int, ...]], limit: int, trunk: Trunk) -> _States:
        """Begin with zeros, which stay where no token is."""
        width = max(map(len, prompts))
        shape = (len(prompts), width + limit, trunk.width)
        return cls(torch.zeros(shape, dtype=trunk.whole.dtype, device=trunk.device), width)

    def of_prompts(self, seatings: Sequence[Seating], rows: Sequence[_Row]) -> None:
        """Take in those of prompts that were read."""
        for seating in seatings:
            assert seating.read.states is not None
            for seat, owner in zip(seating.seats.tolist(), seating.owner.tolist(), strict=True):
                states = seating.read.states[owner, seating.read.attend[owner]]
                self.tensor[rows[seat].place, self.width - len(states) : self.width] = states

    def of_tokens(self, rows: Sequence[_Row], states: Float[Tensor, "R D"]) -> None:
        """Take in those of the last token of each of these rows."""
        columns = [self.width + len(row.drawn) - 1 for row in rows]
        self.tensor[[row.place for row in rows], columns] = states


def joined(parts: Sequence[Generated], trunk: Trunk, pad_id: int) -> Generated:
    """Put what was drawn in several calls below one another, as if one call had drawn it."""
    rendered = tuple(one for part in parts for one in part.rendered)
    batch = _laid_out(rendered, trunk, pad_id)
    left = [batch.prompt_width - part.batch.prompt_width for part in parts]
    right = [batch.keep.shape[1] - part.batch.keep.shape[1] for part in parts]
    logprobs = [nn.functional.pad(part.logprobs, (0, wider)) for part, wider in zip(parts, right, strict=True)]
    states: States | None = batch.ids
    if any(part.states is None for part in parts):
        states = None
    elif trunk.cut:
        every = zip((part.states for part in parts if part.states is not None), left, right, strict=True)
        states = torch.cat([nn.functional.pad(one, (0, 0, *wider)) for one, *wider in every]).to(trunk.device)
    finish = tuple(one for part in parts for one in part.finish)
    return Generated(rendered, finish, batch, torch.cat(logprobs).to(trunk.device), states)


def _laid_out(rendered: Sequence[Rendered], trunk: Trunk, pad_id: int) -> Batch:
    batch = collate(rendered, pad_id)
    if not trunk.compute.shares_beginnings:
        batch = replace(batch, common=0)
    return batch.to(trunk.device)


def _generated(rows: Sequence[_Row], trunk: Trunk, decoding: Decoding, states: _States | None) -> Generated:
    """Lay the responses side by side."""
    rendered = tuple(Rendered(row.prompt, tuple(row.drawn)) for row in rows)
    batch = _laid_out(rendered, trunk, decoding.pad_id)
    logprobs = torch.zeros(batch.keep.shape)
    for row in rows:
        logprobs[row.place, : len(row.drawn)] = torch.tensor(row.logprobs)
    found = batch.ids if states is None else states.tensor[:, : batch.ids.shape[1]]
    finish = tuple(FinishReason.LENGTH if row.finish is None else row.finish for row in rows)
    return Generated(rendered, finish, batch, logprobs.to(trunk.device), found if decoding.want_states else None)
