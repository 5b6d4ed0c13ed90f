"""From comparisons to what the reward model learns from: single verdicts, counted, weighted and split by opening."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from manners.errors import MannersError
from manners.feedback.outliers import outlying
from manners.types import (
    DELETED,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    Dialogue,
    Response,
    Role,
    Verdict,
    latest_verdicts,
)

Floats = NDArray[np.float64]

BOTH_BAD_RULE = (
    "`both_bad` counts as a tie in the loss, since it prefers neither response; what it says about both of them "
    "cannot enter a loss that only sees differences, so it is also counted apart."
)
STRENGTH_RULE = (
    "A verdict of strength 1, 2 or 3 weighs 0.5, 1 or 1.5 in the loss, and 1 where no strength was asked: a slight "
    "preference is the one that the next annotator reverses most easily. Accuracy, calibration and the ceiling count "
    "every verdict once."
)
STRENGTH_WEIGHT = {None: 1.0, 1: 0.5, 2: 1.0, 3: 1.5}
VOLUNTEERED = frozenset({AskedHow.CHAT, AskedHow.API})
"""Comparisons whose annotators came by themselves: how much each of them may weigh is limited."""
NO_COMPARISONS = (
    "no comparisons to learn from; run `manners sample` to open some, "
    "or `manners comparisons import FILE` to bring your own"
)


class Counts(NamedTuple):
    """How many verdicts (or what weight of them) chose the left response, the right one, or neither."""

    left: float
    right: float
    tie: float

    @property
    def decided(self) -> float:
        """The part that chose a side."""
        return self.left + self.right


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """One comparison with its verdicts counted."""

    comparison_id: int | None
    prompt: Dialogue
    left: Response
    right: Response
    counts: Counts
    """Every verdict once: what accuracy, calibration and the ceiling are measured on."""
    weights: Counts
    """Verdicts weighted by strength (`STRENGTH_RULE`): what the loss learns from."""
    both_bad: int
    """How many of the ties were `both_bad`."""
    group: str
    """What is set aside as one, see `groups`."""


class LeftOut(StrEnum):
    """Why a comparison is not learnt from; the values are what the report prints."""

    EVALUATION = "asked for an evaluation"
    GOLD = "a known verdict, asked to measure annotators"
    DELETED = "deleted by the person whose words they were"
    REPORTED = "reported, and kept away by a reviewer"
    EMPTY = "an empty response"
    IDENTICAL = "identical responses"
    NO_VERDICT = "no verdict"
    OTHER_KIND = "only verdicts of another kind of annotator"
    SKIPPED = "only skips"
    OUTLYING = "only verdicts of users who were set aside"


@dataclass(frozen=True, slots=True)
class Labelled:
    """The pairs that can be learnt from, and how many comparisons were left out, by reason."""

    pairs: tuple[LabelledPair, ...]
    left_out: dict[LeftOut, int]
    kind: AnnotatorKind
    """Whose verdicts these are."""
    limited: int = 0
    """How many users had their weight cut to the share that one may have."""
    outlying: int = 0
    """How many users of the chat or of another program were set aside (`outlying`)."""


@dataclass(frozen=True, slots=True)
class Sorted:
    """The comparisons that can be learnt from, each with the verdicts that count, and what was left out and why."""

    usable: tuple[tuple[Comparison, tuple[Verdict, ...]], ...]
    left_out: Counter[LeftOut]
    outlying: frozenset[Annotator]


@dataclass(frozen=True, slots=True)
class Split:
    """Pairs to train on and pairs to measure with; no group is on both sides."""

    train: tuple[LabelledPair, ...]
    held_out: tuple[LabelledPair, ...]


def label(comparisons: Iterable[Comparison], annotators: str | None = None, user_share: float = 1.0) -> Labelled:
    """Count the verdicts on each comparison, by the rules of this module.

    The latest verdict of an annotator on a comparison counts; a skip counts for nothing, also when it takes back an
    earlier choice; `both_bad` counts as a tie (`BOTH_BAD_RULE`); strength weighs (`STRENGTH_RULE`). Comparisons asked
    for an evaluation, and those about which a report was upheld, are never learnt from. Only verdicts of one kind of
    annotator, as `reward.annotators` names it, are counted; None means the only kind there is. A user of the chat or of
    another program weighs at most `user_share` of all (`user_factors`). Raises `MannersError` when several kinds are
    present and none is named, or when nothing is left.
    """
    comparisons = list(comparisons)
    if not comparisons:
        raise MannersError(NO_COMPARISONS)
    kind = AnnotatorKind(annotators) if annotators else _only_kind(comparisons)
    found = sort_out(comparisons, kind)
    factors = user_factors(found.usable, user_share)
    named = groups([comparison for comparison, _ in found.usable])
    pairs = [
        _labelled(comparison, verdicts, factors, group)
        for (comparison, verdicts), group in zip(found.usable, named, strict=True)
    ]
    if kind is None or not pairs:
        reasons = ", ".join(f"{n} with {reason}" for reason, n in found.left_out.items())
        raise MannersError(f"{NO_COMPARISONS} (none of the {len(comparisons)} there are will do: {reasons})")
    return Labelled(tuple(pairs), dict(found.left_out), kind, len(factors), len(found.outlying))


def pooled(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Return each pair of responses to a prompt once, in the order of its first comparison, with all their verdicts.

    It is for measuring, by which nothing is learnt: what was asked for an evaluation, or has a known verdict, is taken
    like the rest.
    """
    first: dict[tuple[object, ...], Comparison] = {}
    verdicts: defaultdict[tuple[object, ...], list[Verdict]] = defaultdict(list)
    for one in comparisons:
        left, right = ((side.text, side.finish_reason) for side in (one.left, one.right))
        key, turned = (one.prompt, left, right), (one.prompt, right, left)
        if turned in first:
            verdicts[turned] += [replace(v, choice=v.choice.swapped(), exchanged=not v.exchanged) for v in one.verdicts]
        else:
            first.setdefault(key, one)
            verdicts[key] += one.verdicts
    never_learnt = (AskedHow.EVALUATION, AskedHow.GOLD)
    return [
        replace(
            one,
            verdicts=tuple(verdicts[key]),
            asked_how=AskedHow.IMPORTED if one.asked_how in never_learnt else one.asked_how,
        )
        for key, one in first.items()
    ]


