"""A file of comparisons, from its bytes to comparisons: what it is written in, and what stands in each of its rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
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
from manners.store.files.exchanges import MESSAGE_FIELDS
from manners.store.files.fields import parse_word
from manners.store.files.formats import COLUMNS, IMPORTED, SIDES, Format, detect, in_order, parse
from manners.store.files.mapping import BY_SIGN, Words
from manners.store.files.messages import CLOSES, listed, transcript
from manners.store.files.nameless import Endings, Nameless
from manners.store.files.rowfiles import layouts, places, rows_of
from manners.store.files.rows import BadRow, Fields, Reason
from manners.store.files.seen import Seen, names, unused
from manners.store.files.shapes import ANNOTATORS, FIELDS, SHAPES, Shape, first_value, shape_of
from manners.types import Annotator, Choice, Comparison, Dialogue

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
    words: Words | None
    """None where verdicts are not read."""
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
        used = set()
        for name in self.used:
            first, dot, rest = name.partition(".")
            theirs = [column for column, ours in self.mapping.items() if ours == first] or [first]
            used |= {column + dot + rest for column in theirs}
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

    def items(
        self, annotator: Annotator, nameless: Nameless | None = None, endings: Endings | None = None
    ) -> Iterator[Line]:
        """Yield what stands in each line; with `nameless`, each nameless verdict on a pair is another person's."""
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
                unnamed = annotator.name == IMPORTED.name and parse_word(fields, "annotator") is None
                if nameless is not None and unnamed:
                    comparison = nameless.numbered(comparison)
                yield line, comparison
            except BadRow as bad:
                yield line, bad if self.shape is None else replace(bad, field=self._theirs(self.shape, bad.field))

    def prompts(self) -> Iterator[tuple[int, Dialogue]]:
        """Yield the prompt of each row that can be read, with its number."""
        for line, item in self.items(IMPORTED):
            if not isinstance(item, BadRow):
                yield line, item.prompt

    def _theirs(self, shape: Shape, field_name: str) -> str:
        """Return what the file calls a field of ours."""
        names = shape.names.get(field_name, ())
        return next((name for name in names if name in self.there), field_name)

    def complaint(self, line: int, bad: BadRow, remedy: str = "and try again") -> MannersError:
        """Return what to raise for a bad row: where it stands, what is wrong, and what to do."""
        if bad.reason is Reason.LACKS_FIELD and self.shape is None and (likely := self._likely(bad.field)):
            bad = replace(bad, remark=f"{bad.remark}; if a column holds it, say which with {likely}")
        return complaint(self.path, line, bad, remedy)

    def _likely(self, lacking: str) -> str:
        """Return the `--map` options for the fields that no row has, if `lacking` is one; nothing where it is not."""
        needed = ("prompt", *SIDES[self.format], *(("verdict",) if self.format is Format.ROWS else ()))
        here = {self.mapping.get(name, name) for name in self.there}
        wanted = [name for name in needed if name not in here]
        columns = sorted(
            name for name in self.there if "." not in name and name not in (*COLUMNS[self.format], *self.mapping)
        )
        if lacking not in wanted:
            return ""
        if lacking == "prompt" or any(speaks_for(lacking, column) for column in columns):
            return suggested(columns, wanted)
        return whole_mapping(sorted(name for name in self.there if "." not in name)) if not self.mapping else ""


def complaint(path: Path, line: int, bad: BadRow, remedy: str = "and try again") -> MannersError:
    """Return what to raise for a bad row: where it stands, what is wrong, and what to do."""
    field_name = f", field `{bad.field}`" if bad.field else ""
    return MannersError(f"{places(path, [line])}{field_name}: {bad.remark}; correct it {remedy}.")


@dataclass
class Oddities:
    """What the rows of a file hold that is read in one of several ways, or that somebody should look at."""

    transcripts: int = 0
    marks: Counter[str] = field(default_factory=Counter)

    def look(self, fields: Fields) -> None:
        """Look at one row, under our names."""
        if _is_transcript(fields.get("prompt")):
            self.transcripts += 1
        else:
            self.marks.update(_left_of_a_template(fields))

    def notes(self) -> list[str]:
        """Return what was seen, a sentence each."""
        told = [f"{self.transcripts} prompts are transcripts and are read as turns"] if self.transcripts else []
        return told + [f"{count} rows have {what}" for what, count in self.marks.items()]


def survey(path: Path, mapping: Mapping[str, str], fmt: Format | None, words: Mapping[str, Choice] | None) -> Reading:
    """Read a file through and return how to read it: in the format stated, or that of most of its first rows.

    `words` say which word of the file is which verdict; where they are None, verdicts are not read. Raises MannersError
    where there is no format, and where a column of the mapping, or a field it names, does not exist.
    """
    refuse_unknown_fields(mapping, KNOWN)
    files = tuple(layouts(path))
    told: Counter[Format | str] = Counter()
    there: set[str] = set()
    columns: set[str] = set()
    first_bad: tuple[int, BadRow] | None = None
    oddities = Oddities()
    several: set[str] = set()
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
        oddities.look(ours)
        several |= {name for name, value in fields.items() if _are_texts(value)}
    if not columns:
        if first_bad:
            raise complaint(path, *first_bad)
        raise MannersError(f"{path} holds no rows; check that it is the file you meant.")
    refuse_absent_columns(path, mapping, columns)
    found = fmt or next((form for form, _ in told.most_common(1)), None)
    if found is None:
        raise _stranger(path, columns, several=several)
    if found is Format.HH and any(speaks_for("prompt", column) for column in columns - {"chosen", "rejected"}):
        raise _stranger(path, columns, "prompt")
    shape = None if isinstance(found, Format) else next(shape for shape in SHAPES if shape.name == found)
    by_sign = shape is None and below_zero and words is not None and not words
    meant = {**(shape.words if shape else {}), **(BY_SIGN if by_sign else {}), **(words or {})}
    notes = guesses(files)
    if by_sign:
        notes.append(
            "verdicts are numbers, some below 0: these are left, above is right, 0 a tie; --verdict changes it"
        )
    notes += oddities.notes()
    form = found if isinstance(found, Format) else Format.ROWS
    return Reading(
        path, form, shape, mapping, None if words is None else Words(meant), files, frozenset(there), tuple(notes)
    )


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


