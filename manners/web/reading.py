"""What a reviewer is shown of a policy beside the version that it would replace: what differs, and answers, blind."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from manners.audit import gate
from manners.errors import MannersError
from manners.facts import from_facts
from manners.models import described
from manners.models.described import Version
from manners.results.audit import CheckRecord
from manners.results.evaluation import BesideExample, EvaluationResult
from manners.settings import Settings
from manners.store import Store
from manners.types import DELETED, AnnotatorKind, AskedHow, Comparison, Dialogue, Interval, Role, Turn, VersionKind
from manners.workspace import INITIAL, Workspace

WORST = RANDOM = 6
"""Pairs of either sort that are read: a quarter of an hour."""
NOTHING = "nothing"
"""What is said of a pair by whoever says nothing."""


@dataclass(frozen=True)
class Report:
    """report.json as it is read."""

    digest: str
    """Its SHA-256."""
    evaluation: EvaluationResult

    def is_about(self, policy: str, against: str) -> bool:
        """Return whether it compares these two."""
        return (self.evaluation.version, self.evaluation.against) == (policy, against)


@dataclass(frozen=True)
class Pair:
    """Answers of two versions to one prompt."""

    prompt: Dialogue
    other: str
    """Of the version that would be replaced."""
    this: str
    """Of the policy."""
    why: str
    """How it came to be read."""


@dataclass(frozen=True)
class Shown:
    """A pair with its sides as they are shown."""

    pair: Pair
    exchanged: bool
    """Whether the policy's answer is on the left."""

    @property
    def left(self) -> str:
        """The answer on the left."""
        return self.pair.this if self.exchanged else self.pair.other

    @property
    def right(self) -> str:
        """The answer on the right."""
        return self.pair.other if self.exchanged else self.pair.this


def candidates(workspace: Workspace) -> list[str]:
    """Return the policies that can be reviewed, newest first: all but the current one."""
    current = workspace.current_policy()
    return [name for name in reversed(described.names(workspace, VersionKind.POLICY)) if name != current]


def report(workspace: Workspace) -> Report | None:
    """Return the report; None where there is none. Raises MannersError where it is damaged."""
    file = workspace.report_json
    try:
        content = file.read_bytes()
        facts = json.loads(content)
        evaluation = dict(facts.get("evaluation") or {})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise MannersError(f"{file} is damaged ({error}): run `manners report` again.") from error
    found = from_facts(EvaluationResult, evaluation, str(file), "run `manners report` again")
    return Report(hashlib.sha256(content).hexdigest(), found)


def pairs(found: Report | None, store: Store, policy: str, against: str) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs on which a policy was liked least, worst first, and all others there are, without repetition.

    People's word comes first, of comparisons that count already (`Bet`): nobody is asked about them any more. Then come
    those of the report, where it compares the two. Pairs that say the same, or from which words were deleted, are none.
    """
    by_people = sorted(_by_people(store, policy, against), key=lambda judged: judged[0])
    worst = [pair for liked, pair in by_people if liked < 0]
    others = [pair for liked, pair in by_people if liked >= 0]
    if found is not None and found.is_about(policy, against):
        worst += _of_report(found.evaluation.worst, "liked least, by the judge or the reward model")
        others += _of_report(found.evaluation.examples, "drawn at random")
    seen = set[tuple[str, str, str]]()
    return _once(worst, seen), _once(others, seen)


def _by_people(store: Store, policy: str, against: str) -> Iterator[tuple[float, Pair]]:
    """Yield the comparisons that people have judged, each with how it turned out for the policy: -1 to 1."""
    for one in store.comparisons(AskedHow.EVALUATION):
        if {one.left.author, one.right.author} != {policy, against} or one.reported:
            continue
        liked = _liked(one, policy)
        if liked is not None:
            texts = {side.author: side.text for side in (one.left, one.right)}
            why = "people liked it less" if liked < 0 else "judged by people"
            yield liked, Pair(one.prompt, texts[against], texts[policy], why)


def _liked(comparison: Comparison, policy: str) -> float | None:
    bet = next((bet for bet in comparison.bets if bet.kind is AnnotatorKind.HUMAN), None)
    if bet is None:
        return None
    return bet.stake if comparison.left.author == policy else -bet.stake


def _of_report(examples: Sequence[BesideExample] | None, why: str) -> list[Pair]:
    return [
        Pair((Turn(Role.USER, one.prompt or ""),), one.before or "", one.after or "", why) for one in examples or ()
    ]


def _once(pairs: Sequence[Pair], seen: set[tuple[str, str, str]]) -> list[Pair]:
    """Return the pairs that are worth reading, and that were not seen yet."""
    found = []
    for pair in pairs:
        key = (pair.prompt[-1].text, pair.other, pair.this)
        same = pair.other.strip() == pair.this.strip()
        if key not in seen and not same and DELETED not in (pair.other, pair.this):
            seen.add(key)
            found.append(pair)
    return found


def drawn(worst: Sequence[Pair], others: Sequence[Pair], seed: bytes) -> list[Shown]:
    """Return the pairs to be read, in an order and with sides that follow from a seed: loading the page anew shows no
    side again the other way round, and where the worst stand is not to be seen."""
    chance = random.Random(seed)
    read = [*worst[:WORST], *chance.sample(list(others), min(RANDOM, len(others)))]
    chance.shuffle(read)
    return [Shown(pair, chance.random() < 0.5) for pair in read]


def mark(shown: Sequence[Shown]) -> str:
    """Return a text that is another one where other pairs are shown, or the same with other sides."""
    return hashlib.sha256(repr([(one.pair.prompt, one.left, one.right) for one in shown]).encode()).hexdigest()


def counted(shown: Sequence[Shown], said: Sequence[str]) -> dict[str, int]:
    """Return how often which answer was called better, by what was said of each pair: `left`, `right` or `alike`."""
    sides = {("left", True): "this", ("right", False): "this", ("left", False): "other", ("right", True): "other"}
    words = zip(shown, said, strict=True)
    found = [sides.get((word, one.exchanged), "alike") for one, word in words if word != NOTHING]
    return {name: found.count(name) for name in ("this", "other", "alike") if name in found}


def differences(workspace: Workspace, policy: str, against: str) -> dict[str, list[tuple[str, str, str]]]:
    """Return what differs between two versions, by heading: what, of the one to be replaced, and of the policy.

    The initial model was made by no settings: the defaults stand in their place.
    """
    other, this = (_version(workspace, name) for name in (against, policy))
    before, after = (one.settings if one else asdict(Settings()) for one in (other, this))
    return {
        "Settings": list(_differing(_flat(before), _flat(after))),
        "Data": list(_differing(_data(workspace, other), _data(workspace, this))),
    }


def _version(workspace: Workspace, name: str) -> Version | None:
    """Return a version's description; the initial model has none."""
    return None if name == INITIAL else described.describe(workspace, name)


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": words(value)}
    return found


