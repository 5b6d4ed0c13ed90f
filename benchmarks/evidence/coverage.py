"""How often do the report's 95 % intervals hold the truth? Planted studies of few and many openings.

The table goes to docs/coverage.md; the suite tries a few. A study has openings, of which some are harder than others,
three comparisons on each, and annotators of whom some are surer than others. The truth is that of other openings drawn
alike and the same annotators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import rankdata

from benchmarks.evidence import Results
from benchmarks.evidence._planted_queue import ONCE, SERVE, asked
from benchmarks.publish import ROOT, replace_between
from manners.evaluate.compare import best_of_n_win_rate, head_to_head, matched_win_rate, win_rate
from manners.evaluate.length import win_rate_at_equal_length
from manners.evaluate.text_measures import (
    changes,
    mean_length,
    most_common_answer_share,
    perplexity_change,
    share_finished,
)
from manners.feedback.agreement import alpha, left_share, pairwise
from manners.feedback.statistics import cluster_bootstrap, pair_agreement
from manners.reward.baselines import (
    Agreement,
    CurvePoint,
    accuracy,
    accuracy_gain,
    by_agreement,
    doubling_gain,
    length_correlation,
)
from manners.reward.calibrate import confidence, reliability
from manners.reward.ceiling import ceiling
from manners.reward.labelled import Counts, LabelledPair, counts_array
from manners.types import (
    Annotator,
    AnnotatorKind,
    Answer,
    AskedHow,
    Choice,
    Comparison,
    Dialogue,
    FinishReason,
    Interval,
    Response,
    Role,
    Turn,
    Verdict,
)

Floats = NDArray[np.float64]
Random = np.random.Generator
OPENINGS = (2, 5, 10, 30, 130)
RESAMPLES = 300
PAGE = ROOT / "docs" / "coverage.md"
PEOPLE = [Annotator(f"person {n}", AnnotatorKind.HUMAN) for n in range(8)]
SURE = np.linspace(0.4, 1.6, len(PEOPLE))
"""How sure each of them is: what their log-odds are multiplied by."""
SIDES = Response("a", "x"), Response("b", "x")
EVERYBODY = 100_000
"""Openings that the truth is computed from where no formula gives it."""
FINISHED = 0.7
"""Share of the answers that end by themselves."""
USUAL = 0.4
"""Share of the answers that are the one that everybody gets, a beta of 2 and 3 by prompt."""


@dataclass(frozen=True)
class Study:
    """Three comparisons on each of some openings, two verdicts each."""

    models: Floats
    """(3, N) margins of three models, one better than the other."""
    lengths: Floats
    """(N,) differences of length, which people like a little."""
    chance: Floats
    """(N, people) with which each prefers the left response."""
    group: NDArray[np.int64]
    who: NDArray[np.int64]
    """(N, 2) who was asked."""
    left: NDArray[np.bool_]
    """(N, 2) whether they preferred the left one."""


def draw(openings: int, rng: Random) -> Study:
    """Draw a study: an opening makes what people like plainer or less plain, to people and to the models."""
    group = np.repeat(np.arange(openings), 3)
    plain = np.exp(rng.normal(0, 0.7, openings))[group]
    liked = rng.normal(0, 1.2, len(group)) * plain
    lengths = 0.5 * liked + rng.normal(0, 1, len(group)) + rng.normal(0, 0.5, openings)[group]
    shared = rng.normal(0, 1.5, len(group)) + rng.normal(0, 1.0, openings)[group]
    models = np.stack([worth * liked + shared + rng.normal(0, 0.5, len(group)) for worth in (0.5, 0.8, 1.1)])
    chance = expit(liked[:, None] * SURE)
    who = np.argsort(rng.random(chance.shape), axis=1)[:, :2]
    return Study(models, lengths, chance, group, who, rng.random(who.shape) < np.take_along_axis(chance, who, 1))


@dataclass(frozen=True)
class Truth:
    """What figures would be on very many openings."""

    right: tuple[float, ...]
    """How often a verdict goes the way of each model's margin."""
    ruler: float
    """Likewise of the length."""
    spearman: float
    best: float
    """The ceiling."""
    agree: float
    """Chance that two different annotators agree."""
    unanimous: float
    """How often two who agree go the way of the best model's margin."""


