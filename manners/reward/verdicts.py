"""From comparisons to labelled pairs: which verdicts count, by how much, and why others do not."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import accumulate, count
from typing import TypeVar

from manners.errors import MannersError
from manners.feedback.admission import without_judges
from manners.feedback.outliers import outlying
from manners.feedback.statistics import CHOSEN
from manners.reward.drawing import Pool, draw_weight, pool_of
from manners.reward.groups import groups
from manners.reward.labelled import Counts, Labelled, LabelledPair, LeftOut, Sorted, Voice, weights_of
from manners.settings import ServeSettings
from manners.store.files.formats import IMPORTED
from manners.store.never import never_trained_on
from manners.types import (
    DELETED,
    VERSUS,
    VOLUNTEERED,
    Annotator,
    AnnotatorKind,
    AskedHow,
    Choice,
    Comparison,
    FinishReason,
    Response,
    Verdict,
    latest_verdicts,
)

Who = TypeVar("Who", bound=Hashable)
TURNS = 500
"""Most turns in which two limits are set; about ten are enough where both can hold with room."""
CLOSE = 1e-6
"""A cut so small is none."""
STRENGTH_WEIGHT = {None: 1.0, 1: 0.5, 2: 1.0, 3: 1.5}
NO_COMPARISONS = (
    "no comparisons to learn from; run `manners sample` to open some, "
    "or `manners comparisons import FILE` to bring your own"
)


def label(
    comparisons: Iterable[Comparison],
    annotators: str | None = None,
    user_share: float = 1.0,
    account_share: float = 1.0,
    serve: ServeSettings | None = None,
) -> Labelled:
    """Count the verdicts on each comparison, by the rules of this module.

    The same two answers to one prompt are one comparison (`pooled`). The latest verdict of an annotator on it counts; a
    skip counts for nothing, also when it takes back an earlier choice; `both_bad` counts as a tie (`BOTH_BAD_RULE`);
    strength weighs (`STRENGTH_RULE`). Comparisons asked for an evaluation or with a candidate, those about a prompt
    that shares its opening with one kept for it, and those about which a report was upheld, are never learnt from. Only
    verdicts of one kind of annotator, as `reward.annotators` names it, are counted; None means the only kind there is.
    A user of the chat or of another program weighs at most `user_share` of all, and one account with all users of its
    programs at most `account_share` (`user_factors`). What this tool's own judges said counts for nothing here: an
    admitted one's verdicts are added where something is trained (`reward.assisted`). By `serve` the queue gives
    comparisons out, which measurements must know (`reward.drawing`); None is its defaults. Raises `MannersError` when
    several kinds are present and none is named, or when nothing is left.
    """
    everything = list(comparisons)
    if not everything:
        raise MannersError(NO_COMPARISONS)
    comparisons = without_judges(everything)
    kind = kind_of(annotators) if annotators else _only_kind(comparisons)
    found = sort_out(comparisons, kind)
    factors = user_factors(found.usable, user_share, account_share)
    named = groups([comparison for comparison, _ in found.usable])
    pool = pool_of(everything, serve or ServeSettings())
    pairs = [
        labelled_pair(comparison, verdicts, factors, group, pool)
        for (comparison, verdicts), group in zip(found.usable, named, strict=True)
    ]
    if alone := _judged_alone(everything, comparisons):
        found.left_out[LeftOut.NO_VERDICT] -= alone
        found.left_out[LeftOut.JUDGE] = alone
    if kind is None or not pairs:
        reasons = ", ".join(f"{n} with {reason}" for reason, n in found.left_out.items() if n)
        raise MannersError(f"{NO_COMPARISONS} (none of the {found.left_out.total()} there are will do: {reasons})")
    left_out = {reason: n for reason, n in found.left_out.items() if n}
    return Labelled(tuple(pairs), left_out, kind, len(factors), len(found.outlying))


def kind_of(annotators: str) -> AnnotatorKind:
    """Return whose verdicts are counted, as `reward.annotators` says it: of `human+ai` people's."""
    return AnnotatorKind(annotators.partition("+")[0])


def _judged_alone(everything: Sequence[Comparison], others: Sequence[Comparison]) -> int:
    """Return how many comparisons would count for the verdicts of judges, and have no others."""
    if all(before is after for before, after in zip(everything, others, strict=True)):
        return 0
    return sum(
        any(v.choice in (Choice.LEFT, Choice.RIGHT) for v in before.verdicts) and not after.verdicts
        for before, after in zip(pooled(everything), pooled(others), strict=True)
        if _reason_left_out(after, ()) is LeftOut.NO_VERDICT
    )


def answer(response: Response) -> Hashable:
    """Return what an annotator sees of a response, and the loss: its text, and whether it was cut off."""
    return response.text, response.finish_reason is FinishReason.LENGTH


def authored(response: Response) -> Hashable:
    """Return what a response is where it counts for whoever wrote it."""
    return response.author, answer(response)


