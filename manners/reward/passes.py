"""How often pairs are read: a scout tries more and more passes, and the members make as many as it did best by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from manners.reward.groups import slice_off
from manners.reward.labelled import LabelledPair
from manners.settings import RewardSettings

PASSES = (1, 2, 4, 8)
"""Numbers of passes that the scout tries, one after the other, until one does worse than the one before it."""
READ = 2048
"""Pairs that it reads in several passes at most: who has more of them reads them once (Stiennon et al. 2020)."""
SLICE = 0.2
"""Share of the training groups that the scout does not learn from, and says by when to stop."""
Tried = Sequence[tuple[int, float]]
"""Passes that the scout made, and its loss on the slice."""


@dataclass(frozen=True)
class Job:
    """A branch to be trained: the seed of its head and order, which pairs it learns from, and how often."""

    seed: int
    which: list[int]
    passes: int


@dataclass(frozen=True)
class Plan:
    """What is trained, one job after another."""

    scout: Job
    candidates: tuple[int, ...]
    """Passes that the scout may make; none where `passes` are settled."""
    passes: int
    """Passes of all others, where there are no candidates."""
    slice: list[int]
    """Pairs that the scout does not learn from."""
    jobs: list[Job]
    """The members, then the branches of the learning curve; how often they read their pairs is still to be said."""

    def next(self, tried: Tried, done: int) -> Job | None:
        """Return the next job when the scout has tried so much and so many other jobs are done; None when all are."""
        losses = [loss for _, loss in tried]
        if len(losses) < len(self.candidates) and losses[-1:] == sorted(losses)[:1]:
            return replace(self.scout, passes=self.candidates[len(losses)])
        rest = self.jobs[done:]
        return replace(rest[0], passes=self.passes_of(rest[0], self.settled(tried))) if rest else None

    def passes_of(self, job: Job, member: int) -> int:
        """Return as many passes as make a job about as many steps as those of a member that makes so many passes.

        On the learning curve fewer verdicts must not mean fewer steps, or it shows what steps buy, not verdicts.
        """
        return max(1, round(member * len(self.jobs[0].which) / len(job.which)))

    @property
    def most(self) -> int:
        """Pairs that are passed over at most."""
        members = max(self.candidates, default=self.passes)
        scouted = sum(self.candidates) * len(self.scout.which)
        return scouted + sum(self.passes_of(job, members) * len(job.which) for job in self.jobs)

    def settled(self, tried: Tried) -> int:
        """Return the passes by which the scout did best."""
        return min(tried, key=lambda one: one[1])[0] if tried else self.passes


def candidates(settings: RewardSettings, pairs: int) -> tuple[int, ...]:
    """Return the numbers of passes over so many training pairs that a scout tries; none where `reward.epochs` says."""
    if settings.epochs is not None:
        return ()
    return tuple(passes for passes in PASSES if passes == 1 or passes * pairs <= READ)


def planned(
    settings: RewardSettings, pairs: Sequence[LabelledPair], parts: Sequence[Sequence[LabelledPair]], seed: int
) -> Plan:
    """Return what is trained on these pairs, and on these parts of them for the learning curve."""
    fit, off = slice_off(pairs, SLICE, seed)
    place = {id(pair): i for i, pair in enumerate(pairs)}
    every = list(range(len(pairs)))
    off = [i for i in off if sum(pairs[i].counts)] or off  # people say when it is enough
    jobs = [Job(seed * 1000 + k, every, 0) for k in range(settings.members)]
    jobs += [Job(seed * 1000, [place[id(pair)] for pair in part], 0) for part in parts]
    scout = Job(seed * 1000 + settings.members, fit, 0)
    return Plan(scout, candidates(settings, len(every)) if off else (), settings.epochs or 1, off, jobs)