@cache
def truth() -> Truth:
    """Return what figures are on `EVERYBODY` openings."""
    made = draw(EVERYBODY, np.random.default_rng(2**31))
    ranks = [rankdata(values) for values in (made.models[2], made.lengths)]
    p = made.chance.mean(axis=1)
    asked_ = np.take_along_axis(made.chance, made.who, 1)
    left, other = asked_.prod(axis=1), (1 - asked_).prod(axis=1)
    several = len(PEOPLE)
    agree = sum(
        ((q.sum(1) ** 2 - (q**2).sum(1)) / (several * (several - 1))).mean() for q in (made.chance, 1 - made.chance)
    )
    return Truth(
        right=tuple(right(model, made) for model in made.models),
        ruler=right(made.lengths, made),
        spearman=float(np.corrcoef(ranks)[0, 1]),
        best=float(np.maximum(p, 1 - p).mean()),
        agree=float(agree),
        unanimous=float(np.where(made.models[2] > 0, left, other).sum() / (left + other).sum()),
    )


def right(margins: Floats, made: Study) -> float:
    """Return how often a verdict goes the way that a margin points."""
    return float(np.where(margins[:, None] > 0, made.chance, 1 - made.chance).mean())


def labelled(made: Study) -> list[LabelledPair]:
    """Return the comparisons as the reward model is measured on them."""
    counts = [Counts(float(n), float(2 - n), 0.0) for n in made.left.sum(axis=1)]
    prompt = (Turn(Role.USER, "?"),)
    return [
        LabelledPair(None, prompt, *SIDES, c, c, 0, str(g)) for c, g in zip(counts, made.group.tolist(), strict=True)
    ]


def comparisons(made: Study, habit: Floats, rng: Random) -> list[Comparison]:
    """Return them as they are stored, `habit` being what the left side as shown adds to each person's log-odds."""
    found = []
    exchanged = rng.random(made.who.shape) < 0.5
    for i, (people, turned) in enumerate(zip(made.who, exchanged, strict=True)):
        odds = logit(np.clip(made.chance[i, people], 1e-9, 1 - 1e-9)) + np.where(turned, -1, 1) * habit[people]
        chosen = rng.random(2) < expit(odds)
        verdicts = tuple(
            Verdict(Choice.LEFT if left else Choice.RIGHT, PEOPLE[person], exchanged=bool(away))
            for left, person, away in zip(chosen, people, turned, strict=True)
        )
        prompt = (Turn(Role.USER, str(made.group[i])),)
        found.append(Comparison(prompt, *SIDES, AskedHow.RANDOM, 1.0, verdicts, id=i + 1))
    return found


Held = Iterator[tuple[str, bool]]
"""By figure, whether its interval holds the truth."""


def holds(interval: Interval | tuple[float, float], value: float) -> bool:
    """Return whether an interval holds the truth."""
    low, high = (interval.low, interval.high) if isinstance(interval, Interval) else interval
    return low - 1e-9 <= value <= high + 1e-9


def of_reward(openings: int, rng: Random) -> Held:
    """Try the figures of the reward model's report."""
    made, known = draw(openings, rng), truth()
    pairs = labelled(made)
    found = [accuracy(model, pairs, 0, RESAMPLES) for model in made.models]
    yield "accuracy of the reward model, of a rule", holds(found[2], known.right[2])
    gain = accuracy_gain(made.models[2], made.lengths, pairs, 0, RESAMPLES)
    yield "gain over a rule", holds(gain, known.right[2] - known.ruler)
    for level in by_agreement(made.models[2], pairs, 0, RESAMPLES):
        if level.level is Agreement.UNANIMOUS:
            yield "accuracy where two agree", holds(level.accuracy, known.unanimous)
    # What three points on one line have for a slope, as the curve has it for twice as many verdicts.
    points = [CurvePoint(100 * 2**k, interval) for k, interval in enumerate(found)]
    if slope := doubling_gain(points):
        yield "what twice as many verdicts buy", holds(slope, (known.right[2] - known.right[0]) / 2)
    groups = [pair.group for pair in pairs]
    found_r = length_correlation(made.models[2], made.lengths, groups, 0, RESAMPLES)
    yield "score and length", holds(found_r, known.spearman)
    best = ceiling(pairs, 0, 60)
    if best and best.low_interval and best.high_interval:
        outer = best.low_interval[0], best.high_interval[1]
        yield "best possible, between the outer ends", holds(outer, known.best)
    p_left = expit(made.models[2])
    probabilities = np.stack([p_left, 1 - p_left, np.zeros_like(p_left)], axis=1)
    sure, agreeing, weights = confidence(probabilities, counts_array(pairs))
    promised = np.where(made.models[2] > 0, made.chance.mean(axis=1), 1 - made.chance.mean(axis=1))
    # The same bins, of what is expected of their pairs.
    for row, expected in zip(reliability(sure, agreeing, weights), reliability(sure, promised, weights), strict=True):
        yield "a bin of the reliability diagram", holds(Interval(0, row.low, row.high), expected.observed)


