"""Comparisons and prompts come in from files, whole or not at all, and go out again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

from manners.errors import MannersError
from manners.store.columns import comparison_fields, renamed, suggested
from manners.store.fields import parse_word
from manners.store.formats import COLUMNS, IMPORTED, Format, detect, parse, render
from manners.store.nameless import Nameless, opinions, pair_digest
from manners.store.records import digest
from manners.store.rowfiles import read_rows, suffix_of, write_rows
from manners.store.rows import BadRow, Fields, Reason
from manners.store.store import Store
from manners.types import (
    DELETED,
    Annotator,
    AskedHow,
    Choice,
    Comparison,
    Dialogue,
    Verdict,
    latest_verdicts,
    opening,
)

PREVIEW_ROWS = 5
SKIP = "or leave such lines out with --skip-bad"

Line = tuple[int, Comparison | BadRow]
"""Line number, and what stands there."""
Texts = tuple[Dialogue, str, str]
"""What an annotator sees: prompt, left, right."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What an import of the file would meet."""

    format: Format
    rows: tuple[Comparison, ...]
    """The first good rows, at most five."""
    total: int
    """Good rows and bad ones."""
    ties: int
    duplicates: int
    """Rows that say what an earlier row of the file says."""
    left_out_of_training: int
    """Comparisons about a prompt that is kept for validation or evaluation, by its opening turn."""
    unsupported_roles: int
    unused: tuple[str, ...]
    """Columns that are none of ours and would be left behind."""
    problems: Mapping[Reason, int]
    first_problem: str
    """The sentence that an import without `skip_bad` would stop with; empty if there is none."""


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import added, and what it did not add, by reason."""

    comparisons: int
    verdicts: int
    duplicates: int
    left_out_of_training: int
    """Comparisons of the file about a prompt that is kept for validation or evaluation, by its opening turn."""
    skipped: Mapping[Reason, int]


@dataclass(frozen=True, slots=True)
class ExportResult:
    """How many rows an export wrote, and what the format could not hold, by reason."""

    rows: int
    left_out: Mapping[str, int]


def preview(
    path: Path,
    mapping: Mapping[str, str],
    fmt: Format | None = None,
    annotator: Annotator = IMPORTED,
    kept: AbstractSet[str] = frozenset(),
) -> Preview:
    """Read a file of comparisons without storing anything; bad rows are counted, not raised.

    `kept` are the openings of the prompts that a store keeps for validation or evaluation.
    """
    fmt = _format_of(path, mapping, fmt)
    first: list[Comparison] = []
    problems: Counter[Reason] = Counter()
    first_problem = ""
    seen: set[str] = set()
    left_out: set[str] = set()
    total = ties = duplicates = 0
    for line, item in _items(path, mapping, fmt, annotator, Nameless()):
        total += 1
        if isinstance(item, BadRow):
            problems[item.reason] += 1
            first_problem = first_problem or str(complaint(path, line, item, SKIP))
            continue
        if len(first) < PREVIEW_ROWS:
            first.append(item)
        ties += any(verdict.choice is Choice.TIE for verdict in item.verdicts)
        if _is_kept(item, kept):
            left_out.add(pair_digest(item))
        key = digest(repr(item))
        duplicates += key in seen
        seen.add(key)
    rows = (renamed(fields, mapping) for _, fields in read_rows(path) if not isinstance(fields, BadRow))
    return Preview(
        format=fmt,
        rows=tuple(first),
        total=total,
        ties=ties,
        duplicates=duplicates,
        left_out_of_training=len(left_out),
        unsupported_roles=problems[Reason.ROLE],
        unused=tuple(sorted({name for fields in rows for name in fields} - COLUMNS[fmt].keys())),
        problems=dict(problems),
        first_problem=first_problem,
    )


def read_comparisons(
    path: Path,
    mapping: Mapping[str, str],
    fmt: Format | None = None,
    annotator: Annotator = IMPORTED,
    skipped: Counter[Reason] | None = None,
) -> Iterator[Comparison]:
    """Yield the comparisons of a file, one for each row, without a store; each nameless verdict is another person's.

    Raises MannersError at the first bad row; where `skipped` is given, bad rows are counted in it instead.
    """
    for line, item in _items(path, mapping, _format_of(path, mapping, fmt), annotator, Nameless()):
        if not isinstance(item, BadRow):
            yield item
        elif skipped is None:
            raise complaint(path, line, item, SKIP)
        else:
            skipped[item.reason] += 1


def import_comparisons(
    store: Store,
    path: Path,
    mapping: Mapping[str, str],
    skip_bad: bool,
    fmt: Format | None = None,
    annotator: Annotator = IMPORTED,
) -> ImportResult:
    """Add the comparisons of a file to the store in one transaction; what is there already is counted as a duplicate.

    `annotator` is whose verdict it is where the file does not say. A comparison of an evaluation that says no authors
    is the one in the store with the same prompt and texts, and a pair whose order nobody knows stands as the store has
    it. One that is no evaluation, on a prompt that the store keeps for validation or evaluation or that shares the
    opening turn with such a prompt, is stored, counted, and never trained on. Raises MannersError, and adds nothing, at
    the first bad row; with `skip_bad` they are left out and counted by reason.
    """
    fmt = _format_of(path, mapping, fmt)
    kept = store.kept_openings()
    stored = store.comparisons()
    opened = {_texts(one): one for one in stored if one.asked_how is AskedHow.EVALUATION}
    there = {(one.asked_how, _texts(one)) for one in stored} if fmt is not Format.ROWS else set()
    known = opinions(stored)
    skipped: Counter[Reason] = Counter()
    left_out: set[str] = set()

    def good() -> Iterator[Comparison]:
        skipped.clear()
        for line, item in _items(path, mapping, fmt, annotator, Nameless(known)):
            if not isinstance(item, BadRow):
                if _is_kept(item, kept):
                    left_out.add(pair_digest(item))
                yield _with_authors(_as_stored(item, there), opened)
            elif skip_bad:
                skipped[item.reason] += 1
            else:
                raise complaint(path, line, item, SKIP)

    # Read twice: the first time finds what is wrong while others may still write.
    for _ in good():
        pass
    merged = store.merge_comparisons(good())
    return ImportResult(merged.comparisons, merged.verdicts, merged.duplicates, len(left_out), dict(skipped))


def _is_kept(comparison: Comparison, kept: AbstractSet[str]) -> bool:
    """Tell whether a comparison that is no evaluation is about a prompt whose opening is kept for one."""
    return comparison.asked_how is not AskedHow.EVALUATION and opening(comparison.prompt) in kept


def _as_stored(comparison: Comparison, there: AbstractSet[tuple[AskedHow, Texts]]) -> Comparison:
    """Return a comparison, turned round where that is how it is there already."""
    turned = comparison.turned()
    is_there, turned_is = ((one.asked_how, _texts(one)) in there for one in (comparison, turned))
    if is_there or not turned_is:
        return comparison
    # Nobody knows how they were shown: turning them says nothing new about it.
    return replace(turned, verdicts=tuple(replace(verdict, exchanged=False) for verdict in turned.verdicts))


def _with_authors(comparison: Comparison, opened: Mapping[Texts, Comparison]) -> Comparison:
    """Return a labelled comparison of an evaluation with the authors that its blind export left out, where known."""
    blind = comparison.asked_how is AskedHow.EVALUATION and comparison.left.author == IMPORTED.name
    known = opened.get(_texts(comparison)) if blind else None
    return comparison if known is None else replace(comparison, left=known.left, right=known.right)


def _texts(comparison: Comparison) -> Texts:
    return comparison.prompt, comparison.left.text, comparison.right.text


def export_comparisons(store: Store, path: Path, fmt: Format) -> ExportResult:
    """Write the comparisons of the store to a file whose suffix says what it is made of.

    `rows` holds everything: every verdict that was ever given, and comparisons that nobody has judged; of these, the
    ones of an evaluation do not say who wrote what (`import_comparisons` knows). `pairs` and `hh` hold the verdicts
    that count and prefer one side; the rest, and in every format what was deleted, is counted by reason.
    """
    if suffix_of(path) == ".txt":
        raise MannersError(f"{path} cannot hold comparisons; choose a name that ends in .csv, .jsonl or .parquet.")
    left_out: Counter[str] = Counter()
    written = 0

    def rows() -> Iterator[Fields]:
        nonlocal written
        for comparison in store.comparisons():
            verdicts = comparison.verdicts if fmt is Format.ROWS else latest_verdicts(comparison.verdicts)
            for verdict in verdicts or (None,):
                try:
                    yield _rendered(comparison, verdict, fmt)
                    written += 1
                except BadRow as bad:
                    left_out[bad.remark] += 1

    write_rows(path, COLUMNS[fmt], rows())
    return ExportResult(written, dict(left_out))


def _rendered(comparison: Comparison, verdict: Verdict | None, fmt: Format) -> Fields:
    if DELETED in (comparison.left.text, comparison.right.text):
        raise BadRow(Reason.EMPTY, "", "deleted by the person whose words they were")
    return render(comparison, verdict, fmt)


def _items(
    path: Path, mapping: Mapping[str, str], fmt: Format, annotator: Annotator, nameless: Nameless
) -> Iterator[Line]:
    """Yield what stands in each line; each nameless verdict on a pair is another person's."""
    for line, fields in read_rows(path):
        try:
            if isinstance(fields, BadRow):
                raise fields
            ours = renamed(fields, mapping)
            comparison = parse(ours, fmt, annotator)
            if annotator.name == IMPORTED.name and parse_word(ours, "annotator") is None:
                comparison = nameless.numbered(comparison)
            yield line, comparison
        except BadRow as bad:
            yield line, bad if isinstance(fields, BadRow) else _with_prompt(bad, ours, fmt)


