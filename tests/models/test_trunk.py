"""The split equals the whole for every decoder-only architecture, and what cannot be split is refused by name."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manners.errors import MannersError
from manners.models.branches import Branch, ScalarBranch
from manners.models.packing import pack
from manners.models.proof import proved
from manners.models.surgery import layer_list
from manners.models.trunk import cut_of, grow_trunk
from manners.text import Batch, Rendered, collate
from tests.conftest import some
from tests.worlds import ARCHITECTURES, tiny_model


def batch_of(*lengths: tuple[int, int], seed: int = 0) -> Batch:
    """Random sequences with prompts and responses of these lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 300, (count,), generator=generator).tolist())

    return collate([Rendered(draw(p), draw(r)) for p, r in lengths], pad_id=0)


@torch.no_grad()
def plain_logits(model: PreTrainedModel, batch: Batch, row: int) -> Tensor:
    """Logits of one row by itself, unpadded, from its last prompt token on."""
    attend = batch.attend[row]
    logits: Tensor = model(input_ids=batch.ids[row][attend].unsqueeze(0), use_cache=False).logits[0]
    return logits[int(attend[: batch.prompt_width].sum()) - 1 :]


@pytest.mark.parametrize("layers", [2, "all"])
@pytest.mark.parametrize("model_type", some(ARCHITECTURES, 6))
def test_split_logits_are_the_whole_models_with_padding_on_both_sides(
    model_type: str, layers: int | Literal["all"]
) -> None:
    model = tiny_model(model_type)
    trunk = grow_trunk(model, layers)
    proved(trunk, 64)
    batch = batch_of((20, 3), (4, 9), (11, 6))  # 26 tokens, and windows of 16
    branch = Branch(trunk, trainable=False)
    with torch.no_grad():
        hidden = branch.hidden(trunk.states(batch), batch)
        for row in range(3):
            expected = plain_logits(model, batch, row)
            assert expected.std() > 0.1  # of uniform logits anything would be true
            actual = branch.logits(hidden[row, : len(expected)])
            torch.testing.assert_close(actual, expected, atol=1e-4 * float(expected.std()) + 1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", [1, 2, 3, "all"])
def test_the_cut_leaves_the_stated_number_of_layers_to_the_branches(layers: int | Literal["all"]) -> None:
    model = tiny_model()
    trunk = grow_trunk(model, layers)
    assert trunk.cut == (0 if layers == "all" else 4 - layers)
    own = {name for name, p in model.named_parameters() if id(p) in trunk.own}
    layers_owned = {int(name.split(".")[2]) for name in own if name.startswith("model.layers.")}
    assert layers_owned == set(range(trunk.cut, 4))
    assert ("model.embed_tokens.weight" in own) == (layers == "all")
    assert {"model.norm.weight", "lm_head.weight"} <= own
    assert not any(p.requires_grad for p in model.parameters())


def test_embeddings_their_norms_and_position_tables_belong_to_the_trunk() -> None:
    for model_type, names in {
        "gpt2": {"transformer.wte.weight", "transformer.wpe.weight"},
        "bloom": {"transformer.word_embeddings_layernorm.weight"},
        "opt": {"model.decoder.embed_positions.weight"},
    }.items():
        model = tiny_model(model_type)
        own = grow_trunk(model, 2).own
        assert names.isdisjoint(name for name, p in model.named_parameters() if id(p) in own)


@pytest.mark.parametrize("layers", [0, -1, 4, 99])
def test_more_layers_than_there_are_or_none_are_refused_with_what_is_allowed(layers: int) -> None:
    with pytest.raises(MannersError, match=rf"trainable_layers is {layers}.*has 4 layers: take 1 to 3, or `all`"):
        cut_of(tiny_model(), layers)


def test_the_hash_is_of_the_frozen_part_and_the_cut() -> None:
    base = grow_trunk(tiny_model(), 2).hash
    assert grow_trunk(tiny_model(), 2).hash == base
    assert grow_trunk(tiny_model(), 1).hash != base
    assert grow_trunk(tiny_model("mistral"), 2).hash != base
    for layer, same in ((1, False), (3, True)):  # below and above the cut
        model = tiny_model()
        with torch.no_grad():
            next(layer_list(model)[layer].parameters()).add_(1e-3)
        assert (grow_trunk(model, 2).hash == base) is same


@torch.no_grad()
def test_growing_a_trunk_changes_no_logit_of_the_model() -> None:
    model, batch = tiny_model("gemma2"), batch_of((6, 4))
    before = plain_logits(model, batch, 0)
    grow_trunk(model, 2)
    assert torch.equal(plain_logits(model, batch, 0), before)


# Refused by name


class Talking(nn.Module):
    """A layer that also reads what an earlier layer left for it, past the stream of hidden states."""

    def __init__(self, layer: nn.Module, earlier: nn.Module | None) -> None:
        super().__init__()
        self.layer, self.earlier = layer, earlier
        self.attention_type = getattr(layer, "attention_type", None)
        self.left: Tensor | None = None

    def forward(self, hidden_states: Tensor, **others: Any) -> Tensor:
        output: Tensor = self.layer(hidden_states, **others)
        if isinstance(self.earlier, Talking) and self.earlier.left is not None:
            output = output + self.earlier.left
        self.left = output.detach()
        return output


def test_a_model_whose_layers_talk_across_the_cut_is_refused_and_not_where_they_do_not() -> None:
    for speaker, listener, fits in ((0, 3, False), (1, 2, False), (2, 3, True), (0, 1, True)):
        model = tiny_model()
        layers = layer_list(model)
        layers[speaker] = Talking(layers[speaker], None)
        layers[listener] = Talking(layers[listener], layers[speaker])
        trunk = grow_trunk(model, 2)
        if fits:
            proved(trunk, 64)
        else:
            with pytest.raises(MannersError, match=r"LlamaForCausalLM cannot be (used|split)"):
                proved(trunk, 64)


@pytest.mark.parametrize(
    ("model_type", "overrides", "name"),
    [
        ("bert", {}, "BertLMHeadModel"),
        ("mamba", {}, "MambaForCausalLM"),
        ("lfm2", {"layer_types": ["conv", "full_attention"] * 2}, "Lfm2ForCausalLM"),
        ("recurrent_gemma", {}, "RecurrentGemmaForCausalLM"),
    ],
)
@pytest.mark.parametrize("layers", [2, "all"])
def test_encoders_and_state_spaces_are_refused_by_name(
    model_type: str, overrides: dict[str, Any], name: str, layers: int | Literal["all"]
) -> None:
    with pytest.raises(MannersError, match=name):
        proved(grow_trunk(tiny_model(model_type, **overrides), layers), 64)


SHARING = {
    "llama": True,
    "qwen3": True,
    "gpt2": True,
    "gpt_neox": True,
    "granite": True,
    "mixtral": True,
    "mistral": False,  # windows of 16
    "gemma2": False,
    "bloom": False,  # biases by distance
}


@pytest.mark.parametrize("layers", [2, "all"])
@pytest.mark.parametrize("model_type", some(SHARING, 5))
@torch.no_grad()
def test_responses_share_a_prompt_only_where_that_changes_no_score(
    model_type: str, layers: int | Literal["all"]
) -> None:
    trunk = proved(grow_trunk(tiny_model(model_type), layers), 64)
    assert trunk.compute.shares_prompts is SHARING[model_type]
    branch = ScalarBranch(trunk, torch.Generator().manual_seed(0))
    prompts = [tuple(range(5, 25)), tuple(range(30, 33))]
    rendered = [Rendered(prompts[n % 2], tuple(range(50 + n, 52 + 3 * n))) for n in range(6)]
    batch = pack(rendered, trunk.compute.shares_prompts, 0)
    assert len(batch.ids) == (2 if trunk.compute.shares_prompts else 6)
    scores = branch.scores(trunk.states(batch), batch)
    for score, r in zip(scores, rendered, strict=True):
        hidden = trunk.whole.base_model(input_ids=torch.tensor([r.prompt_ids + r.response_ids])).last_hidden_state
        torch.testing.assert_close(score, branch.scalar(hidden[0, -1])[0], atol=1e-4, rtol=1e-4)


def test_a_model_that_gives_every_token_the_same_logit_proves_nothing_and_is_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    with pytest.raises(MannersError, match="same logit to every token"):
        proved(grow_trunk(model, 2), 64)


def test_the_proof_fits_into_the_shortest_context_that_can_be_set() -> None:
    proved(grow_trunk(tiny_model("gpt2", max_position_embeddings=16), 2), 16)
