"""Ask people which of two versions is better: blind, planned beforehand, and free to stop as soon as it is clear."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from manners.errors import MannersError
from manners.evaluate.compare import WHO
from manners.feedback import bets
from manners.feedback.queue import has_enough
from manners.feedback.statistics import Decision
from manners.settings import ServeSettings
from manners.types import (
    VERSUS,
    AnnotatorKind,
    Answer,
    AskedHow,
    Bet,
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
    """What the bets on the verdicts of one kind of annotator say so far about version `after` against `before`."""

    before: str
    after: str
    kind: AnnotatorKind
    level: float
    wins: int
    """Comparisons whose verdicts lean to `after`."""
    losses: int
    ties: int
    """Comparisons whose verdicts cancel out, or call it a tie or both bad; they count for neither side."""
    unanswered: int
    """Comparisons that have placed no bet yet."""
    waiting: int
    """Those among them that have a verdict, but too few."""
    late: int
    """Verdicts that came after their comparison's bet: they change nothing."""
    raters: tuple[str, ...]
    """Names of the annotators on whose verdicts the bets rest."""
    other_verdicts: dict[AnnotatorKind, int]
    """Verdicts left out because another kind of annotator gave them."""
    decision: Decision
    interval: Interval
    """Share of the stakes that `after` won, which is its win rate where nobody disagrees; holds at every look."""
    e_value: float
    command: str = "manners evaluate"
    """What reads the verdicts."""

    @property
    def voice(self) -> str:
        """Whose verdicts these are: how many people, or an AI annotator by its name."""
        count = len(self.raters)
        if self.kind is AnnotatorKind.AI and count:
            return f"the AI annotator{'s' * (count > 1)} {', '.join(self.raters)}"
        one, several = {
            AnnotatorKind.HUMAN: ("one person", "people"),
            AnnotatorKind.AI: (WHO[AnnotatorKind.AI],) * 2,
            AnnotatorKind.SIMULATED: ("one simulated annotator", WHO[AnnotatorKind.SIMULATED]),
        }[self.kind]
        return f"{count} {several}" if count > 1 else one if count else several

    @property
    def sentence(self) -> str:
        """The outcome in words a person can quote."""
        says = {
            Decision.BETTER: f"{self.after} is better than {self.before}",
            Decision.WORSE: f"{self.after} is worse than {self.before}",
            Decision.CANNOT_TELL: f"It cannot be told yet which of {self.after} and {self.before} is better",
        }[self.decision]
        return (
            f"{says}: by the verdicts of {self.voice}, {self.after} wins {self.wins} of {self.wins + self.losses} "
            f"decided comparisons, {100 * self.interval.estimate:.1f} % of what they weigh ({100 * self.level:g} % "
            f"interval, good at every look, {100 * self.interval.low:.1f} to {100 * self.interval.high:.1f}), with "
            f"{self.ties} ties and {self.unanswered} unanswered.{' '.join(['', *self._remarks()])}"
        )

    def _remarks(self) -> list[str]:
        """What is to be known about the verdicts that count, and about those that do not."""
        said = []
        if self.kind is AnnotatorKind.HUMAN and len(self.raters) == 1:
            said.append("One person speaks for themselves, not for others.")
        if self.waiting:
            said.append(
                f"{self.waiting} of the unanswered have too few verdicts so far; `{self.command} --close` takes what "
                "they have as all there will be."
            )
        if self.late:
            said.append(f"{self.late} verdicts came after their comparison was counted, and change nothing.")
        said += [f"{count} verdicts of {WHO[kind]} are left out." for kind, count in self.other_verdicts.items()]
        return said


def plan(n: int, level: float = 0.95) -> AskPlan:
    """Return the smallest win rate that `n` decided comparisons find with chance 0.8, and say so.

    Raises MannersError where n is too small to show anything.
    """
    rate = bets.detectable_win_rate(n, power=0.8, level=level)
    sentence = (
        f"{n} decided comparisons find a difference in 8 of 10 tries if the better version wins at least "
        f"{100 * rate:.0f} % of them; a smaller one will probably be missed. Ties do not count towards the {n}. "
        "You may look at any time and stop when it is decided."
    )
    return AskPlan(n, rate, sentence)


