"""A new model says nothing at first, and each of its parameters moves in one group."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from manners.pretrain.dial import recipe, shape
from manners.pretrain.forward import loss
from manners.pretrain.model import groups
from manners.settings import PretrainSettings
from tests.pretrain.worlds import SHAPE, model
from tests.worlds import tiny_model


def test_every_token_is_as_likely_at_first_and_layers_add_nothing() -> None:
    made = model(lively=False)
    rows = torch.randint(0, SHAPE.vocabulary, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        nats = float(loss(made, rows, rows[:, 1:])) / rows[:, 1:].numel()
        inside = made(rows, output_hidden_states=True).hidden_states
    assert abs(nats - math.log(SHAPE.vocabulary)) < 0.01
    assert torch.equal(inside[0], made.model.embed_tokens(rows)) and torch.equal(inside[0], inside[1])


def test_the_seed_decides_and_plain_transformers_loads_it(tmp_path: Path) -> None:
    one, two, other = model(1, lively=False), model(1, lively=False), model(2, lively=False)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    one.save_pretrained(tmp_path)
    rows = torch.arange(20)[None]
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(rows).logits, one(rows).logits)


def test_matrices_go_by_muon_and_the_rest_by_adamw() -> None:
    chosen = recipe(PretrainSettings(depth=2), shape(PretrainSettings(depth=2), 10**6))
    made = model()
    muon, *rest = groups(made, chosen)
    names = {id(p): name for name, p in made.named_parameters()}
    by_muon = {names[id(p)] for p in muon.parameters}
    assert muon.muon and by_muon == {n for n in names.values() if "proj" in n}
    assert sorted(names[id(p)] for g in (muon, *rest) for p in g.parameters) == sorted(names.values())
    rates = {names[id(p)]: g.rate for g in rest for p in g.parameters}
    assert rates["lm_head.weight"] == chosen.head_rate
    assert rates["model.embed_tokens.weight"] == chosen.embedding_rate
    assert all(g.decay == 0 for g in rest)


def test_tables_of_positions_and_tied_heads_are_no_matrices() -> None:
    chosen = recipe(PretrainSettings(), shape(PretrainSettings(), 10**6))
    other = tiny_model("gpt2")
    muon, *rest = groups(other, chosen)
    tables = {id(p) for name, p in other.named_parameters() if "wte" in name or "wpe" in name}
    assert tables <= {id(p) for g in rest for p in g.parameters}
    assert len({id(p) for g in (muon, *rest) for p in g.parameters}) == len(list(other.parameters()))
