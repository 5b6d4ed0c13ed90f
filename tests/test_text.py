"""Dialogues as token ids and back, batches of them, and the masks that finish reasons decide."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

from manners.errors import MannersError
from manners.models.compute import bucket_tokens
from manners.models.packing import pack
from manners.templates import PLAIN_TEMPLATE
from manners.text import (
    Batch,
    Packed,
    Rendered,
    Renderer,
    Segment,
    TooLong,
    collate,
    common_start,
    flat_buckets,
    length_buckets,
)
from manners.types import Dialogue, FinishReason, Response, Role, Turn
from tests.worlds import BOS, END, END_IDS, EOS, NO_SYSTEM_TEMPLATE, START, TEMPLATE, tiny_renderer, tiny_tokenizer

SYSTEM = Turn(Role.SYSTEM, "Be kind.")
TALK = (
    Turn(Role.USER, "How do I bake bread?"),
    Turn(Role.ASSISTANT, "Mix flour and water, and wait."),
    Turn(Role.USER, "How long?"),
)


def messages(dialogue: Dialogue) -> list[dict[str, str]]:
    return [{"role": turn.role.value, "content": turn.text} for turn in dialogue]


def ids_by_library(dialogue: Dialogue, template: str = TEMPLATE) -> tuple[int, ...]:
    """What the tokenizer makes of a dialogue by itself."""
    encoded: Any = tiny_tokenizer(template).apply_chat_template(
        messages(dialogue), tokenize=True, add_generation_prompt=True, return_dict=False
    )
    return tuple(encoded)


# Rendering


@pytest.mark.parametrize("dialogue", [TALK[:1], TALK, (SYSTEM, *TALK)], ids=["one turn", "talk", "system turn"])
def test_a_prompt_is_what_the_tokenizer_itself_renders(dialogue: Dialogue) -> None:
    ids, dropped = tiny_renderer().prompt_ids(dialogue)
    assert ids == ids_by_library(dialogue)
    assert dropped == 0
    assert ids.count(BOS) == 1 and ids[0] == BOS


def test_a_response_ends_with_the_end_of_turn_token_unless_the_length_limit_cut_it_off() -> None:
    renderer = tiny_renderer()
    text_ids = tuple(tiny_tokenizer().encode("An hour.", add_special_tokens=False))
    for reason in (FinishReason.STOP, FinishReason.UNKNOWN):
        assert renderer.response_ids(Response("An hour.", "me", reason)) == (*text_ids, END)
    assert renderer.response_ids(Response("An hour.", "me", FinishReason.LENGTH)) == text_ids
    assert renderer.response_ids(Response("", "me", FinishReason.STOP)) == (END,)


def test_prompt_and_response_together_are_the_dialogue_that_the_template_lays_out() -> None:
    rendered = tiny_renderer().render(TALK, Response("An hour.", "me", FinishReason.STOP))
    whole = tiny_tokenizer().apply_chat_template(
        messages((*TALK, Turn(Role.ASSISTANT, "An hour."))), tokenize=True, return_dict=False
    )
    joined = [*rendered.prompt_ids, *rendered.response_ids]
    assert joined == list(whole)[: len(joined)]
    assert rendered.length == len(joined) and not rendered.shortened
    assert rendered == Rendered(rendered.prompt_ids, rendered.response_ids), "nothing is dropped unless it is said"


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("a\0b")
def test_decoding_gives_the_text_back_exactly_but_for_what_no_store_can_hold(text: str) -> None:
    decoded = RENDERER.decode(RENDERER.response_ids(Response(text, "me", FinishReason.STOP)))
    assert decoded == text.replace("\0", "\ufffd")


RENDERER = tiny_renderer()


def test_spaces_stay_as_the_model_wrote_them_even_where_its_tokenizer_would_tidy_them() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    tokenizer.clean_up_tokenization_spaces = True
    text = "Wait , it 's late ."
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == "Wait, it's late."
    assert Renderer(tokenizer, END_IDS, 256).decode(ids) == text


def test_what_was_drawn_is_read_back_unless_its_text_is_written_in_other_tokens_or_in_none() -> None:
    renderer = tiny_renderer()
    word = tuple(renderer.tokenizer.encode("bread", add_special_tokens=False))
    letters = tuple(token for letter in "bread" for token in renderer.tokenizer.encode(letter))
    assert word != letters and renderer.decode(word) == renderer.decode(letters) == "bread"
    for ids, finish, back in (
        ((*word, END), FinishReason.STOP, True),
        (word, FinishReason.LENGTH, True),
        ((END,), FinishReason.STOP, True),
        (word, FinishReason.STOP, False),  # it does not end
        ((*letters, END), FinishReason.STOP, False),
        ((*word, START, END), FinishReason.STOP, False),  # no text shows the mark
        ((*renderer.tokenizer.encode("\0"), END), FinishReason.STOP, False),  # U+FFFD in its place
    ):
        assert renderer.reads_back(ids, finish) is back, (ids, finish)
    # One that knows "</s>" as its end alone, and drew it in two parts: that is nothing it could read.
    parts = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "</": 2, "s>": 3, "x": 4}, unk_token="<unk>"))
    parts.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=parts, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    renderer = Renderer(tokenizer, frozenset((1,)), 64)
    assert renderer.decode((2, 3)) == "</s>" and renderer.reads_back((4, 1), FinishReason.STOP)
    assert not renderer.reads_back((2, 3, 1), FinishReason.STOP)


def test_a_token_shows_what_it_writes_and_a_special_one_its_name() -> None:
    renderer, vocabulary = tiny_renderer(), tiny_tokenizer().get_vocab()
    [first, *rest] = renderer.tokenizer.encode("é")  # two bytes, each a token that writes no character by itself
    assert rest and renderer.token_text(first) == "\ufffd"
    assert b"".join(map(renderer.token_bytes, (first, *rest))) == "é".encode()
    assert (renderer.token_text(END), renderer.token_bytes(END)) == ("<|end|>", b"<|end|>")
    assert (renderer.token_text(vocabulary["Ġ"]), renderer.token_bytes(vocabulary["Ġ"])) == (" ", b" ")
    assert renderer.token_bytes(*renderer.tokenizer.encode("\0")) == b"\0"


# Too long


def test_whole_turns_are_dropped_from_the_left_and_counted_and_none_begins_with_an_answer() -> None:
    whole, last = len(ids_by_library(TALK)), ids_by_library(TALK[-1:])
    assert tiny_renderer(context=whole).prompt_ids(TALK) == (ids_by_library(TALK), 0)
    # One token short: the first turn goes, and the answer to it, which alone would have been enough, goes with it.
    assert len(ids_by_library(TALK[1:])) < whole
    assert tiny_renderer(context=whole - 1).prompt_ids(TALK) == (last, 2)
    assert tiny_renderer(context=whole).prompt_ids(TALK, reserve=1) == (last, 2)


def test_a_system_turn_is_never_dropped() -> None:
    dialogue = (SYSTEM, *TALK)
    short = ids_by_library((SYSTEM, TALK[-1]))
    assert tiny_renderer(context=len(short)).prompt_ids(dialogue) == (short, 2)
    with pytest.raises(TooLong):
        tiny_renderer(context=len(short) - 1).prompt_ids(dialogue)


def test_a_last_turn_that_does_not_fit_is_refused_with_both_figures_and_the_setting() -> None:
    with pytest.raises(TooLong, match=r"last turn takes \d+ tokens and 7 are reserved.*model\.context is 10"):
        tiny_renderer(context=10).prompt_ids(TALK[-1:], reserve=7)
    with pytest.raises(TooLong, match=r"model\.context is 10; ask for fewer tokens"):  # the shortest would not fit
        tiny_renderer(context=10).prompt_ids(TALK[-1:], reserve=10)
    last = ids_by_library(TALK[-1:])
    assert tiny_renderer(context=len(last) + 7).prompt_ids(TALK, reserve=7) == (last, 2), "it fits to the token"
    with pytest.raises(TooLong):
        tiny_renderer(context=len(last) + 6).prompt_ids(TALK, reserve=7)


@given(
    st.lists(st.sampled_from(["a", "word " * 5, "bread " * 30]), min_size=1, max_size=5).filter(lambda t: len(t) % 2),
    st.sampled_from(["", "yes", "no " * 60]),
    st.sampled_from(FinishReason),
    st.booleans(),
    st.sampled_from([16, 40, 200]),
)
def test_rendering_for_scoring_never_fails_and_always_fits(
    turns: list[str], answer: str, reason: FinishReason, system: bool, context: int
) -> None:
    talk = tuple(Turn(Role.USER if i % 2 == 0 else Role.ASSISTANT, text) for i, text in enumerate(turns))
    renderer = tiny_renderer(context=context)
    response = Response(answer, "me", reason)
    dialogue = (SYSTEM, *talk) if system else talk
    rendered = renderer.render(dialogue, response)
    assert rendered.length <= context
    assert rendered.prompt_ids and rendered.response_ids
    whole = renderer.response_ids(response)
    assert rendered.response_ids[:-1] == whole[: len(rendered.response_ids) - 1]
    fits = len(ids_by_library(dialogue)) + len(whole) <= context
    cut = len(rendered.response_ids) < len(whole)
    assert rendered.shortened == (cut or rendered.prompt_ids != ids_by_library(dialogue)) == (not fits)
    # Its end, where the assistant begins, is always there.
    tail = min(4, len(rendered.prompt_ids))
    assert rendered.prompt_ids[-tail:] == ids_by_library(dialogue)[-tail:]


# Templates


def test_the_template_hash_changes_with_the_template_and_with_nothing_else() -> None:
    base = tiny_renderer().template_hash
    assert tiny_renderer(context=20).template_hash == base
    others = {tiny_renderer(t).template_hash for t in (None, NO_SYSTEM_TEMPLATE, TEMPLATE.replace("\n", " "))}
    assert len({base, *others}) == 4


def test_versions_of_before_still_fit_where_nothing_is_laid_down() -> None:
    def before(text: str, end: int, system: bool) -> str:
        return hashlib.sha256(f"{text}|{end}|{system}".encode()).hexdigest()[:16]

    assert tiny_renderer().template_hash == before(TEMPLATE, END, True)
    assert tiny_renderer(NO_SYSTEM_TEMPLATE).template_hash == before(NO_SYSTEM_TEMPLATE, END, False)
    assert tiny_renderer(None).template_hash == before(PLAIN_TEMPLATE, EOS, True)


def test_a_note_is_there_only_where_there_is_something_to_say() -> None:
    assert tiny_renderer().notes == () and tiny_renderer(None).notes == ()
    [note] = Renderer(tiny_tokenizer(), frozenset({EOS}), 256).notes
    assert note.startswith("answers end with <|end|>")


def test_a_system_turn_that_the_template_refuses_joins_the_first_user_turn() -> None:
    joined = (Turn(Role.USER, f"{SYSTEM.text}\n\n{TALK[0].text}"), *TALK[1:])
    ids, _ = tiny_renderer(NO_SYSTEM_TEMPLATE).prompt_ids((SYSTEM, *TALK))
    assert ids == ids_by_library(joined, NO_SYSTEM_TEMPLATE)


def test_without_a_template_dialogues_are_plain_text_and_end_with_the_end_of_sequence() -> None:
    renderer = tiny_renderer(None)
    assert renderer.plain and not tiny_renderer().plain
    ids, _ = renderer.prompt_ids(TALK[:1])
    assert tiny_tokenizer().decode(list(ids)) == "User: How do I bake bread?\n\nAssistant:"
    assert renderer.end_id == EOS


def with_bos(chat_template: str | None) -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer as Llama's and Gemma's are: it puts a BOS before every text."""
    tokenizer = tiny_tokenizer(chat_template)
    first = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.backend_tokenizer.post_processor = first
    assert tokenizer.encode("x")[0] == BOS
    return tokenizer