def can_show(n: int, level: float = 0.95) -> bool:
    """Return whether `n` decided comparisons can show any difference: they do where one version wins all of them."""
    return bets.decide({1.0: n}, level) is Decision.BETTER


def spent(asked: Iterable[Comparison]) -> set[Dialogue]:
    """Return the prompts on which nothing can be opened any more: somebody was asked about them."""
    return {one.prompt for one in asked if one.asked_how in VERSUS or not one.kept}


def open_comparisons(
    before: Sequence[Answer],
    after: Sequence[Answer],
    asked: Iterable[Comparison],
    n: int,
    seed: int,
    *,
    fewer: bool = False,
) -> list[Comparison]:
    """Return `n` comparisons of two versions, each on another unused prompt, with sides drawn by coin.

    before[i] and after[i] answer the same prompt. Left out are prompts that occur in `asked` (all the store holds), but
    for comparisons that came with a file and that nothing is trained on, and those where both versions say the same, on
    which nothing can be decided. The rest are drawn uniformly without replacement; `ask_probability` is n over their
    number. One comparison per prompt, so that results are independent.
    Raises MannersError where fewer than `n` prompts are left, unless `fewer` will do, or both versions bear the same
    name.
    """
    used = spent(asked)
    pairs: dict[Dialogue, tuple[Response, Response]] = {}
    for old, new in zip(before, after, strict=True):
        if old.prompt != new.prompt:
            raise ValueError("before[i] and after[i] must answer the same prompt")
        if old.response.author == new.response.author:
            raise MannersError(f"Both versions are called {new.response.author!r}: compare two different versions.")
        if new.prompt not in used and old.response.text.strip() != new.response.text.strip():
            pairs[new.prompt] = (old.response, new.response)
    if n > len(pairs) and not fewer:
        raise MannersError(
            f"{n} comparisons were asked for, but only {len(pairs)} unused prompts have two different answers: "
            "ask for fewer, or add prompts for evaluation."
        )
    n = min(n, len(pairs))
    rng = np.random.default_rng(seed)
    prompts = list(pairs)
    drawn = [prompts[i] for i in rng.permutation(len(prompts))[:n]]
    opened = []
    for prompt, exchanged in zip(drawn, rng.random(n) < 0.5, strict=True):
        left, right = reversed(pairs[prompt]) if exchanged else pairs[prompt]
        opened.append(Comparison(prompt, left, right, AskedHow.EVALUATION, ask_probability=n / len(pairs)))
    return opened


def due_bets(
    comparisons: Iterable[Comparison], settings: ServeSettings, *, closing: bool = False
) -> list[tuple[int, Bet]]:
    """Return the bets that comparisons of an evaluation can place now, each with its comparison's id.

    A comparison bets once for each kind of annotator. For people that is when it has all the verdicts that the queue
    lets it have (`serve.overlap`, or fewer where `serve.agree` are alike), with the mean of the verdicts up to then,
    whatever has come since, or with the first answer after enough have skipped it; with `closing` it is now, with all
    there are. Other kinds are not asked by the queue: theirs bet as soon as they are looked at. Of each annotator the
    latest verdict before the bet counts, a skip is no answer, and a comparison that nobody answered places no bet.

    Who closes must not choose the moment by what the verdicts say that are not counted yet; nothing shows it to them.
    """
    found = []
    for comparison in comparisons:
        if comparison.asked_how is not AskedHow.EVALUATION or comparison.id is None:
            continue
        placed = {bet.kind for bet in comparison.bets}
        for kind in sorted({verdict.annotator.kind for verdict in comparison.verdicts} - placed):
            verdicts = _of_kind(comparison, kind)
            read = len(verdicts)
            if kind is AnnotatorKind.HUMAN:
                ends = (n for n in range(1, read + 1) if _is_complete(_choices(verdicts[:n]), settings))
                read = next(ends, read if closing else 0)
            if sides := [SIDE[choice] for choice in _choices(verdicts[:read]) if choice is not Choice.SKIP]:
                found.append((comparison.id, Bet(kind, sum(sides) / len(sides), read, verdicts[read - 1].arrived)))
    return found


