"""Asking a judge: which comparisons, both orders of each, and nothing twice."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from manners.data import judge_probes
from manners.errors import MannersError
from manners.feedback.admission import Case, beside, fair, flip_rate, judged_by_others
from manners.feedback.judge import Asked, Opinion, Reading, question
from manners.feedback.judge_endpoint import Budget, Spent
from manners.progress import steps
from manners.results.judge import Panel
from manners.reward.groups import uniform
from manners.types import (
    DELETED,
    MEASURES,
    VOLUNTEERED,
    Annotator,
    AskedHow,
    Choice,
    Comparison,
    Dialogue,
    Response,
    latest_of,
    opening,
)

if TYPE_CHECKING:
    from manners.loop.session import Session


def tried(turned: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Return how often each kind of probe turned a verdict, of how many; a kind that was not asked, of none."""
    return {name: turned.get(name, (0, 0)) for name in judge_probes()}


SET_ASIDE = "asked for an evaluation, with a candidate, or with a known verdict"
JOURNAL = "judge-answers.jsonl"
"""In runs/: what a run has been answered, by hashes of the questions and without a word of theirs. It goes when the run
has ended, for its verdicts are in the store then, and its facts are kept."""
PANEL = 12
"""Versions, the newest, whose answers are told apart."""
SPENT = ".spent"
"""In the folder of a run's checkpoints; hidden, for no backup takes a run that is unfinished."""


@dataclass(frozen=True)
class Chosen:
    """Which comparisons a judge is asked about."""

    checked: tuple[Comparison, ...]
    """Those that several people have judged, newest of all, oldest first."""
    rest: tuple[Comparison, ...]
    """Those that nobody else has judged, for an admitted judge: what it has judged, and the most of one run behind."""
    over: int
    """Beyond these."""
    left_out: dict[str, int]
    allowed: frozenset[int | None]
    """The numbers of all that may be shown to a judge: a run that goes on leaves out what was deleted since."""


def choose(
    comparisons: Iterable[Comparison], judge: Annotator, checked: int, most: int, private: frozenset[Dialogue]
) -> Chosen:
    """Choose from pooled comparisons, in their order; `private` are the prompts that no judge may be shown."""
    left_out = Counter[str]()
    held, known, new = list[Comparison](), list[Comparison](), list[Comparison]()
    allowed = set[int | None]()
    for one in comparisons:
        if reason := SET_ASIDE if one.asked_how in MEASURES else _kept_from(one, private):
            left_out[reason] += 1
            continue
        if one.kept:  # what people have said of it is for an evaluation too
            left_out["about a prompt kept for evaluation or validation"] += 1
            continue
        allowed.add(one.id)
        if len(fair(one)) > 1:
            held.append(one)
        elif judged_by_others(one):
            left_out["judged already, and not by several people that can be compared with"] += 1
        else:
            (new if latest_of(one, judge) is None else known).append(one)
    if older := held[:-checked]:
        left_out["judged by people, and older than the newest judge.checked"] = len(older)
    over = max(0, len(new) - most)
    return Chosen(tuple(held[-checked:]), (*known, *new[:most]), over, dict(left_out), frozenset(allowed))


def chosen_of(session: Session, comparisons: Iterable[Comparison], judge: Annotator) -> Chosen:
    """Choose as a workspace's settings say: whom the command asks about, and by what training admits, is one rule."""
    settings = session.settings.judge
    return choose(comparisons, judge, settings.checked, settings.most, private(session))


def private(session: Session) -> frozenset[Dialogue]:
    """Return which prompts are of people's chats alone; none where these are shared."""
    return frozenset() if session.settings.serve.share_chats else session.store.only_in_chats()


def _kept_from(one: Comparison, private: frozenset[Dialogue]) -> str | None:
    """Return why no judge may be shown a comparison, or has nothing to choose in it; None where one may be."""
    texts = one.left.text.strip(), one.right.text.strip()
    if DELETED in texts:
        return "deleted by the person whose words they were"
    if one.reported:
        return "reported, and kept away by a reviewer"
    if one.asked_how in VOLUNTEERED:
        return "from a chat or another program, where no judge's verdict trains"
    if one.prompt in private:
        return "from somebody's chat (serve.share_chats is off)"
    if not all(texts) or texts[0] == texts[1]:
        return "an empty response, or identical responses"
    return None


def evaluated(comparisons: Iterable[Comparison], version: str | None, private: frozenset[Dialogue]) -> list[Comparison]:
    """Return the comparisons of an evaluation of a version that may be shown to a judge; none where none is named."""
    return [
        one
        for one in comparisons
        if one.asked_how is AskedHow.EVALUATION
        and version in (one.left.author, one.right.author)
        and _kept_from(one, private) is None
    ]


def unjudged(some: Sequence[Comparison], judge: Annotator) -> list[Comparison]:
    """Return those that a judge has not been asked about."""
    return [one for one in some if all(verdict.annotator != judge for verdict in one.verdicts)]


