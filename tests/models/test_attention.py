"""Attention by row: the same numbers as plain attention with a mask, and no more columns read than it pays to."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from manners.models.attention import CALL, NAME, Flat, Tail, attend, listen, tail
from manners.models.decoder import Decoder
from manners.models.proof import proved
from manners.models.trunk import grow_trunk
from tests.conftest import some
from tests.worlds import ARCHITECTURES, TELLS_NOTHING, new_decoder, tiny_model

HEADS, SHARED, SIZE = 6, 2, 8


class Grouped(nn.Module):
    """As a model's attention looks to the function that computes it."""

    num_key_value_groups = HEADS // SHARED
    is_causal = True


def by_definition(query: Tensor, key: Tensor, value: Tensor, looks: Tensor) -> Tensor:
    """Attend in float64, head by head: softmax(q kᵀ / √S) v over the columns that a query looks at."""
    out = torch.zeros(query.shape, dtype=torch.float64)
    for row, head in itertools.product(range(query.shape[0]), range(HEADS)):
        k, v = key[row, head // (HEADS // SHARED)].double(), value[row, head // (HEADS // SHARED)].double()
        weights = query[row, head].double() @ k.T / SIZE**0.5
        out[row, head] = weights.masked_fill(~looks[row], -torch.inf).softmax(dim=-1) @ v
    return out.transpose(1, 2).float()


def random(rows: int, queries: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + queries + columns)
    shapes = ((rows, HEADS, queries, SIZE), (rows, SHARED, columns, SIZE), (rows, SHARED, columns, SIZE))
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


@pytest.mark.parametrize("column_bytes", [1, CALL // 5])
def test_rows_with_one_token_look_at_their_own_columns(column_bytes: int) -> None:
    starts, used = [0, 3, 3, 9, 1, 7], 11
    query, key, value = random(len(starts), 1, used)
    looks = torch.arange(used) >= torch.tensor(starts)[:, None, None]
    rows = tail(starts, used, column_bytes)
    assert len(rows.groups) == {1: 1, CALL // 5: 5}[column_bytes]
    hidden = [torch.arange(used) < first for start, stop, first in rows.groups for _ in range(start, stop)]
    key[torch.stack(hidden)[:, None].expand(-1, SHARED, -1)] = torch.nan  # nobody may read these
    mask = looks[:, None]
    found, nothing = attend(Grouped(), query, key, value, mask, rows=rows, scaling=SIZE**-0.5, dropout=0.0)
    assert nothing is None
    torch.testing.assert_close(found, by_definition(query, key.nan_to_num(), value, looks))
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    torch.testing.assert_close(attend(Grouped(), query, key, value, additive, rows=rows)[0], found)
    with pytest.raises(TypeError, match="position biases"):
        attend(Grouped(), query, key, value, mask, rows=rows, position_bias=additive)


@pytest.mark.parametrize("lead", [0, 4])
@pytest.mark.parametrize("window", [None, 3, 100])
def test_sequences_in_one_row_look_at_the_lead_and_at_themselves(lead: int, window: int | None) -> None:
    flat = Flat.after(lead, (5, 1, 4))
    query, key, value = random(1, 10, lead + 10)
    owner = torch.tensor([0] * 5 + [1] + [2] * 4)
    place = torch.tensor([0, 1, 2, 3, 4, 0, 0, 1, 2, 3]) + lead
    columns = torch.cat([torch.arange(lead), place])
    belongs = torch.cat([torch.full((10, lead), True), owner[:, None] == owner[None, :]], dim=1)
    distance = place[:, None] - columns[None, :]
    looks = belongs & (distance >= 0) & (distance < (window or 1000))
    found, _ = attend(Grouped(), query, key, value, None, rows=flat, sliding_window=window, scaling=SIZE**-0.5)
    torch.testing.assert_close(found, by_definition(query, key, value, looks[None]))


def test_where_nothing_is_said_nothing_changes() -> None:
    query, key, value = random(2, 4, 4)
    causal = torch.ones((4, 4), dtype=torch.bool).tril().expand(2, 4, 4)
    found, _ = attend(Grouped(), query, key, value, None, scaling=SIZE**-0.5)
    torch.testing.assert_close(found, by_definition(query, key, value, causal))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=7), st.sampled_from([CALL // 50, CALL // 8, CALL]))
def test_rows_are_divided_as_cheaply_as_they_can_be(starts: list[int], column_bytes: int) -> None:
    used = 41

    def cost(groups: tuple[tuple[int, int, int], ...]) -> int:
        return sum((stop - start) * (used - first) * column_bytes + CALL for start, stop, first in groups)

    found = tail(starts, used, column_bytes).groups
    assert [start for start, _, _ in found] == [0, *(stop for _, stop, _ in found[:-1])]
    assert found[-1][1] == len(starts) and all(first == min(starts[a:b]) for a, b, first in found)
    divisions = []
    for cuts in itertools.product([False, True], repeat=len(starts) - 1):
        edges = [0, *(place for place, cut in enumerate(cuts, 1) if cut), len(starts)]
        divisions.append(tuple((a, b, min(starts[a:b])) for a, b in itertools.pairwise(edges)))
    assert cost(found) == min(map(cost, divisions))


@pytest.mark.parametrize("model_type", some(ARCHITECTURES, 6))
def test_which_models_tell_their_attention_is_found_out(model_type: str) -> None:
    assert proved(grow_trunk(tiny_model(model_type), 2), 128).compute.by_row == (model_type not in TELLS_NOTHING)


def test_attention_that_does_not_listen_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that swallows what it is told would read each prompt behind all the others."""
    model = tiny_model()
    forward = type(model).forward

    def deaf(self: nn.Module, *args: Any, rows: object = None, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", deaf)
    trunk = proved(grow_trunk(model, 2), 128)
    assert trunk.compute.shares_prompts and not trunk.compute.by_row


@torch.no_grad()
def test_another_model_of_the_process_keeps_its_attention(tmp_path: Path) -> None:
    ours, foreign, ids = tiny_model(), tiny_model(seed=1), torch.arange(5, 25).view(2, 10)
    before = foreign(input_ids=ids).logits
    trunk = proved(grow_trunk(ours, 2), 128)
    decoder = Decoder(trunk.whole, trunk.compute, pad_id=0)
    assert decoder.model.config._attn_implementation == NAME
    assert foreign.config._attn_implementation == "sdpa"
    assert AttentionInterface()["sdpa"] is sdpa_attention_forward and AttentionMaskInterface()["sdpa"] is sdpa_mask
    for hostile in (Tail(((0, 2, 9),)), Flat.after(0, (3, 7)), "nonsense"):
        assert torch.equal(foreign(input_ids=ids, rows=hostile).logits, before)
        assert torch.equal(tiny_model(seed=1)(input_ids=ids, rows=hostile).logits, before)
    for model in (decoder.model, ours):
        model.save_pretrained(tmp_path)
        assert NAME not in (tmp_path / "config.json").read_text()


def test_a_model_that_attends_in_another_way_goes_on_so() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    listen(model)
    assert model.config._attn_implementation == "eager"


def test_a_long_row_costs_short_ones_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manners.models.attention.CALL", 1_000)
    decoder = new_decoder(tiny_model(), shares_prompts=True, by_row=True)
    decoder.seat(torch.zeros(0, dtype=torch.long), [tuple(range(20, 120)), *[(5, 6, 7, at) for at in range(8, 15)]], 4)
    assert decoder.tail == Tail(((0, 1, 0), (1, 8, 96)))
    decoder.seat(torch.tensor([3, 5]), [(9,) * 12], 4)
    assert decoder.tail == Tail(((0, 2, 8), (2, 3, 0)))  # of 12 columns: those that nobody looks at have gone
