"""Groups of comparisons: whole ones are set aside to measure with, so that nothing measured on was learnt from."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from manners.errors import MannersError
from manners.reward.labelled import LabelledPair, counts_array
from manners.settings import RewardSettings
from manners.types import Annotator, Choice, Comparison, opening

SET_ASIDE = "set aside"
"""What the hash that draws groups is of."""


@dataclass(frozen=True, slots=True)
class Split:
    """Pairs to train on and pairs to measure with; no group is on both sides."""

    train: tuple[LabelledPair, ...]
    held_out: tuple[LabelledPair, ...]
    divided: int = 0
    """Pairs of groups that held too many, and were divided: what these begin with may be on both sides."""
    idle: tuple[LabelledPair, ...] = ()
    """Pairs of groups that are set aside on which nothing may be measured: they are on neither side."""


def groups(comparisons: Sequence[Comparison]) -> list[str]:
    """Return the group of each comparison: its opening, joined with the others of its user where one is known.

    Users are those of the chat and of other programs, known by the verdicts that no queue drew. A group is what such
    users connect, named by the oldest of its openings: what they say later must not draw it anew. Where that would make
    a single group, the openings alone are the groups: of one person nothing could be set aside.
    """
    openings = [opening(comparison.prompt) for comparison in comparisons]
    above: dict[str | Annotator, str | Annotator] = {}

    def top(node: str | Annotator) -> str | Annotator:
        while (higher := above.get(node, node)) != node:
            above[node] = above.get(higher, higher)
            node = higher
        return node

    for comparison, first in zip(comparisons, openings, strict=True):
        for user in {verdict.annotator for verdict in comparison.verdicts if comparison.volunteered(verdict)}:
            above[top(user)] = top(first)
    oldest: dict[str | Annotator, str] = {}
    for place in sorted(range(len(openings)), key=lambda place: _arrived(comparisons[place])):
        oldest.setdefault(top(openings[place]), openings[place])
    return [oldest[top(first)] for first in openings] if len(oldest) > 1 else openings


def _arrived(comparison: Comparison) -> float:
    """Return the place of a comparison's first verdict in the store's order; what is not stored comes last."""
    return min((v.arrived for v in comparison.verdicts if v.arrived is not None), default=math.inf)


def set_aside(pairs: Sequence[LabelledPair], share: float, seed: int) -> Split:
    """Hold out about `share` of the groups, drawn by a seeded hash, with all their pairs.

    Whether a group is held out depends on its name and the seed alone, so that it stays held out when more comparisons
    arrive; but at least one group falls on each side, and of four or more at least two are held out, as calibration
    needs. And a group that holds more pairs than are to be held out is divided by opening, and what is still too large
    by prompt. Pairs on which nothing may be measured have no part in that (`LabelledPair.measures`): a group of these
    alone is trained on, and those of a group that is held out are on neither side.
    Raises `MannersError` when there are fewer than two groups, or when the verdicts are all one way, or when none that
    is held out chooses a side.
    """
    check_two_ways(pairs)
    pairs, divided = _small_enough(pairs, share)
    draw = {pair.group: uniform(SET_ASIDE, seed, pair.group) for pair in pairs if pair.measures}
    if len(draw) < 2:
        raise MannersError(
            f"all {len(pairs)} comparisons are about one prompt, so none can be set aside to measure with; "
            "ask about at least two different prompts"
        )
    order = sorted(draw, key=draw.__getitem__)
    wanted = sum(u < share for u in draw.values())
    least = 2 if len(order) >= 4 else 1
    held_out = set(order[: min(max(wanted, least), len(order) - 1)])
    if not any(pair.measured.decided for pair in pairs if pair.group in held_out):
        raise MannersError(
            f"none of the verdicts that would be set aside to measure with, on {len(held_out)} of {len(draw)} prompts,"
            " chooses a side (all are ties or both bad); ask about more prompts, or set more aside (reward.set_aside)"
        )
    return Split(
        train=tuple(pair for pair in pairs if pair.group not in held_out),
        held_out=tuple(pair for pair in pairs if pair.group in held_out and pair.measures),
        divided=divided,
        idle=tuple(pair for pair in pairs if pair.group in held_out and not pair.measures),
    )


def drawn_aside(group: str, share: float, seed: int) -> bool:
    """Tell whether a group is held out as soon as something may be measured on it, where it need not be divided."""
    return uniform(SET_ASIDE, seed, group) < share


def slice_off(pairs: Sequence[LabelledPair], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the places of pairs to learn from and of a slice to say when to stop: about `share` of the groups, whole.

    Drawn by a seeded hash; at least one group falls on each side, and of a single group there is no slice. Where two or
    more can be measured on, one of these is in the slice, for the others cannot say when to stop.
    """
    draw = {pair.group: uniform("slice", seed, pair.group) for pair in pairs}
    order = sorted(draw, key=draw.__getitem__)
    off = set(order[: min(max(1, sum(u < share for u in draw.values())), len(order) - 1)])
    measuring = {pair.group for pair in pairs if pair.measures}
    if len(measuring) > 1 and off.isdisjoint(measuring):
        off.add(next(group for group in order if group in measuring))
    places: tuple[list[int], list[int]] = ([], [])
    for place, pair in enumerate(pairs):
        places[pair.group in off].append(place)
    return places