def pooled(comparisons: Iterable[Comparison], same: Callable[[Response], Hashable] = answer) -> list[Comparison]:
    """Return the same two answers to one prompt once, in the order of the first comparison, with all their verdicts.

    All that is counted or learnt from goes through here: one pair of answers is one comparison, however often and in
    whatever order it is stored, and each verdict keeps the side that its annotator saw. Apart stay comparisons of an
    evaluation, those with a candidate, those that a reward model chose (nothing is measured on them), those of users
    who came by themselves (`VOLUNTEERED`: their weight is limited) and all others; known verdicts and deleted words
    stay as they are. Whoever gave a verdict without a name on two comparisons of a pair is two people. Where one of
    them was reported, the pair was.
    """
    found: dict[Hashable, list[Comparison]] = {}
    for place, one in enumerate(comparisons):
        apart, left, right = _counted_apart(one, place), same(one.left), same(one.right)
        if (turned := (apart, one.prompt, right, left)) in found:
            found[turned].append(one.turned())
        else:
            found.setdefault((apart, one.prompt, left, right), []).append(one)
    return [_joined(several) for several in found.values()]


def to_measure_on(rows: Iterable[Comparison]) -> tuple[list[Comparison], dict[LeftOut, int]]:
    """Return the comparisons of a file to measure with, whatever they were asked for, and what was left out.

    Nothing is learnt of them; but on what a reward model chose nothing is measured in a file either. Raises
    MannersError where there is nothing else.
    """
    every = pooled(one if one.by_model else replace(one, asked_how=AskedHow.IMPORTED) for one in rows)
    fair = [one for one in every if not one.by_model]
    if every and not fair:
        raise MannersError(
            "a reward model chose all comparisons of the file (asked_how is adversarial), and nothing is measured on"
            " these: name a file of others"
        )
    return fair, {LeftOut.CHOSEN: len(every) - len(fair)} if len(fair) < len(every) else {}


def _counted_apart(comparison: Comparison, place: int) -> Hashable:
    """Return what two comparisons must share to be counted as one, their answers apart."""
    if comparison.asked_how is AskedHow.GOLD or DELETED in (comparison.left.text, comparison.right.text):
        return "alone", place
    if comparison.asked_how in VERSUS or comparison.by_model:
        return comparison.asked_how
    return "volunteered" if comparison.asked_how in VOLUNTEERED else "asked"


def _joined(several: Sequence[Comparison]) -> Comparison:
    """Return the first of several comparisons on one pair with the verdicts of all, in an order of their annotators.

    The order in which they came may hang on what they say: older workspaces hold those for either side apart.
    """
    if len(several) == 1:
        return several[0]
    verdicts = list[Verdict]()
    for one in several:
        verdicts += _by_others(one.verdicts, {verdict.annotator for verdict in verdicts})
    verdicts.sort(key=lambda verdict: hashlib.sha256(repr((several[0].prompt, verdict.annotator)).encode()).digest())
    return replace(several[0], verdicts=tuple(verdicts), reported=any(one.reported for one in several))


def _by_others(verdicts: Sequence[Verdict], known: AbstractSet[Annotator]) -> list[Verdict]:
    """Give whoever has no name another number where that one is known."""

    def free(who: Annotator) -> Annotator:
        numbered = (replace(who, name=f"{IMPORTED.name}-{number}") for number in count(2))
        return next(one for one in numbered if one not in known)

    nameless = {v.annotator for v in verdicts if v.annotator.name == IMPORTED.name and v.annotator in known}
    others = {who: free(who) for who in nameless}
    return [replace(v, annotator=others.get(v.annotator, v.annotator)) for v in verdicts]


def sort_out(comparisons: Iterable[Comparison], kind: AnnotatorKind | None) -> Sorted:
    """Keep what can be learnt from the verdicts of one kind of annotator, each pair of answers once (`pooled`).

    Verdicts that outlying users (`manners.feedback.outliers`) gave in the chat and in other programs do not count.
    Annotators who were asked to label are never set aside: the dashboard shows how each of them works.
    """
    usable = []
    left_out = Counter[LeftOut]()
    for comparison in pooled(comparisons):
        verdicts = tuple(verdict for verdict in latest_verdicts(comparison.verdicts) if verdict.annotator.kind is kind)
        reason = _reason_left_out(comparison, verdicts)
        if reason is None:
            usable.append((comparison, verdicts))
        else:
            left_out[reason] += 1
    aside = outlying((comparison, verdicts) for comparison, verdicts in usable if comparison.asked_how in VOLUNTEERED)
    kept = []
    for comparison, verdicts in usable:
        verdicts = tuple(v for v in verdicts if v.annotator not in aside or not comparison.volunteered(v))
        if all(verdict.choice is Choice.SKIP for verdict in verdicts):
            left_out[LeftOut.OUTLYING] += 1
        else:
            kept.append((comparison, verdicts))
    return Sorted(tuple(kept), left_out, frozenset(aside))


