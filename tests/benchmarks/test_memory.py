"""The table of memory on docs/gpu.md is what the script reckons, and the script what arithmetic by hand does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.memory import HEAD, SHAPES, WAYS, Shape, row, takes

PAGE = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text(encoding="utf-8")
TABLE = re.search(r"<!-- figures: memory -->\n(.*)<!-- /figures: memory -->", PAGE, re.DOTALL)


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_table_on_the_page_is_what_the_script_prints(shape: Shape) -> None:
    assert TABLE is not None and TABLE[1].startswith(HEAD)
    assert row(shape) in TABLE[1].splitlines()


def test_every_model_has_a_row() -> None:
    assert TABLE is not None
    assert re.findall(r"^\| ([\w.-]+\d[\w.]*[MB]) \|", TABLE[1], re.MULTILINE) == [shape.name for shape in SHAPES]


@pytest.mark.long
def test_the_weights_are_those_that_the_models_makers_count() -> None:
    counted = {"SmolLM2-135M": 0.1345, "Qwen2.5-0.5B": 0.494, "Llama-3.1-8B": 8.030}  # billions, from their model cards
    for shape in SHAPES:
        if shape.name in counted:
            billions = sum(parameters(shape)) / 1e9
            assert billions == pytest.approx(counted[shape.name], rel=0.002)
    size, _, _ = takes(SHAPES[0].config, WAYS[1])
    assert size == pytest.approx(2 * sum(parameters(SHAPES[0])) / 1e9, rel=1e-3)


def parameters(shape: Shape) -> tuple[int, ...]:
    """Embedding, head, layers and the last norm, by hand."""
    width, keys = shape.width, shape.groups * shape.head
    attention = width * shape.heads * shape.head * 2 + 2 * width * keys
    layer = attention + 3 * width * shape.inner + 2 * width
    words = shape.words * width
    return words, 0 if shape.tied else words, shape.layers * layer, width
