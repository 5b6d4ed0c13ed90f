"""The decode loop for rollouts: exact sampling, log-probabilities as tokens are drawn, trunk states kept.

What is sampled from is softmax(logits / temperature), nothing else unless `top_p` asks for it. Each row has its own
stream of uniform numbers, so that its draws do not depend on which rows share the batch. What all prompts begin with
is read once, and so is a prompt that is answered K times; prompts of similar length are read together. Rows leave when
they finish, and waiting ones take their seats.

All rows share one line of columns in the cache. The prompt of a row that enters ends where the line is at that moment;
the columns before it are masked for this row, and dropped once nobody looks at them any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from manners.models.sampler import draw_tokens
from manners.models.trunk import States, Trunk, layer_list
from manners.text import Batch, Rendered, collate, common_start, length_buckets
from manners.types import FinishReason

CHANGE_SHARE = 0.125
"""Seats change when this share of the batch has finished: it costs a copy of the cache of the rows that stay."""


@dataclass(frozen=True)
class _Read:
    """Prompts of similar length as the model has read them, side by side."""

    attend: Bool[Tensor, "R width"]
    """Where their tokens are; the last stands in the last column."""
    cache: Sequence[tuple[Tensor, Tensor]]
    """Keys and values (R, heads, width, size) of each layer."""
    logits: Float[Tensor, "R V"]
    states: Float[Tensor, "R width D"] | None


@dataclass(frozen=True)
class _Opening:
    """Which seats go on from which of the prompts that were read."""

    read: _Read
    seats: Int[Tensor, " N"]
    owner: Int[Tensor, " N"]
    """Row of each seat's prompt."""


@dataclass(frozen=True)
class _Change:
    """Who stays seated and who comes, and what becomes of the columns."""

    kept: Int[Tensor, " R"]
    openings: Sequence[_Opening]
    rows: int
    """Seats afterwards."""
    lead: int
    """Columns at the left that are dropped."""
    used: int
    """Columns in use afterwards."""
    capacity: int

    def apply(self, old: Tensor, entering: Sequence[Tensor]) -> Tensor:
        """Copy what stays, and put in what comes; axis 0 is the seats, axis -2 the columns.

        The rest is zeros: what is masked must still be finite.
        """
        fresh = old.new_zeros((self.rows, *old.shape[1:-2], self.capacity, old.shape[-1]))
        stays = old[..., self.lead :, :]
        fresh[: len(self.kept), ..., self.used - stays.shape[-2] : self.used, :] = stays[self.kept]
        for opening, part in zip(self.openings, entering, strict=True):
            fresh[opening.seats, ..., self.used - part.shape[-2] : self.used, :] = part[opening.owner]
        return fresh


