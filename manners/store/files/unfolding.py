"""How much a table unfolds to, known before it does: a few bytes of Parquet or Arrow can stand for gigabytes.

One text that a thousand rows share, a page of zeros that is packed, a list of a million times nothing: each is small in
the file, and small in Arrow's memory where columns stay folded. What it takes as rows is computed from lengths.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manners.store.files.containers import MAX_LINE, most_unfolded, unfolds_to_too_much

WHOLE = 8 * MAX_LINE
"""Bytes of rows that are made at once; of more, one row is made at a time."""
VALUES_A_BYTE = 64
"""Values of lists to a byte of the file: more are no data."""
_PACKED = re.compile(rb"\x28\xb5\x2f\xfd|\x04\x22\x4d\x18")
"""How what zstd and LZ4 have packed begins."""


def refuse_parquet(path: Path, metadata: Any) -> list[str]:
    """Return the columns that are to be read folded; raises MannersError where the file says that it is a bomb."""
    folded = set()
    most = most_unfolded(path)
    values = max(2**20, VALUES_A_BYTE * path.stat().st_size)
    total = 0
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            chunk, column = metadata.row_group(group).column(place), metadata.schema.column(place)
            total += chunk.total_uncompressed_size
            if total > most or (column.max_repetition_level and chunk.num_values > values):
                raise unfolds_to_too_much(path)
            if column.length > MAX_LINE:
                raise unfolds_to_too_much(path)
            if _has_dictionary(chunk) and "." not in column.path:  # inside of others, Arrow cannot read one folded
                folded.add(column.path)
    return sorted(folded)


def rows_at_once(metadata: Any) -> int:
    """Return how many rows to read at a time: few where one text may stand in all of them and cannot be read folded.

    So it is with a dictionary inside of lists and objects, and where a text is what differs from the one before it.
    """
    largest = 1
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(place)
            inside = "." in metadata.schema.column(place).path
            if "DELTA_BYTE_ARRAY" in chunk.encodings or (inside and _has_dictionary(chunk)):
                largest = max(largest, chunk.total_uncompressed_size)
    return min(512, max(1, WHOLE // largest))


def _has_dictionary(chunk: Any) -> bool:
    return chunk.physical_type == "BYTE_ARRAY" and any("DICTIONARY" in name for name in chunk.encodings)


def refuse_arrow(path: Path) -> None:
    """Raise MannersError where the packed buffers of an Arrow file say that they unfold to too much.

    Each begins at a multiple of 8 with its length unfolded (Arrow columnar format, "Compression"), for which memory is
    taken before anything is looked at.
    """
    most, total = most_unfolded(path), 0
    if not path.stat().st_size:
        raise pa.ArrowInvalid("file size is 0 bytes")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for found in _PACKED.finditer(content):
            at = found.start() - 8
            if at >= 0 and at % 8 == 0:
                total += max(0, int.from_bytes(content[at : at + 8], "little", signed=True))
                if total > most:
                    raise unfolds_to_too_much(path)


def unfolded(batch: Any) -> int | None:
    """Return about how many bytes the rows of a batch take; None where its types do not tell."""
    sizes = [_size(column) for column in batch.columns]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _size(array: Any) -> int | None:
    kind = array.type
    if pa.types.is_dictionary(kind):
        if not _has_bytes(kind.value_type):
            return None if pa.types.is_nested(kind.value_type) else 32 * len(array)
        lengths = pc.take(pc.binary_length(array.dictionary), array.indices)
        return int(pc.sum(lengths).as_py() or 0) + 64 * len(array)
    if _has_bytes(kind):
        return int(pc.sum(pc.binary_length(array)).as_py() or 0) + 64 * len(array)
    if pa.types.is_struct(kind):
        inner = [_size(one) for one in array.flatten()]
        return None if None in inner else sum(one for one in inner if one is not None) + 240 * len(array)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        held = array.flatten() if not pa.types.is_map(kind) else _entries(array)
        size = _size(held)
        return None if size is None else size + 64 * len(array)
    return None if pa.types.is_nested(kind) or pa.types.is_run_end_encoded(kind) else 32 * len(array)


def _entries(array: Any) -> Any:
    """Return the entries of a map's rows as objects."""
    first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
    keys, items = array.keys.slice(first, last - first), array.items.slice(first, last - first)
    return pa.StructArray.from_arrays([keys, items], ["key", "value"])


def _has_bytes(kind: Any) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
