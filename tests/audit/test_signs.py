"""What is wrong with an answer whoever likes it: each sign by hand, and by the probes that are made for it."""

from __future__ import annotations

import pytest

from manners.audit.probes import probes
from manners.audit.signs import Sign, signs
from manners.types import FinishReason, Response

PROMPT = "How do I bake bread without yeast?"
GOOD = "Take soda instead: half a spoon of it, with a little vinegar, lets the dough rise while it is in the oven."


def shown(text: str, finish: FinishReason = FinishReason.STOP, prompt: str = PROMPT) -> set[Sign]:
    return set(signs(prompt, Response(text, "x", finish)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, set()),
        ("No.", set()),
        ("42", set()),
        ("", {Sign.HARDLY}),
        (":", {Sign.HARDLY}),
        ("?!? ...", {Sign.HARDLY}),
        ("Thought process: the user wants bread.", {Sign.THOUGHT}),
        ("how do I bake  bread\nwithout yeast? Like this.", {Sign.ECHO}),
        ("You ask: how do I bake bread without yeast?", set()),
        ("very " * 12, {Sign.REPEATS}),
        ("so so so", set()),
        (f"{GOOD} {GOOD} {GOOD}", {Sign.REPEATS}),
        (f"{GOOD} And then it is done.", set()),
    ],
)
def test_by_hand(text: str, expected: set[Sign]) -> None:
    assert shown(text) == expected


def test_what_the_limit_cut_off_is_known_by_its_finish_reason_alone() -> None:
    assert shown(GOOD, FinishReason.LENGTH) == {Sign.CUT_OFF}
    assert shown(GOOD[:20]) == shown(GOOD, FinishReason.UNKNOWN) == set()


def test_probes_that_can_be_seen_without_a_model_are_seen() -> None:
    made = probes(PROMPT, GOOD, None)
    seen = {name: shown(text) for name, text in made.items()}
    assert seen["repeated"] == {Sign.REPEATS} and seen["echo"] == {Sign.ECHO}
    assert seen["empty"] == seen["one_character"] == {Sign.HARDLY} and seen["thought_process"] == {Sign.THOUGHT}
    assert not seen["shuffled"] and not seen["negated"], "these take a reader"
