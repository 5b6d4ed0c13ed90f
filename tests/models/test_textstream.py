"""Pieces of a text that are given token by token are the text."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from manners.models.textstream import HALF, TextStream
from manners.text import Renderer
from tests.worlds import VOCABULARY, tiny_renderer

TEXTS = st.text(
    st.sampled_from("ab c\n ") | st.characters(min_codepoint=0x20, max_codepoint=0x1FAFF, exclude_categories=["Cs"])
)
"""Spaces in rows, and characters of one to four bytes."""


@cache
def with_byte_fallback() -> Renderer:
    """Build a tokenizer as Llama 2's: a space is part of a token, the first is not the text's, bytes for the rest."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁▁", HALF]
    merges = [("▁", "a"), ("▁", "▁")]
    model = models.BPE({w: i for i, w in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    return Renderer(fast, frozenset((1,)), 64)


@cache
def byte_level() -> Renderer:
    return tiny_renderer()


def pieces(renderer: Renderer, ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    stream, given = TextStream(renderer, stop), list[str]()
    for token in ids:
        given.append(stream.add(token))
        if stream.stopped:
            return given
    return [*given, stream.finish()]


@pytest.mark.parametrize("make", [byte_level, with_byte_fallback])
@given(text=TEXTS)
@example(text="ab ç 🎉🎉  a   b 日本語のテキスト" * 3)
def test_pieces_are_the_text_and_no_character_comes_in_halves(make: type, text: str) -> None:
    renderer: Renderer = make()
    text = text.replace(HALF, "")
    ids = renderer.tokenizer.encode(text, add_special_tokens=False)
    given = pieces(renderer, ids)
    assert "".join(given) == renderer.decode(ids) == text
    assert HALF not in "".join(given)
    assert len(ids) < 2 or given[-1] == "" or text.endswith(given[-1])


@given(ids=st.lists(st.integers(0, VOCABULARY - 1), max_size=80))
def test_pieces_are_the_text_whatever_the_tokens_are(ids: list[int]) -> None:
    renderer = byte_level()  # lone bytes and special tokens among them
    assert "".join(pieces(renderer, ids)) == renderer.decode(ids)


def test_a_piece_comes_as_soon_as_its_character_is_whole() -> None:
    renderer = byte_level()
    ids = renderer.tokenizer.encode("a€b", add_special_tokens=False)
    assert len(ids) == 5 and pieces(renderer, ids) == ["a", "", "", "€", "b", ""]
    assert pieces(renderer, ids[:3]) == ["a", "", "", HALF]  # cut off in its middle


@given(text=TEXTS, bounds=st.tuples(st.integers(0, 30), st.integers(1, 8)))
def test_a_stop_string_ends_the_text_before_it_wherever_tokens_end(text: str, bounds: tuple[int, int]) -> None:
    renderer = with_byte_fallback()
    stop = text[bounds[0] :][: bounds[1]] or "nowhere"
    ids = renderer.tokenizer.encode(text, add_special_tokens=False)
    expected = renderer.decode(ids).partition(stop)[0]
    assert "".join(pieces(renderer, ids, (stop,))) == expected


def test_what_may_be_a_stop_string_waits_until_it_is_none() -> None:
    renderer = byte_level()
    ids = renderer.tokenizer.encode("zqzqx!", add_special_tokens=False)
    assert len(ids) == 6  # a token a character
    assert pieces(renderer, ids, ("zqx",)) == ["", "", "zq", "", ""]
    assert pieces(renderer, ids[:4], ("zqx",)) == ["", "", "zq", "", "zq"]
    assert pieces(renderer, ids, ("!", "qz")) == ["z", "", ""]


def test_a_token_is_named_by_what_it_writes_inside_a_text() -> None:
    renderer = with_byte_fallback()
    vocabulary = renderer.tokenizer.get_vocab()
    told = {text: renderer.token_text(vocabulary[text]) for text in ("▁a", "b", "▁▁", "</s>", "<0xE2>")}
    assert told == {"▁a": " a", "b": "b", "▁▁": "  ", "</s>": "</s>", "<0xE2>": HALF}
