"""One row of a file, and why it cannot be taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from manners.errors import MannersError

Fields = Mapping[str, Any]
"""One row: field name to value."""


class Reason(StrEnum):
    """Why a row is refused; left-out rows are counted by it."""

    NOT_UTF8 = "not UTF-8"
    TOO_LONG = "line over 8 MiB"
    NOT_A_ROW = "not a row"
    LACKS_FIELD = "lacks a field"
    WRONG_TYPE = "wrong type"
    EMPTY = "empty text"
    IDENTICAL = "identical responses"
    ROLE = "unsupported role"
    VERDICT = "unknown verdict"
    TRANSCRIPT = "not a transcript"
    VALUE = "value out of range"
    ALONE = "nothing to compare with"
    UNSCORED = "no score"
    TEMPLATE = "refused by the chat template"


@dataclass(eq=False)
class BadRow(Exception):
    """A row that cannot be taken: why, in which field (empty: the whole row), and a remark for the reader."""

    reason: Reason
    field: str
    remark: str
    harmless: bool = False
    """Whether a sound file may hold it, so that it is left out and counted without being asked for."""


def damaged(path: Path, error: Exception) -> MannersError:
    """Return what to raise for a file that is not what it seems to be."""
    return MannersError(f"{path} is damaged ({' '.join(str(error).split())}); fetch or write it again.")