def sort_out(comparisons: Iterable[Comparison], kind: AnnotatorKind | None) -> Sorted:
    """Keep what can be learnt from the verdicts of one kind of annotator.

    Verdicts of outlying users (`manners.feedback.outliers`) do not count on comparisons of the chat and of other
    programs. Annotators who were asked to label are never set aside: the dashboard shows how each of them works.
    """
    usable, left_out = [], Counter[LeftOut]()
    for comparison in comparisons:
        verdicts = tuple(verdict for verdict in latest_verdicts(comparison.verdicts) if verdict.annotator.kind is kind)
        reason = _reason_left_out(comparison, verdicts)
        if reason is None:
            usable.append((comparison, verdicts))
        else:
            left_out[reason] += 1
    aside = outlying((comparison, verdicts) for comparison, verdicts in usable if comparison.asked_how in VOLUNTEERED)
    kept = []
    for comparison, verdicts in usable:
        if comparison.asked_how in VOLUNTEERED:
            verdicts = tuple(verdict for verdict in verdicts if verdict.annotator not in aside)
        if all(verdict.choice is Choice.SKIP for verdict in verdicts):
            left_out[LeftOut.OUTLYING] += 1
        else:
            kept.append((comparison, verdicts))
    return Sorted(tuple(kept), left_out, frozenset(aside))


def user_factors(usable: Iterable[tuple[Comparison, Sequence[Verdict]]], share: float) -> dict[Annotator, float]:
    """Return by what the weights of the busiest users are multiplied, so that none has more than `share` of the whole.

    With weight w_u of user u in comparisons of the chat and of other programs, and W of everything else, a limit c
    solves c = share (W + sum over u of min(w_u, c)), and u's factor is c / w_u where that is below 1. Annotators who
    were asked to label are not limited. Where all weight comes from fewer than 1 / share users no limit can hold, and
    none is set.
    """
    volunteered: defaultdict[Annotator, float] = defaultdict(float)
    other = 0.0
    for comparison, verdicts in usable:
        for verdict in verdicts:
            if comparison.asked_how in VOLUNTEERED:
                volunteered[verdict.annotator] += _weight(verdict)
            else:
                other += _weight(verdict)
    total = other + sum(volunteered.values())
    busiest = sorted((user for user in volunteered if volunteered[user]), key=lambda u: -volunteered[u])
    rest = total
    for cut, user in enumerate([*busiest, None]):
        # With the `cut` busiest users at the limit: c = share (rest + cut c), rest being what all others weigh.
        if cut * share >= 1:
            return {}
        limit = share * rest / (1 - cut * share)
        if user is None or volunteered[user] <= limit:
            return {one: limit / volunteered[one] for one in busiest[:cut]} if limit else {}
        rest -= volunteered[user]
    return {}


