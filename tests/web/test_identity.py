"""Names of models do not reach anybody, however the text is cut into pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.web.identity import LAG, NEUTRAL, Neutral, names_of

LONG = f"acme {'very ' * 12}large"
assert len(LONG) > LAG


def shown(pieces: list[str]) -> str:
    neutral = Neutral(["tiny-model", "smollm2-135m", LONG])
    return "".join([*(neutral.feed(piece) for piece in pieces), neutral.rest()])


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("I am ChatGPT, made by OpenAI.", f"I am {NEUTRAL}, made by {NEUTRAL}."),
        ("As SmolLM2 I help.", f"As {NEUTRAL} I help."),
        ("tiny-model here, or policy-12", f"{NEUTRAL} here, or {NEUTRAL}"),
        ("The llama eats; geminis and claudettes stay.", f"The {NEUTRAL} eats; geminis and claudettes stay."),
        ("gpt-4o-mini", NEUTRAL),
        ("SmolLM2-135M, that is me", f"{NEUTRAL}, that is me"),
        (f"Call me {LONG}!", f"Call me {NEUTRAL}!"),
        ("Nothing to hide.", "Nothing to hide."),
    ],
)
def test_names_are_replaced(said: str, expected: str) -> None:
    assert shown([said]) == expected


words = st.sampled_from(
    [
        LONG,
        LONG[:30],
        LONG[30:],
        "ChatGPT",
        "open",
        "ai",
        "OpenAI",
        "hugging",
        " ",
        "face",
        "x",
        "claude",
        ", ",
        "policy-",
        "3",
    ]
)


@given(st.lists(words, max_size=30), st.data())
def test_how_a_text_is_cut_changes_nothing(parts: list[str], data: st.DataObject) -> None:
    whole = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert shown(pieces) == shown([whole])


@pytest.mark.parametrize("ours", ["initial", "manners", "upstream", "policy-3"])
def test_our_own_versions_are_words_that_stay(ours: str) -> None:
    assert names_of(ours) == []


def test_a_model_goes_by_its_id_its_folder_and_its_file() -> None:
    neutral = Neutral([*names_of("acme/secret-13b"), *names_of("/models/tiny.gguf")])
    said = "I am secret-13b (acme/secret-13b), not tiny.gguf: the initial acme."
    assert neutral.feed(said) + neutral.rest() == f"I am {NEUTRAL} ({NEUTRAL}), not {NEUTRAL}: the initial acme."


def test_a_word_that_a_folder_a_file_or_a_server_s_model_is_called_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("~/models/mine", "models/mine", "mine", "/models/mine.gguf", str(tmp_path / "models" / "mine")):
        neutral = Neutral(names_of(name))
        said = f"The choice is mine, by {name}."
        expected = said if name == "mine" else f"The choice is mine, by {NEUTRAL}."
        assert neutral.feed(said) + neutral.rest() == expected
    neutral = Neutral([*names_of("assistant"), *names_of("acme/zephyr")])
    assert neutral.feed("Zephyr is no assistant.") + neutral.rest() == f"{NEUTRAL} is no assistant."
