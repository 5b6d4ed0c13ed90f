"""Annotators who want different things: a few camps, each with a direction of its own in the states of answers.

Somebody in camp g chooses the left of two answers with probability

    sigmoid(c_u m + x . w_g),    w_g ~ N(0, tau^2 I),    c_u ~ N(1, 1/4),

m being the shared model's margin in nats, x the difference of both answers' states, and c_u how far person u goes by
what all like: who clicks at random has a c_u of 0, and is careless, not of another mind. Who is in which camp is not
known: everybody has a chance of each, by what they chose. With one camp it is the shared model, put right by a line.
Sources: Chakraborty et al. 2024, "MaxMin-RLHF", section 4 (camps by expectation and maximisation); Bose et al. 2025,
"LoRe" (linear on frozen states). Unlike either the number of camps is not given: what was set aside decides whether
there is more than one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, logsumexp, softmax

from manners.feedback.statistics import Floats, clustered_mean
from manners.reward.groups import uniform
from manners.types import Interval

Ints = NDArray[np.int64]

SPREADS = (0.1, 0.3, 1.0)
"""Values of tau that are tried, x having variance 1 in each of its directions."""
CARE = 0.5
"""Standard deviation of people's c_u about 1, before anything is known of them."""
FOLDS = 4
STARTS = 4
ROUNDS = 60
STEPS = 4
"""Steps towards the best directions in each round."""
SETTLED = 1e-3
"""A round that moves nobody's chances by more than this is the last."""
FEWEST_PEOPLE = 3
"""In a camp: of fewer, what a camp wants would be what a person wants."""
FEWEST_VERDICTS = 5
"""Of a person: who has given fewer is in no camp's count, for they could be in any."""


@dataclass(frozen=True)
class Said:
    """N verdicts that chose, in whole or in half, on pairs that a shared model has scored."""

    margins: Floats
    """(N,) score left - score right by the shared model, in nats."""
    states: Floats
    """(N, K) state left - state right."""
    left: Floats
    """(N,) 1 where the left answer was chosen, 0 where the right one, 1/2 for a tie."""
    people: Ints
    """(N,) whose verdict it is, from 0."""
    groups: Sequence[str]
    """(N,) the group of comparisons, of which none is on two sides."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self.left)

    def of(self, which: NDArray[np.bool_]) -> Said:
        """Return some of them."""
        groups = [group for group, kept in zip(self.groups, which, strict=True) if kept]
        return Said(self.margins[which], self.states[which], self.left[which], self.people[which], groups)


@dataclass(frozen=True)
class Mixture:
    """Camps as they were found."""

    directions: Floats
    """(G, K) w_g."""
    scale: float
    """The mean of c_u over people, and that of somebody new."""
    shares: Floats
    """(G,) of people."""
    scales: Floats | None = None
    """(people,) c_u of those it was learned from; None where nobody is known."""

    def logits(self, said: Said) -> Floats:
        """Return the log-odds of the left answer of each verdict in each camp; (N, G)."""
        scales = np.full(len(said), self.scale) if self.scales is None else self.scales[said.people]
        return log_odds(scales, said.margins, said.states, self.directions)

    def loglik(self, said: Said) -> Floats:
        """Return the log-likelihood of each verdict in each camp, in nats; (N, G)."""
        logits = self.logits(said)
        y = said.left[:, None]
        found: Floats = y * log_expit(logits) + (1 - y) * log_expit(-logits)
        return found

    def chances(self, said: Said, people: int) -> Floats:
        """Return the chance of each person to be in each camp, by what they said; (people, G).

        Who has said nothing has the camps' shares. About ten verdicts place somebody where camps are far apart.
        """
        found: Floats = softmax(self.joint(said, people), axis=1)
        return found

    def joint(self, said: Said, people: int) -> Floats:
        """Return the log-probability of each camp and of all that each person said, as of one of it; (people, G)."""
        total = np.zeros((people, len(self.shares)))
        np.add.at(total, said.people, self.loglik(said))
        found: Floats = total + np.log(self.shares)
        return found

    def foretold(self, said: Said, chances: Floats) -> Floats:
        """Return the log-likelihood of each verdict, given the chances of whoever gave it; (N,)."""
        found: Floats = logsumexp(self.loglik(said), b=chances[said.people], axis=1)
        return found

    def prefers(self, said: Said, chances: Floats) -> Floats:
        """Return P(left) of each verdict, given the chances of whoever gave it; (N,)."""
        found: Floats = (expit(self.logits(said)) * chances[said.people]).sum(axis=1)
        return found


def log_odds(scales: Floats | float, margins: Floats, states: Floats, directions: Floats) -> Floats:
    """Return c m + x . w_g of each answer's left side in each camp; (N, G)."""
    found: Floats = (scales * margins)[:, None] + states @ directions.T
    return found


@dataclass(frozen=True)
class Found:
    """What the search for camps has come to."""

    mixture: Mixture | None
    """None where people are not told apart."""
    alone: Mixture
    """The same with one camp."""
    chances: Floats
    """Of each person to be in each camp, by what they said where it was learned from."""
    gain: Interval | None
    """In nats a verdict, on what was set aside, of camps over one; by people. None where nothing was tried."""


