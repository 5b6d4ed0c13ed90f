"""The commands on what people said: prompts, responses and comparisons, in and out of the store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import EnumChoicesFromValues, Positional, UseAppendAction, arg, subcommand

from manners.cli.common import Common, Result
from manners.errors import UsageError
from manners.settings import ModelSettings
from manners.store import Store, audit, gold
from manners.store.files.fields import prompt_text
from manners.store.files.formats import IMPORTED, Format
from manners.store.files.mapping import mapping_of, words_of
from manners.store.files.prompts import export_prompts, import_prompts, parse_split, prompts_of
from manners.store.files.reading import survey
from manners.store.files.rowfiles import suffix_of, write_rows
from manners.store.files.transfer import export_comparisons, import_comparisons, preview
from manners.types import (
    DELETED,
    Annotator,
    AnnotatorKind,
    Choice,
    Comparison,
    Dialogue,
    PromptUse,
    latest_verdicts,
)
from manners.workspace import Workspace

File = Annotated[Positional[Path], arg(metavar="FILE")]
RESPONSE_COLUMNS: dict[str, type] = {
    "prompt": str,
    "response": str,
    "author": str,
    "finish_reason": str,
    "sampling": str,
}


@dataclass(frozen=True, kw_only=True)
class StoreCommon(Common):
    """Options of every command on the store."""

    @contextmanager
    def store(self) -> Iterator[Store]:
        """Yield the workspace's store, and let go of it afterwards."""
        store = Store.open(self.open().database)
        try:
            yield store
        finally:
            store.close()

    def refused(self, file: Path, rows: Iterable[tuple[int, Dialogue]], what: str, model: ModelSettings) -> Result:
        """Count what the model's chat template refuses of a file's rows, by reason, and name them on stderr."""
        from manners.loop.laid_out import counts, of_file, tell

        found = of_file(rows, model)
        tell(found, what, file)
        return {"refused_by_template": counts(found)} if found else {}


@dataclass(frozen=True, kw_only=True)
class ListCommon(StoreCommon):
    """Options of every list."""

    limit: Annotated[int, arg(metavar="N")] = 20
    """How many to print, from the first; the total is printed beside them."""

    def first(self, name: str, records: list[dict[str, Any]]) -> Result:
        """Return the first of the records, and how many there are."""
        if self.limit < 0:
            raise UsageError(f"--limit cannot be {self.limit}: it takes a whole number from 0 on.")
        return {name: records[: self.limit], "total": len(records)}


@dataclass(frozen=True, kw_only=True)
class PromptsImport(StoreCommon):
    """Add the prompts of a file: .txt with one on each line, or .jsonl, .csv, .parquet with `prompt` or comparisons."""

    file: File
    """Where the prompts are."""
    use: EnumChoicesFromValues[PromptUse | None] = None
    """What they may be used for, from now on: train (if left out), validate or evaluate."""
    split: Annotated[str | None, arg(metavar="USE=SHARE,...")] = None
    """Divide them by a hash of the opening turn, for example train=0.8,validate=0.1,evaluate=0.1."""
    mapping: Annotated[UseAppendAction[tuple[str, ...]], arg(name="map", metavar="COLUMN=FIELD")] = ()
    """Read the file's column COLUMN as our field FIELD."""
    skip_known: bool = False
    """Leave prompts that are there already as they are, whatever they are for."""
    skip_bad: bool = False
    """Leave bad lines out, and count them by reason."""

    def run(self) -> Result:
        """Add them."""
        if self.use and self.split:
            raise UsageError("--use puts all prompts on one side, --split divides them: give one of the two.")
        shares = {self.use or PromptUse.TRAIN: 1.0} if self.split is None else parse_split(self.split)
        mapping, model = mapping_of(self.mapping), self.settings().model
        with self.store() as store:
            found = import_prompts(
                store, self.file, shares, mapping, skip_known=self.skip_known, skip_bad=self.skip_bad
            )
        return {**asdict(found), **self.refused(self.file, prompts_of(self.file, mapping), "prompts", model)}


