"""What is kept where a prompt and the responses to it do not fit, against what the tokenizer itself makes of each."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from manners.shorten import SHORT, endings, longest_end, longest_ending
from manners.text import Renderer
from manners.types import Dialogue, FinishReason, Response, Role, Turn
from tests.worlds import BOS, END, END_IDS, NO_SYSTEM_TEMPLATE, TEMPLATE, tiny_renderer, tiny_tokenizer

RENDERERS = ("template", "no system turns", "no template", "no template, with a BOS")


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    match kind:
        case "template":
            return tiny_tokenizer(TEMPLATE)
        case "no system turns":
            return tiny_tokenizer(NO_SYSTEM_TEMPLATE)
    tokenizer = tiny_tokenizer(None)
    if kind.endswith("with a BOS"):
        first = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
        tokenizer.backend_tokenizer.post_processor = first
    return tokenizer


@cache
def renderer_of(kind: str, context: int) -> Renderer:
    return Renderer(tokenizer_of(kind), END_IDS, context)


def whole_ids(kind: str, dialogue: Dialogue) -> tuple[int, ...]:
    """A dialogue as it is where there is room for everything."""
    return renderer_of(kind, 1_000_000).prompt_ids(dialogue)[0]


TEXTS = st.sampled_from(["a", "How long? ", "bread ", "naïve 🥖 ", "<|end|> "]).flatmap(
    lambda word: st.integers(1, 15).map(lambda times: word * times)
)
RESPONSES = st.lists(
    st.builds(Response, st.one_of(st.just(""), TEXTS), st.just("me"), st.sampled_from(FinishReason)),
    min_size=1,
    max_size=4,
)


@st.composite
def prompts(draw: st.DrawFn) -> Dialogue:
    turns = draw(st.lists(TEXTS, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2))
    talk = tuple(Turn(Role.USER if i % 2 == 0 else Role.ASSISTANT, text) for i, text in enumerate(turns))
    return (Turn(Role.SYSTEM, draw(TEXTS)), *talk) if draw(st.booleans()) else talk


@given(st.sampled_from(RENDERERS), st.sampled_from([16, 24, 40, 64, 100]), prompts(), RESPONSES)
def test_all_that_is_compared_sees_one_prompt_and_nothing_that_fits_is_shortened(
    kind: str, context: int, prompt: Dialogue, responses: list[Response]
) -> None:
    renderer = renderer_of(kind, context)
    found = renderer.render_beside(prompt, responses)
    [kept] = {r.prompt_ids for r in found}
    whole_prompt = whole_ids(kind, prompt)
    whole = [renderer.response_ids(response) for response in responses]
    longest = max(map(len, whole))
    if len(whole_prompt) + longest <= context:
        assert kept == whole_prompt
    for r, ids in zip(found, whole, strict=True):
        assert r.prompt_ids and r.response_ids and r.length <= context
        assert r.shortened == ((r.prompt_ids, r.response_ids) != (whole_prompt, ids))
        if len(kept) + len(ids) <= context:
            assert r.response_ids == ids
        else:  # cut as little as can be, never below half the context, before the token that ends it
            assert r.length == context and len(r.response_ids) >= context // 2
            ended = ids[-1] == renderer.end_id
            assert r.response_ids[-1] == (renderer.end_id if ended else ids[len(r.response_ids) - 1])
            assert r.response_ids[:-1] == ids[: len(r.response_ids) - 1]
    # Alone, each sees at least as much of the prompt; and the same of it, where it is the longest.
    alone = [renderer.render(prompt, response) for response in responses]
    assert all(len(one.prompt_ids) >= len(kept) for one in alone)
    assert {one.prompt_ids for one, ids in zip(alone, whole, strict=True) if len(ids) == longest} == {kept}


@settings(max_examples=40)
@given(st.sampled_from(RENDERERS), st.sampled_from([16, 24, 40, 64, 100]), prompts(), RESPONSES)
def test_a_shortened_prompt_is_one_that_the_template_lays_out(
    kind: str, context: int, prompt: Dialogue, responses: list[Response]
) -> None:
    renderer = renderer_of(kind, context)
    kept = renderer.render_beside(prompt, responses)[0].prompt_ids
    whole = whole_ids(kind, prompt)
    longest = max(len(renderer.response_ids(response)) for response in responses)
    room = context - min(longest, max(context // 2, context - len(whole)))
    if whole[0] == BOS:
        assert kept[0] == BOS and kept.count(BOS) == whole.count(BOS)
    system, turns = (prompt[:1], prompt[1:]) if prompt[0].role is Role.SYSTEM else ((), prompt)
    fewer = [whole_ids(kind, system + turns[i:]) for i in range(0, len(turns), 2)]
    if fitting := [ids for ids in fewer if len(ids) <= room]:
        assert kept == fitting[0], "as many turns as fit, and the system turn"
        return
    for before in (system, ()):  # the system turn goes only where nothing of the question fits beside it
        ends = [
            whole_ids(kind, (*before, replace(turns[-1], text=turns[-1].text[at:])))
            for at in range(len(turns[-1].text))
        ]
        if any(len(ids) <= room for ids in ends):
            assert kept in ends
            at = ends.index(kept)
            assert len(kept) <= room and (at == 0 or len(ends[at - 1]) > room)
            return
    assert len(kept) == room and kept[-(room - 1) :] == fewer[-1][-(room - 1) :]


def test_two_responses_of_very_different_lengths_see_the_same_question() -> None:
    # Shortened apart, the short one kept the whole talk, and the long one the end of its last turn.
    talk = (
        Turn(Role.SYSTEM, "Be kind."),
        Turn(Role.USER, "How do I bake bread without yeast?"),
        Turn(Role.ASSISTANT, "Mix flour and water, and wait."),
        Turn(Role.USER, "How long does it take in the oven?"),
    )
    renderer = tiny_renderer(context=100)
    short, long = Response("An hour.", "a", FinishReason.STOP), Response("bread " * 60, "b", FinishReason.STOP)
    apart = [len(renderer.render(talk, response).prompt_ids) for response in (short, long)]
    assert apart[0] > apart[1]
    together = renderer.render_beside(talk, [short, long])
    assert together[0].prompt_ids == together[1].prompt_ids
    assert together[0].prompt_ids[0] == BOS and together[1].response_ids[-1] == END
    said = str(renderer.tokenizer.decode(list(together[0].prompt_ids)))
    assert "Be kind." in said and said.startswith("<s>")
    assert len(together[1].response_ids) == 100 - len(together[1].prompt_ids)


def test_a_response_longer_than_half_the_context_is_whole_where_everything_fits() -> None:
    renderer = tiny_renderer(context=200)
    answer = Response("bread " * 40, "a", FinishReason.STOP)
    ids = renderer.response_ids(answer)
    rendered = renderer.render((Turn(Role.USER, "Hi"),), answer)
    assert len(ids) > 100 and rendered.length < 200
    assert rendered.response_ids == ids and not rendered.shortened


def test_a_question_that_fits_is_whole_where_the_system_turn_beside_it_does_not() -> None:
    renderer = tiny_renderer(context=64)
    question = (Turn(Role.USER, "How do I bake bread?"),)
    answer = Response("Wait.", "a", FinishReason.STOP)
    alone = renderer.render(question, answer)
    assert not alone.shortened
    beside = renderer.render((Turn(Role.SYSTEM, "Be very kind. " * 20), *question), answer)
    assert beside.prompt_ids == alone.prompt_ids


@given(st.text(max_size=50), st.integers(-1, 60))
def test_the_longest_end_is_the_longest(text: str, room: int) -> None:
    ends = [text[at:] for at in range(len(text)) if len(text[at:]) <= room]
    assert longest_end(text, lambda end: len(end) <= room) == (ends[0] if ends else "")


@settings(max_examples=40)
@given(
    kind=st.sampled_from(RENDERERS),
    turns=st.lists(TEXTS, min_size=1, max_size=41).filter(lambda texts: len(texts) % 2),
    system=st.none() | TEXTS,
    room=st.integers(5, 1500),
)
def test_the_ending_that_is_found_is_the_one_that_trying_all_of_them_finds(
    kind: str, turns: list[str], system: str | None, room: int
) -> None:
    talk = tuple(Turn(Role.USER if i % 2 == 0 else Role.ASSISTANT, text) for i, text in enumerate(turns))
    prompt = talk if system is None else (Turn(Role.SYSTEM, system), *talk)
    renderer = renderer_of(kind, 1_000_000)
    tried = [(ending, whole_ids(kind, ending), dropped) for ending, dropped in endings(prompt)]
    expected = next((one for one in tried if len(one[1]) <= room), tried[-1])
    found = longest_ending(renderer._ids, renderer._size, prompt, room)
    assert (found.turns, found.ids, found.dropped) == expected


@pytest.mark.parametrize("room", [100, 300])
@pytest.mark.parametrize("words", [1, 20])
def test_a_long_dialogue_costs_what_is_kept_of_it(words: int, room: int) -> None:
    """Also where its last turn alone fits: then half of the dialogue was laid out first, a second of work."""
    renderer = renderer_of("template", 1_000_000)
    laid_out = counted = 0

    def lay(dialogue: Dialogue) -> tuple[int, ...]:
        nonlocal laid_out
        laid_out += len(dialogue)
        return renderer._ids(dialogue)

    def size(text: str) -> int:
        nonlocal counted
        counted += 1
        return renderer._size(text)

    turns = 1001
    prompt = tuple(Turn(Role.USER if i % 2 == 0 else Role.ASSISTANT, "bread " * (words + i % 7)) for i in range(turns))
    found = longest_ending(lay, size, prompt, room)
    kept = turns - found.dropped
    assert counted <= max(kept, 2 * SHORT) + 2, "turns are counted once, and no more than may fit"
    assert laid_out <= 4 * kept + 2 * SHORT + 6, "and beside that only what fits is laid out, a few times over"
    assert 0 < len(found.ids) <= room < len(renderer._ids(prompt[found.dropped - 2 :]))


def test_who_has_left_is_not_prepared_for() -> None:
    class Left(Exception):
        pass

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise Left

    renderer = renderer_of("template", 1_000_000)
    prompt = tuple(Turn(Role.USER if i % 2 == 0 else Role.ASSISTANT, "a") for i in range(1001))
    with pytest.raises(Left):
        longest_ending(renderer._ids, renderer._size, prompt, 300, check)