def user_factors(
    usable: Iterable[tuple[Comparison, Sequence[Verdict]]], share: float, account_share: float = 1.0
) -> dict[Annotator, float]:
    """Return by what the weights of the busiest users are multiplied, so that none has more than `share` of the whole.

    Nor has any account, with all the users that its programs name, more than `account_share`. Annotators who were asked
    to label are not limited. Where a limit cannot hold, since all weight comes from fewer than 1 / share of them, it is
    not set; where each can and both together cannot, that of users is. A cut changes the whole, so that both are set in
    turns until neither cuts.
    """
    volunteered: defaultdict[Annotator, float] = defaultdict(float)
    other = 0.0
    for comparison, verdicts in usable:
        for verdict in verdicts:
            if comparison.volunteered(verdict):
                volunteered[verdict.annotator] += _weight(verdict)
            else:
                other += _weight(verdict)
    weights = dict(volunteered)
    for _ in range(TURNS):
        accounts = defaultdict[int | None, float](float)
        for user, weight in weights.items():
            accounts[user.account] += weight
        by_account = limits(accounts, other + accounts.pop(None, 0.0), account_share)
        weights = {user: weight * by_account.get(user.account, 1.0) for user, weight in weights.items()}
        by_user = limits(weights, other, share)
        weights = {user: weight * by_user.get(user, 1.0) for user, weight in weights.items()}
        if all(factor > 1 - CLOSE for factor in (*by_account.values(), *by_user.values())):
            return {user: weights[user] / weight for user, weight in volunteered.items() if weights[user] < weight}
    return limits(volunteered, other, share)


def limits(weights: Mapping[Who, float], other: float, share: float) -> dict[Who, float]:
    """Return by what the largest weights are multiplied, so that none is more than `share` of all with `other`.

    With weight w_u of u, and W of all that is not limited, a limit c solves c = share (W + sum over u of min(w_u, c)),
    and u's factor is c / w_u where that is below 1. Where all weight comes from fewer than 1 / share no limit can hold,
    and none is set.
    """
    busiest = sorted((user for user in weights if weights[user]), key=lambda u: -weights[u])
    # Summed up from the lightest: one after the other taken off the whole leaves what is no weight, and may be below 0.
    rests = [*accumulate((weights[user] for user in reversed(busiest)), initial=other)][::-1]
    for cut, (user, rest) in enumerate(zip([*busiest, None], rests, strict=True)):
        # With the `cut` busiest at the limit: c = share (rest + cut c), rest being what all others weigh.
        if cut * share >= 1:
            return {}
        limit = share * rest / (1 - cut * share)
        if user is None or weights[user] <= limit:
            return {one: limit / weights[one] for one in busiest[:cut] if limit < weights[one]} if limit else {}
    return {}


def _only_kind(comparisons: Sequence[Comparison]) -> AnnotatorKind | None:
    annotators = {
        verdict.annotator
        for comparison in comparisons
        if comparison.asked_how not in VERSUS
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
    if never := never_trained_on(comparison):
        return LeftOut(never.value)
    texts = comparison.left.text.strip(), comparison.right.text.strip()
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


def labelled_pair(
    comparison: Comparison, verdicts: Sequence[Verdict], factors: Mapping[Annotator, float], group: str, pool: Pool
) -> LabelledPair:
    """Return a comparison with its verdicts counted: those of users by their factors, those of a queue by its pool.

    Of one that a reward model chose they weigh in training alone.
    """
    number = Counter(verdict.choice for verdict in verdicts)
    ties = float(number[Choice.TIE] + number[Choice.BOTH_BAD])
    said = {v.annotator: [one for one in comparison.verdicts if one.annotator == v.annotator] for v in verdicts}
    drawn = [(v, draw_weight(said[v.annotator], pool.left(v.annotator))) for v in verdicts]
    shown_left = [worth for v, worth in drawn if v.shown_choice is Choice.LEFT]
    alike = all(worth == 1 for _, worth in drawn)

    def voice(verdict: Verdict) -> Voice:
        who = verdict.annotator
        fair = not comparison.by_model and all(one.drawn not in CHOSEN for one in said[who])
        factor = factors.get(who, 1.0) if comparison.volunteered(verdict) else 1.0
        return Voice(who, verdict.choice, _weight(verdict) * factor, fair)

    def measured(*choices: Choice) -> float:
        return float(sum(worth for v, worth in drawn if v.choice in choices))

    voices = tuple(map(voice, verdicts))
    pair = LabelledPair(
        comparison_id=comparison.id,
        prompt=comparison.prompt,
        left=comparison.left,
        right=comparison.right,
        counts=Counts(float(number[Choice.LEFT]), float(number[Choice.RIGHT]), ties),
        weights=weights_of(voices),
        both_bad=number[Choice.BOTH_BAD],
        group=group,
        shown_left=float(len(shown_left)),
        drawn=None
        if alike
        else Counts(measured(Choice.LEFT), measured(Choice.RIGHT), measured(Choice.TIE, Choice.BOTH_BAD)),
        drawn_left=None if alike else float(sum(shown_left)),
        unknown=sum(worth == 0 for v, worth in drawn if v.choice in (Choice.LEFT, Choice.RIGHT)),
        voices=voices,
    )
    return replace(pair.unmeasured(pair.weights), unknown=0, voices=voices) if comparison.by_model else pair
