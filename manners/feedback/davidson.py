"""Which version wins: Davidson's model of paired comparisons with ties, the side shown and the length held apart."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, stdtrit

from manners.feedback.agreement import counted
from manners.types import AnnotatorKind, Choice, Comparison, Interval, latest_verdicts, opening

PRIOR = 2.0
"""Standard deviation, in log-odds, that a version's strength is expected to have: who never wins stays finite."""
RESAMPLES = 200
STEPS = 50
LONGEST = 2.0
"""Longest step of a parameter, in log-odds: far from the top a whole step of Newton's method may overshoot."""
AT_ONCE = 2**21
"""Numbers (resamples times judgements) that are worked on at once."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One verdict on two versions, in the order shown."""

    left: str
    right: str
    choice: Choice
    annotator: str
    prompt: str
    """What is drawn anew as one: the conversation's opening, which its later turns share."""
    longer: float = 0.0
    """By how much the left response is longer, as the logarithm of the ratio of characters."""
    account: int | None = None
    """The account that the annotator is, or a user of whose programs."""


@dataclass(frozen=True, slots=True)
class Rating:
    """A version, and how it does against the one that it is measured from."""

    version: str
    win_rate: Interval
    """Against the anchor, side and length equal, a tie being half a win."""
    verdicts: int
    accounts: int
    """Different accounts that gave them; an account's programs are that account, whatever users they name."""
    others: int
    """Different annotators without an account that gave them."""


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
            who = verdict.annotator
            choice = latest[who]
            one, other, more = (*sides, longer)
            if verdict.exchanged:
                one, other, more, choice = other, one, -more, choice.swapped()
            found.append(Judgement(one, other, choice, who.key, opening(comparison.prompt), more, who.account))
    return found


def rate(found: Sequence[Judgement], anchor: str, seed: int) -> Ratings:
    """Fit the model, with intervals from a bootstrap that draws annotators and prompts.

    With theta the versions' strengths, s the side's and g the length's effect,
    d = theta_left - theta_right + s + g log2(length ratio), P(left) is proportional to exp(d/2), P(right) to exp(-d/2),
    P(tie) to nu. An estimate's variance is V_annotator + V_prompt - V_judgement, each from a bootstrap in which every
    cluster counts a Poisson number of times, and at least the larger of the first two and what the likelihood's
    curvature gives; its interval is Student's, with Satterthwaite's degrees of freedom, in log-odds. (Weights that are
    the product of an annotator's and a prompt's count thrice what is neither's: such intervals held the truth in all
    of 100 simulated studies.) Where there is one annotator, nothing is said of others. Sources: Davidson 1970, "On
    extending the Bradley-Terry model to accommodate ties"; Cameron, Gelbach & Miller 2011, "Robust inference with
    multiway clustering", equation 2.12.
    """
    connected, apart = _components(found, anchor)
    used = [one for one in found if one.left in connected]
    versions = sorted(connected - {anchor})
    if not used:
        empty = Interval(0.5, 0.0, 1.0)
        return Ratings(anchor, (), empty, Interval(0.0, -np.inf, np.inf), None, apart)
    names = [anchor, *versions]
    design, outcome = _design(used, names)
    best = fit(design, outcome, np.ones((1, len(used))))
    log_nu = float(best[0, -1])
    contrasts = _contrasts(len(names))
    spread = _spread(used, design, outcome, best, contrasts, seed)
    intervals = [(value - more, value, value + more) for value, more in zip(contrasts @ best[0], spread, strict=True)]
    counts = {version: _counts([one for one in used if version in (one.left, one.right)]) for version in versions}
    ratings = tuple(
        Rating(version, _interval([_win_rate(value, log_nu) for value in found]), *counts[version])
        for version, found in zip(versions, intervals[:-2], strict=True)
    )
    side = _interval([float(expit(value)) for value in intervals[-2]])
    length = _interval(intervals[-1])
    return Ratings(anchor, ratings, side, length, _to_flip(used, names, best[0]), apart)


def _counts(found: Sequence[Judgement]) -> tuple[int, int, int]:
    """Return how many judgements there are, of how many accounts, and of how many annotators without one."""
    accounts = {one.account for one in found} - {None}
    return len(found), len(accounts), len({one.annotator for one in found if one.account is None})


def _contrasts(count: int) -> Floats:
    """Return (count + 1, count + 3): each version less the first, then side and length, out of the parameters."""
    contrasts = np.eye(count + 3)[1:-1]
    contrasts[: count - 1, 0] = -1.0
    return contrasts


