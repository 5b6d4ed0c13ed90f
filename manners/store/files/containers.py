"""What a file is made of: its kind, how it is packed, its text's encoding and what stands between its columns."""

from __future__ import annotations

import codecs
import gzip
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from manners.errors import MannersError

MAX_LINE = 8 * 2**20
"""Longest line, and longest CSV field, in bytes; a longer one is refused before it is loaded."""
MOST_IN_RECORD = 4 * MAX_LINE
"""Most characters of one row of a sheet, over all its lines."""
MOST_COLUMNS = 10_000
"""Most columns of a sheet."""
UNFOLDS = 200
"""How many times its own size a file may unfold to, beyond `FREELY`: text packs to a fifth, seldom to a fiftieth."""
FREELY = 64 * 2**20
"""Bytes to which any file may unfold."""

TEXT_KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt")
TABLE_KINDS = (".parquet", ".arrow", ".feather")
PACKINGS = (".gz", ".zst")
OTHER_PACKINGS = (".zip", ".bz2", ".xz", ".7z", ".rar", ".tar", ".tgz", ".lz4", ".br", ".zstd")
"""What is not unpacked here."""
SUFFIXES = (*(kind + packing for kind in TEXT_KINDS for packing in ("", *PACKINGS)), *TABLE_KINDS)
NAMED = ".csv, .tsv, .jsonl, .json, .parquet, .arrow, with .gz or .zst after those of text, or, for prompts, .txt"
SEPARATORS = {".csv": ",;\t|", ".tsv": "\t,;|"}
"""What may stand between columns; the first is meant where the header has none."""
_WORKBOOKS = (".xlsx", ".xls", ".ods", ".numbers")
_MAGIC = {
    b"version https://git-lfs": "a pointer that git has left in its place: run `git lfs pull`, or download it anew",
    b"<!DOCTYPE": "a page of the web: what was to be downloaded is not in it",
    b"<!doctype": "a page of the web: what was to be downloaded is not in it",
    b"<html": "a page of the web: what was to be downloaded is not in it",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a workbook: save its sheet as CSV in UTF-8",
    b"BZh91AY&SY": "packed with bzip2, which is not read here: unpack it first",
    b"\xfd7zXZ\x00": "packed with xz, which is not read here: unpack it first",
    b"\x1f\x8b": "packed with gzip: name it with .gz at the end",
    b"\x28\xb5\x2f\xfd": "packed with zstd: name it with .zst at the end",
    b"PK\x03\x04": "a workbook or a zip archive: save its sheet, or what is in it, as CSV in UTF-8",
    b"PAR1": "Parquet: name it with .parquet at the end",
    b"ARROW1": "Arrow: name it with .arrow at the end",
    b"FEA1": "Feather of its first version, which is not read here: write it again as Parquet",
}
_BOMS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
_BOMS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_NOTHING = {
    "utf-16-le": [False, True, False, True],
    "utf-16-be": [True, False, True, False],
    "utf-32-le": [False, True, True, True],
    "utf-32-be": [True, True, True, False],
}
"""Which of the first bytes of a text are nothing, by its encoding."""
_SHARD = re.compile(r"(.*?)-?(\d{4,6})-of-(\d{4,6})")


@dataclass(frozen=True, slots=True)
class Layout:
    """How one file is to be read."""

    path: Path
    kind: str
    """`.csv`, `.tsv`, `.jsonl`, `.json`, `.txt`, `.parquet` or `.arrow`."""
    packing: str = ""
    """`.gz`, `.zst` or nothing."""
    encoding: str = ""
    """Of its text, empty where it holds none; `cp1252` is a guess, for a sheet that is not UTF-8 wherever it shows."""
    separator: str = ""
    """Between the columns of a sheet; empty elsewhere."""

    @property
    def unit(self) -> str:
        """What the numbers of `rowfiles.read_rows` count."""
        return "row" if self.kind in TABLE_KINDS else "line"


