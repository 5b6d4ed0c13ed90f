"""Comparisons and prompts come in from files, whole or not at all, and go out again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from manners.errors import MannersError
from manners.store.files.formats import COLUMNS, IMPORTED, Format, render
from manners.store.files.nameless import Endings, Nameless, opinions, pair_digest
from manners.store.files.reading import Reading, survey
from manners.store.files.rowfiles import suffix_of, write_rows
from manners.store.files.rows import BadRow, Fields, Reason
from manners.store.never import Never, never_trained_on
from manners.store.records import digest
from manners.store.store import Store
from manners.types import (
    VERSUS,
    Annotator,
    AskedHow,
    Choice,
    Comparison,
    Dialogue,
    latest_verdicts,
    opening,
)

PREVIEW_ROWS = 5
SKIP = "or leave such lines out with --skip-bad"

OURS: Mapping[str, Choice] = MappingProxyType({})
"""No words for verdicts but our own."""
Texts = tuple[Dialogue, str, str]
"""What an annotator sees: prompt, left, right."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What an import of the file would meet."""

    format: str
    encoding: str
    """Of its text; empty where it holds none."""
    separator: str
    """Between its columns; empty where nothing is."""
    rows: tuple[Comparison, ...]
    """The first good rows, at most five."""
    total: int
    """Good rows and bad ones, or what they come to where a row holds several answers."""
    ties: int
    duplicates: int
    """Rows that say what an earlier row of the file says; without a name, an import takes each as another person's."""
    left_out_of_training: int
    """Comparisons about a prompt that is kept, or that the file asks about a candidate, by its opening turn."""
    unsupported_roles: int
    unused: tuple[str, ...]
    """Fields of the file from which nothing is read; `a.b` is the field `b` of the objects in `a`."""
    problems: Mapping[Reason, int]
    left_out: Mapping[Reason, int]
    """What a sound file may hold and no comparison comes of."""
    notes: tuple[str, ...]
    """What was guessed about the file."""
    first_problem: str
    """The sentence that an import without `skip_bad` would stop with; empty if there is none."""


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import added, and what it did not add, by reason."""

    comparisons: int
    verdicts: int
    duplicates: int
    left_out_of_training: int
    """Those of the file about a prompt that is kept, or that it asks about a candidate, by its opening turn."""
    skipped: Mapping[Reason, int]
    """Bad rows."""
    left_out: Mapping[Reason, int]
    """Everything of which no comparison came: bad rows, and what a sound file may hold."""
    ties: int
    format: str
    encoding: str
    separator: str
    unused: tuple[str, ...]
    notes: tuple[str, ...]


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
    words: Mapping[str, Choice] = OURS,
) -> Preview:
    """Read a file of comparisons without storing anything; bad rows are counted, not raised.

    `kept` are the openings of the prompts that a store keeps for validation or evaluation.
    """
    reading = survey(path, mapping, fmt, words)
    first: list[Comparison] = []
    problems: Counter[Reason] = Counter()
    harmless: Counter[Reason] = Counter()
    first_problem = ""
    seen: set[str] = set()
    openings: dict[str, str] = {}
    tried: set[str] = set()
    total = ties = duplicates = 0
    for line, item in reading.items(annotator):
        total += 1
        if isinstance(item, BadRow):
            (harmless if item.harmless else problems)[item.reason] += 1
            if not item.harmless:
                first_problem = first_problem or str(reading.complaint(line, item, SKIP))
            continue
        if len(first) < PREVIEW_ROWS:
            first.append(item)
        ties += _is_tie(item)
        if item.asked_how is AskedHow.CANDIDATE:
            tried.add(digest(opening(item.prompt)))
        elif item.asked_how not in VERSUS:
            openings[pair_digest(item)] = digest(opening(item.prompt))
        key = digest(repr(item))
        duplicates += key in seen
        seen.add(key)
    tried.update(map(digest, kept))
    return Preview(
        **reading.facts(),
        rows=tuple(first),
        total=total,
        ties=ties,
        duplicates=duplicates,
        left_out_of_training=sum(one in tried for one in openings.values()),
        unsupported_roles=problems[Reason.ROLE],
        unused=reading.unused,
        problems={reason: n for reason, n in problems.items() if n},
        left_out=dict(harmless),
        notes=reading.notes,
        first_problem=first_problem,
    )


def read_comparisons(
    path: Path,
    mapping: Mapping[str, str],
    fmt: Format | None = None,
    annotator: Annotator = IMPORTED,
    skipped: Counter[Reason] | None = None,
    words: Mapping[str, Choice] | None = OURS,
) -> Iterator[Comparison]:
    """Yield the comparisons of a file without a store; each nameless verdict is another person's (see `survey`).

    Raises MannersError at the first bad row; where `skipped` is given, bad rows are counted in it instead, and so is
    what a sound file may hold and no comparison comes of.
    """
    yield from comparisons_of(survey(path, mapping, fmt, words), annotator, skipped)


def comparisons_of(
    reading: Reading, annotator: Annotator = IMPORTED, skipped: Counter[Reason] | None = None
) -> Iterator[Comparison]:
    """Yield the comparisons of a file that has been looked at, as `read_comparisons` does."""
    for line, item in reading.items(annotator, Nameless()):
        if not isinstance(item, BadRow):
            yield item
        elif skipped is not None:
            skipped[item.reason] += 1
        elif not item.harmless:
            raise reading.complaint(line, item, SKIP)


def import_comparisons(
    store: Store,
    path: Path,
    mapping: Mapping[str, str],
    skip_bad: bool,
    fmt: Format | None = None,
    annotator: Annotator = IMPORTED,
    words: Mapping[str, Choice] = OURS,
) -> ImportResult:
    """Add the comparisons of a file to the store in one transaction; what is there already is counted as a duplicate.

    `annotator` is whose verdict it is where the file does not say; `words` say which word of the file is which verdict.
    A comparison of an evaluation that says no authors is the one in the store with the same prompt and texts, and a
    pair whose order nobody knows stands as the store has it; texts that differ only in how their lines end are the
    same. One that is no evaluation, on a prompt that the store keeps for validation or evaluation or that shares the
    opening turn with such a prompt, is stored, counted, and never trained on. Raises MannersError, and adds nothing, at
    the first bad row; with `skip_bad` they are left out and counted by reason.
    """
    reading = survey(path, mapping, fmt, words)
    kept = set(store.kept_openings())
    stored = store.comparisons()
    opened = {_texts(one): one for one in stored if one.asked_how is AskedHow.EVALUATION}
    turns_about = reading.shape is not None or reading.format is not Format.ROWS
    there = {(one.asked_how, _texts(one)) for one in stored} if turns_about else set()
    known = opinions(stored)
    skipped: Counter[Reason] = Counter()
    harmless: Counter[Reason] = Counter()
    left_out: set[str] = set()
    ties = 0

    def good() -> Iterator[Comparison]:
        nonlocal ties
        skipped.clear()
        harmless.clear()
        ties = 0
        for line, item in reading.items(annotator, Nameless(known), Endings(stored)):
            if not isinstance(item, BadRow):
                ties += _is_tie(item)
                if item.asked_how is AskedHow.CANDIDATE:
                    kept.add(opening(item.prompt))
                elif _is_kept(item, kept):
                    left_out.add(pair_digest(item))
                yield _with_authors(_as_stored(item, there), opened)
            elif item.harmless:
                harmless[item.reason] += 1
            elif skip_bad:
                skipped[item.reason] += 1
            else:
                raise reading.complaint(line, item, SKIP)

    # Read twice: the first time finds what is wrong and which openings are a candidate's, and others may still write.
    for _ in good():
        pass
    merged = store.merge_comparisons(good())
    return ImportResult(
        comparisons=merged.comparisons,
        verdicts=merged.verdicts,
        duplicates=merged.duplicates,
        left_out_of_training=len(left_out),
        skipped=dict(skipped),
        left_out=dict(skipped + harmless),
        ties=ties,
        unused=reading.unused,
        notes=reading.notes,
        **reading.facts(),
    )


def _is_tie(comparison: Comparison) -> bool:
    return any(verdict.choice is Choice.TIE for verdict in comparison.verdicts)


def _is_kept(comparison: Comparison, kept: AbstractSet[str]) -> bool:
    """Tell whether a comparison that is not of two versions is about a prompt whose opening is kept for such."""
    return comparison.asked_how not in VERSUS and opening(comparison.prompt) in kept


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

    `rows` holds every verdict that was not taken back, and comparisons that nobody has judged; of these, the ones of an
    evaluation do not say who wrote what (`import_comparisons` knows). `pairs` and `hh`, which others train on, hold the
    verdicts that count and prefer one side, on what may be trained on here (`never_trained_on`). The rest is counted by
    reason, and so is, in every format, what was deleted, and what was reported and kept away: no row says that.
    """
    if suffix_of(path) == ".txt":
        raise MannersError(f"{path} cannot hold comparisons; choose a name that ends in .csv, .jsonl or .parquet.")
    left_out: Counter[str] = Counter()
    written = 0

    def rows() -> Iterator[Fields]:
        nonlocal written
        for comparison in store.comparisons():
            never = never_trained_on(comparison)
            if fmt is Format.ROWS and never is not Never.DELETED:
                never = Never.REPORTED if comparison.reported else None
            verdicts = comparison.verdicts if fmt is Format.ROWS else latest_verdicts(comparison.verdicts)
            for verdict in verdicts or (None,):
                try:
                    if never:
                        raise BadRow(Reason.VERDICT, "", never)
                    yield render(comparison, verdict, fmt)
                    written += 1
                except BadRow as bad:
                    left_out[bad.remark] += 1

    write_rows(path, COLUMNS[fmt], rows())
    return ExportResult(written, dict(left_out))
