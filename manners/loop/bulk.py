"""Bulk scoring: answers without number, scored without people, in flat memory, going on where it stopped."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from manners.errors import MannersError
from manners.facts import Facts, to_facts
from manners.loop.session import Session, digest, peak_memory
from manners.models import versions
from manners.models.pretrained import Pretrained
from manners.models.products import rounded_products
from manners.progress import steps
from manners.results import Rounding, Shortened
from manners.reward import ensemble, stored
from manners.reward.ensemble import Exchange, RewardModel, score_exchanges
from manners.store.files.columns import check_mapping, renamed
from manners.store.files.exchanges import EXCHANGE_FIELDS, parse_exchange
from manners.store.files.reading import complaint
from manners.store.files.rowfiles import read_rows
from manners.store.files.rows import BadRow, Reason
from manners.templates import Template

COMPARED = 32
"""Rows that are scored both ways where products are rounded."""
BEGINNING = b'{"line": '
"""What every line of output begins with."""


class _Row(NamedTuple):
    """A row to be scored, with where it stands and what says of a score that it is this row's."""

    line: int
    check: str
    exchange: Exchange


@dataclass(frozen=True)
class Source:
    """A file of answers, and how it is read."""

    file: Path
    mapping: Mapping[str, str] = field(default_factory=dict)
    """Which column of it is which field of ours."""
    skip_bad: bool = False
    """Whether lines that cannot be read are left out, and counted."""


def score(session: Session, version: str, source: Source, output: Path, fast: bool = False) -> Facts:
    """Score each line of a file (`exchanges.parse_exchange`) and write a line for it to `output`.

    A line of output holds `line`, `version`, `score` (in units of what the start version's answers to a prompt differ
    by), `spread` (its standard deviation among members), `check`, a digest of what was scored and by what, and, where
    anything did not fit into the context, `dropped`, its tokens. Whole chunks that are already there are kept and the
    work goes on after them, so that a file that was stopped ends byte for byte as one that never was. A line that
    cannot be read stops the work with its number; everything before it has been written. With `fast`, factors are
    rounded before they are multiplied (`products.rounded_products`); what that does to scores is measured on the first
    rows, and told.

    Raises MannersError, and leaves `output` as it is, where it holds anything but scores of the file by `version`.
    """
    check_mapping(source.file, source.mapping, EXCHANGE_FIELDS)
    reward = stored.load_reward(session.workspace, version, session.pretrained)
    scorer = _scorer(session, version, fast)
    template = session.pretrained.renderer.template
    cut = _Cut()
    done = _kept(output, source, version, scorer, template, cut)
    count = 0
    pending = deque[_Row]()
    passed = _Passed()
    rounded = _rounding(reward, session.pretrained, _rows(source, scorer, template, _Passed())) if fast else None
    began = time.monotonic()
    with (
        rounded_products() if fast else nullcontext(),
        output.open("a", encoding="utf-8") as out,
        steps(f"scoring {source.file.name}") as advance,
    ):
        rows = itertools.islice(_rows(source, scorer, template, passed), done, None)
        for scored in score_exchanges(reward, session.pretrained, _exchanges(rows, pending)):
            values, spreads = scored.mean.tolist(), scored.std.tolist()
            camps = [] if scored.camps is None else (scored.mean + scored.camps).T.tolist()
            for number, lost in enumerate(scored.dropped):
                row = pending.popleft()
                line = {"line": row.line, "version": version, "score": values[number], "spread": spreads[number]}
                line |= {"camps": camps[number]} if camps else {}
                out.write(json.dumps(line | {"check": row.check} | ({"dropped": lost} if lost else {})) + "\n")
            out.flush()
            count += len(scored.mean)
            cut.add(scored.dropped)
            advance(len(scored.mean))
    seconds = time.monotonic() - began
    return {
        "version": version,
        "output": str(output),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
        "scored": count,
        "already_there": done,
        "rows_per_second": count / max(seconds, 1e-9),
        "fast": None if rounded is None else to_facts(rounded),
        "shortened": to_facts(cut.of(done + count)),
        "unused": sorted(passed.columns - set(EXCHANGE_FIELDS)),
        "skipped": {str(reason): number for reason, number in passed.skipped.items()},
    }


def _rounding(reward: RewardModel, pretrained: Pretrained, rows: Iterator[_Row]) -> Rounding:
    """Score the first rows of a file with exact products and with rounded ones, after one another."""
    exchanges = list[Exchange]()
    with suppress(MannersError):  # a row that cannot be read: who scores will come to it
        exchanges.extend(row.exchange for row in itertools.islice(rows, COMPARED))
    rendered = [pretrained.renderer.render(prompt, response) for prompt, response in exchanges]
    if not rendered:
        return Rounding(rows=0)
    began = time.monotonic()
    exact = ensemble.score_all(reward, pretrained, rendered).mean
    between = time.monotonic()
    with rounded_products():
        off = (ensemble.score_all(reward, pretrained, rendered).mean - exact).abs()
    times = (between - began) / max(time.monotonic() - between, 1e-9)
    return Rounding(rows=len(rendered), off_mean=float(off.mean()), off_largest=float(off.max()), times_as_fast=times)


