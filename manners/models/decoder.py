"""A model with its cache of keys and values: reads prompts and tokens, and changes who sits in the batch.

What all prompts begin with is read once, and so is a prompt that several seats go on from; prompts are read together.
All rows share one line of columns in the cache. The prompt of a row that enters ends where the line is at that moment;
the columns before it are masked for this row, and dropped once nobody looks at them any more. Where attention can be
told (`models.attention`), it does not read them, and prompts are read one behind the other instead of side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from manners.models.attention import Flat, Tail, listen, own, tail
from manners.models.compute import Compute
from manners.models.surgery import Watch, layer_list, opened, shared_copy
from manners.models.weight_layout import WeightLayout
from manners.text import Rendered, collate, common_start, flat_buckets, length_buckets


@dataclass(frozen=True)
class Read:
    """Prompts of similar length as the model has read them, side by side."""

    attend: Bool[Tensor, "R width"]
    """Where their tokens are; the last stands in the last column."""
    cache: Sequence[tuple[Tensor, Tensor]]
    """Keys and values (R, heads, width, size) of each layer."""
    logits: Float[Tensor, "R V"]
    states: Float[Tensor, "R width D"] | None


@dataclass(frozen=True)
class Seating:
    """Which seats go on from which of the prompts that were read."""

    read: Read
    seats: Int[Tensor, " N"]
    owner: Int[Tensor, " N"]
    """Row of each seat's prompt."""

    @classmethod
    def of(cls, read: Read, seats: Sequence[Sequence[int]]) -> Seating:
        """Say which seats go on from each row."""
        pairs = [(seat, row) for row, of_row in enumerate(seats) for seat in of_row]
        return cls(read, *torch.tensor(pairs, device=read.logits.device).unbind(1))


@dataclass(frozen=True)
class _Change:
    """Who stays seated and who comes, and what becomes of the columns."""

    kept: Int[Tensor, " R"]
    seatings: Sequence[Seating]
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
        for seating, part in zip(self.seatings, entering, strict=True):
            rows = part if len(part) == 1 else part[seating.owner]
            fresh[seating.seats, ..., self.used - part.shape[-2] : self.used, :] = rows
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
        keys = [k for k, _ in entering]
        values = [v for _, v in entering]
        if not self.is_initialized:
            self.lazy_initialization(keys[0], values[0])
            self.keys = keys[0][:0, :, :0]
            self.values = values[0][:0, :, :0]
        assert self.keys is not None and self.values is not None
        self.key_buffer = change.apply(self.keys, keys)
        self.value_buffer = change.apply(self.values, values)
        self.used = change.used
        self._view()

    @property
    def column_bytes(self) -> int:
        """What keys and values of one row and column take."""
        assert self.keys is not None and self.values is not None
        return sum(part.shape[1] * part.shape[3] * part.element_size() for part in (self.keys, self.values))

    def _view(self) -> tuple[Tensor, Tensor]:
        self.keys = self.key_buffer[:, :, : self.used]
        self.values = self.value_buffer[:, :, : self.used]
        return self.keys, self.values


