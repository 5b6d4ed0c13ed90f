"""A tokenizer of the text's own: nothing is lost, nothing spelt becomes a control token, and others can name it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from manners.errors import MannersError
from manners.pretrain.vocabulary import BOS, EOS, PAD, carried, encode, ends_of, learn
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


def test_more_entries_than_the_text_has_words_for_are_refused() -> None:
    with pytest.raises(MannersError, match=r"carries a vocabulary of [\d,]+ entries, and 5,000 were asked for"):
        learn(["abc abd"] * 50, 5000, 64)
    assert (carried(0), carried(1_280_000)) == (259, 10_000)


def test_a_tokenizer_with_one_end_begins_with_it() -> None:
    one = PreTrainedTokenizerFast(tokenizer_object=LEARNT.backend_tokenizer, eos_token=EOS)
    assert ends_of(one) == (1, 1) and ends_of(LEARNT) == (0, 1)
    with pytest.raises(MannersError, match="neither BOS nor EOS"):
        ends_of(PreTrainedTokenizerFast(tokenizer_object=LEARNT.backend_tokenizer))
