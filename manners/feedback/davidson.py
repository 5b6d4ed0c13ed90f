"""Which version wins: Davidson's model of paired comparisons with ties, the side shown and the length held apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from manners.feedback.agreement import counted
from manners.types import AnnotatorKind, Choice, Comparison, Interval, latest_verdicts

PRIOR = 2.0
"""Standard deviation, in log-odds, that a version's strength is expected to have: who never wins stays finite."""
RESAMPLES = 200

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One verdict on two versions, in the order shown."""

    left: str
    right: str
    choice: Choice
    annotator: str
    prompt: str
    longer: float = 0.0
    """By how much the left response is longer, as the logarithm of the ratio of characters."""


@dataclass(frozen=True, slots=True)
class Rating:
    """A version, and how it does against the one that it is measured from."""

    version: str
    win_rate: Interval
    """Against the anchor, side and length equal, a tie being half a win."""
    verdicts: int


@dataclass(frozen=True, slots=True)
class Ratings:
    """What the judgements say of the versions."""

    anchor: str
    ratings: tuple[Rating, ...]
    side: Interval
    """Chance that the left one of two equal versions is preferred, ties apart; 1/2 is no effect."""
    length: Interval
    """Added log-odds for being twice as long."""
    to_flip: int | None
    """Verdicts to turn round for the first two to change places; None where none would do."""
    apart: tuple[tuple[str, ...], ...]
    """Groups of versions that no judgement connects with the anchor's: nothing can be said of them."""


def judgements(comparisons: Sequence[Comparison], kind: AnnotatorKind) -> list[Judgement]:
    """Return the verdicts of one kind on pairs of different versions, sides as they were shown."""
    found = []
    for comparison in comparisons:
        if comparison.left.author == comparison.right.author:
            continue
        latest = counted(comparison, kind)
        longer = float(np.log((1 + len(comparison.left.text)) / (1 + len(comparison.right.text))))
        sides = comparison.left.author, comparison.right.author
        for verdict in latest_verdicts(comparison.verdicts):
            if verdict.annotator not in latest:
                continue
            choice = latest[verdict.annotator]
            one, other, more = (*sides, longer)
            if verdict.exchanged:
                one, other, more, choice = other, one, -more, choice.swapped()
            found.append(Judgement(one, other, choice, verdict.annotator.name, comparison.prompt[-1].text, more))
    return found


def rate(found: Sequence[Judgement], anchor: str, seed: int) -> Ratings:
    """Fit the model, with intervals from a bootstrap that draws annotators and prompts.

    With theta the versions' strengths, s the side's and g the length's effect,
    d = theta_left - theta_right + s + g log2(length ratio), P(left) is proportional to exp(d/2), P(right) to exp(-d/2),
    P(tie) to nu. Each resample gives every annotator and every prompt a random weight, and a judgement their product,
    so that both kinds of resemblance widen the interval. Sources: Davidson 1970, "On extending the Bradley-Terry model
    to accommodate ties"; Owen & Eckles 2012, "Bootstrapping data arrays of arbitrary order".
    """
    connected, apart = _components(found, anchor)
    used = [one for one in found if one.left in connected]
    versions = sorted(connected - {anchor})
    if not used:
        empty = Interval(0.5, 0.0, 1.0)
        return Ratings(anchor, (), empty, Interval(0.0, -np.inf, np.inf), None, apart)
    names = [anchor, *versions]
    design, outcome = _design(used, names)
    best = _fit(design, outcome, np.ones(len(used)), np.zeros(design.shape[1] + 1))
    drawn = np.stack([_fit(design, outcome, weights, best) for weights in _weights(used, seed)])
    fits = np.vstack([best, drawn])
    counts = {version: sum(version in (one.left, one.right) for one in used) for version in versions}
    ratings = tuple(
        Rating(version, _interval(_win_rate(fits[:, k] - fits[:, 0], fits[:, -1])), counts[version])
        for k, version in enumerate(names)
        if version != anchor
    )
    n = len(names)
    return Ratings(
        anchor, ratings, _interval(expit(fits[:, n])), _interval(fits[:, n + 1]), _to_flip(used, names, best), apart
    )


def _interval(figures: Floats) -> Interval:
    """Return the first figure with the 95 % range of the others."""
    low, high = (float(bound) for bound in np.quantile(figures[1:], [0.025, 0.975]))
    estimate = float(figures[0])
    return Interval(estimate, min(low, estimate), max(high, estimate))