@pytest.mark.parametrize("dialogue", [TALK[:1], TALK, (SYSTEM, *TALK)], ids=["one turn", "talk", "system turn"])
@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_tokenizer_that_puts_a_bos_before_texts_gets_exactly_one(template: str | None, dialogue: Dialogue) -> None:
    renderer = Renderer(with_bos(template), END_IDS, 256)
    assert renderer.bos == (BOS,) and tiny_renderer(template).bos == ()
    rendered = renderer.render(dialogue, Response("An hour.", "me", FinishReason.STOP))
    plain = tiny_renderer(template).render(dialogue, Response("An hour.", "me", FinishReason.STOP))
    assert rendered.prompt_ids == ((BOS, *plain.prompt_ids) if template is None else plain.prompt_ids)
    assert rendered.prompt_ids.index(BOS) == 0 and (*rendered.prompt_ids, *rendered.response_ids).count(BOS) == 1
    assert rendered.response_ids == plain.response_ids
    same_hash = renderer.template_hash == tiny_renderer(template).template_hash
    assert same_hash == (template is not None), "only the plain layout is another one"
    assert (renderer.end_id, renderer.pad_id) == (tiny_renderer(template).end_id, tiny_renderer(template).pad_id)


def test_the_end_of_turn_token_is_the_one_that_the_template_uses() -> None:
    assert tiny_renderer().end_id == END
    assert Renderer(tiny_tokenizer(TEMPLATE.replace("<|end|>", "</s>")), END_IDS, 256).end_id == EOS