def _scorer(session: Session, version: str, fast: bool) -> str:
    """Return a digest of what decides a row's score: two versions may have one name, in two workspaces."""
    described = versions.describe(session.workspace, version)
    renderer = session.pretrained.renderer
    model = described.trunk_hash, described.shifts, described.scale, session.settings.model.dtype
    rounded = ("fast",) if fast else ()
    return digest((version, described.created_at, *model, renderer.template_hash, renderer.context, *rounded))


def _kept(output: Path, source: Source, version: str, scorer: str, template: Template, cut: _Cut) -> int:
    """Return how many lines of an earlier run are kept, those of whole chunks, and cut off the rest.

    `cut` takes what did not fit of those that are kept.

    Which rows stand together shows in the last digits of their scores: a chunk is scored whole, or again.
    """
    if not output.is_file():
        return 0
    count = end = kept = kept_end = 0
    lost = list[int]()
    rows = _rows(source, scorer, template, _Passed())
    with output.open("rb+") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                if not BEGINNING.startswith(line[: len(BEGINNING)]):
                    raise _refusal(output, count + 1, source.file, version)
                break
            lost.append(_compare(line, next(rows, None), output, count + 1, source.file, version))
            count, end = count + 1, end + len(line)
            if count % ensemble.CHUNK == 0:
                kept, kept_end = count, end
                cut.add(lost)
                lost.clear()
        stream.truncate(kept_end)
    return kept


def _compare(line: bytes, row: _Row | None, output: Path, number: int, file: Path, version: str) -> int:
    """Return the tokens that did not fit; raises MannersError for what is not this version's score of that row."""
    try:
        there = json.loads(line)
        by, check, dropped = str(there["version"]), there["check"], int(there.get("dropped", 0))
    except (ValueError, KeyError, TypeError):
        raise _refusal(output, number, file, version) from None
    if row is None or by != version or check != row.check:
        raise _refusal(output, number, file, version, by)
    return dropped


def _refusal(output: Path, number: int, file: Path, version: str, by: str = "") -> MannersError:
    """Return the refusal to go on in a file that holds something else."""
    holds = f"a score by {by}" if by and by != version else "something else"
    return MannersError(
        f"{output}, line {number}, holds {holds} where the score of {file} by {version} as it is now would stand (what"
        " was begun with --fast goes on with --fast, and without it without): name"
        f" another file with --output, or move {output} away"
    )


@dataclass
class _Cut:
    """What did not fit into the context."""

    rows: int = 0
    tokens: int = 0

    def add(self, dropped: Sequence[int]) -> None:
        """Count the tokens that some rows lost."""
        self.rows += sum(lost > 0 for lost in dropped)
        self.tokens += sum(dropped)

    def of(self, rows: int) -> Shortened:
        """Return it as a result, of so many rows."""
        return Shortened(count=self.rows, share=self.rows / max(1, rows), tokens=self.tokens)


@dataclass
class _Passed:
    """What a reader of a file came past."""

    columns: set[str] = field(default_factory=set)
    skipped: Counter[Reason] = field(default_factory=Counter)
    first: str = ""
    """The complaint about the first bad row."""


def _rows(source: Source, scorer: str, template: Template, passed: _Passed) -> Iterator[_Row]:
    """Read prompts and responses; raises MannersError for a row that cannot be read, unless such are left out.

    So it does where they all are.
    """
    empty = True
    for line, fields in read_rows(source.file):
        try:
            if isinstance(fields, BadRow):
                raise fields
            ours = renamed(fields, source.mapping)
            passed.columns |= ours.keys()
            exchange = parse_exchange(ours, "file")
            if why := template.objection(exchange[0]):
                raise BadRow(Reason.TEMPLATE, "prompt", why)
        except BadRow as bad:
            if not source.skip_bad or not passed.first:
                told = complaint(source.file, line, bad, "and run again, which goes on from there")
                if not source.skip_bad:
                    raise told from bad
                passed.first = str(told)
            passed.skipped[bad.reason] += 1
            continue
        empty = False
        yield _Row(line, digest((scorer, exchange)), exchange)
    if empty and passed.skipped:
        raise MannersError(f"none of the {passed.skipped.total()} rows can be read: {passed.first}")


def _exchanges(rows: Iterator[_Row], pending: deque[_Row]) -> Iterator[Exchange]:
    """Hand out what is to be scored; `pending` takes the rows that wait for their scores."""
    for row in rows:
        pending.append(row)
        yield row.exchange
