"""Comparisons with a planted preference: annotators like a response that says `thank you`."""

from __future__ import annotations

import random
from dataclasses import replace

from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    FinishReason,
    Response,
    Role,
    Turn,
    Verdict,
)

WORDS = ["bread", "yeast", "oven", "train", "sea", "noon", "weather", "long", "fine", "bake"]
PEOPLE = [Annotator(f"person {n}", AnnotatorKind.HUMAN) for n in range(4)]


def comparisons(count: int, agreement: float, seed: int = 0) -> list[Comparison]:
    """Make comparisons on as many prompts; each of three annotators picks the polite side with this probability."""
    rng = random.Random(seed)
    return [_comparison(number, agreement, rng) for number in range(count)]


def _comparison(number: int, agreement: float, rng: random.Random) -> Comparison:
    plain, polite = (" ".join(rng.sample(WORDS, 4)) for _ in range(2))
    polite = f"{polite} thank you."
    polite_left = rng.random() < 0.5
    left, right = (
        Response(text, "initial", FinishReason.STOP) for text in (polite, plain)[:: 1 if polite_left else -1]
    )
    liked, other = (Choice.LEFT, Choice.RIGHT)[:: 1 if polite_left else -1]
    verdicts = tuple(Verdict(liked if rng.random() < agreement else other, person) for person in rng.sample(PEOPLE, 3))
    prompt = (Turn(Role.USER, f"question {number} about the {rng.choice(WORDS)}"),)
    return Comparison(prompt, left, right, AskedHow.RANDOM, 1.0, verdicts, id=number + 1)


def turned(comparison: Comparison) -> Comparison:
    """The same comparison with every verdict turned round."""
    return replace(comparison, verdicts=tuple(replace(v, choice=v.choice.swapped()) for v in comparison.verdicts))
