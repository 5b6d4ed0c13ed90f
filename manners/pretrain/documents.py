"""Plain text as documents, read as a stream: files and folders of text, rows of tables.

    .txt .md                         a document ends at a line that is the separator, or at the end of the file
    .jsonl .csv .parquet .arrow ...  a row is a document, the text of one column

with .gz or .zst after those of text. A document longer than `LONGEST` characters is read as several, cut at the end of
a paragraph, of a line or of a word, whichever comes first; nothing is lost by it.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from manners.errors import MannersError
from manners.store.files.containers import PACKINGS, Layout, layout_of, opened, text_layout
from manners.store.files.rowfiles import SUFFIXES, rows_of
from manners.store.files.rows import BadRow

LONGEST = 16_384
"""Characters of a document at most."""
PLAIN = (".txt", ".md", ".text")
KNOWN = tuple(kind + packing for kind in PLAIN for packing in ("", *PACKINGS))
CHUNK = 2**20
"""Bytes that are read at once."""
SHOWN = 5
"""Names that a refusal lists."""


@dataclass(frozen=True)
class Source:
    """A text, and how it is read."""

    path: Path
    column: str = "text"
    """Of tables: the column that holds a document."""
    separator: str = "<|endoftext|>"
    """Of plain text: the line that stands between two documents; empty where blank lines do."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or a part of one that was longer than `LONGEST`."""

    text: str
    ends: bool = True
    """Whether the text ends here, and was not cut."""
    begins: bool = True
    """Whether it begins here, and is not the rest of one."""

    @property
    def digest(self) -> int:
        """64 bits that say which text this is."""
        return int.from_bytes(hashlib.blake2b(self.text.encode(), digest_size=8).digest(), "little")


@dataclass(eq=False)
class Told:
    """What there is to say about a text that was read: counted while it is read."""

    files: int = 0
    cut: int = 0
    """Documents that were read as several."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows and files, by reason."""
    notes: list[str] = field(default_factory=list)


def documents(source: Source, told: Told | None = None) -> Iterator[Document]:
    """Yield the documents of a file, or of all files of a folder in the order of their names.

    Raises MannersError, with a sentence, for what is not there, is not text, or has no such column.
    """
    told = Told() if told is None else told
    for path in files(source.path, told):
        told.files += 1
        plain = path.name.lower().endswith(KNOWN)
        yield from _worded(_plain(path, source.separator, told) if plain else _rows(path, source, told))


def _worded(parts: Iterator[Document]) -> Iterator[Document]:
    """Yield the parts that say something; one that does not goes with the part before it, or else with the one after.

    A text without a word is none. Blanks of many parts are no longer than two.
    """
    held: Document | None = None
    for part in parts:
        if held is None or held.ends or (held.text.strip() and part.text.strip()):
            if held is not None and held.text.strip():
                yield held
            held = part
        else:
            said = held.text if held.text.strip() else part.text
            text = held.text + part.text if len(held.text) < 2 * LONGEST else said
            held = Document(text, ends=part.ends, begins=held.begins)
    if held is not None and held.text.strip():
        yield held


def files(path: Path, told: Told | None = None) -> list[Path]:
    """Return the files that a path stands for; raises MannersError where there are none that can be read."""
    if path.is_file():
        if not path.name.lower().endswith((*KNOWN, *SUFFIXES)):
            raise MannersError(
                f"{path} has no suffix that says how to read it: name it .txt, .md, .jsonl, .csv or .parquet"
            )
        return [path]
    if not path.is_dir():
        raise MannersError(f"{path}: there is no such file or folder; check the path")
    inside = [one for one in sorted(path.rglob("*")) if one.is_file() and not _hidden(one.relative_to(path))]
    found = [one for one in inside if one.name.lower().endswith((*KNOWN, *SUFFIXES))]
    if not found:
        there = ", ".join(one.name for one in inside[:SHOWN]) or "nothing"
        raise MannersError(f"{path} holds no files of text (it holds {there}): name a folder of .txt, .md or .jsonl")
    if told is not None and len(found) < len(inside):
        told.left_out["file of another kind"] += len(inside) - len(found)
    return found


def fingerprint(source: Source) -> str:
    """Return a short name for a text, by the names of its files and every byte of them."""
    digest = hashlib.sha256(repr((source.column, source.separator)).encode())
    for path in files(source.path):
        try:
            with path.open("rb") as file:
                inside = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise MannersError(f"{path} cannot be read ({error.strerror or error}); fetch or write it again") from error
        digest.update(repr(path.name).encode() + inside)
    return digest.hexdigest()[:16]


