"""Bits a byte: by hand for a model that knows nothing, and special tokens count nothing."""

from __future__ import annotations

import math

import pytest
import torch

from manners.pretrain.documents import Document
from manners.pretrain.forward import IGNORED
from manners.pretrain.measure import HeldOut, measured, sample
from manners.pretrain.vocabulary import encode
from tests.pretrain.worlds import SHAPE, STORIES, model, tokenizer

SOME = [Document(STORIES[0]), Document("ümlaut " * 30), Document(STORIES[7], ends=False)]
LENGTH = SHAPE.row + 1


def test_a_model_that_knows_nothing_takes_ln_v_a_token() -> None:
    made = model(lively=False)
    with torch.no_grad():
        made.lm_head.weight.zero_()
    held = HeldOut.of(SOME, tokenizer(), LENGTH)
    tokens = sum(len(ids) for ids in encode(tokenizer(), [d.text for d in SOME]))
    size = sum(len(d.text.encode()) for d in SOME)
    found = measured(made, held, 2)
    assert (held.tokens, held.bytes) == (tokens, size)
    assert found.nats == pytest.approx(math.log(300), rel=1e-6)
    assert found.bits == pytest.approx(tokens * math.log2(300) / size, rel=1e-6)


def test_each_token_of_the_text_is_predicted_once_and_no_special_one() -> None:
    held = HeldOut.of(SOME, tokenizer(), LENGTH)
    wanted = sorted(i for ids in encode(tokenizer(), [d.text for d in SOME]) for i in ids)
    assert sorted(held.targets[held.targets != IGNORED].tolist()) == wanted
    cut = [Document("once upon a time " * 9, ends=False), Document("and then " * 9, begins=False)]
    held = HeldOut.of(cut, tokenizer(), LENGTH)
    wanted = sorted(i for ids in encode(tokenizer(), [d.text for d in cut]) for i in ids)
    assert sorted(held.targets[held.targets != IGNORED].tolist()) == wanted
    assert held.rows.shape[1] == LENGTH and bool((held.rows[:, 0] == 0).all())


def test_how_many_rows_go_at_once_changes_nothing() -> None:
    made, held = model(), HeldOut.of(SOME, tokenizer(), LENGTH)
    assert measured(made, held, 1).bits == pytest.approx(measured(made, held, 50).bits, rel=1e-6)


def test_samples_follow_the_seed_and_end_where_the_model_ends_them() -> None:
    made = model()
    assert sample(made, tokenizer(), 1, 2, 12) == sample(made, tokenizer(), 1, 2, 12)
    assert sample(made, tokenizer(), 1, 2, 12) != sample(made, tokenizer(), 2, 2, 12)
    with torch.no_grad():
        made.model.norm.weight.zero_()
        made.lm_head.weight.zero_()
    ended = sample(made, tokenizer(), 3, 40, 23)
    assert all("<|" not in text for text in ended)
