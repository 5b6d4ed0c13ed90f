"""Products are exact, but where they are asked to be fast, and there only."""

from __future__ import annotations

import pytest
import torch

from manners.models.products import exact_products, rounded_products


def test_products_are_rounded_for_as_long_as_is_said() -> None:
    with pytest.raises(ZeroDivisionError), rounded_products():
        assert torch.get_float32_matmul_precision() == "medium"
        with exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == "highest"


def test_where_nothing_is_rounded_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who uses us as a library may have said it by torch's newer words, and to ask by the older is an error then."""

    def mixed(*_: str) -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", mixed)
    with exact_products():
        pass


def test_rounded_products_are_off_by_no_more_than_factors_of_eight_bits_explain() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn((512, 512), generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    with rounded_products():
        off = (left @ right - exact).abs()
    assert float((off / (left.abs().double() @ right.abs().double())).max()) <= 2 * 2**-8
