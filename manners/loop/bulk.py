"""Bulk scoring: answers without number, scored without people, in flat memory, going on where it stopped."""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from manners.errors import MannersError
from manners.facts import Facts
from manners.loop.session import Session, digest, peak_memory
from manners.models import versions
from manners.progress import steps
from manners.reward import ensemble, stored
from manners.reward.ensemble import Exchange, score_exchanges
from manners.store.fields import parse_member, parse_prompt, parse_text
from manners.store.rowfiles import read_rows
from manners.store.rows import BadRow, Reason
from manners.templates import Template
from manners.types import FinishReason, Response

BEGINNING = b'{"line": '
"""What every line of output begins with."""


class _Row(NamedTuple):
    """A row to be scored, with where it stands and what says of a score that it is this row's."""

    line: int
    check: str
    exchange: Exchange


def score(session: Session, version: str, file: Path, output: Path) -> Facts:
    """Score each line of `file` (`prompt`, `response`, optional `finish_reason`) and write a line for it to `output`.

    A line of output holds `line`, `version`, `score` (in units of what the start version's answers to a prompt differ
    by), `spread` (its standard deviation among members) and `check`, a digest of what was scored and by what. Whole
    chunks that are already there are kept and the work goes on after them, so that a file that was stopped ends byte
    for byte as one that never was. A line that cannot be read stops the work with its number; everything before it has
    been written.

    Raises MannersError, and leaves `output` as it is, where it holds anything but scores of `file` by `version`.
    """
    reward = stored.load_reward(session.workspace, version, session.pretrained)
    scorer = _scorer(session, version)
    template = session.pretrained.renderer.template
    done = _kept(output, file, version, scorer, template)
    count = 0
    pending = deque[_Row]()
    began = time.monotonic()
    with output.open("a", encoding="utf-8") as out, steps(f"scoring {file.name}") as advance:
        rows = itertools.islice(_rows(file, scorer, template), done, None)
        for scored in score_exchanges(reward, session.pretrained, _exchanges(rows, pending)):
            for value, spread in zip(scored.mean.tolist(), scored.std.tolist(), strict=True):
                row = pending.popleft()
                line = {"line": row.line, "version": version, "score": value, "spread": spread, "check": row.check}
                out.write(json.dumps(line) + "\n")
            out.flush()
            count += len(scored.mean)
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
    }


def _scorer(session: Session, version: str) -> str:
    """Return a digest of what decides a row's score: two versions may have one name, in two workspaces."""
    described = versions.describe(session.workspace, version)
    renderer = session.pretrained.renderer
    model = described.trunk_hash, described.shifts, described.scale, session.settings.model.dtype
    return digest((version, described.created_at, *model, renderer.template_hash, renderer.context))


def _kept(output: Path, file: Path, version: str, scorer: str, template: Template) -> int:
    """Return how many lines of an earlier run are kept, those of whole chunks, and cut off the rest.

    Which rows stand together shows in the last digits of their scores: a chunk is scored whole, or again.
    """
    if not output.is_file():
        return 0
    count = end = kept = cut = 0
    rows = _rows(file, scorer, template)
    with output.open("rb+") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                if not BEGINNING.startswith(line[: len(BEGINNING)]):
                    raise _refusal(output, count + 1, file, version)
                break
            _compare(line, next(rows, None), output, count + 1, file, version)
            count, end = count + 1, end + len(line)
            if count % ensemble.CHUNK == 0:
                kept, cut = count, end
        stream.truncate(cut)
    return kept


def _compare(line: bytes, row: _Row | None, output: Path, number: int, file: Path, version: str) -> None:
    """Raise MannersError where a line of output is not this version's score of that row."""
    try:
        there = json.loads(line)
        by, check = str(there["version"]), there["check"]
    except (ValueError, KeyError, TypeError):
        raise _refusal(output, number, file, version) from None
    if row is None or by != version or check != row.check:
        raise _refusal(output, number, file, version, by)


def _refusal(output: Path, number: int, file: Path, version: str, by: str = "") -> MannersError:
    """Return the refusal to go on in a file that holds something else."""
    holds = f"a score by {by}" if by and by != version else "something else"
    return MannersError(
        f"{output}, line {number}, holds {holds} where the score of {file} by {version} as it is now would stand: name"
        f" another file with --output, or move {output} away"
    )


def _rows(file: Path, scorer: str, template: Template) -> Iterator[_Row]:
    """Read prompts and responses."""
    for line, fields in read_rows(file):
        try:
            if isinstance(fields, BadRow):
                raise fields
            finish = parse_member(fields, "finish_reason", FinishReason) or FinishReason.UNKNOWN
            exchange = parse_prompt(fields), Response(parse_text(fields, "response"), "file", finish)
            if why := template.objection(exchange[0]):
                raise BadRow(Reason.TEMPLATE, "prompt", why)
        except BadRow as bad:
            where = f"{file}, line {line}" + (f", field {bad.field}" if bad.field else "")
            raise MannersError(f"{where}: {bad.remark}; correct it and run again, which goes on from there") from bad
        yield _Row(line, digest((scorer, exchange)), exchange)


def _exchanges(rows: Iterator[_Row], pending: deque[_Row]) -> Iterator[Exchange]:
    """Hand out what is to be scored; `pending` takes the rows that wait for their scores."""
    for row in rows:
        pending.append(row)
        yield row.exchange
