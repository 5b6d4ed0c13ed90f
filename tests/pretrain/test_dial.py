"""The dial: sizes are those of the models that are made, and every rule by hand."""

from __future__ import annotations

import math

import pytest

from manners.pretrain import dial
from manners.pretrain.dial import Recipe, recipe, shape
from manners.pretrain.model import new_model
from manners.settings import PretrainSettings
from tests.pretrain.worlds import tokenizer

PLENTY = 10**9


def of(depth: int, carried: int = PLENTY) -> dial.Shape:
    return shape(PretrainSettings(depth=depth), carried)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_the_parameters_are_those_of_the_model(depth: int) -> None:
    made = new_model(of(depth), tokenizer(), 0)
    assert sum(p.numel() for p in made.parameters()) == of(depth).parameters


def test_the_ladder_goes_from_a_third_of_a_million_to_a_billion() -> None:
    sizes = [of(depth).parameters for depth in range(1, 65)]
    assert sizes == sorted(sizes)
    assert 0.3e6 < sizes[1] < 0.5e6 and 1.0e6 < sizes[2] < 1.3e6
    assert sizes[18] == pytest.approx(136e6, rel=0.01) and sizes[40] == pytest.approx(0.977e9, rel=0.01)
    for depth in range(1, 65):
        one = of(depth)
        assert one.width % one.heads == 0 and one.width // one.heads in (32, 64)


def test_depth_three_by_hand() -> None:
    one = of(3)
    # Width 32 * 4; 8/3 * 128 = 341.3, up to 352; matrices 3 * (4 * 128^2 + 3 * 128 * 352) = 602,112.
    assert (one.width, one.heads, one.hidden, one.vocabulary, one.row) == (128, 4, 352, 2048, 256)
    assert (one.matrices, one.head) == (602_112, 262_144)
    assert one.flops == 6 * 864_256 + 12 * 3 * 128 * 256
    run = recipe(PretrainSettings(depth=3), one)
    assert run.tokens == pytest.approx(12 * 864_256, rel=run.batch / 12 / 864_256)
    assert run.batch == 8192  # (10.4e6 / 10e6) ^ 0.383 is 1.01


def test_the_vocabulary_is_no_larger_than_the_text_carries() -> None:
    assert [of(8, carried).vocabulary for carried in (300, 600, 5000, 10**6)] == [300, 512, 4096, 8192]


def test_what_is_set_is_taken() -> None:
    chosen = PretrainSettings(depth=2, vocabulary=700, row=64, tokens=64_000, batch=640, rate=2.0)
    one = shape(chosen, PLENTY)
    run = recipe(chosen, one)
    assert (one.vocabulary, one.row, run.rows, run.steps) == (700, 64, 10, 100)
    plain = recipe(PretrainSettings(depth=2, vocabulary=700, row=64, tokens=64_000, batch=640), one)
    assert run.matrix_rate == pytest.approx(2 * plain.matrix_rate)


def test_the_rates_rise_stay_and_fall() -> None:
    run = Recipe(row=1, rows=1, steps=100, matrix_rate=1.0, embedding_rate=1.0, head_rate=1.0, decay=0.0, warm_up=10)
    assert [run.share(step) for step in (1, 5, 10, 35)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert run.share(100) == pytest.approx(0.05) and run.share(67) == pytest.approx(0.05 + 0.95 * 33 / 65)
    shares = [run.share(step) for step in range(10, 101)]
    assert shares == sorted(shares, reverse=True)


def test_a_weight_is_forgotten_in_a_stated_share_of_the_run() -> None:
    for depth in (2, 3, 8):
        run = recipe(PretrainSettings(depth=depth), of(depth))
        assert 1 / (run.decay * run.matrix_rate) == pytest.approx(dial.DECAY_SPAN * run.steps)


def test_a_short_text_makes_a_short_run_where_nobody_set_its_length() -> None:
    # 389,000 tokens, as tinyshakespeare has: 4 passes, where 12 a parameter would be 27.
    run = recipe(PretrainSettings(depth=3), of(3), 389_000)
    assert run.tokens == pytest.approx(4 * 389_000, rel=run.batch / 389_000)
    assert recipe(PretrainSettings(depth=3, tokens=10**7), of(3), 389_000).tokens == pytest.approx(10**7, rel=0.01)
    assert recipe(PretrainSettings(depth=3), of(3), 10**9) == recipe(PretrainSettings(depth=3), of(3))
    going = PretrainSettings(start="a", replay="b", replay_share=0.5)
    # Half of the rows are replayed, so a text of 100,000 tokens is read four times in 800,000.
    assert dial.continued(going, 10**9, of(3), 100_000).tokens == pytest.approx(800_000, rel=0.01)


def test_a_short_run_has_higher_rates() -> None:
    def rate(tokens: int) -> float:
        return recipe(PretrainSettings(depth=3, tokens=tokens, batch=2048), of(3)).matrix_rate

    # 0.1 / root of the width 128, at a quarter of 8,192 tokens a step; root of 10 and of 4, and five times at most.
    assert rate(10**7) == rate(10**9) == pytest.approx(0.1 / math.sqrt(128) / 2)
    assert [rate(n) / rate(10**7) for n in (10**6, 2_500_000, 10**5)] == pytest.approx([math.sqrt(10), 2.0, 5.0])


def test_no_run_is_so_short_that_decay_turns_a_weight_about() -> None:
    for steps in (1, 2, 4, 7, 8, 20, 1000):
        run = recipe(PretrainSettings(depth=2, batch=512, tokens=512 * steps), of(2))
        assert run.steps == steps and 0 < run.matrix_rate * run.decay < 0.2501


def test_a_batch_grows_with_the_run_by_its_power() -> None:
    small, large = (recipe(PretrainSettings(tokens=t), of(3)).batch for t in (10**7, 10**10))
    assert math.log2(large / small) == pytest.approx(math.log2(1000**0.383), abs=1)