def suffix_of(path: Path) -> str:
    """Return the suffix that says what the file is made of. Raises MannersError when it is none of `SUFFIXES`."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    if path.name.lower().endswith(OTHER_PACKINGS) or path.suffix.lower() in PACKINGS:
        said = "files that are packed so are neither read nor written here; unpack it, and name what is in it"
        raise MannersError(f"{path}: {said} {NAMED}.")
    if path.suffix.lower() in _WORKBOOKS:
        raise MannersError(f"{path} is a workbook; save its sheet as CSV in UTF-8 and name that file.")
    raise MannersError(f"{path} has no known suffix; name it {NAMED}.")


def layout_of(path: Path) -> Layout:
    """Return how a file is to be read, told by its name and, for text, by its bytes.

    Raises MannersError where the name is none that is known, or the bytes are another thing than it says, and OSError
    where the file cannot be opened.
    """
    suffix = suffix_of(path)
    packing = next((packing for packing in PACKINGS if suffix.endswith(packing)), "")
    kind = {".ndjson": ".jsonl", ".feather": ".arrow"}.get(suffix.removesuffix(packing), suffix.removesuffix(packing))
    if kind in TABLE_KINDS:
        _beginning(path, packing, kind)
        return Layout(path, kind)
    layout = text_layout(path, kind, packing)
    if kind not in SEPARATORS:
        return layout
    with opened(layout) as file:
        lines = (line.decode(errors="replace") for line in iter(lambda: file.readline(MAX_LINE), b""))
        header = next((line for line in lines if line.strip()), "")
    return replace(layout, separator=_separator(kind, header))


def text_layout(path: Path, kind: str, packing: str) -> Layout:
    """Return how a file of text is to be read, whatever its name; raises as `layout_of` does."""
    start = _beginning(path, packing, kind)
    return Layout(path, kind, packing, _encoding(path, packing, kind, start))


def _beginning(path: Path, packing: str, kind: str) -> bytes:
    """Return a file's first bytes; raises MannersError where they say that it is another thing than its name does."""
    with unpacked(path, packing) as file:
        start = file.read(4096)
    for magic, what in _MAGIC.items():
        if start.startswith(magic) and not (kind in TABLE_KINDS and what.endswith(f"{kind} at the end")):
            raise MannersError(f"{path} is {what}.")
    return start


@contextmanager
def unpacked(path: Path, packing: str) -> Iterator[IO[bytes]]:
    """Open a file for its bytes, unpacked."""
    with path.open("rb") as raw:
        if packing == ".gz":
            with gzip.GzipFile(fileobj=raw) as file:
                yield io.BufferedReader(_Unfolding(file, path), 2**17)
        elif packing == ".zst":
            import pyarrow

            yield io.BufferedReader(_Unfolding(pyarrow.CompressedInputStream(raw, "zstd"), path), 2**17)
        else:
            yield raw


def most_unfolded(path: Path) -> int:
    """Return the bytes to which a file may unfold: what unfolds to more was made to fill somebody's memory."""
    return max(FREELY, UNFOLDS * path.stat().st_size)


def unfolds_to_too_much(path: Path) -> MannersError:
    """Return what to raise for a file that does."""
    size = path.stat().st_size
    return MannersError(
        f"{path} unfolds to more than {most_unfolded(path):,} bytes from {size:,}, as no text does: if it is sound all"
        " the same, unpack it, or write it anew in parts."
    )


class _Unfolding(io.RawIOBase):
    """The bytes of a packed file, as long as they are not too many for its size."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path
        self._left = most_unfolded(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = self._file.read(len(buffer))
        self._left -= len(read)
        if self._left < 0:
            raise unfolds_to_too_much(self._path)
        buffer[: len(read)] = read
        return len(read)


@contextmanager
def opened(layout: Layout) -> Iterator[IO[bytes]]:
    """Open a file of text for its bytes in UTF-8; what is no text in its encoding raises UnicodeDecodeError."""
    with unpacked(layout.path, layout.packing) as file:
        yield file if layout.encoding == "utf-8" else io.BufferedReader(_Recoded(file, layout.encoding))


class _Recoded(io.RawIOBase):
    """The bytes of a text in another encoding, as UTF-8."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            read = self._file.read(2**16)
            self._rest = self._decoder.decode(read, final=not read).encode()
            if not read:
                break
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _encoding(path: Path, packing: str, kind: str, start: bytes) -> str:
    for bom, encoding in _BOMS.items():
        if start.startswith(bom):
            return encoding
    # Without a mark: what comes first, a quotation mark, a brace or the name of a column, is ASCII.
    for encoding, nothing in _NOTHING.items():
        if [byte == 0 for byte in start[:4]] == nothing:
            return encoding
    odd, even = start[1::2].count(0), start[0::2].count(0)
    if odd + even > len(start) / 4 and not (odd and even):
        return "utf-16-le" if odd else "utf-16-be"
    return "cp1252" if kind != ".jsonl" and kind != ".json" and _is_cp1252(path, packing) else "utf-8"