def _with_prompt(bad: BadRow, fields: Fields, fmt: Format) -> BadRow:
    """Return what is wrong with a row, and where it is the lack of a prompt, the option that names the likeliest."""
    lacks = (bad.reason is Reason.LACKS_FIELD and bad.field == "prompt") or bad.reason is Reason.TRANSCRIPT
    option = suggested((name for name in fields if name not in COLUMNS[fmt]), ("prompt",))
    if not lacks or "prompt" in fields or not option:
        return bad
    return BadRow(bad.reason, bad.field, f"{bad.remark}; if a column holds the prompt, say which with {option}")


def _format_of(path: Path, mapping: Mapping[str, str], fmt: Format | None) -> Format:
    """Return the format of a file: the one stated, or that of the first row whose fields tell.

    Raises MannersError when there is none, and when a column of the mapping, or a field that it names, does not exist.
    """
    known = sorted({name for columns in COLUMNS.values() for name in columns})
    if wrong := sorted(set(mapping.values()) - set(known)):
        raise MannersError(f"--map: `{wrong[0]}` is not a field of ours; choose among {', '.join(known)}.")
    columns: set[str] = set()
    first_bad: MannersError | None = None
    for line, fields in read_rows(path):
        if isinstance(fields, BadRow):
            first_bad = first_bad or complaint(path, line, fields)
            continue
        columns |= fields.keys()
        fmt = fmt or detect(renamed(fields, mapping))
        if fmt and columns >= mapping.keys():
            return fmt
    found = ", ".join(sorted(columns))
    if not columns:
        raise first_bad or MannersError(f"{path} holds no rows; check that it is the file you meant.")
    if absent := sorted(mapping.keys() - columns):
        raise MannersError(f"--map: {path} has no column `{absent[0]}`; it has {found}.")
    options = suggested(sorted(columns), comparison_fields(columns)) or "--map"
    raise MannersError(
        f"{path} has the columns {found}, which are no comparisons of ours; say which is which with {options}."
    )


def complaint(path: Path, line: int, bad: BadRow, remedy: str = "and try again") -> MannersError:
    """Return what to raise for a bad row of a file."""
    place = "row" if suffix_of(path) == ".parquet" else "line"
    field = f", field `{bad.field}`" if bad.field else ""
    return MannersError(f"{path}, {place} {line}{field}: {bad.remark}; correct it {remedy}.")
