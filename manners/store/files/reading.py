"""A file of comparisons, from its bytes to comparisons: what it is written in, and what stands in each of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from manners.errors import MannersError
from manners.store.files.columns import (
    refuse_absent_columns,
    refuse_unknown_fields,
    renamed,
    speaks_for,
    suggested,
    whole_mapping,
)
from manners.store.files.containers import Layout, guesses
from manners.store.files.fields import parse_word
from manners.store.files.formats import COLUMNS, IMPORTED, Format, detect, in_order, parse
from manners.store.files.mapping import BY_SIGN, Words
from manners.store.files.messages import transcript
from manners.store.files.nameless import Endings, Nameless
from manners.store.files.rowfiles import layouts, place, rows_of
from manners.store.files.rows import BadRow, Fields, Reason
from manners.store.files.seen import Seen, names, unused
from manners.store.files.shapes import FIELDS, SHAPES, Shape, shape_of
from manners.types import Annotator, Choice, Comparison

Line = tuple[int, Comparison | BadRow]
"""Line number, and what stands there."""
TELLING = 20
"""How many rows tell the format: a damaged first one does not."""
KNOWN = frozenset({name for columns in COLUMNS.values() for name in columns} | {"system"} | FIELDS)
"""Fields that a column may be mapped to."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file of comparisons is read, and what became of its fields."""

    path: Path
    format: Format
    """That of its rows, or of what its rows come to."""
    shape: Shape | None
    """The published data set that it is written like."""
    mapping: Mapping[str, str]
    words: Words
    files: tuple[Layout, ...]
    there: frozenset[str]
    """The names of all fields in the file."""
    notes: tuple[str, ...]
    """What was guessed, one sentence each."""
    used: set[str] = field(default_factory=set)
    """The fields of ours that were asked for, which grows as rows are read."""

    @property
    def name(self) -> str:
        """What the format is called."""
        return self.shape.name if self.shape else self.format.value

    @property
    def unused(self) -> tuple[str, ...]:
        """The fields of the file that nothing was read from, so far."""
        theirs = {ours: column for column, ours in self.mapping.items()}
        used = set()
        for name in self.used:
            first, dot, rest = name.partition(".")
            used.add(theirs.get(first, first) + dot + rest)
        return unused(set(self.there), used)

    def facts(self) -> dict[str, str]:
        """Return what the file is made of, for the reports of an import."""
        encodings = {file.encoding for file in self.files}
        separators = {file.separator for file in self.files}
        return {
            "format": self.name,
            "encoding": ", ".join(sorted(encodings - {""})),
            "separator": " or ".join(sorted(separators - {""})),
        }

    def items(self, annotator: Annotator, nameless: Nameless, endings: Endings | None = None) -> Iterator[Line]:
        """Yield what stands in each line; each nameless verdict on a pair is another person's."""
        rows = (
            (number, row if isinstance(row, BadRow) else Seen(renamed(row, self.mapping), self.used))
            for number, row in rows_of(self.files)
        )
        for line, fields in rows if self.shape is None else self.shape.expand(rows):
            try:
                if isinstance(fields, BadRow):
                    raise fields
                comparison = parse(fields, self.format, annotator, self.words)
                if endings is not None:
                    known = endings.known(comparison)
                    comparison = known if self.format is Format.ROWS else in_order(known)
                if annotator.name == IMPORTED.name and parse_word(fields, "annotator") is None:
                    comparison = nameless.numbered(comparison)
                yield line, comparison
            except BadRow as bad:
                yield line, bad if self.shape is None else replace(bad, field=self._theirs(self.shape, bad.field))

    def _theirs(self, shape: Shape, field_name: str) -> str:
        """Return what the file calls a field of ours."""
        names = shape.names.get(field_name, ())
        return next((name for name in names if name in self.there), field_name)

    def complaint(self, line: int, bad: BadRow, remedy: str = "and try again") -> MannersError:
        """Return what to raise for a bad row: where it stands, what is wrong, and what to do."""
        ours = COLUMNS[self.format]
        likely = suggested(sorted(name for name in self.there if "." not in name and name not in ours), ("prompt",))
        if bad.reason is Reason.LACKS_FIELD and bad.field == "prompt" and likely:
            bad = replace(bad, remark=f"{bad.remark}; if a column holds the prompt, say which with {likely}")
        return complaint(self.path, line, bad, remedy)


