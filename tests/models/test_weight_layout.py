"""Weights that are laid out for decoding: the same products, for as long as the same number of rows comes."""

import pytest
import torch
from torch import nn

from manners.models import weight_layout
from manners.models.compute import Compute
from manners.models.surgery import shared_copy
from manners.models.weight_layout import PATIENCE, ROUNDS, LaidOutLinear, WeightLayout, laid_out_bytes, layout_gain
from tests.conftest import lack
from tests.worlds import new_decoder, tiny_model


@pytest.fixture(autouse=True)
def operator() -> None:
    """Other processors than x86 have no MKL, and nothing is laid out there."""
    if not weight_layout.available():
        lack("this PyTorch has no MKL, so that nothing is laid out; run these tests on an x86 processor")


def laid_out_layers(model: nn.Module) -> list[LaidOutLinear]:
    """Return the layers that can be laid out."""
    return [module for module in model.modules() if isinstance(module, LaidOutLinear)]


@pytest.mark.parametrize("bias", [False, True])
def test_products_are_those_of_a_linear_layer_for_any_number_of_rows(bias: bool) -> None:
    plain = nn.Linear(24, 40, bias=bias)
    layer = LaidOutLinear(plain)
    assert {name: id(p) for name, p in layer.named_parameters()} == {n: id(p) for n, p in plain.named_parameters()}
    layer.lay_out(6)
    with torch.inference_mode():
        for x in (torch.randn(6, 1, 24), torch.randn(2, 3, 24), torch.randn(6, 5, 24)[:, 2], torch.randn(5, 1, 24)):
            torch.testing.assert_close(layer(x), plain(x))
        changed = plain.weight.clone()
        plain.weight.zero_()  # so that it shows which weights are multiplied
        torch.testing.assert_close(layer(torch.eye(24)[:6]), changed.T[:6] + (0 if plain.bias is None else plain.bias))
        layer.lay_out(0)
        assert not (layer(torch.ones(6, 24)) - (0 if plain.bias is None else plain.bias)).any()


def test_weights_are_laid_out_when_as_many_rows_keep_coming_and_given_back_when_not() -> None:
    model = tiny_model("qwen2")
    copied = shared_copy(model)
    layout, layers = WeightLayout(copied), laid_out_layers(copied)
    assert len(layers) == sum(type(module) is nn.Linear for module in model.modules()) > 20
    for rows, calls, expected in ((8, PATIENCE, 0), (8, 1, 8), (8, 50, 8), (7, 1, 0), (7, PATIENCE, 7), (1, 50, 0)):
        for _ in range(calls):
            layout.expect(rows)
        assert {layer._rows for layer in layers} == {expected}
    assert all(layer._laid_out.numel() == 0 for layer in layers)


def test_a_model_that_decodes_so_writes_what_it_would_have_written() -> None:
    model, prompts = tiny_model("qwen2"), [(5, 6, 7), (8, 9), (10,), (11, 12, 13, 14)]
    found = []
    for lays_out in (True, False):
        decoder = new_decoder(model, shares_prompts=True, by_row=True, lays_out=lays_out)
        decoder.seat(torch.zeros(0, dtype=torch.long), prompts, 30)
        logits = []
        for _ in range(30):
            assert decoder.logits is not None
            logits.append(decoder.logits)
            decoder.read(decoder.logits.argmax(dim=1), torch.ones(4, dtype=torch.bool))
        found.append(torch.stack(logits))
        assert {layer._rows for layer in laid_out_layers(decoder.model)} == ({4} if lays_out else set())
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("plain", "laid_out", "pays"), [(3.0, 2.0, True), (3.0, 2.8, False), (3.0, 3.3, False)])
def test_weights_are_laid_out_where_the_clock_says_that_it_pays(
    plain: float, laid_out: float, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes = {LaidOutLinear: laid_out, nn.Linear: plain}
    measured = list[type]()

    def seconds(layers: list[nn.Module]) -> float:
        (kind,) = {type(layer) for layer in layers}
        if kind is LaidOutLinear:
            assert {layer._rows for layer in layers} == {weight_layout.SAMPLE_ROWS}
        measured.append(kind)
        disturbed = {2: 9.0, 4: 0.1}.get(measured.count(kind), 1.0) if kind is LaidOutLinear else 1.0
        return takes[kind] * disturbed  # by others, in two rounds

    monkeypatch.setattr(weight_layout, "_seconds", seconds)
    model = tiny_model()
    assert layout_gain(model) is None and not measured, "caches hold a tiny model"
    monkeypatch.setattr(weight_layout, "SAMPLE", 100_000)
    assert layout_gain(model) == pytest.approx(1 - laid_out / plain)
    assert measured == [nn.Linear, LaidOutLinear] * ROUNDS
    measured.clear()
    compute = Compute.of(model)
    measured.clear()
    assert compute.lays_out is pays and bool(laid_out_layers(new_decoder(model).model)) is pays
    said = f"laid out for decoding (it saves {1 - laid_out / plain:.0%} of the time of matrix products)"
    assert f"weights are {'' if pays else 'not '}{said}" in compute.sentence


def test_the_clock_times_every_layer_of_the_sample() -> None:
    layers = [nn.Linear(512, 512) for _ in range(8)]
    assert weight_layout._seconds(layers) > 0 and -5 < weight_layout._measured_gain(layers) < 1


def test_large_models_and_other_numbers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_layout, "SAMPLE", 1)
    monkeypatch.setattr(weight_layout, "_measured_gain", lambda layers: 0.5)
    model = tiny_model()
    assert laid_out_layers(new_decoder(model).model) and not laid_out_layers(model)
    # 4 layers of two 32 x 32, two 32 x 16 and three 32 x 48, and a head of 320 x 32
    assert laid_out_bytes(model) == 4 * (4 * 32 * (2 * 32 + 2 * 16 + 3 * 48) + 320 * 32)
    for dtype in (torch.bfloat16, torch.float64):
        other = tiny_model()
        torch.nn.Module.to(other, dtype=dtype)
        assert layout_gain(other) is None and not laid_out_layers(new_decoder(other).model)
    monkeypatch.setattr(weight_layout, "LARGEST", 1000)
    assert layout_gain(model) is None
    decoder = new_decoder(model)
    decoder.seat(torch.zeros(0, dtype=torch.long), [(5, 6)] * 8, 2 * PATIENCE)
    for _ in range(2 * PATIENCE):
        decoder.read(torch.full((8,), 7), torch.ones(8, dtype=torch.bool))
    assert not laid_out_layers(decoder.model) and not laid_out_layers(model)