def _small_enough(pairs: Sequence[LabelledPair], share: float) -> tuple[Sequence[LabelledPair], int]:
    """Divide groups that hold more than `share` of the pairs; return also how many pairs these hold."""
    levels: list[Callable[[LabelledPair], str]]
    levels = [lambda pair: opening(pair.prompt), lambda pair: f"{pair.group}\0{pair.prompt}"]
    touched = set[int]()
    for finer in levels:
        held = Counter(pair.group for pair in pairs if pair.measures)
        parts: dict[str, set[str]] = {group: set() for group, n in held.items() if n > share * held.total()}
        for pair in pairs:
            if pair.group in parts:
                parts[pair.group].add(finer(pair))
        large = {group for group, found in parts.items() if len(found) > 1}
        touched.update(place for place, pair in enumerate(pairs) if pair.group in large)
        pairs = [replace(pair, group=finer(pair)) if pair.group in large else pair for pair in pairs]
    return pairs, len(touched)


def subset(pairs: Sequence[LabelledPair], share: float, seed: int) -> tuple[LabelledPair, ...]:
    """Keep whole openings, in an order drawn by seeded hash, until they hold `share` of the verdicts.

    A larger share contains every smaller one of the same seed: a learning curve adds verdicts and exchanges none.
    """
    verdicts: Counter[str] = Counter()
    for pair in pairs:
        verdicts[pair.group] += round(sum(pair.counts))
    wanted = share * verdicts.total()
    kept = set[str]()
    for group in sorted(verdicts, key=lambda group: uniform("subset", seed, group)):
        if kept and wanted <= 0:
            break
        kept.add(group)
        wanted -= verdicts[group]
    return tuple(pair for pair in pairs if pair.group in kept)


def divided(pairs: Sequence[LabelledPair], settings: RewardSettings, seed: int) -> Split:
    """Return the pairs to train on, of which at most `reward.limit` are drawn, and those that are set aside."""
    split = set_aside(pairs, settings.set_aside, seed)
    if settings.limit is None or settings.limit >= len(split.train):
        return split
    drawn = sorted(random.Random(seed).sample(range(len(split.train)), settings.limit))
    return replace(split, train=tuple(split.train[i] for i in drawn))


def check_two_ways(pairs: Sequence[LabelledPair]) -> None:
    """Raise MannersError where verdicts choose no side, or all the same one."""
    left, right, tie = (round(n) for n in counts_array(pairs).sum(axis=0))
    if left + right == 0:
        raise MannersError(
            f"none of the {tie} verdicts prefers a response (all are ties or both bad), so there is nothing to learn; "
            "compare responses that differ more, or check how the verdicts were imported"
        )
    if left == 0 or right == 0:
        side = Choice.LEFT if right == 0 else Choice.RIGHT
        raise MannersError(
            f"all {left + right} verdicts that choose a side say `{side}`, beside {tie} that choose none: either there"
            " are too few yet, and more will differ, or annotators always pick that side, or the import put every"
            " preferred response there; check the mapping, or show the responses in random order"
        )


def uniform(purpose: str, seed: int, group: str) -> float:
    """Return a number in [0, 1) that depends on nothing but the arguments; `purpose` keeps the draws independent."""
    digest = hashlib.sha256(f"{purpose}\0{seed}\0{group}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