def complaint(path: Path, line: int, bad: BadRow, remedy: str = "and try again") -> MannersError:
    """Return what to raise for a bad row: where it stands, what is wrong, and what to do."""
    field_name = f", field `{bad.field}`" if bad.field else ""
    return MannersError(f"{place(path, line)}{field_name}: {bad.remark}; correct it {remedy}.")


def survey(path: Path, mapping: Mapping[str, str], fmt: Format | None, words: Mapping[str, Choice]) -> Reading:
    """Read a file through and return how to read it: in the format stated, or that of most of its first rows.

    Raises MannersError where there is none, and where a column of the mapping, or a field it names, does not exist.
    """
    refuse_unknown_fields(mapping, KNOWN)
    files = tuple(layouts(path))
    told: Counter[Format | str] = Counter()
    there: set[str] = set()
    columns: set[str] = set()
    first_bad: tuple[int, BadRow] | None = None
    transcripts = 0
    below_zero = False
    for line, fields in rows_of(files):
        if isinstance(fields, BadRow):
            first_bad = first_bad or (line, fields)
            continue
        columns |= fields.keys()
        there |= set(names(fields))
        ours = renamed(fields, mapping)
        if fmt is None and told.total() < TELLING and (form := _told(ours)):
            told[form] += 1
        below_zero = below_zero or _is_below_zero(ours.get("verdict"))
        transcripts += _is_transcript(ours.get("prompt"))
    if not columns:
        if first_bad:
            raise complaint(path, *first_bad)
        raise MannersError(f"{path} holds no rows; check that it is the file you meant.")
    refuse_absent_columns(path, mapping, columns)
    found = fmt or next((form for form, _ in told.most_common(1)), None)
    if found is None:
        raise _stranger(path, columns)
    if found is Format.HH and any(speaks_for("prompt", column) for column in columns - {"chosen", "rejected"}):
        raise _stranger(path, columns, "prompt")
    shape = None if isinstance(found, Format) else next(shape for shape in SHAPES if shape.name == found)
    by_sign = shape is None and below_zero and not words
    meant = {**(shape.words if shape else {}), **(BY_SIGN if by_sign else {}), **words}
    notes = guesses(files)
    if by_sign:
        notes.append(
            "verdicts are numbers, some below 0: these are left, above is right, 0 a tie; --verdict changes it"
        )
    if transcripts:
        notes.append(f"{transcripts} prompts are transcripts and are read as turns")
    form = found if isinstance(found, Format) else Format.ROWS
    return Reading(path, form, shape, mapping, Words(meant), files, frozenset(there), tuple(notes))


def _told(fields: Fields) -> Format | str | None:
    """Return how a row is written: the format, or a shape's name; a shape is told by more fields than a pair is."""
    fmt = detect(fields)
    shape = None if fmt is Format.ROWS else shape_of(fields)
    return shape.name if shape else fmt


def _is_transcript(prompt: object) -> bool:
    try:
        return isinstance(prompt, str) and transcript(prompt, "prompt") is not None
    except BadRow:
        return False


def _is_below_zero(value: object) -> bool:
    try:
        return float(str(value)) < 0
    except ValueError:
        return False


def _stranger(path: Path, columns: set[str], lacking: str = "") -> MannersError:
    """Return what to raise for a file in no known format, with what its columns could be."""
    lack = f"and no `{lacking}`" if lacking else "which are no comparisons of ours"
    maps = whole_mapping(sorted(columns)) or "--map COLUMN=FIELD, where the fields are prompt, chosen, rejected"
    return MannersError(f"{path} has the columns {', '.join(sorted(columns))}, {lack}; say which is which with {maps}.")
