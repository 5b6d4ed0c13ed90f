"""Where each setting's value comes from: the default, then `manners.toml`, then `--set stage.field=value`."""

from __future__ import annotations

import difflib
import json
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from manners.docstrings import docstrings
from manners.errors import MannersError, UsageError
from manners.settings import Settings
from manners.settings_values import allowed, fits, stage_of


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A setting that is none any more."""

    always: Any
    """What holds now whatever is set: where a record says this, nothing has changed."""
    reason: str


WITHDRAWN = {
    "ppo.kl_estimator": Withdrawn(
        "k1", "the penalty in the reward is always k1, for k3 as a reward leads to another policy than its KL says"
    )
}


BEFORE: dict[str, Any] = {"ppo.answers": 1}
"""Settings that came later, with what was done before, where that is not their default."""


JOINED = ("reward.annotators",)
"""Settings of which TOML may give a list: ["human", "ai"] is read as human+ai."""


class Origin(StrEnum):
    """Where a setting's value was taken from; the later of these wins."""

    DEFAULT = "default"
    TOML = "manners.toml"
    SET = "--set"


@dataclass(frozen=True, slots=True)
class Field:
    """What is known of one setting, apart from its value."""

    name: str
    """As it is set: `ppo.clip`, or `seed`."""
    hint: Any
    default: Any
    meaning: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each field's name (`ppo.clip`) where its value was taken from."""

    settings: Settings
    origins: Mapping[str, Origin]


@dataclass(frozen=True, slots=True)
class Row:
    """One setting as `manners settings` prints it."""

    field: str
    value: Any
    origin: Origin
    default: Any
    allowed: str
    meaning: str


