"""Somebody's columns: read under our names, and guessed at where a field of ours is missing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from manners.errors import MannersError
from manners.store.files.rowfiles import read_rows
from manners.store.files.rows import BadRow, Fields

_ANSWER = ("response", "answer", "completion", "output", "reply", "generated", "assistant", "text")
NAMES: Mapping[str, Sequence[str]] = {
    "prompt": (
        "prompt",
        "question",
        "instruction",
        "query",
        "input",
        "user",
        "problem",
        "trajectory",
        "task",
        "context",
        "post",
    ),
    "response": _ANSWER,
    "chosen": ("chosen", "better", "preferred", "accepted", "positive", "good", "winner", "win", "pos", "j"),
    "rejected": ("rejected", "worse", "dispreferred", "refused", "negative", "bad", "loser", "lose", "neg", "k"),
    "left": ("left", "a", "1", "first", "one", "0"),
    "right": ("right", "b", "2", "second", "two", "1"),
    "verdict": (
        "verdict",
        "choice",
        "label",
        "preference",
        "winner",
        "vote",
        "judgement",
        "preferred",
        "better",
        "chosen",
    ),
}
"""What others call our fields: words of a column's name, the likeliest first."""
_SIDES = ("left", "right")
_BESIDE = frozenset(("id", "idx", "index", "uuid", "source", "model", "dataset", "split", "lang", "date"))
_BESIDE |= {"score", "scores", "rating", "ratings", "reward", "rewards", "rank", "rationale", "policy"}
"""Words in the names of columns that hold no text of a conversation."""
_WORDS = 20
"""Words in the name of a column; one of more is no side of anything."""


def renamed(fields: Fields, mapping: Mapping[str, str]) -> Fields:
    """Return the row with the user's columns renamed; a column that a renamed one takes the place of is left out.

    Several columns that are one field (an instruction, and the text that it is about) are joined by a blank line, in
    the order in which they were named; those of them that say nothing are passed over.
    """
    targets = set(mapping.values())
    kept = {name: value for name, value in fields.items() if name not in mapping and name not in targets}
    found: dict[str, Any] = {}
    for name, ours in mapping.items():
        if name in fields:
            found[ours] = _together(found[ours], fields[name]) if ours in found else fields[name]
    return kept | found


def _together(before: Any, after: Any) -> Any:
    """Join two texts; of what is no text, a list of both, which is no value of any field."""
    there = [value for value in (before, after) if value is not None and value != ""]
    if len(there) < 2:
        return there[0] if there else before
    return "\n\n".join(there) if all(isinstance(value, str) for value in there) else [[value] for value in there]


def check_mapping(path: Path, mapping: Mapping[str, str], known: Iterable[str]) -> None:
    """Raise MannersError where a mapping names a field that is none of `known`, or a column that no row has."""
    refuse_unknown_fields(mapping, known)
    if not mapping:
        return
    columns: set[str] = set()
    for _, fields in read_rows(path):
        if not isinstance(fields, BadRow):
            columns |= fields.keys()
            if columns >= mapping.keys():
                return
    refuse_absent_columns(path, mapping, columns)


def refuse_unknown_fields(mapping: Mapping[str, str], known: Iterable[str]) -> None:
    """Raise MannersError where a mapping names a field that is none of `known`."""
    fields = sorted(set(known))
    if wrong := sorted(set(mapping.values()) - set(fields)):
        raise MannersError(f"--map: `{wrong[0]}` is not a field of ours; choose among {', '.join(fields)}.")


def refuse_absent_columns(path: Path, mapping: Mapping[str, str], columns: AbstractSet[str]) -> None:
    """Raise MannersError where a mapping names a column that is none of a file's."""
    if absent := sorted(mapping.keys() - columns):
        there = ", ".join(sorted(columns)) or "none"
        raise MannersError(f"--map: {path} has no column `{absent[0]}`; it has {there}.")