def test_two_bos_tokens_are_refused() -> None:
    with pytest.raises(MannersError, match="two BOS tokens"):
        tiny_renderer("{{ '<s>' }}" + TEMPLATE)


def test_a_tokenizer_that_can_end_nothing_is_refused() -> None:
    tokenizer = tiny_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(MannersError, match="no end-of-sequence token"):
        Renderer(tokenizer, frozenset(), 256)


@pytest.mark.parametrize("pad_token", ["<pad>", "</s>", "<|end|>", None])
def test_the_pad_id_ends_nothing_and_begins_nothing(pad_token: str | None) -> None:
    renderer = Renderer(tiny_tokenizer(pad_token=pad_token), END_IDS, 256)
    assert renderer.pad_id not in {BOS, EOS, START, END}


# Batches

sequences = st.lists(
    st.tuples(
        st.lists(st.integers(1, 99), min_size=1, max_size=7), st.lists(st.integers(1, 99), min_size=1, max_size=6)
    ).map(lambda pair: Rendered(tuple(pair[0]), tuple(pair[1]))),
    min_size=1,
    max_size=5,
)


def rows_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Take a batch apart by its masks alone."""
    width = batch.prompt_width
    return [
        (ids[:width][attend[:width]].tolist(), ids[width:][attend[width:]].tolist())
        for ids, attend in zip(batch.ids, batch.attend, strict=True)
    ]


@given(sequences, st.sampled_from([0, 1, 50]))
def test_a_batch_holds_every_sequence_whole_and_its_masks_never_look_at_ids(
    rendered: list[Rendered], pad_id: int
) -> None:
    batch = collate(rendered, pad_id)
    assert rows_of(batch) == [(list(r.prompt_ids), list(r.response_ids)) for r in rendered]
    for row, r in enumerate(rendered):
        assert batch.attend[row, batch.prompt_width - 1] and batch.attend[row, batch.prompt_width]  # they meet here
        assert batch.positions[row][batch.attend[row]].tolist() == list(range(r.length))
        assert batch.keep[row].sum() == len(r.response_ids)
        assert batch.response_ids[row, batch.last[row]] == r.response_ids[-1]
        assert bool(batch.keep[row, batch.last[row]]) and not batch.keep[row, int(batch.last[row]) + 1 :].any()
    assert (batch.ids[~batch.attend] == pad_id).all()
    packed = pack(rendered, True, pad_id)
    for one in (batch, packed):
        assert one.ids[one.ends].tolist() == [r.response_ids[-1] for r in rendered]


def test_a_segment_stands_behind_as_many_tokens_as_its_parts_have() -> None:
    assert Segment(9, 12, ((0, 2), (3, 7))).lead == 6 and Segment(9, 12).lead == 0
    some = torch.zeros(1, 1)
    assert Packed(some, some, some, ()).common == Batch(some, some, 0).common == 0


@given(sequences, st.data())
def test_choosing_rows_and_trimming_change_no_sequence(rendered: list[Rendered], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(rendered) - 1), min_size=1))
    batch = collate(rendered, 0)
    chosen = batch.rows(index)
    trimmed, columns = chosen.trim()
    expected = [(list(rendered[i].prompt_ids), list(rendered[i].response_ids)) for i in index]
    assert rows_of(chosen) == rows_of(trimmed) == expected
    assert torch.equal(trimmed.ids, chosen.ids[:, columns])
    assert trimmed.ids.shape == collate([rendered[i] for i in index], 0).ids.shape  # nothing is left to cut


@given(st.lists(st.integers(1, 3000), max_size=30), st.sampled_from(["cpu", "cuda"]))
def test_buckets_are_a_partition_with_the_longest_first_and_of_limited_size(lengths: list[int], device: str) -> None:
    limit = {"cpu": 1024, "cuda": 4096}[device]

    def wasted(bucket: list[int]) -> bool:
        tokens = len(bucket) * lengths[bucket[0]]
        return tokens - sum(lengths[i] for i in bucket) > max(64, tokens / 8)

    buckets = length_buckets(lengths, bucket_tokens(torch.device(device)))
    flat = [index for bucket in buckets for index in bucket]
    assert sorted(flat) == list(range(len(lengths)))
    assert all(len(bucket) == 1 or len(bucket) * lengths[bucket[0]] <= limit for bucket in buckets)
    for bucket, following in pairwise(buckets):
        assert (len(bucket) + 1) * lengths[bucket[0]] > limit or wasted([*bucket, following[0]])
    assert not any(wasted(bucket) for bucket in buckets)
    assert [lengths[index] for index in flat] == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    ("lengths", "limit", "sizes"),
    [
        ([100, 36], 9999, [2]),  # 64 tokens of padding
        ([100, 35], 9999, [1, 1]),
        ([800, 600], 9999, [2]),  # 200 of 1,600
        ([800, 599], 9999, [1, 1]),
        ([50, 50], 100, [2]),
        ([50, 50], 99, [1, 1]),
        ([300, 100, 36], 9999, [1, 2]),  # what is padded is counted anew in each group
        ([300, 268, 268], 9999, [3]),
        ([300, 250, 230], 9999, [2, 1]),  # 120 of 900 together, of which 112.5 may be
    ],
)
def test_what_is_padded_by_hand(lengths: list[int], limit: int, sizes: list[int]) -> None:
    assert [len(bucket) for bucket in length_buckets(lengths, limit)] == sizes


@given(st.lists(st.integers(1, 20), max_size=30))
def test_flat_buckets_keep_the_order_and_take_as_much_as_fits(lengths: list[int]) -> None:
    limit = 15
    buckets = flat_buckets(lengths, limit)
    assert [index for bucket in buckets for index in bucket] == list(range(len(lengths)))
    sizes = [sum(lengths[index] for index in bucket) for bucket in buckets]
    assert all(len(bucket) == 1 or size <= limit for bucket, size in zip(buckets, sizes, strict=True))
    assert all(size + lengths[after[0]] > limit for size, after in zip(sizes, buckets[1:], strict=False))


@given(st.lists(st.integers(1, 3), max_size=20), st.lists(st.lists(st.integers(1, 3), max_size=9), min_size=1))
def test_what_prompts_begin_with_in_common_leaves_each_a_token(beginning: list[int], ends: list[list[int]]) -> None:
    prompts = [tuple(beginning + end) for end in ends if beginning + end] or [(1,)]
    lengths = [n for n in range(8, min(map(len, prompts))) if len({prompt[:n] for prompt in prompts}) == 1]
    assert common_start(prompts) == max(lengths, default=0)
    for batch in (
        collate([Rendered(p, (4,)) for p in prompts], 0),
        pack([Rendered(p, (4,)) for p in prompts], True, 0),
    ):
        assert batch.common == batch.to(torch.device("cpu")).common == max(lengths, default=0)
        if isinstance(batch, Batch):
            assert batch.rows([0]).trim()[0].common == batch.common


def test_masks_are_the_same_on_any_device_and_keep_is_never_given_by_hand() -> None:
    batch = collate([Rendered((5, 6), (7,))], 0)
    assert torch.equal(batch.to(torch.device("cpu")).keep, batch.keep)
    make: Callable[..., object] = Batch
    with pytest.raises(TypeError):
        make(batch.ids, batch.attend, 2, keep=batch.keep)