def opening(prompt: Dialogue) -> str:
    """Return the conversation's first user turn without regard to case and white space: the group of a comparison."""
    first = next((turn for turn in prompt if turn.role is Role.USER), prompt[0])
    return " ".join(first.text.split()).casefold()


def groups(comparisons: Sequence[Comparison]) -> list[str]:
    """Return the group of each comparison: its opening, joined with the others of its user where one is known.

    Users are those of the chat and of other programs, known by the verdicts that no queue drew. A group is what such
    users connect, named by the smallest of its openings. Where that would make a single group, the openings alone are
    the groups: of one person nothing could be set aside.
    """
    openings = [opening(comparison.prompt) for comparison in comparisons]
    above: dict[str | Annotator, str | Annotator] = {}

    def top(node: str | Annotator) -> str | Annotator:
        while (higher := above.get(node, node)) != node:
            above[node] = above.get(higher, higher)
            node = higher
        return node

    for comparison, first in zip(comparisons, openings, strict=True):
        if comparison.asked_how in VOLUNTEERED:
            for user in {verdict.annotator for verdict in comparison.verdicts if verdict.drawn is None}:
                above[top(user)] = top(first)
    smallest: dict[str | Annotator, str] = {}
    for first in sorted(openings):
        smallest.setdefault(top(first), first)
    return [smallest[top(first)] for first in openings] if len(smallest) > 1 else openings


def set_aside(pairs: Sequence[LabelledPair], share: float, seed: int) -> Split:
    """Hold out about `share` of the groups, drawn by a seeded hash, with all their pairs.

    Whether a group is held out depends on its name and the seed alone, so that it stays held out when more comparisons
    arrive; at least one group falls on each side, and of four or more at least two are held out, as calibration needs.
    Raises `MannersError` when there are fewer than two groups, or when the verdicts are all one way, or when none that
    is held out chooses a side.
    """
    _check_two_ways(pairs)
    draw = {pair.group: _uniform("set aside", seed, pair.group) for pair in pairs}
    if len(draw) < 2:
        raise MannersError(
            f"all {len(pairs)} comparisons begin with the same user turn, so none can be set aside to measure with; "
            "ask about at least two different prompts"
        )
    order = sorted(draw, key=draw.__getitem__)
    wanted = sum(u < share for u in draw.values())
    least = 2 if len(order) >= 4 else 1
    held_out = set(order[: min(max(wanted, least), len(order) - 1)])
    if not any(pair.counts.decided for pair in pairs if pair.group in held_out):
        raise MannersError(
            f"none of the verdicts that would be set aside to measure with, on {len(held_out)} of {len(draw)} prompts,"
            " chooses a side (all are ties or both bad); ask about more prompts, or set more aside (reward.set_aside)"
        )
    return Split(
        train=tuple(pair for pair in pairs if pair.group not in held_out),
        held_out=tuple(pair for pair in pairs if pair.group in held_out),
    )


def subset(pairs: Sequence[LabelledPair], share: float, seed: int) -> tuple[LabelledPair, ...]:
    """Keep whole openings, in an order drawn by seeded hash, until they hold `share` of the verdicts.

    A larger share contains every smaller one of the same seed: a learning curve adds verdicts and exchanges none.
    """
    verdicts: Counter[str] = Counter()
    for pair in pairs:
        verdicts[pair.group] += round(sum(pair.counts))
    wanted, kept = share * verdicts.total(), set[str]()
    for group in sorted(verdicts, key=lambda group: _uniform("subset", seed, group)):
        if kept and wanted <= 0:
            break
        kept.add(group)
        wanted -= verdicts[group]
    return tuple(pair for pair in pairs if pair.group in kept)