def _is_cp1252(path: Path, packing: str) -> bool:
    """Tell whether a sheet is in the encoding of Western spreadsheets rather than damaged UTF-8.

    It is where no line with a byte beyond ASCII is UTF-8, all are cp1252, and such bytes are as rare as accents are.
    """
    strange = total = 0
    with unpacked(path, packing) as file:
        while line := file.readline(MAX_LINE):
            if line.isascii():
                continue
            try:
                line.decode()
                return False
            except UnicodeDecodeError as error:
                # A text that was cut off within a character, unless lines before it are no UTF-8 either.
                if error.reason == "unexpected end of data" and not line.endswith(b"\n") and not total:
                    return False
            try:
                line.decode("cp1252")
            except UnicodeDecodeError:
                return False
            strange += sum(byte >= 0x80 for byte in line)
            total += len(line)
    return 0 < strange <= total / 4


def _separator(kind: str, header: str) -> str:
    """Return what stands most often between the columns of a header, outside of quotes."""
    header = header.removeprefix("\ufeff")
    if stated := stated_separator(header):
        return stated
    bare = re.sub(r'"[^"]*"', "", header)
    return max(SEPARATORS[kind], key=bare.count)


def stated_separator(line: str) -> str:
    """Return the separator that a first line such as `sep=;` states for spreadsheets, nothing for any other line."""
    found = re.fullmatch(r'"?sep=(.)"?[\r\n]*', line.removeprefix("\ufeff"), re.IGNORECASE)
    return found[1] if found else ""


def shards(path: Path) -> list[Path]:
    """Return the files that a path stands for: itself, or those of a folder that are the shards of one data set.

    Raises MannersError where a folder holds none, some that are not alike, or not all of them.
    """
    if not path.is_dir():
        return [path]
    known = (*TABLE_KINDS, *(kind + packing for kind in TEXT_KINDS[:4] for packing in ("", *PACKINGS)))
    found = [one for one in sorted(path.iterdir()) if not one.name.startswith(".") and one.name.lower().endswith(known)]
    if not found:
        inside = ", ".join(sorted(one.name for one in path.iterdir())[:5]) or "nothing"
        raise MannersError(f"{path} is a folder without files of rows; it holds {inside}: name the file or folder.")
    families = sorted({_family(one.name) for one in found})
    if len(families) > 1:
        raise MannersError(f"{path} holds files that are not parts of one whole ({', '.join(families[:5])}): name one.")
    numbered = [_SHARD.match(one.name) for one in found]
    stated = {int(match[3]) for match in numbered if match}
    there = sorted(int(match[2]) for match in numbered if match)
    if stated and (len(stated) > 1 or not all(numbered) or _gap(there, max(stated))):
        raise MannersError(f"{path} has {len(found)} of {max(stated)} parts; fetch the others, or name one file.")
    return found


def _family(name: str) -> str:
    """Return a file's name with a star in the place of its numbers."""
    return re.sub(r"(?<![\d_-])[_-]*+\d[\d_-]*+(?:of[\d_-]+)?", "*", name)


def _gap(there: list[int], stated: int) -> bool:
    return len(there) != stated or any(after - before != 1 for before, after in pairwise(there))


def guesses(files: Sequence[Layout]) -> list[str]:
    """Return what was guessed about the files that are read for one path, a sentence each, for whoever brings them."""
    found = []
    if len(files) > 1:
        found.append(f"{len(files)} files are read as one, in the order of their names, from {files[0].path.name} on")
    western = [file.path.name for file in files if file.encoding == "cp1252"]
    return found + [f"{name} is not UTF-8 and is read as cp1252 (Western): look at its accents" for name in western]