@dataclass(frozen=True, kw_only=True)
class PromptsExport(StoreCommon):
    """Write the prompts, without those of chats and programs, to a file whose suffix says what it is made of."""

    file: File
    """A .jsonl, .csv, .parquet or .txt file."""
    use: EnumChoicesFromValues[PromptUse | None] = None
    """Only those of this use."""

    def run(self) -> Result:
        """Write them."""
        with self.store() as store:
            found = export_prompts(store, self.file, self.use)
            written = {"prompts": found.rows, "left_out": found.left_out, "file": self.file}
            audit.record(store, audit.Deed(audit.Event.EXPORTED, about="prompts"))
        return written


@dataclass(frozen=True, kw_only=True)
class PromptsList(ListCommon):
    """List the prompts."""

    use: EnumChoicesFromValues[PromptUse | None] = None
    """Only those of this use."""

    def run(self) -> Result:
        """List them."""
        with self.store() as store:
            prompts = store.prompts(self.use)
        return self.first("prompts", [{"id": p.id, "use": p.use, "prompt": prompt_text(p.dialogue)} for p in prompts])


@dataclass(frozen=True, kw_only=True)
class ResponsesExport(StoreCommon):
    """Write every response with its prompt and its author to a file whose suffix says what it is made of."""

    file: File
    """A .jsonl, .csv or .parquet file."""

    def run(self) -> Result:
        """Write them."""
        if suffix_of(self.file) == ".txt":
            raise UsageError(f"{self.file} cannot hold responses: choose a name that ends in .csv, .jsonl or .parquet.")
        with self.store() as store:
            records = responses_of(store.comparisons())
            write_rows(self.file, RESPONSE_COLUMNS, records)
            audit.record(store, audit.Deed(audit.Event.EXPORTED, about="responses"))
        return {"responses": len(records), "file": self.file}


@dataclass(frozen=True, kw_only=True)
class ResponsesList(ListCommon):
    """List the responses."""

    def run(self) -> Result:
        """List them."""
        with self.store() as store:
            return self.first("responses", responses_of(store.comparisons()))


@dataclass(frozen=True, kw_only=True)
class ComparisonsImport(StoreCommon):
    """Add the comparisons of a file: all of them, or none if a line is bad."""

    file: File
    """Pairs, HH transcripts, our own rows or a published data set: .jsonl, .json, .csv, .tsv, .parquet, or a folder."""
    mapping: Annotated[UseAppendAction[tuple[str, ...]], arg(name="map", metavar="COLUMN=FIELD")] = ()
    """Read the file's column COLUMN as our field FIELD."""
    verdict: Annotated[UseAppendAction[tuple[str, ...]], arg(name="verdict", metavar="WORD=VERDICT")] = ()
    """Read the file's WORD as our VERDICT; a number goes by its sign where both signs are given."""
    format: EnumChoicesFromValues[Format | None] = None
    """How the file writes comparisons down; told by its fields if left out."""
    annotator: str = IMPORTED.name
    """Who gave the verdicts, where the file does not say."""
    annotator_kind: EnumChoicesFromValues[AnnotatorKind] = IMPORTED.kind
    """What sort of annotator that is."""
    dry_run: bool = False
    """Show five rows, and what is odd about the rest; change nothing."""
    skip_bad: bool = False
    """Leave bad lines out, and count them by reason."""

    def run(self) -> Result:
        """Add them, or say what would be added."""
        mapping, words, model = mapping_of(self.mapping), words_of(self.verdict), self.settings().model
        annotator = Annotator(self.annotator, self.annotator_kind)
        if self.dry_run:
            found = preview(self.file, mapping, self.format, annotator, self._kept(), words)
            counts = {name: value for name, value in asdict(found).items() if name != "rows"}
            refused = self.refused(self.file, self._rows(mapping, words), "comparisons", model)
            return {"rows": [comparison_record(row) for row in found.rows], **counts, **refused}
        with self.store() as store:
            result = import_comparisons(store, self.file, mapping, self.skip_bad, self.format, annotator, words)
        return {**asdict(result), **self.refused(self.file, self._rows(mapping, words), "comparisons", model)}

    def _rows(self, mapping: Mapping[str, str], words: Mapping[str, Choice]) -> Iterator[tuple[int, Dialogue]]:
        """Yield the prompt of each row; nothing is read before one is asked for."""
        yield from survey(self.file, mapping, self.format, words).prompts()

    def _kept(self) -> frozenset[str]:
        """Return the openings that the workspace keeps for evaluation; a file may be looked at without a workspace."""
        if not Workspace.is_at(self.workspace):
            return frozenset()
        with self.store() as store:
            return store.kept_openings()


