"""A model without a chat template is given one: two tokens, a row for each, and the rest as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from manners.errors import MannersError
from manners.models import versions
from manners.models.branches import Branch
from manners.models.pretrained import load
from manners.settings import ModelSettings
from manners.templates import MARKERS
from manners.types import FinishReason, Response, Role, Turn
from tests.conftest import some
from tests.worlds import ARCHITECTURES, save_tiny, tiny_model

TALK = (Turn(Role.USER, "How do I bake bread?"), Turn(Role.ASSISTANT, "So."), Turn(Role.USER, "Why?"))
WRITTEN = (
    "<s><|im_start|>user\nHow do I bake bread?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
    "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
)


def settings(folder: Path, **changes: Any) -> ModelSettings:
    chosen = {"trainable_layers": 2, **changes}
    return ModelSettings(str(folder), device="cpu", context=128, chat_template="chatml", **chosen)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layers", [2, "all"])
def test_markers_are_tokens_of_their_own_with_rows_of_their_own(tmp_path: Path, tied: bool, layers: Any) -> None:
    folder = save_tiny(tmp_path / "plain", chat_template=None, tie_word_embeddings=tied)
    pretrained = load(settings(folder, trainable_layers=layers))
    tokenizer: Any = pretrained.tokenizer
    whole: Any = pretrained.trunk.whole
    start, end = (tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS)
    assert (start, end) == (320, 321) and pretrained.renderer.end_id == end and not pretrained.renderer.plain
    ids, _ = pretrained.renderer.prompt_ids(TALK)
    assert tokenizer.decode(ids).replace("<s>", "") == WRITTEN.replace("<s>", "")
    assert ids.count(start) == 4 and ids.count(end) == 3
    # What was there is as it was, to the bit; the new rows lie among the old ones, and apart from each other.
    old: Any = tiny_model(tie_word_embeddings=tied)
    for table, before in (
        (whole.get_input_embeddings().weight, old.get_input_embeddings().weight),
        (whole.get_output_embeddings().weight, old.get_output_embeddings().weight),
    ):
        assert table.shape == (322, 32) and torch.equal(table[:320], before)
        spread = before.std(dim=0)
        assert bool(((table[320:] - before.mean(dim=0)).abs() < 5 * spread).all())
        assert float((table[320] - table[321]).norm()) > 0.5 * float(spread.norm())
    assert (whole.get_input_embeddings().weight is whole.get_output_embeddings().weight) is tied
    assert int(whole.config.vocab_size) == 322
    again = load(settings(folder, trainable_layers=layers))
    assert again.trunk.initial_hash == pretrained.trunk.initial_hash, "always the same numbers"
    # A response ends with the marker, and text that spells it does not.
    spelt = pretrained.renderer.response_ids(Response("<|im_end|>", "x", FinishReason.STOP))
    assert spelt[-1] == end and end not in spelt[:-1]


@torch.no_grad()
def test_what_is_exported_has_template_markers_and_rows(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "plain", chat_template=None)
    pretrained = load(settings(folder))
    versions.export_policy(Branch(pretrained.trunk, trainable=True), pretrained, tmp_path / "out")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    messages = [{"role": turn.role.value, "content": turn.text} for turn in TALK]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tuple(ids) == pretrained.renderer.prompt_ids(TALK)[0]
    assert pretrained.renderer.end_id in model.generation_config.eos_token_id
    row = torch.tensor([ids])
    torch.testing.assert_close(model(row).logits, pretrained.trunk.whole(row).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", some(ARCHITECTURES, 5))
def test_any_architecture_grows_or_says_why_not(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "plain", model_type, chat_template=None)
    pretrained = load(settings(folder, trainable_layers=2))
    assert pretrained.renderer.prompt_ids(TALK)[0][-1] < 322 and "new tokens <|im_start|>" in pretrained.note


def test_rows_that_a_model_has_to_spare_are_used(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "roomy", chat_template=None, vocab_size=384)
    whole: Any = load(settings(folder)).trunk.whole
    before: Any = tiny_model(vocab_size=384)
    table, old = whole.get_input_embeddings().weight, before.get_input_embeddings().weight
    assert table.shape == (384, 32) and torch.equal(table[:320], old[:320]) and torch.equal(table[322:], old[322:])
    assert not torch.equal(table[320:322], old[320:322])


def test_a_model_with_a_template_may_be_given_it_too_and_one_of_that_name_is_its_own(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "other")
    assert load(settings(folder)).renderer.prompt_ids(TALK)[0].count(320) == 4
    with pytest.raises(MannersError, match="`chatml` can be given to any model"):
        load(ModelSettings(str(folder), 2, device="cpu", chat_template="chat-ml"))
