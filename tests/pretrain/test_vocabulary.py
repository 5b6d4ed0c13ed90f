"""A tokenizer of the text's own: nothing is lost, nothing spelt becomes a control token, and others can name it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from manners.errors import MannersError
from manners.pretrain.vocabulary import BOS, EOS, PAD, carried, digest, encode, ends_of, learn
from tests.pretrain.worlds import KINDS

TEXT = [f"The {kind} fox number {n} jumped over {n * 7} lazy dogs." for n in range(30) for kind in ("red", *KINDS)]
LEARNT = learn(TEXT, 330, 64)


@given(st.text(max_size=60))
def test_every_text_comes_back_to_the_letter(text: str) -> None:
    [ids] = encode(LEARNT, [text])
    assert LEARNT.decode(ids, clean_up_tokenization_spaces=False) == text


def test_what_is_spelt_stays_text() -> None:
    text = f"a{BOS}b {EOS}{PAD}"
    [ids] = encode(LEARNT, [text])
    assert not {0, 1, 2} & set(ids) and LEARNT.decode(ids) == text


def test_the_pre_tokenizer_is_that_of_smollm() -> None:
    # As SmolLM2's tokenizer.json has it, which llama.cpp knows as `smollm`: digits apart, then GPT-2's expression.
    told = json.loads(LEARNT.backend_tokenizer.to_str())["pre_tokenizer"]
    digits, level = told["pretokenizers"]
    assert digits == {"type": "Digits", "individual_digits": True}
    assert (level["type"], level["add_prefix_space"], level["use_regex"]) == ("ByteLevel", False, True)
    [ids] = encode(LEARNT, ["2100"])
    assert len(ids) == 4


def test_it_has_the_entries_that_were_asked_for_and_saves_what_it_is(tmp_path: Path) -> None:
    assert len(LEARNT) == 330 and (LEARNT.bos_token_id, LEARNT.eos_token_id, LEARNT.pad_token_id) == (0, 1, 2)
    LEARNT.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("The red fox")["input_ids"] == [0, *encode(LEARNT, ["The red fox"])[0]], "a text begins with BOS"
    assert len(encode(LEARNT, ["The red fox jumped over"])[0]) < 8, "words of the text are merged"


def test_more_entries_than_the_text_has_words_for_are_not_made_up() -> None:
    assert 259 < len(learn(["abc abd"] * 50, 5000, 64)) < 270
    assert (carried(0), carried(1_280_000)) == (259, 10_000)


def test_the_digest_says_what_a_tokenizer_makes_of_a_text() -> None:
    again, other = learn(TEXT, 330, 64), learn(TEXT[::2], 330, 64)
    assert digest(again) == digest(LEARNT) != digest(other)
    assert digest(again) == digest(LEARNT), "and using it changes nothing"
    swapped = PreTrainedTokenizerFast(tokenizer_object=LEARNT.backend_tokenizer, bos_token=EOS, eos_token=BOS)
    assert digest(swapped) != digest(LEARNT), "nor is another end the same"


def of_a_chat_model(template: str, bos: str | None, eos: str, *more: str) -> PreTrainedTokenizerFast:
    found = PreTrainedTokenizerFast(
        tokenizer_object=copy.deepcopy(LEARNT.backend_tokenizer), bos_token=bos, eos_token=eos
    )
    found.add_special_tokens({"additional_special_tokens": list(more)})
    found.chat_template = template
    return found


TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA_3 = "{{ bos_token }}{% for m in messages %}{{ m.role }}\n{{ m.content }}<|eot_id|>{% endfor %}"
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}"
    "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
REFUSES = "{{ raise_exception('no') }}"


@pytest.mark.parametrize(
    ("template", "tokens", "ends"),
    [
        # SmolLM2's, Qwen 2.5's, Llama 3's and Mistral's way; what refuses; and a chat model without another token.
        (TURNS, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), ("<|endoftext|>", "<|endoftext|>")),
        (TURNS, (None, "<|im_end|>", "<|im_start|>", "<|endoftext|>"), ("<|endoftext|>", "<|endoftext|>")),
        (LLAMA_3, ("<|begin|>", "<|eot_id|>", "<|end_of_text|>"), ("<|begin|>", "<|end_of_text|>")),
        (MISTRAL, ("<s>", "</s>", "<|endoftext|>"), ("<s>", "</s>")),
        (REFUSES, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), ("<|im_start|>", "<|im_end|>")),
        (TURNS, ("<|im_start|>", "<|im_end|>"), ("<|im_start|>", "<|im_end|>")),
    ],
)
def test_what_stands_around_turns_stands_around_no_document(
    template: str, tokens: tuple[str, ...], ends: tuple[str, str]
) -> None:
    chat = of_a_chat_model(template, *tokens)
    assert tuple(chat.convert_ids_to_tokens(list(ends_of(chat)))) == ends


def test_a_tokenizer_with_one_end_begins_with_it() -> None:
    one = PreTrainedTokenizerFast(tokenizer_object=LEARNT.backend_tokenizer, eos_token=EOS)
    assert ends_of(one) == (1, 1) and ends_of(LEARNT) == (0, 1)
    with pytest.raises(MannersError, match="neither BOS nor EOS"):
        ends_of(PreTrainedTokenizerFast(tokenizer_object=LEARNT.backend_tokenizer))
