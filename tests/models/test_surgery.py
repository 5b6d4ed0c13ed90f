"""What models are given and what is seen of them leaves no trace, also where a forward fails."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manners.models.branches import Branch
from manners.models.decoder import Decoder
from manners.models.surgery import Tap, Watch, layer_list, opened, probe, shared_copy
from manners.models.trunk import Trunk, grow_trunk
from manners.text import Rendered, collate
from tests.conftest import some
from tests.worlds import new_decoder, tiny_model

BATCH = collate([Rendered((5, 6, 7), (8, 9)), Rendered((10, 11), (12, 13, 14))], pad_id=0)
PROMPTS = [(5, 6, 7), (8, 9, 10, 11)]


class Fault(Exception):
    """What a forward raises in these tests."""


def failing(module: nn.Module) -> Callable[[], None]:
    """Let a module fail from now on; return what mends it."""

    def fail(*_: object, **__: object) -> None:
        raise Fault

    module.__dict__["forward"] = fail
    return lambda: module.__dict__.pop("forward")


def hooks(*models: nn.Module) -> int:
    """Count the hooks on all modules."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, name)) for model in models for module in model.modules() for name in names)


def held(*models: nn.Module) -> list[Tensor]:
    """Return the tensors that modules hold beside their parameters and buffers, in taps and watches above all."""
    modules = [module for model in models for module in model.modules()]
    watches = [hook.__self__ for m in modules for hook in m._forward_pre_hooks.values() if hasattr(hook, "__self__")]
    found = [value for part in (*modules, *watches) for value in vars(part).values()]
    lists = [item for value in found if isinstance(value, list | tuple) for item in value]
    return [value for value in (*found, *lists) if isinstance(value, Tensor) and value.numel()]


def parts_of(trunk: Trunk, branch: Branch) -> tuple[PreTrainedModel, ...]:
    assert trunk._lower is not None
    return trunk.whole, trunk._lower.model, branch.model, branch._head[0][0]


@pytest.mark.parametrize("model_type", some(["llama", "gpt2", "bloom"], 1))
@pytest.mark.parametrize("place", ["trunk", "branch", "head"])
def test_a_forward_that_fails_in_the_split_leaves_no_trace(model_type: str, place: str) -> None:
    trunk = grow_trunk(tiny_model(model_type), 2)
    branch = Branch(trunk, trainable=True)
    parts = parts_of(trunk, branch)
    clean = (hooks(*parts), len(held(*parts)))

    def run() -> Tensor:
        return branch.logits(branch.hidden(trunk.states(BATCH), BATCH).flatten(0, 1))

    before, states = run().detach(), trunk.states(BATCH).clone()
    hidden = branch.hidden(states, BATCH).detach().flatten(0, 1)
    broken = {"trunk": layer_list(parts[1])[0], "branch": layer_list(parts[2])[-1], "head": parts[3].lm_head}[place]
    mend = failing(broken)
    with pytest.raises(Fault):
        trunk.states(BATCH)
        branch.hidden(states, BATCH)
        branch.logits(hidden)
    given = [weakref.ref(states), weakref.ref(hidden)]
    del states, hidden
    gc.collect()
    assert [ref() for ref in given] == [None, None]
    assert (hooks(*parts), len(held(*parts))) == clean
    mend()
    assert torch.equal(run().detach(), before)
    gc.collect()
    assert (hooks(*parts), len(held(*parts))) == clean


def decoded(decoder: Decoder) -> tuple[Tensor, Tensor]:
    """Read two prompts and a token; return the logits and the states of the token."""
    decoder.seat(torch.zeros(0, dtype=torch.long), PROMPTS, 4)
    decoder.read(torch.tensor([20, 21]), torch.ones(2, dtype=torch.bool))
    assert decoder.logits is not None and decoder.states is not None
    return decoder.logits, decoder.states


@pytest.mark.parametrize("by_row", [False, True])
def test_decoding_that_fails_leaves_no_trace_on_the_model_and_nothing_watched(by_row: bool) -> None:
    model = tiny_model()

    def new() -> Decoder:
        return new_decoder(model, cut=2, by_row=by_row)

    before, names = decoded(new()), [name for name, _ in model.named_modules()]
    expected = tiny_model()(input_ids=torch.tensor([[*PROMPTS[1], 21]]), output_hidden_states=True)
    torch.testing.assert_close(before[0][1], expected.logits[0, -1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(before[1][1, 0], expected.hidden_states[2][0, -1], atol=1e-4, rtol=1e-4)
    decoder = new()
    mend = failing(layer_list(decoder.model)[3])
    with pytest.raises(Fault):
        decoded(decoder)
    assert not held(decoder.model) and hooks(model) == 0 and hooks(decoder.model) == 1
    assert [name for name, _ in model.named_modules()] == names
    mend()
    for fresh in (new(), decoder):
        assert all(map(torch.equal, decoded(fresh), before))
        assert not held(fresh.model)


def test_watching_a_model_that_fails_takes_the_hooks_away() -> None:
    model = tiny_model()
    mend = failing(layer_list(model)[2])
    with pytest.raises(Fault):
        probe(model)
    assert hooks(model) == 0
    mend()
    assert probe(model) == probe(shared_copy(model)) and hooks(model) == 0


def test_what_is_given_and_seen_is_there_inside_only() -> None:
    model = shared_copy(tiny_model())
    tap, watch = Tap(layer_list(model)[0], lambda states: states), Watch(model, 1)
    layer_list(model)[0] = tap
    ids, states = torch.tensor([[5, 6]]), torch.ones((1, 2, 32))
    with opened(tap, states, watch) as seen:
        model(input_ids=ids)
        assert len(seen) == 1 and seen[0] is states
    model(input_ids=ids)
    assert len(seen) == 1 and not held(model)
    with opened(leave=tap) as seen:
        model(input_ids=ids)
    assert torch.equal(seen[0], model.get_input_embeddings()(ids))