def _win_rate(difference: Floats, log_nu: Floats) -> Floats:
    """Return the chance to win plus half that of a tie."""
    up, down, tie = np.exp(difference / 2), np.exp(-difference / 2), np.exp(log_nu)
    rate: Floats = (up + tie / 2) / (up + down + tie)
    return rate


def _design(used: Sequence[Judgement], names: Sequence[str]) -> tuple[Floats, NDArray[np.int64]]:
    """Return (N, versions + 2) with side and length last, and the outcomes: 0 left, 1 right, 2 tie."""
    place = {name: k for k, name in enumerate(names)}
    design = np.zeros((len(used), len(names) + 2))
    for row, one in enumerate(used):
        design[row, place[one.left]] += 1
        design[row, place[one.right]] -= 1
        design[row, -2:] = 1.0, one.longer / np.log(2)
    order = {Choice.LEFT: 0, Choice.RIGHT: 1, Choice.TIE: 2}
    return design, np.array([order[one.choice] for one in used])


def _fit(design: Floats, outcome: NDArray[np.int64], weights: Floats, start: Floats) -> Floats:
    """Return the parameters (versions, side, length, log nu) of the largest penalised likelihood."""
    sign = np.array([0.5, -0.5, 0.0])[outcome]
    tie = (outcome == 2).astype(np.float64)

    def loss(p: Floats) -> tuple[float, Floats]:
        d, log_nu = design @ p[:-1], p[-1]
        terms = np.stack([d / 2, -d / 2, np.full_like(d, log_nu)])
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        shares /= total
        value = float(weights @ (top + np.log(total) - sign * d - tie * log_nu)) + float(p @ p) / (2 * PRIOR**2)
        slope = weights * ((shares[0] - shares[1]) / 2 - sign)
        gradient = np.append(design.T @ slope, weights @ (shares[2] - tie)) + p / PRIOR**2
        return value, gradient

    found: Floats = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return found


def _weights(used: Sequence[Judgement], seed: int) -> Floats:
    """Return (RESAMPLES, N): the product of a Poisson(1) weight of the annotator and one of the prompt."""
    rng = np.random.default_rng(seed)
    product = np.ones((RESAMPLES, len(used)))
    for clusters in ([one.annotator for one in used], [one.prompt for one in used]):
        _, index = np.unique(clusters, return_inverse=True)
        product *= rng.poisson(1.0, (RESAMPLES, int(index.max()) + 1))[:, index]
    # A resample without any weight says nothing; it is then the sample itself.
    product[product.sum(axis=1) == 0] = 1.0
    return product


def _to_flip(used: Sequence[Judgement], names: Sequence[str], best: Floats) -> int | None:
    """Return how many verdicts between the first two must turn round until they change places; None if none can."""
    order = sorted(range(len(names)), key=lambda k: -best[k])
    if len(order) < 2:
        return None
    first, second = (names[k] for k in order[:2])
    wins = [
        k
        for k, one in enumerate(used)
        if one.choice is not Choice.TIE
        and {one.left, one.right} == {first, second}
        and (one.left if one.choice is Choice.LEFT else one.right) == first
    ]
    low, high = 1, len(wins)
    if not wins or not _flipped(used, wins, names, first, second):
        return None
    while low < high:
        middle = (low + high) // 2
        if _flipped(used, wins[:middle], names, first, second):
            high = middle
        else:
            low = middle + 1
    return low


def _flipped(used: Sequence[Judgement], which: Sequence[int], names: Sequence[str], first: str, second: str) -> bool:
    changed = list(used)
    for k in which:
        changed[k] = replace(used[k], choice=used[k].choice.swapped())
    design, outcome = _design(changed, names)
    best = _fit(design, outcome, np.ones(len(changed)), np.zeros(design.shape[1] + 1))
    return bool(best[names.index(second)] > best[names.index(first)])


def _components(found: Sequence[Judgement], anchor: str) -> tuple[set[str], tuple[tuple[str, ...], ...]]:
    """Return the versions that judgements connect with the anchor, and the groups of the others."""
    neighbours: defaultdict[str, set[str]] = defaultdict(set)
    for one in found:
        neighbours[one.left].add(one.right)
        neighbours[one.right].add(one.left)
    groups: list[set[str]] = []
    left = {anchor, *neighbours}
    for start in [anchor, *sorted(neighbours)]:
        if start not in left:
            continue
        group, reached = set[str](), [start]
        while reached:
            name = reached.pop()
            if name not in group:
                group.add(name)
                reached += neighbours[name]
        groups.append(group)
        left -= group
    return groups[0], tuple(tuple(sorted(group)) for group in groups[1:])
