"""The split of a model at a layer: a frozen trunk that is computed once, and branches that roles own.

    token ids -> [ trunk: embedding + layers 0..cut-1 ] -> states (B, L, D) -> [ branch: layers cut.. + norm + head ]

Both halves run through the Hugging Face model's own forward, where masks, rotary variants, embedding scaling and
position tables live: a copy of the module tree shares all parameters, and taps (`models.surgery`) stand in for the
layers that the half at hand does not own. The last tap below a branch hands it the trunk's states; the first tap above
a trunk takes them. With cut = 0 (`trainable_layers = all`) the trunk is empty and its states are the token ids
themselves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from manners.errors import MannersError
from manners.models.attention import Flat, listens
from manners.models.compute import Compute
from manners.models.surgery import Anatomy, Tap, describe, layer_list, on_paper, opened, probe, put_taps, shared_copy
from manners.models.vocabulary import Vocabulary, everything
from manners.text import Batch, Packed

States = Float[Tensor, "B L D"] | Int[Tensor, "B L"]
"""What a trunk hands to its branches: hidden states, or token ids where the trunk is empty."""


def cut_of(model: PreTrainedModel, trainable_layers: int | Literal["all"]) -> int:
    """Turn `trainable_layers` into the index of the first layer above the cut; 0 means everything is trained."""
    count = len(layer_list(model))
    if trainable_layers == "all":
        return 0
    if not 1 <= trainable_layers < count:
        raise MannersError(
            f"model.trainable_layers is {trainable_layers}, but {describe(model)} has {count} layers: take 1 to"
            f" {count - 1}, or `all`"
        )
    return count - trainable_layers


def upper_parameters(model: PreTrainedModel, cut: int, anatomy: Anatomy) -> frozenset[int]:
    """Ids of the parameters that a branch owns: all if cut = 0, else upper layers, what follows them, untied head."""
    if cut == 0:
        return frozenset(id(p) for p in model.parameters())
    lower = {id(p) for p in layer_list(model)[:cut].parameters()} | anatomy.before
    return frozenset(id(p) for p in model.parameters() if id(p) not in lower)


@dataclass(frozen=True)
class Trunk:
    """The frozen lower part of a model, with what is needed to grow branches on it."""

    whole: PreTrainedModel
    """The initial model, frozen; nothing ever changes its parameters."""
    cut: int
    hash: str
    """Of the trunk's parameters and the cut; a branch trained above another trunk is refused."""
    anatomy: Anatomy
    own: frozenset[int]
    """Ids of the parameters of `whole` above the cut: what a branch copies."""
    compute: Compute
    """What was decided for this model on its device."""
    _lower: Half | None
    """None where the trunk is empty."""
    vocabulary: Vocabulary
    """What answers can consist of."""
    lora_rank: int | None = None
    """Rank of the adapters that branches own (see `models.lowrank`); None when they own the layers themselves."""
    recompute: bool = False
    """Whether branches that are trained keep only what their layers are given, and compute the rest again."""
    keeps_states: bool = True
    """Whether states that are needed more than once are kept on the disk (see `models.states`)."""
    initial_hash: str = ""
    """Of the whole initial model and the cut: two models may have a trunk in common, and what grew on the one is still
    not the other's."""

    @property
    def width(self) -> int:
        """D, the size of a hidden state."""
        return int(self.whole.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.compute.device

    @torch.no_grad()
    def states(self, batch: Batch | Packed) -> States:
        """Compute what the branches start from, once a sequence: (B, L, D), or the ids if the trunk is empty."""
        return batch.ids if self._lower is None else self._lower(batch.ids, batch, self.compute.shares_beginnings)


@dataclass(frozen=True)
class Half:
    """One side of the cut as a function, through the model's own forward."""

    model: PreTrainedModel
    enter: Tap | None = None
    """Takes the states in, above a trunk that is not empty."""
    leave: Tap | None = None
    """Takes the states out, below the branches; where there is none, final hidden states are what comes out."""

    def __call__(self, x: States, batch: Batch | Packed, share: bool) -> Float[Tensor, "B L D"]:
        """Run token ids, or a trunk's states, through the layers; what comes out where nothing stands means nothing.

        With `share`, what all prompts begin with is read once for all rows: its keys and values are those of every row,
        and so is their gradient.
        """
        if isinstance(batch, Packed) and batch.segments:
            return self._run(x, batch.attend, batch.positions, None, Flat(batch.segments))
        count = batch.common
        rows = len(x)
        if not share or not count or rows == 1:
            return self._run(x, batch.attend, batch.positions, None)
        begins = _begins(batch)
        cache = DynamicCache()
        once = x[0, begins[0]].unsqueeze(0)
        positions = batch.positions[0, begins[0]].unsqueeze(0)
        start = self._run(once, torch.ones_like(positions, dtype=torch.bool), positions, cache)
        for layer in cache.layers:
            if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = (part.expand(rows, -1, -1, -1) for part in (layer.keys, layer.values))
        rest = self._run(x[:, count:], _behind(batch, begins), batch.positions[:, count:], cache)
        behind = nn.functional.pad(rest, (0, 0, count, 0))
        return behind.masked_scatter(begins.unsqueeze(2), start.expand(rows, -1, -1))

    def _run(
        self, x: States, attend: Tensor, positions: Int[Tensor, "B L"], cache: Cache | None, rows: Flat | None = None
    ) -> Tensor:
        if rows is not None and not listens(self.model):
            raise RuntimeError("a model that does not listen would read each response behind all the others")
        mask = attend
        if mask.ndim == 4:  # goes to every layer as it is, where it is added to the logits
            mask = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device)
            mask = mask.masked_fill(~attend, torch.finfo(self.model.dtype).min)
        given = {"inputs_embeds": x} if x.is_floating_point() else {"input_ids": x}
        with opened(self.enter, x, self.leave) as seen:
            output = self.model.base_model(
                **given,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=False,
                **({} if rows is None else {"rows": rows}),
            )
        if self.leave is None:
            hidden: Tensor = output.last_hidden_state
            return hidden
        if not seen:
            raise RuntimeError("the forward did not reach the cut")
        return seen[0]


