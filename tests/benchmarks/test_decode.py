"""What a step of drawing is made of: every way does the same work, and the fastest turn counts."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from benchmarks.decode import fastest, products, step
from manners.models import weight_layout
from tests.conftest import lack
from tests.worlds import new_decoder, tiny_model


def test_all_ways_to_multiply_give_the_same_products() -> None:
    if not weight_layout.available():
        lack("this PyTorch has no MKL, so that nothing is laid out; run these tests on an x86 processor")
    model = tiny_model()
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    with torch.inference_mode():
        ways = products(layers, 4)
        found = {name: ways[name]() for name in ("products", "oneDNN", "laid out")}
    for one in ("oneDNN", "laid out"):
        for product, expected in zip(found[one], found["products"], strict=True):
            torch.testing.assert_close(product, expected, atol=1e-4, rtol=1e-4)
    ways["step"] = step(new_decoder(model), 4)
    taken = fastest(ways, 2)
    assert list(taken) == ["weights read", "products", "oneDNN", "laid out", "step"] and min(taken.values()) > 0


def test_the_fastest_turn_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 5.0, 6.0, 6.0, 9.0, 9.0, 11.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert fastest({"a": lambda: None, "b": lambda: None}, 2) == {"a": 3.0, "b": 1.0}
