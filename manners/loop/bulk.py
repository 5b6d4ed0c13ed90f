"""Bulk scoring: answers without number, scored without people, in flat memory, going on where it stopped."""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from manners.errors import MannersError
from manners.loop.session import Facts, Session, timed
from manners.models import versions
from manners.progress import steps
from manners.reward.ensemble import Exchange, score_exchanges
from manners.store.fields import parse_member, parse_prompt, parse_text
from manners.store.rowfiles import BadRow, read_rows
from manners.types import FinishReason, Response


def score(session: Session, version: str, file: Path, output: Path) -> Facts:
    """Score each line of `file` (`prompt`, `response`, optional `finish_reason`) and write a line for it to `output`.

    A line of output holds `line`, `score` (in standard deviations of the initial model's answers) and `spread` (their
    standard deviation among members). Lines that are already there are kept and the work goes on after them. A line
    that cannot be read stops the work with its number; everything before it has been written.
    """
    reward = versions.load_reward(session.workspace, version, session.pretrained)
    facts: Facts = {"version": version, "output": str(output)}
    done, count = _whole_lines(output), 0
    lines = deque[int]()
    with timed(facts), output.open("a", encoding="utf-8") as out, steps(f"scoring {file.name}") as advance:
        for scored in score_exchanges(reward, session.pretrained, _exchanges(file, done, lines)):
            for value, spread in zip(scored.mean.tolist(), scored.std.tolist(), strict=True):
                out.write(json.dumps({"line": lines.popleft(), "score": value, "spread": spread}) + "\n")
            out.flush()
            count += len(scored.mean)
            advance(len(scored.mean))
    facts |= {"scored": count, "already_there": done}
    return facts | {"rows_per_second": count / max(facts["seconds"], 1e-9)}


def _whole_lines(output: Path) -> int:
    """Count the whole lines of an earlier run, and cut off a line that it did not finish."""
    if not output.is_file():
        return 0
    count = end = 0
    with output.open("rb+") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                stream.truncate(end)
                break
            count, end = count + 1, end + len(line)
    return count


def _exchanges(file: Path, skip: int, lines: deque[int]) -> Iterator[Exchange]:
    """Read prompts and responses after the first `skip`; `lines` takes the line number of each."""
    for line, fields in itertools.islice(read_rows(file), skip, None):
        try:
            if isinstance(fields, BadRow):
                raise fields
            finish = parse_member(fields, "finish_reason", FinishReason) or FinishReason.UNKNOWN
            exchange = parse_prompt(fields), Response(parse_text(fields, "response"), "file", finish)
        except BadRow as bad:
            where = f"{file}, line {line}" + (f", field {bad.field}" if bad.field else "")
            raise MannersError(f"{where}: {bad.remark}; correct it and run again, which goes on from there") from bad
        lines.append(line)
        yield exchange