def load(toml: Path | None, overrides: Iterable[str] = ()) -> Loaded:
    """Read settings from a TOML file (none, if it is None or absent) and `stage.field=value` overrides.

    Raises:
        UsageError: an unknown stage or field, a value of the wrong type or out of range, TOML that is not TOML.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known_fields(), Origin.DEFAULT)
    if toml is not None and toml.exists():
        for name, value in _flat(_read_toml(toml)).items():
            values[name] = _typed(name, value, f"{toml}: ")
            origins[name] = Origin.TOML
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"--set {override}: write it as stage.field=value, for example --set ppo.clip=0.2.")
        values[name.strip()] = _typed(name.strip(), text.strip(), "--set ")
        origins[name.strip()] = Origin.SET
    return Loaded(_build(values), origins)


def parse(text: str, hint: Any) -> Any:
    """Return `text` as the first of number, `true`/`false`, `none` or plain text that the annotation `hint` allows.

    Raises:
        ValueError: none of them is allowed.
    """
    words = {"true": True, "false": False, "none": None}
    readings: list[Any] = [words[text.lower()]] if text.lower() in words else []
    for number in (float, int):
        try:
            readings.append(number(text))
        except ValueError:
            continue
    for reading in [*readings, text]:
        if fits(reading, hint):
            return reading
    raise ValueError(text)


def describe(loaded: Loaded, name: str | None = None) -> list[Row]:
    """Return one row a setting: all of them, those of one stage (`ppo`), or a single one (`ppo.clip`).

    Raises:
        UsageError: no stage and no field is called `name`.
    """
    values = _flat(to_dict(loaded.settings))
    chosen = [field for field in known_fields().values() if name in (None, field.name, field.name.rpartition(".")[0])]
    if not chosen and name is not None:
        raise _unknown(name, "")
    return [
        Row(
            field.name,
            values[field.name],
            loaded.origins[field.name],
            field.default,
            allowed(field.hint),
            field.meaning,
        )
        for field in chosen
    ]


def to_dict(settings: Settings) -> dict[str, Any]:
    """Return the settings as nested dictionaries of plain values, fit for JSON."""
    return asdict(settings)


def as_toml(settings: Settings) -> str:
    """Return the settings that differ from the defaults as a `manners.toml` holds them, stage by stage."""
    values, lines, section = _flat(to_dict(settings)), list[str](), ""
    for name, field in known_fields().items():
        stage, _, bare = name.rpartition(".")
        if values[name] == field.default:
            continue
        if stage != section:
            lines += ["", f"[{stage}]"]
            section = stage
        lines.append(f"{bare} = {to_toml(values[name])}")
    return "\n".join(lines).lstrip() + "\n"


def from_dict(record: Mapping[str, Any]) -> Settings:
    """Return the settings that `to_dict` wrote; a field it lacks (an older version's record) takes its default.

    A setting that was withdrawn since is left out, with a sentence on stderr where it said something else than what
    holds now.

    Raises:
        UsageError: an unknown stage or field, or a value out of range.
    """
    values = without_withdrawn(_flat(record))
    for name in values:
        if name not in {**known_fields(), **WITHDRAWN}:
            raise _unknown(name, "")
    for name in WITHDRAWN.keys() & values.keys():
        print(f"{withdrawn(name)}; this record says {values.pop(name)}", file=sys.stderr)
    return _build(values)


def without_withdrawn(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded values by name, less the withdrawn settings that say what holds now in any case."""
    return {n: value for n, value in values.items() if n not in WITHDRAWN or value != WITHDRAWN[n].always}


def differing(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return what a run was begun with and what holds now, by name, where they are not the same.

    A setting that was withdrawn, and says what holds in any case, is the same; one that came later stood at its
    default, or as BEFORE says.
    """
    was = without_withdrawn(recorded)
    known = {name: field.default for name, field in known_fields().items()} | BEFORE
    pairs = ((name, was.get(name, known.get(name)), now.get(name)) for name in sorted(was.keys() | now.keys()))
    return [(name, then, at_present) for name, then, at_present in pairs if then != at_present]


def withdrawn(name: str) -> str:
    """Say what became of a setting that is none any more; nothing of any other name."""
    return f"{name} is no longer a setting: {WITHDRAWN[name].reason}" if name in WITHDRAWN else ""


@cache
def known_fields() -> Mapping[str, Field]:
    """Return every setting by name, in the order in which the records declare them."""
    return {field.name: field for field in _fields_of(Settings)}


def _fields_of(record: type) -> list[Field]:
    """Return the fields of one settings record, those of its stages in their place."""
    hints = get_type_hints(record, include_extras=True)
    meanings = docstrings(record)
    found = []
    for entry in fields(record):
        if is_dataclass(hints[entry.name]):
            found += _fields_of(hints[entry.name])
        else:
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            assert default is not MISSING, "a setting without a default"
            name = f"{stage_of(record)}.{entry.name}".lstrip(".")
            found.append(Field(name, hints[entry.name], default, meanings[entry.name]))
    return found


def _flat(record: Mapping[str, Any], stage: str = "") -> dict[str, Any]:
    """Return nested tables as one, under dotted names; a setting that is a table itself stays whole."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        full = f"{stage}.{name}".lstrip(".")
        if isinstance(value, Mapping) and full not in known_fields():
            flat |= _flat(value, full)
        else:
            flat[full] = value
    return flat


def _build(values: Mapping[str, Any]) -> Settings:
    """Return settings with the named fields changed from their defaults."""
    hints = get_type_hints(Settings)
    stages: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        stage, _, field = name.rpartition(".")
        stages.setdefault(stage, {})[field] = value
    top = stages.pop("", {})
    return Settings(**top, **{stage: hints[stage](**changed) for stage, changed in stages.items()})


def _read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's tables."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML ({error}): correct it or move it away.") from error


def to_toml(value: object) -> str:
    """Return a setting's value as TOML has it. Raises MannersError for a text that no TOML can hold."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{to_toml(name)} = {to_toml(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise MannersError(f"{value!r} cannot be written to a settings file: it is not Unicode.") from None
    # TOML knows the escapes of JSON but for pairs of surrogates, and wants one for DEL as well.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _typed(name: str, value: object, where: str) -> Any:
    """Return a value from the user as the type that the field called `name` takes."""
    if name not in known_fields():
        raise _unknown(name, where)
    hint = known_fields()[name].hint
    try:
        if get_origin(hint) is dict:
            return _table(value, hint)
        if name in JOINED and isinstance(value, list):
            value = "+".join(map(str, value))
        if not isinstance(value, str | int | float):
            raise ValueError(value)
        # TOML has no none, and its 1 may stand for 1.0: its values are read as the same text after --set would be.
        return parse(str(value), hint)
    except ValueError:
        raise UsageError(f"{where}{name} cannot be {value!r}: it takes {allowed(hint)}.") from None


def _table(value: object, hint: Any) -> dict[str, Any]:
    """Return a table, from a file or as it would stand in one (or in JSON); raises ValueError for what is none."""
    if isinstance(value, str):
        value = json.loads(value) if '":' in value else tomllib.loads(f"table = {value}")["table"]
    if not isinstance(value, dict) or not fits(value, hint):
        raise ValueError(value)
    return value


def _unknown(name: str, where: str) -> UsageError:
    """Return the error for a name that is no setting: what became of it, or the nearest one that is."""
    if gone := withdrawn(name):
        return UsageError(f"{where}{gone}; take it out.")
    fields = list(known_fields())
    stages = {field.rpartition(".")[0] for field in fields} - {""}
    stage, _, field = name.rpartition(".")
    names = [known for known in fields if not stage or known.startswith(f"{stage}.")] or fields
    near = difflib.get_close_matches(name, names, 1, 0.5) or difflib.get_close_matches(name, [*fields, *stages], 1, 0.3)
    bare = [known for known in fields if known.rpartition(".")[2] == (field or name)]
    hint = f"did you mean {(bare + near)[0]}? " if bare + near else ""
    return UsageError(f"{where}{name} is not a setting: {hint}`manners settings` lists them all.")
