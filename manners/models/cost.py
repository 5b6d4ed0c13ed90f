"""What the parts of a model cost, in bytes: the one place that the plans of all stages reckon with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedConfig

from manners.models.branches import HEAD_CHUNK, Branch, idle_head
from manners.models.surgery import layer_list
from manners.models.trunk import Trunk
from manners.models.weight_layout import laid_out_bytes
from manners.text import Batch, Packed

FLOAT = 4
"""Bytes of a float32: logits are never less."""
DRAWN_LOGIT = 5 * FLOAT
"""Bytes a logit takes while a token is drawn: as it comes, at temperature, less the maximum, exponentiated, padded."""


def own_bytes(trunk: Trunk, *, head: bool) -> int:
    """Bytes of a branch's own weights; a scalar branch does without a head that is only the language model's."""
    if trunk.lora_rank:
        return sum(tensor.nbytes for tensor in Branch(trunk, trainable=True).own_tensors().values())
    idle = frozenset() if head else idle_head(trunk)
    own = sum(p.numel() for p in trunk.whole.parameters() if id(p) in trunk.own - idle)
    return own * trunk.whole.dtype.itemsize


def states_bytes(trunk: Trunk, tokens: int) -> int:
    """Bytes of the trunk states of so many tokens; their ids where the trunk is empty."""
    return tokens * (trunk.width * trunk.whole.dtype.itemsize if trunk.cut else 8)


def trunk_work(trunk: Trunk) -> float:
    """How many times the work of a trained layer's pass it takes with the trunk's: 1 where its states are kept.

    A forward takes a third of a forward and backward.
    """
    layers = len(layer_list(trunk.whole))
    return 1.0 if trunk.keeps_states else round(1 + trunk.cut / (3 * (layers - trunk.cut)), 2)


def drawing_bytes(trunk: Trunk, rows: int, distinct: int, longest: int, new_tokens: int) -> int:
    """Bytes of drawing `new_tokens` in each of `rows`, to `distinct` prompts of at most `longest` tokens.

    Keys and values of every layer, those of the prompts twice while rows are seated; the logits of one token a row;
    what a layer holds while prompts are read; weights laid out for decoding.
    """
    config: PreTrainedConfig = trunk.whole.config.get_text_config()
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head: int = getattr(config, "head_dim", None) or trunk.width // config.num_attention_heads
    tokens = rows * (longest + new_tokens) + distinct * longest
    cache = 2 * len(layer_list(trunk.whole)) * tokens * heads * head * trunk.whole.dtype.itemsize
    reading = layer_bytes(trunk, min(distinct, rows_at_once(trunk, longest)) * longest)
    laid_out = laid_out_bytes(trunk.whole) if trunk.compute.lays_out else 0
    return cache + rows * int(config.vocab_size) * DRAWN_LOGIT + reading + laid_out


def layer_bytes(trunk: Trunk, tokens: int) -> int:
    """Bytes that one layer holds while it reads so many tokens: about 4 times its width, and 3 times its inner one."""
    inner = getattr(trunk.whole.config.get_text_config(), "intermediate_size", None) or 4 * trunk.width
    return tokens * (4 * trunk.width + 3 * inner) * trunk.whole.dtype.itemsize


def head_bytes(trunk: Trunk) -> int:
    """Bytes of the logits of one chunk of response tokens, with what their log-softmax and its backward add."""
    return 3 * HEAD_CHUNK * int(trunk.whole.config.get_text_config().vocab_size) * FLOAT


def text_head_bytes(trunk: Trunk, tokens: int) -> int:
    """Bytes of the logits of so many tokens that are all learned: their log-softmax is kept until the backward."""
    return tokens * int(trunk.whole.config.get_text_config().vocab_size) * FLOAT + head_bytes(trunk)


def rows_at_once(trunk: Trunk, length: int) -> int:
    """How many sequences of a length go through one forward."""
    return max(1, trunk.compute.bucket_tokens // length)


def step_bytes(trunk: Trunk, batch: Batch | Packed, rows: int, *, drawn: bool = False) -> int:
    """Bytes of a forward and backward of a trained branch over so many rows like those of `batch`.

    What autograd keeps between the two is measured on `batch`: layers differ in it, and attention may keep more than a
    share a token. Layers that are computed again keep what they are given, and one of them all the rest. On top comes
    what one layer's backward holds; of tokens that were drawn, the head's log-probabilities too.
    """
    batch = batch.to(trunk.device)
    branch = Branch(replace(trunk, recompute=False), trainable=trunk.lora_rank is not None)
    states = torch.zeros((*batch.ids.shape, trunk.width), dtype=trunk.whole.dtype) if trunk.cut else batch.ids

    def forward() -> Tensor:
        if not drawn or isinstance(batch, Packed):
            return branch.final(states.to(trunk.device), batch)
        return branch.every_logprob(branch.hidden(states.to(trunk.device), batch), batch)

    with _as_if_trained(trunk):
        kept = _kept_for_backward(trunk, forward) * rows // len(batch.ids)
    if trunk.recompute:
        layers = len(layer_list(trunk.whole)) - trunk.cut
        kept = kept // layers + layers * rows * batch.ids.shape[1] * trunk.width * trunk.whole.dtype.itemsize
    return kept + layer_bytes(trunk, rows * batch.ids.shape[1]) + drawn * head_bytes(trunk)


@contextmanager
def _as_if_trained(trunk: Trunk) -> Iterator[None]:
    """Have the frozen model's upper part record what a trained copy of it would, without making the copy.

    Where branches own adapters only, nothing pretends: the adapters themselves are there, and small.
    """
    own = [parameter for parameter in trunk.whole.parameters() if id(parameter) in trunk.own]
    for parameter in own:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in own:
            parameter.requires_grad_(False)


def _kept_for_backward(trunk: Trunk, forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps between a forward and its backward, the model's own weights apart."""
    # By the storage itself, not by where it is: on the meta device that is nowhere.
    weights = {parameter.untyped_storage()._cdata for parameter in trunk.whole.parameters()}
    kept: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        kept[saved.untyped_storage()._cdata] = saved.untyped_storage().nbytes()
        return saved

    with saved_tensors_hooks(note, lambda saved: saved):
        result = forward()
    del result  # until here it held what was kept, so that no storage came up twice
    return sum(size for address, size in kept.items() if address not in weights)
