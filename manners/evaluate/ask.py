"""Ask people which of two versions is better: blind, planned beforehand, and free to stop as soon as it is clear."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from manners.errors import MannersError
from manners.evaluate.compare import WHO
from manners.feedback.statistics import Decision, confidence_sequence, decide, detectable_win_rate, e_value
from manners.types import (
    AnnotatorKind,
    Answer,
    AskedHow,
    Choice,
    Comparison,
    Dialogue,
    Interval,
    Response,
    Verdict,
    latest_verdicts,
)

SIDE = {Choice.LEFT: 1, Choice.RIGHT: -1, Choice.TIE: 0, Choice.BOTH_BAD: 0}


@dataclass(frozen=True, slots=True)
class AskPlan:
    """What a number of comparisons can show, said before anyone is asked."""

    n: int
    detectable_win_rate: float
    sentence: str


@dataclass(frozen=True, slots=True)
class AskOutcome:
    """What the verdicts of one kind of annotator say so far about version `after` against version `before`."""

    before: str
    after: str
    kind: AnnotatorKind
    level: float
    wins: int
    """Comparisons that `after` won."""
    losses: int
    ties: int
    """Comparisons whose verdicts cancel out, or call it a tie or both bad; they count for neither side."""
    unanswered: int
    """Comparisons that too few annotators have answered yet."""
    other_verdicts: dict[AnnotatorKind, int]
    """Verdicts left out because another kind of annotator gave them."""
    decision: Decision
    interval: Interval
    """Win rate among decided comparisons; holds however often it is looked at."""
    e_value: float

    @property
    def sentence(self) -> str:
        """The outcome in words a person can quote."""
        says = {
            Decision.BETTER: f"{self.after} is better than {self.before}",
            Decision.WORSE: f"{self.after} is worse than {self.before}",
            Decision.CANNOT_TELL: f"It cannot be told yet which of {self.after} and {self.before} is better",
        }[self.decision]
        left_out = "".join(
            f" {count} verdicts of {WHO[kind]} are left out." for kind, count in self.other_verdicts.items()
        )
        return (
            f"{says}: by the verdicts of {WHO[self.kind]}, {self.after} wins {self.wins} of {self.wins + self.losses} "
            f"decided comparisons, {100 * self.interval.estimate:.1f} % ({100 * self.level:g} % interval, good at "
            f"every look, {100 * self.interval.low:.1f} to {100 * self.interval.high:.1f}), with {self.ties} ties and "
            f"{self.unanswered} unanswered.{left_out}"
        )


def plan(n: int, level: float = 0.95) -> AskPlan:
    """Return the smallest win rate that `n` decided comparisons find with chance 0.8, and say so.

    Raises MannersError where n is too small to show anything.
    """
    rate = detectable_win_rate(n, power=0.8, level=level)
    sentence = (
        f"{n} decided comparisons find a difference in 8 of 10 tries if the better version wins at least "
        f"{100 * rate:.0f} % of them; a smaller one will probably be missed. Ties do not count towards the {n}. "
        "You may look at any time and stop when it is decided."
    )
    return AskPlan(n, rate, sentence)


def open_comparisons(
    before: Sequence[Answer], after: Sequence[Answer], asked: Iterable[Comparison], n: int, seed: int
) -> list[Comparison]:
    """Return `n` comparisons of two versions, each on another unused prompt, with sides drawn by coin.

    before[i] and after[i] answer the same prompt. Left out are prompts that occur in `asked` (all the store holds),
    and those where both versions say the same, on which nothing can be decided. The rest are drawn uniformly without
    replacement; `ask_probability` is n over their number. One comparison per prompt, so that results are independent.
    Raises MannersError where fewer than `n` prompts are left, or both versions bear the same name.
    """
    used: set[Dialogue] = {comparison.prompt for comparison in asked}
    pairs: dict[Dialogue, tuple[Response, Response]] = {}
    for old, new in zip(before, after, strict=True):
        if old.prompt != new.prompt:
            raise ValueError("before[i] and after[i] must answer the same prompt")
        if old.response.author == new.response.author:
            raise MannersError(f"Both versions are called {new.response.author!r}: compare two different versions.")
        if new.prompt not in used and old.response.text.strip() != new.response.text.strip():
            pairs[new.prompt] = (old.response, new.response)
    if n > len(pairs):
        raise MannersError(
            f"{n} comparisons were asked for, but only {len(pairs)} unused prompts have two different answers: "
            "ask for fewer, or add prompts for evaluation."
        )
    rng = np.random.default_rng(seed)
    prompts = list(pairs)
    drawn = [prompts[i] for i in rng.permutation(len(prompts))[:n]]
    opened = []
    for prompt, exchanged in zip(drawn, rng.random(n) < 0.5, strict=True):
        left, right = reversed(pairs[prompt]) if exchanged else pairs[prompt]
        opened.append(Comparison(prompt, left, right, AskedHow.EVALUATION, ask_probability=n / len(pairs)))
    return opened


def read_outcome(
    comparisons: Iterable[Comparison],
    before_author: str,
    after_author: str,
    level: float = 0.95,
    kind: AnnotatorKind = AnnotatorKind.HUMAN,
    verdicts_each: int = 1,
) -> AskOutcome:
    """Return wins, losses and the decision of the anytime-valid rule, from annotators of one `kind`.

    Each comparison has one vote: the sign of the sum over its first `verdicts_each` annotators (the latest verdict of
    each; a side +-1, tie and both_bad 0, skip is no answer). Verdicts on one comparison are not independent, so they
    may not bet separately; and a vote counts only once it is complete, because a result already bet on must not
    change with the next verdict (a correction may change it: annotators are blind, so it cannot be aimed).
    Only comparisons opened for evaluation between these two versions are read. Verdicts of other kinds are left out,
    counted, and mentioned.
    """
    votes: list[int | None] = []
    kinds: Counter[AnnotatorKind] = Counter()
    for comparison in comparisons:
        authors = (comparison.left.author, comparison.right.author)
        if comparison.asked_how is not AskedHow.EVALUATION or set(authors) != {before_author, after_author}:
            continue
        kinds.update(v.annotator.kind for v in comparison.verdicts)
        vote = _vote([v for v in comparison.verdicts if v.annotator.kind is kind], verdicts_each)
        votes.append(vote if vote is None or authors[0] == after_author else -vote)
    count = Counter(votes)
    wins, losses = count[1], count[-1]
    return AskOutcome(
        before_author,
        after_author,
        kind,
        level,
        wins=wins,
        losses=losses,
        ties=count[0],
        unanswered=count[None],
        other_verdicts={other: kinds[other] for other in AnnotatorKind if other is not kind and kinds[other]},
        decision=decide(wins, losses, level),
        interval=confidence_sequence(wins, losses, level),
        e_value=e_value(wins, losses),
    )


def _vote(verdicts: Sequence[Verdict], verdicts_each: int) -> int | None:
    """Return 1 for left, -1 for right, 0 for neither, None while too few annotators have answered."""
    sides = [SIDE[v.choice] for v in latest_verdicts(verdicts) if v.choice is not Choice.SKIP][:verdicts_each]
    if len(sides) < verdicts_each:
        return None
    total = sum(sides)
    return (total > 0) - (total < 0)
