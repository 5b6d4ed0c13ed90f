"""Which files hold the weights of a version, and whether each is there whole, by its header alone.

Nothing here loads torch, nor the weights: a safetensors file begins with the length of its header, which says where
each tensor lies (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from manners.errors import MannersError
from manners.models.described import Version
from manners.types import VersionKind
from manners.workspace import Workspace

INDEX = "model.safetensors.index.json"
_LONGEST = 100_000_000
"""Bytes of a header, as the format's own reader allows."""


def check(workspace: Workspace, version: Version) -> None:
    """Raise MannersError where a file of a version's weights is not there, or is shorter or longer than it says."""
    for file in expected(workspace, version):
        if what := wrong(file):
            raise MannersError(f"{file} {what}: put {version.name} back from a backup, or use another version.")


def expected(workspace: Workspace, version: Version) -> list[Path]:
    """Return the files that a version cannot be loaded without: a branch for each member, or those of a whole model."""
    folder = workspace.models / version.name
    if version.kind is not VersionKind.PRETRAIN:
        members = len(version.shifts) + (version.witness is not None) if version.kind is VersionKind.REWARD else 1
        return [folder / f"branch-{index}.safetensors" for index in range(members)]
    if not (folder / INDEX).is_file():
        return [folder / "model.safetensors"]
    try:
        parts = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / part for part in sorted(set(parts))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MannersError(
            f"{folder / INDEX} is damaged: put {version.name} back from a backup, or use another version."
        ) from error


def digest(workspace: Workspace, name: str) -> str:
    """Hash what a version is loaded from: its description, and all tensors in its folder; `initial` has no folder."""
    found, folder = hashlib.sha256(), workspace.models / name
    for file in [folder / "version.json", *sorted(folder.glob("*.safetensors"))] if folder.is_dir() else []:
        with file.open("rb") as stream:
            found.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest()


def wrong(file: Path) -> str:
    """Return what is wrong with a safetensors file, by its header and its length; empty where nothing is."""
    if not file.is_file():
        return "is not there"
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(_LONGEST, file.stat().st_size):
                return "is damaged (it begins with no header)"
            header = json.loads(stream.read(length))
        tensors = [one for name, one in header.items() if name != "__metadata__"]
        end = max((int(one["data_offsets"][1]) for one in tensors), default=0)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return "is damaged (its header cannot be read)"
    size, told = file.stat().st_size, 8 + length + end
    return "" if size == told else f"is damaged ({size:,} bytes, where its header says {told:,})"
