"""Surgery on Hugging Face models: all that is copied, replaced or watched in a model's tree of modules.

Models run through their own forward. Copies share parameters; a `Tap` stands in for layers that a copy does not need; a
`Watch` sees what comes to a layer. What such a part is given, and what it sees, goes past the model's own arguments: it
is there inside `opened` only, and gone afterwards, whatever happened inside.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from manners.errors import MannersError
from manners.models.head import WideHead


def describe(model: PreTrainedModel) -> str:
    """Name a model as its maker does: class and path."""
    path = model.config._name_or_path
    return f"{type(model).__name__} ({path})" if path else type(model).__name__


def on_paper(model: PreTrainedModel) -> bool:
    """Return whether a model has sizes only, and no numbers (see `models.paper`)."""
    return any(isinstance(parameter, FakeTensor) for parameter in model.parameters())


def word_rows(model: PreTrainedModel) -> int:
    """Return how many tokens a model has a row of the embedding for."""
    [words] = model.get_input_embeddings().parameters()
    return words.shape[0]


def layer_list(model: PreTrainedModel) -> nn.ModuleList:
    """Find the one list of decoder layers, or refuse the model by name."""
    count = model.config.get_text_config().num_hidden_layers
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(found) != 1:
        raise MannersError(
            f"{describe(model)} cannot be split: it has {len(found)} lists of {count} layers where one was expected;"
            " use another model"
        )
    return found[0]


def shared_copy(model: PreTrainedModel, own: frozenset[int] = frozenset(), own_config: bool = False) -> PreTrainedModel:
    """Copy the module tree but no parameter or buffer, except parameters whose id is in `own`.

    The configuration is shared too, unless the copy is to have one of its own.
    """
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in own}
    if not own_config:
        memo[id(model.config)] = model.config
    return copy.deepcopy(model, memo)


def in_format(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a copy with parameters in a number format, tied ones once, and buffers as they are.

    Raises MannersError where a number is too large for the format.
    """
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for name, parameter in model.named_parameters():
        rounded = parameter.detach().to(dtype)
        if not bool(torch.isfinite(rounded).all()):
            raise MannersError(
                f"{describe(model)} has numbers in {name} that {_named(dtype)} cannot hold; use bfloat16"
            )
        memo[id(parameter)] = nn.Parameter(rounded, requires_grad=False)
    return copy.deepcopy(model, memo)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def joined(upper: PreTrainedModel, lower: PreTrainedModel, cut: int) -> PreTrainedModel:
    """Return a copy of `upper` whose layers below the cut are those of `lower`; it shares the parameters of both."""
    whole = shared_copy(upper)
    layers = layer_list(whole)
    below = layer_list(lower)
    for index in range(cut):
        layers[index] = below[index]
    return whole


