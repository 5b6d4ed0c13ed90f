"""An exported adapter is what was trained, no more: peft puts it beside the base, and so do we."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer

from manners.errors import MannersError
from manners.models import adapters, lora_folder
from manners.models.branches import Branch
from tests.conftest import some
from tests.models.exchanges import rendered, trained
from tests.worlds import TEMPLATE, tiny_model, tiny_pretrained


@pytest.mark.parametrize("layers", [2, "all"])
@pytest.mark.parametrize("model_type", some(["llama", "qwen3", "gpt2"], 2))
@torch.no_grad()
def test_peft_gives_the_same_logits_from_base_and_adapter(
    tmp_path: Path, model_type: str, layers: int | Literal["all"]
) -> None:
    pretrained = tiny_pretrained(model_type, trainable_layers=layers, lora_rank=3)
    policy = trained(Branch(pretrained.trunk, trainable=True))
    count = lora_folder.write(policy, pretrained, tmp_path / "out", torch.float32, "policy-1", "somebody/base")
    assert count == (4 if layers == "all" else 2) * (4 if model_type == "gpt2" else 7)
    sequence = rendered(pretrained)[1]
    ids = torch.tensor([sequence.prompt_ids + sequence.response_ids])
    ours = policy.assembled(pretrained.trunk)(input_ids=ids).logits
    before = pretrained.trunk.whole(input_ids=ids).logits
    assert (ours - before).abs().max() > 0.05
    with warnings.catch_warnings():  # about its own insides
        warnings.simplefilter("ignore")
        beside = PeftModel.from_pretrained(tiny_model(model_type), tmp_path / "out")
    torch.testing.assert_close(beside(input_ids=ids).logits, ours, atol=1e-5, rtol=1e-5)
    assert adapters.base_of("out", str(tmp_path / "out")) == "somebody/base"
    again, kind = adapters.merged("out", str(tmp_path / "out"), tiny_model(model_type))
    torch.testing.assert_close(again(input_ids=ids).logits, ours, atol=1e-5, rtol=1e-5)
    assert kind == "lora" and AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE


def test_an_adapter_is_in_the_format_that_is_asked_for(tmp_path: Path) -> None:
    pretrained = tiny_pretrained(lora_rank=3)
    policy = trained(Branch(pretrained.trunk, trainable=True))
    lora_folder.write(policy, pretrained, tmp_path / "out", torch.bfloat16, "policy-1", "base")
    assert {t.dtype for t in load_file(tmp_path / "out" / lora_folder.WEIGHTS).values()} == {torch.bfloat16}
    with pytest.raises(MannersError, match="exists already"):
        lora_folder.write(policy, pretrained, tmp_path / "out", torch.float32, "policy-1", "base")


def test_a_number_that_the_format_cannot_hold_is_no_adapter(tmp_path: Path) -> None:
    """Of a folder and of a GGUF file that is refused too; here it became infinite."""
    pretrained = tiny_pretrained(lora_rank=3)
    policy = trained(Branch(pretrained.trunk, trainable=True))
    with torch.no_grad():
        next(matrix for name, matrix in policy.own_tensors().items() if name.endswith(".b")).view(-1)[1] = 1e6
    with pytest.raises(MannersError, match=r"policy-1 has numbers in .*lora_B.weight that float16 cannot hold; use --"):
        lora_folder.write(policy, pretrained, tmp_path / "out", torch.float16, "policy-1", "base")
    assert not list(tmp_path.iterdir())
    lora_folder.write(policy, pretrained, tmp_path / "out", torch.bfloat16, "policy-1", "base")


def test_whole_layers_and_new_tokens_are_no_adapter(tmp_path: Path) -> None:
    pretrained = tiny_pretrained()
    whole = Branch(pretrained.trunk, trainable=True)
    with pytest.raises(MannersError, match=r"policy-1 was trained in whole layers .* --as folder or --as gguf"):
        lora_folder.write(whole, pretrained, tmp_path / "out", torch.float32, "policy-1", "base")
    thin = tiny_pretrained(lora_rank=2)
    given = replace(thin, added=("<|im_start|>",))
    branch = Branch(thin.trunk, trainable=True)
    with pytest.raises(MannersError, match=r"policy-1 has tokens that its base, base, does not .<\|im_start\|>."):
        lora_folder.write(branch, given, tmp_path / "out", torch.float32, "policy-1", "base")
    assert not list(tmp_path.iterdir())