def _spread(
    used: Sequence[Judgement],
    design: Floats,
    outcome: NDArray[np.int64],
    best: Floats,
    contrasts: Floats,
    seed: int,
) -> Floats:
    """Return half the width of each contrast's 95 % interval, see `rate`."""
    rng = np.random.default_rng(seed)

    def variance(index: NDArray[np.int64]) -> Floats:
        """By bootstrap, each cluster weighing as often as it is drawn."""
        rows = max(1, AT_ONCE // len(used))
        count = int(index.max()) + 1
        drawn = []
        for at in range(0, RESAMPLES, rows):
            times = rng.poisson(1.0, (min(rows, RESAMPLES - at), count)).astype(np.float64)
            drawn.append(fit(design, outcome, times[:, index], best) @ contrasts.T)
        found: Floats = np.concatenate(drawn).var(axis=0) * count / max(1, count - 1)
        return found

    hessian = _derivatives(design, outcome, np.ones((1, len(used))), best)[1][0]
    alone = np.diag(contrasts @ np.linalg.inv(hessian) @ contrasts.T)
    indices = [
        np.unique(names, return_inverse=True)[1] for names in ([j.annotator for j in used], [j.prompt for j in used])
    ]
    indices = [index for index in indices if index.max() > 0]
    if not indices:
        return np.asarray(stdtrit(1.0, 0.975) * np.sqrt(alone))
    variances = np.array([variance(index) for index in indices])
    more = np.array([[index.max()] for index in indices])
    once_more = (len(indices) - 1) * variance(np.arange(len(used)))
    total = np.maximum(variances.sum(axis=0) - once_more, np.maximum(variances.max(axis=0), alone))
    freedom = variances.sum(axis=0) ** 2 / np.maximum((variances**2 / more).sum(axis=0), 1e-300)
    return np.asarray(stdtrit(np.maximum(freedom, 1.0), 0.975) * np.sqrt(total))


def _interval(values: Sequence[float]) -> Interval:
    low, estimate, high = values
    return Interval(estimate, low, high)


def _win_rate(difference: float, log_nu: float) -> float:
    """Return the chance to win plus half that of a tie."""
    up, down, tie = np.exp([difference / 2, -difference / 2, log_nu])
    return float((up + tie / 2) / (up + down + tie))


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


def fit(design: Floats, outcome: NDArray[np.int64], weights: Floats, start: Floats | None = None) -> Floats:
    """Return the parameters (R, D + 1: versions, side, length, log nu) of the largest penalised likelihoods.

    One for each row of `weights` (R, N), by Newton's method for all of them at once: with d = design @ p the logits of
    left, right and tie are (d/2, -d/2, log nu), so the likelihood is concave, and strictly so with the normal prior.
    """
    found = np.zeros((len(weights), design.shape[1] + 1)) if start is None else np.repeat(start, len(weights), axis=0)
    for _ in range(STEPS):
        slope, hessian = _derivatives(design, outcome, weights, found)
        step = np.linalg.solve(hessian, slope[:, :, None])[:, :, 0]
        furthest = np.abs(step).max(axis=1, keepdims=True)
        found = found - step * np.minimum(1.0, LONGEST / np.maximum(furthest, 1e-300))
        if furthest.max() < 1e-6:
            break
    return found


def _derivatives(design: Floats, outcome: NDArray[np.int64], weights: Floats, found: Floats) -> tuple[Floats, Floats]:
    """Return the first (R, D + 1) and second (R, D + 1, D + 1) derivatives of minus the penalised log-likelihood."""
    size = design.shape[1]
    sign = np.array([0.5, -0.5, 0.0])[outcome]
    squares = np.einsum("ni,nj->nij", design, design).reshape(-1, size**2)
    d = found[:, :-1] @ design.T
    logits = np.stack([d / 2, -d / 2, np.broadcast_to(found[:, -1:], d.shape)])
    shares = np.exp(logits - logits.max(axis=0))
    left, right, tie = shares / shares.sum(axis=0)
    gap = (left - right) / 2
    slope = np.column_stack([(weights * (gap - sign)) @ design, (weights * (tie - (outcome == 2))).sum(axis=1)])
    hessian = np.empty((len(weights), size + 1, size + 1))
    hessian[:, :-1, :-1] = ((weights * ((left + right) / 4 - gap**2)) @ squares).reshape(-1, size, size)
    hessian[:, -1, :-1] = hessian[:, :-1, -1] = -(weights * tie * gap) @ design
    hessian[:, -1, -1] = (weights * tie * (1 - tie)).sum(axis=1)
    return slope + found / PRIOR**2, hessian + np.eye(size + 1) / PRIOR**2


def _to_flip(used: Sequence[Judgement], names: Sequence[str], best: Floats) -> int | None:
    """Return how many verdicts between the first two must turn round until they change places; None if none can."""
    order = sorted(range(len(names)), key=lambda k: -best[k])
    first, second = (names[k] for k in order[:2])
    wins = [
        k
        for k, one in enumerate(used)
        if one.choice is not Choice.TIE
        and {one.left, one.right} == {first, second}
        and (one.left if one.choice is Choice.LEFT else one.right) == first
    ]
    if not wins or not _flipped(used, wins, names, first, second):
        return None
    fewer = range(1, len(wins))
    return 1 + bisect_left(fewer, True, key=lambda count: _flipped(used, wins[:count], names, first, second))


def _flipped(used: Sequence[Judgement], which: Sequence[int], names: Sequence[str], first: str, second: str) -> bool:
    changed = list(used)
    for k in which:
        changed[k] = replace(used[k], choice=used[k].choice.swapped())
    (best,) = fit(*_design(changed, names), np.ones((1, len(changed))))
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
