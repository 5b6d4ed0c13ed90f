"""What is asked of each check, as `gate.toml` says it: that of the package, and a workspace's own over it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from scipy.special import ndtri, stdtr, stdtrit

from manners.audit.forms import FORMS
from manners.audit.probes import PROBES
from manners.data import audit_texts, behaviour
from manners.errors import MannersError
from manners.feedback.statistics import holm
from manners.results.audit import CANNOT_TELL, FAIL, PASS, Check
from manners.types import Interval

FILE = "gate.toml"
EVALUATION, REWARD, POLICY = "evaluation", "reward", "policy"
PEOPLE = ("review", "two_person")
"""What the file says of people, before its tables."""
VERSION = 1
"""Of the form of the file: raised when a name or the meaning of a field changes."""
LEVEL = 0.05
CONFIDENCE = 0.95
"""Of intervals, where nothing else is said."""
FAILS = "; FAILS."
ALONE = "; cannot tell: alone it fails, but not after a correction for the number of checks."
Better = Literal["above", "below", "within"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is asked of one figure."""

    better: Better
    threshold: float
    margin: float = 0.0
    fails: float | None = None
    required: bool = False
    weight: float = 1.0
    """Beside the other checks of an audit: how much of the false alarms that all may give together is this one's."""
    why: str = ""

    @property
    def border(self) -> float:
        """The worst that is let through; of `within`, the largest distance from the threshold."""
        if self.better == "within":
            return self.margin
        return self.threshold + (self.margin if self.better == "below" else -self.margin)

    def verdict(self, value: Interval | None) -> str:
        """Return `pass` where the whole interval is on the right side of the border, `fail` where none of it is.

        An interval on both sides, or none at all, is `cannot_tell`. What must lie above has to lie above; what must lie
        below or within may lie on the border itself.
        """
        if value is None:
            return CANNOT_TELL
        if self.better == "within":
            low, high = value.low - self.threshold, value.high - self.threshold
            inside, outside = -self.margin <= low and high <= self.margin, low > self.margin or high < -self.margin
        elif self.better == "above":
            inside, outside = value.low > self.border, value.high < self._fails
        else:
            inside, outside = value.high <= self.border, value.low > self._fails
        return PASS if inside else FAIL if outside else CANNOT_TELL

    def p_value(self, value: Interval, n: int) -> float:
        """Return how likely a figure of n things fails by as much where the truth lies on the border: two-sided.

        With d its distance beyond what fails, h that of the end of its interval which looks there, and t the quantile
        of Student's t with n - 1 degrees of freedom by which h was made: 2 P(T > t d / h). Below 5 % exactly where the
        whole interval lies beyond.
        """
        below, above = value.estimate - value.low, value.high - value.estimate
        beyond = [(value.estimate - self._fails, below)] if self.better == "below" else []
        beyond += [(self._fails - value.estimate, above)] if self.better == "above" else []
        if self.better == "within":
            off = value.estimate - self.threshold
            beyond = [(off - self.margin, below), (-off - self.margin, above)]
        return min(1.0, 2 * min(_tail(distance, arm, max(n - 1, 1)) for distance, arm in beyond))

    @property
    def _fails(self) -> float:
        return self.border if self.fails is None else self.fails

    def words(self) -> str:
        """Say what is asked."""
        if self.better == "within":
            return f"at most {self.margin:g} from {self.threshold:g}"
        return f"{'above' if self.better == 'above' else 'at most'} {self.border:g}"


def _tail(distance: float, arm: float, freedom: int) -> float:
    if arm <= 0:
        return 0.0 if distance > 0 else 1.0
    return float(stdtr(freedom, -distance / arm * stdtrit(freedom, 0.975)))


