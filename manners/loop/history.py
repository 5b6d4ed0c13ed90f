"""Where the loop stands, read from the record alone: its rounds, and the one at work; `waiting` says what it waits for.

A round is a policy with an outcome: the store numbers them, in the order in which they ended. Nothing here loads torch:
the pages and `manners status` come by.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property

from manners.audit import gate
from manners.audit.rules import EVALUATION, REWARD
from manners.errors import MannersError
from manners.facts import NULL, Facts, from_facts, to_facts
from manners.holder import Holder
from manners.loop import kept
from manners.loop.stage import LAST_ROUND, ROUND
from manners.models import described
from manners.results.audit import Check, Gate
from manners.settings import LoopSettings
from manners.store import Store
from manners.store.records import Round
from manners.types import MEASURES, Choice, Comparison, Verdict, VersionKind
from manners.unfinished import begun_with, unfinished
from manners.workspace import Workspace, atomic_write

RECORD = "loop.json"
LOOP = "loop"
"""What it holds the run lock as."""


@dataclass(frozen=True)
class Reading:
    """One look at the store: what several questions are about is read once, when the first of them is asked."""

    store: Store

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """All of them."""
        return self.store.comparisons()

    @cached_property
    def arrivals(self) -> list[int]:
        """When verdicts arrived that something can be learnt from, earliest first: what each round knew is counted."""
        return sorted(verdict.arrived or 0 for verdict in teaching(self.comparisons))

    @cached_property
    def rounds(self) -> list[Round]:
        """How policies ended, in the order in which they did."""
        return self.store.rounds()


@dataclass(frozen=True, kw_only=True)
class Begun:
    """How the loop was begun, which the store does not say (`runs/loop.json`)."""

    rounds: int = 0
    """How many the workspace is to have in the end."""
    crowd: bool = False
    when: str = ""
    """What a round waits for before it learns; empty for `loop.verdicts`."""
    created_at: str = ""
    """UTC: what `loop.hours` counts from."""
    lays_out: bool | None = None
    """Whether weights are laid out for decoding, as was measured then: rounding may hang on it."""
    stopped: str = ""
    """Why it has ended; empty while it goes on."""
    failed: str = ""
    """Why the process that went on with it last has failed; empty where it has not."""
    failed_at: str = ""
    """UTC."""
    started_by: str = ""
    """Who began it, see `loop.starter`: whoever goes on with it starts no run of their own."""


class State(StrEnum):
    """How the loop stands, for those who look on."""

    NONE = "none"
    """None was begun."""
    RUNNING = "running"
    """A process plays a round."""
    WAITING = "waiting"
    """A process waits for people, or for a time."""
    IDLE = "idle"
    """No process goes on with it: it was interrupted or killed, or goes step by step."""
    FAILED = "failed"
    """The process that went on with it has failed."""
    ENDED = "ended"
    """All rounds are played, or a budget is used up."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """A round that has ended."""

    round: int
    policy: str
    reward: str
    verdicts: int
    """That were there when the reward model was trained, of all rounds up to then."""
    win_rate: float | None = field(default=None, metadata=NULL)
    """Over the version whose place it would take."""
    interval: tuple[float, float] | None = field(default=None, metadata=NULL)
    """Of 95 %."""
    quality: tuple[float, float, float] | None = field(default=None, metadata=NULL)
    """Win rate over the start version with its interval: what the rounds have come to so far."""
    kl: float | None = field(default=None, metadata=NULL)
    """To the start version, over all rounds, in nats per response."""
    gate: Gate = field(default_factory=Gate)
    """What was measured of it, held against the rules of that time."""
    outcome: str
    created_at: str = ""


def read_begun(workspace: Workspace) -> Begun | None:
    """Return how the loop was begun; None where there was none. Raises MannersError where the file is damaged."""
    file = workspace.runs / RECORD
    if not file.exists():
        return None
    try:
        begun = from_facts(
            Begun, json.loads(file.read_text(encoding="utf-8")), str(file), "remove it, and run `manners loop` again"
        )
        if begun.created_at:
            datetime.fromisoformat(begun.created_at)
    except (OSError, ValueError) as error:
        raise MannersError(f"{file} is damaged ({error}): remove it, and run `manners loop` again.") from error
    return begun


def write_begun(workspace: Workspace, begun: Begun) -> None:
    """Keep how the loop was begun."""
    workspace.runs.mkdir(exist_ok=True)
    atomic_write(workspace.runs / RECORD, json.dumps(to_facts(begun), indent=1) + "\n")


def state(begun: Begun | None, holder: Holder | None, waits: bool) -> State:
    """Return how the loop stands, by how it was begun, who trains in the workspace, and whether it waits."""
    if begun is None:
        return State.NONE
    if holder is not None and holder.stage == LOOP:
        return State.WAITING if waits else State.RUNNING
    if begun.stopped:
        return State.ENDED
    return State.FAILED if begun.failed else State.IDLE


def carried_on(begun: Begun | None, rounds: Iterable[Round], now: str) -> Begun:
    """Return the loop that goes on, the one that was begun; or, where that has played all its rounds, a new one.

    One that a budget has ended stays the same, with its budget.
    """
    if begun is None or (begun.stopped and len(ended(rounds)) >= begun.rounds):
        return Begun(created_at=now)
    return begun


def ended(rounds: Iterable[Round]) -> list[Round]:
    """Return the rounds, in the order in which their policies first had an outcome, each as it ended at last.

    A policy that people judge may be looked at again and again: that is one round.
    """
    return list({one.policy: one for one in rounds}.values())


def turn(workspace: Workspace, rounds: Sequence[Round]) -> int:
    """Return the number of the round at work: the next one, or the last whose evaluation was killed at its very end."""
    count = len(ended(rounds))
    return count if count and of_round(workspace, "evaluation") == count else count + 1


def of_round(workspace: Workspace, stage: str) -> int | None:
    """Return which round a stage's unfinished run is of; None where there is none, or it is none of the loop's."""
    for checkpoint in reversed(unfinished(workspace.runs / stage)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return _number(json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8")))
    return None


def is_done(workspace: Workspace, stage: str, turn: int) -> bool:
    """Return whether a stage has done its part of a round, also where somebody runs it by hand meanwhile, or has."""
    folder = workspace.runs / stage
    begun_as = begun_with(folder)
    if unfinished(folder) and (not begun_as or ROUND in begun_as):
        return False
    with suppress(OSError, ValueError, KeyError, TypeError):
        facts = json.loads((workspace.runs / f"{stage}.json").read_text(encoding="utf-8"))
        return turn in (_number(facts), facts.get(LAST_ROUND))
    return False


def has_begun(workspace: Workspace, stage: str, turn: int) -> bool:
    """Return whether a stage has begun its part of a round, or is done with it."""
    return of_round(workspace, stage) == turn or is_done(workspace, stage, turn)


def policy_at_work(workspace: Workspace, turn: int | None) -> str:
    """Return the policy that is judged: in a round the one that its PPO made, also where another came by hand since.

    Outside of one it is the newest. Raises MannersError where there is none.
    """
    of_round = turn is not None and is_done(workspace, "ppo", turn)
    made = (kept.read_facts(workspace, "ppo") or {}).get("version") if of_round else None
    return str(made or described.latest(workspace, VersionKind.POLICY))


def _number(facts: Facts) -> int | None:
    number = facts["begun_with"].get(ROUND)
    return number if isinstance(number, int) else None


def played(workspace: Workspace, seen: Reading) -> list[Played]:
    """Return the rounds that have ended, with what the record says of each."""
    rounds = ended(seen.rounds)
    if not rounds:
        return []
    marks = {version.name: version.watermark for version in seen.store.versions()}
    found = []
    for number, one in enumerate(rounds, 1):
        checks = _checks(workspace, one)
        over = next((c.interval for name in ("start", "win_rate") for c in checks if c.name == name), None)
        ends = one.metrics.get("interval")
        mark = marks.get(one.reward)
        found.append(
            Played(
                round=number,
                policy=one.policy,
                reward=one.reward,
                verdicts=len(seen.arrivals) if mark is None else bisect_right(seen.arrivals, mark),
                win_rate=one.metrics.get("win_rate"),
                interval=tuple(ends) if ends else None,
                quality=(over.estimate, over.low, over.high) if over else None,
                kl=one.metrics.get("kl"),
                gate=gate.decide(checks) if checks else Gate(),  # of a version that is gone nothing is known
                outcome=str(one.outcome),
                created_at=one.created_at.isoformat(timespec="seconds") if one.created_at else "",
            )
        )
    return found


def _checks(workspace: Workspace, one: Round) -> list[Check]:
    """Return what was measured of a round's policy and of its reward model; nothing of a version that is gone."""
    found = list[Check]()
    for version, part in ((one.policy, EVALUATION), (one.reward, REWARD)):
        with suppress(MannersError):
            known = gate.read(workspace, version).measured.get(part)
            found += known.checks if known else ()
    return found


