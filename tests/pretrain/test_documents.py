"""Text as documents: what stands between them, how long ones are cut, and what is no text."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manners.errors import MannersError
from manners.pretrain import documents as module
from manners.pretrain.documents import LONGEST, Source, Told, documents, files, fingerprint, pieces

MARK = "<|endoftext|>"


def texts(path: Path, **how: str) -> list[str]:
    return [document.text for document in documents(Source(path, **how))]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@given(st.text(max_size=200), st.integers(1, 400))
def test_what_is_cut_is_the_text_again(part: str, times: int) -> None:
    text = part * times
    found = list(pieces(text))
    assert "".join(document.text for document in found) == text
    assert all(len(document.text) <= LONGEST for document in found)
    assert [document.ends for document in found] == [False] * (len(found) - 1) + [True]
    assert [document.begins for document in found] == [True] + [False] * (len(found) - 1)


@pytest.mark.parametrize(
    "text", ["a" * (LONGEST - 4) + "\n" * 9, "\n" * (LONGEST + 5) + "a", "word " * 3276 + "\n" * 20]
)
def test_a_text_that_begins_or_ends_with_blank_lines_begins_and_ends(tmp_path: Path, text: str) -> None:
    """What stands for its beginning and its end would be missing with the blank part, and no model learned to stop."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    [found] = documents(Source(tmp_path / "a.jsonl"))
    assert found.text == text and found.begins and found.ends, "the blank part is no text of its own"


def test_a_long_text_without_a_word_is_none(tmp_path: Path) -> None:
    blank = written(
        tmp_path, "a.txt", f"one\n{MARK}\n{' ' * (5 * LONGEST)}\n{MARK}\n{'b' * LONGEST}{' ' * (5 * LONGEST)}c"
    )
    *first, last = documents(Source(blank, separator=MARK))
    assert [part.text.strip() for part in first] == ["one", "b" * LONGEST] and last.text.strip() == "c"
    assert [part.begins for part in (*first, last)] == [True, True, False] and last.ends


def test_a_long_document_is_cut_at_a_paragraph_then_a_line_then_a_word() -> None:
    half = "x" * (LONGEST // 2)
    for end in ("\n\n", "\n", " "):
        text = half + " a\nb" * (end != " ") + end + "y" * LONGEST
        assert next(pieces(text)).text.endswith(end)
    assert len(next(pieces("z" * (2 * LONGEST))).text) == LONGEST


@pytest.mark.parametrize("end", ["\n", "", "\r\n"])
def test_a_line_of_its_own_stands_between_documents(tmp_path: Path, end: str) -> None:
    path = written(tmp_path, "a.txt", f"one\ntwo\n{MARK}\nthree {MARK} four\n  {MARK}  \n{MARK}\nfive\n{MARK}{end}")
    assert [text.strip() for text in texts(path)] == ["one\ntwo", f"three {MARK} four", "five"]


def test_blank_lines_stand_between_documents_where_that_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "one\ntwo\n\n\nthree\n \t\nfour")
    assert texts(path, separator="") == ["one\ntwo", "three", "four"]
    assert texts(path) == ["one\ntwo\n\n\nthree\n \t\nfour"]


@given(
    st.lists(st.text("ab \nä", max_size=9), max_size=8),
    st.sampled_from(["", "--"]),
    st.integers(1, 9),
)
def test_where_a_read_ends_changes_nothing(parts: list[str], separator: str, chunk: int) -> None:
    text = (f"\n{separator}\n" if separator else "\n\n").join(parts)
    whole = [document.text for document in module._split(iter([text]), separator, Told())]
    chunks = [text[start : start + chunk] for start in range(0, len(text), chunk)]
    in_parts = [document.text for document in module._split(iter(chunks), separator, Told())]
    assert [t.strip() for t in whole if t.strip()] == [t.strip() for t in in_parts if t.strip()]


def test_rows_of_every_kind_are_documents(tmp_path: Path) -> None:
    said = ["first\nline", 'with "quotes", commas', "ümlaut", f"spells {MARK}"]
    lines = "".join(json.dumps({"text": one, "id": 7}) + "\n" for one in said)
    written(tmp_path, "a/rows.jsonl", lines)
    written(tmp_path, "b/rows.jsonl.gz", gzip.compress(lines.encode(), mtime=0))
    written(tmp_path, "c/rows.jsonl.zst", pa.compress(lines.encode(), "zstd", asbytes=True))
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"text": said}), tmp_path / "d" / "rows.parquet")
    for folder in "abcd":
        assert texts(tmp_path / folder) == said, folder
    assert texts(tmp_path) == said * 4, "a folder is read with its folders, by name"


