"""What counts as a quotation of a deleted text, and what two people may say by chance."""

from __future__ import annotations

import pytest

from manners.store.quoting import quoting

MESSAGE = "I am Maria Kowalska,\nborn in Gdansk in 1961, and my number is 555-0199. What would you do in my place?"


@pytest.mark.parametrize(
    "reason",
    [
        MESSAGE,
        " ".join(MESSAGE.split()),  # as a reason is kept: on one line
        f"It answers “{MESSAGE}” with a joke",
        "it repeats that Maria Kowalska, born in Gdansk, has asked",
        "rude to MARIA  KOWALSKA born\nin Gdansk",
        "it says: my number is 555 0199, what for?",
    ],
)
def test_an_excerpt_is_one_however_it_is_laid_out(reason: str) -> None:
    assert quoting([MESSAGE])(reason)


@pytest.mark.parametrize(
    "reason",
    [
        "in my place I would do it",
        "the answer is in the middle of it, and so it is",
        "what would you do",
        "a number is wrong",
        "Kowalska",  # one word alone may be anybody's
        "",
    ],
)
def test_common_phrases_and_single_words_are_nobodys(reason: str) -> None:
    assert not quoting([MESSAGE, "", "?!", "the answer is in it", "so it is"])(reason)


def test_a_short_text_is_known_only_as_the_whole() -> None:
    quotes = quoting(["flag", "日本語の文章はここにあります"])
    assert quotes(" Flag! ") and not quotes("flag is a common word")
    assert quotes("it says 日本語の文章はここにあります。")