def find(learned: Said, aside: Said, people: int, most: int, seed: int) -> Found:
    """Look for up to `most` camps among people by what they said, and keep them if what was set aside bears them out.

    Number of camps and tau are those that do best on folds of `learned`, whole groups each. They are kept where their
    gain on `aside` over one camp is above 0 by the whole 95 % interval, which counts people, and each camp has at least
    `FEWEST_PEOPLE` of those who gave `FEWEST_VERDICTS` verdicts.
    """
    alone = fit(learned, people, *_best(learned, people, [1], seed), seed)
    nobody = np.ones((people, 1))
    talkers = np.bincount(learned.people, minlength=people) >= FEWEST_VERDICTS
    counts = [g for g in range(2, most + 1) if talkers.sum() >= g * FEWEST_PEOPLE]
    if not counts or not len(aside):
        return Found(None, alone, nobody, None)
    mixture = fit(learned, people, *_best(learned, people, counts, seed), seed)
    chances = mixture.chances(learned, people)
    gains = mixture.foretold(aside, chances) - alone.foretold(aside, nobody)
    gain = clustered_mean(gains, aside.people) if len(set(aside.people.tolist())) > 1 else None
    members = np.bincount(chances[talkers].argmax(axis=1), minlength=len(mixture.shares))
    if gain is None or gain.low <= 0 or members.min() < FEWEST_PEOPLE:
        return Found(None, alone, nobody, gain)
    return Found(mixture, alone, chances, gain)


def _best(said: Said, people: int, counts: Sequence[int], seed: int) -> tuple[int, float]:
    """Return the number of camps and the tau that foretell best what was left out of each fold."""
    fold = np.array([int(FOLDS * uniform("camps", seed, group)) for group in said.groups])
    value = dict[tuple[int, float], float]()
    for count in counts:
        for spread in SPREADS:
            value[count, spread] = 0.0
            for number in range(FOLDS):
                inside, outside = said.of(fold != number), said.of(fold == number)
                if len(inside) and len(outside):
                    mixture = fit(inside, people, count, spread, seed)
                    value[count, spread] += float(mixture.foretold(outside, mixture.chances(inside, people)).sum())
    return max(value, key=value.__getitem__)


def fit(said: Said, people: int, count: int, spread: float, seed: int) -> Mixture:
    """Return the likeliest of `count` camps, the largest first, from several beginnings."""
    ends = [_settle(said, chances, spread) for chances in _beginnings(said, people, count, seed)]
    best, _ = max(ends, key=lambda end: end[1])
    order = np.argsort(-best.shares, kind="stable")
    return replace(best, directions=best.directions[order], shares=best.shares[order])


def _beginnings(said: Said, people: int, count: int, seed: int) -> Iterator[Floats]:
    """Yield chances to begin with: people apart by what moves them, along its main axis, then by drawn examples."""
    if count == 1:
        yield np.ones((people, 1))
        return
    moves = np.zeros((people, said.states.shape[1]))
    np.add.at(moves, said.people, (said.left - expit(said.margins))[:, None] * said.states)
    moves /= np.bincount(said.people, minlength=people)[:, None] + FEWEST_VERDICTS
    centred = moves - moves.mean(axis=0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    place = np.argsort(np.argsort(along, kind="stable"), kind="stable") * count // people
    yield _mostly(place, count)
    rng = np.random.default_rng(seed)
    for _ in range(STARTS - 1):
        chosen = centred[rng.choice(people, count, replace=people < count)]
        away = np.square(centred[:, None] - chosen[None]).sum(axis=2)
        yield _mostly(away.argmin(axis=1), count)


def _mostly(place: Ints, count: int) -> Floats:
    return np.where(np.arange(count) == place[:, None], 0.9, 0.1 / (count - 1))


def _settle(said: Said, chances: Floats, spread: float) -> tuple[Mixture, float]:
    """Go on from chances to directions and back until nobody moves; return also the log-posterior that came out.

    Directions are moved by the bound p (1 - p) <= 1/4, under which no step makes the likelihood smaller
    (Boehning & Lindsay 1988).
    """
    people, count = chances.shape
    x, m, y = said.states, said.margins, said.left
    prior = np.eye(x.shape[1]) / spread**2
    directions, scales = np.zeros((count, x.shape[1])), np.ones(people)
    steep = np.bincount(said.people, m * m, people) / 4 + 1 / CARE**2
    for _ in range(ROUNDS):
        weights, at = chances[said.people], directions
        bounds = [np.linalg.inv((x * (weights[:, [g]] / 4)).T @ x + prior) for g in range(count)]
        for _ in range(STEPS):
            rest = weights * (y[:, None] - expit(log_odds(scales[said.people], m, x, directions)))
            scales = scales + (np.bincount(said.people, m * rest.sum(axis=1), people) + (1 - scales) / CARE**2) / steep
            rest = weights * (y[:, None] - expit(log_odds(scales[said.people], m, x, directions)))
            slopes = rest.T @ x - directions / spread**2
            directions = directions + np.stack([b @ slope for b, slope in zip(bounds, slopes, strict=True)])
        shares = (chances.sum(axis=0) + 1) / (people + count)
        mixture = Mixture(directions, float(scales.mean()), shares, scales)
        before, chances = chances, mixture.chances(said, people)
        if max(np.abs(chances - before).max(), np.abs(directions - at).max()) < SETTLED:
            break
    value = float(logsumexp(mixture.joint(said, people), axis=1).sum())
    value -= float(np.square(directions).sum()) / (2 * spread**2) + float(np.square(scales - 1).sum()) / (2 * CARE**2)
    return mixture, value