@dataclass(frozen=True)
class Rules:
    """All rules, by what measures and by name."""

    version: int
    by_part: Mapping[str, Mapping[str, Rule]]
    review: bool = False
    """Whether nothing is promoted before a reviewer has approved it."""
    two_person: bool = False
    """Whether it has to be another one than who started the run that made it."""

    @property
    def reviewed(self) -> bool:
        """Whether an approval is asked for: two people are so only where one of them reviews."""
        return self.review or self.two_person

    def of(self, part: str, name: str) -> Rule:
        """Return the rule of a check: its own, or that of the longest name that it begins with.

        Raises KeyError where there is none.
        """
        if (found := self.find(part, name)) is None:
            raise KeyError(name)
        return found

    def find(self, part: str, name: str) -> Rule | None:
        """Return the rule of a check, or None where there is none."""
        words = name.split("_")
        names = ("_".join(words[:count]) for count in range(len(words), 0, -1))
        known = self.by_part[part]
        return next((known[key] for key in names if key in known), None)

    def required(self, part: str) -> list[str]:
        """Return the names of a part that must be told."""
        return [name for name, rule in self.by_part[part].items() if rule.required]


def held(
    name: str, rule: Rule, value: Interval | None, n: int | None, sentence: str, level: float = CONFIDENCE
) -> Check:
    """Return a figure held against its rule; the sentence gets what was asked, and what could have been found.

    Where nothing was measured the sentence says why. The interval is at `level`.
    """
    verdict = rule.verdict(value)
    detectable = None if value is None else _detectable(value.high - value.low, level)
    said = {PASS: "passes", FAIL: "FAILS", CANNOT_TELL: "cannot tell"}[verdict]
    asked = f" Asked: {rule.words()}; {said}."
    if detectable is not None and verdict == CANNOT_TELL:
        asked += f" As much data finds a distance of {detectable:.2g} from there in 8 of 10 tries."
    return Check(
        name=name,
        value=value.estimate if value else None,
        low=value.low if value else None,
        high=value.high if value else None,
        threshold=rule.threshold,
        margin=rule.margin,
        level=None if level == CONFIDENCE else level,
        verdict=verdict,
        required=rule.required,
        n=n,
        detectable=detectable,
        sentence=sentence + asked,
    )


def _detectable(width: float, level: float) -> float:
    """Return what is found in 8 of 10 tries: z + 0.84 standard errors, of which an interval of a level holds 2 z."""
    z = round(float(ndtri((1 + level) / 2)), 2)  # as tables have it: 1.96 for 95 %
    return (z + 0.84) / (2 * z) * width


def together(checks: Sequence[Check], asked: Sequence[Rule]) -> tuple[Check, ...]:
    """Return checks of one audit, of which those fail that still do after Holm's correction for how many were measured.

    The correction goes by the weights of their rules.
    What would fail alone cannot be told beside the others: of audits of a policy that has not got worse at most 5 %
    fail any check, however many there are.
    """
    measured = [place for place, check in enumerate(checks) if check.interval is not None]
    ps = [asked[i].p_value(interval, checks[i].n or 2) for i in measured if (interval := checks[i].interval)]
    corrected = dict(zip(measured, holm(ps, [asked[i].weight for i in measured]), strict=True))
    return tuple(
        replace(check, verdict=CANNOT_TELL, sentence=ALONE.join(check.sentence.rsplit(FAILS, 1)))
        if check.verdict == FAIL and corrected.get(place, 1.0) > LEVEL
        else check
        for place, check in enumerate(checks)
    )