def test_packed_text_is_text(tmp_path: Path) -> None:
    text = f"one\n{MARK}\ntwo\n"
    written(tmp_path, "a.txt.gz", gzip.compress(text.encode(), mtime=0))
    written(tmp_path, "b.md.zst", pa.compress(text.encode(), "zstd", asbytes=True))
    assert [t.strip() for t in texts(tmp_path)] == ["one", "two"] * 2


def test_another_column_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"story": "once"}\n')
    assert texts(path, column="story") == ["once"]
    with pytest.raises(MannersError, match=r"line 1 has no column text \(it has story\): set pretrain.column"):
        texts(path)


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    written(tmp_path, "a.jsonl", '{"text": "once"}\n{"text": ""}\nnot json\n{"text": 5}\n{"text": "twice"}\n')
    written(tmp_path, "picture.png", b"\x89PNG")
    told = Told()
    assert [d.text for d in documents(Source(tmp_path), told)] == ["once", "twice"]
    assert told.left_out == {"file of another kind": 1, "empty text": 1, "not a row": 1, "wrong type": 1}


def test_one_giant_line_is_cut_and_nothing_of_it_lost(tmp_path: Path) -> None:
    text = "word " * 1_900_000  # 9.5 MB, more than a line of rows may have
    told = Told()
    found = [document.text for document in documents(Source(written(tmp_path, "a.txt", text)), told)]
    assert "".join(found) == text and max(map(len, found)) <= LONGEST and told.cut == 1
    ends = [(document.begins, document.ends) for document in documents(Source(tmp_path / "a.txt"))]
    assert ends == [(True, False), *[(False, False)] * (len(found) - 2), (False, True)]


def test_a_cell_of_many_megabytes_is_cut_without_being_copied_for_each_part() -> None:
    text = "word " * 4_000_000  # 20 MB in 1,221 parts: 12 GB where the rest is copied for each
    started = time.process_time()
    assert sum(len(part.text) for part in pieces(text)) == len(text)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is no text that can be read"),
        ("a.txt", b"plain\nbut \0 here\n", "line 2 holds the character NUL"),
        ("a.txt", "gut\nschön\n".encode() + "schön\n".encode("latin-1"), "line 3 is not UTF-8"),
        ("a.txt", b"PK\x03\x04rest", "a zip archive"),
        ("a.txt", gzip.compress(b"text", mtime=0), "packed with gzip"),
        ("a.txt.gz", gzip.compress(b"text " * 4000, mtime=0)[:-9], "cannot be read|damaged"),
        ("a.xyz", b"text", "no suffix that says how to read it"),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    with pytest.raises(MannersError, match=says) as refused:
        texts(written(tmp_path, name, content))
    assert name in str(refused.value) and "\n" not in str(refused.value)


def test_text_of_other_encodings_is_read_and_said(tmp_path: Path) -> None:
    western = written(tmp_path, "w.txt", "schön\nund grün wie ein Baum\n".encode("cp1252"))
    told = Told()
    assert next(documents(Source(western), told)).text.startswith("schön")
    assert "is read as cp1252" in told.notes[0]
    assert texts(written(tmp_path, "u.txt", "schön".encode("utf-16"))) == ["schön"]
    assert texts(written(tmp_path, "b.txt", b"\xef\xbb\xbfonce")) == ["once"]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MannersError, match="no such file or folder"):
        files(tmp_path / "nowhere")
    written(tmp_path, "picture.png", b"\x89PNG")
    with pytest.raises(MannersError, match=r"holds no files of text \(it holds picture.png\)"):
        files(tmp_path)
    assert texts(written(tmp_path, "empty.txt", "")) == []


def test_a_text_that_changed_has_another_name(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "once upon a time")
    before = fingerprint(Source(path))
    assert before == fingerprint(Source(path)) != fingerprint(Source(path, separator=""))
    written(tmp_path, "a.txt", "Once upon a time")
    assert fingerprint(Source(path)) != before
    large = bytearray(b"once upon a time " * 20_000)
    before = fingerprint(Source(written(tmp_path, "a.txt", bytes(large))))
    for place in (0, len(large) // 2, 100_000, len(large) - 1):
        changed = large.copy()
        changed[place] = ord("X")
        assert fingerprint(Source(written(tmp_path, "a.txt", bytes(changed)))) != before, "an edit anywhere"
    assert fingerprint(Source(written(tmp_path, "a.txt", bytes(large)))) == before