def suggested(columns: Iterable[str], wanted: Sequence[str]) -> str:
    """Return the `--map` options that would fill these fields with what others call them; empty without any column.

    A field that no column's name speaks for gets the first column that is left, for the reader to correct.
    """
    left = list(columns)
    found = dict(zip(_SIDES, _both_sides(left), strict=False)) if set(_SIDES) <= set(wanted) else {}
    options = []
    for field in wanted:
        free = [column for column in left if column not in found.values()]
        fitting = [(rank, column) for column in free if (rank := _rank(field, column)) is not None]
        plain = [column for column in free if not _beside(column)]
        column = found.get(field) or (min(fitting, key=lambda one: one[0])[1] if fitting else next(iter(plain), ""))
        if not column:
            continue
        # What an instruction is about stands beside it: one without the other says something else.
        whole = [
            column,
            *(c for c in left if field == "prompt" and words_in(column) == ["instruction"] and c == "input"),
        ]
        for one in whole:
            left.remove(one)
            options.append(f"--map {_quoted(one)}={field}")
    return " ".join(options)


def _both_sides(columns: Sequence[str]) -> tuple[str, str] | tuple[()]:
    """Return two columns whose names differ only in the side that they are, as `answer_0` and `answer_1` do."""
    columns = sorted(columns, key=lambda column: not any(name in column.lower() for name in _ANSWER))
    parts = {column: said for column in columns if len(said := tuple(words_in(column))) <= _WORDS}
    parts = {column: said for column, said in parts.items() if not _beside(column)}
    named = {said: column for column, said in reversed(parts.items())}
    for left, right in zip(NAMES["left"], NAMES["right"], strict=True):
        for column, said in parts.items():
            for place, word in enumerate(said):
                if word == left and (other := named.get((*said[:place], right, *said[place + 1 :]))):
                    return column, other
    return ()


def comparison_fields(columns: Iterable[str]) -> tuple[str, ...]:
    """Return the fields that a file of comparisons with these columns most likely holds under other names."""
    columns = list(columns)
    found = {field for field in NAMES if any(_rank(field, column) is not None for column in columns)}
    wanted = ("chosen", "rejected") if {"chosen", "rejected"} <= found else (*_SIDES, "verdict")
    return tuple(field for field in ("prompt", *wanted) if field not in columns)


def whole_mapping(columns: Sequence[str]) -> str:
    """Return the `--map` options by which a file with these columns holds comparisons; nothing where none would do."""
    fields = comparison_fields(columns)
    found = all(any(speaks_for(field, column) for column in columns) for field in fields)
    return suggested(columns, fields) if found else ""


def speaks_for(field: str, column: str) -> bool:
    """Tell whether a column's name says that it holds a field of ours."""
    return _rank(field, column) is not None


def _rank(field: str, column: str) -> tuple[int, int] | None:
    """Return how well a column's name speaks for a field, less being better; None if it does not."""
    words = words_in(column)
    if _beside(column):
        return None
    if field in _SIDES:
        ranks = [place for place, name in enumerate(NAMES[field]) if name in words[-1:] or name in words[:1]]
        answers = any(name in column.lower() for name in _ANSWER)
        return (not answers, ranks[0]) if ranks else None
    ranks = [place for place, name in enumerate(NAMES[field]) if name in words or (len(name) > 4 and name in column)]
    return (len(words) > 1, ranks[0]) if ranks else None


def _beside(column: str) -> bool:
    """Tell whether a column says something about a text: `model_a`, `response_model`; not so `model_response`."""
    sides = {name for side in _SIDES for name in NAMES[side]}
    words = [word for word in words_in(column) if word not in sides]
    return bool(words) and (words[-1] in _BESIDE or (bool(_BESIDE & set(words)) and not set(_ANSWER) & set(words)))


def words_in(column: str) -> list[str]:
    """Return the words of a column's name, also of one such as `scoreChosen`, in small letters."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z0-9])", " ", column)
    return re.findall(r"[^\W_]+", spaced.lower())


def _quoted(column: str) -> str:
    return f'"{column}"' if re.search(r"[^\w.-]", column) else column