def _pieces(cache: Sequence[DynamicLayer]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer."""
    return [(layer.keys, layer.values) for layer in cache if layer.keys is not None and layer.values is not None]


class Decoder:
    """A model with its cache: reads prompts and tokens, changes seats, and hands out the trunk states on the way."""

    def __init__(self, model: PreTrainedModel, compute: Compute, pad_id: int, cut: int = 0) -> None:
        """Take an assembled model; `cut` says before which layer states are taken (0: none are)."""
        self.model = shared_copy(model, own_config=True)
        if compute.by_row:
            listen(self.model)
        self._watch = Watch(self.model, cut) if cut else None
        self._layout = WeightLayout(self.model) if compute.lays_out else None
        self.compute = compute
        self.pad_id = pad_id
        self.layers = [_Buffer() for _ in layer_list(model)]
        self.used = 0
        self.attend = torch.zeros((0, 0), dtype=torch.bool, device=model.device)
        """Of each seat (R, capacity): the columns that it looks at."""
        self.length = torch.zeros(0, dtype=torch.long, device=model.device)
        """Of each seat: tokens read so far."""
        self.logits: Float[Tensor, "R V"] | None = None
        """Of each seat: what its next token is drawn from."""
        self.states: Float[Tensor, "R n D"] | None = None
        """Of the token that each seat read last, before the cut."""
        self.tail: Tail | None = None
        """The columns that attention reads for each seat; None where it reads all."""

    def seat(self, kept: Int[Tensor, " R"], prompts: Sequence[tuple[int, ...]], room: int) -> list[Seating]:
        """Keep these seats and put prompts behind them, in their order; every seat has room for `room` tokens then."""
        seatings = self._open(prompts, len(kept))
        looked_at = self.attend[kept, : self.used].any(dim=0).nonzero()
        lead = int(looked_at[0]) if len(looked_at) else self.used
        used = max([self.used - lead, *(seating.read.attend.shape[1] for seating in seatings)])
        change = _Change(kept, seatings, len(kept) + len(prompts), lead, used, used + room)
        for index, layer in enumerate(self.layers):
            layer.change(change, [seating.read.cache[index] for seating in seatings])
        attend = [seating.read.attend.unsqueeze(-1) for seating in seatings]
        self.attend = change.apply(self.attend[:, : self.used].unsqueeze(-1), attend).squeeze(-1)
        lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.long, device=self.length.device)
        self.length = torch.cat([self.length[kept], lengths])
        self.used = used
        self.logits = self._logits(change)
        if self.compute.by_row:
            self.tail = tail((used - self.length).tolist(), used, self.layers[0].column_bytes)
        return seatings

    def read(self, token: Int[Tensor, " R"], running: Bool[Tensor, " R"]) -> None:
        """Read a token a seat; seats that do not run stay at the position where they are."""
        if self._layout is not None:
            self._layout.expect(len(token))
        self.attend[:, self.used] = True
        self.used += 1
        attend = self.attend[:, : self.used]
        positions = self.length.unsqueeze(1)
        first = torch.zeros(1, dtype=torch.long, device=token.device)
        logits, self.states = self._forward(token.unsqueeze(1), attend, positions, self.layers, first, self.tail)
        self.logits = logits[:, 0]
        self.length = self.length + running

    def _open(self, prompts: Sequence[tuple[int, ...]], first_seat: int) -> list[Seating]:
        """Read each distinct prompt once, together with others, and what they all begin with only once."""
        seats = dict[tuple[int, ...], list[int]]()
        seatings = list[Seating]()
        for seat, prompt in enumerate(prompts, first_seat):
            seats.setdefault(prompt, []).append(seat)
        distinct = list(seats)
        common = self._common(distinct)
        begun = self._read([distinct[0][:common]], None) if common else None
        divide = flat_buckets if self.compute.by_row else length_buckets
        for bucket in divide([len(prompt) - common for prompt in distinct], self.compute.bucket_tokens):
            rests = [distinct[i][common:] for i in bucket]
            owners = [seats[distinct[i]] for i in bucket]
            if self.compute.by_row:
                read = self._read_flat(rests, begun)
                seatings += [Seating.of(one, [owner]) for one, owner in zip(read, owners, strict=True)]
            else:
                seatings.append(Seating.of(self._read(rests, begun), owners))
        return seatings

    def _common(self, distinct: Sequence[tuple[int, ...]]) -> int:
        """Count the tokens that all prompts begin with (a system turn); 0 where reading them once saves little.

        Or where tokens cannot stand apart from those before them: prompts have several lengths.
        """
        if not self.compute.shares_prompts or len(distinct) < 2:
            return 0
        return common_start(distinct)

    def _read(self, rows: Sequence[tuple[int, ...]], begun: Read | None) -> Read:
        """Read rows side by side, each behind a copy of what was begun with."""
        batch = collate([Rendered(row, ()) for row in rows], self.pad_id).to(self.model.device)
        attend = batch.attend
        positions = batch.positions
        cache = self._behind(begun, len(rows))
        if begun is not None:
            attend = torch.cat([begun.attend.expand(len(rows), -1), attend], dim=1)
            positions = positions + begun.attend.shape[1]
        last = torch.tensor([batch.ids.shape[1] - 1], device=self.model.device)
        logits, states = self._forward(batch.ids, attend, positions, cache, last)
        if begun is not None and begun.states is not None and states is not None:
            states = torch.cat([begun.states.expand(len(rows), -1, -1), states], dim=1)
        return Read(attend, _pieces(cache), logits[:, 0], states)

    def _read_flat(self, rows: Sequence[tuple[int, ...]], begun: Read | None) -> Iterator[Read]:
        """Read rows one behind the other, and yield each for itself, behind what was begun with."""
        device = self.model.device
        count = 0 if begun is None else begun.attend.shape[1]
        flat = Flat.after(count, [len(row) for row in rows])
        ids = torch.tensor([[token for row in rows for token in row]], device=device)
        positions = torch.cat([torch.arange(count, count + len(row), device=device) for row in rows]).unsqueeze(0)
        cache = self._behind(begun, 1)
        last = torch.tensor([segment.stop for segment in flat.segments], device=device) - count - 1
        attend = torch.ones((1, count + ids.shape[1]), dtype=torch.bool, device=device)
        logits, states = self._forward(ids, attend, positions, cache, last, flat)
        pieces = _pieces(cache)
        for row, segment in enumerate(flat.segments):
            seen = None if states is None else states[:, segment.start - count : segment.stop - count]
            if begun is not None and begun.states is not None and seen is not None:
                seen = torch.cat([begun.states, seen], dim=1)
            yield Read(
                attend[:, : count + segment.stop - segment.start],
                [(own(keys, segment), own(values, segment)) for keys, values in pieces],
                logits[0, row].unsqueeze(0),
                seen,
            )

    def _behind(self, begun: Read | None, rows: int) -> list[DynamicLayer]:
        """Begin a cache with copies of what was begun with."""
        cache = [DynamicLayer() for _ in self.layers]
        if begun is not None:
            for layer, pair in zip(cache, begun.cache, strict=True):
                layer.update(*(part.expand(rows, -1, -1, -1) for part in pair))
        return cache

    @torch.inference_mode()
    def _forward(
        self,
        ids: Tensor,
        attend: Tensor,
        positions: Tensor,
        cache: Sequence[DynamicLayer],
        last: Int[Tensor, " k"],
        rows: Tail | Flat | None = None,
    ) -> tuple[Float[Tensor, "R k V"], Float[Tensor, "R n D"] | None]:
        """Return the logits after the columns `last`, and the states of all columns before the cut, if there is one."""
        with opened(leave=self._watch) as seen:
            output = self.model(
                input_ids=ids,
                attention_mask=attend,
                position_ids=positions,
                past_key_values=Cache(layers=[*cache]),
                use_cache=True,
                logits_to_keep=last,  # as a slice, the head would multiply row by row
                **({} if rows is None else {"rows": rows}),
            )
        return output.logits, seen[0] if seen else None

    def _logits(self, change: _Change) -> Float[Tensor, "R V"]:
        """Those of whoever stays, and behind them those of whoever comes."""
        parts = [] if self.logits is None else [(torch.arange(len(change.kept)), self.logits[change.kept])]
        parts += [(seating.seats, seating.read.logits[seating.owner]) for seating in change.seatings]
        fresh = parts[0][1].new_empty((change.rows, parts[0][1].shape[1]))
        for seats, logits in parts:
            fresh[seats] = logits
        return fresh