class _Buffer(DynamicLayer):
    """A layer's keys and values in memory taken once, instead of a concatenation per token."""

    def __init__(self) -> None:
        DynamicLayer.__init__(self)
        self.used = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append, and return all keys and values so far."""
        stop = self.used + key_states.shape[-2]
        self.key_buffer[:, :, self.used : stop] = key_states
        self.value_buffer[:, :, self.used : stop] = value_states
        self.used = stop
        return self._view()

    def change(self, change: _Change, entering: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Change seats."""
        keys, values = [k for k, _ in entering], [v for _, v in entering]
        if not self.is_initialized:
            self.lazy_initialization(keys[0], values[0])
            self.keys, self.values = keys[0][:0, :, :0], values[0][:0, :, :0]
        assert self.keys is not None and self.values is not None
        self.key_buffer, self.value_buffer = change.apply(self.keys, keys), change.apply(self.values, values)
        self.used = change.used
        self._view()

    def _view(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = self.key_buffer[:, :, : self.used], self.value_buffer[:, :, : self.used]
        return self.keys, self.values


class Decoder:
    """A model with its cache: reads prompts and tokens, changes seats, and hands out the trunk states on the way."""

    def __init__(self, model: PreTrainedModel, cut: int, pad_id: int, shares: bool) -> None:
        """Take an assembled model.

        `cut` says before which layer states are taken (0: none are), `shares` whether tokens may stand apart from those
        before them (`Trunk.shares_prompts`): prompts of several lengths then share what they begin with.
        """
        self.model, self.cut, self.pad_id, self.shares = model, cut, pad_id, shares
        self.layers = [_Buffer() for _ in layer_list(model)]
        self.used = 0
        self.attend = torch.zeros((0, 0), dtype=torch.bool, device=model.device)
        """Of each seat (R, capacity): the columns that it looks at."""
        self.length = torch.zeros(0, dtype=torch.long, device=model.device)
        """Of each seat: tokens read so far."""
        self.logits: Float[Tensor, "R V"] | None = None
        """Of each seat: what its next token is drawn from."""
        self.states: Float[Tensor, "R n D"] | None = None
        """Of the tokens that were read last."""

    def seat(self, kept: Int[Tensor, " R"], prompts: Sequence[tuple[int, ...]], room: int) -> list[_Opening]:
        """Keep these seats and put prompts behind them, in their order; every seat has room for `room` tokens then."""
        openings = self._open(prompts, len(kept))
        looked_at = self.attend[kept, : self.used].any(dim=0).nonzero()
        lead = int(looked_at[0]) if len(looked_at) else self.used
        used = max([self.used - lead, *(opening.read.attend.shape[1] for opening in openings)])
        change = _Change(kept, openings, len(kept) + len(prompts), lead, used, used + room)
        for index, layer in enumerate(self.layers):
            layer.change(change, [opening.read.cache[index] for opening in openings])
        attend = [opening.read.attend.unsqueeze(-1) for opening in openings]
        self.attend = change.apply(self.attend[:, : self.used].unsqueeze(-1), attend).squeeze(-1)
        lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.long, device=self.length.device)
        self.length, self.used = torch.cat([self.length[kept], lengths]), used
        self.logits = self._logits(change)
        return openings

    def read(self, token: Int[Tensor, " R"], running: Bool[Tensor, " R"]) -> None:
        """Read a token a seat; seats that do not run stay at the position where they are."""
        self.attend[:, self.used] = True
        self.used += 1
        attend, positions = self.attend[:, : self.used], self.length.unsqueeze(1)
        self.logits = self._forward(token.unsqueeze(1), attend, positions, Cache(layers=[*self.layers]))
        self.length = self.length + running

    def _open(self, prompts: Sequence[tuple[int, ...]], first_seat: int) -> list[_Opening]:
        """Read each distinct prompt once, with others of similar length, and what they all begin with only once."""
        openings, distinct = list[_Opening](), list(dict.fromkeys(prompts))
        common = self._common(distinct)
        begun = self._read([distinct[0][:common]], None) if common else None
        for bucket in length_buckets([len(prompt) - common for prompt in distinct], self.model.device):
            place = {distinct[index]: row for row, index in enumerate(bucket)}
            pairs = [(first_seat + seat, place[prompt]) for seat, prompt in enumerate(prompts) if prompt in place]
            seats, owner = torch.tensor(pairs, device=self.model.device).unbind(1)
            openings.append(_Opening(self._read([prompt[common:] for prompt in place], begun), seats, owner))
        return openings

    def _common(self, distinct: Sequence[tuple[int, ...]]) -> int:
        """Count the tokens that all prompts begin with (a system turn); 0 where reading them once saves little."""
        if not self.shares or len(distinct) < 2:
            return 0
        return common_start(distinct)

    def _read(self, rows: Sequence[tuple[int, ...]], begun: _Read | None) -> _Read:
        """Read rows side by side, each behind a copy of what was begun with."""
        batch = collate([Rendered(row, ()) for row in rows], self.pad_id).to(self.model.device)
        attend, positions, cache = batch.attend, batch.positions, [DynamicLayer() for _ in self.layers]
        if begun is not None:
            attend = torch.cat([begun.attend.expand(len(rows), -1), attend], dim=1)
            positions = positions + begun.attend.shape[1]
            for layer, pair in zip(cache, begun.cache, strict=True):
                layer.update(*(part.expand(len(rows), -1, -1, -1) for part in pair))
        logits, states = self._forward(batch.ids, attend, positions, Cache(layers=[*cache])), self.states
        if begun is not None and begun.states is not None and states is not None:
            states = torch.cat([begun.states.expand(len(rows), -1, -1), states], dim=1)
        pieces = [(layer.keys, layer.values) for layer in cache if layer.keys is not None and layer.values is not None]
        return _Read(attend, pieces, logits, states)

    @torch.inference_mode()
    def _forward(self, ids: Tensor, attend: Tensor, positions: Tensor, cache: Cache) -> Float[Tensor, "R V"]:
        """Return the logits after the last column, and note the states before the cut."""
        hook = None
        if self.cut:
            hook = layer_list(self.model)[self.cut].register_forward_pre_hook(self._see, with_kwargs=True)
        try:
            output = self.model(
                input_ids=ids,
                attention_mask=attend,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        finally:
            if hook is not None:
                hook.remove()
        logits: Tensor = output.logits[:, -1]
        return logits

    def _see(self, _: object, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        self.states = args[0] if args else kwargs["hidden_states"]

    def _logits(self, change: _Change) -> Float[Tensor, "R V"]:
        """Those of whoever stays, and behind them those of whoever comes."""
        parts = [] if self.logits is None else [(torch.arange(len(change.kept)), self.logits[change.kept])]
        parts += [(opening.seats, opening.read.logits[opening.owner]) for opening in change.openings]
        fresh = parts[0][1].new_empty((change.rows, parts[0][1].shape[1]))
        for seats, logits in parts:
            fresh[seats] = logits
        return fresh


@dataclass(frozen=True)
class Draws:
    """What was drawn for a batch of prompts, row for row."""

    rendered: tuple[Rendered, ...]
    finish: tuple[FinishReason, ...]
    batch: Batch
    logprobs: Float[Tensor, "B T"]
    """Of the drawn tokens under the distribution they were drawn from, in nats; 0 where not kept."""
    states: States | None
    """Trunk states of `batch`, where they were asked for."""


def draw(
    model: PreTrainedModel,
    trunk: Trunk,
    prompts: Sequence[tuple[int, ...]],
    *,
    end_ids: frozenset[int],
    pad_id: int,
    temperature: float,
    uniform: Float[Tensor, "B T"],
    want_states: bool,
    seats: int | None = None,
    top_p: float = 1.0,
    on_step: Callable[[int], None] = lambda finished: None,
) -> Draws:
    """Draw one response per prompt (repeat a prompt for more), each until an end token or T tokens.

    `uniform` (float64, in [0, 1)) is all the randomness: number t of a row draws its token t. A response that ends
    keeps its end token; one that does not has finish reason LENGTH. At most `seats` rows are in the batch at a time
    (None: all). With `top_p` below 1, tokens come from the smallest set of the likeliest ones whose probabilities reach
    that sum, and log-probabilities are of that distribution (Holtzman et al. 2020, section 3.1). `on_step` hears after
    every step how many rows finished in it.
    """
    device, ends = trunk.device, torch.tensor(sorted(end_ids), device=trunk.device)
    uniform, limit = uniform.to(device), uniform.shape[1]
    page = _Page.blank(prompts, limit, pad_id, trunk, want_states)
    decoder = Decoder(model, trunk.cut if want_states else 0, pad_id, trunk.shares_prompts)
    # Longest first: no later prompt is then wider than the line of columns. Equal ones together: they are read once.
    waiting = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), prompts[row]))
    who = step = torch.zeros(0, dtype=torch.long, device=device)
    running = who.bool()

    while waiting or bool(running.any()):
        idle = len(who) - int(running.sum())
        if idle == len(who) or idle >= CHANGE_SHARE * len(who):
            kept = running.nonzero().squeeze(1)
            free = (seats or len(prompts)) - len(kept)
            entering, waiting = waiting[:free], waiting[free:]
            who = torch.cat([who[kept], torch.tensor(entering, dtype=torch.long, device=device)])
            step = torch.cat([step[kept], step.new_zeros(len(entering))])
            running = torch.ones_like(who, dtype=torch.bool)
            page.open(decoder.seat(kept, [prompts[row] for row in entering], limit - int(step.min())), who)
        assert decoder.logits is not None
        token, logprob = draw_tokens(decoder.logits, temperature, uniform[who, step.clamp(max=limit - 1)], top_p)
        ended = running & torch.isin(token, ends)
        page.write(who[running], step[running], token[running], logprob[running])
        page.finished[who[ended]] = True
        goes_on = running & ~ended & (step < limit - 1)
        if want_states or bool(goes_on.any()):
            decoder.read(token, running)
            if page.states is not None and decoder.states is not None:
                page.states[who[running], page.width + step[running]] = decoder.states[running, 0]
        on_step(int(running.sum()) - int(goes_on.sum()))
        running, step = goes_on, step + 1
    return page.draws(prompts, want_states)


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
    def blank(
        cls, prompts: Sequence[tuple[int, ...]], limit: int, pad_id: int, trunk: Trunk, want_states: bool
    ) -> _Page:
        opening, device = collate([Rendered(prompt, ()) for prompt in prompts], pad_id).to(trunk.device), trunk.device
        rows, width = opening.ids.shape
        ids = torch.full((rows, width + limit), pad_id, device=device)
        attend = torch.zeros_like(ids, dtype=torch.bool)
        ids[:, :width], attend[:, :width] = opening.ids, opening.attend
        logprobs, finished = torch.zeros((rows, limit), device=device), torch.zeros(rows, device=device).bool()
        states = None
        if want_states and trunk.cut:
            states = torch.zeros((*ids.shape, trunk.width), dtype=trunk.whole.dtype, device=device)
        return cls(ids, attend, logprobs, finished, states, width, opening.common if trunk.shares_beginnings else 0)

    def open(self, openings: Sequence[_Opening], who: Int[Tensor, " R"]) -> None:
        """Take in the states of prompts that were read."""
        for opening in openings:
            if self.states is not None and opening.read.states is not None:
                for row, owner in zip(who[opening.seats].tolist(), opening.owner.tolist(), strict=True):
                    states = opening.read.states[owner, opening.read.attend[owner]]
                    self.states[row, self.width - len(states) : self.width] = states

    def write(self, rows: Tensor, step: Tensor, token: Tensor, logprob: Tensor) -> None:
        """Take in a token of each of these rows."""
        self.ids[rows, self.width + step], self.attend[rows, self.width + step] = token, True
        self.logprobs[rows, step] = logprob

    def draws(self, prompts: Sequence[tuple[int, ...]], want_states: bool) -> Draws:
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
        return Draws(rendered, finish, batch, self.logprobs[:, : stop - self.width], states if want_states else None)
