"""Tokens that a model has no row for: a pad or a word goes, what is needed is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer

from manners.errors import MannersError
from manners.models import versions
from manners.models.branches import Branch
from manners.models.pretrained import Pretrained, load
from manners.settings import ModelSettings
from manners.types import Response, Role, Turn
from tests.conftest import some
from tests.worlds import TEMPLATE, VOCABULARY, save_tiny, tiny_model, tiny_tokenizer

WORDS = "bake bread with [PAD] and yeast <|im_start|> at noon"


def saved(folder: Path, tokens: list[Any], template: str | None = TEMPLATE, **special: Any) -> ModelSettings:
    """A folder whose tokenizer has tokens beyond the 320 rows of its model."""
    tokenizer = tiny_tokenizer(template, pad_token=None if "pad_token" in special else "<pad>")
    tokenizer.add_tokens(tokens)
    tokenizer.add_special_tokens(special)
    save_tiny(folder)
    tokenizer.save_pretrained(folder)
    assert len(AutoTokenizer.from_pretrained(folder)) > VOCABULARY
    return ModelSettings(name=str(folder), trainable_layers=2, device="cpu", context=64)


def rendered(loaded: Pretrained) -> tuple[int, ...]:
    exchange = loaded.renderer.render((Turn(Role.USER, WORDS),), Response(WORDS, "x"))
    return exchange.prompt_ids + exchange.response_ids


CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "[PAD]": ([], {"pad_token": "[PAD]"}),
    "yeast": (["yeast"], {}),
    "<|im_start|>": ([AddedToken("<|im_start|>", special=True)], {}),
    "<mask>": ([], {"mask_token": "<mask>"}),
    "[PAD], yeast": (["yeast"], {"pad_token": "[PAD]"}),
}


@pytest.mark.parametrize("gone", some(CASES, 2))
def test_what_has_no_row_is_left_out_and_said(tmp_path: Path, gone: str) -> None:
    tokens, special = CASES[gone]
    plain = load(ModelSettings(name=str(save_tiny(tmp_path / "plain")), trainable_layers=2, device="cpu", context=64))
    loaded = load(saved(tmp_path / "model", tokens, **special))
    assert loaded.note == f"its tokenizer without tokens that the model has no row for: {gone}"
    assert rendered(loaded) == rendered(plain), "texts are read as the model learnt to read them"
    assert max(*loaded.tokenizer.get_vocab().values(), loaded.renderer.pad_id) < VOCABULARY
    assert loaded.renderer.decode(loaded.renderer.text_ids(WORDS)) == WORDS


@torch.no_grad()
def test_an_export_has_a_row_for_every_token(tmp_path: Path) -> None:
    loaded = load(saved(tmp_path / "model", ["yeast"], pad_token="[PAD]"))
    versions.export_policy(Branch(loaded.trunk, trainable=False), loaded, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = torch.tensor([tokenizer.encode(WORDS)])
    assert str(tokenizer.decode(ids[0], skip_special_tokens=True)).strip() == WORDS
    assert torch.isfinite(AutoModelForCausalLM.from_pretrained(tmp_path / "out")(input_ids=ids).logits).all()


@pytest.mark.parametrize(
    ("tokens", "template", "special", "token"),
    [
        ([AddedToken("<|im_start|>", special=True)], TEMPLATE.replace("<|start|>", "<|im_start|>"), {}, "<|im_start|>"),
        (
            ["<|user|>"],
            TEMPLATE.replace("'<|start|>' + message['role']", "'<|' + message['role'] + '|>'"),
            {},
            "<|user|>",
        ),
        ([], TEMPLATE, {"eos_token": "<|stop|>"}, "<|stop|>"),
        (["<think>"], TEMPLATE + "{% if think %}{{ '<think>' }}{% endif %}", {}, "<think>"),
    ],
)
def test_what_a_template_writes_or_an_answer_ends_with_must_have_a_row(
    tmp_path: Path, tokens: list[Any], template: str, special: dict[str, Any], token: str
) -> None:
    with pytest.raises(MannersError) as refused:
        load(saved(tmp_path / "model", tokens, template, **special))
    assert f"has no row for {token} (token 320, embeddings of 320)" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    tiny_model(vocab_size=300).save_pretrained(folder)
    with pytest.raises(
        MannersError, match="a tokenizer of 320 tokens and embeddings of 300: they are not of one model"
    ):
        load(ModelSettings(name=str(folder), trainable_layers=2, device="cpu", context=64))
