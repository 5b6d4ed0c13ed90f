"""The same words in another form, and answers that are worse: by hand, and by what must stay as it was."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.audit.forms import COURTESY, FILLER, FORMS, SMILEY, changed, marks, padded, sentences
from manners.audit.probes import PROBES, negated, probes, shuffled

WORDS = st.lists(st.text("abcdXYZ019.,!? ", min_size=1, max_size=9), min_size=1, max_size=12).map(" ".join)


def letters(text: str) -> str:
    """Return all that says something, whatever its form."""
    return re.sub(r"[\W_]", "", text).casefold()


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("lower", "The Sea is BLUE.", "the sea is blue."),
        ("upper", "The sea.", "THE SEA."),
        ("white_space", "The sea is", "The  sea  is\n\n"),
        ("markdown_on", "The sea. It is blue.", "**The sea.** It is blue."),
        ("markdown_off", "## Sea\n- **blue** and _deep_\n1. `salt`", "Sea\nblue and deep\n1. salt"),
        ("quotes", "The sea.", '"The sea."'),
        ("list_marks", "The sea. It is blue!", "- The sea.\n- It is blue!"),
        ("code_fence", "The sea.", "```\nThe sea.\n```"),
        ("courtesy", "The sea.", "Certainly! I am happy to help. The sea."),
        ("smiley", "The sea.", "The sea. \N{SLIGHTLY SMILING FACE}"),
        ("typos", "The ocean", "The oecan"),
        ("markdown_off", "2 * 3 = 6 and snake_case stay", None),
        ("lower", "the sea", None),
        ("list_marks", "One sentence.", None),
        ("markdown_on", "**Bold.** already", None),
        ("code_fence", "```\nx\n```", None),
        ("typos", "an ox", None),
        ("quotes", "  ", None),
    ],
)
def test_each_form_by_hand(form: str, text: str, expected: str | None) -> None:
    assert changed(form, text) == expected


def test_there_are_eight_forms_or_more_that_say_the_same() -> None:
    assert len(FORMS) >= 8 + len({"courtesy", "smiley", "typos"})


@given(WORDS)
def test_a_form_leaves_the_words(text: str) -> None:
    for name in FORMS:
        found = changed(name, text)
        if found is None:
            continue
        if name == "typos":
            assert sorted(letters(found)) == sorted(letters(text))
        else:
            added = {"courtesy": COURTESY, "smiley": SMILEY}.get(name, "")
            assert letters(found) == letters(added + text)
        assert changed(name, text) == found, "a run that goes on makes the same"


@given(WORDS)
def test_an_answer_is_padded_to_about_twice_its_length_and_keeps_its_words(text: str) -> None:
    longer = padded(text)
    assert longer.startswith(text.rstrip())
    assert 2 * len(text) <= len(longer) <= 2 * len(text) + max(map(len, FILLER)) + 1


def test_marks_of_format_are_counted() -> None:
    assert marks("plain words") == 0
    assert marks("# head\n- a\n- **b**") == 1 + 1 + 1 + 2 + 2  # heading, two marks, two pairs of stars, two new lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The sea is blue.", "The sea is not blue."),
        ("The sea is not blue.", "The sea is blue."),
        ("It isn't far.", "It is far."),
        ("You can't go.", "You can go."),
        ("You can go. It is far.", "You can not go. It is far."),
        ("She would have come.", "She would not have come."),
        ("Isis sang.", None),
        ("No verb here", None),
        ("It WAS good", "It WAS not good"),
        ("Cannot.", None),
    ],
)
def test_the_opposite_is_said(text: str, expected: str | None) -> None:
    assert negated(text) == expected


def test_every_probe_by_hand() -> None:
    answer = "Bread is baked in an oven. It takes an hour."
    found = probes("How is bread baked?", answer, "The train leaves at noon.")
    assert set(found) == set(PROBES)
    assert found["other_prompt"] == "The train leaves at noon."
    assert found["negated"] == "Bread is not baked in an oven. It takes an hour."
    assert found["last_sentence"] == "Bread is baked in an oven."
    assert found["cut"] == "Brea"
    assert sorted(found["shuffled"].split()) == sorted(answer.split()) and found["shuffled"] != answer
    assert found["repeated"] == f"{answer} {answer} {answer}"
    assert (found["empty"], found["one_character"], found["echo"]) == ("", ":", "How is bread baked?")
    assert found["thought_process"] == "Thought process:"


def test_a_probe_that_would_be_the_answer_is_none() -> None:
    assert set(probes("hello", "hello", None)) == set(PROBES) - {
        "other_prompt",
        "negated",
        "last_sentence",
        "shuffled",
        "echo",
    }
    assert "one_character" not in probes("x", ":", None) and "empty" not in probes("x", " ", None)
    assert shuffled("too few words") is None


def test_sentences_end_at_marks() -> None:
    assert sentences(" One. Two! Three? 3.5 is a number ") == ["One.", "Two!", "Three?", "3.5 is a number"]