def counts_array(pairs: Sequence[LabelledPair]) -> Floats:
    """Return the unweighted counts as (pairs, 3): left, right, tie."""
    return np.array([pair.counts for pair in pairs], dtype=np.float64).reshape(-1, 3)


def _only_kind(comparisons: Sequence[Comparison]) -> AnnotatorKind | None:
    annotators = {
        verdict.annotator
        for comparison in comparisons
        if comparison.asked_how is not AskedHow.EVALUATION
        for verdict in comparison.verdicts
    }
    kinds = Counter(annotator.kind for annotator in annotators)
    if len(kinds) > 1:
        found = " and ".join(f"{n} {kind} annotator{'s' * (n != 1)}" for kind, n in sorted(kinds.items()))
        raise MannersError(
            f"the verdicts come from {found}, which are never mixed; set reward.annotators to one of them"
        )
    return next(iter(kinds), None)


def _reason_left_out(comparison: Comparison, verdicts: Sequence[Verdict]) -> LeftOut | None:
    texts = comparison.left.text.strip(), comparison.right.text.strip()
    if comparison.asked_how is AskedHow.EVALUATION:
        return LeftOut.EVALUATION
    if comparison.asked_how is AskedHow.GOLD:
        return LeftOut.GOLD
    if DELETED in texts:
        return LeftOut.DELETED
    if comparison.reported:
        return LeftOut.REPORTED
    if not all(texts):
        return LeftOut.EMPTY
    if texts[0] == texts[1]:
        return LeftOut.IDENTICAL
    if not verdicts:
        return LeftOut.OTHER_KIND if comparison.verdicts else LeftOut.NO_VERDICT
    if all(verdict.choice is Choice.SKIP for verdict in verdicts):
        return LeftOut.SKIPPED
    return None


def _weight(verdict: Verdict) -> float:
    """Return what a verdict weighs in the loss: ties have no strength, skips no weight."""
    match verdict.choice:
        case Choice.SKIP:
            return 0.0
        case Choice.TIE | Choice.BOTH_BAD:
            return 1.0
    return STRENGTH_WEIGHT[verdict.strength]


def _labelled(
    comparison: Comparison, verdicts: Sequence[Verdict], factors: Mapping[Annotator, float], group: str
) -> LabelledPair:
    number = Counter(verdict.choice for verdict in verdicts)
    ties = float(number[Choice.TIE] + number[Choice.BOTH_BAD])
    limited = factors if comparison.asked_how in VOLUNTEERED else {}

    def weight(*choices: Choice) -> float:
        return sum(_weight(v) * limited.get(v.annotator, 1.0) for v in verdicts if v.choice in choices)

    return LabelledPair(
        comparison_id=comparison.id,
        prompt=comparison.prompt,
        left=comparison.left,
        right=comparison.right,
        counts=Counts(float(number[Choice.LEFT]), float(number[Choice.RIGHT]), ties),
        weights=Counts(weight(Choice.LEFT), weight(Choice.RIGHT), weight(Choice.TIE, Choice.BOTH_BAD)),
        both_bad=number[Choice.BOTH_BAD],
        group=group,
    )


def _check_two_ways(pairs: Sequence[LabelledPair]) -> None:
    left, right, tie = (round(n) for n in counts_array(pairs).sum(axis=0))
    if left + right == 0:
        raise MannersError(
            f"none of the {tie} verdicts prefers a response (all are ties or both bad), so there is nothing to learn; "
            "compare responses that differ more, or check how the verdicts were imported"
        )
    if left == 0 or right == 0:
        side = Choice.LEFT if right == 0 else Choice.RIGHT
        raise MannersError(
            f"all {left + right} verdicts that choose a side say `{side}`: either annotators always pick that side, "
            "or the import put every preferred response there; check the mapping, or show the responses in random order"
        )


def _uniform(purpose: str, seed: int, group: str) -> float:
    """Return a number in [0, 1) that depends on nothing but the arguments; `purpose` keeps the draws independent."""
    digest = hashlib.sha256(f"{purpose}\0{seed}\0{group}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
