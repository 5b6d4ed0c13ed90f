"""A tiny vocabulary and models for the tests of pre-training."""

from __future__ import annotations

from functools import cache

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from manners.pretrain.dial import Shape
from manners.pretrain.model import new_model
from manners.pretrain.vocabulary import learn

SHAPE = Shape(depth=2, width=32, heads=2, hidden=64, vocabulary=300, row=24)
KINDS = ["brave", "tiny", "clever", "gloomy", "merry", "hungry", "silver", "crooked", "gentle", "wandering"]
KINDS += ["lonely", "golden", "sleepy", "frozen", "humble"]
STORIES = [
    f"Once a {KINDS[n % len(KINDS)]} {who} went to the {place} and found {n} stones."
    for n in range(60)
    for who in ("fox", "queen", "miller")
    for place in ("mountain", "harbour")
]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return learn(STORIES, SHAPE.vocabulary, SHAPE.row)


def model(seed: int = 0, *, lively: bool = True) -> LlamaForCausalLM:
    """A new model; a lively one has no zeros, so that every gradient shows."""
    made = new_model(SHAPE, tokenizer(), seed)
    if lively:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made
