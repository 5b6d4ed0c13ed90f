"""Small files that unfold to gigabytes are refused or read row by row: the memory that it takes is measured."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from manners.errors import MannersError
from manners.store.files import containers
from manners.store.files.rowfiles import layouts, read_rows
from manners.store.files.rows import BadRow
from tests.conftest import some

MEGA = 2**20
MOST = 500 * MEGA
"""Above what one small row takes: pyarrow unfolds a page as a whole, and one of these unfolds to 400 MiB."""
"""Bytes of memory, above what reading one small row takes, that no file may take."""
READ = """
import sys
from pathlib import Path
from manners.errors import MannersError
from manners.store.files.rowfiles import read_rows
rows = bad = 0
said = ""
try:
    for number, fields in read_rows(Path(sys.argv[1])):
        rows += 1
        bad += not isinstance(fields, dict)
        if rows >= 3000:
            break
except MannersError as error:
    said = str(error)
# Not `ru_maxrss`, in which the process that began this one is remembered.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024, rows, bad, said)
"""


def read_apart(path: Path) -> tuple[int, int, int, str]:
    """Read a file in a process of its own: its peak memory, its rows, those that are bad, and the refusal."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak, rows, bad, said = done.stdout.rstrip("\n").split(" ", 3)
    return int(peak), int(rows), int(bad), said


def parquet(columns: dict[str, Any], **how: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pq.write_table(pa.table({name: value() for name, value in columns.items()}), folder / "x.parquet", **how)
        return folder / "x.parquet"

    return make


def arrow(columns: dict[str, Any], compression: str | None = "zstd", kind: str = "file") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "x.arrow"
        table = pa.table({name: value() for name, value in columns.items()})
        options = pa.ipc.IpcWriteOptions(compression=compression)
        new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema, options=options) as writer:
            writer.write_table(table)
        return path

    return make


def shared(size: int, rows: int) -> Callable[[], Any]:
    """One long text that all rows share."""
    return lambda: pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a" * size]))


def lines(name: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(content(), 9))
        elif name.endswith(".zst"):
            with pa.CompressedOutputStream(str(path), "zstd") as out:
                out.write(content())
        else:
            path.write_bytes(content())
        return path

    return make


def prefixes() -> Any:
    """Texts that each repeat the one before."""
    return pa.array(["a" * MEGA + str(number) for number in range(400)])


def nested(count: int) -> Callable[[], Any]:
    return lambda: pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.nulls(count, pa.int8()))


def in_gz_in_zst() -> bytes:
    return gzip.compress(gzip.compress(bytes(100 * MEGA)))