def put(tree: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of that name."""
    parent, _, child = name.rpartition(".")
    setattr(tree.get_submodule(parent), child, module)


@dataclass(frozen=True)
class Anatomy:
    """What one forward of a model shows about it."""

    before: frozenset[int]
    """Ids of the parameters that run before the first layer (embeddings and their norms)."""
    returns_tuple: bool
    """Whether a layer returns a tuple, as older models do."""


def probe(model: PreTrainedModel) -> Anatomy:
    """Watch which modules a forward enters before the first layer, and what a layer returns."""
    layers = layer_list(model)
    before = set[int]()
    tuples = list[bool]()
    inside = {id(m) for m in layers.modules()}
    reached = False

    def enter(module: nn.Module, _: Any) -> None:
        if not reached:
            before.update(id(p) for p in module.parameters(recurse=False))

    def reach(_: nn.Module, __: Any) -> None:
        nonlocal reached
        reached = True

    with ExitStack() as hooks:
        for module in model.modules():
            if id(module) not in inside:
                hooks.enter_context(module.register_forward_pre_hook(enter))
        hooks.enter_context(layers[0].register_forward_pre_hook(reach))
        note = layers[0].register_forward_hook(lambda _, __, output: tuples.append(isinstance(output, tuple)))
        hooks.enter_context(note)
        with torch.no_grad():
            model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=model.device), use_cache=False)
    return Anatomy(frozenset(before), bool(tuples and tuples[0]))


class Tap(nn.Module):
    """Stands where a layer, or the stack of all, was: what comes out is what it is given, or else what comes in."""

    def __init__(self, replaced: nn.Module, wrap: Callable[[Tensor | None], Any]) -> None:
        """Look like `replaced` to the model's own forward; `wrap` makes of states what that one returned."""
        super().__init__()
        self.attention_type = getattr(replaced, "attention_type", None)
        self.wrap = wrap
        self.given: Tensor | None = None
        self.seen: list[Tensor] | None = None

    def forward(self, hidden_states: Tensor | None = None, *_: Any, **__: Any) -> Any:
        """Return the given states, if any."""
        if self.seen is not None and hidden_states is not None:
            self.seen.append(hidden_states)
        return self.wrap(hidden_states if self.given is None else self.given)


def put_taps(model: PreTrainedModel, where: range, anatomy: Anatomy) -> list[Tap]:
    """Replace layers by taps, and return the taps."""
    layers = layer_list(model)
    wrap = _in_tuple if anatomy.returns_tuple else _bare
    taps = [Tap(layers[index], wrap) for index in where]
    for index, tap in zip(where, taps, strict=True):
        layers[index] = tap
    return taps


def recompute(model: PreTrainedModel, cut: int) -> None:
    """Let layers above a cut keep nothing for their backward but what they are given, and compute the rest again then.

    Results are the same to the bit. A layer becomes one of a class made from its own, so that names of parameters and
    types stay what they are. Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
    """
    for layer in layer_list(model)[cut:]:
        layer.__class__ = _recomputing(type(layer))


def _recomputing(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *given: Any, **named: Any) -> Any:
        run = partial(kind.forward, self)
        if not torch.is_grad_enabled():
            return run(*given, **named)
        return checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False, **named)

    return type(kind.__name__, (kind,), {"forward": forward})


def head_alone(model: PreTrainedModel) -> tuple[PreTrainedModel, Tap]:
    """Return a copy that shares the model's parameters and goes straight from final states to logits, with its tap.

    The head runs through the model's own forward as the layers do: some models scale or cap their logits there. Its
    logits are float32 also where the model is narrower.
    """
    head = shared_copy(model)
    words = head.get_output_embeddings()
    if isinstance(words, nn.Linear) and words.weight.dtype.itemsize < torch.float32.itemsize:
        put(head, next(name for name, m in head.named_modules() if m is words), WideHead(words))
    layers = layer_list(model)
    stack = next(name for name, m in model.named_modules() if any(child is layers for child in m.children()))
    tap = Tap(head.get_submodule(stack), _as_output)
    put(head, stack, tap)
    return head, tap


class Watch:
    """Sees what comes to a layer, and does not stand in its way; for a model whose modules nobody else uses."""

    def __init__(self, model: PreTrainedModel, index: int) -> None:
        """Take a place before a layer, for as long as the model is there."""
        self.seen: list[Tensor] | None = None
        layer_list(model)[index].register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if self.seen is not None:
            self.seen.append(args[0] if args else kwargs["hidden_states"])


@contextmanager
def opened(
    enter: Tap | None = None, states: Tensor | None = None, leave: Tap | Watch | None = None
) -> Iterator[list[Tensor]]:
    """Let `enter` give these states, and yield the list to which `leave` adds what it sees.

    Afterwards neither of them holds anything, also where a forward inside has failed.
    """
    seen: list[Tensor] = []
    try:
        if enter is not None:
            enter.given = states
        if leave is not None:
            leave.seen = seen
        yield seen
    finally:
        if enter is not None:
            enter.given = None
        if leave is not None:
            leave.seen = None


@dataclass
class _Output(ModelOutput):
    """What some head reads of a base model's output."""

    last_hidden_state: Tensor | None = None
    past_key_values: None = None
    hidden_states: None = None
    attentions: None = None
    cross_attentions: None = None
    router_logits: None = None


def _bare(states: Tensor | None) -> Tensor | None:
    return states


def _in_tuple(states: Tensor | None) -> tuple[Tensor | None, None]:
    return states, None


def _as_output(states: Tensor | None) -> _Output:
    return _Output(last_hidden_state=states)