def _begins(batch: Batch | Packed) -> Bool[Tensor, "B L"]:
    """Where the tokens stand that all prompts begin with."""
    if batch.attend.ndim == 4:
        return (torch.arange(batch.ids.shape[1], device=batch.ids.device) < batch.common).expand(batch.ids.shape)
    return batch.attend & (batch.positions < batch.common)


def _behind(batch: Batch | Packed, begins: Bool[Tensor, "B L"]) -> Bool[Tensor, "B 1 R L"]:
    """Whether one of the remaining columns may look at another column, what all prompts begin with standing first."""
    count = batch.common
    if batch.attend.ndim == 4:
        rest = batch.attend[:, :, count:, count:]
    else:
        real = (batch.attend & ~begins)[:, None, None, count:]
        rest = real.expand(-1, -1, real.shape[3], -1).tril()
    return torch.cat([rest.new_ones((*rest.shape[:3], count)), rest], dim=3)


def grow_trunk(model: PreTrainedModel, trainable_layers: int | Literal["all"], lora_rank: int | None = None) -> Trunk:
    """Freeze a model and cut it; raises MannersError where `trainable_layers` does not fit, or nothing can be cut."""
    cut = cut_of(model, trainable_layers)
    model.eval().requires_grad_(False)
    anatomy = probe(model)
    own = frozenset() if lora_rank else upper_parameters(model, cut, anatomy)
    lower = None
    if cut:
        below = shared_copy(model)
        lower = Half(below, leave=put_taps(below, range(cut, len(layer_list(below))), anatomy)[0])
    digest, whole = _hashes(model, f"{cut}|{lora_rank}" if lora_rank else str(cut), own)
    compute, vocabulary = Compute.of(model), everything(model.device)
    return Trunk(model, cut, digest, anatomy, own, compute, lower, vocabulary, lora_rank, initial_hash=whole)


def _hashes(model: PreTrainedModel, cut: str, own: frozenset[int]) -> tuple[str, str]:
    """Hash the cut and the frozen parameters, and these with all others.

    With an empty trunk the first is of everything too: a branch then starts from the whole.
    """
    if on_paper(model):
        return "on paper", "on paper"
    below = hashlib.sha256(f"{type(model).__name__}|{cut}".encode())
    above = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest = below if id(parameter) not in own or cut == "0" else above
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    together = hashlib.sha256(below.digest() + above.digest())
    return below.hexdigest()[:16], together.hexdigest()[:16]