def teaching(comparisons: Iterable[Comparison], *, after: int = 0) -> Iterator[Verdict]:
    """Yield the verdicts that something can be learnt from, of those that arrived after one.

    A skip is none; nor is what a judge says, who may be admitted or not (`manners judge`).
    """
    for verdict in (v for c in comparisons if c.asked_how not in MEASURES for v in c.verdicts):
        arrived, teaches = verdict.arrived or 0, verdict.choice is not Choice.SKIP and not verdict.annotator.is_judge
        if teaches and after < arrived:
            yield verdict


def counted(comparisons: Iterable[Comparison], *, after: int = 0) -> int:
    """Count these verdicts."""
    return sum(1 for _ in teaching(comparisons, after=after))


def command(workspace: Workspace) -> str | None:
    """Return the command that goes on with a loop that was stopped; None where none was."""
    begun = read_begun(workspace)
    if begun is None or begun.stopped:
        return None
    when = f' --when "{begun.when}"' if begun.when else ""
    return f"manners loop --rounds {begun.rounds}{' --crowd' if begun.crowd else ''}{when}"


def promoted_kl(rounds: Sequence[Played], current: str) -> float:
    """Return how far the promoted policy is from the start version, in nats per response; 0 for that itself."""
    return next((one.kl or 0.0 for one in reversed(rounds) if one.policy == current), 0.0)