def _data(workspace: Workspace, version: Version | None) -> dict[str, str]:
    """Return what a version learned from, as far as it says: by what, up to which verdict, and what was left out."""
    if version is None:
        return {}
    record = gate.read(workspace, version.name)
    found: dict[str, Any] = {"trained by": version.method, "began as": version.parent, "reward model": version.reward}
    taught = version
    if version.reward and version.reward in described.names(workspace, VersionKind.REWARD):
        taught = described.describe(workspace, version.reward)
    found |= {"verdicts up to number": taught.watermark, "whose verdicts": taught.source}
    found |= {f"left out: {reason}": count for reason, count in taught.left_out.items()}
    metrics = {**taught.metrics, **version.metrics}
    counts = {"trained_on": "comparisons learned from", "set_aside": "comparisons set aside", "prompts": "prompts"}
    found |= {called: metrics.get(key) for key, called in counts.items()}
    return {key: words(value) for key, value in (found | _people(record)).items() if value is not None}


def _people(record: CheckRecord) -> dict[str, Any]:
    """Return whose verdicts were in the record when a version was made."""
    people = record.people
    if people is None:
        return {}
    given = {f"verdicts in the record: {choice.replace('_', ' ')}": count for choice, count in people.verdicts.items()}
    found: dict[str, Any] = {"annotators": people.annotators, "comparisons in the record": people.comparisons, **given}
    return found | {"agreement of two who both chose a side": people.agreement}


def _differing(other: Mapping[str, str], this: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield what differs; all that there is where the other version says nothing."""
    for name in dict.fromkeys((*other, *this)):
        if other.get(name) != this.get(name):
            yield name, other.get(name, ""), this.get(name, "")


def answers(found: EvaluationResult) -> list[tuple[str, str, str]]:
    """Return how the answers of two versions differ, as an evaluation has measured them: other and this version."""
    rows: list[tuple[str, str, str]] = []
    for name, what in MEASURED.items():
        both = (getattr(found, f"{name}_before"), getattr(found, f"{name}_after"))
        if None not in both:
            change = getattr(found, f"{name}_change", None)
            rows.append((what, words(both[0]), f"{words(both[1])}{f' (change {words(change)})' if change else ''}"))
    return rows


MEASURED = {
    "length": "mean length, in tokens",
    "finished": "share finished",
    "distinct_2": "different pairs of tokens, as a share of all",
    "most_common_answer": "share of the most common answer",
    "score": "mean score by the reward model",
    "perplexity": "perplexity on plain text (of the initial model, and of this version)",
}
"""Fields of an evaluation with a value before and after."""


def words(value: Any) -> str:
    """Return a value as a person reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Interval):
        return f"{value.estimate:.3g} [{value.low:.3g}, {value.high:.3g}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value)) or "none"
    return "none" if value is None else str(value)
