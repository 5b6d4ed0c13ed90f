"""Asking well: how many verdicts the queue saves by asking where the reward model's members differ.

    python -m benchmarks.experiments.asking --folder from-nothing

The crowd is asked for a few verdicts, a reward model learns, and the queue (`manners.feedback.queue`) chooses what to
ask next, again and again; beside it the same with every comparison drawn by chance. What a reward model has learned is
how often it agrees with the crowd's taste, without noise, about pairs of answers to other requests. The seed draws
verdicts, order and heads; requests and answers are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import tyro

from benchmarks.experiments import PAGE, results
from benchmarks.experiments.world import (
    CANDIDATES,
    EACH,
    Floats,
    Pool,
    World,
    accuracy,
    candidates,
    judged,
    kept,
    learn,
    open_world,
    paired,
    requests,
    scores,
)
from benchmarks.publish import replace_between
from manners.feedback.queue import Queue
from manners.feedback.statistics import bootstrapped
from manners.settings import ServeSettings
from manners.types import Comparison, OpenComparison

OTHERS = 200
"""Other requests, with as many answers each, by whose pairs accuracy is measured."""
STEPS = (60, 120, 180, 240, 360, 480)
"""Verdicts after which a reward model learns anew, and the queue knows where its members differ."""
MEMBERS = 3
WAYS = {"by chance": 1.0, "the queue": 0.5}
"""`serve.random_share`."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Options:
    """What to run."""

    folder: Path = Path("from-nothing")
    """What `make from-nothing` has left."""
    seeds: tuple[int, ...] = tuple(range(8))


def main(options: Options) -> None:
    """Run what has not been run, and publish the table."""
    world = open_world(options.folder)
    done = results("asking")
    sizes: dict[str, object] = {
        "asked": CANDIDATES,
        "each": EACH,
        "measured": OTHERS,
        "members": MEMBERS,
        "steps": STEPS,
    }
    sizes |= {"world": world.made_of}
    found = {
        way: [done.part(f"{way}, seed {seed}", sizes, partial(learned, world, way, seed)) for seed in options.seeds]
        for way in WAYS
    }
    replace_between(PAGE, "asking", f"{table(found)} {done.measured()}")


@cache
def others(world: World) -> Pool:
    """What accuracy is measured by."""
    return kept(world, requests(OTHERS, 6), EACH, 6)


def learned(world: World, way: str, seed: int) -> list[float]:
    """Ask and learn in turn; return the accuracy after every step."""
    comparisons = candidates(world).comparisons()
    answers = judged(world, comparisons, seed)
    queue = Queue(ServeSettings(random_share=WAYS[way], gold_share=0.0, repeat_share=0.0, overlap=1), seed, lambda: 0.0)
    sides = _sides(candidates(world), comparisons)
    for number, (place, _, _) in enumerate(sides):
        queue.add(OpenComparison(number, place))
    asked: list[Comparison] = []
    found = []
    for step in STEPS:
        while len(asked) < step:
            asked.append(_ask(queue, answers))
        reward = learn(world, asked, candidates(world), MEMBERS, seed)
        found.append(accuracy(scores(world, reward, others(world)).mean(axis=0), others(world).liked))
        scored = scores(world, reward, candidates(world))
        queue.set_spread({n: float((scored[:, at, a] - scored[:, at, b]).std()) for n, (at, a, b) in enumerate(sides)})
    return found


def _sides(answers: Pool, comparisons: Sequence[Comparison]) -> list[tuple[int, int, int]]:
    """Return for each comparison the places of its request and of its two answers."""
    requests_at = {prompt: place for place, prompt in enumerate(answers.prompts)}
    found = []
    for one in comparisons:
        at = requests_at[one.prompt]
        texts = [given.text for given in answers.answers[at]]
        found.append((at, texts.index(one.left.text), texts.index(one.right.text)))
    return found


def _ask(queue: Queue, answers: Sequence[Comparison]) -> Comparison:
    """Put the comparison that the queue chooses before the annotator."""
    draw = queue.draw("somebody")
    assert draw is not None
    given = answers[draw.comparison]
    (verdict,) = given.verdicts
    queue.judge("somebody", draw.comparison, verdict.choice)
    drawn = replace(verdict, drawn=draw.drawn, draw_probability=draw.probability, draw_pool=draw.pool)
    return replace(given, verdicts=(drawn,))


def table(found: dict[str, list[list[float]]]) -> str:
    """Return accuracy by number of verdicts, and the difference of the two ways, paired by seed."""
    chance, queue = (np.array(found[way]) for way in WAYS)
    lines = ["| verdicts | by chance | the queue | difference [95 %] |", "|---|---|---|---|"]
    for at, step in enumerate(STEPS):
        gain = paired(100 * queue[:, at], 100 * chance[:, at])
        told = f"{gain.estimate:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}] points"
        lines.append(f"| {step} | {chance[:, at].mean():.1%} | {queue[:, at].mean():.1%} | {told} |")
    return "\n".join([*lines, "", saved(chance, queue)])


def saved(chance: Floats, queue: Floats) -> str:
    """Say how many verdicts more or fewer the queue needs for what both ways come to, with an interval over seeds."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(chance), size=len(chance)) for _ in range(RESAMPLES)]
    ratios = [_log_ratio(chance[rows].mean(axis=0), queue[rows].mean(axis=0)) for rows in drawn]
    found = bootstrapped(_log_ratio(chance.mean(axis=0), queue.mean(axis=0)), ratios, len(chance))
    told = (
        "it saves verdicts"
        if found.high < 0
        else "it costs verdicts"
        if found.low > 0
        else "whether it saves any cannot be told"
    )
    more, low, high = (math.expm1(end) for end in (found.estimate, found.low, found.high))
    return (
        f"{len(chance)} seeds. For the accuracy that both ways come to, the queue needs {more:+.0%} verdicts"
        f" [{low:+.0%}, {high:+.0%}]: {told}."
    )


def _log_ratio(chance: Floats, queue: Floats) -> float:
    """Return the logarithm of how many times the verdicts the queue needs for the most that both ways come to.

    Both curves are read alike, so that exchanging them changes the sign and no more: of two ways that are the same
    neither is ahead.
    """
    goal = min(chance.max(), queue.max())
    return math.log(_first(goal, queue) / _first(goal, chance))


def _first(goal: float, accuracies: Floats) -> float:
    """Return after how many verdicts an accuracy is come to first, between two steps by a straight line."""
    at = int(np.argmax(accuracies >= goal))
    if at == 0:
        return float(STEPS[0])
    before = float(accuracies[:at].max())
    back = at - 1
    return STEPS[back] + (STEPS[at] - STEPS[back]) * (goal - before) / (float(accuracies[at]) - before)


if __name__ == "__main__":
    main(tyro.cli(Options))