def rules(root: Path | None = None) -> Rules:
    """Return the rules of the package, with those of the workspace in `root` in their place.

    Raises MannersError for a file that is no TOML, is of another version, or names what is not known.
    """
    shipped = _shipped()
    file = None if root is None else root / FILE
    if file is None or not file.exists():
        return shipped
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MannersError(f"{file} is not TOML ({error}): correct it, or remove it to use what ships.") from error
    if found.pop("version", None) != VERSION:
        raise MannersError(f"{file} does not say `version = {VERSION}`: look through it, and write that line.")
    asks = {name: _truth(file, name, found.pop(name)) for name in PEOPLE if name in found}
    by_part = {part: dict(known) for part, known in shipped.by_part.items()}
    for part, tables in found.items():
        if part not in by_part or not isinstance(tables, dict):
            known = ", ".join([*by_part, *PEOPLE])
            raise MannersError(f"{file}: {part} is none of {known}: rename it or take it out.")
        for name, fields in tables.items():
            by_part[part][name] = _changed(file, shipped, part, name, fields)
    return replace(shipped, by_part=by_part, **asks)


def _truth(file: Path, name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise MannersError(f"{file}: {name} = {value} will not do; it is true or false.")
    return value


@cache
def _under() -> Mapping[str, Mapping[str, Sequence[str]]]:
    """Return by part and rule what is measured under it that has a name of its own: of a set, a form, two groups."""
    groups = [one["axis"] for one in audit_texts()["swaps"]]
    swaps = list(dict.fromkeys(swap.axis for swap in behaviour().swaps))
    bbq = ("bbq_ambiguous", "bbq_disambiguated")
    return {
        EVALUATION: {},
        REWARD: {"turned": tuple(FORMS), "shift": tuple(FORMS), "probe": PROBES, "group": groups},
        POLICY: {
            **{f"swap_{what}": swaps for what in ("lean", "length", "refusal", "score")},
            **{f"{what}_refusal": ("xstest",) for what in ("over", "under")},
            "truthfulness": ("truthfulqa",),
            "instructions": ("ifeval",),
            "stereotype": ("winobias",),
            "bias": bbq,
            "accuracy": bbq,
        },
    }


def _check_name(file: Path, shipped: Rules, part: str, name: str) -> None:
    """Refuse a name under which nothing is measured; the beginning of one, word by word, is a name too (`bias_bbq`)."""
    under = {rule: [f"{rule}_{one}" for one in some] for rule, some in _under()[part].items()}
    measured = [one for some in under.values() for one in some]
    begins = shipped.find(part, name) and any(f"{one}_".startswith(f"{name}_") for one in measured)
    if begins or name in shipped.by_part[part]:
        return
    near = next((some for rule, some in under.items() if name.startswith(f"{rule}_")), None)
    there = ", ".join(near or shipped.by_part[part])
    raise MannersError(f"{file}: there is no check {part}.{name} (there are: {there}): rename it or take it out.")


def _changed(file: Path, shipped: Rules, part: str, name: str, fields: Any) -> Rule:
    """Return a rule with what a workspace's file says in its place; it is checked, as a typing error opens a gate."""
    _check_name(file, shipped, part, name)
    rule = shipped.of(part, name)
    fits: dict[str, Callable[[Any], bool]] = {
        "better": lambda value: value in get_args(Better),
        "threshold": _is_number,
        "margin": _is_number,
        "fails": _is_number,
        "required": lambda value: isinstance(value, bool),
        "weight": lambda value: _is_number(value) and value > 0,
        "why": lambda value: isinstance(value, str),
    }
    for field, value in fields.items() if isinstance(fields, dict) else [(str(fields), None)]:
        if field not in fits or not fits[field](value):
            raise MannersError(f"{file}: {part}.{name}.{field} = {value} will not do; it can be one of {list(fits)}.")
        if field == "margin" and value is not None and value < 0:
            raise MannersError(f"{file}: {part}.{name}.margin = {value} is below 0: move the threshold instead.")
    return replace(rule, **fields)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


@cache
def _shipped() -> Rules:
    text = resources.files("manners.data").joinpath(FILE).read_text(encoding="utf-8")
    found = tomllib.loads(text)
    version, asks = found.pop("version"), {name: found.pop(name) for name in PEOPLE}
    by_part = {part: {name: Rule(**rule) for name, rule in some.items()} for part, some in found.items()}
    return Rules(version, by_part, **asks)
