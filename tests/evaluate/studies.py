"""Simulated studies of two versions: people whose verdicts depend on each other, looked at after every verdict.

`python -m tests.evaluate.studies [STUDIES] [WORLD ...]` prints the table of docs/evaluate.md.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from manners.evaluate.ask import due_bets
from manners.feedback import bets
from manners.feedback.statistics import Decision
from manners.settings import ServeSettings
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict

NEW, OLD = Response("a", "new"), Response("b", "old")
PEEKED = "closed at the best moment, by who looks at what is not counted yet"
RULES = ("bets", "every verdict bets", "the first verdict bets", PEEKED)


@dataclass(frozen=True, kw_only=True)
class World:
    """How the people of a study answer, in logits of preferring the new version's response."""

    comparisons: int = 40
    overlap: int = 2
    people: int = 10
    gain: float = 0.0
    """Of the new version, on average over prompts."""
    of_pair: float = 2.0
    """Spread over pairs of what everybody sees in them: it makes the verdicts on one pair alike."""
    of_side: float = 0.5
    """Spread over people of a liking for the side on the left."""
    of_length: float = 0.7
    """Spread over people of a liking for length, which differs by pair and on average not at all."""
    of_person: float = 0.0
    """Spread over people of a liking for one version, which on average over all people is `gain`."""
    ties: float = 0.1
    skips: float = 0.05
    closes: float = 0.85
    """Share of the verdicts after which the study closes."""
    peeks: bool = False
    """Whether `PEEKED` is worked out too, which takes long."""


class Study:
    """The comparisons of one study, and what each rule has staked and said."""

    def __init__(self, world: World, seed: int) -> None:
        """Open the comparisons, with sides by coin, and draw what their pairs are like."""
        self.world = world
        self.rng = rng = np.random.default_rng(seed)
        self.settings = ServeSettings(overlap=world.overlap, agree=world.overlap)
        self.seen_in = rng.normal(world.gain, world.of_pair, world.comparisons)
        self.longer = rng.normal(0, 1, world.comparisons)
        spreads = (world.of_side, world.of_length, world.of_person)
        self.side, self.length, self.own = (rng.normal(0, spread, world.people) for spread in spreads)
        sides = [(NEW, OLD) if left else (OLD, NEW) for left in rng.random(world.comparisons) < 0.5]
        self.asked = [
            Comparison((Turn(Role.USER, str(i)),), *both, AskedHow.EVALUATION, id=i) for i, both in enumerate(sides)
        ]
        self.stakes = {rule: Counter[float]() for rule in RULES}
        self.said = dict.fromkeys(RULES, Decision.CANNOT_TELL)

    def run(self) -> dict[str, Decision]:
        """Ask until the study closes; return what each rule said first other than `cannot_tell`, if ever."""
        world = self.world
        left = int(world.closes * world.comparisons * world.overlap)
        for i, who in self.rng.permutation([(i, w) for i in range(world.comparisons) for w in range(world.people)]):
            if not self.asked[i].bets and left:  # otherwise the queue gives it to nobody else
                self._hear(i, self._choice(i, who), str(who))
                left -= 1
                if world.peeks:
                    self._peek()
        self._place(self.asked, closing=True)
        return self.said

    def _choice(self, i: int, who: int) -> Choice:
        """What somebody answers, of the comparison's own sides."""
        world = self.world
        new_left = self.asked[i].left is NEW
        shown_left = self.rng.random() < 0.5
        logit = self.seen_in[i] + self.own[who] + self.length[who] * self.longer[i]
        logit += self.side[who] if shown_left else -self.side[who]
        lot, for_new = self.rng.random(), self.rng.random() < 1 / (1 + np.exp(-logit))
        if lot < world.skips:
            return Choice.SKIP
        if lot < world.skips + world.ties:
            return Choice.TIE
        return Choice.LEFT if for_new == new_left else Choice.RIGHT

    def _hear(self, i: int, choice: Choice, who: str) -> None:
        asked = self.asked[i]
        verdict = Verdict(choice, Annotator(who, AnnotatorKind.HUMAN))
        self.asked[i] = replace(asked, verdicts=(*asked.verdicts, verdict))
        self._place([self.asked[i]], closing=False)
        if choice in (Choice.LEFT, Choice.RIGHT):
            first = all(v.choice is Choice.SKIP for v in asked.verdicts)
            for rule in RULES[1:3] if first else RULES[1:2]:
                self._stake(rule, asked, 1.0 if choice is Choice.LEFT else -1.0)

    def _place(self, comparisons: list[Comparison], closing: bool) -> None:
        for i, bet in due_bets(comparisons, self.settings, closing=closing):
            self.asked[i] = replace(self.asked[i], bets=(bet,))
            self._stake("bets", self.asked[i], bet.stake)

    def _peek(self) -> None:
        """See what closing now would come to."""
        self.stakes[PEEKED] = self.stakes["bets"].copy()
        for i, bet in due_bets([one for one in self.asked if not one.bets], self.settings, closing=True):
            self._stake(PEEKED, self.asked[i], bet.stake)

    def _stake(self, rule: str, asked: Comparison, stake: float) -> None:
        """Stake for the left side, and look."""
        self.stakes[rule][stake if asked.left is NEW else -stake] += 1
        if self.said[rule] is Decision.CANNOT_TELL:
            self.said[rule] = _decision(frozenset(self.stakes[rule].items()))


@cache
def _decision(stakes: frozenset[tuple[float, int]]) -> Decision:
    return bets.decide(dict(stakes))


def shares(world: World, studies: int, seed: int = 0) -> dict[str, dict[Decision, float]]:
    """Return how often each rule said what, over so many studies."""
    counts = {rule: Counter[Decision]() for rule in RULES}
    for number in range(studies):
        for rule, decision in Study(world, seed + number).run().items():
            counts[rule][decision] += 1
    rules = RULES if world.peeks else RULES[:3]
    return {rule: {decision: counts[rule][decision] / studies for decision in Decision} for rule in rules}


WORLDS = {
    "equal, two verdicts": World(),
    "equal, alike within a pair": World(of_pair=8.0),
    "equal, few people": World(people=2),
    "equal, three verdicts": World(overlap=3),
    "equal, alike within a pair, five verdicts": World(of_pair=8.0, comparisons=60, overlap=5),
    "equal, 100 comparisons": World(comparisons=100),
    "equal, closed by who peeks": World(peeks=True),
    "better by 1.5 logits": World(gain=1.5, of_pair=1.0),
    "better by 1.5 logits, three verdicts": World(gain=1.5, of_pair=1.0, overlap=3),
    "equal to all, 1 person with a leaning": World(people=1, overlap=1, of_person=0.5, of_pair=1.0, comparisons=100),
    "equal to all, 2 people with leanings": World(people=2, of_person=0.5, of_pair=1.0, comparisons=100),
    "equal to all, 5 people with leanings": World(people=5, of_person=0.5, of_pair=1.0, comparisons=100),
    "equal to all, 20 people with leanings": World(people=20, of_person=0.5, of_pair=1.0, comparisons=100),
}
"""What is simulated: in all but two no version is better, to people in general."""
EQUAL = tuple(name for name in WORLDS if name.startswith("equal, "))


def main() -> None:
    """Print how often each rule calls one version better."""
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    for name in sys.argv[2:] or WORLDS:
        found = shares(WORLDS[name], studies)
        said = {rule: f"{100 * (1 - share[Decision.CANNOT_TELL]):.1f} %" for rule, share in found.items()}
        print(name, studies, said, flush=True)


if __name__ == "__main__":
    main()
