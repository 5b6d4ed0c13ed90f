"""Five hundred data sets of all formats, encodings and damages: a verdict keeps its side, or the file is refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manners.errors import MannersError
from manners.store import Store
from manners.store.files.transfer import import_comparisons, preview, read_comparisons
from manners.types import Choice, Comparison

SEEDS = 500
CODE = re.compile(r"(better|worse|even)#(\d+)#(\d+)")
"""What every answer begins with: what it is beside the other one of its row and number."""
STRANGE = ["", " naïve", " Grüße", ' "so"', ", then; and", "\nnext line", " =1+1", "\tq", " €5"]
BEYOND = [" 🙂", " 日本", "\u2028", "\x85"]
Rows = list[dict[str, Any]]


def answers(rng: random.Random, row: int, tie: bool, plain: bool) -> tuple[str, str]:
    """Return two answers whose texts say which is better."""
    ends = [rng.choice(STRANGE if plain else STRANGE + BEYOND) for _ in range(2)]
    first, second = ("even", "even") if tie else ("better", "worse")
    return f"{first}#{row}#0{ends[0]}", f"{second}#{row}#1{ends[1]}"


@dataclass(frozen=True)
class Asked:
    """One comparison that is to be written down."""

    prompt: str
    better: str
    worse: str
    turned: bool
    """Whether the worse one comes first, where the order is free."""
    tie: bool

    @property
    def sides(self) -> tuple[str, str]:
        return (self.worse, self.better) if self.turned else (self.better, self.worse)

    def among(self, first: Any, second: Any, tie: Any) -> Any:
        """Return what says which side is better."""
        return tie if self.tie else second if self.turned else first


def said(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


def rows(one: Asked) -> Rows:
    word = one.among("left", "right", "tie")
    return [{"verdict": word, "prompt": one.prompt, "left": one.sides[0], "right": one.sides[1]}]


def pairs(one: Asked) -> Rows:
    return [{"prompt": one.prompt, "chosen": one.better, "rejected": one.worse}]


def messages(one: Asked) -> Rows:
    return [{"prompt": [said(one.prompt, "user")], "chosen": [said(one.better)], "rejected": [said(one.worse)]}]


def sharegpt(one: Asked) -> Rows:
    sides = {"chosen": {"from": "gpt", "value": one.better}, "rejected": {"from": "gpt", "value": one.worse}}
    return [{"conversations": [{"from": "human", "value": one.prompt}]} | sides]


def hh(one: Asked) -> Rows:
    start = f"\n\nHuman: {one.prompt}\n\nAssistant: "
    return [{"chosen": start + one.better, "rejected": start + one.worse}]


def arena(one: Asked) -> Rows:
    talks = [[said(one.prompt, "user"), said(text)] for text in one.sides]
    row = {"winner": one.among("model_a", "model_b", "tie"), "model_a": "m", "model_b": "w"}
    return [row | {"conversation_a": talks[0], "conversation_b": talks[1]}]


def signed(one: Asked) -> Rows:
    return [{"preference": one.among(-2, 2, 0), "q": one.prompt, "a": one.sides[0], "b": one.sides[1]}]


def shp(one: Asked) -> Rows:
    row = {"labels": one.among(1, 0, 1), "score_A": one.among(5, 1, 3), "score_B": 3}
    return [row | {"history": one.prompt, "human_ref_A": one.sides[0], "human_ref_B": one.sides[1]}]


def strength(one: Asked) -> Rows:
    row = {"preference_strength": one.among(-1, 1, 0), "prompt": one.prompt}
    return [row | {"response_1": one.sides[0], "response_2": one.sides[1]}]


def ranked(one: Asked) -> Rows:
    ranks = one.among((1, 2), (2, 1), (1, 1))
    pair = [{"rank": rank, "answer": text} for rank, text in zip(ranks, one.sides, strict=True)]
    return [{"answers": pair, "prompt": one.prompt}]


def scored(one: Asked) -> Rows:
    scores = zip(one.among((3, 1), (1, 3), (3, 3)), one.sides, strict=True)
    return [{"score": score, "prompt": one.prompt, "response": text} for score, text in scores]


FORMS = {form.__name__: form for form in (rows, arena, signed, shp, strength, ranked, scored)}
PREFERRING = {form.__name__: form for form in (pairs, messages, sharegpt, hh)}
"""They have no ties."""
MAPPING = {"preference": "verdict", "q": "prompt", "a": "left", "b": "right"}


def rows_in(form: str, rng: random.Random, plain: bool) -> tuple[Rows, dict[str, str]]:
    """Return rows of a format, and the mapping that they need."""
    found: Rows = []
    for n in range(rng.randrange(1, 9)):
        tie = form in FORMS and rng.random() < 0.3
        one = Asked(f"q{n}", *answers(rng, n, tie, plain), rng.random() < 0.5, tie)
        found += (FORMS | PREFERRING)[form](one)
    if form == "signed":
        # Without a number below zero nobody could say what the others mean.
        found += signed(Asked("q#", "better#99#0", "worse#99#1", turned=False, tie=False))
    return found, MAPPING if form == "signed" else {}


SHEETS = [".csv", ".tsv"]
TABLES = [".parquet", ".arrow"]
KINDS = [*SHEETS, ".jsonl", ".json", ".csv.gz", ".jsonl.gz", ".jsonl.zst", *TABLES]


def text_of(all_rows: Rows, kind: str, separator: str, newline: str) -> str:
    if kind.startswith(".json") and not kind.startswith(".jsonl"):
        return json.dumps(all_rows, indent=1, ensure_ascii=False)
    if kind.startswith(".jsonl"):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in all_rows)
    out = io.StringIO()
    writer = csv.DictWriter(out, [*all_rows[0]], delimiter=separator, lineterminator=newline)
    writer.writeheader()
    for row in all_rows:
        writer.writerow({n: json.dumps(v) if isinstance(v, list | dict) else v for n, v in row.items()})
    return out.getvalue()


def written(path: Path, all_rows: Rows, kind: str, encoding: str, rng: random.Random) -> None:
    """Write rows to a file of some kind."""
    if kind in TABLES:
        table = pa.Table.from_pylist(all_rows)
        if kind == ".parquet":
            pq.write_table(table, path)
        else:
            with (
                pa.OSFile(str(path), "wb") as sink,
                rng.choice([pa.ipc.new_file, pa.ipc.new_stream])(sink, table.schema) as out,
            ):
                out.write_table(table)
        return
    separator = "\t" if kind == ".tsv" else rng.choice(",;\t|")
    content = text_of(all_rows, kind, separator, rng.choice(["\n", "\r\n"])).encode(encoding)
    if kind.endswith(".gz"):
        content = gzip.compress(content)
    if kind.endswith(".zst"):
        with pa.output_stream(str(path), compression="zstd") as out:
            out.write(text_of(all_rows, kind, separator, "\n").encode(encoding))
        return
    path.write_bytes(content)


def damaged(path: Path, damage: str, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if damage == "cut":
        content = content[:place]
    elif damage == "flip":
        content[place] ^= 0x80
    elif damage == "quote" and b'"' in content:
        del content[rng.choice([i for i, byte in enumerate(content) if byte == ord('"')])]
    elif damage == "lost line":
        lines = bytes(content).split(b"\n")
        del lines[rng.randrange(len(lines))]
        content = bytearray(b"\n".join(lines))
    path.write_bytes(bytes(content))


def spoilt(all_rows: Rows, rng: random.Random, typed: bool) -> Rows:
    """Return rows one of which has a value that it cannot have, or lacks one."""
    found = [dict(row) for row in all_rows]
    row = rng.choice(found)
    # Without the votes of SHP a label says what equal votes would not.
    name = rng.choice([name for name in row if not name.startswith("score_")])
    value: Any = rng.choice([None, "", "\0", [], {}, "12 apples", "[{'role': 'user", "nonsense"])
    # A column of a table holds values of one type, or nothing.
    row[name] = None if typed else value
    return found


def wrong(found: list[Comparison]) -> Iterator[str]:
    """Yield what was read of known answers and is not what they say."""
    for one in found:
        codes = [CODE.match(side.text) for side in (one.left, one.right)]
        if not all(codes) or len({code[2] for code in codes if code}) > 1:
            continue
        kinds = [code[1] for code in codes if code]
        for verdict in one.verdicts:
            said = {Choice.LEFT: 0, Choice.RIGHT: 1}.get(verdict.choice)
            if (said is None) is not (kinds == ["even", "even"]) or (said is not None and kinds[said] != "better"):
                yield f"{kinds} are {verdict.choice}"


def known(found: list[Comparison]) -> set[str]:
    """Return the numbers of the rows whose two answers are there."""
    pairs = [[CODE.match(side.text) for side in (one.left, one.right)] for one in found if one.verdicts]
    return {a[2] for a, b in pairs if a and b and a[2] == b[2]}


@pytest.mark.parametrize("part", range(5))
def test_a_verdict_keeps_its_side_or_the_file_is_refused(tmp_path: Path, part: int) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(part * SEEDS // 5, (part + 1) * SEEDS // 5):
        rng = random.Random(seed)
        kind, form = rng.choice(KINDS), rng.choice([*FORMS, *PREFERRING])
        encodings = ["utf-8", "utf-8-sig", "utf-16", *(["cp1252", "utf-16-le"] if kind in SHEETS else [])]
        encoding = "utf-8" if ".zst" in kind else rng.choice(encodings)
        sound, mapping = rows_in(form, rng, plain=encoding == "cp1252")
        damage = rng.choice(["none", "spoilt", "cut", "flip", "quote", "lost line"])
        if damage == "flip" and kind in (*TABLES, ".jsonl.zst"):
            damage = "cut"  # they have no sums by which a changed byte would show
        written_rows = spoilt(sound, rng, kind in TABLES) if damage == "spoilt" else sound
        path = tmp_path / f"set{seed}{kind}"
        written(path, written_rows, kind, encoding, rng)
        if damage in ("cut", "flip", "quote", "lost line"):
            damaged(path, damage, rng)
        where = f"seed {seed}: {form} in {kind}, {encoding}, {damage}"
        skipped: Counter[Any] = Counter()
        try:
            found = list(read_comparisons(path, mapping, skipped=skipped))
        except MannersError as error:
            assert str(path) in str(error) and "\n" not in str(error), f"{where}: {error!r}"
            assert damage != "none", f"{where}: {error}"
            outcomes["refused"] += 1
            continue
        assert not [*wrong(found)], where
        strangers = len(found) - len(known(found))
        count = len({CODE.match(text)[2] for row in sound for text in _texts(row) if CODE.match(text)})  # type: ignore[index]
        if damage in ("none", "spoilt", "flip", "quote"):
            assert count - len(known(found)) <= sum(skipped.values()) + strangers, f"{where}: {skipped}"
        if damage == "none":
            assert len(known(found)) == count == len(found) and not skipped, f"{where}: {skipped}"
        seen = preview(path, mapping)
        assert sum((Counter(seen.problems) + Counter(seen.left_out)).values()) == sum(skipped.values()), where
        if seen.problems:
            place = re.escape(str(path)) + r", (line|row) \d+(, field `\w+`)?: "
            assert re.match(place, seen.first_problem), f"{where}: {seen.first_problem}"
            with pytest.raises(MannersError):
                list(read_comparisons(path, mapping))
        outcomes["kept" if not skipped else "in part"] += 1
    assert outcomes["kept"] > 20 and outcomes["refused"] > 5 and outcomes["in part"] > 5, outcomes


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [part for part in re.split(r"(?=(?:better|worse|even)#)", value) if part.startswith(("b", "w", "e"))]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _texts(part)]


def test_what_is_refused_leaves_the_store_as_it_was(store: Store, tmp_path: Path) -> None:
    rng = random.Random(1)
    for form in [*FORMS, *PREFERRING]:
        found, mapping = rows_in(form, rng, plain=True)
        path = tmp_path / f"{form}.jsonl"
        written(path, found, ".jsonl", "utf-8", rng)
        path.write_bytes(path.read_bytes() + b"{")
        before = store.counts()
        with pytest.raises(MannersError, match=r"line \d+: is not JSON"):
            import_comparisons(store, path, mapping, skip_bad=False)
        assert store.counts() == before
        result = import_comparisons(store, path, mapping, skip_bad=True)
        assert sum(result.left_out.values()) == 1 and result.verdicts > 0
