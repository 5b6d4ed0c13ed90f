"""Rows of several dialogues: packed as well as may be, none sees another, and the gradient is that of each alone."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from manners.models.branches import Branch, set_trainable
from manners.models.packing import pack
from manners.models.pretrained import Pretrained
from manners.models.proof import proved
from manners.models.trunk import grow_trunk
from manners.sft.data import ReadExamples, as_rows, batches, best_fit
from manners.sft.examples import Example, Learned, lay_out
from manners.sft.train import objective
from manners.text import Renderer
from manners.types import Dialogue, Role, Turn
from tests.conftest import some
from tests.worlds import ARCHITECTURES, END_IDS, tiny_model, tiny_tokenizer, with_compute

TEXTS = ("An hour.", "So", "Mix flour and water, and wait until it has grown.", "Thank you for the answer", "Yes")


def world(model_type: str = "llama", layers: int | str = 2, packs: bool | None = None) -> Pretrained:
    trunk = proved(grow_trunk(tiny_model(model_type), layers), 128)  # type: ignore[arg-type]
    if packs is not None:
        trunk = with_compute(trunk, shares_prompts=packs)
    return Pretrained("tiny", trunk, Renderer(tiny_tokenizer(), END_IDS, 128), "")


def learned(pretrained: Pretrained) -> tuple[Learned, ...]:
    talks: list[Dialogue] = [
        (Turn(Role.USER, f"{text}?"), Turn(Role.ASSISTANT, text), Turn(Role.USER, "Why?"), Turn(Role.ASSISTANT, "So."))
        for text in TEXTS
    ]
    talks += [talk[:2] for talk in talks[:3]]
    return lay_out(pretrained.renderer, [Example(talk) for talk in talks]).sequences


def gradient(pretrained: Pretrained, folder: Path) -> tuple[float, list[Tensor]]:
    """The loss on all sequences, and its gradient."""
    folder.mkdir()
    sequences = learned(pretrained)
    data = ReadExamples(pretrained, sequences, folder / "states", "reading")
    branch = Branch(pretrained.trunk, trainable=True)
    total, loss = sum(one.learned for one in sequences), 0.0
    for micro in data.micro_batches(range(len(sequences))):
        [term] = objective(branch, data, micro, total)
        part, _ = term.loss()
        torch.autograd.backward(part)
        loss += float(part.detach())
    return loss, [p.grad for p in set_trainable([branch]) if p.grad is not None]


def plainly(pretrained: Pretrained) -> float:
    """The same loss by the plain model, one dialogue at a time."""
    nats = tokens = 0.0
    for one in learned(pretrained):
        ids = torch.tensor([one.ids])
        with torch.no_grad():
            logprobs = pretrained.trunk.whole(input_ids=ids).logits[0].float().log_softmax(dim=1)
        for start, stop in one.spans:
            nats -= float(sum(logprobs[at - 1, one.ids[at]] for at in range(start, stop)))
            tokens += stop - start
    return nats / tokens


@pytest.mark.parametrize("layers", [2, "all"])
def test_packed_and_unpacked_give_the_same_gradient(tmp_path: Path, layers: int | str) -> None:
    packed, alone = world(layers=layers, packs=True), world(layers=layers, packs=False)
    (loss, gradients), (loss_alone, gradients_alone) = gradient(packed, tmp_path / "a"), gradient(alone, tmp_path / "b")
    assert loss == pytest.approx(loss_alone, abs=1e-5) == pytest.approx(plainly(packed), abs=1e-5)
    assert len(gradients) == len(gradients_alone) > 0
    for one, other in zip(gradients, gradients_alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", some(ARCHITECTURES, 5))
def test_the_loss_is_the_plain_models_whatever_the_architecture(model_type: str, tmp_path: Path) -> None:
    """Those whose windows or positions allow no packing have a row for each dialogue."""
    pretrained = world(model_type)
    assert gradient(pretrained, tmp_path / "states")[0] == pytest.approx(plainly(pretrained), rel=1e-4)


def test_no_dialogue_sees_another_in_its_row() -> None:
    pretrained = world(packs=True)
    rows = as_rows(learned(pretrained))
    batch = pack(rows, True, 0)
    assert batch.ids.shape[0] == 1, "all in one row"
    starts = [first for _, first, _ in batch.spans]
    assert batch.positions[0, starts].tolist() == [0] * len(rows), "and each begins at position 0"
    branch = Branch(pretrained.trunk, trainable=False)
    final = branch.final(pretrained.trunk.states(batch), batch)
    other = replace(batch, ids=batch.ids.clone())
    first, stop = batch.spans[2][1:]
    other.ids[0, first:stop] = 7
    changed = branch.final(pretrained.trunk.states(other), other)
    same = torch.ones(batch.ids.shape[1], dtype=torch.bool)
    same[first:stop] = False
    torch.testing.assert_close(changed[0, same], final[0, same], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(changed[0, ~same], final[0, ~same], atol=1e-3)


def test_a_mask_of_two_axes_would_let_them_see_each_other() -> None:
    """The trap: given such a mask, transformers does not look at positions, and all of a row is one text."""
    pretrained = world(packs=True)
    model = pretrained.trunk.whole
    batch = pack(as_rows(learned(pretrained)[:2]), True, 0)
    second = slice(*batch.spans[1][1:])
    alone = model(input_ids=batch.ids[:, second]).logits[0]
    by_positions = model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).logits[0, second]
    torch.testing.assert_close(by_positions, alone, atol=1e-4, rtol=1e-4)
    ones = torch.ones_like(batch.ids)
    leaking = model(input_ids=batch.ids, position_ids=batch.positions, attention_mask=ones, use_cache=False).logits[
        0, second
    ]
    assert not torch.allclose(leaking, alone, atol=1e-2)


@pytest.mark.long
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=12), st.sampled_from([1024, 8192]))
def test_no_forward_takes_more_than_its_tokens_but_for_one_dialogue_alone(lengths: list[int], limit: int) -> None:
    data = ReadExamples.__new__(ReadExamples)
    data.sequences = tuple(Learned(tuple(range(length)), ((0, 1),), 0) for length in lengths)
    data.packs, data.tokens = True, limit
    found = data.micro_batches(range(len(lengths)))
    assert sorted(itertools.chain(*found)) == list(range(len(lengths)))
    for micro in found:
        taken = pack(as_rows([data.sequences[i] for i in micro]), True, 0).ids.numel()
        assert taken <= limit or len(micro) == 1


@given(st.lists(st.integers(1, 120), min_size=1, max_size=40))
def test_best_fit_loses_nothing_and_fills_its_bins(lengths: list[int]) -> None:
    bins = best_fit(lengths, 100)
    assert sorted(itertools.chain(*bins)) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in one) for one in bins]
    assert all(total <= 100 or len(one) == 1 for total, one in zip(sums, bins, strict=True))
    # No two bins could be one, and what is too long stands alone: the bound of any-fit algorithms.
    short = sorted(total for total in sums if total <= 100)
    assert len(short) < 2 or short[0] + short[1] > 100


def test_batches_hold_whole_dialogues_and_every_pass_another_order() -> None:
    groups = [[0, 1], [2], [3], [4, 5, 6], [7]]
    order = random.Random(3)
    first, second = batches(groups, 2, order), batches(groups, 2, order)
    assert first != second and [len(one) for one in (first, second)] == [3, 3]
    for one in (first, second):
        assert sorted(itertools.chain(*one)) == list(range(8))
        at = {i: number for number, batch in enumerate(one) for i in batch}
        assert all(len({at[i] for i in group}) == 1 for group in groups)