def of_people(openings: int, rng: Random) -> Held:
    """Try the figures of what annotators said."""
    made, agree = draw(openings, rng), truth().agree
    asked_ = comparisons(made, np.zeros(len(PEOPLE)), rng)
    yield "agreement of two annotators", holds(pair_agreement([c.verdicts for c in asked_], RESAMPLES, 0), agree)
    if share := pairwise(asked_, AnnotatorKind.HUMAN, 0):
        yield "agreement, on the dashboard", holds(share, agree)
    if found := alpha(asked_, AnnotatorKind.HUMAN, 0):
        yield "Krippendorff's alpha", holds(found, 1 - (1 - agree) / 0.5)
    habit = rng.normal(0, 0.5, len(PEOPLE))
    yield "left was preferred", holds(left_share(comparisons(made, habit, rng), AnnotatorKind.HUMAN), 0.5)


def answers(lengths: Sequence[int], prompt: Dialogue, rng: Random) -> list[Answer]:
    """Return answers of these lengths to a prompt, made of words some of which are common."""
    found = []
    for length in lengths:
        words = tuple(int(w) for w in np.minimum(rng.geometric(0.03, length), 200))
        reason = FinishReason.STOP if rng.random() < FINISHED else FinishReason.LENGTH
        found.append(Answer(prompt, Response(str(words), "x", reason), (1,), words))
    return found


def liked(rng: Random, prompts: int) -> Floats:
    """Return what a version's four answers to each prompt are worth: some suit it better than the other version."""
    found: Floats = rng.normal(0, 1, (prompts, 4)) + rng.normal(0, 1, (prompts, 1))
    return found


@cache
def picked() -> tuple[float, float]:
    """Return how often an answer is preferred to the best of four by score, and the best of three to a fourth one.

    The best of the other version's; the best of three to an answer of the same version. Scores err.
    """
    rng = np.random.default_rng(2**31)
    before, after = (liked(rng, EVERYBODY) for _ in range(2))
    scores = before + rng.normal(0, 1, before.shape)
    four, three = (np.take_along_axis(before, scores[:, :count].argmax(axis=1)[:, None], axis=1) for count in (4, 3))
    return float(expit(2 * (after - four)).mean()), float(expit(2 * (three - before[:, 3:])).mean())


def usual(prompts: int, rng: Random) -> list[float]:
    """Return with which chance each of four answers to each prompt is the one that everybody gets."""
    return [float(often) for often in rng.beta(2, 3, prompts) for _ in range(4)]


def of_evaluation(prompts: int, rng: Random) -> Held:
    """Try the figures of the evaluation, on two versions that are equally good and write alike."""
    before, after, gained = [], [], []
    worth: dict[tuple[Dialogue, str], float] = {}
    for number in range(prompts):
        prompt = (Turn(Role.USER, str(number)),)
        size = 5 + 20 * rng.random()
        sides = [answers(list(rng.poisson(size, 4) + 2), prompt, rng) for _ in range(2)]
        merits = [liked(rng, 1)[0] for _ in sides]
        for side, values in zip(sides, merits, strict=True):
            worth |= {(prompt, a.response.text): float(v) for a, v in zip(side, values, strict=True)}
        before.append(sides[0])
        after.append(sides[1])
        gained.append(float((merits[1] - merits[0]).mean()))

    def prefers(prompt: Dialogue, first: Response, second: Response) -> float:
        return float(expit(2 * (worth[prompt, first.text] - worth[prompt, second.text])))

    yield "win rate", holds(win_rate(before, after, prefers), 0.5)
    matched = matched_win_rate(before, after, prefers, 0.1)
    yield "win rate at matched length", holds(matched.interval, 0.5)
    yield "win rate by regression on length", holds(win_rate_at_equal_length(before, after, prefers).interval, 0.5)
    scores = [[worth[a.prompt, a.response.text] + rng.normal(0, 1) for a in some] for some in before]
    over_best, best = picked()
    yield "win rate over the best of four", holds(head_to_head(before, scores, after, prefers), over_best)
    yield "win rate of the best of three", holds(best_of_n_win_rate(before, scores, prefers), best)
    yield "change of the taste", holds(cluster_bootstrap(gained, range(prompts), RESAMPLES, 0), 0.0)
    spoken = [a for some in after for a in some]
    yield "mean length", holds(mean_length(spoken, RESAMPLES, 0), 17.0)
    yield "share finished", holds(share_finished(spoken, RESAMPLES, 0), FINISHED)
    same = [
        replace(a, response=SIDES[0]) if rng.random() < often else a
        for a, often in zip(spoken, usual(prompts, rng), strict=True)
    ]
    yield "share of the most common answer", holds(most_common_answer_share(same, RESAMPLES, 0), USUAL)
    for name, change in changes(before, after, RESAMPLES, 0).items():
        yield f"change of {name.replace('_', '-')}", holds(change, 0.0)
    tokens = rng.integers(20, 200, prompts).astype(float)
    worse = tokens * rng.normal(0.02, 0.05, prompts) + rng.normal(0, 1, prompts)
    found = perplexity_change(3.0 * tokens, 3.0 * tokens + worse, tokens, RESAMPLES, 0)
    yield "change of perplexity", holds(found.change, float(np.expm1(0.02)))