class Journal:
    """What has been answered, a line each, on the disk before the next question is asked; for several threads."""

    def __init__(self, file: Path, judge: str) -> None:
        """Read what a run that was stopped has been answered; half a line never was."""
        self._file, self._judge, self._lock = file, judge, threading.Lock()
        self._known: dict[str, Reading] = {}
        for line in file.read_bytes().splitlines() if file.exists() else ():
            try:
                row = json.loads(line)
                self._known[str(row["key"])] = Reading(row["first"], int(row["sampled"]))
            except (ValueError, LookupError, TypeError):
                continue

    def __len__(self) -> int:
        """How many answers are known."""
        return len(self._known)

    @property
    def sampled(self) -> set[int]:
        """How many verdicts each that could be read was made of."""
        return {reading.sampled for reading in self._known.values() if reading.first is not None}

    def ask(self, judge: Asked, asked: Dialogue) -> Reading:
        """Return what is known, or ask and write it down."""
        key = hashlib.sha256(repr((self._judge, asked)).encode()).hexdigest()[:32]
        if key not in self._known:
            reading = judge.ask(asked)
            with self._lock, self._file.open("a", encoding="utf-8") as stream:
                row = {"key": key, "first": reading.first, "sampled": reading.sampled}
                stream.write(f"\n{json.dumps(row)}\n")  # what was half written may have left no end of line
                stream.flush()
                os.fsync(stream.fileno())
                self._known[key] = reading
        return self._known[key]


class Spending:
    """What a run has spent so far, a line each time, beside its checkpoints: it goes when they go."""

    def __init__(self, folder: Path) -> None:
        """Take the folder of the run's checkpoints."""
        self._file = folder / SPENT

    def read(self) -> tuple[int, int]:
        """Return how many requests the run has made so far, and how many tokens it took; half a line never was."""
        for line in reversed(self._file.read_bytes().splitlines() if self._file.exists() else ()):
            with suppress(ValueError, TypeError):
                asked, used = json.loads(line)
                return int(asked), int(used)
        return 0, 0

    def keep(self, asked: int, used: int) -> None:
        """Write both down, before the request is sent; a kill loses none of it, and only a power cut may."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(f"\n{json.dumps([asked, used])}\n")

    def budget(self, requests: int, tokens: int, begun: bool) -> Budget:
        """Return what a run may spend, with what it has spent before it was stopped (`begun`)."""
        if not begun:
            self._file.unlink(missing_ok=True)  # of a run that was given up
        return Budget(requests, tokens, *self.read(), self.keep)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one judge a workspace ask at a time: two would ask the same twice."""
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / "judge.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise MannersError("another `manners judge` is asking in this workspace: wait until it is done") from None
    try:
        yield
    finally:
        lock.release()


def forget(folder: Path) -> None:
    """Drop the answers of a run that has ended, unless another one asks already, which drops them in its turn."""
    with suppress(MannersError), alone(folder):
        (folder / JOURNAL).unlink(missing_ok=True)


def opinions(
    judge: Asked, journal: Journal, rules: str, pairs: Sequence[Comparison], parallel: int, title: str
) -> tuple[list[Opinion | None], bool]:
    """Ask about each pair in both orders; None where a budget was spent before. Return also whether one was.

    The first failure ends it, when the questions that are on their way have been answered and written down.
    """
    stop = threading.Event()
    spent = threading.Event()

    def both(one: Comparison) -> Opinion | None:
        if stop.is_set():
            return None
        try:
            forward = journal.ask(judge, question(rules, one.prompt, one.left, one.right))
            return Opinion.of(forward, journal.ask(judge, question(rules, one.prompt, one.right, one.left)))
        except Spent:
            spent.set()
            stop.set()
            return None
        except BaseException:
            stop.set()
            raise

    with steps(title, len(pairs)) as advance, ThreadPoolExecutor(parallel) as pool:
        found = list(_advancing(pool.map(both, pairs), advance))
    return found, spent.is_set()


def _advancing(found: Iterator[Opinion | None], advance: Callable[[int], None]) -> Iterator[Opinion | None]:
    for one in found:
        yield one
        advance(1)


def one_each(some: Iterable[Comparison]) -> list[Comparison]:
    """Return the first comparison of each opening: those of one are not independent."""
    found: dict[str, Comparison] = {}
    for one in some:
        found.setdefault(opening(one.prompt), one)
    return list(found.values())


def probed(pairs: Sequence[Comparison], said: Sequence[Choice], texts: Sequence[str], seed: int) -> list[Comparison]:
    """Return each pair with one of the texts behind the answer that the judge found worse, which stands right.

    The n-th text goes with the n-th pair, by a hash that depends on nothing else, over and over. Texts stand in turns
    at the end and at the beginning.
    """
    order = sorted(range(len(pairs)), key=lambda place: uniform("probe", seed, str(pairs[place].id)))
    found = []
    for number, place in enumerate(order):
        one = pairs[place] if said[place] is Choice.LEFT else pairs[place].turned()
        text = texts[number % len(texts)]
        worse = f"{text}\n\n{one.right.text}" if number % 2 else f"{one.right.text}\n\n{text}"
        found.append(replace(one, right=Response(worse, one.right.author, one.right.finish_reason)))
    return found


def panel(judged: Sequence[Comparison], found: Sequence[Case]) -> tuple[Panel, ...]:
    """Tell the answers of the newest versions apart; what a reward model chose of them tells nothing."""
    by_version: dict[str, list[Case]] = {}
    for one, case in zip(judged, found, strict=True):
        if one.by_model:
            continue
        by_version.setdefault(max(one.left.author, one.right.author, key=_age), []).append(case)
    rows = []
    for version, some in sorted(by_version.items(), key=lambda item: _age(item[0]))[-PANEL:]:
        people = beside(some)
        agreement, among_people, apart = (
            (people.agreement, people.among_people, people.apart) if people else (None, None, None)
        )
        rows.append(
            Panel(
                version=version,
                asked=len(some),
                flips=flip_rate(some),
                checked=sum(case.several for case in some),
                with_people=agreement,
                among_people=among_people,
                apart=apart,
            )
        )
    return tuple(rows)


def _age(author: str) -> tuple[int, str]:
    name, _, number = author.rpartition("-")
    return (int(number), name) if number.isdecimal() and len(number) < 10 else (-1, author)
