"""Chat templates as people have them: several by name, with arguments, reading the clock, refusing, or no templates."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from manners.errors import MannersError
from manners.loop.laid_out import at_hand
from manners.models.versions import exported_tokenizer
from manners.settings import ModelSettings
from manners.template_files import of_folder
from manners.templates import NEVER, PLAIN_TEMPLATE, Template, made, messages_of
from manners.text import Renderer
from manners.turns import FIRST, template_of
from manners.types import Dialogue, FinishReason, Role, Turn
from tests.families import FAMILIES, tokenizer_of
from tests.test_families import TALKS, renderer_of
from tests.worlds import END, END_IDS, EOS, NO_SYSTEM_TEMPLATE, TEMPLATE, tiny_tokenizer

USER, ASSISTANT, SYSTEM = Role.USER, Role.ASSISTANT, Role.SYSTEM
TOOL = TEMPLATE.replace("<s>", "")


def plain(template: str, dialogue: Dialogue, **variables: Any) -> str:
    """What transformers itself makes of a template."""
    rendered: Any = render_jinja_template([messages_of(dialogue)], chat_template=template, **variables)
    return str(rendered[0][0])


# 1. Several named templates


@pytest.mark.parametrize("shape", ["list", "dict", "files", "legacy"])
def test_of_several_templates_the_default_is_taken_or_the_one_that_is_named(tmp_path: Path, shape: str) -> None:
    several = {"default": TEMPLATE, "tool_use": TOOL}
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = several
    tokenizer.save_pretrained(tmp_path, save_jinja_files=shape != "legacy")
    listed = [{"name": name, "template": text} for name, text in several.items()]
    found = {"list": listed, "dict": several}.get(shape) or of_folder(tmp_path)[0]
    assert found
    default, other = made(found, {}), made(found, {}, wanted="tool_use")
    assert (default.source, other.source) == (TEMPLATE, TOOL)
    assert default.note == "chat template `default`, of default, tool_use" and "`tool_use`" in other.note
    assert default.text == TEMPLATE, "where nothing is laid down in it, it stays as it is"


def test_a_template_may_come_from_a_file_and_only_a_text_is_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(TOOL, encoding="utf-8")
    brought: tuple[object, ...] = (TEMPLATE, None, {"default": TEMPLATE})
    for found in brought:
        assert made(found, {}, wanted=str(file)).source == TOOL
    assert made({"only": TEMPLATE}, {}).note == "chat template `only`, of only"
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    refused: list[tuple[object, str | None, str]] = [
        (
            {"rag": TEMPLATE, "tool_use": TOOL},
            None,
            "several chat templates, rag, tool_use, and none is called default",
        ),
        ({"default": TEMPLATE}, "rag", "model.chat_template is rag, which is neither a file nor a template here"),
        (None, "default", "neither a file nor a template here: the model has none"),
        (TEMPLATE, str(tmp_path / "latin"), "no text in UTF-8"),
        ({"default": 5}, None, "chat template default is no text but int"),
        (["text"], None, "list of chat templates is damaged"),
        ([{"name": "default"}], None, "list of chat templates is damaged"),
        (5, None, "is no text but int"),
        ("", None, "writes nothing of what a user says"),
        (str({"default": "x"}), None, "writes nothing of what a user says"),
        ("{% for message in messages %}", None, "cannot be used: Unexpected end of template"),
        ("{{ nothing.at.all }}", None, "the chat template cannot be used"),
        ("{{ messages[0]['content'] + 5 }}", None, "the chat template fails"),
    ]
    for found, wanted, words in refused:
        with pytest.raises(MannersError, match=words) as caught:
            made(found, {}, wanted=wanted)
        assert "\n" not in str(caught.value)


# 3. Arguments


ANY = st.characters(exclude_categories=["Cs"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(-9, 9)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\"'", max_size=2), inner, max_size=3),
    max_leaves=5,
)


@given(JSON)
def test_arguments_are_baked_in_and_read_as_if_they_were_passed(value: object) -> None:
    source = (
        "\n {% macro m() %}{{ x | tojson }}{% endmacro %}{% for m in messages %}{{ m.content }}{% endfor %}|{{ m() }}\n"
    )
    source = source.replace("for m in", "for one in").replace("m.content", "one.content")
    dialogue = (Turn(USER, "hi"),)
    template = made(source, {}, arguments={"x": value})
    assert template.render(messages_of(dialogue)) == plain(template.text, dialogue) == plain(source, dialogue, x=value)


def test_arguments_are_part_of_what_versions_agree_on_and_unknown_ones_are_refused() -> None:
    qwen = FAMILIES["qwen-3"]
    thinking, silent = renderer_of(qwen), renderer_of(FAMILIES["qwen-3-silent"])
    assert thinking.template_hash != silent.template_hash
    assert "enable_thinking = false" in silent.template.text
    for name in ("enable_thinkin", "messages"):
        with pytest.raises(
            MannersError, match=f"sets {name}, which this chat template does not take; it takes enable_th"
        ):
            made(qwen.template, {}, arguments={name: False})
    with pytest.raises(MannersError, match="the model has no chat template to read it"):
        made(None, {}, arguments={"x": 1})


# 4. The clock


FORMATS = "%A %a %d %b %B %m %y %Y %H:%M:%S %j %-d/%-m %x %% %%d %U %c"


@pytest.mark.parametrize("day", [date(2026, 3, 5), date(2025, 12, 31)])
def test_a_template_is_told_one_date_in_any_format(day: date) -> None:
    source = "{% if strftime_now is defined %}{% set now = strftime_now('" + FORMATS + "') %}{% endif %}"
    source += (
        "{% macro m(f) %}{{ strftime_now(f) }}{% endmacro %}{{ now }}|{{ m('%d' ~ ' %Y') }}{{ messages[0].content }}"
    )
    template = made(source, {}, day=lambda: day)
    wanted = datetime(day.year, day.month, day.day, tzinfo=UTC).strftime(f"{FORMATS}|%d %Y") + "hi"
    assert template.render(messages_of((Turn(USER, "hi"),))) == wanted
    assert plain(template.text, (Turn(USER, "hi"),)) == wanted, "and in plain transformers, on any day"
    assert template.note == f"the chat template tells the date, which stays {day}"
    assert made(source, {}, day=lambda: NEVER).identity == template.identity, "versions agree, the date apart"


def test_what_is_laid_down_stays_when_an_export_is_the_next_model() -> None:
    source = FAMILIES["llama-3.2"].template
    first = made(source, {"bos_token": "<s>"}, day=lambda: date(2026, 3, 5))
    again = made(first.text, {"bos_token": "<s>"}, day=lambda: date(2027, 1, 1))
    assert again.text == first.text and again.note == "" and not again.reads_clock
    folding = made(NO_SYSTEM_TEMPLATE, {})
    assert made(folding.text, {}).text == folding.text, "system turns are folded once"


def test_marks_of_what_an_assistant_wrote_are_laid_out_as_what_stands_between_them() -> None:
    marked = TEMPLATE.replace("in messages %}", "in messages %}{% generation %}")
    marked = marked.replace("{% endfor %}", "{% endgeneration %}{% endfor %}")
    assert made(marked, {}).render(messages_of(TALKS["talk"])) == made(TEMPLATE, {}).render(messages_of(TALKS["talk"]))


def test_only_a_template_that_reads_the_clock_asks_for_the_day() -> None:
    def day() -> date:
        raise AssertionError

    assert made(TEMPLATE, {}, day=day).text == TEMPLATE


# 5. What a template refuses, and what it drops


ODD = {
    "two user turns in a row": ((USER, "a"), (USER, "b")),
    "two assistant turns in a row": ((USER, "a"), (ASSISTANT, "b"), (ASSISTANT, "c"), (USER, "d")),
    "an assistant turn first": ((ASSISTANT, "a"), (USER, "b")),
    "a system turn in the middle": ((USER, "a"), (ASSISTANT, "b"), (SYSTEM, "c"), (USER, "d")),
    "a system turn alone": ((SYSTEM, "a"),),
}


@pytest.mark.parametrize("shape", ODD)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_dialogue_is_laid_out_whole_or_refused_with_the_reason(name: str, shape: str) -> None:
    template = renderer_of(FAMILIES[name]).template
    dialogue = tuple(Turn(role, f"so{text}so") for role, text in ODD[shape])
    try:
        text = template.render(messages_of(dialogue))
    except MannersError as refused:
        assert str(refused).startswith(f"{shape}, which the chat template refuses (")
        assert template.objection(dialogue) == str(refused)
        return
    if all(turn.text in text for turn in dialogue):
        assert template.objection(dialogue) == ""
    else:
        assert template.objection(dialogue).startswith(f"{shape}, of which the chat template drops the ")


def test_usual_dialogues_are_laid_out_by_every_family() -> None:
    for family in FAMILIES.values():
        assert [renderer_of(family).template.objection(talk) for talk in TALKS.values()] == [""] * len(TALKS)


def test_a_system_turn_that_is_dropped_without_a_word_joins_the_first_user_turn_and_that_is_said() -> None:
    dropping = TEMPLATE.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
    )
    for source, verb in ((dropping, "drops"), (NO_SYSTEM_TEMPLATE, "refuses")):
        template = made(source, {})
        assert template.note == f"the chat template {verb} system turns: they join the first user turn"
        text = template.render(messages_of((Turn(SYSTEM, "Be kind."), Turn(USER, "hi"))))
        assert "<|start|>user\nBe kind.\n\nhi<|end|>" in text


def test_a_template_that_cuts_turns_short_is_none() -> None:
    for short in ("message['content'][:4000]", "message['content'] | truncate(9000)"):
        source = TEMPLATE.replace("message['content']", short)
        assert source != TEMPLATE
        with pytest.raises(MannersError, match="the chat template cuts off the end of what a user says where that is"):
            made(source, {})


def test_a_dialogue_of_which_a_turn_would_be_lost_is_refused_before_it_is_laid_out() -> None:
    only_users = TEMPLATE.replace(
        "{% for message in messages %}", "{% for message in messages if loop.index0 % 2 == 0 %}"
    )
    only_users = TEMPLATE.replace(
        "{{ '<|start|>'", "{% if message.role == 'assistant' %}{% continue %}{% endif %}{{ '<|start|>'"
    )
    renderer = Renderer(tiny_tokenizer(only_users), END_IDS, 256)
    with pytest.raises(MannersError, match="of which the chat template drops the assistant turn without a word"):
        renderer.prompt_ids((Turn(USER, "a"), Turn(ASSISTANT, "b"), Turn(USER, "c")))
    assert renderer.prompt_ids((Turn(USER, "a"),))


@pytest.mark.parametrize(
    ("order", "talk", "refusal"),
    [
        ("messages | sort(attribute='role', reverse=true)", "uau", "moves the user turn"),
        ("messages[-1:] + messages[:-1]", "uau", "moves the user turn"),
        (
            "messages | selectattr('role', 'eq', 'system') | list"
            " + messages | rejectattr('role', 'eq', 'system') | list",
            "uasu",
            "",
        ),
        ("messages[1:-1] + messages[:1] + messages[-1:]", "suau", ""),
    ],
)
def test_a_dialogue_whose_turns_would_change_places_is_refused(order: str, talk: str, refusal: str) -> None:
    who = {"u": USER, "a": ASSISTANT, "s": SYSTEM}
    moving = made(TEMPLATE.replace("in messages %}", f"in {order} %}}", 1), {})
    dialogue = tuple(Turn(who[letter], f"{letter}{place}") for place, letter in enumerate(talk))
    assert (refusal in moving.objection(dialogue)) if refusal else moving.objection(dialogue) == ""


# What a folder says is what its tokenizer says


@pytest.mark.parametrize("name", FAMILIES)
def test_a_template_is_the_same_by_a_models_files_alone(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    tokenizer.save_pretrained(tmp_path)
    found = at_hand(ModelSettings(name=str(tmp_path), template_arguments=family.arguments))
    if family.template is None:
        assert found is None
        return
    assert found is not None
    whole = template_of(tokenizer, None, family.arguments, lambda: NEVER)
    for talk in TALKS.values():
        assert (
            found.render(messages_of(talk))
            == whole.render(messages_of(talk))
            == plain(whole.text, talk, add_generation_prompt=True, **tokenizer.special_tokens_map)
        )


def test_files_that_are_damaged_or_not_there_are_one_sentence_or_nothing(tmp_path: Path) -> None:
    assert at_hand(ModelSettings(name="nobody/no-such-model")) is None
    assert at_hand(ModelSettings(name="no such model!")) is None
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(MannersError, match="the chat template cannot be read"):
        at_hand(ModelSettings(name=str(tmp_path)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}), encoding="utf-8")
    found = at_hand(ModelSettings(name=str(tmp_path)))
    assert found is not None and found.source == TEMPLATE


def test_the_plain_layout_stands_in_with_a_bos_where_texts_have_one() -> None:
    assert made(None, {}) == Template(PLAIN_TEMPLATE, {}, plain=True)
    assert made(None, {}, bos=True).source == "{{ bos_token }}" + PLAIN_TEMPLATE


# 2. Where a turn ends


@pytest.mark.parametrize("special", [True, False])
def test_an_answer_ends_with_what_the_template_closes_a_turn_with_though_no_file_names_it(special: bool) -> None:
    tokenizer = tiny_tokenizer()
    if not special:
        tokenizer.add_tokens(["<|done|>"])
        tokenizer.chat_template = TEMPLATE.replace("<|end|>", "<|done|>")
    end = END if special else tokenizer.convert_tokens_to_ids("<|done|>")
    renderer = Renderer(tokenizer, frozenset({EOS}), 256)
    assert renderer.end_id == end and renderer.end_ids == {EOS, end}
    assert renderer.notes == (
        f"answers end with {tokenizer.convert_ids_to_tokens(end)}, with which the chat template closes a turn",
    )
    assert Renderer(tokenizer, frozenset({EOS, end}), 256).notes == ()


def test_a_turn_that_is_closed_only_before_another_still_ends_an_answer() -> None:
    between = TEMPLATE.replace("'<|end|>\\n'", "('' if loop.last else '<|end|>\\n')")
    assert Renderer(tiny_tokenizer(between), frozenset({EOS}), 256).end_id == END


def test_a_token_that_opens_a_turn_too_ends_an_answer_where_the_files_say_so() -> None:
    glm = "{% for m in messages %}<|{{ 'start' if m.role == 'user' else m.role }}|>{{ m.content }}{% endfor %}"
    start: Any = tiny_tokenizer().convert_tokens_to_ids("<|start|>")
    assert Renderer(tiny_tokenizer(glm), frozenset({EOS, start}), 256).end_id == start
    assert Renderer(tiny_tokenizer(glm), frozenset({EOS}), 256).end_id == EOS


def test_what_a_tokenizer_cannot_write_ends_no_answer() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "x": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    renderer = Renderer(tokenizer, frozenset({1}), 256)
    assert 0 in renderer.prompt_ids((Turn(Role.USER, "x"),))[0], "a line break, say"
    assert renderer.end_id == 1 and renderer.end_ids == {1}


# 2. Where an answer begins

HEADER = "<|start|>assistant\n"
NO_HEADER = "{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% endfor %}"
HALF_A_HEADER = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|end|>{% endif %}{{ '\n' + m.content }}"
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
TEXT_HEADER = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}\n"


@pytest.mark.parametrize(
    ("source", "opens"), [(NO_HEADER, HEADER), (HALF_A_HEADER, "<|end|>\n"), (TEXT_HEADER, "assistant:")]
)
def test_an_answer_begins_as_the_template_begins_one_where_it_writes_less_when_asked(source: str, opens: str) -> None:
    tokenizer = tiny_tokenizer(source)
    renderer = Renderer(tokenizer, frozenset({EOS, END}), 256)
    assert renderer.template.opens == opens and repr(opens) in renderer.notes[0]
    talk = messages_of((Turn(Role.USER, "bread?"), Turn(Role.ASSISTANT, "ANSWER")))
    whole = str(tokenizer.apply_chat_template(talk, tokenize=False))
    before = whole[: whole.index("ANSWER")].rstrip(" ")
    assert renderer.template.render(talk[:1]) == before
    exported = exported_tokenizer(renderer)
    assert exported.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True) == before
    assert str(exported.apply_chat_template(talk, tokenize=False)).startswith(before)
    other = Renderer(
        tiny_tokenizer(source + "{% if add_generation_prompt %}{{ '' }}{% endif %}"), frozenset({EOS}), 256
    )
    assert other.template.opens == opens and other.template_hash != renderer.template_hash


@pytest.mark.parametrize("name", FAMILIES)
def test_families_begin_answers_by_themselves(name: str) -> None:
    assert template_of(tokenizer_of(FAMILIES[name]), day=lambda: NEVER).opens == ""


def test_words_that_close_a_turn_are_no_token_and_that_is_said() -> None:
    words = TEMPLATE.replace("<|end|>", "### End")
    renderer = Renderer(tiny_tokenizer(words), frozenset({EOS}), 256)
    assert renderer.end_id == EOS
    assert renderer.notes == (
        "the chat template closes a turn with '### End', which is no token: answers end with </s>",
    )


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        (None, "a model without a chat template was probably never taught to end an answer"),
        (
            TEMPLATE.replace("<|end|>", "### End"),
            "taught to end an answer with the words that its chat template writes",
        ),
        (TEMPLATE, "or was taught to end an answer with a token that neither its chat template"),
    ],
)
def test_answers_of_which_none_ends_are_a_warning_with_the_likely_cause(
    template: str | None, cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, ended = [FinishReason.LENGTH] * (FIRST // 2), [FinishReason.STOP]
    finishes = Renderer(tiny_tokenizer(template), END_IDS, 256).finishes
    finishes.look(cut, 12)
    assert capsys.readouterr().err == ""
    for _ in range(3):  # said once
        finishes.look(cut, 12)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and cause in said
    assert "none of the first 64 answers ended by itself: all were cut off, the last at 12 tokens (sample.max" in said
    finishes = Renderer(tiny_tokenizer(template), END_IDS, 256).finishes
    finishes.look([*cut, *ended, *cut], 12)
    finishes.look([*cut, *cut], 12)
    assert capsys.readouterr().err == ""