def attempt(rounds: Sequence[Round], policy: str, against: str, drawn: str | None = None) -> int:
    """Return the how-manieth try this is for the place of `against`, the version that is current.

    Each policy that was evaluated against that before this one's own first outcome is one, however that came to be
    current, and so is each further draw of its answers (`drawn`), another chance; people's verdicts add up: no other.
    One that nobody judged is none. A round of long ago that does not say against what counts as well.
    """
    judged = (one for one in rounds if one.metrics.get("source") != "none")
    of_place = (one for one in judged if one.metrics.get("against", against) == against)
    tried = dict.fromkeys((one.policy, one.metrics.get("drawn")) for one in of_place)
    return 1 + list(tried | {(policy, drawn): None}).index((policy, drawn))


def over(
    rounds: Sequence[Played], begun: Begun, limits: LoopSettings, *, verdicts: int, current: str, moment: datetime
) -> str:
    """Return in a sentence why no round is to begin: all are played, or a budget is used up; empty where one is.

    `moment` has a time zone.
    """
    if len(rounds) >= begun.rounds:
        more = f"; more with a larger --rounds than {begun.rounds}"
        return f"{len(rounds)} round{'s are' if len(rounds) != 1 else ' is'} played{more}."
    if limits.most_verdicts is not None and verdicts >= limits.most_verdicts:
        there = f"{verdicts} verdicts of {limits.most_verdicts} are there"
        return f"loop.most_verdicts is used up: {there}; raise it to go on."
    end = datetime.fromisoformat(begun.created_at) + timedelta(hours=limits.hours or 0)
    if limits.hours is not None and moment >= end:
        since = f"the loop was begun {begun.created_at}, and {limits.hours:g} hours are over"
        return f"loop.hours is used up: {since}; raise it to go on."
    kl = promoted_kl(rounds, current)
    if limits.kl is not None and kl >= limits.kl:
        far = f"{current} is {kl:.3g} nats per response from the start version, of {limits.kl:g}"
        return f"loop.kl is used up: {far}; raise it to go on."
    return ""