def pieces(text: str, begins: bool = True) -> Iterator[Document]:
    """Yield a text, or the parts that it is cut into: together they are the text, to the character."""
    start = 0
    while len(text) - start > LONGEST:
        end = _cut(text, start)
        yield Document(text[start:end], ends=False, begins=begins and not start)
        start = end
    yield Document(text[start:], begins=begins and not start)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _plain(path: Path, separator: str, told: Told) -> Iterator[Document]:
    """Yield the documents of a file of plain text, holding no more of it than a chunk and a document."""
    packing = next((one for one in PACKINGS if path.name.lower().endswith(one)), "")
    try:
        layout = text_layout(path, ".txt", packing)
        if layout.encoding == "cp1252":
            told.notes.append(f"{path.name} is not UTF-8 and is read as cp1252 (Western): look at its accents")
        with opened(layout) as file:
            yield from _split(_decoded(file, path), separator, told)
    except UnicodeDecodeError as error:
        raise _no_text(path, f"it is not {error.encoding.upper()}") from error
    except (EOFError, OSError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise MannersError(f"{path} cannot be read ({reason}); fetch or write it again") from error


def _decoded(file: IO[bytes], path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    lines = 1
    while True:
        data = file.read(CHUNK)
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            line = lines + error.object[: error.start].count(b"\n")
            raise _no_text(path, f"line {line} is not UTF-8, as what stands before it is") from error
        if "\0" in text:
            raise _no_text(path, f"line {lines + text[: text.index(chr(0))].count(chr(10))} holds the character NUL")
        lines += text.count("\n")
        if not data:
            return
        yield text


def _no_text(path: Path, why: str) -> MannersError:
    return MannersError(f"{path} is no text that can be read ({why}); save it as UTF-8, or take it out of the folder")


def _split(chunks: Iterator[str], separator: str, told: Told) -> Iterator[Document]:
    """Yield what stands between separators; a document grows over chunks, and is cut where it grows too long."""
    apart = re.compile(rf"^[ \t]*{re.escape(separator)}[ \t\r]*\n" if separator else r"\n(?:[ \t\r]*\n)+", re.MULTILINE)
    last = re.compile(rf"(?:^|\n)[ \t]*{re.escape(separator)}[ \t\r]*$") if separator else None
    text, began = "", False
    for chunk in chunks:
        lines, feed, rest = (text + chunk).rpartition("\n")
        *done, text = apart.split(lines + feed)
        for document in done:
            told.cut += began or len(document) > LONGEST
            yield from pieces(document, begins=not began)
            began = False
        text += rest
        start = 0
        while len(text) - start > 2 * LONGEST:
            end = _cut(text, start)
            yield Document(text[start:end], ends=False, begins=not began)
            start, began = end, True
        text = text[start:]
    told.cut += began or len(text) > LONGEST
    yield from pieces(last.sub("", text) if last else text, begins=not began)


def _cut(text: str, start: int) -> int:
    """Return where what is too long from `start` on is cut: behind a paragraph, a line or a word in its second half."""
    for end in ("\n\n", "\n", " "):
        found = text.rfind(end, start + LONGEST // 2, start + LONGEST)
        if found >= 0:
            return found + len(end)
    return start + LONGEST


def _rows(path: Path, source: Source, told: Told) -> Iterator[Document]:
    try:
        layout: Layout = layout_of(path)
    except OSError as error:
        raise MannersError(f"{path} cannot be read ({error.strerror or error}); fetch or write it again") from error
    first = True
    for number, fields in rows_of([layout]):
        if isinstance(fields, BadRow):
            told.left_out[str(fields.reason)] += 1
            continue
        text = fields.get(source.column)
        if first and source.column not in fields:
            there = ", ".join(list(fields)[:SHOWN]) or "nothing"
            raise MannersError(
                f"{path}, {layout.unit} {number} has no column {source.column} (it has {there}): set pretrain.column"
            )
        first = False
        if not isinstance(text, str) or not text.strip():
            told.left_out["empty text" if text in (None, "") or isinstance(text, str) else "wrong type"] += 1
            continue
        told.cut += len(text) > LONGEST
        yield from pieces(text.encode(errors="replace").decode().replace("\0", "\ufffd"))
