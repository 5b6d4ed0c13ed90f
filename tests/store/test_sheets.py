"""What files are made of: sheets as spreadsheets write them, packed files, arrays, and folders of shards."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manners.errors import MannersError
from manners.store import Store
from manners.store.files.containers import PACKINGS, TABLE_KINDS, TEXT_KINDS
from manners.store.files.formats import COLUMNS, Format, parse, render
from manners.store.files.rowfiles import read_rows, write_rows
from manners.store.files.rows import BadRow, Reason
from manners.store.files.transfer import export_comparisons, import_comparisons, preview, read_comparisons
from manners.types import Annotator, AnnotatorKind, AskedHow, Choice, Comparison, Response, Role, Turn, Verdict

Write = Callable[[str, bytes], Path]
ROWS = [
    {"prompt": "Grüße, sagt er; und?", "chosen": 'Ein "Café"\nfür 5 €', "rejected": "Nein\tœuf"},
    {"prompt": "Naïve?", "chosen": "=1+1", "rejected": "'quoted'"},
]
ANN = Annotator("ann", AnnotatorKind.HUMAN)
PROMPT = (Turn(Role.USER, "Hi"),)


def sheet(rows: list[dict[str, Any]], separator: str = ",", newline: str = "\r\n", before: str = "") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, [*rows[0]], delimiter=separator, lineterminator=newline)
    writer.writeheader()
    writer.writerows(rows)
    return before + out.getvalue()


def texts(found: list[Comparison]) -> list[tuple[str, str, str]]:
    """Return prompt, better and worse text of each."""
    sides = [
        (c.prompt[-1].text, *(c.left.text, c.right.text)[:: 1 - 2 * (c.verdicts[0].choice is Choice.RIGHT)])
        for c in found
    ]
    return [(prompt, better, worse) for prompt, better, worse in sides]


EXPECTED = [tuple(row.values()) for row in ROWS]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize(
    ("name", "separator"), [("x.csv", ","), ("x.csv", ";"), ("x.csv", "\t"), ("x.tsv", "\t"), ("x.tsv", ",")]
)
def test_a_sheet_is_read_whatever_it_is_written_with(write: Write, name: str, separator: str, encoding: str) -> None:
    path = write(name, sheet(ROWS, separator).encode(encoding))
    assert texts(list(read_comparisons(path, {}))) == EXPECTED
    seen = preview(path, {})
    assert (seen.separator, seen.encoding) == (separator, encoding.removesuffix("-sig"))
    assert any("read as cp1252" in note for note in seen.notes) is (encoding == "cp1252")


def test_what_spreadsheets_add_is_no_row(write: Write) -> None:
    rows = [row | {"": ""} for row in ROWS]
    path = write("x.csv", (sheet(rows, ";", before="sep=;\r\n") + ";;;\r\n\r\n").encode("utf-8-sig"))
    assert texts(list(read_comparisons(path, {}))) == EXPECTED
    assert [line for line, _ in read_rows(path)] == [3, 5]


OTHER = {
    "shift_jis": "こんにちは、元気ですか",
    "cp1251": "Как дела сегодня утром",
    "gb18030": "你好吗今天早上",
}


@pytest.mark.parametrize("encoding", OTHER)
def test_a_sheet_in_yet_another_encoding_is_refused(write: Write, encoding: str) -> None:
    path = write("x.csv", sheet([{"prompt": OTHER[encoding], "chosen": "A", "rejected": "B"}]).encode(encoding))
    with pytest.raises(MannersError, match="line 2: is not UTF-8 at byte 1"):
        list(read_comparisons(path, {}))


def test_json_is_never_guessed_to_be_anything_but_unicode(write: Write) -> None:
    line = json.dumps(ROWS[0], ensure_ascii=False)
    with pytest.raises(MannersError, match=r"x\.jsonl, line 1: is not UTF-8"):
        list(read_comparisons(write("x.jsonl", line.encode("cp1252")), {}))
    with pytest.raises(MannersError, match=r"x\.json, line 1, field `\w+`: holds half a surrogate pair, or is not"):
        list(read_comparisons(write("x.json", f"[{line}]".encode("cp1252")), {}))
    assert texts(list(read_comparisons(write("x.jsonl", line.encode("utf-16")), {}))) == EXPECTED[:1]


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "'quoted'", "''", "\tx", "\rx", "a=b", "x\r\ny", " =1"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
def test_formulas_are_escaped_on_the_way_out_and_come_back_as_they_were(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    said = [
        Comparison(PROMPT, Response(text, "=m"), Response("no", "imported"), AskedHow.RANDOM, 0.5) for text in FORMULAS
    ]
    write_rows(path, COLUMNS[Format.ROWS], [render(one, None, Format.ROWS) for one in said])
    raw = gzip.decompress(path.read_bytes()) if suffix.endswith(".gz") else path.read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    cells = list(
        csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""), delimiter="\t" if suffix == ".tsv" else ",")
    )
    assert not [cell for row in cells for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    back = [parse(row, Format.ROWS, ANN) for _, row in read_rows(path) if not isinstance(row, BadRow)]
    assert back == said and "escaped" not in preview(path, {}).unused


def test_a_sheet_of_somebody_else_is_not_unescaped(write: Write) -> None:
    path = write("x.csv", b"prompt,chosen,rejected\nHi,'tis,=1\n'So,a,''b''\n")
    assert texts(list(read_comparisons(path, {}))) == [("Hi", "'tis", "=1"), ("'So", "a", "''b''")]
    # A row that somebody adds to a sheet of ours has nothing in the column that says so.
    mixed = write("y.csv", b"prompt,chosen,rejected,escaped\nHi,'=1,b,true\nHo,'tis,b,\n")
    assert texts(list(read_comparisons(mixed, {}))) == [("Hi", "=1", "b"), ("Ho", "'tis", "b")]


def test_line_ends_do_not_make_a_new_comparison(store: Store, fresh: Callable[[], Store], tmp_path: Path) -> None:
    prompt = (Turn(Role.USER, "Two\nlines"),)
    sides = Response("a\nb", "policy-1"), Response("c\n\nd", "initial")
    store.add_comparisons([Comparison(prompt, *sides, AskedHow.EVALUATION, 0.5)])
    export_comparisons(store, tmp_path / "out.csv", Format.ROWS)
    rows = [dict(row) for _, row in read_rows(tmp_path / "out.csv") if not isinstance(row, BadRow)]
    rows[0] |= {"verdict": "left", "annotator": "ann"}
    for name, end in (("windows.csv", "\r\n"), ("old.csv", "\r"), ("same.csv", "\n")):
        (tmp_path / name).write_bytes(sheet([{n: v.replace("\n", end) for n, v in rows[0].items()}]).encode())
        result = import_comparisons(store, tmp_path / name, {}, skip_bad=False)
        assert (result.comparisons, result.verdicts) == (0, int(name == "windows.csv"))
    [comparison] = store.comparisons()
    assert (comparison.prompt, comparison.left, comparison.right) == (prompt, *sides)
    both = tmp_path / "both.jsonl"
    pair = {"prompt": "Two\nlines", "chosen": "a\nb", "rejected": "c", "annotator": "ann"}
    both.write_text(
        "".join(json.dumps({k: v.replace("\n", e) for k, v in pair.items()}) + "\n" for e in ("\r\n", "\n"))
    )
    assert import_comparisons(fresh(), both, {}, skip_bad=False).comparisons == 1


def packed(path: Path, content: bytes) -> Path:
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(content))
    elif path.name.endswith(".zst"):
        with pa.output_stream(str(path), compression="zstd") as out:
            out.write(content)
    else:
        path.write_bytes(content)
    return path


LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CONTENTS = {
    "x.jsonl": LINES,
    "x.ndjson": LINES,
    "x.json": json.dumps(ROWS),
    "indented.json": "\ufeff\n " + json.dumps(ROWS, indent=2) + "\n",
    "lines.json": LINES,
    "x.csv": sheet(ROWS),
    "x.tsv": sheet(ROWS, "\t"),
}


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", CONTENTS)
def test_every_kind_of_text_is_read_packed_or_not(tmp_path: Path, name: str, packing: str) -> None:
    assert texts(list(read_comparisons(packed(tmp_path / (name + packing), CONTENTS[name].encode()), {}))) == EXPECTED


def table(rows: list[dict[str, Any]], path: Path) -> Path:
    made = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(made, path)
    else:
        new = pa.ipc.new_stream if "stream" in path.name else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, new(sink, made.schema) as out:
            out.write_table(made)
    return path


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.feather", "stream.arrow"])
def test_tables_are_read_with_what_is_nested_in_them(tmp_path: Path, name: str) -> None:
    nested = [
        {n: [{"role": ["assistant", "user"][n == "prompt"], "content": t}] for n, t in row.items()} for row in ROWS
    ]
    path = table(nested, tmp_path / name)
    assert texts(list(read_comparisons(path, {}))) == EXPECTED
    seen = preview(path, {})
    assert (seen.encoding, seen.separator, seen.unused) == ("", "", ())


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl"])
def test_a_folder_of_shards_is_one_file(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for n, rows in enumerate([ROWS, [ROWS[0] | {"rejected": ""}, ROWS[1]]]):
        path = folder / f"train-0000{n}-of-00002{suffix}"
        if suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            table(rows, path)
    (folder / "dataset_info.json").write_text("{}")
    skipped = Counter[Reason]()
    assert texts(list(read_comparisons(folder, {}, skipped=skipped))) == [*EXPECTED, EXPECTED[1]]
    assert skipped == {Reason.EMPTY: 1}
    unit = "line" if suffix == ".jsonl" else "row"
    place = f"{folder / f'train-00001-of-00002{suffix}'}, {unit} 1, field `rejected`: is empty"
    with pytest.raises(MannersError, match=re.escape(place)):
        list(read_comparisons(folder, {}))
    assert preview(folder, {}).notes == (
        f"2 files are read as one, in the order of their names, from train-00000-of-00002{suffix} on",
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00002.parquet"], "has 1 of 2 parts; fetch the others"),
        (
            ["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"],
            "not parts of one whole (test*.parquet, train",
        ),
        (["train.parquet", "test.parquet"], "not parts of one whole (test.parquet, train.parquet)"),
        (["README.md"], "is a folder without files of rows; it holds README.md"),
        ([], "is a folder without files of rows; it holds nothing"),
    ],
)
def test_a_folder_that_is_no_whole_data_set_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    with pytest.raises(MannersError) as caught:
        preview(folder, {})
    assert message in str(caught.value) and str(folder) in str(caught.value)


def test_an_object_of_an_array_has_the_number_of_its_line(write: Write) -> None:
    rows: list[Any] = [*ROWS, ROWS[0] | {"chosen": ""}, 3]
    path = write("x.json", json.dumps(rows, indent=1, ensure_ascii=False).encode())
    assert [(line, isinstance(row, BadRow)) for line, row in read_rows(path)] == [(2, 0), (7, 0), (12, 0), (17, 1)]
    with pytest.raises(MannersError, match=r"x\.json, line 12, field `chosen`: is empty"):
        list(read_comparisons(path, {}))
    large = write("large.json", json.dumps([row | {"chosen": "x" * 100_000} for row in ROWS * 20]).encode())
    assert len(list(read_comparisons(large, {}))) == 40, "longer than what is read at once"


def test_a_lost_quotation_mark_costs_counted_lines(write: Write) -> None:
    lines = [f'"Q, {n}",good {n},bad {n}\n' for n in range(9)]
    lines[3] = lines[3].replace('3",', "3,")
    path = write("x.csv", ("prompt,chosen,rejected\n" + "".join(lines)).encode())
    skipped = Counter[Reason]()
    found = list(read_comparisons(path, {}, skipped=skipped))
    assert (len(found), skipped) == (7, {Reason.NOT_A_ROW: 2})
    with pytest.raises(MannersError, match=r"x\.csv, line 5: is not CSV"):
        list(read_comparisons(path, {}))


@pytest.mark.parametrize(
    "text", ['[{"role": "user", "content": "x"}]', '[{"role": "user"', '{"role": "user", "content": "x"}']
)
def test_an_answer_that_looks_like_messages_comes_back_as_it_was(tmp_path: Path, text: str) -> None:
    one = Comparison(
        PROMPT, Response(text, "m"), Response("no", "m"), AskedHow.RANDOM, 1.0, (Verdict(Choice.LEFT, ANN),)
    )
    for name in ("out.csv", "out.jsonl"):
        write_rows(tmp_path / name, COLUMNS[Format.ROWS], [render(one, one.verdicts[0], Format.ROWS)])
        assert list(read_comparisons(tmp_path / name, {})) == [one]


@pytest.mark.parametrize("name", ["out.json", "out.arrow", "out.jsonl.zst"])
def test_what_is_only_read_is_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(MannersError, match=r"are only read; choose a name that ends in \.csv or \.jsonl"):
        write_rows(tmp_path / name, COLUMNS[Format.ROWS], [])


def test_the_page_names_every_kind_of_file() -> None:
    page = (Path(__file__).parents[2] / "docs" / "store.md").read_text(encoding="utf-8")
    kinds = {kind for kind in (*TEXT_KINDS, *TABLE_KINDS, *PACKINGS) if f"`{kind}`" not in page}
    assert not kinds
