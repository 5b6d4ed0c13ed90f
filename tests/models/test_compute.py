"""What depends on the device is decided once, and said."""

from __future__ import annotations

from dataclasses import replace

import torch

from manners.models.compute import Compute, bucket_tokens
from manners.models.proof import proved
from manners.models.trunk import grow_trunk
from tests.worlds import tiny_model


def test_a_loaded_trunk_says_how_it_is_computed_with() -> None:
    trunk = grow_trunk(tiny_model(), 2)
    before, after = trunk.compute, proved(trunk, 64).compute
    assert before == Compute.of(trunk.whole) and after == replace(before, shares_prompts=True, by_row=True, flat=True)
    assert (after.device, after.dtype, after.exact) == (trunk.whole.device, torch.float32, trunk.whole.device)
    assert not after.lays_out and after.layout_gain is None, "it is too small for that"
    assert before.sentence == "up to 1,024 tokens a forward"
    assert after.sentence == (
        "up to 1,024 tokens a forward, responses share their prompt, prompts share what they begin with, attention"
        " reads a row's own columns, what is scored stands in one row"
    )
    windows = proved(grow_trunk(tiny_model("gemma2"), 2), 64).compute
    assert not (windows.shares_prompts or windows.shares_beginnings or windows.by_row or windows.flat)
    behind = proved(grow_trunk(tiny_model("mistral"), 2), 64).compute
    assert behind.flat and not behind.shares_prompts, "a window is kept where each looks at its own alone"


def test_elsewhere_than_on_a_cpu_forwards_are_longer_and_columns_are_not_saved() -> None:
    assert [bucket_tokens(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [1024, 4096, 4096]
    with torch.device("meta"):  # stands for any other device
        compute = Compute.of(tiny_model())
    assert (compute.bucket_tokens, compute.saves_columns, compute.lays_out) == (4096, False, False)
    assert not replace(compute, shares_prompts=True).shares_beginnings
