"""A planted queue: what the reward model's members disagree about is drawn first, and is what the model gets wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from manners.feedback.queue import Queue
from manners.reward.labelled import LabelledPair
from manners.reward.verdicts import label
from manners.settings import ServeSettings
from manners.types import (
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    DrawnHow,
    OpenComparison,
    Response,
    Role,
    Turn,
    Verdict,
)

SERVE = ServeSettings()
"""As it is where nobody sets it: two verdicts a comparison, half of them drawn at random."""
ONCE = replace(SERVE, overlap=1, agree=1)
HARD = 0.4
"""Share of comparisons on which the members disagree."""
RIGHT = {True: 0.5, False: 0.85}
"""How often a verdict goes the way of the model's margin, on a hard comparison and on others."""
TRUTH = HARD * RIGHT[True] + (1 - HARD) * RIGHT[False]
PEOPLE = 4


@dataclass(frozen=True)
class Asked:
    """What people judged: the same comparisons weighted for how they were drawn, and each verdict once."""

    margins: NDArray[np.float64]
    weighted: list[LabelledPair]
    naive: list[LabelledPair]
    truth: float = TRUTH


def asked(openings: int, rng: np.random.Generator, share: float = 1 / 3, serve: ServeSettings = SERVE) -> Asked:
    """Let people give a share of all verdicts on three comparisons on each opening, as the queue puts them."""
    number = 3 * openings
    # An opening is mostly hard or mostly easy.
    chance = rng.beta(2 * HARD, 2 * (1 - HARD), openings)
    hard = rng.random(number) < np.repeat(chance, 3)
    queue = Queue(serve, int(rng.integers(2**31)), lambda: 0.0)
    for i in range(number):
        queue.add(OpenComparison(i + 1, prompt=i // 3))
    queue.set_spread({i + 1: float(np.exp(rng.normal(1.0 if h else -1.0, 0.5))) for i, h in enumerate(hard)})
    given: dict[int, list[Verdict]] = {}
    people = [Annotator(f"person {n}", AnnotatorKind.HUMAN) for n in range(PEOPLE)]
    due = max(2, round(share * number * serve.overlap))
    while due and people:
        who = people[int(rng.integers(len(people)))]
        draw = queue.draw(who.name)
        if draw is None:
            people.remove(who)
            continue
        choice = Choice.LEFT if rng.random() < RIGHT[bool(hard[draw.comparison - 1])] else Choice.RIGHT
        said = Verdict(choice, who, drawn=draw.drawn, draw_probability=draw.probability, draw_pool=draw.pool)
        given.setdefault(draw.comparison, []).append(said)
        queue.judge(who.name, draw.comparison, choice)
        due -= draw.drawn is not DrawnHow.REPEAT
    sides = Response("better", "x"), Response("worse", "x")
    comparisons = [
        Comparison(
            (Turn(Role.USER, f"opening {i // 3}"), Turn(Role.ASSISTANT, f"{i}"), Turn(Role.USER, "And then?")),
            *sides,
            AskedHow.RANDOM,
            1.0,
            tuple(given.get(i + 1, ())),
            id=i + 1,
        )
        for i in range(number)
    ]
    pairs = label(comparisons, serve=serve).pairs
    # The model always prefers the left one.
    return Asked(np.ones(len(pairs)), list(pairs), [replace(pair, drawn=None) for pair in pairs])
