"""What to ask next: which comparison an annotator sees, and with which probability; knows no database and no model."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from manners.settings import ServeSettings
from manners.types import Choice, Draw, DrawnHow, OpenComparison

SPACING = 10
"""Comparisons that an annotator judges before one of them may come again as a repeat."""
MOST_AT_ONCE = 20
"""Comparisons that are kept from others for one annotator: a page has two, and nobody looks at ten pages."""


@dataclass
class _State:
    """What is known of one comparison."""

    asked: OpenComparison
    verdicts: dict[str, Choice] = field(default_factory=dict)
    leases: dict[str, float] = field(default_factory=dict)
    """Who has it before them, and until when."""
    held_back: bool = False


class _Bag:
    """A set that a member can be drawn from uniformly in constant time."""

    def __init__(self) -> None:
        self._members: list[int] = []
        self._place: dict[int, int] = {}

    def __contains__(self, member: int) -> bool:
        return member in self._place

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: int) -> None:
        if member not in self._place:
            self._place[member] = len(self._members)
            self._members.append(member)

    def discard(self, member: int) -> None:
        place = self._place.pop(member, None)
        if place is not None:
            last = self._members.pop()
            if last != member:
                self._members[place] = last
                self._place[last] = place

    def draws(self, rng: random.Random) -> Iterator[int]:
        """Yield members, each drawn from all of them."""
        while True:
            yield rng.choice(self._members)


def has_enough(choices: Iterable[Choice], settings: ServeSettings, waiting: int = 0) -> bool:
    """Return whether a comparison gets no more verdicts: it has `overlap`, or `agree` alike, or enough have skipped it.

    `choices` are the latest of each annotator; `waiting` of those who have it before them.
    """
    counts = Counter(choices)
    skips = counts.pop(Choice.SKIP, 0)
    return (
        counts.total() + waiting >= settings.overlap
        or max(counts.values(), default=0) >= settings.agree
        or skips >= settings.retire_after
    )


def still_to_get(choices: Iterable[Choice], settings: ServeSettings) -> int:
    """Return how many more verdicts a comparison gets at most, skips apart: 0 where it has enough."""
    given = list(choices)
    if has_enough(given, settings):
        return 0
    return settings.overlap - sum(choice is not Choice.SKIP for choice in given)


class Queue:
    """The open comparisons and who has seen them; for one thread at a time.

    Of all draws, `gold_share` have a known verdict and `repeat_share` were judged by the annotator before, where there
    are any. Of the rest `random_share` are uniform among what the annotator may judge; the others are the first that a
    reward model chose (adversarial), or where there is none the comparison with the largest spread / (1 + verdicts on
    its prompt), so that the reward model's members disagree and the prompt is new. Adversarial ones are never drawn
    uniformly, nor again as a repeat: nothing is measured on them.
    """

    def __init__(self, settings: ServeSettings, seed: int | None, clock: Callable[[], float]) -> None:
        """Take the shares and limits, a seed (None: a new one) and a clock in seconds."""
        self._settings = settings
        self._rng = random.Random(seed)
        self._clock = clock
        self._states: dict[int, _State] = {}
        self._free = _Bag()
        """Those that somebody may still be given, gold and adversarial ones apart."""
        self._first: list[int] = []
        """Those that a reward model chose, the earliest first: the most suspicious of a round is opened first."""
        self._first_free = set[int]()
        """Those of them that somebody may still be given."""
        self._gold: list[int] = []
        self._spread: list[tuple[float, int]] = []
        """What the reward model's members differ about, most first."""
        self._on_prompt = Counter[int]()
        self._met: defaultdict[str, set[int]] = defaultdict(set)
        """What each annotator has judged, has before them, or wrote themselves, and what asks about the same pairs."""
        self._by: defaultdict[str, set[int]] = defaultdict(set)
        """What each author wrote one of the responses of."""
        self._author: dict[str, str] = {}
        self._writing_as: defaultdict[str, set[str]] = defaultdict(set)
        self._asking: defaultdict[frozenset[int], list[int]] = defaultdict(list)
        """The comparisons of each pair of responses."""
        self._late: defaultdict[str, set[int]] = defaultdict(set)
        """What may still be on an annotator's screen although its lease has ended."""
        self._given_back: defaultdict[str, set[int]] = defaultdict(set)
        """What a page of an annotator had that is gone, or is not: given to them again once there is nothing else."""
        self._judged: defaultdict[str, list[int]] = defaultdict(list)
        """By annotator, in the order of their verdicts, skips left out."""
        self._repeated: defaultdict[str, set[int]] = defaultdict(set)
        self._before: defaultdict[str, dict[int, None]] = defaultdict(dict)
        """What each annotator has before them, in the order in which it was given to them."""
        self._leases: list[tuple[float, int, str]] = []
        """A heap: what runs out first comes first."""

    def add(self, asked: OpenComparison) -> None:
        """Take a comparison in; one that is known stays as it is."""
        if asked.comparison in self._states:
            return
        state = self._states[asked.comparison] = _State(asked)
        if asked.pair:
            self._asking[asked.pair].append(asked.comparison)
        for author in asked.authors:
            self._by[author].add(asked.comparison)
            for annotator in self._writing_as[author] | {author}:
                self._met[annotator].add(asked.comparison)
        if asked.gold:
            self._gold.append(asked.comparison)
        elif asked.adversarial:
            self._first.append(asked.comparison)
        self._sort_in(state)

    def writes_as(self, annotator: str, author: str) -> None:
        """Say under which name an annotator writes, where that is not who they are: nobody judges their own."""
        if self._author.get(annotator, annotator) != author:
            self._author[annotator] = author
            self._writing_as[author].add(annotator)
            self._met[annotator] |= self._by[author]

    def set_spread(self, spread: Mapping[int, float]) -> None:
        """Say how far the reward model's members differ about comparisons."""
        self._spread = sorted(((std, comparison) for comparison, std in spread.items() if std > 0), reverse=True)

    def judge(self, annotator: str, comparison: int, choice: Choice) -> None:
        """Note a verdict; the same one again changes nothing."""
        state = self._states.get(comparison)
        if state is None:
            return
        state.leases.pop(annotator, None)
        self._before[annotator].pop(comparison, None)
        pair = self._same_pair(comparison)
        self._given_back[annotator].difference_update(pair)
        self._late[annotator].difference_update(pair)
        self._met[annotator].update(pair)
        if annotator not in state.verdicts:
            self._on_prompt[state.asked.prompt] += 1
            if choice is not Choice.SKIP:
                self._judged[annotator].append(comparison)
        state.verdicts[annotator] = choice
        self._sort_in(state)

    def withdraw(self, annotator: str, comparison: int) -> None:
        """Forget a verdict that was taken back."""
        state = self._states.get(comparison)
        if state is None or state.verdicts.pop(annotator, None) is None:
            return
        self._on_prompt[state.asked.prompt] -= 1
        self._forget(annotator, comparison)
        if comparison in self._judged[annotator]:
            self._judged[annotator].remove(comparison)
        self._sort_in(state)

    def hold_back(self, comparison: int, held: bool) -> None:
        """Show a comparison to nobody, or again to everybody."""
        if state := self._states.get(comparison):
            state.held_back = held
            self._sort_in(state)

    def lease(self, annotator: str, comparison: int, seconds: float = math.inf) -> None:
        """Keep a comparison for an annotator for so long, or as long as any is kept where that is less.

        Whoever has too many before them keeps those that were given to them last.
        """
        if state := self._states.get(comparison):
            until = self._clock() + min(seconds, 60 * self._settings.lease)
            state.leases[annotator] = until
            heapq.heappush(self._leases, (until, comparison, annotator))
            self._given_back[annotator].discard(comparison)
            self._met[annotator].update(self._same_pair(comparison))
            self._sort_in(state)
            before = self._before[annotator]
            before.pop(comparison, None)
            before[comparison] = None
            if len(before) > MOST_AT_ONCE:
                self._end_lease(annotator, next(iter(before)))

    def release(self, annotator: str) -> None:
        """Give back what an annotator has before them and has not answered, for a page of theirs is a new one.

        Others may have it at once; they themselves last, for another page of theirs may show it still.
        """
        for comparison in list(self._before[annotator]):
            self._end_lease(annotator, comparison)
        self._given_back[annotator] |= self._late.pop(annotator, set())

    def draw(self, annotator: str) -> Draw | None:
        """Choose a comparison for an annotator and lease it to them; None where there is nothing for them to judge."""
        self._let_leases_end()
        settings = self._settings
        rng = self._rng
        known = self._known(annotator)
        if not known and not self._new(annotator):
            self._take_again(annotator)
            known = self._known(annotator)
        again = [one for one in self._judged[annotator][:-SPACING] if self._may_repeat(annotator, one)]
        new = self._new(annotator)
        gold = settings.gold_share if known else 0.0
        repeat = settings.repeat_share if again else 0.0
        lot = rng.random()
        pool: int | None
        if lot < gold or (known and not new):
            chosen, drawn, pool = rng.choice(known), DrawnHow.GOLD, len(known)
            probability = (gold if new else 1.0) / pool
        elif not new:
            return None
        elif lot < gold + repeat:
            chosen, drawn, pool, probability = rng.choice(again), DrawnHow.REPEAT, len(again), repeat / len(again)
            self._repeated[annotator].add(chosen)
        else:
            chosen, drawn, probability, pool = self._draw_new(annotator)
            probability *= 1 - gold - repeat
        self.lease(annotator, chosen)
        return Draw(chosen, drawn, probability, rng.random() < 0.5, pool)

    @property
    def open(self) -> int:
        """How many comparisons somebody may still be given, whoever that is; those with a known verdict apart."""
        return len(self._free) + len(self._first_free)

    def left(self, annotator: str) -> int:
        """Return how many comparisons an annotator may still judge, those with a known verdict among them."""
        back = [self._states[one] for one in self._given_back[annotator]]
        free = (self._free, self._first_free)
        open_still = sum(
            any(one.asked.comparison in some for some in free) or (one.asked.gold and not one.held_back) for one in back
        )
        return self._new(annotator) + len(self._known(annotator)) + open_still

    def _new(self, annotator: str) -> int:
        """Return how many of those whose verdict is not known an annotator may still judge, adversarial ones too."""
        return self._count(annotator) + len(self._before_others(annotator))

    def _count(self, annotator: str) -> int:
        """Return how many an annotator may be given by chance."""
        return len(self._free) - sum(one in self._free for one in self._met[annotator])

    def _before_others(self, annotator: str) -> list[int]:
        """Return the adversarial ones that an annotator may still judge, the first of which comes first."""
        return [one for one in self._first if one in self._first_free and one not in self._met[annotator]]

    def _known(self, annotator: str) -> list[int]:
        """Return the comparisons with a known verdict that an annotator may still judge."""
        return [one for one in self._gold if one not in self._met[annotator] and not self._states[one].held_back]

    def _same_pair(self, comparison: int) -> list[int]:
        """Return the comparisons that ask about the same two responses, this one among them."""
        return self._asking.get(self._states[comparison].asked.pair, [comparison])

    def _draw_new(self, annotator: str) -> tuple[int, DrawnHow, float, int | None]:
        """Choose by the settings' shares; the probability counts both ways to the same comparison.

        Return also among how many it was: adversarial ones and those that chance may give are apart. Beside adversarial
        ones it is not said of a draw by chance (None): what its p lacks of 1 / N went to none of the N, so that it must
        weigh 1 and not 1 / (N p) (`reward.drawing`).
        """
        met, count = self._met[annotator], self._count(annotator)
        first = self._before_others(annotator)
        top = first[0] if first else self._most_interesting(met)
        uniform = 0.0 if not count else self._settings.random_share if top is not None else 1.0
        if top is None or (count and self._rng.random() < uniform):
            chosen = next(one for one in self._free.draws(self._rng) if one not in met)
            probability = uniform / count + (1 - uniform) * (chosen == top)
            return chosen, DrawnHow.RANDOM, probability, None if first else count
        if first:
            return top, DrawnHow.ADVERSARIAL, 1 - uniform, len(first)
        return top, DrawnHow.DISAGREEMENT, uniform / count + 1 - uniform, count

    def _most_interesting(self, met: set[int]) -> int | None:
        best = 0.0
        found = None
        for std, comparison in self._spread:
            if std <= best:
                break  # nobody further on can be more interesting, even on a new prompt
            if comparison in self._free and comparison not in met:
                interest = std / (1 + self._on_prompt[self._states[comparison].asked.prompt])
                if interest > best:
                    best, found = interest, comparison
        return found

    def _sort_in(self, state: _State) -> None:
        """Put a comparison among those that somebody may be given, or take it away from them."""
        waiting = len(state.leases.keys() - state.verdicts.keys())
        is_done = has_enough(state.verdicts.values(), self._settings, waiting)
        free: _Bag | set[int] = self._first_free if state.asked.adversarial else self._free
        if is_done or state.held_back or state.asked.gold:
            free.discard(state.asked.comparison)
        else:
            free.add(state.asked.comparison)

    def _let_leases_end(self) -> None:
        now = self._clock()
        while self._leases and self._leases[0][0] <= now:
            until, comparison, annotator = heapq.heappop(self._leases)
            if self._states[comparison].leases.get(annotator) == until:
                self._end_lease(annotator, comparison)

    def _end_lease(self, annotator: str, comparison: int) -> None:
        """Let others have a comparison; whoever had it may see it still, and is not given it again until `_forget`."""
        state = self._states[comparison]
        del state.leases[annotator]
        del self._before[annotator][comparison]
        self._late[annotator].add(comparison)
        self._sort_in(state)

    def _take_again(self, annotator: str) -> None:
        """Let an annotator be given what a page of theirs gave back."""
        for comparison in self._given_back.pop(annotator, ()):
            self._forget(annotator, comparison)

    def _forget(self, annotator: str, comparison: int) -> None:
        """Let an annotator be given a comparison again, unless they have judged its pair, have it, or wrote it."""
        pair = [self._states[one] for one in self._same_pair(comparison)]
        author = self._author.get(annotator, annotator)
        if not any(
            annotator in state.verdicts or annotator in state.leases or author in state.asked.authors for state in pair
        ):
            self._met[annotator].difference_update(state.asked.comparison for state in pair)

    def _may_repeat(self, annotator: str, comparison: int) -> bool:
        state = self._states[comparison]
        measures = not (state.asked.gold or state.asked.adversarial)
        return measures and not state.held_back and comparison not in self._repeated[annotator]
