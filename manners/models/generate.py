"""The decode loop for rollouts: exact sampling, log-probabilities as tokens are drawn, trunk states kept.

What is sampled from is softmax(logits / temperature), nothing else. Each row has its own stream of uniform numbers, so
that a row's draws do not depend on which rows share the batch. A prompt that is answered K times is read once; rows
leave the batch when they finish.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from manners.models.trunk import States, Trunk, layer_list
from manners.text import Batch, Rendered, collate
from manners.types import FinishReason

REMOVE_SHARE = 0.125
"""Finished rows leave when they are this share of the batch: removing copies the cache of the rows that stay."""

BLOCK = 256
"""Tokens whose probabilities are summed first when one is drawn."""


class _Buffer(DynamicLayer):
    """A layer's keys and values in memory taken once, instead of a concatenation per token."""

    def __init__(self, capacity: int) -> None:
        DynamicLayer.__init__(self)
        self.capacity = capacity
        self.used = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append, and return all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shape = (*key_states.shape[:-2], self.capacity)
            self.key_buffer = key_states.new_empty((*shape, key_states.shape[-1]))
            self.value_buffer = value_states.new_empty((*shape, value_states.shape[-1]))
        stop = self.used + key_states.shape[-2]
        self.key_buffer[:, :, self.used : stop] = key_states
        self.value_buffer[:, :, self.used : stop] = value_states
        self.used = stop
        return self._view()

    def select(self, rows: Int[Tensor, " R"], capacity: int) -> None:
        """Keep some rows, or repeat them."""
        self.key_buffer = self._copy(self.key_buffer, rows, capacity)
        self.value_buffer = self._copy(self.value_buffer, rows, capacity)
        self.capacity = capacity
        self._view()

    def _copy(self, buffer: Tensor, rows: Int[Tensor, " R"], capacity: int) -> Tensor:
        fresh = buffer.new_empty((len(rows), buffer.shape[1], capacity, buffer.shape[-1]))
        fresh[:, :, : self.used] = buffer[:, :, : self.used][rows]
        return fresh

    def _view(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = self.key_buffer[:, :, : self.used], self.value_buffer[:, :, : self.used]
        return self.keys, self.values


class Decoder:
    """A model with its cache: reads tokens, drops rows, and hands out the trunk states that it passes by."""

    def __init__(self, model: PreTrainedModel, cut: int | None, capacity: int) -> None:
        """Take an assembled model and room for `capacity` tokens a row; `cut` says where states are taken, if any."""
        self.model, self.cut, self.capacity = model, cut, capacity
        self.layers = [_Buffer(capacity) for _ in layer_list(model)]
        self.cache = Cache(layers=[*self.layers])
        self.seen: Tensor | None = None

    @torch.inference_mode()
    def read(self, ids: Int[Tensor, "R n"], attend: Bool[Tensor, "R S"], positions: Int[Tensor, "R n"]) -> Tensor:
        """Feed tokens; return the logits (R, V) after the last one. `attend` covers all tokens so far."""
        hook = None
        if self.cut:
            hook = layer_list(self.model)[self.cut].register_forward_pre_hook(self._see, with_kwargs=True)
        else:
            self.seen = ids
        try:
            output = self.model(
                input_ids=ids,
                attention_mask=attend,
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        finally:
            if hook is not None:
                hook.remove()
        logits: Tensor = output.logits[:, -1]
        return logits

    def select(self, rows: Int[Tensor, " R"], capacity: int | None = None) -> None:
        """Go on with these rows only (or repeat them), with room for `capacity` tokens each from now on."""
        self.capacity = capacity or self.capacity
        for layer in self.layers:
            layer.select(rows, self.capacity)

    def _see(self, _: object, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        self.seen = args[0] if args else kwargs["hidden_states"]


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
    on_step: Callable[[], None] = lambda: None,
) -> Draws:
    """Draw one response per prompt (repeat a prompt for more), each until an end token or T tokens.

    `uniform` (float64, in [0, 1)) is all the randomness: number t of a row draws its token t. A response that ends
    keeps its end token; one that does not has finish reason LENGTH.
    """
    distinct = list(dict.fromkeys(prompts))
    owner = torch.tensor([distinct.index(p) for p in prompts], device=trunk.device)
    opening = collate([Rendered(p, ()) for p in distinct], pad_id).to(trunk.device)
    rows, width, max_new_tokens = len(prompts), opening.prompt_width, uniform.shape[1]
    uniform = uniform.to(trunk.device)

    decoder = Decoder(model, trunk.cut if want_states else None, width)
    logits = decoder.read(opening.ids, opening.attend, opening.positions)[owner]
    decoder.select(owner, width + max_new_tokens + 1)
    page = _Page.blank(opening, owner, max_new_tokens, pad_id)
    states = page.state_buffer(decoder.seen, owner) if want_states else None
    ends = torch.tensor(sorted(end_ids), device=trunk.device)
    alive = torch.arange(rows, device=trunk.device)
    running = torch.ones(rows, dtype=torch.bool, device=trunk.device)

    for step in range(max_new_tokens):
        column = width + step
        token, logprob = _draw_tokens(logits, temperature, uniform[alive, step])
        now = alive[running[alive]]
        of_now = running[alive]
        page.ids[now, column], page.attend[now, column] = token[of_now], True
        page.logprobs[now, step] = logprob[of_now]
        ended = torch.isin(token, ends) & of_now
        page.finished[alive[ended]] = True
        running[alive[ended]] = False
        last = step == max_new_tokens - 1 or not bool(running.any())
        if last and not want_states:
            break
        positions = (page.start[alive] + step).unsqueeze(1)
        logits = decoder.read(token.unsqueeze(1), page.attend[alive, : column + 1] | (~of_now).unsqueeze(1), positions)
        if states is not None and decoder.seen is not None:
            states[now, column] = decoder.seen.view(len(alive), 1, *states.shape[2:])[of_now, 0]
        on_step()
        if last:
            break
        stay = running[alive]
        if int((~stay).sum()) >= max(1, REMOVE_SHARE * len(alive)):
            kept = stay.nonzero().squeeze(1)
            decoder.select(kept)
            alive, logits = alive[kept], logits[kept]
    return page.draws([prompts[row] for row in range(rows)], states)


def _draw_tokens(
    logits: Float[Tensor, "R V"], temperature: float, uniform: Float[Tensor, " R"]
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """Invert the cumulative distribution at `uniform`: one token a row, with its log-probability.

    The sums run over blocks of the vocabulary first, and then inside the block that is hit: a cumulative sum over all
    of it, in the precision that this takes, would cost as much as the last layers of the model.
    """
    logits = logits.float() / temperature
    top = logits.max(dim=-1, keepdim=True).values
    weights = torch.nn.functional.pad((logits - top).exp_(), (0, -logits.shape[-1] % BLOCK)).view(
        len(logits), -1, BLOCK
    )
    block, inside = _invert(weights.sum(dim=-1).double(), uniform)
    rows = torch.arange(len(logits), device=logits.device)
    place, _ = _invert(weights[rows, block].double(), inside)
    token = block * BLOCK + place
    logprob = logits[rows, token] - top.squeeze(1) - weights.sum(dim=(1, 2)).log()
    return token, logprob


def _invert(
    weights: Float[Tensor, "R n"], uniform: Float[Tensor, " R"]
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
    """Find the weight in which a share `uniform` of their sum falls; return also the share of it that is left of that.

    A weight of zero is never found.
    """
    edges = weights.cumsum(dim=-1)
    total = edges[:, -1]
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(edges, target.unsqueeze(1), right=True)
    weight = weights.gather(1, found).squeeze(1)
    share = (target - (edges.gather(1, found).squeeze(1) - weight)) / weight
    return found.squeeze(1), share.clamp(0.0, 1.0)


@dataclass(frozen=True)
class _Page:
    """The growing record of a batch of draws."""

    ids: Int[Tensor, "B L"]
    attend: Bool[Tensor, "B L"]
    logprobs: Float[Tensor, "B T"]
    finished: Bool[Tensor, " B"]
    start: Int[Tensor, " B"]
    """Position of the first response token: the number of prompt tokens."""
    width: int

    @classmethod
    def blank(cls, opening: Batch, owner: Tensor, new: int, pad_id: int) -> _Page:
        rows, device = len(owner), opening.ids.device
        ids = torch.full((rows, opening.prompt_width + new), pad_id, device=device)
        attend = torch.zeros_like(ids, dtype=torch.bool)
        ids[:, : opening.prompt_width], attend[:, : opening.prompt_width] = opening.ids[owner], opening.attend[owner]
        return cls(
            ids,
            attend,
            torch.zeros((rows, new), device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
            opening.attend[owner].sum(dim=1),
            opening.prompt_width,
        )

    def state_buffer(self, seen: Tensor | None, owner: Tensor) -> Tensor:
        """Room for the states of all columns, with those of the prompts in place."""
        assert seen is not None
        states = seen.new_zeros((*self.ids.shape, *seen.shape[2:]))
        states[:, : self.width] = seen[owner]
        return states

    def draws(self, prompts: Sequence[tuple[int, ...]], states: Tensor | None) -> Draws:
        """Cut off the columns that no row reached, and take the record apart by row."""
        lengths = self.attend[:, self.width :].sum(dim=1)
        stop = self.width + int(lengths.max())
        batch = Batch(self.ids[:, :stop], self.attend[:, :stop], self.width)
        rendered = tuple(
            Rendered(prompt, tuple(batch.response_ids[row, : int(lengths[row])].tolist()))
            for row, prompt in enumerate(prompts)
        )
        finish = tuple(FinishReason.STOP if f else FinishReason.LENGTH for f in self.finished.tolist())
        kept = None if states is None else states[:, :stop].clone()
        return Draws(rendered, finish, batch, self.logprobs[:, : stop - self.width], kept)