def _left_of_a_template(fields: Fields) -> Iterator[str]:
    """Yield what a row's texts hold that a template may have written, in words."""
    prompt = fields.get("prompt")
    if isinstance(prompt, str) and (mark := _ANSWERS.search(prompt)):
        yield f"`{mark[0].strip()}` at the end of the prompt, which stays a part of it: was it laid out by a template?"
    texts = [text for text in fields.values() if isinstance(text, str)]
    whole = [text for text in texts if not _is_transcript(text)]
    said = [text for name in ("prompt", *SIDE_FIELDS, "response") if (text := fields.get(name)) in whole]
    if named := next((found[1] for text in said if (found := _NAMED.match(text))), ""):
        yield f"`{named}` at the beginning of a text, which stays a part of it: is it a transcript?"
    sides = [fields.get(side) for side in ("chosen", "rejected") if "chosen" in fields]
    if isinstance(prompt, str) and len(sides) == 2 and all(isinstance(s, str) and s.startswith(prompt) for s in sides):
        yield "the prompt again at the beginning of both answers"
    who = first_value(fields, *ANNOTATORS)
    if isinstance(who, str) and _MODELS.match(who) and not fields.get("annotator_kind"):
        yield f"the annotator `{who}`, who counts as the kind that --annotator-kind says, `human` if it is left out"
    if closed := next((mark for text in whole for mark in CLOSES if text.rstrip().endswith(mark)), ""):
        yield f"`{closed}` at the end of a text, which stays a part of it: did a template write it?"
    if twice := next((found[0] for text in texts if (found := _TWICE.search(text))), ""):
        yield f"`{twice}`, as where UTF-8 was read as another encoding"


_MODELS = re.compile(
    r"(?:.*[/_])?(?:gpt|claude|gemini|llama|qwen|mistral|deepseek|chatgpt|weighted_alpaca)", re.IGNORECASE
)
"""What annotators are called who are no people."""
_NAMED = re.compile(r"\s*((?:#{2,3} )?(?:Human|User|Assistant|AI|Bot):)\s", re.IGNORECASE)
"""How the words of somebody begin who is named in a way that was not read as a turn."""
_TWICE = re.compile("\u00c3[\u0080-\u00bf\u0152-\u0178\u2013-\u2122]|\u00e2\u20ac")
"""What becomes of accents and quotation marks whose two or three bytes are taken for as many characters."""
_ANSWERS = re.compile(r"(?:(?<!#)#++ *+)?\b(?:assistant|response|bot|gpt|model|ai) *:\s*\Z", re.IGNORECASE)
"""With what a prompt ends that was laid out for a model to go on from."""


def _is_below_zero(value: object) -> bool:
    try:
        return float(str(value)) < 0
    except ValueError:
        return False


def _stranger(path: Path, columns: set[str], lacking: str = "", several: Collection[str] = ()) -> MannersError:
    """Return what to raise for a file in no known format, with what its columns could be."""
    if not lacking and (alone := _one_answer(sorted(columns), several)):
        return MannersError(f"{path} has the columns {', '.join(sorted(columns))}: {alone}.")
    lack = f"and no `{lacking}`" if lacking else "which are no comparisons of ours"
    maps = whole_mapping(sorted(columns)) or "--map COLUMN=FIELD, where the fields are prompt, chosen, rejected"
    return MannersError(f"{path} has the columns {', '.join(sorted(columns))}, {lack}; say which is which with {maps}.")


def _are_texts(value: object) -> bool:
    """Tell whether a value is a list of several texts."""
    texts = value if isinstance(value, list) else listed(value) if isinstance(value, str) and value[:1] == "[" else None
    return texts is not None and len(texts) > 1 and all(isinstance(text, str) for text in texts)


def _one_answer(columns: Sequence[str], several: Collection[str]) -> str:
    """Say what to do with a file that has one column of answers; nothing where it may have two."""
    answers = [column for column in columns if speaks_for("response", column)]
    if any(speaks_for(side, column) for side in SIDE_FIELDS for column in columns):
        return ""
    if not answers and {*MESSAGE_FIELDS} & {*columns}:
        return "one conversation a row, and nothing to compare it with; `manners prompts import` takes its prompts"
    if len(answers) != 1:
        return ""
    if answers[0] in several:
        how = "say which column has their scores or ranks with --map COLUMN=scores or --map COLUMN=ranks"
        return f"several answers in `{answers[0]}`; {how}"
    score = next((column for column in columns if column.lower() in _SAYS_HOW_GOOD), "")
    if not score:
        return "one answer a row, and nothing that says how good it is; `manners prompts import` takes its prompts"
    taken = {answers[0]: "response", score: "score"}
    options = [suggested([c for c in columns if c not in taken], ("prompt",))] if "prompt" not in columns else []
    options += [f"--map {column}={ours}" for column, ours in taken.items() if column != ours]
    return f"one answer a row; answers to one prompt are compared by their score with {' '.join(filter(None, options))}"


SIDE_FIELDS = ("left", "right", "chosen", "rejected")
_SAYS_HOW_GOOD = ("score", "rating", "reward", "helpfulness", "label", "labels", "preference", "rank", "quality")
