"""In which format a model's files keep its numbers, by the files themselves, and whether all of them are numbers.

A configuration may name another format, or none. A safetensors file begins with the format of each tensor
(https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from manners.errors import MannersError
from manners.models.folders import quantised
from manners.models.surgery import describe

_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where weights are looked for, in the order of transformers."""
_FORMATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_TINY = re.compile(r"F[468]|float[468]", re.IGNORECASE)
"""Formats that are for weights alone, as the files call them; whole numbers are also kept for other things."""


def number_format(name: str, source: str, otherwise: torch.dtype) -> torch.dtype:
    """Return the format of most of the bytes in the files of a folder or id; `otherwise` where no file is found.

    Raises MannersError where weights are kept in another format than a plain one of floating point.
    """
    counts = Counter[torch.dtype]()
    for key, kept, size in _tensors(source):
        if isinstance(kept, torch.dtype) and kept in _FORMATS.values():
            counts[kept] += size
        elif key.endswith("weight") or _TINY.search(str(kept)):
            raise quantised(name, f"quantised weights ({key} in {str(kept).removeprefix('torch.')})")
    return max(counts, key=lambda kept: counts[kept]) if counts else otherwise


def check_numbers(name: str, model: PreTrainedModel) -> None:
    """Raise MannersError where a weight holds what is no number."""
    for which, parameter in model.named_parameters():
        if parameter.numel() and not all(bool(end.isfinite()) for end in parameter.detach().aminmax()):
            raise MannersError(
                f"model.name is {name}, whose {which} holds what is no number (a damaged file, or a training that ran"
                f" away; {describe(model)}); use another"
            )


def _tensors(source: str) -> Iterator[tuple[str, torch.dtype | str, int]]:
    """Yield the name, format and size of all tensors in the files of a folder or id."""
    for file in _weight_files(source):
        if file.suffix == ".bin":
            for key, tensor in torch.load(file, map_location="meta", weights_only=True).items():
                yield key, tensor.dtype, tensor.nbytes
            continue
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for key, one in header.items():
            if key != "__metadata__":
                begin, end = one["data_offsets"]
                yield key, _FORMATS.get(one["dtype"], one["dtype"]), end - begin


def _weight_files(source: str) -> list[Path]:
    """Return the files that transformers has read the weights from: they are on this machine."""
    for name in _FILES:
        if (file := _there(source, name)) is None:
            continue
        if not name.endswith(".json"):
            return [file]
        parts = json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()
        return [found for part in sorted(set(parts)) if (found := _there(source, part)) is not None]
    return []


def _there(source: str, name: str) -> Path | None:
    kept = cached_file(source, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
    return None if kept is None else Path(kept)