@dataclass(frozen=True, kw_only=True)
class ComparisonsExport(StoreCommon):
    """Write the comparisons with their verdicts to a file whose suffix says what it is made of."""

    file: File
    """A .jsonl, .csv or .parquet file."""
    format: EnumChoicesFromValues[Format] = Format.ROWS
    """rows holds all verdicts; pairs (prompt/chosen/rejected) and hh (transcripts) those for a side that may teach."""

    def run(self) -> Result:
        """Write them."""
        with self.store() as store:
            written = {**asdict(export_comparisons(store, self.file, self.format)), "file": self.file}
            audit.record(store, audit.Deed(audit.Event.EXPORTED, about="comparisons"))
        return written


@dataclass(frozen=True, kw_only=True)
class ComparisonsGold(StoreCommon):
    """Put a comparison in whose verdict is known: now and then annotators meet it, and nothing tells them."""

    number: Annotated[Positional[int], arg(metavar="NUMBER")]
    """The comparison, by the `id` that `manners comparisons list` shows; it stays as it is, and is asked anew."""
    choice: Annotated[Choice, EnumChoicesFromValues]
    """The verdict that it should get, of the sides as the list shows them."""

    def run(self) -> Result:
        """Put it in."""
        chats = self.settings().serve.share_chats
        with self.store() as store:
            return asdict(gold.add(store, self.number, self.choice, chats=chats))


@dataclass(frozen=True, kw_only=True)
class ComparisonsList(ListCommon):
    """List the comparisons, with the verdicts that count."""

    def run(self) -> Result:
        """List them."""
        with self.store() as store:
            return self.first("comparisons", [comparison_record(comparison) for comparison in store.comparisons()])


Prompts = (
    Annotated[PromptsImport, subcommand("import")]
    | Annotated[PromptsExport, subcommand("export")]
    | Annotated[PromptsList, subcommand("list")]
)
Responses = Annotated[ResponsesExport, subcommand("export")] | Annotated[ResponsesList, subcommand("list")]
Comparisons = (
    Annotated[ComparisonsImport, subcommand("import")]
    | Annotated[ComparisonsExport, subcommand("export")]
    | Annotated[ComparisonsGold, subcommand("gold")]
    | Annotated[ComparisonsList, subcommand("list")]
)


def responses_of(comparisons: list[Comparison]) -> list[dict[str, Any]]:
    """Return each response that was put before an annotator once, as a row of `RESPONSE_COLUMNS`."""
    shown = dict.fromkeys((c.prompt, one) for c in comparisons for one in (c.left, c.right) if one.text != DELETED)
    return [
        {
            "prompt": prompt_text(prompt),
            "response": response.text,
            "author": response.author,
            "finish_reason": response.finish_reason.value,
            "sampling": json.dumps(asdict(response.sampling)) if response.sampling else None,
        }
        for prompt, response in shown
    ]


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as a list shows it: verdicts counted by annotator kind, never across kinds."""
    verdicts: dict[str, Counter[str]] = {}
    for verdict in latest_verdicts(comparison.verdicts):
        verdicts.setdefault(verdict.annotator.kind.value, Counter())[verdict.choice.value] += 1
    return {
        "id": comparison.id,
        "asked_how": comparison.asked_how,
        "prompt": prompt_text(comparison.prompt),
        "left": comparison.left.text,
        "right": comparison.right.text,
        "verdicts": {kind: dict(counts) for kind, counts in verdicts.items()},
    }
