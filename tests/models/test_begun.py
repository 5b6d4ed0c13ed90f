"""An answer that was begun is continued, has what the context leaves, and says its bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from manners.errors import MannersError
from manners.models.requests import GenerationRequest
from manners.models.textstream import HALF, TextStream
from manners.text import Renderer
from manners.types import FinishReason
from tests.models.test_batch import ENDLESS, alone, said, world
from tests.models.test_textstream import TEXTS, byte_level, with_byte_fallback

TEXTS_ASKED = ("a train", "bread", "how long?", "evening")


def test_the_likeliest_answer_goes_on_alike_wherever_it_is_taken_up() -> None:
    renderer, tried = world().renderer, 0
    for text in TEXTS_ASKED:
        asked = GenerationRequest(said(text), 24, seed=0, temperature=0.0, logprobs=0)
        whole = alone(asked)
        raw = [token.chosen.raw for token in whole.logprobs[0]]
        for count in range(1, 24):
            begun = b"".join(raw[:count]).decode(errors="replace")
            if HALF in begun or [renderer.token_bytes(one) for one in renderer.text_ids(begun)] != raw[:count]:
                continue  # these tokens are not how such a text is written
            heard = alone(replace(asked, max_tokens=24 - count, seed=1, begun=begun))
            assert heard.texts.get(0, "") == whole.texts[0][len(begun) :]
            assert heard.done[0].prompt_tokens == whole.done[0].prompt_tokens + count
            assert heard.done[0].completion_tokens == whole.done[0].completion_tokens - count
            tried += 1
    assert tried > 4, "or this shows nothing"


@pytest.mark.parametrize("make", [byte_level, with_byte_fallback])
@given(text=TEXTS, share=st.floats(0, 1))
@example(text="ab ç 🎉🎉  a   b 日本語のテキスト" * 3, share=0.3)
@example(text="a b a b", share=0.5)
def test_what_goes_on_is_the_rest_of_the_text_spaces_included(make: type, text: str, share: float) -> None:
    renderer: Renderer = make()
    ids = renderer.tokenizer.encode(text.replace(HALF, ""), add_special_tokens=False)
    count = round(share * len(ids))
    while HALF in (begun := renderer.decode(ids[:count])):
        count -= 1
    stream = TextStream(renderer, (), ids[:count])
    given = [stream.add(token) for token in ids[count:]]
    assert begun + "".join([*given, stream.finish()]) == renderer.decode(ids)


@pytest.mark.parametrize(("make", "before"), [(byte_level, ""), (with_byte_fallback, " ")])
@given(text=TEXTS)
@example(text="ç🎉日本語\0\x7f\xad\ufffd")
def test_the_bytes_of_tokens_are_the_bytes_of_their_text(make: type, before: str, text: str) -> None:
    renderer: Renderer = make()
    ids = renderer.tokenizer.encode(text, add_special_tokens=False)
    first = before if ids else ""  # a token writes it in the middle of a text
    assert b"".join(map(renderer.token_bytes, ids)) == (first + text).encode()


def test_special_tokens_have_their_names_bytes() -> None:
    renderer = with_byte_fallback()
    assert renderer.token_bytes(renderer.end_id) == b"</s>"
    assert renderer.token_bytes(renderer.tokenizer.get_vocab()["<0x80>"]) == b"\x80"


def test_an_answer_without_a_limit_has_what_the_prompt_leaves_of_the_context() -> None:
    context = world().renderer.context
    done = alone(replace(ENDLESS, max_tokens=5, open_ended=True, begun="the weather is")).done[0]
    assert done.finish_reason is FinishReason.LENGTH
    assert done.prompt_tokens + done.completion_tokens == context
    # Also where less is left than an answer is meant to get; whoever names that length is refused.
    done = alone(replace(ENDLESS, max_tokens=context, open_ended=True)).done[0]
    assert done.prompt_tokens + done.completion_tokens == context
    with pytest.raises(MannersError, match=r"model\.context"):
        alone(replace(ENDLESS, max_tokens=context))