def of_training(openings: int, rng: Random) -> Held:
    """Try the means of SFT, over tokens, and of DPO, over prompts: both take this bootstrap."""
    group = np.repeat(np.arange(openings), 3)
    tokens = rng.integers(20, 200, len(group)).astype(float)
    loss = 2.0 + rng.normal(0, 0.5, openings)[group] + rng.normal(0, 0.3, len(group))
    gained = -0.1 + rng.normal(0, 0.1, openings)[group] + rng.normal(0, 0.1, len(group))
    yield "SFT: loss a token", holds(cluster_bootstrap(loss, group, RESAMPLES, 0, tokens), 2.0)
    yield "SFT: change of the loss", holds(cluster_bootstrap(gained, group, RESAMPLES, 0, tokens), -0.1)
    far = rng.gamma(1.5, 2.0, openings)
    yield "DPO: KL of answers", holds(cluster_bootstrap(far, range(openings), RESAMPLES, 0), 3.0)


def of_queue(openings: int, rng: Random) -> Held:
    """Try the accuracy where a queue drew the hard comparisons first, weighted and each verdict once."""
    for serve, name in ((SERVE, "a queue"), (ONCE, "a queue for one verdict each")):
        made = asked(openings, rng, serve=serve)
        for how, pairs in (("weighted", made.weighted), ("each once", made.naive)):
            yield f"accuracy, from {name}, {how}", holds(accuracy(made.margins, pairs, 0, RESAMPLES), made.truth)


WORLDS: dict[Callable[[int, Random], Held], int] = {
    of_reward: 200,
    of_people: 200,
    of_evaluation: 200,
    of_training: 200,
    of_queue: 600,
}
"""With how many studies of each size."""


def covered(world: Callable[[int, Random], Held], openings: int, studies: int, first: int = 0) -> dict[str, list[int]]:
    """Return by figure how many intervals held the truth, and how many there were, in studies of so many openings."""
    held: dict[str, list[int]] = {}
    for seed in range(first, first + studies):
        for name, good in world(openings, np.random.default_rng([openings, seed])):
            counts = held.setdefault(name, [0, 0])
            counts[0] += good
            counts[1] += 1
    return held


def main() -> None:
    """Go through all of them, and publish the table."""
    results = Results("coverage")
    rows: dict[str, dict[int, list[int]]] = {}
    for world, studies in WORLDS.items():
        for openings in OPENINGS:
            settings = {"openings": openings, "studies": studies, "resamples": RESAMPLES}
            work = partial(covered, world, openings, studies)
            for name, counts in results.part(f"{world.__name__}, {openings}", settings, work).items():
                rows.setdefault(name, {})[openings] = counts
    replace_between(PAGE, "coverage", table(rows))


def table(rows: dict[str, dict[int, list[int]]]) -> str:
    """Return the coverage of each interval in per cent, in Markdown; below 92 % in bold."""
    lines = ["| interval of | " + " | ".join(f"{n}" for n in OPENINGS) + " |", "|---|" + "---|" * len(OPENINGS)]
    for name, found in rows.items():
        cells = []
        for n in OPENINGS:
            held, of = found.get(n, [0, 0])
            share = 100 * held / of if of else 0.0
            cells.append("-" if not of else f"**{share:.0f}**" if share < 92 else f"{share:.0f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