def _is_complete(choices: Sequence[Choice], settings: ServeSettings) -> bool:
    """Return whether a comparison gets no more verdicts and has one: somebody may still answer what enough skipped."""
    return has_enough(choices, settings) and any(choice is not Choice.SKIP for choice in choices)


def to_judge(comparisons: Iterable[Comparison], settings: ServeSettings) -> int:
    """Count the comparisons of an evaluation that people have not judged as often as the queue lets them."""
    return sum(
        not has_enough(_choices(_of_kind(comparison, AnnotatorKind.HUMAN)), settings)
        for comparison in comparisons
        if all(bet.kind is not AnnotatorKind.HUMAN for bet in comparison.bets)
    )


def read_outcome(
    comparisons: Iterable[Comparison],
    before_author: str,
    after_author: str,
    level: float = 0.95,
    kind: AnnotatorKind = AnnotatorKind.HUMAN,
    command: str = "manners evaluate",
) -> AskOutcome:
    """Return wins, losses and the decision of the anytime-valid rule, from the bets on verdicts of one `kind`.

    Only comparisons opened for evaluation between these two versions are read, and of these only the bets that were
    placed (`due_bets`): verdicts on one comparison are not independent, so they do not bet separately. Verdicts of
    other kinds are left out, counted, and mentioned.
    """
    stakes: Counter[float] = Counter()
    kinds: Counter[AnnotatorKind] = Counter()
    raters: set[str] = set()
    unanswered = waiting = late = 0
    for comparison in comparisons:
        authors = (comparison.left.author, comparison.right.author)
        if comparison.asked_how is not AskedHow.EVALUATION or set(authors) != {before_author, after_author}:
            continue
        kinds.update(verdict.annotator.kind for verdict in comparison.verdicts)
        verdicts = _of_kind(comparison, kind)
        bet = next((bet for bet in comparison.bets if bet.kind is kind), None)
        if bet is None:
            unanswered += 1
            waiting += any(choice is not Choice.SKIP for choice in _choices(verdicts))
            continue
        stakes[bet.stake if authors[0] == after_author else -bet.stake] += 1
        heard = _heard(bet, verdicts)
        late += len(verdicts) - len(heard)
        raters |= {v.annotator.key for v in heard if v.choice is not Choice.SKIP}
    return AskOutcome(
        before_author,
        after_author,
        kind,
        level,
        wins=sum(count for stake, count in stakes.items() if stake > 0),
        losses=sum(count for stake, count in stakes.items() if stake < 0),
        ties=stakes[0],
        unanswered=unanswered,
        waiting=waiting,
        late=late,
        raters=tuple(sorted(raters)),
        other_verdicts={other: kinds[other] for other in AnnotatorKind if other is not kind and kinds[other]},
        decision=bets.decide(stakes, level),
        interval=bets.interval(stakes, level),
        e_value=bets.e_value(stakes),
        command=command,
    )


def _heard(bet: Bet, verdicts: Sequence[Verdict]) -> Sequence[Verdict]:
    """Return the verdicts that a bet was placed on, of those that were not taken back since, in order of arrival."""
    if bet.upto is None:
        return verdicts[: bet.read]
    return [verdict for verdict in verdicts if verdict.arrived is not None and verdict.arrived <= bet.upto]


def _of_kind(comparison: Comparison, kind: AnnotatorKind) -> list[Verdict]:
    """Return the verdicts of one kind of annotator, in order of arrival."""
    return [verdict for verdict in comparison.verdicts if verdict.annotator.kind is kind]


def _choices(verdicts: Sequence[Verdict]) -> list[Choice]:
    """Return the latest choice of each annotator."""
    return [verdict.choice for verdict in latest_verdicts(verdicts)]