BOMBS: dict[str, Callable[[Path], Path]] = {
    "one text of 5 MB in 1,000 rows of Parquet": parquet({"prompt": shared(5 * MEGA, 1000)}),
    "the same, of 20 MB": parquet({"prompt": shared(20 * MEGA, 512)}),
    "the same in three columns": parquet({name: shared(3 * MEGA, 600) for name in ("a", "b", "c")}),
    "texts of zeros in packed pages": parquet(
        {"prompt": lambda: pa.array(["\0" * (40 * MEGA) for _ in range(5)])}, compression="zstd", use_dictionary=False
    ),
    "texts that each repeat the one before": parquet(
        {"prompt": prefixes}, use_dictionary=False, column_encoding={"prompt": "DELTA_BYTE_ARRAY"}
    ),
    "a list of 50 million times nothing": parquet({"prompt": nested(50_000_000)}),
    "a text in lists": parquet(
        {"messages": lambda: pa.array([[{"role": "user", "content": "a" * MEGA}] * 4] * 200)}, compression="zstd"
    ),
    "a text in lists, by a dictionary": parquet(
        {"messages": lambda: pa.array([[{"role": "user", "content": "a" * (5 * MEGA)}]] * 300)}, compression="zstd"
    ),
    "Arrow with packed zeros": arrow({"prompt": lambda: pa.array(["\0" * (50 * MEGA) for _ in range(10)])}),
    "Arrow with packed zeros, by LZ4": arrow({"x": lambda: pa.array(["\0" * (50 * MEGA) for _ in range(10)])}, "lz4"),
    "a stream of Arrow with packed zeros": arrow(
        {"prompt": lambda: pa.array(["\0" * (50 * MEGA) for _ in range(10)])}, kind="stream"
    ),
    "Arrow with one text in all rows": arrow({"prompt": shared(5 * MEGA, 1000)}, None),
    "Arrow with numbers of nothing": arrow({"x": lambda: pa.array(np.zeros(40_000_000, np.int64))}),
    "zeros in gz": lines("x.jsonl.gz", lambda: bytes(300 * MEGA)),
    "lines in gz": lines("x.jsonl.gz", lambda: (b'{"prompt": "' + b"a" * 1000 + b'"}\n') * (300 * 1024)),
    "zeros in zst": lines("x.jsonl.zst", lambda: bytes(300 * MEGA)),
    "a sheet of commas in zst": lines("x.csv.zst", lambda: b"prompt\n" + b"a\n" * (100 * MEGA)),
    "gz in gz": lines("x.jsonl.gz", in_gz_in_zst),
    "gz in zst": lines("x.jsonl.zst", in_gz_in_zst),
    "lists without end": lines("x.jsonl", lambda: b'{"a": [' + b"[]," * (8 * MEGA // 3 - 10) + b"[]]}"),
    "lists without end in an array": lines("x.json", lambda: b'[{"a": [' + b"[]," * (8 * MEGA // 3 - 10) + b"[]]}]"),
    "depth": lines("x.jsonl", lambda: b'{"prompt": ' + b"[" * 3_000_000 + b"]" * 3_000_000 + b"}\n"),
    "objects in objects": lines("x.jsonl", lambda: b'{"a":' * 900 + b"1" + b"}" * 900 + b"\n"),
    "depth in an array": lines("x.json", lambda: b'[{"a": ' + b"[" * 900 + b"]" * 900 + b"}]"),
    "one line without end": lines("x.jsonl", lambda: b'{"prompt": "' + b"a" * (200 * MEGA)),
    "a sheet of one line without end": lines("x.csv", lambda: b"a" * (200 * MEGA)),
    "a sheet of one text without end": lines("x.csv", lambda: b'prompt,left\n"' + b"a\n" * (60 * MEGA)),
    "a sheet of one row without end": lines("x.csv", lambda: b'prompt,left\n"' + b'a\n","' * (30 * MEGA)),
    "a sheet of columns without end": lines("x.csv", lambda: b"," * (8 * MEGA - 10) + b"\n"),
    "a sheet of fields without end": lines("x.csv", lambda: b"prompt,left\n" + (b"," * (8 * MEGA - 10) + b"\n") * 3),
    "numbers of a million digits": lines("x.jsonl", lambda: b'{"prompt": ' + b"9" * 1_000_000 + b"}\n"),
}


@pytest.fixture(scope="module")
def quiet_peak(tmp_path_factory: pytest.TempPathFactory) -> int:
    """What reading one small row of each kind of file takes."""
    folder = tmp_path_factory.mktemp("quiet")
    small = [parquet({"prompt": shared(5, 1)})(folder), arrow({"prompt": shared(5, 1)})(folder)]
    return max(read_apart(path)[0] for path in small)


@pytest.mark.long
@pytest.mark.parametrize("case", BOMBS)
def test_no_file_takes_more_memory_than_it_may(tmp_path: Path, quiet_peak: int, case: str) -> None:
    path = BOMBS[case](tmp_path)
    peak, rows, bad, said = read_apart(path)
    assert peak - quiet_peak < MOST, f"{(peak - quiet_peak) / MEGA:.0f} MiB for {path.stat().st_size:,} bytes"
    assert said or bad or rows, case
    if said:
        assert str(path) in said or "line" in said


@pytest.mark.parametrize("case", some([
    "texts of zeros in packed pages", "a list of 50 million times nothing", "zeros in gz", "Arrow with packed zeros",
    "Arrow with packed zeros, by LZ4", "a stream of Arrow with packed zeros", "lines in gz", "zeros in zst",
    "Arrow with numbers of nothing", "a sheet of commas in zst",
], 4))  # fmt: skip
def test_what_unfolds_to_too_much_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    with pytest.raises(MannersError, match=r"unfolds to more than [\d,]+ bytes from [\d,]+, as no text does"):
        list(read_rows(BOMBS[case](tmp_path)))


def test_a_long_text_in_many_rows_is_a_bad_row_each_and_what_is_short_comes_through(tmp_path: Path) -> None:
    long = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 60, pa.int32()), pa.array(["a" * (9 * MEGA), "short"]))
    pq.write_table(pa.table({"prompt": long}), tmp_path / "x.parquet")
    rows = list(read_rows(tmp_path / "x.parquet"))
    assert [number for number, _ in rows] == list(range(1, 121))
    assert all(isinstance(fields, BadRow) and "8 MiB" in fields.remark for _, fields in rows[::2])
    assert [fields for _, fields in rows[1::2]] == [{"prompt": "short"}] * 60


def test_files_as_they_are_written_come_back_whatever_their_encoding(tmp_path: Path) -> None:
    """The same rows through every encoding that the guard looks at, as pyarrow itself reads them."""
    table = pa.table({
        "prompt": ["Hi", "Zoë", None, "Hi"] * 500,
        "messages": [[{"role": "user", "content": "a"}, {"role": "assistant", "content": str(i)}] for i in range(2000)],
        "tags": [["x", None], [], None, ["y"]] * 500,
        "pairs": pa.array([[("a", 1), ("b", None)], [], None, [("c", 3)]] * 500, pa.map_(pa.string(), pa.int64())),
        "n": [1, 2, 3, None] * 500,
    })  # fmt: skip
    wanted = table.to_pylist()
    for row in wanted:
        row["pairs"] = None if row["pairs"] is None else dict(row["pairs"])
    hows: list[dict[str, Any]] = [{}, {"use_dictionary": False}, {"compression": "zstd"}, {"compression": "gzip"}]
    hows += [{"use_dictionary": False, "column_encoding": {"prompt": "DELTA_BYTE_ARRAY"}}, {"row_group_size": 100}]
    for how in hows:
        pq.write_table(table, tmp_path / "x.parquet", **how)
        assert [_plain(fields) for _, fields in read_rows(tmp_path / "x.parquet")] == wanted, how
    for compression in ("zstd", "lz4", "uncompressed"):
        feather.write_feather(table, tmp_path / "x.feather", compression=compression)
        assert [_plain(fields) for _, fields in read_rows(tmp_path / "x.feather")] == wanted, compression


def _plain(fields: Any) -> dict[str, Any]:
    """Maps are objects in our rows; an empty list of pairs is either."""
    row = dict(fields)
    row["pairs"] = {} if row["pairs"] == [] else row["pairs"]
    return row


def test_a_dense_file_that_is_sound_is_read(tmp_path: Path) -> None:
    """Text packs to a fiftieth at the most where it says the same again and again; that is no bomb."""
    line = json.dumps({"prompt": "Please write a friendly letter to " * 20, "left": "Dear you", "right": "Hi"}) + "\n"
    path = lines("x.jsonl.gz", lambda: line.encode() * 40_000)(tmp_path)
    assert path.stat().st_size * 100 < len(line) * 40_000 < containers.FREELY
    assert sum(1 for _ in read_rows(path)) == 40_000


def test_zst_in_gz_has_no_name_here(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl.zst.gz").write_bytes(b"")
    with pytest.raises(MannersError, match="packed so are neither read nor written"):
        layouts(tmp_path / "x.jsonl.zst.gz")


def test_brackets_in_texts_are_no_depth(tmp_path: Path) -> None:
    rows = [{"prompt": "[" * 1000 + '"' + "{" * 1000 + "\\"}, {"prompt": json.dumps({"a": "[" * 500})}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [fields for _, fields in read_rows(tmp_path / "x.jsonl")] == rows
    (tmp_path / "x.json").write_text(json.dumps(rows))
    assert [fields for _, fields in read_rows(tmp_path / "x.json")] == rows


@pytest.mark.parametrize(("depth", "good"), [(99, True), (101, False), (600, False), (990, False), (100_000, False)])
def test_how_deep_a_row_may_be(tmp_path: Path, depth: int, good: bool) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}\n")
    [(_, fields)] = read_rows(tmp_path / "x.jsonl")
    assert isinstance(fields, dict) == good
